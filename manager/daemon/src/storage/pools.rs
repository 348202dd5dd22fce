//! All pools of this node: which of them a volume is in, and which one a new volume goes to. A volume is in one of them for as long as
//! it is there; what cannot be read may have it.

use super::{RemoveError, SnapshotError, SnapshotRequest, Storage};
use pgstead_types::report::PostgresSeen;
use pgstead_types::storage::{SnapshotSeen, StorageSeen};
use pgstead_types::{Bytes, Finding, SnapshotId, Trouble, VolumeId};
use pgstead_volumes::{
    Capability, Left, Refusal, Removal, Removed, StrayKind, Support, Volume, VolumeError, VolumeTags, left_of,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Pools {
    /// At least one, in the order in which they are configured.
    pools: Arc<[Storage]>,
    /// Where volumes were found, as places among the pools.
    homes: Arc<Mutex<BTreeMap<VolumeId, usize>>>,
}

impl Pools {
    pub fn new(pools: Vec<Storage>) -> Self {
        assert!(!pools.is_empty(), "a node's configuration has at least one pool");
        Self { pools: pools.into(), homes: Arc::default() }
    }

    fn first(&self) -> &Storage {
        &self.pools[0]
    }
    fn homes(&self) -> MutexGuard<'_, BTreeMap<VolumeId, usize>> {
        self.homes.lock().expect("nothing panics while it holds where volumes are")
    }

    /// Something was found in one of them that was not before.
    pub fn news(&self) -> &Notify {
        &self.first().news
    }

    /// The pool that a volume was last seen in.
    pub fn home(&self, id: VolumeId) -> Option<&Storage> {
        match &*self.pools {
            [only] => Some(only),
            all => all.get(*self.homes().get(&id)?),
        }
    }

    /// The pool that a volume is in, asking all of them where that is not known. With several, what is in none of those that can be
    /// read may be in the others: that is an error.
    async fn find(&self, id: VolumeId) -> Result<Option<&Storage>, VolumeError> {
        if let Some(home) = self.home(id) {
            return Ok(Some(home));
        }
        let (mut found, mut failed) = (BTreeMap::<VolumeId, BTreeSet<usize>>::new(), None);
        for (place, pool) in self.pools.iter().enumerate() {
            match pool.volumes.list().await {
                Ok(held) => {
                    let unreadable = |kind: &StrayKind| matches!(kind, StrayKind::Unreadable { .. });
                    let strays = held.strays.iter().filter(|stray| unreadable(&stray.kind)).map(|stray| stray.id);
                    for id in held.volumes.iter().map(|volume| volume.id).chain(strays) {
                        found.entry(id).or_default().insert(place);
                    }
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(twice) = found.get(&id).filter(|places| places.len() > 1) {
            let names: Vec<&str> =
                twice.iter().filter_map(|place| Some(self.pools.get(*place)?.pool.as_str())).collect();
            let why = format!(
                "it is in the pools {}, and only one of them can have what its member has written; remove the other copy on the host",
                names.join(" and ")
            );
            return Err(VolumeError::Unusable { id, why });
        }
        let mut homes = self.homes();
        let once = found.iter().filter(|(_, places)| places.len() == 1);
        homes.extend(once.filter_map(|(id, places)| Some((*id, *places.first()?))));
        let home = homes.get(&id).copied();
        drop(homes);
        match (home.and_then(|home| self.pools.get(home)), failed) {
            (Some(home), _) => Ok(Some(home)),
            (None, Some(error)) => Err(error),
            (None, None) => Ok(None),
        }
    }

    /// Makes a volume reachable, in whichever pool it is; `None` when it is in none.
    pub async fn open(&self, id: VolumeId) -> Result<Option<Volume>, VolumeError> {
        let Some(home) = self.find(id).await? else { return Ok(None) };
        let opened = home.volumes.open(id).await?;
        if opened.is_some() || self.pools.len() == 1 {
            return Ok(opened);
        }
        // It was there, and may be in another one now.
        self.homes().remove(&id);
        match self.find(id).await? {
            Some(home) => home.volumes.open(id).await,
            None => Ok(None),
        }
    }

    /// Where a volume is made, or was made already.
    pub async fn for_new(&self, id: VolumeId, class: Option<&str>) -> Result<Result<&Storage, Refusal>, VolumeError> {
        if self.pools.len() > 1
            && let Some(home) = self.find(id).await?
        {
            return Ok(Ok(home));
        }
        let class = class.unwrap_or(&self.first().class);
        let mut of_class = self.pools.iter().filter(|pool| pool.class == class).peekable();
        if of_class.peek().is_none() {
            let has: BTreeSet<&str> = self.pools.iter().map(|pool| pool.class.as_str()).collect();
            let has = has.into_iter().collect::<Vec<_>>().join(", ");
            return Ok(Err(Refusal::NoPoolOfClass { class: class.to_string(), has }));
        }
        // By the looks; before the first ones, the first of the class.
        let best = self.seen().and_then(|seen| seen.pool_for(Some(class)).map(|pool| pool.name.clone()));
        let chosen = of_class.clone().find(|pool| best.as_ref() == Some(&pool.pool)).or_else(|| of_class.next());
        Ok(Ok(chosen.expect("there is one of the class")))
    }

    /// Where a volume is made of a snapshot, which is where that is; `None` where it is in none.
    pub async fn for_fork(&self, id: VolumeId, from: SnapshotId) -> Result<Option<&Storage>, VolumeError> {
        if let [only] = &*self.pools {
            return Ok(Some(only));
        }
        if let Some(home) = self.find(id).await? {
            return Ok(Some(home));
        }
        let mut failed = None;
        for pool in self.pools.iter() {
            match pool.volumes.snapshots().await {
                Ok(held) if held.iter().any(|snapshot| snapshot.id == from) => return Ok(Some(pool)),
                Ok(_) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// Removes it from whichever pool has it or what is left of it.
    pub async fn remove_volume(&self, id: VolumeId, tags: &VolumeTags, how: Removal) -> Result<Removed, VolumeError> {
        let (mut all, mut failed) = (Removed::NotThere, None);
        for pool in self.pools.iter() {
            match pool.volumes.remove(id, tags, how).await {
                Ok(Removed::NotThere) => {}
                Ok(refused @ Removed::Refused(_)) => return Ok(refused),
                Ok(removed) => all = removed,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        self.homes().remove(&id);
        failed.map_or(Ok(all), Err)
    }

    /// What is left of a volume that was not there a moment ago.
    pub async fn left_of(&self, id: VolumeId) -> Result<Left, VolumeError> {
        let mut all = Left::Nothing;
        for pool in self.pools.iter() {
            match left_of(&*pool.volumes, id).await? {
                Left::Whole => return Ok(Left::Whole),
                Left::Remains => all = Left::Remains,
                Left::Nothing => {}
            }
        }
        Ok(all)
    }

    /// Whether the volume cannot outgrow its size.
    pub fn limits_size(&self, id: VolumeId) -> bool {
        let limits = |home: &Storage| home.volumes.support(Capability::SizeLimit) == Support::Offered;
        self.home(id).is_some_and(limits)
    }

    /// Whether a volume can grow in any of them.
    pub fn may_extend(&self) -> bool {
        self.pools.iter().any(|pool| pool.volumes.support(Capability::Extend) == Support::Offered)
    }

    /// What the looks mean for a member whose volume that is.
    pub fn trouble(&self, volume: VolumeId, of: &PostgresSeen) -> Option<Trouble> {
        match self.home(volume) {
            Some(home) => home.trouble(of),
            None => super::trouble_before_a_look(of),
        }
    }

    /// Room in the volume's pool, by its last look.
    pub fn free(&self, volume: VolumeId) -> Option<Bytes> {
        self.home(volume)?.free()
    }

    pub fn note_settled(&self, volume: VolumeId, settled: bool) {
        if let Some(home) = self.home(volume) {
            home.note_settled(volume, settled);
        }
    }

    pub async fn keep_before_rewind(&self, id: SnapshotId, of: VolumeId) -> Result<(), SnapshotError> {
        match self.find(of).await? {
            Some(home) => home.keep_before_rewind(id, of).await,
            None => Err(SnapshotError::Refused("it has no volume".into())),
        }
    }

    /// Takes a snapshot of a member's volume.
    pub async fn snapshot(&self, asked: SnapshotRequest) -> Result<SnapshotSeen, SnapshotError> {
        let record = self.first().consensus.record();
        let cluster = record.clusters.get(&asked.cluster);
        let volume = cluster.and_then(|cluster| cluster.members.get(&asked.member)).map(|member| member.volume);
        let home = match volume {
            Some(volume) => self.find(volume).await?,
            None => None,
        };
        home.unwrap_or(self.first()).snapshot(asked).await
    }

    /// Deletes one, because a person says so; whether it was there.
    pub async fn remove_snapshot(&self, id: SnapshotId) -> Result<bool, SnapshotError> {
        let mut failed = None;
        for pool in self.pools.iter() {
            match pool.remove_snapshot(id).await {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(false), Err)
    }

    /// Removes a volume that no member has, because a person says so.
    pub async fn remove(&self, id: VolumeId) -> Result<(), RemoveError> {
        let mut failed = None;
        for pool in self.pools.iter() {
            match pool.remove(id).await {
                Ok(()) => {
                    self.homes().remove(&id);
                    return Ok(());
                }
                Err(RemoveError::NoOrphan(_)) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.unwrap_or(RemoveError::NoOrphan(id)))
    }

    /// How many looks there were, and what the last ones found where that is more than so many.
    pub fn seen_since(&self, look: u64) -> (u64, Option<StorageSeen>) {
        let all = self.pools.iter().map(|pool| pool.held().look).sum();
        (all, self.seen().filter(|_| all > look))
    }

    /// Once each of them was looked at.
    fn seen(&self) -> Option<StorageSeen> {
        let all: Option<Vec<StorageSeen>> = self.pools.iter().map(Storage::seen).collect();
        StorageSeen::of_all(all?)
    }

    pub fn findings(&self) -> Vec<Finding> {
        self.pools.iter().flat_map(Storage::findings).collect()
    }

    /// Looks at all of them until `stop`.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let mut looks: JoinSet<()> = self.pools.iter().map(|pool| pool.clone().run(stop.clone())).collect();
        while looks.join_next().await.is_some() {}
    }
}
