//! The histogram that openraft keeps its statistics in, without tables: 65 counters, one per power of two.
//!
//! The published crate of this name builds lookup tables for sixteen resolutions when the first histogram is made, 24 MiB
//! for the life of the process, of which openraft uses the coarsest few hundred bytes. This one has the part of its
//! interface that openraft calls, and answers to within a factor of two.

use std::fmt;
use std::marker::PhantomData;

/// Bucket 0 counts zeros; bucket `n` counts values from 2^(n-1) to 2^n - 1.
const BUCKETS: usize = 65;

/// Counts of `u64` values by their magnitude. `T` is there for the published interface and carries nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: [u64; BUCKETS],
    data: PhantomData<T>,
}

impl<T> Histogram<T> {
    pub fn new() -> Self {
        Self { counts: [0; BUCKETS], data: PhantomData }
    }

    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    pub fn record_n(&mut self, value: u64, count: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        self.counts[bucket] = self.counts[bucket].saturating_add(count);
    }

    /// How many values were recorded.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The least value of the bucket in which the share `share` (0 to 1) of all values is reached; 0 without any.
    pub fn percentile(&self, share: f64) -> u64 {
        let wanted = ((self.total() as f64 * share).ceil() as u64).max(1);
        let mut below = 0_u64;
        for (bucket, count) in self.counts.iter().enumerate() {
            below = below.saturating_add(*count);
            if below >= wanted {
                return if bucket == 0 { 0 } else { 1 << (bucket - 1) };
            }
        }
        0
    }

    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.percentile(0.001),
            p1: self.percentile(0.01),
            p5: self.percentile(0.05),
            p10: self.percentile(0.10),
            p50: self.percentile(0.50),
            p90: self.percentile(0.90),
            p99: self.percentile(0.99),
            p99_9: self.percentile(0.999),
        }
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Histogram<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Histogram({})", self.percentile_stats())
    }
}

/// What is usually asked of a histogram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PercentileStats {
    /// How many values were recorded.
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} samples, median {}, p90 {}, p99 {}", self.samples, self.p50, self.p90, self.p99)
    }
}

/// Several histograms by name, a line each.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart {
    lines: Vec<String>,
}

impl AsciiChart {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn add(mut self, name: &str, histogram: Histogram) -> Self {
        self.lines.push(format!("{name}: {}", histogram.percentile_stats()));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_told_apart_by_magnitude() {
        let mut held = Histogram::<()>::new();
        [0, 1, 2, 3, 1000, u64::MAX].into_iter().for_each(|value| held.record(value));
        assert_eq!(held.total(), 6);
        assert_eq!((held.percentile(0.0), held.percentile(0.5), held.percentile(1.0)), (0, 2, 1 << 63));
    }

    #[test]
    fn nothing_recorded_is_zero_everywhere() {
        assert_eq!(Histogram::<()>::new().percentile_stats().p99, 0);
    }
}
