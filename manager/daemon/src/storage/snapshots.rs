//! Snapshots of this node's volumes: asked for, by schedule, and for forks; taken by the storage, or as a copy of a running Postgres
//! where the storage takes none.

use super::Storage;
use pgstead_types::record::{ClusterRecord, EpochConfig, Record};
use pgstead_types::schedule::SnapshotSchedule;
use pgstead_types::storage::{PoolState, SnapshotSeen, SnapshotWhy, StorageSeen};
use pgstead_types::{ClusterId, MemberId, NodeId, SnapshotId, VolumeId, WallTime};
use pgstead_volumes::{Capability, NewSnapshot, Snapshot, Snapshotted, Support, ToFill, VolumeError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

/// What a rewind took away can be looked at for so long.
const KEPT_BEFORE_REWIND: Duration = Duration::from_secs(24 * 3600);
const KEPT_OF_A_VOLUME: usize = 2;
const FAILED_COPIES_KEPT: usize = 100;

/// What the controller asks a node for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SnapshotRequest {
    pub id: SnapshotId,
    pub cluster: ClusterId,
    pub member: MemberId,
    /// For so many seconds; for ever if absent. Counted by the clock of the node that has it.
    pub keep_s: Option<u64>,
    /// A cluster is to be made from it.
    #[serde(default)]
    pub fork: bool,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl Storage {
    /// Keeps what a volume holds before that is rewritten in place. Repeated with its id, it is the one that there is.
    pub async fn keep_before_rewind(&self, id: SnapshotId, of: VolumeId) -> Result<(), SnapshotError> {
        // What takes a copy is no better than a copy on the volume itself, which is known to the room that it takes.
        if let Support::Unsupported { why } = self.volumes.support(Capability::Snapshot) {
            return Err(SnapshotError::Refused(why.to_string()));
        }
        let expires = Some(WallTime::now().plus(KEPT_BEFORE_REWIND));
        let new = NewSnapshot { id, of, why: SnapshotWhy::Rewind, expires };
        match self.volumes.snapshot(new).await? {
            Snapshotted::Made(snapshot) | Snapshotted::AlreadyThere(snapshot) => {
                tracing::info!(snapshot = %id, volume = %of, "took a snapshot before a rewind");
                self.change_seen(|seen| {
                    seen.snapshots.retain(|held| held.id != id);
                    seen.snapshots.push(told(snapshot));
                });
                Ok(())
            }
            Snapshotted::Refused(why) => Err(SnapshotError::Refused(why.to_string())),
            Snapshotted::NotThere | Snapshotted::ToFill(_) => {
                Err(SnapshotError::Refused("its storage takes no snapshot of it".into()))
            }
        }
    }

    /// Whether a member is where a rewind was to bring it: what was kept before that may go.
    pub fn note_settled(&self, of: VolumeId, settled: bool) {
        let mut seen = self.held();
        match settled {
            true => _ = seen.settled.insert(of),
            false => _ = seen.settled.remove(&of),
        }
    }

    /// What was kept before rewinds and goes now: of members that are back, when its time is over, when there are newer ones, or as soon
    /// as the pool needs the room; of others where the pool has none left and somebody else has what they had.
    pub(super) fn kept_in_vain(&self, storage: &StorageSeen, now: WallTime) -> Vec<SnapshotId> {
        let settled = self.held().settled.clone();
        let record = self.consensus.record();
        let crowded = !matches!(storage.pool.state, PoolState::Fine | PoolState::Unwell { .. });
        let full = matches!(storage.pool.state, PoolState::Full { .. } | PoolState::Brimming { .. });
        let rewound = || storage.snapshots.iter().filter(|held| held.why == SnapshotWhy::Rewind);
        let goes = |held: &&SnapshotSeen| {
            let newer = rewound().filter(|other| other.volume == held.volume && other.id > held.id).count();
            let over = crowded || newer >= KEPT_OF_A_VOLUME || held.expires.is_some_and(|at| at <= now);
            match settled.contains(&held.volume) {
                true => over,
                false => full && record.clusters.get(&held.cluster).is_some_and(others_have_it),
            }
        };
        rewound().filter(goes).map(|held| held.id).collect()
    }

    /// By the specs of the clusters that are led from here. A leader that is new takes its first at once: there is none of its own yet.
    pub(super) async fn take_what_is_due(&self, all: Vec<Due>, now: WallTime) {
        let mut not_taken = Vec::new();
        for due in all {
            let new = NewSnapshot {
                id: SnapshotId::from_uuid(Uuid::now_v7()),
                of: due.volume,
                why: SnapshotWhy::Scheduled,
                expires: Some(now.plus(due.keep)),
            };
            match self.taken(new, due.member).await {
                Ok(snapshot) => self.change_seen(|seen| seen.snapshots.push(snapshot)),
                Err(why) => not_taken.push((due.cluster, due.member, crate::member::chain(&why))),
            }
        }
        self.held().not_taken = not_taken;
        self.news.notify_one();
    }

    /// Takes a snapshot of a member's volume. Repeated with its id, it says what there is.
    pub async fn snapshot(&self, asked: SnapshotRequest) -> Result<SnapshotSeen, SnapshotError> {
        let record = self.consensus.record();
        let held = record.clusters.get(&asked.cluster).and_then(|cluster| cluster.members.get(&asked.member));
        let member = held.filter(|member| member.node == self.consensus.node());
        let member = member.ok_or_else(|| SnapshotError::Refused("the member is not on this node".into()))?;
        let expires = asked.keep_s.map(|keep| WallTime::now().plus(Duration::from_secs(keep)));
        if asked.fork {
            let checked = self.instances.check_self_contained(asked.member).await;
            checked
                .map_err(|why| SnapshotError::Refused(format!("its data cannot become another cluster's: {why}")))?;
        }
        let why = if asked.fork { SnapshotWhy::Fork } else { SnapshotWhy::Asked };
        let new = NewSnapshot { id: asked.id, of: member.volume, why, expires };
        let snapshot = self.taken(new, asked.member).await?;
        self.change_seen(|seen| {
            seen.snapshots.retain(|held| held.id != snapshot.id);
            seen.snapshots.push(snapshot.clone());
        });
        Ok(snapshot)
    }

    /// One copy at a time.
    pub async fn copy_turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.copies).lock_owned().await
    }

    /// Goes on to its end, also when nobody waits for it any more.
    async fn taken(&self, new: NewSnapshot, member: MemberId) -> Result<SnapshotSeen, SnapshotError> {
        let storage = self.clone();
        let taken = tokio::spawn(async move {
            let (id, turn) = (new.id, storage.copy_turn().await);
            // Asked for twice, it is there for the second one, or has failed for it as well: a copy is not begun anew for whoever has
            // not heard how it ended.
            if let Some(why) = storage.held().failed_copies.get(&id) {
                return Err(SnapshotError::Refused(why.clone()));
            }
            let taken = storage.take(new, member).await;
            drop(turn);
            taken
        });
        taken.await.map_err(|error| SnapshotError::Refused(error.to_string()))?
    }

    async fn take(&self, new: NewSnapshot, member: MemberId) -> Result<SnapshotSeen, SnapshotError> {
        let id = new.id;
        let taken = |snapshot: Snapshot| {
            tracing::info!(snapshot = %snapshot.id, volume = %snapshot.of, why = %snapshot.why, "took a snapshot");
            Ok(told(snapshot))
        };
        match self.volumes.snapshot(new).await? {
            Snapshotted::Made(snapshot) => taken(snapshot),
            // Storage cannot copy what is written to meanwhile; whoever knows Postgres can.
            Snapshotted::ToFill(ToFill { into, .. }) => {
                let free = self.volumes.usage().await?.free;
                let copied = self.instances.copy_running(member, &into, free).await;
                let finished = match copied {
                    Ok(()) => self.volumes.finish_snapshot(id).await.map_err(|error| crate::member::chain(&error)),
                    Err(why) => Err(why),
                };
                match finished {
                    Ok(snapshot) => taken(snapshot),
                    Err(why) => {
                        self.volumes.remove_snapshot(id).await?;
                        let why = format!("its data cannot be copied: {why}");
                        let failed = &mut self.held().failed_copies;
                        failed.insert(id, why.clone());
                        if failed.len() > FAILED_COPIES_KEPT {
                            failed.pop_first();
                        }
                        Err(SnapshotError::Refused(why))
                    }
                }
            }
            Snapshotted::AlreadyThere(snapshot) => Ok(told(snapshot)),
            Snapshotted::NotThere => Err(SnapshotError::Refused("the member has no volume yet".into())),
            Snapshotted::Refused(why) => Err(SnapshotError::Refused(why.to_string())),
        }
    }

    /// A cluster that is being made of the snapshot.
    pub(super) fn fork_of(&self, id: SnapshotId) -> Option<String> {
        self.forks_of(id).next()
    }

    fn forks_of(&self, id: SnapshotId) -> impl Iterator<Item = String> {
        let record = self.consensus.record();
        let of_it = |fork: &&ClusterRecord| fork.forked.as_ref().is_some_and(|forked| forked.snapshot == id);
        let forks = record.clusters.values().filter(|fork| fork.is_being_forked()).filter(of_it);
        forks.map(|fork| fork.spec.name.clone()).collect::<Vec<_>>().into_iter()
    }

    /// Removes a snapshot that was taken for a fork which has been made. One that cannot be goes when its time is over.
    pub async fn discard_used(&self, id: SnapshotId) {
        let removed = async {
            let taken = self.volumes.snapshots().await?;
            if self.forks_of(id).count() > 1 {
                return Ok(false);
            }
            match taken.iter().any(|snapshot| snapshot.id == id && snapshot.why == SnapshotWhy::Fork) {
                true => self.volumes.remove_snapshot(id).await,
                false => Ok(false),
            }
        };
        match removed.await {
            Ok(true) => self.change_seen(|seen| seen.snapshots.retain(|snapshot| snapshot.id != id)),
            Ok(false) => {}
            Err(error) => {
                let why = crate::member::chain(&error);
                tracing::warn!(snapshot = %id, %why, "cannot remove the snapshot that a fork was made from");
            }
        }
    }

    /// Deletes one of this node, because a person says so; whether it was there.
    pub async fn remove_snapshot(&self, id: SnapshotId) -> Result<bool, SnapshotError> {
        if let Some(fork) = self.fork_of(id) {
            let why = format!("cluster {fork} is being made of snapshot {id}; wait until it serves, or delete it");
            return Err(SnapshotError::Refused(why));
        }
        let gone = self.volumes.remove_snapshot(id).await?;
        if gone {
            tracing::info!(snapshot = %id, "a person has removed a snapshot");
        }
        self.change_seen(|seen| seen.snapshots.retain(|snapshot| snapshot.id != id));
        Ok(gone)
    }
}

