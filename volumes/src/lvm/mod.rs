//! The driver for LVM: each volume is a file system in a thin logical volume of one pool, mounted on this host.
//!
//! ```text
//! <group>/vol-<volume id>            a volume, its tags in LVM's own metadata
//! <group>/new-<volume id>            being made; becomes vol-<volume id> by one rename
//! <group>/trash-<volume id>-<n>      removed by one rename; kept until a hard removal
//! <mounts>/<volume id>/data/         the volume's path, the owner's, mode 0700
//! /dev/mapper/pgstead-<volume id>    what is mounted of a volume that is encrypted
//! ```
//! Each rename is one change of LVM's metadata, and the moment at which the thing is true. What is mounted is asked of the
//! kernel, and what there is of LVM: this node's own files may all be gone.

mod backup;
pub(crate) mod ballast;
mod config;
mod creation;
mod encryption;
mod filesystem;
mod growth;
mod headers;
mod keys;
mod loop_file;
mod luks;
mod make;
mod mounting;
mod relief;
mod replay;
mod rotation;
mod snapshots;
mod tags;

pub use config::{LvmConfig, LvmPoolError};
pub use filesystem::FileSystemKind;
pub use keys::{Key, KeyError, KeyFolder};
pub use loop_file::{LoopFileError, attach_loop_file, make_loop_file, plan_loop_file};
pub use make::{DeviceSeen, MakePoolError, PoolBegun, PoolPlan, PoolRequest, make_pool, plan_pool};

use crate::driver::{
    BackedUp, Capability, Creation, Extension, Inventory, KeysSeen, NewVolume, Refusal, Removal, Removed, Stray,
    StrayKind, Support, Usage, Volume, VolumeDriver, VolumeError, VolumeTags,
};
use crate::entry::Entry;
use crate::folder;
use crate::snapshot::{Forking, NewSnapshot, Snapshot, Snapshotted};
use async_trait::async_trait;
use make::METADATA_MAX;
use pgstead_lvm::{Health, Kind, LogicalVolume, LvName, LvPath, Lvm, Percent};
use pgstead_types::storage::PoolState;
use pgstead_types::{Bytes, SnapshotId, VolumeId};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;
use tags::{Layout, Unreadable};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// From here on a pool takes no new volume: what is there needs the rest, to be written to and to be copied on write.
const ADMISSION_LIMIT: Percent = Percent::whole(80);
/// From here on what is there is in danger: a pool that is full fails writes of everything on it.
const FULL_LIMIT: Percent = Percent::whole(95);
const BRIM_LIMIT: Percent = Percent::whole(98);
/// What the Postgres of a volume may still write when it takes no writes any more, mostly log up to a checkpoint (`max_wal_size`):
/// so much is to be free for each as well, up to a tenth of the pool, and a quarter of that at the brim.
const RESERVE: Bytes = Bytes(1 << 30);
const RESERVE_MAX: Percent = Percent::whole(10);
const DATA: &str = "data";
/// Whoever opens a volume waits so long for what is done to it. Most of it takes a second or two.
const TURN_PATIENCE: Duration = Duration::from_secs(10);

/// A pool in a thin pool. It holds the lock of its folder until it is dropped.
#[derive(Clone, Debug)]
pub struct LvmDriver {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    lvm: Lvm,
    config: LvmConfig,
    /// The open folder of mounts, with an exclusive lock that ends with the process.
    _lock: File,
    /// One for each volume that was ever used, held while it is made, mounted, or renamed: a long check of one keeps nobody from
    /// the others.
    changes: SyncMutex<BTreeMap<VolumeId, Arc<Mutex<()>>>>,
    /// File systems that were asked whether they still work and have not answered yet.
    asked: SyncMutex<BTreeMap<VolumeId, JoinHandle<Result<bool, VolumeError>>>>,
}

