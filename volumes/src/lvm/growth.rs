//! Volumes grow while they are in use: first the device, then the file system on it. A tag says that this has begun, so that one
//! that was cut short between the two is finished.

use super::filesystem::{self, FileSystemKind};
use super::{Inner, tags};
use crate::driver::{Extension, Refusal, VolumeError};
use pgstead_lvm::LogicalVolume;
use pgstead_types::storage::PoolState;
use pgstead_types::{Bytes, VolumeId};
use std::collections::BTreeSet;

impl Inner {
    pub async fn extend(&self, id: VolumeId, to: Bytes) -> Result<Extension, VolumeError> {
        let turn = self.turn(id);
        let _turn = turn.lock().await;
        let Some(held) = self.lvm.volume(&self.path(tags::volume_name(id))).await? else {
            return Ok(Extension::NotThere);
        };
        let (volume, kind) = self.read(&held, id)?;
        self.ensure_mounted(&held, &volume, kind).await?;
        if held.size >= to {
            // An earlier growth may have come as far as the device alone.
            if tags::is_growing(&held) {
                self.fill_device(&held, id, kind).await?;
            }
            return Ok(Extension::Holds(held.size));
        }
        let pool = self.pool().await?;
        if let PoolState::Unwell { why } | PoolState::Full { why } | PoolState::Brimming { why } = pool.state() {
            return Ok(Extension::Refused(Refusal::PoolUnwell { pool: self.pool_path(), why }));
        }
        if to > pool.size {
            return Ok(Extension::Refused(Refusal::LargerThanPool {
                pool: self.pool_path(),
                size: pool.size,
                asked: to,
            }));
        }
        let path = held.path();
        self.lvm.change_tags(&path, &[tags::growing()].into(), &BTreeSet::new()).await?;
        self.lvm.extend(&path, to).await?;
        self.fill_device(&held, id, kind).await?;
        let grown = self.lvm.volume(&path).await?.map_or(to, |held| held.size);
        tracing::info!(volume = %id, from = %held.size, to = %grown, "a volume has grown");
        Ok(Extension::Holds(grown))
    }

    /// Has the mounted file system take all of its device, and forgets that this was to be done.
    async fn fill_device(&self, held: &LogicalVolume, id: VolumeId, kind: FileSystemKind) -> Result<(), VolumeError> {
        filesystem::grow(kind, &held.path().device(), &self.mount_point(id)).await?;
        Ok(self.lvm.change_tags(&held.path(), &BTreeSet::new(), &[tags::growing()].into()).await?)
    }

    /// A growth may have been cut short between the device and its file system.
    pub async fn ensure_grown(
        &self,
        held: &LogicalVolume,
        id: VolumeId,
        kind: FileSystemKind,
    ) -> Result<(), VolumeError> {
        if !tags::is_growing(held) {
            return Ok(());
        }
        // What is there can be used as it is.
        if let Err(error) = self.fill_device(held, id, kind).await {
            tracing::warn!(volume = %id, %error, "the file system of a volume cannot take all of its room; trying again at its next opening");
        }
        Ok(())
    }
}
