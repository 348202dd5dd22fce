//! A node's own clock. It begins anywhere and may go slower or faster than time does, so nothing of one node's clock means
//! anything on another.

use pgstead_types::Tick;
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// At this time of the world ...
    at: Tick,
    /// ... it showed this.
    showed: Tick,
    /// How far it goes on while the world goes on by 1000.
    per_mille: u32,
}

pub const TRUE_RATE: u32 = 1000;

impl Clock {
    pub fn new(showed: Duration) -> Self {
        Self { at: Tick::default(), showed: Tick::default() + showed, per_mille: TRUE_RATE }
    }
    /// What it shows at `now` of the world.
    pub fn shows(&self, now: Tick) -> Tick {
        self.showed + now.since(self.at) * self.per_mille / TRUE_RATE
    }
    /// Time of the world that passes while it goes on by `own`.
    pub fn lasts(&self, own: Duration) -> Duration {
        own * TRUE_RATE / self.per_mille
    }
    pub fn is_true(&self) -> bool {
        self.per_mille == TRUE_RATE
    }
    /// It goes on from where it is, at another rate; a clock of this kind never jumps.
    pub fn set_rate(&mut self, now: Tick, per_mille: u32) {
        *self = Self { at: now, showed: self.shows(now), per_mille };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_clock_shows_more_and_its_spans_last_less() {
        let begin = Tick::default() + Duration::from_secs(5);
        let mut clock = Clock::new(Duration::from_secs(100));
        clock.set_rate(begin, 2000);
        assert_eq!(clock.shows(begin), Tick::default() + Duration::from_secs(105));
        assert_eq!(clock.shows(begin + Duration::from_secs(3)), Tick::default() + Duration::from_secs(111));
        assert_eq!(clock.lasts(Duration::from_secs(4)), Duration::from_secs(2));
    }
}