impl LvmDriver {
    /// Checks LVM, the pool and the folder, takes its lock and clears away what interrupted creations have left.
    pub async fn open(mut config: LvmConfig) -> Result<Self, LvmPoolError> {
        if !rustix::process::geteuid().is_root() {
            return Err(LvmPoolError::NotRoot);
        }
        let missing = filesystem::missing_programs(config.file_system);
        if !missing.is_empty() {
            return Err(LvmPoolError::NoPrograms { kind: config.file_system, programs: missing });
        }
        let lvm = Lvm::find().await?;
        let lock = open_mounts(&mut config.mounts)?;
        for file in &config.loop_files {
            attach_loop_file(file).await?;
        }
        claim(&lvm, &config).await?;
        let path = LvPath { group: config.group.clone(), name: config.pool.clone() };
        match lvm.volume(&path).await?.ok_or_else(|| LvmPoolError::NoPool { path: path.clone() })?.kind {
            Kind::ThinPool { when_full: pgstead_lvm::WhenFull::Error, .. } => {}
            // Its creation was cut short before this, or somebody else has made it. Volumes that are there are used all the same.
            Kind::ThinPool { .. } => {
                if let Err(error) = lvm.set_error_when_full(&path).await {
                    tracing::warn!(pool = %path, %error, "cannot have writes to the pool fail at once when it is full");
                }
            }
            Kind::Thin { .. } | Kind::Other => return Err(LvmPoolError::NotThin { path }),
        }
        let inner = Inner { lvm, config, _lock: lock, changes: SyncMutex::default(), asked: SyncMutex::default() };
        inner.open_keys().await?;
        // What never held data must not keep a node from those that do; a creation clears it again.
        if let Err(error) = inner.clear_unfinished().await {
            tracing::warn!(pool = %path, %error, "cannot clear the pool of an unfinished volume");
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn config(&self) -> &LvmConfig {
        &self.inner.config
    }
}

/// The group is there, and is this node's from now on. Of two nodes that come at the same moment at most one goes on.
async fn claim(lvm: &Lvm, config: &LvmConfig) -> Result<(), LvmPoolError> {
    let look = async || {
        let group = lvm.group(&config.group).await?;
        group.ok_or_else(|| LvmPoolError::NoGroup { group: config.group.clone() })
    };
    let mut group = look().await?;
    let Some(node) = config.node else { return Ok(()) };
    if tags::nodes(&group.tags).next().is_none() {
        lvm.tag_group(&config.group, &tags::of_node(node)).await?;
        group = look().await?;
    }
    let others: Vec<&str> = tags::nodes(&group.tags).filter(|held| **held != *node.to_string()).collect();
    match others.first() {
        None => Ok(()),
        Some(first) => Err(LvmPoolError::OfAnotherNode {
            group: config.group.clone(),
            node,
            others: format!("node {}", others.join(" and node ")),
            tag: format!("{}{first}", tags::NODE),
        }),
    }
}

/// Makes and locks it, and gives it the name by which the kernel lists mounts.
fn open_mounts(mounts: &mut PathBuf) -> Result<File, LvmPoolError> {
    if !mounts.is_absolute() {
        return Err(LvmPoolError::NotAbsolute { mounts: mounts.clone() });
    }
    let asked = mounts.clone();
    let failed = |source| LvmPoolError::Mounts { mounts: asked.clone(), source };
    DirBuilder::new().recursive(true).mode(0o755).create(&asked).map_err(failed)?;
    *mounts = fs::canonicalize(&asked).map_err(failed)?;
    let found = fs::metadata(&*mounts).map_err(failed)?;
    if found.uid() != 0 || found.mode() & 0o022 != 0 {
        return Err(LvmPoolError::OthersWrite { mounts: asked });
    }
    folder::lock(mounts).map_err(failed)?.ok_or_else(|| LvmPoolError::InUse { mounts: asked.clone() })
}

#[async_trait]
impl VolumeDriver for LvmDriver {
    fn name(&self) -> &'static str {
        "lvm"
    }

    fn support(&self, what: Capability) -> Support {
        match what {
            Capability::SizeLimit | Capability::Extend | Capability::Snapshot => Support::Offered,
        }
    }

    async fn create(&self, new: NewVolume) -> Result<Creation, VolumeError> {
        let inner = Arc::clone(&self.inner);
        whole(async move { inner.create(&new).await }).await
    }

    async fn open(&self, id: VolumeId) -> Result<Option<Volume>, VolumeError> {
        let inner = Arc::clone(&self.inner);
        whole(async move { inner.open(id).await }).await
    }

    async fn list(&self) -> Result<Inventory, VolumeError> {
        self.inner.list().await
    }

    async fn remove(&self, id: VolumeId, tags: &VolumeTags, how: Removal) -> Result<Removed, VolumeError> {
        let (inner, tags) = (Arc::clone(&self.inner), *tags);
        whole(async move { inner.remove(id, &tags, how).await }).await
    }

    async fn extend(&self, id: VolumeId, to: Bytes) -> Result<Extension, VolumeError> {
        let inner = Arc::clone(&self.inner);
        whole(async move { inner.extend(id, to).await }).await
    }

    async fn snapshot(&self, new: NewSnapshot) -> Result<Snapshotted, VolumeError> {
        let inner = Arc::clone(&self.inner);
        whole(async move { inner.snapshot(&new).await }).await
    }

    /// Each is whole when it is there.
    async fn finish_snapshot(&self, id: SnapshotId) -> Result<Snapshot, VolumeError> {
        self.inner.finished_snapshot(id).await
    }

    async fn fork(&self, new: NewVolume, from: SnapshotId) -> Result<Forking, VolumeError> {
        let inner = Arc::clone(&self.inner);
        whole(async move { inner.fork(&new, from).await }).await
    }

    async fn finish_fork(&self, id: VolumeId) -> Result<Volume, VolumeError> {
        self.open(id).await?.ok_or_else(|| unusable(id, "there is no such volume"))
    }

    async fn snapshots(&self) -> Result<Vec<Snapshot>, VolumeError> {
        self.inner.snapshots().await
    }

    async fn remove_snapshot(&self, id: SnapshotId) -> Result<bool, VolumeError> {
        let inner = Arc::clone(&self.inner);
        whole(async move { inner.remove_snapshot(id).await }).await
    }

    async fn relieve(&self) -> Result<Option<String>, VolumeError> {
        let inner = Arc::clone(&self.inner);
        whole(async move { inner.relieve().await }).await
    }

    async fn back_up(&self, to: &Path) -> Result<BackedUp, VolumeError> {
        let (inner, to) = (Arc::clone(&self.inner), to.to_path_buf());
        whole(async move { inner.back_up(&to).await }).await
    }

    async fn tend_keys(&self, headers: &Path) -> Result<KeysSeen, VolumeError> {
        LvmDriver::tend_keys(self, headers).await
    }

    async fn usage(&self) -> Result<Usage, VolumeError> {
        let all = self.inner.lvm.volumes(&self.inner.config.group).await?;
        let pool = self.inner.pool_among(&all).await?;
        Ok(Usage {
            total: pool.size,
            used: pool.data_used.of(pool.size),
            free: pool.free(),
            metadata_used: Some(pool.metadata_used),
            ballast: ballast::size_among(&all),
            state: pool.state(),
        })
    }
}

/// A change that has begun goes on to its end, also when nobody waits for it any more.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, VolumeError>> + Send + 'static,
) -> Result<T, VolumeError> {
    tokio::spawn(work).await.map_err(VolumeError::Stopped)?
}