pub(super) fn expired(snapshots: &[SnapshotSeen], now: WallTime) -> Vec<SnapshotId> {
    // Whoever knows whether its member is well again removes the others.
    let by_time = snapshots.iter().filter(|seen| seen.why != SnapshotWhy::Rewind);
    by_time.filter(|seen| seen.expires.is_some_and(|at| at <= now)).map(|seen| seen.id).collect()
}

/// A snapshot that it is time for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Due {
    cluster: ClusterId,
    member: MemberId,
    pub volume: VolumeId,
    keep: Duration,
}

pub(super) fn due(record: &Record, node: NodeId, taken: &[SnapshotSeen], now: WallTime) -> Vec<Due> {
    let led = record.clusters.values().filter_map(|cluster| {
        let SnapshotSchedule::Every { every, keep } = cluster.spec.snapshots else { return None };
        let leader = cluster.leadership.leader().filter(|_| cluster.is_confirmed())?;
        let member = cluster.members.get(&leader).filter(|member| member.node == node)?;
        Some((Due { cluster: cluster.id, member: leader, volume: member.volume, keep }, every))
    });
    let of_it = |due: &Due| {
        let volume = due.volume;
        let scheduled = move |seen: &&SnapshotSeen| seen.volume == volume && seen.why == SnapshotWhy::Scheduled;
        taken.iter().filter(scheduled).map(|seen| seen.created)
    };
    led.filter(|(due, every)| is_time(of_it(due), *every, now)).map(|(due, _)| due).collect()
}

