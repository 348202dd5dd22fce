//! The driver for plain directories: laptops, CI, and hosts whose file system is somebody else's care.
//!
//! ```text
//! <pool>/<volume id>/volume.json     the tags, written once, the daemon's own
//! <pool>/<volume id>/data/           the volume's path, the owner's, mode 0700
//! <pool>/.new-<volume id>/           being made; becomes <volume id> by one rename
//! <pool>/.trash-<volume id>-<n>/     removed by one rename; deleted piece by piece
//! <pool>/snap-<snapshot id>/         the same for snapshots, with snapshot.json; made under .new-snap-, removed under .trash-snap-
//! ```
//! Both renames are the moment at which the thing is true; whatever a kill leaves beside them is never a volume.

pub(crate) mod ballast;
mod delete;
mod layout;
mod pool;
mod snapshots;

pub use pool::PoolError;

use crate::driver::{
    BackedUp, Capability, Creation, Extension, Inventory, KeysSeen, NewVolume, Removal, Removed, Support, Usage,
    Volume, VolumeDriver, VolumeError, VolumeTags,
};
use crate::snapshot::{Forking, NewSnapshot, Snapshot, Snapshotted};
use async_trait::async_trait;
use pgstead_types::{Bytes, SnapshotId, VolumeId};
use pool::{Pool, Taken};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Free space that a new volume must leave. A fresh member writes some 40 MiB and then up to 1 GiB of WAL between two
/// checkpoints: below that the first busy hour fills the disk; far above it small disks are refused for nothing.
pub const FREE_MIN_DEFAULT: Bytes = Bytes(1 << 30);

/// Entries deleted per turn: a few milliseconds each, so that a dropped removal stops soon and others get their turn.
const DELETE_BATCH: usize = 500;

const NO_EXTEND: &str = "a directory has no size of its own; it grows with its file system";

/// A directory as a pool.
#[derive(Clone, Debug)]
pub struct DirConfig {
    /// Absolute. Made when it is not there.
    pub path: PathBuf,
    /// Free space below which no volume is made.
    pub free_min: Bytes,
}

impl DirConfig {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), free_min: FREE_MIN_DEFAULT }
    }
}

/// A pool that is a directory. It holds the pool's lock until it is dropped.
#[derive(Clone, Debug)]
pub struct DirDriver {
    pool: Arc<Pool>,
}

impl DirDriver {
    /// Checks the directory, takes its lock and clears away what interrupted creations have left. Blocks shortly.
    pub fn open(config: DirConfig) -> Result<Self, PoolError> {
        Ok(Self { pool: Arc::new(Pool::open(config)?) })
    }

    /// File calls block, so they run beside the runtime's own threads.
    async fn on_pool<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Pool) -> Result<T, VolumeError> + Send + 'static,
    ) -> Result<T, VolumeError> {
        let pool = Arc::clone(&self.pool);
        tokio::task::spawn_blocking(move || work(&pool)).await.map_err(VolumeError::Stopped)?
    }

    /// Of what is set aside already, in turns.
    async fn delete(&self, names: Vec<String>) -> Result<(), VolumeError> {
        for name in names {
            loop {
                let name = name.clone();
                match self.on_pool(move |pool| pool.delete_some(&name, DELETE_BATCH)).await? {
                    delete::Progress::Done => break,
                    delete::Progress::MoreLeft => {}
                }
            }
        }
        Ok(())
    }
}

#[async_trait]
impl VolumeDriver for DirDriver {
    fn name(&self) -> &'static str {
        "dir"
    }

    fn support(&self, what: Capability) -> Support {
        Support::Unsupported {
            why: match what {
                Capability::Extend => NO_EXTEND,
                Capability::Snapshot => "a snapshot of a directory is a copy of it",
                Capability::SizeLimit => "a directory can fill the whole file system that it is on",
            },
        }
    }

    async fn create(&self, new: NewVolume) -> Result<Creation, VolumeError> {
        self.on_pool(move |pool| pool.create(&new)).await
    }

    async fn open(&self, id: VolumeId) -> Result<Option<Volume>, VolumeError> {
        self.on_pool(move |pool| pool.find(id)).await
    }

    async fn list(&self) -> Result<Inventory, VolumeError> {
        self.on_pool(Pool::list).await
    }

    async fn remove(&self, id: VolumeId, tags: &VolumeTags, how: Removal) -> Result<Removed, VolumeError> {
        let tags = *tags;
        let trash = match self.on_pool(move |pool| pool.set_aside(id, &tags)).await? {
            Taken::Refused(refusal) => return Ok(Removed::Refused(refusal)),
            Taken::Trash(trash) => trash,
        };
        if trash.is_empty() {
            return Ok(Removed::NotThere);
        }
        if how == Removal::Soft {
            return Ok(Removed::SetAside);
        }
        for snapshot in self.on_pool(Pool::snapshots).await?.into_iter().filter(|snapshot| snapshot.of == id) {
            self.remove_snapshot(snapshot.id).await?;
        }
        self.delete(trash).await?;
        Ok(Removed::Deleted)
    }

    async fn extend(&self, _: VolumeId, _: Bytes) -> Result<Extension, VolumeError> {
        Ok(Extension::Unsupported { why: NO_EXTEND })
    }

    async fn snapshot(&self, new: NewSnapshot) -> Result<Snapshotted, VolumeError> {
        self.on_pool(move |pool| pool.snapshot(&new)).await
    }

    async fn finish_snapshot(&self, id: SnapshotId) -> Result<Snapshot, VolumeError> {
        self.on_pool(move |pool| pool.finish_snapshot(id)).await
    }

    async fn snapshots(&self) -> Result<Vec<Snapshot>, VolumeError> {
        self.on_pool(Pool::snapshots).await
    }

    async fn remove_snapshot(&self, id: SnapshotId) -> Result<bool, VolumeError> {
        let (there, left) = self.on_pool(move |pool| pool.set_snapshot_aside(id)).await?;
        self.delete(left).await?;
        Ok(there)
    }

    async fn fork(&self, new: NewVolume, from: SnapshotId) -> Result<Forking, VolumeError> {
        self.on_pool(move |pool| pool.fork(&new, from)).await
    }

    async fn finish_fork(&self, id: VolumeId) -> Result<Volume, VolumeError> {
        self.on_pool(move |pool| pool.finish_fork(id)).await
    }

    async fn relieve(&self) -> Result<Option<String>, VolumeError> {
        Ok(None)
    }

    async fn back_up(&self, _: &Path) -> Result<BackedUp, VolumeError> {
        Ok(BackedUp::NothingToKeep)
    }

    async fn tend_keys(&self, _headers: &Path) -> Result<KeysSeen, VolumeError> {
        Ok(KeysSeen::default())
    }

    async fn usage(&self) -> Result<Usage, VolumeError> {
        self.on_pool(Pool::usage).await
    }
}
