//! A pool of this node, looked at every now and then: how full it is, and what lies there that no member has. A volume is made
//! and removed by its member's own task; here is only what such tasks cannot know of.

mod backups;
mod findings;
mod keys;
mod late;
mod orphans;
mod pools;
mod snapshots;

use backups::{Backups, Contents};
use findings::findings;
use keys::Keys;
pub use late::{LateDriver, open};
pub use orphans::RemoveError;
use orphans::orphans;
pub use pools::Pools;
use snapshots::SnapshotError;
pub use snapshots::SnapshotRequest;
use snapshots::{due, expired, told};

use crate::instances::Instances;
use pgstead_consensus::{Consensus, TokioRuntime};
use pgstead_types::record::Record;
use pgstead_types::report::{ClientAccess, PostgresSeen};
use pgstead_types::storage::{ORPHANS_MAX, Orphan, PoolSeen, PoolState, SNAPSHOTS_TOLD_MAX, SnapshotSeen, StorageSeen};
use pgstead_types::{Bytes, ClusterId, DeploymentId, Finding, MemberId, SnapshotId, Tick, Trouble, VolumeId, WallTime};
use pgstead_volumes::{VolumeDriver, VolumeError};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::task::JoinHandle;

/// A look costs one or two calls of LVM's programs, and a pool fills within minutes at the fastest.
const LOOK: Duration = Duration::from_secs(10);
/// A pool that was full has room again when it has had some for so long.
const ROOM_AGAIN: Duration = Duration::from_secs(10);
/// A snapshot that is due and could not be taken is tried again after that: where it is a copy, each attempt may cost one.
const TAKE_AGAIN: Duration = Duration::from_secs(60);
/// What was found for the first time may be about to have a member, or about to go; and what fills may be full soon.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Storage {
    pub volumes: Arc<dyn VolumeDriver>,
    pub consensus: Consensus<TokioRuntime>,
    pub instances: Instances,
    pub deployment: DeploymentId,
    pub pool: String,
    pub class: String,
    pub seen: Arc<Mutex<Seen>>,
    pub look: Arc<Notify>,
    /// Something was found that was not before. All pools of a node have one.
    pub news: Arc<Notify>,
    /// Copies of whole volumes: two at a time would each take the room that the other one has counted on.
    pub copies: Arc<AsyncMutex<()>>,
    /// Where copies are kept of what the pool knows of itself.
    pub backups: PathBuf,
}

/// What the last look found.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Counts the looks that found something out.
    look: u64,
    storage: Option<StorageSeen>,
    /// Why the last look came to nothing.
    failed: Option<String>,
    /// Of clusters whose snapshots are due and could not be taken, and why.
    not_taken: Vec<(ClusterId, MemberId, String)>,
    /// How full the pool is for those who live there: rises at once, and falls after a while.
    fullness: Fullness,
    /// Of members that stream, or lead.
    settled: BTreeSet<VolumeId>,
    /// Why the last copies did not come to be.
    failed_copies: BTreeMap<SnapshotId, String>,
    backups: Backups,
    keys: Keys,
}

/// Of one pool, over several looks. What fills it and goes would else limit clients and let them in by turns.
#[derive(Clone, Copy, Debug, Default)]
struct Fullness {
    /// `None` before the first look; then whether there is little room, `Some(false)`, or hardly any, `Some(true)`.
    level: Option<Option<bool>>,
    lower_since: Option<Tick>,
}

impl Fullness {
    fn note(&mut self, state: &PoolState, now: Tick) {
        let seen = match state {
            PoolState::Fine | PoolState::NearlyFull { .. } => None,
            PoolState::Full { .. } => Some(false),
            PoolState::Brimming { .. } => Some(true),
            // A fault makes no room.
            PoolState::Unwell { .. } => return,
        };
        let Some(level) = self.level.filter(|level| seen < *level) else {
            *self = Self { level: Some(seen), lower_since: None };
            return;
        };
        let since = *self.lower_since.get_or_insert(now);
        let level = if now.since(since) >= ROOM_AGAIN { seen } else { level };
        *self = Self { level: Some(level), lower_since: self.lower_since.filter(|_| level != seen) };
    }
}

