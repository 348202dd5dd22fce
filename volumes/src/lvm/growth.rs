//! Volumes grow while they are in use: first the device, then the file system on it. One that was cut short between the two is told by
//! a file system that is smaller than its device, and finished.

use super::filesystem::{self, FileSystemKind};
use super::{Inner, blocking, tags};
use crate::driver::{Extension, Refusal, VolumeError};
use pgstead_lvm::LogicalVolume;
use pgstead_types::storage::PoolState;
use pgstead_types::{Bytes, VolumeId};

impl Inner {
    /// Each run of LVM's program is felt by whoever waits for the room: there are two.
    pub async fn extend(&self, id: VolumeId, to: Bytes) -> Result<Extension, VolumeError> {
        let turn = self.turn(id);
        let _turn = turn.lock().await;
        let all = self.lvm.volumes(&self.config.group).await?;
        let name = tags::volume_name(id);
        let Some(held) = all.iter().find(|held| held.name == name) else {
            return Ok(Extension::NotThere);
        };
        let (volume, kind) = self.read(held, id)?;
        self.ensure_mounted(held, &volume, kind).await?;
        if held.size >= to {
            // An earlier growth may have come as far as the device alone.
            self.fill_device(held, id, kind).await?;
            return Ok(Extension::Holds(held.size));
        }
        let pool = self.pool_among(&all).await?;
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
        self.lvm.extend(&path, to).await?;
        self.fill_device(held, id, kind).await?;
        let device = path.device();
        let grown = blocking(move || filesystem::device_size(&device)).await?;
        tracing::info!(volume = %id, from = %held.size, to = %grown, "a volume has grown");
        Ok(Extension::Holds(grown))
    }

    /// Has the mounted file system take all of its device.
    async fn fill_device(&self, held: &LogicalVolume, id: VolumeId, kind: FileSystemKind) -> Result<(), VolumeError> {
        let device = held.path().device();
        let looked_at = device.clone();
        if blocking(move || filesystem::fills(kind, &looked_at)).await? {
            return Ok(());
        }
        filesystem::grow(kind, &device, &self.mount_point(id)).await
    }

    /// A growth may have been cut short between the device and its file system.
    pub async fn ensure_grown(
        &self,
        held: &LogicalVolume,
        id: VolumeId,
        kind: FileSystemKind,
    ) -> Result<(), VolumeError> {
        // What is there can be used as it is.
        if let Err(error) = self.fill_device(held, id, kind).await {
            tracing::warn!(volume = %id, %error, "the file system of a volume cannot take all of its room; trying again at its next opening");
        }
        Ok(())
    }
}
