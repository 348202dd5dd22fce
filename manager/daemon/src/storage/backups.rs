//! When what a pool knows of itself is copied: soon after volumes or snapshots came or went, and daily. The driver does it, and says
//! that nothing has changed where that is so.

use super::Storage;
use pgstead_types::storage::SnapshotSeen;
use pgstead_types::{Bytes, Finding, SnapshotId, Tick, VolumeId};
use pgstead_volumes::{BackedUp, Inventory};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Each reads all of the pool's metadata, and while it does, what is deleted gives no room back.
const SOON: Duration = Duration::from_secs(300);
const AT_LEAST: Duration = Duration::from_secs(24 * 3600);
/// A pool that is full for a while, or a disk that is, is told of by findings of its own.
const FAILS_LONG: Duration = Duration::from_secs(3600);

/// What a copy would be needed for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Contents {
    total: Bytes,
    volumes: BTreeSet<(VolumeId, Option<Bytes>)>,
    snapshots: BTreeSet<SnapshotId>,
}

impl Contents {
    pub fn new(total: Bytes, inventory: &Inventory, snapshots: &[SnapshotSeen]) -> Self {
        Self {
            total,
            volumes: inventory.volumes.iter().map(|volume| (volume.id, volume.size)).collect(),
            snapshots: snapshots.iter().map(|snapshot| snapshot.id).collect(),
        }
    }

    pub fn has(&self, volume: VolumeId) -> bool {
        self.volumes.iter().any(|(id, _)| *id == volume)
    }
}

/// Of this run of the daemon.
#[derive(Clone, Debug, Default)]
pub struct Backups {
    tried: Option<Tick>,
    /// What there was when the last one was made.
    of: Option<Contents>,
    fails: Option<(Tick, String)>,
}

impl Backups {
    pub fn is_due(&self, contents: &Contents, now: Tick) -> bool {
        let Some(tried) = self.tried else { return true };
        let since = now.since(tried);
        since >= AT_LEAST || (since >= SOON && (self.fails.is_some() || self.of.as_ref() != Some(contents)))
    }

    fn note(&mut self, of: Contents, outcome: Result<(), String>, now: Tick) {
        self.tried = Some(now);
        match outcome {
            Ok(()) => (self.of, self.fails) = (Some(of), None),
            Err(why) => self.fails = Some((self.fails.as_ref().map_or(now, |(since, _)| *since), why)),
        }
    }

    pub fn finding(&self, pool: &str, now: Tick) -> Option<Finding> {
        let (_, why) = self.fails.as_ref().filter(|(since, _)| now.since(*since) >= FAILS_LONG)?;
        let text = format!(
            "what the pool {pool} knows of itself was not backed up for an hour or more: {why}; it is tried again every 5 minutes"
        );
        Some(Finding::warning("pool_not_backed_up", text))
    }
}

impl Storage {
    pub(super) fn back_up_when_due(&self, contents: Contents, task: &mut Option<JoinHandle<()>>) {
        let runs = task.as_ref().is_some_and(|task| !task.is_finished());
        if !runs && self.held().backups.is_due(&contents, Tick::now()) {
            let storage = self.clone();
            *task = Some(tokio::spawn(async move { storage.back_up(contents).await }));
        }
    }

    async fn back_up(&self, of: Contents) {
        let outcome = self.volumes.back_up(&self.backups).await;
        let outcome = outcome.map_err(|error| crate::member::chain(&error));
        match &outcome {
            Ok(BackedUp::NothingToKeep | BackedUp::Unchanged) => {}
            Ok(BackedUp::Written(to)) => {
                tracing::info!(pool = %self.pool, to = %to.display(), "backed up what the pool knows of itself");
            }
            Err(why) => tracing::warn!(pool = %self.pool, %why, "cannot back up what the pool knows of itself"),
        }
        self.held().backups.note(of, outcome.map(drop), Tick::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(snapshots: u128) -> Contents {
        let snapshots = (0..snapshots).map(SnapshotId::from_u128).collect();
        Contents { total: Bytes(1), volumes: BTreeSet::new(), snapshots }
    }

    fn at(seconds: u64) -> Tick {
        Tick::from_millis(seconds * 1000)
    }

    #[test]
    fn one_is_made_at_once_soon_after_a_change_and_daily() {
        let mut backups = Backups::default();
        assert!(backups.is_due(&contents(0), at(0)));
        backups.note(contents(0), Ok(()), at(0));
        assert!(!backups.is_due(&contents(1), at(299)), "not one for each snapshot");
        assert!(backups.is_due(&contents(1), at(300)));
        assert!(!backups.is_due(&contents(0), at(300)), "nothing has changed");
        assert!(backups.is_due(&contents(0), at(24 * 3600)));
    }

    #[test]
    fn a_failure_is_tried_again_and_told_of_when_it_lasts() {
        let mut backups = Backups::default();
        backups.note(contents(0), Err("no program".into()), at(0));
        assert!(!backups.is_due(&contents(0), at(299)) && backups.is_due(&contents(0), at(300)));
        backups.note(contents(0), Err("no room".into()), at(3599));
        assert_eq!(backups.finding("nvme", at(3599)), None);
        let finding = backups.finding("nvme", at(3600)).unwrap();
        assert_eq!(finding.code, "pool_not_backed_up");
        assert!(finding.message.contains("no room"), "{}", finding.message);
        backups.note(contents(0), Ok(()), at(3700));
        assert_eq!(backups.finding("nvme", at(90_000)), None);
    }
}