impl Storage {
    /// Room in the pool, by the last look.
    pub fn free(&self) -> Option<Bytes> {
        self.held().storage.as_ref().map(|seen| seen.pool.free)
    }

    /// What the looks mean for a member that lives there. Before the first one its leader stays as limited as it is.
    pub fn trouble(&self, of: &PostgresSeen) -> Option<Trouble> {
        let brimming = match (self.held().fullness.level, of) {
            (Some(level), _) => level?,
            (None, of) => return trouble_before_a_look(of),
        };
        Some(Trouble::PoolFull { brimming })
    }

    /// By the last look; `None` before the first.
    fn seen(&self) -> Option<StorageSeen> {
        let seen = self.held();
        let failed = |why: &String| {
            let state = PoolState::Unwell { why: why.clone() };
            let (name, class, driver) = (self.pool.clone(), self.class.clone(), self.volumes.name().to_string());
            let (total, used, free) = (Bytes(0), Bytes(0), Bytes(0));
            let pool =
                PoolSeen { name, driver, class, total, used, free, metadata_used: None, ballast: Bytes(0), state };
            StorageSeen { pool, others: Vec::new(), orphans: Vec::new(), snapshots: Vec::new() }
        };
        seen.storage.clone().or_else(|| seen.failed.as_ref().map(failed))
    }

    pub fn findings(&self) -> Vec<Finding> {
        let seen = self.held().clone();
        let found = seen.storage.iter().flat_map(findings);
        let not_backed_up = seen.backups.finding(&self.pool, Tick::now());
        let keys = seen.keys.findings(&self.pool);
        let failed = seen.failed.map(|why| {
            Finding::error(
                "pool_unreadable",
                format!("the pool {} cannot be looked at, so nobody knows how full it is: {why}", self.pool),
            )
        });
        let not_taken = seen.not_taken.into_iter().map(|(cluster, member, why)| {
            let text = format!(
                "a snapshot is due by the cluster's spec and was not taken: {why}; it is tried again every minute"
            );
            Finding::warning("snapshot_not_taken", text).on_cluster(cluster).on_member(member)
        });
        found
            .chain(failed)
            .chain(not_backed_up)
            .chain(keys)
            .chain(not_taken)
            .map(|finding| finding.on_node(self.consensus.node()))
            .collect()
    }

