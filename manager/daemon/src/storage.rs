//! This node's pool, looked at every now and then: how full it is, and what lies there that no member has. A volume is made
//! and removed by its member's own task; here is only what such tasks cannot know of.

use crate::instances::Instances;
use pgstead_consensus::{Consensus, TokioRuntime};
use pgstead_types::record::{ClusterRecord, Record};
use pgstead_types::report::{ClientAccess, PostgresSeen};
use pgstead_types::schedule::SnapshotSchedule;
use pgstead_types::storage::{
    ORPHANS_MAX, Orphan, OrphanState, PoolSeen, PoolState, SNAPSHOTS_TOLD_MAX, SnapshotSeen, SnapshotWhy, StorageSeen,
};
use pgstead_types::{
    Bytes, ClusterId, DeploymentId, Finding, MemberId, NodeId, SnapshotId, Tick, Trouble, VolumeId, WallTime,
};
use pgstead_volumes::{
    Inventory, NewSnapshot, Removal, Removed, Snapshot, Snapshotted, StrayKind, ToFill, VolumeDriver, VolumeError,
    VolumeTags,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Mutex as Mutexed, Notify, OwnedMutexGuard, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// A look costs one or two calls of LVM's programs, and a pool fills within minutes at the fastest.
const LOOK: Duration = Duration::from_secs(10);
/// A pool that was full has room again when it has had some for so long.
const ROOM_AGAIN: Duration = Duration::from_secs(10);
const FAILED_COPIES_KEPT: usize = 100;
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
    pub seen: Arc<Mutex<Seen>>,
    pub look: Arc<Notify>,
    /// Something was found that was not before.
    pub news: Arc<Notify>,
    /// Copies of whole volumes: two at a time would each take the room that the other one has counted on.
    pub copies: Arc<Mutexed<()>>,
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
    /// Why the last copies did not come to be.
    failed_copies: BTreeMap<SnapshotId, String>,
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

/// Why a volume is not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    #[error("there is no volume {0} on this node that no member has")]
    NoOrphan(VolumeId),
    #[error(
        "volume {id} cannot be read ({why}), so nobody can say whose it is; look at it on the host, and remove it there"
    )]
    Unreadable { id: VolumeId, why: String },
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

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
    /// Room in the pool, by the last look.
    pub fn free(&self) -> Option<Bytes> {
        self.held().storage.as_ref().map(|seen| seen.pool.free)
    }

    /// What the looks mean for a member that lives there. Before the first one its leader stays as limited as it is.
    pub fn trouble(&self, of: &PostgresSeen) -> Option<Trouble> {
        let brimming = match (self.held().fullness.level, of) {
            (Some(level), _) => level?,
            (None, PostgresSeen::Primary(primary)) if primary.read_only => primary.access == ClientAccess::Holding,
            (None, _) => return None,
        };
        Some(Trouble::PoolFull { brimming })
    }

    /// The number of the last look, and what it found if it is a later one than that.
    pub fn seen_since(&self, look: u64) -> (u64, Option<StorageSeen>) {
        let seen = self.held();
        (seen.look, seen.storage.clone().filter(|_| seen.look > look))
    }

    pub fn findings(&self) -> Vec<Finding> {
        let seen = self.held().clone();
        let found = seen.storage.iter().flat_map(findings);
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
        found.chain(failed).chain(not_taken).map(|finding| finding.on_node(self.consensus.node())).collect()
    }

    /// Looks until `stop`.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut candidates = BTreeSet::new();
        // A deletion may take hours, and what is known of the pool must not grow old meanwhile.
        let mut clearing: Option<JoinHandle<()>> = None;
        // So may a copy, where a snapshot is one.
        let mut taking: Option<JoinHandle<()>> = None;
        let mut take_from = Tick::now();
        loop {
            // What it takes meanwhile, the look may not see.
            let takes = taking.as_ref().is_some_and(|taking| !taking.is_finished());
            let found = match self.look_once(&mut candidates).await {
                Ok(storage) => {
                    let now = WallTime::now();
                    let (orphans, expired) = (storage.orphans.clone(), expired(&storage.snapshots, now));
                    let due = due(&self.consensus.record(), self.consensus.node(), &storage.snapshots, now);
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
                    self.held().failed = Some(why);
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
                    for task in clearing.into_iter().chain(taking) {
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
    async fn look_once(&self, candidates: &mut BTreeSet<(VolumeId, String)>) -> Result<StorageSeen, VolumeError> {
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
        snapshots.drain(..snapshots.len().saturating_sub(SNAPSHOTS_TOLD_MAX));
        let pool = PoolSeen {
            name: self.pool.clone(),
            driver: self.volumes.name().to_string(),
            total: usage.total,
            used: usage.used,
            free: usage.free,
            metadata_used: usage.metadata_used.and_then(|used| u16::try_from(used.hundredths()).ok()),
            state: usage.state,
        };
        Ok(StorageSeen { pool, orphans, snapshots })
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
                    tracing::info!(snapshot = %id, "removed a snapshot whose time is over");
                    cleared = true;
                }
                Err(error) => {
                    let why = crate::member::chain(&error);
                    tracing::warn!(snapshot = %id, %why, "cannot remove a snapshot whose time is over");
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

    /// By the specs of the clusters that are led from here. A leader that is new takes its first at once: there is none of its own yet.
    async fn take_what_is_due(&self, all: Vec<Due>, now: WallTime) {
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
    fn fork_of(&self, id: SnapshotId) -> Option<String> {
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

    /// Removes what holds nothing, or what was being removed already. Whether it did.
    async fn clear(&self, orphan: &Orphan) -> Result<bool, VolumeError> {
        // Looked at again: what came before this one may have taken hours.
        let inventory = self.volumes.list().await?;
        let Some(record) = self.known() else { return Ok(false) };
        if !orphans(&record, self.consensus.node(), &inventory).contains(orphan) {
            return Ok(false);
        }
        let tags = match &orphan.state {
            OrphanState::Whole { deployment, cluster, member, .. } => {
                let in_use = *deployment != self.deployment || self.instances.has(*member);
                // Made by the order of an old record, a moment before the new one came: nothing was ever written to it.
                if in_use || !is_empty(Path::new(&orphan.path)) {
                    return Ok(false);
                }
                // It was written to, then.
                if self.volumes.snapshots().await?.iter().any(|snapshot| snapshot.of == orphan.id) {
                    return Ok(false);
                }
                VolumeTags { deployment: *deployment, cluster: *cluster, member: *member }
            }
            OrphanState::SetAside { .. } => {
                // A removal takes whatever has the id: somebody may have put the volume back.
                if inventory.volumes.iter().any(|volume| volume.id == orphan.id) {
                    return Ok(false);
                }
                match set_aside_tags(&inventory, orphan) {
                    Some(Some(tags)) if tags.deployment == self.deployment => tags,
                    // They go last: there is no data any more.
                    Some(None) => VolumeTags {
                        deployment: self.deployment,
                        cluster: ClusterId::default(),
                        member: MemberId::default(),
                    },
                    _ => return Ok(false),
                }
            }
            OrphanState::Unreadable { .. } => return Ok(false),
        };
        Ok(matches!(self.volumes.remove(orphan.id, &tags, Removal::Hard).await?, Removed::Deleted | Removed::NotThere))
    }

    /// Removes a volume that no member has, because a person says so: out of the inventory at once, its data by and by.
    pub async fn remove(&self, id: VolumeId) -> Result<(), RemoveError> {
        let inventory = self.volumes.list().await?;
        let all = orphans(&self.consensus.record(), self.consensus.node(), &inventory);
        let orphan = all.into_iter().find(|orphan| orphan.id == id).ok_or(RemoveError::NoOrphan(id))?;
        let tags = match orphan.state {
            OrphanState::Whole { deployment, cluster, member, .. } => VolumeTags { deployment, cluster, member },
            OrphanState::SetAside { .. } => {
                let ours = set_aside_tags(&inventory, &orphan)
                    .is_some_and(|tags| tags.is_none_or(|tags| tags.deployment == self.deployment));
                self.look.notify_one();
                return match ours {
                    true => Ok(()),
                    false => Err(RemoveError::Refused(format!(
                        "volume {id} was set aside by another deployment; look at {} on the host, and remove it there",
                        orphan.path
                    ))),
                };
            }
            OrphanState::Unreadable { why } => return Err(RemoveError::Unreadable { id, why }),
        };
        if self.instances.has(tags.member) {
            return Err(RemoveError::Refused(format!(
                "volume {id} is still in use on this node; try again in a moment"
            )));
        }
        match self.volumes.remove(id, &tags, Removal::Soft).await? {
            Removed::Refused(refusal) => Err(RemoveError::Refused(refusal.to_string())),
            Removed::NotThere => Err(RemoveError::NoOrphan(id)),
            Removed::SetAside | Removed::Deleted => {
                tracing::info!(volume = %id, %tags, "a person has removed a volume that no member has");
                self.change_seen(|seen| seen.orphans.retain(|orphan| orphan.id != id));
                self.look.notify_one();
                Ok(())
            }
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

fn expired(snapshots: &[SnapshotSeen], now: WallTime) -> Vec<SnapshotId> {
    snapshots.iter().filter(|seen| seen.expires.is_some_and(|at| at <= now)).map(|seen| seen.id).collect()
}

/// A snapshot that it is time for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Due {
    cluster: ClusterId,
    member: MemberId,
    volume: VolumeId,
    keep: Duration,
}

fn due(record: &Record, node: NodeId, taken: &[SnapshotSeen], now: WallTime) -> Vec<Due> {
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

fn is_time(taken: impl Iterator<Item = WallTime>, every: Duration, now: WallTime) -> bool {
    // One from the future is of a clock that was put back since. It counts for nothing, and goes in its own time.
    taken.filter(|at| *at <= now).max().is_none_or(|last| last.plus(every) <= now)
}

fn told(snapshot: Snapshot) -> SnapshotSeen {
    let Snapshot { id, of, tags, why, created, expires, size } = snapshot;
    SnapshotSeen { id, volume: of, cluster: tags.cluster, member: tags.member, why, created, expires, size }
}

/// Those of what is set aside there: `None` where nothing is, and none inside where they are gone.
fn set_aside_tags(inventory: &Inventory, orphan: &Orphan) -> Option<Option<VolumeTags>> {
    let stray = inventory.strays.iter().find(|stray| stray.path.to_str() == Some(&orphan.path))?;
    match &stray.kind {
        StrayKind::SetAside { tags } => Some(*tags),
        StrayKind::Unfinished | StrayKind::Unreadable { .. } => None,
    }
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// What no member of the record has on this node.
fn orphans(record: &Record, node: NodeId, inventory: &Inventory) -> Vec<Orphan> {
    let held: BTreeSet<VolumeId> = record.held_on(node).map(|(_, member)| member.volume).collect();
    let whole = inventory.volumes.iter().map(|volume| {
        let VolumeTags { deployment, cluster, member } = volume.tags;
        let state = OrphanState::Whole { deployment, cluster, member, created: volume.created, size: volume.size };
        Orphan { id: volume.id, state, path: volume.path.display().to_string() }
    });
    let strays = inventory.strays.iter().filter_map(|stray| {
        let state = match &stray.kind {
            // Being made, or cleared when the pool is opened next: it never held data.
            StrayKind::Unfinished => return None,
            StrayKind::SetAside { tags } => OrphanState::SetAside { member: tags.map(|tags| tags.member) },
            StrayKind::Unreadable { why } => OrphanState::Unreadable { why: why.clone() },
        };
        Some(Orphan { id: stray.id, state, path: stray.path.display().to_string() })
    });
    let mut all: Vec<Orphan> = whole.chain(strays).filter(|orphan| !held.contains(&orphan.id)).collect();
    all.sort_by(|a, b| (a.id, &a.path).cmp(&(b.id, &b.path)));
    all
}

fn findings(seen: &StorageSeen) -> Vec<Finding> {
    let PoolSeen { name, state, .. } = &seen.pool;
    let pool = match state {
        PoolState::Fine => None,
        PoolState::NearlyFull { why } => Some(Finding::warning(
            "pool_nearly_full",
            format!("the pool {name} takes no new volume: {why}; add disks to it, or remove what is not needed"),
        )),
        PoolState::Full { why } => Some(Finding::error(
            "pool_full",
            format!(
                "the pool {name} has little room left: {why}; clusters that are led from here have moved, or take no writes until there \
                 is room: remove snapshots or forks, or add a disk"
            ),
        )),
        PoolState::Brimming { why } => Some(Finding::error(
            "pool_full",
            format!(
                "the pool {name} is about to fail the writes of everything on it: {why}; clusters that are led from here take no clients \
                 until there is room: remove snapshots or forks, or add a disk, now"
            ),
        )),
        PoolState::Unwell { why } => {
            Some(Finding::error("pool_unwell", format!("the pool {name} is not well: {why}; look at its disks")))
        }
    };
    let orphans = seen.orphans.iter().filter_map(|orphan| match &orphan.state {
        OrphanState::Whole { cluster, member, .. } => Some(Finding::warning(
            "orphaned_volume",
            format!(
                "volume {} at {} was of member {member} of cluster {cluster}, whom the record does not have here; it is kept \
                 until a person removes it: pgstead volume remove {}",
                orphan.id, orphan.path, orphan.id
            ),
        )),
        OrphanState::Unreadable { why } => Some(Finding::warning(
            "unreadable_volume",
            format!("volume {} at {} cannot be read as one ({why}) and no member has it; look at it there", orphan.id, orphan.path),
        )),
        OrphanState::SetAside { .. } => None,
    });
    pool.into_iter().chain(orphans).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_volumes::{Owner, Stray, Volume};

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

    #[test]
    fn all_that_the_record_does_not_have_is_told_of_but_what_is_being_made() {
        let all = orphans(&Record::default(), NodeId::from_u128(1), &inventory());
        let ids: Vec<VolumeId> = all.iter().map(|orphan| orphan.id).collect();
        assert_eq!(ids, [10, 11, 30].map(VolumeId::from_u128));
        let pool = PoolSeen {
            name: "p".into(),
            driver: "lvm".into(),
            total: Bytes(100),
            used: Bytes(96),
            free: Bytes(4),
            metadata_used: Some(1200),
            state: PoolState::Full { why: "its data is 96.00 % full".into() },
        };
        let codes: Vec<String> = findings(&StorageSeen { pool, orphans: all, snapshots: Vec::new() })
            .into_iter()
            .map(|finding| finding.code)
            .collect();
        assert_eq!(codes, ["pool_full", "unreadable_volume", "orphaned_volume"]);
    }
}