/// Calls of the kernel that block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    tokio::task::spawn_blocking(work).await.map_err(VolumeError::Stopped)?
}

/// The thin pool as LVM sees it now.
struct Pool {
    size: Bytes,
    data_used: Percent,
    metadata_used: Percent,
    metadata_size: Bytes,
    health: Health,
    /// Of data, each of which belongs to a volume, to several, or to none.
    blocks: u64,
    /// For the volumes that are there.
    reserve: Bytes,
}

impl Pool {
    fn state(&self) -> PoolState {
        match self.health {
            Health::MetadataReadOnly => {
                return PoolState::Brimming { why: format!("{}, and is {} full", self.health, self.metadata_used) };
            }
            Health::NeedsCheck => {
                let why =
                    format!("{}, and takes no change before it was repaired (docs/operating/repair.md)", self.health);
                return PoolState::Brimming { why };
            }
            _ => {}
        }
        if self.health != Health::Fine && self.health != Health::OutOfData {
            return PoolState::Unwell { why: self.health.to_string() };
        }
        let (what, used) = match self.metadata_used > self.data_used {
            true => ("metadata", self.metadata_used),
            false => ("data", self.data_used),
        };
        let free = self.free();
        let lacks =
            |reserve: Bytes| format!("{free} are free, expected {reserve} for what its volumes may write at once");
        let brim = Bytes(self.reserve.0 / 4);
        match used {
            used if used >= BRIM_LIMIT => {
                PoolState::Brimming { why: format!("its {what} is {used} full, expected less than {BRIM_LIMIT}") }
            }
            _ if free < brim => PoolState::Brimming { why: lacks(brim) },
            used if used >= FULL_LIMIT => {
                PoolState::Full { why: format!("its {what} is {used} full, expected less than {FULL_LIMIT}") }
            }
            _ if free < self.reserve => PoolState::Full { why: lacks(self.reserve) },
            used if used >= ADMISSION_LIMIT => PoolState::NearlyFull {
                why: format!("its {what} is {used} full, expected less than {ADMISSION_LIMIT}"),
            },
            _ => PoolState::Fine,
        }
    }