/// A leader that counts, and that acknowledges with others.
fn others_have_it(cluster: &ClusterRecord) -> bool {
    let alone = |config: &EpochConfig| config.acknowledges_alone() && !config.asynchronous;
    cluster.is_confirmed() && cluster.config().is_some_and(|config| !alone(config))
}

fn is_time(taken: impl Iterator<Item = WallTime>, every: Duration, now: WallTime) -> bool {
    // One from the future is of a clock that was put back since. It counts for nothing, and goes in its own time.
    taken.filter(|at| *at <= now).max().is_none_or(|last| last.plus(every) <= now)
}

pub(super) fn told(snapshot: Snapshot) -> SnapshotSeen {
    let Snapshot { id, of, tags, why, created, expires, size } = snapshot;
    SnapshotSeen { id, volume: of, cluster: tags.cluster, member: tags.member, why, created, expires, size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_due_when_the_last_is_old_enough_whatever_the_clock_has_done() {
        let hour = Duration::from_secs(3600);
        let at = |hours: i64| WallTime(hours * 3_600_000);
        let due = |taken: &[i64], now: i64| is_time(taken.iter().map(|hours| at(*hours)), hour * 6, at(now));
        assert!(due(&[], 100));
        assert!(due(&[80, 94], 100));
        assert!(!due(&[80, 95], 100));
        assert!(due(&[120], 100), "taken before the clock was put back");
        assert!(!due(&[120, 99], 100));
    }
}
