//! The lease of a Postgres, as its guard counts it.

use super::{Instance, InstanceError};
use crate::guard::{GuardError, GuardStatus};
use pgstead_types::Tick;
use std::sync::atomic::Ordering;

/// Whether a guard counts the lease that it was given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeaseCount {
    Counts,
    /// There is nothing to count it for, or the guard is of an older version and does not know leases.
    DoesNot {
        why: String,
    },
}

impl Instance {
    /// Has the guard end Postgres at `end`, unless a later end is given before. `strict` for a leader that acknowledges
    /// alone: a jump of the wall clock ends it too.
    pub async fn count_lease(&self, end: Tick, strict: bool) -> Result<LeaseCount, InstanceError> {
        let none = |why: &str| Ok(LeaseCount::DoesNot { why: why.to_string() });
        let Some(guard) = self.guard_if_any().await else { return none("no guard runs") };
        match guard.count_lease(Some(end), strict).await {
            Ok(()) => {
                self.lease.store(end.as_nanos(), Ordering::Relaxed);
                Ok(LeaseCount::Counts)
            }
            Err(GuardError::Refused { why, .. }) => none(&why),
            Err(GuardError::TooOld { .. }) => none("its guard is of an older version; restart the member once"),
            Err(error) => Err(error.into()),
        }
    }

    /// A Postgres that is a standby for good needs no lease: its guard forgets the one that it may count.
    pub async fn forget_lease(&self) -> Result<(), InstanceError> {
        if self.lease.swap(0, Ordering::Relaxed) == 0 {
            return Ok(());
        }
        match self.guard_if_any().await {
            Some(guard) => match guard.count_lease(None, false).await {
                Err(GuardError::Refused { .. } | GuardError::TooOld { .. }) => Ok(()),
                done => Ok(done?),
            },
            None => Ok(()),
        }
    }

    /// The end of the lease that the guard counts, by its last word: what a restarted daemon goes on from.
    pub fn lease_end(&self) -> Option<Tick> {
        let end = self.lease.load(Ordering::Relaxed);
        (end > 0).then(|| Tick::from_nanos(end))
    }

    pub(super) fn note_lease(&self, status: Option<&GuardStatus>) {
        let end = status.and_then(|status| status.lease_end_boottime_ns).unwrap_or(0);
        self.lease.store(end, Ordering::Relaxed);
    }
}
