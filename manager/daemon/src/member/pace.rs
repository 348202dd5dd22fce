//! When a step that failed may be tried again.

use pgstead_types::report::Working;
use pgstead_types::{Step, Tick};
use std::time::Duration;

/// The first wait after a failed step; doubled up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(100);
pub const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// The step that failed last, until it is no longer what comes next; and the removal of what it has left, where that failed too.
#[derive(Debug, Default)]
pub struct Pace {
    failed: Option<Failed>,
    discard: Option<Failed>,
}

#[derive(Debug)]
struct Failed {
    step: Step,
    attempt: u32,
    error: String,
    retry_at: Tick,
}

impl Pace {
    /// Whether this step may begin now.
    pub fn may_begin(&mut self, step: Step, now: Tick) -> bool {
        if step == Step::DiscardPartial {
            // It makes room for the one that failed, which is still to come.
            return self.discard.as_ref().is_none_or(|failed| now >= failed.retry_at);
        }
        self.discard = None;
        match &self.failed {
            Some(failed) if failed.step == step => now >= failed.retry_at,
            Some(_) | None => {
                self.failed = None;
                true
            }
        }
    }

    /// 1 for the first.
    pub fn attempt(&self, step: Step) -> u32 {
        let failed = if step == Step::DiscardPartial { &self.discard } else { &self.failed };
        failed.as_ref().filter(|failed| failed.step == step).map_or(1, |failed| failed.attempt + 1)
    }

    pub fn succeeded(&mut self, step: Step) {
        self.discard = None;
        if step != Step::DiscardPartial {
            self.failed = None;
        }
    }

    pub fn failed(&mut self, step: Step, error: String, now: Tick) {
        let attempt = self.attempt(step);
        let delay = RETRY_FIRST.saturating_mul(1 << attempt.min(10)).min(RETRY_LONGEST);
        let failed = Some(Failed { step, attempt, error, retry_at: now + delay });
        match step {
            Step::DiscardPartial => self.discard = failed,
            _ => self.failed = failed,
        }
    }

    /// Nothing is to be done.
    pub fn rests(&mut self) {
        *self = Self::default();
    }

    /// How long until what waits may begin; `None` when nothing waits.
    pub fn wait(&self, now: Tick) -> Option<Duration> {
        self.last().map(|failed| failed.retry_at.since(now).clamp(Duration::from_millis(1), RETRY_LONGEST))
    }

    pub fn working(&self) -> Option<Working> {
        self.last().map(|failed| Working {
            step: failed.step,
            elapsed_ms: 0,
            attempt: failed.attempt,
            percent: None,
            error: Some(failed.error.clone()),
        })
    }

    /// What stands in the way now.
    fn last(&self) -> Option<&Failed> {
        self.discard.as_ref().or(self.failed.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest() {
        let (mut pace, mut now) = (Pace::default(), Tick::now());
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert!(pace.may_begin(Step::InitDatabase, now));
            pace.failed(Step::InitDatabase, "no room".into(), now);
            assert!(!pace.may_begin(Step::InitDatabase, now));
            waits.push(pace.wait(now).unwrap().as_millis());
            now = now + pace.wait(now).unwrap();
        }
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        pace.succeeded(Step::InitDatabase);
        assert_eq!((pace.wait(now), pace.attempt(Step::InitDatabase)), (None, 1));
    }

    /// Seen with an `initdb` that failed at once: twenty attempts a second.
    #[test]
    fn what_a_failed_step_has_left_is_removed_at_once_and_the_step_still_waits() {
        let (mut pace, now) = (Pace::default(), Tick::now());
        for step in [Step::InitDatabase, Step::Clone] {
            pace.rests();
            assert!(pace.may_begin(step, now));
            pace.failed(step, "no room".into(), now);
            assert!(pace.may_begin(Step::DiscardPartial, now));
            assert_eq!(pace.attempt(Step::DiscardPartial), 1);
            pace.succeeded(Step::DiscardPartial);
            assert!(!pace.may_begin(step, now));
            assert_eq!(pace.attempt(step), 2);
        }
    }

    #[test]
    fn another_step_is_not_kept_waiting_and_ends_the_wait() {
        let (mut pace, now) = (Pace::default(), Tick::now());
        pace.failed(Step::Clone, "refused".into(), now);
        assert!(pace.may_begin(Step::Fence, now));
        assert!(pace.may_begin(Step::Clone, now));
    }

    #[test]
    fn a_removal_that_fails_waits_as_well_and_the_step_after_it_is_not_forgotten() {
        let (mut pace, now) = (Pace::default(), Tick::now());
        pace.failed(Step::Clone, "refused".into(), now);
        pace.failed(Step::DiscardPartial, "read-only".into(), now);
        assert!(!pace.may_begin(Step::DiscardPartial, now));
        assert_eq!((pace.attempt(Step::DiscardPartial), pace.attempt(Step::Clone)), (2, 2));
        pace.succeeded(Step::DiscardPartial);
        assert!(!pace.may_begin(Step::Clone, now));
        pace.succeeded(Step::Clone);
        assert_eq!(pace.wait(now), None);
    }
}