    fn free(&self) -> Bytes {
        Bytes(self.size.0.saturating_sub(self.data_used.of(self.size).0))
    }
}

impl Inner {
    async fn open(&self, id: VolumeId) -> Result<Option<Volume>, VolumeError> {
        let turn = self.turn(id);
        let why = "something else has been done to it for longer than a moment: a check of its file system, or its device hangs; is it \
            suspended (`dmsetup info`)?";
        // Whoever asks, asks again: those who wait must not become more and more.
        let waiting = tokio::time::timeout(TURN_PATIENCE, turn.lock()).await;
        let _turn = waiting.map_err(|_| unusable(id, why))?;
        let Some(held) = self.lvm.volume(&self.path(tags::volume_name(id))).await? else { return Ok(None) };
        let (volume, layout) = self.read(&held, id)?;
        self.ensure_mounted(&held, &volume, layout).await?;
        Ok(Some(volume))
    }

    async fn list(&self) -> Result<Inventory, VolumeError> {
        let mut inventory = Inventory::default();
        for held in self.lvm.volumes(&self.config.group).await? {
            let Some(entry) = tags::entry(&held) else { continue };
            let (id, kind) = match entry {
                Entry::Volume(id) => match tags::read(&held, id, &self.data_folder(id)) {
                    Ok((volume, _)) => {
                        inventory.volumes.push(volume);
                        continue;
                    }
                    Err(Unreadable(why)) => (id, StrayKind::Unreadable { why }),
                },
                Entry::Unfinished(id) => (id, StrayKind::Unfinished),
                Entry::Trash(id) => {
                    let tags = tags::read(&held, id, &self.data_folder(id)).ok().map(|(volume, _)| volume.tags);
                    (id, StrayKind::SetAside { tags })
                }
            };
            inventory.strays.push(Stray { id, path: held.path().device(), kind });
        }
        inventory.volumes.sort_by_key(|volume| volume.id);
        inventory.strays.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(inventory)
    }

    async fn remove(&self, id: VolumeId, tags: &VolumeTags, how: Removal) -> Result<Removed, VolumeError> {
        let turn = self.turn(id);
        let _turn = turn.lock().await;
        let mut held = self.lvm.volumes(&self.config.group).await?;
        let name = tags::volume_name(id);
        if let Some(unfinished) = held.iter().find(|volume| tags::entry(volume) == Some(Entry::Unfinished(id))) {
            self.delete(unfinished).await?;
        }
        if let Some(whole) = held.iter().find(|volume| volume.name == name) {
            let (volume, _) = self.read(whole, id)?;
            if volume.tags != *tags {
                return Ok(Removed::Refused(Refusal::other_tags(id, volume.tags, *tags)));
            }
            self.ensure_unmounted(id, whole).await?;
            let taken = |name: &LvName| held.iter().any(|volume| volume.name == *name);
            let to = (1..).map(|number| tags::trash_name(id, number)).find(|name| !taken(name));
            let to = to.expect("numbers do not run out before pools do");
            self.lvm.rename(&whole.path(), &to).await?;
            held = self.lvm.volumes(&self.config.group).await?;
        }
        let trash: Vec<_> = held.iter().filter(|volume| tags::entry(volume) == Some(Entry::Trash(id))).collect();
        for held in &trash {
            let (volume, _) = self.read(held, id)?;
            if volume.tags != *tags {
                return Ok(Removed::Refused(Refusal::other_tags(id, volume.tags, *tags)));
            }
        }
        match how {
            _ if trash.is_empty() => Ok(Removed::NotThere),
            Removal::Soft => Ok(Removed::SetAside),
            Removal::Hard => {
                self.remove_snapshots_of(id).await?;
                for held in trash {
                    self.delete(held).await?;
                }
                Ok(Removed::Deleted)
            }
        }
    }

