//! The guard's own count of its Postgres' lease: at the end it ends every process, whatever has become of the daemon.
//!
//! The end is a point on `CLOCK_BOOTTIME`, which runs on while the host sleeps and which daemon and guard share. It does
//! not run while a virtual machine is paused. What can be seen of that is a wall clock that is set forward afterwards, and
//! a leader that acknowledges alone is ended by it.

use pgstead_types::Tick;
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// A wall clock that gains so much on the boot clock while a lease is counted was set: by a person, or because time passed
/// that this host has not seen. Clocks that are merely disciplined gain far less.
const WALL_JUMP_MAX: Duration = Duration::from_millis(1000);

pub struct LeaseTimer {
    /// Readable once the lease is over.
    end: OwnedFd,
    /// Readable once the wall clock was set.
    wall: OwnedFd,
    counted: Option<Counted>,
}

#[derive(Clone, Copy)]
struct Counted {
    end: Tick,
    /// Ended by a jump of the wall clock, too.
    strict: bool,
    wall_ahead: Duration,
}

impl LeaseTimer {
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self {
            end: timerfd_create(TimerfdClockId::Boottime, flags)?,
            wall: timerfd_create(TimerfdClockId::Realtime, flags)?,
            counted: None,
        })
    }

    /// Counts a lease until `end`, instead of the one before. Not where that one is over: another may lead since, so the
    /// processes are to end, however late this one, which may not have been scheduled, comes to see it. Says whether it does.
    pub fn try_count(&mut self, end: Tick, strict: bool, now: Tick) -> io::Result<bool> {
        if self.over(now)?.is_some() {
            return Ok(false);
        }
        timerfd_settime(&self.end, TimerfdTimerFlags::ABSTIME, &at(end.as_nanos()))?;
        let counted = Counted { end, strict, wall_ahead: Tick::wall_ahead() };
        self.counted = Some(counted);
        self.watch_wall()?;
        Ok(true)
    }

    /// Counts none any more.
    pub fn forget(&mut self) -> io::Result<()> {
        if self.counted.take().is_some() {
            timerfd_settime(&self.end, TimerfdTimerFlags::empty(), &at(0))?;
            timerfd_settime(&self.wall, TimerfdTimerFlags::empty(), &at(0))?;
        }
        Ok(())
    }

    pub fn end(&self) -> Option<Tick> {
        self.counted.map(|counted| counted.end)
    }

    /// Why Postgres must end now, if it must.
    pub fn over(&mut self, now: Tick) -> io::Result<Option<&'static str>> {
        let Some(counted) = self.counted else { return Ok(None) };
        if now >= counted.end {
            return Ok(Some("its lease is over"));
        }
        if Tick::wall_ahead() > counted.wall_ahead + WALL_JUMP_MAX && counted.strict {
            return Ok(Some("the wall clock was set forward, as after a pause that this host has not seen"));
        }
        let mut set = [0u8; 8];
        if rustix::io::read(&self.wall, &mut set) == Err(Errno::CANCELED) {
            // Set by less, or back: from here on that is how it is.
            self.counted = Some(Counted { wall_ahead: Tick::wall_ahead(), ..counted });
            self.watch_wall()?;
        }
        Ok(None)
    }

    fn watch_wall(&self) -> io::Result<()> {
        // Never reached: it is only to be cancelled by a clock that is set.
        let never = at(u64::MAX / 2);
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        Ok(timerfd_settime(&self.wall, flags, &never).map(drop)?)
    }

    /// What wakes the guard for it.
    pub fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.end.as_fd(), self.wall.as_fd()]
    }
}

fn at(nanos: u64) -> Itimerspec {
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let value = Timespec { tv_sec: (nanos / 1_000_000_000) as i64, tv_nsec: (nanos % 1_000_000_000) as i64 };
    Itimerspec { it_interval: zero, it_value: value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    #[test]
    fn wakes_at_its_end_and_is_then_over() {
        let mut timer = LeaseTimer::new().unwrap();
        assert_eq!(timer.over(Tick::now()).unwrap(), None);
        let end = Tick::now() + Duration::from_millis(30);
        assert!(timer.try_count(end, true, Tick::now()).unwrap());
        assert_eq!(timer.over(end_before(end)).unwrap(), None);
        let mut fds = [PollFd::from_borrowed_fd(timer.fds()[0], PollFlags::IN)];
        let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
        assert_eq!(poll(&mut fds, Some(&patience)).unwrap(), 1);
        assert!(timer.over(Tick::now()).unwrap().is_some());
        timer.forget().unwrap();
        assert_eq!((timer.end(), timer.over(Tick::now()).unwrap()), (None, None));
    }

    #[test]
    fn a_lease_that_is_over_is_not_prolonged() {
        let mut timer = LeaseTimer::new().unwrap();
        let end = Tick::now() + Duration::from_secs(3600);
        let later = end + Duration::from_secs(3600);
        assert!(timer.try_count(end, true, end_before(end)).unwrap());
        // The request for a later one was there before this process was scheduled again.
        assert!(!timer.try_count(later, true, end).unwrap());
        assert_eq!((timer.end(), timer.over(end).unwrap()), (Some(end), Some("its lease is over")));
        // Nor one that a wall clock has ended, which a new count would begin to measure anew.
        let counted = timer.counted.as_mut().unwrap();
        counted.wall_ahead = counted.wall_ahead.saturating_sub(Duration::from_secs(5));
        assert!(!timer.try_count(later, true, end_before(end)).unwrap());
    }

    fn end_before(end: Tick) -> Tick {
        Tick::from_nanos(end.as_nanos() - 1)
    }

    #[test]
    fn a_wall_clock_that_gained_ends_only_who_acknowledges_alone() {
        let mut timer = LeaseTimer::new().unwrap();
        let end = Tick::now() + Duration::from_secs(3600);
        for strict in [true, false] {
            assert!(timer.try_count(end, strict, Tick::now()).unwrap());
            let counted = timer.counted.as_mut().unwrap();
            // As if the wall clock had stood further back when the lease began.
            counted.wall_ahead = counted.wall_ahead.saturating_sub(Duration::from_secs(5));
            assert_eq!(timer.over(Tick::now()).unwrap().is_some(), strict);
            timer.forget().unwrap();
        }
    }
}
