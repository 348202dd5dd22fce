//! A pool beside others that could not be used when the daemon began: it is tried again by itself, and nobody may take what is in it
//! for lost meanwhile.

use crate::config::Pool;
use crate::member::chain;
use async_trait::async_trait;
use pgstead_types::{Bytes, SnapshotId, Tick, VolumeId};
use pgstead_volumes::{
    BackedUp, Capability, Creation, DirDriver, Extension, Forking, Inventory, KeysSeen, LvmDriver, NewSnapshot,
    NewVolume, Removal, Removed, Snapshot, Snapshotted, Support, Usage, Volume, VolumeDriver, VolumeError, VolumeTags,
};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Mutex;

const AGAIN: Duration = Duration::from_secs(10);

/// Opens a pool as it is configured.
pub async fn open(pool: &Pool) -> anyhow::Result<Arc<dyn VolumeDriver>> {
    Ok(match pool.clone() {
        Pool::Dir(dir) => Arc::new(DirDriver::open(dir)?),
        Pool::Lvm(lvm) => Arc::new(LvmDriver::open(lvm).await?),
    })
}

/// The driver of a pool that is not open, until it is.
#[derive(Debug)]
pub struct LateDriver {
    name: String,
    pool: Pool,
    /// When the last try ended, and why it came to nothing.
    tried: Mutex<(Tick, String)>,
    opened: OnceLock<Arc<dyn VolumeDriver>>,
}

impl LateDriver {
    pub fn new(name: &str, pool: Pool, why: String) -> Self {
        Self { name: name.to_string(), pool, tried: Mutex::new((Tick::now(), why)), opened: OnceLock::new() }
    }

    async fn driver(&self) -> Result<&Arc<dyn VolumeDriver>, VolumeError> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        let mut tried = self.tried.lock().await;
        if self.opened.get().is_none() && Tick::now().since(tried.0) >= AGAIN {
            match open(&self.pool).await {
                Ok(opened) => {
                    tracing::info!(pool = %self.name, "the pool can be used now");
                    return Ok(self.opened.get_or_init(|| opened));
                }
                Err(error) => *tried = (Tick::now(), chain(&*error)),
            }
        }
        let closed = || VolumeError::PoolClosed { pool: self.name.clone(), why: tried.1.clone() };
        self.opened.get().ok_or_else(closed)
    }
}

#[async_trait]
impl VolumeDriver for LateDriver {
    fn name(&self) -> &'static str {
        match self.pool {
            Pool::Dir(_) => "dir",
            Pool::Lvm(_) => "lvm",
        }
    }

    fn support(&self, what: Capability) -> Support {
        match (self.opened.get(), &self.pool) {
            (Some(opened), _) => opened.support(what),
            (None, Pool::Lvm(_)) => Support::Offered,
            (None, Pool::Dir(_)) => Support::Unsupported { why: "its pool is not open" },
        }
    }

    async fn create(&self, new: NewVolume) -> Result<Creation, VolumeError> {
        self.driver().await?.create(new).await
    }
    async fn open(&self, id: VolumeId) -> Result<Option<Volume>, VolumeError> {
        self.driver().await?.open(id).await
    }
    async fn list(&self) -> Result<Inventory, VolumeError> {
        self.driver().await?.list().await
    }
    async fn remove(&self, id: VolumeId, tags: &VolumeTags, how: Removal) -> Result<Removed, VolumeError> {
        self.driver().await?.remove(id, tags, how).await
    }
    async fn extend(&self, id: VolumeId, to: Bytes) -> Result<Extension, VolumeError> {
        self.driver().await?.extend(id, to).await
    }
    async fn snapshot(&self, new: NewSnapshot) -> Result<Snapshotted, VolumeError> {
        self.driver().await?.snapshot(new).await
    }
    async fn finish_snapshot(&self, id: SnapshotId) -> Result<Snapshot, VolumeError> {
        self.driver().await?.finish_snapshot(id).await
    }
    async fn fork(&self, new: NewVolume, from: SnapshotId) -> Result<Forking, VolumeError> {
        self.driver().await?.fork(new, from).await
    }
    async fn finish_fork(&self, id: VolumeId) -> Result<Volume, VolumeError> {
        self.driver().await?.finish_fork(id).await
    }
    async fn snapshots(&self) -> Result<Vec<Snapshot>, VolumeError> {
        self.driver().await?.snapshots().await
    }
    async fn remove_snapshot(&self, id: SnapshotId) -> Result<bool, VolumeError> {
        self.driver().await?.remove_snapshot(id).await
    }
    async fn relieve(&self) -> Result<Option<String>, VolumeError> {
        self.driver().await?.relieve().await
    }
    async fn back_up(&self, to: &Path) -> Result<BackedUp, VolumeError> {
        self.driver().await?.back_up(to).await
    }
    async fn tend_keys(&self, headers: &Path) -> Result<KeysSeen, VolumeError> {
        self.driver().await?.tend_keys(headers).await
    }
    async fn usage(&self) -> Result<Usage, VolumeError> {
        self.driver().await?.usage().await
    }
}