    async fn pool(&self) -> Result<Pool, VolumeError> {
        self.pool_among(&self.lvm.volumes(&self.config.group).await?).await
    }

    /// The pool, by a list of all that its group has: each list is a run of LVM's program.
    async fn pool_among(&self, all: &[LogicalVolume]) -> Result<Pool, VolumeError> {
        let path = self.path(self.config.pool.clone());
        let unreadable = |why: &str| VolumeError::Unreadable { path: self.pool_path(), why: why.to_string() };
        let volumes = all.iter().filter(|held| matches!(tags::entry(held), Some(Entry::Volume(_)))).count();
        let held = all.iter().find(|held| held.name == self.config.pool).cloned();
        let mut held = held.ok_or_else(|| unreadable("it is not there"))?;
        // How full and how well it is, is known while it is active, which it is as soon as one of its volumes is.
        if matches!(held.kind, Kind::ThinPool { data_used: None, .. } | Kind::ThinPool { metadata_used: None, .. }) {
            self.lvm.activate(&path).await?;
            held = self.lvm.volume(&path).await?.ok_or_else(|| unreadable("it is not there"))?;
        }
        let Kind::ThinPool { data_used, metadata_used, metadata_size, chunk, .. } = held.kind else {
            return Err(unreadable("it is not a thin pool"));
        };
        let (data_used, metadata_used) =
            data_used.zip(metadata_used).ok_or_else(|| unreadable("how full it is cannot be read"))?;
        let reserve = RESERVE.0.saturating_mul(u64::try_from(volumes).unwrap_or(u64::MAX));
        let reserve = Bytes(reserve.min(RESERVE_MAX.of(held.size).0));
        let blocks = held.size.0 / chunk.0.max(1);
        Ok(Pool { size: held.size, data_used, metadata_used, metadata_size, health: held.health, blocks, reserve })
    }

    async fn clear_unfinished(&self) -> Result<(), VolumeError> {
        for held in self.lvm.volumes(&self.config.group).await? {
            if let Some(Entry::Unfinished(id)) = tags::entry(&held) {
                tracing::info!(volume = %id, group = %self.config.group, "cleared an unfinished volume");
                self.delete(&held).await?;
            }
        }
        Ok(())
    }

    /// Of a volume that is unfinished or set aside: neither is in use, but one whose making was cut short may be mounted.
    async fn delete(&self, held: &LogicalVolume) -> Result<(), VolumeError> {
        if let Some(Entry::Unfinished(id)) = tags::entry(held) {
            self.ensure_unmounted(id, held).await?;
        }
        Ok(self.lvm.remove(&held.path()).await?)
    }

    fn turn(&self, id: VolumeId) -> Arc<Mutex<()>> {
        // It guards a table of locks: a panic elsewhere leaves nothing broken behind it.
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(changes.entry(id).or_default())
    }

    fn read(&self, held: &LogicalVolume, id: VolumeId) -> Result<(Volume, Layout), VolumeError> {
        tags::read(held, id, &self.data_folder(id))
            .map_err(|Unreadable(why)| VolumeError::Unreadable { path: held.path().device(), why })
    }

    fn size_of(&self, new: &NewVolume, pool: &Pool) -> Bytes {
        new.size.or(self.config.size_default).unwrap_or(pool.size)
    }
    fn path(&self, name: LvName) -> LvPath {
        LvPath { group: self.config.group.clone(), name }
    }
    fn pool_path(&self) -> PathBuf {
        PathBuf::from(self.path(self.config.pool.clone()).to_string())
    }
    fn mount_point(&self, id: VolumeId) -> PathBuf {
        self.config.mounts.join(id.to_string())
    }
    fn scratch(&self, id: VolumeId) -> PathBuf {
        self.config.mounts.join(format!(".new-{id}"))
    }
    fn data_folder(&self, id: VolumeId) -> PathBuf {
        self.mount_point(id).join(DATA)
    }
}

fn unusable(id: VolumeId, why: impl Into<String>) -> VolumeError {
    VolumeError::Unusable { id, why: why.into() }
}

fn make_folder(path: &Path) -> Result<(), VolumeError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o755).create(path).map_err(VolumeError::io("make", path))
}