    /// Looks until `stop`.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut candidates = BTreeSet::new();
        // A deletion may take hours, and what is known of the pool must not grow old meanwhile.
        let mut clearing: Option<JoinHandle<()>> = None;
        // So may a copy, where a snapshot is one.
        let mut taking: Option<JoinHandle<()>> = None;
        let mut take_from = Tick::now();
        // And the reading of a large pool's metadata.
        let mut backing_up: Option<JoinHandle<()>> = None;
        let mut tending_keys: Option<JoinHandle<()>> = None;
        loop {
            // What it takes meanwhile, the look may not see.
            let takes = taking.as_ref().is_some_and(|taking| !taking.is_finished());
            let found = match self.look_once(&mut candidates).await {
                Ok((storage, contents)) => {
                    self.tend_keys_when_due(&mut tending_keys);
                    let now = WallTime::now();
                    let (orphans, mut expired) = (storage.orphans.clone(), expired(&storage.snapshots, now));
                    expired.extend(self.kept_in_vain(&storage, now));
                    let mut due = due(&self.consensus.record(), self.consensus.node(), &storage.snapshots, now);
                    // The others are in other pools of this node.
                    due.retain(|due| contents.has(due.volume));
                    self.back_up_when_due(contents, &mut backing_up);
                    {
                        let mut seen = self.held();
                        seen.look += 1;
                        seen.fullness.note(&storage.pool.state, Tick::now());
                        (seen.storage, seen.failed) = (Some(storage), None);
                        if due.is_empty() {
                            seen.not_taken.clear();
                        }
                    }
                    if !due.is_empty() && !takes && Tick::now() >= take_from {
                        take_from = Tick::now() + TAKE_AGAIN;
                        let storage = self.clone();
                        taking = Some(tokio::spawn(async move { storage.take_what_is_due(due, now).await }));
                    }
                    if !(orphans.is_empty() && expired.is_empty())
                        && clearing.as_ref().is_none_or(JoinHandle::is_finished)
                    {
                        let storage = self.clone();
                        clearing = Some(tokio::spawn(async move { storage.clear_all(orphans, expired).await }));
                    }
                    true
                }
                Err(error) => {
                    let why = crate::member::chain(&error);
                    tracing::warn!(pool = %self.pool, %why, "cannot look at the pool");
                    let mut seen = self.held();
                    if seen.storage.is_none() && seen.failed.is_none() {
                        seen.look += 1;
                    }
                    seen.failed = Some(why);
                    false
                }
            };
            let told = self.held().storage.as_ref().map_or(0, |seen| seen.orphans.len());
            let filling = {
                let seen = self.held();
                let fine = |storage: &StorageSeen| storage.pool.state == PoolState::Fine;
                !seen.storage.as_ref().is_none_or(fine) || seen.fullness.level.flatten().is_some()
            };
            let wait = if found && (candidates.len() > told || filling) { LOOK_AGAIN } else { LOOK };
            tokio::select! {
                () = crate::server::stopped(&mut stop) => {
                    for task in clearing.into_iter().chain(taking).chain(backing_up).chain(tending_keys) {
                        task.abort();
                    }
                    return;
                }
                () = self.look.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Tells of orphans that `candidates` has from the look before, and puts those of this one there.
    async fn look_once(
        &self,
        candidates: &mut BTreeSet<(VolumeId, String)>,
    ) -> Result<(StorageSeen, Contents), VolumeError> {
        match self.volumes.relieve().await {
            Ok(None) => {}
            Ok(Some(now)) => tracing::info!(pool = %self.pool, %now, "the pool has more room"),
            Err(error) => {
                let why = crate::member::chain(&error);
                tracing::warn!(pool = %self.pool, %why, "the pool is getting full, and cannot be given more room");
            }
        }
        let usage = self.volumes.usage().await?;
        let inventory = self.volumes.list().await?;
        // The record after the inventory: whatever was made by its order is in it.
        let mut orphans = match self.known() {
            Some(record) => {
                let mut orphans = orphans(&record, self.consensus.node(), &inventory);
                let found: BTreeSet<_> = orphans.iter().map(|orphan| (orphan.id, orphan.path.clone())).collect();
                orphans.retain(|orphan| candidates.contains(&(orphan.id, orphan.path.clone())));
                *candidates = found;
                orphans
            }
            // Nobody can say more than was known.
            None => self.held().storage.as_ref().map(|seen| seen.orphans.clone()).unwrap_or_default(),
        };
        orphans.truncate(ORPHANS_MAX);
        let mut snapshots: Vec<SnapshotSeen> = self.volumes.snapshots().await?.into_iter().map(told).collect();
        let contents = Contents::new(usage.total, &inventory, &snapshots);
        snapshots.drain(..snapshots.len().saturating_sub(SNAPSHOTS_TOLD_MAX));
        let pool = PoolSeen {
            name: self.pool.clone(),
            driver: self.volumes.name().to_string(),
            class: self.class.clone(),
            total: usage.total,
            used: usage.used,
            free: usage.free,
            metadata_used: usage.metadata_used.and_then(|used| u16::try_from(used.hundredths()).ok()),
            ballast: usage.ballast,
            state: usage.state,
        };
        Ok((StorageSeen { pool, others: Vec::new(), orphans, snapshots }, contents))
    }

    /// The record, while it can be taken for the present one.
    fn known(&self) -> Option<Arc<Record>> {
        let record = self.consensus.record();
        (record.deployment.is_some() && self.consensus.leadership().leader.is_some()).then_some(record)
    }

    async fn clear_all(&self, orphans: Vec<Orphan>, expired: Vec<SnapshotId>) {
        let mut cleared = false;
        for id in expired {
            if self.fork_of(id).is_some() {
                continue;
            }
            match self.volumes.remove_snapshot(id).await {
                Ok(_) => {
                    tracing::info!(snapshot = %id, "removed a snapshot that was not to be kept any longer");
                    cleared = true;
                }
                Err(error) => {
                    let why = crate::member::chain(&error);
                    tracing::warn!(snapshot = %id, %why, "cannot remove a snapshot that is not to be kept any longer");
                }
            }
        }
        for orphan in orphans {
            match self.clear(&orphan).await {
                Ok(true) => {
                    tracing::info!(volume = %orphan.id, "removed what was left of a volume that no member has");
                    cleared = true;
                }
                Ok(false) => {}
                Err(error) => {
                    let why = crate::member::chain(&error);
                    tracing::warn!(volume = %orphan.id, %why, "cannot remove what is left of a volume that no member has");
                }
            }
        }
        if cleared {
            self.look.notify_one();
        }
    }

    /// Whoever has changed something sees it at once, and the next look sees it again.
    fn change_seen(&self, change: impl FnOnce(&mut StorageSeen)) {
        let mut seen = self.held();
        if let Some(storage) = &mut seen.storage {
            change(storage);
            seen.look += 1;
        }
        drop(seen);
        self.news.notify_one();
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("nothing panics while it holds what was seen")
    }
}

/// A leader stays as limited as it is.
fn trouble_before_a_look(of: &PostgresSeen) -> Option<Trouble> {
    let PostgresSeen::Primary(primary) = of else { return None };
    primary.read_only.then_some(Trouble::PoolFull { brimming: primary.access == ClientAccess::Holding })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_types::NodeId;
    use pgstead_volumes::{Inventory, Owner, Stray, StrayKind, Volume, VolumeTags};

    fn inventory() -> Inventory {
        let tags = VolumeTags {
            deployment: DeploymentId::from_u128(1),
            cluster: ClusterId::from_u128(2),
            member: MemberId::from_u128(3),
        };
        let volume = Volume {
            id: VolumeId::from_u128(30),
            tags,
            size: None,
            owner: Owner { uid: 1, gid: 1 },
            created: WallTime(0),
            path: "/p/30/data".into(),
        };
        let stray = |id, kind| Stray { id: VolumeId::from_u128(id), path: format!("/p/{id}").into(), kind };
        let strays = vec![
            stray(20, StrayKind::Unfinished),
            stray(10, StrayKind::SetAside { tags: Some(tags) }),
            stray(11, StrayKind::Unreadable { why: "no tags".into() }),
        ];
        Inventory { volumes: vec![volume], strays }
    }

    #[test]
    fn a_full_pool_is_full_at_once_and_has_room_after_a_while() {
        let full = || PoolState::Full { why: "95 %".into() };
        let at = |ms| Tick::from_millis(ms);
        let mut fullness = Fullness::default();
        assert_eq!(fullness.level, None);
        fullness.note(&full(), at(0));
        assert_eq!(fullness.level, Some(Some(false)));
        fullness.note(&PoolState::Brimming { why: "98 %".into() }, at(1));
        assert_eq!(fullness.level, Some(Some(true)));
        fullness.note(&PoolState::Unwell { why: "needs a check".into() }, at(20_000));
        fullness.note(&PoolState::Fine, at(20_001));
        fullness.note(&full(), at(29_000));
        assert_eq!(fullness.level, Some(Some(true)));
        fullness.note(&PoolState::Fine, at(30_001));
        assert_eq!(fullness.level, Some(None));
        fullness.note(&full(), at(30_002));
        assert_eq!(fullness.level, Some(Some(false)), "at once");
    }

    #[test]
    fn all_that_the_record_does_not_have_is_told_of_but_what_is_being_made() {
        let all = orphans(&Record::default(), NodeId::from_u128(1), &inventory());
        let ids: Vec<VolumeId> = all.iter().map(|orphan| orphan.id).collect();
        assert_eq!(ids, [10, 11, 30].map(VolumeId::from_u128));
        let pool = PoolSeen {
            name: "p".into(),
            driver: "lvm".into(),
            class: "default".into(),
            total: Bytes(100),
            used: Bytes(96),
            free: Bytes(4),
            metadata_used: Some(1200),
            ballast: Bytes(0),
            state: PoolState::Full { why: "its data is 96.00 % full".into() },
        };
        let codes: Vec<String> =
            findings(&StorageSeen { pool, others: Vec::new(), orphans: all, snapshots: Vec::new() })
                .into_iter()
                .map(|finding| finding.code)
                .collect();
        assert_eq!(codes, ["pool_full", "unreadable_volume", "orphaned_volume"]);
    }
}
