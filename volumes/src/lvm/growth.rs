//! Volumes grow while they are in use: first the device, then the file system on it. One that was cut short between the two is told by
//! a file system that is smaller than its device, and finished.

use super::tags::{self, Layout};
use super::{Inner, blocking, filesystem};
use crate::driver::{Extension, Refusal, VolumeError};
use pgstead_lvm::LogicalVolume;
use pgstead_types::storage::PoolState;
use pgstead_types::{Bytes, VolumeId};
use std::path::Path;

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
        let (volume, layout) = self.read(held, id)?;
        let device = self.ensure_mounted(held, &volume, layout).await?;
        let lv_size = layout.with_overhead(to);
        if held.size >= lv_size {
            // An earlier growth may have come as far as the device alone.
            self.fill_device(held, &device, id, layout).await?;
            return Ok(Extension::Holds(volume.size.unwrap_or(to)));
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
        self.lvm.extend(&held.path(), lv_size).await?;
        self.fill_device(held, &device, id, layout).await?;
        let grown = blocking(move || filesystem::device_size(&device)).await?;
        tracing::info!(volume = %id, from = %volume.size.unwrap_or_default(), to = %grown, "a volume has grown");
        Ok(Extension::Holds(grown))
    }

    /// Has the mounted file system take all of its device.
    async fn fill_device(
        &self,
        held: &LogicalVolume,
        device: &Path,
        id: VolumeId,
        layout: Layout,
    ) -> Result<(), VolumeError> {
        self.fill_volume(held, device, id, layout).await?;
        let (kind, looked_at) = (layout.file_system, device.to_path_buf());
        if blocking(move || filesystem::fills(kind, &looked_at)).await? {
            return Ok(());
        }
        filesystem::grow(kind, device, &self.mount_point(id)).await
    }

    /// A growth may have been cut short between the device and its file system.
    pub async fn ensure_grown(&self, held: &LogicalVolume, device: &Path, id: VolumeId, layout: Layout) {
        // What is there can be used as it is.
        if let Err(error) = self.fill_device(held, device, id, layout).await {
            tracing::warn!(volume = %id, %error, "the file system of a volume cannot take all of its room; trying again at its next opening");
        }
    }
}
