//! Volumes are made under another name, and get their own when they are complete.

use super::filesystem::{self, FileSystemKind};
use super::tags::{self, Layout};
use super::{ADMISSION_LIMIT, DATA, Inner, Pool, blocking, make_folder, unusable};
use crate::driver::{Creation, NewVolume, Owner, Refusal, VolumeError};
use crate::entry::Entry;
use crate::folder;
use pgstead_lvm::{Health, NewThinVolume};
use pgstead_types::{Bytes, WallTime};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

impl Inner {
    pub async fn create(&self, new: &NewVolume) -> Result<Creation, VolumeError> {
        let turn = self.turn(new.id);
        let _turn = turn.lock().await;
        let held = self.lvm.volumes(&self.config.group).await?;
        let (final_name, unfinished) = (tags::volume_name(new.id), tags::unfinished_name(new.id));
        if let Some(held) = held.iter().find(|volume| volume.name == final_name) {
            let (volume, layout) = self.read(held, new.id)?;
            if volume.tags != new.tags {
                return Ok(Creation::Refused(Refusal::other_tags(new.id, volume.tags, new.tags)));
            }
            self.ensure_mounted(held, &volume, layout).await?;
            return Ok(Creation::AlreadyThere(volume));
        }
        let pool = self.pool_among(&held).await?;
        if let Some(refusal) = self.refuses(new, &pool).await? {
            return Ok(Creation::Refused(refusal));
        }
        if let Some(left) = held.iter().find(|volume| volume.name == unfinished) {
            if tags::entry(left) != Some(Entry::Unfinished(new.id)) {
                let why = "it has the name of an unfinished volume and not our tag".to_string();
                return Err(VolumeError::Unreadable { path: left.path().device(), why });
            }
            self.delete(left).await?;
        }
        let key = self.key_for_new(new.id).await?;
        let layout = Layout { file_system: self.config.file_system, key: key.as_ref().map(|key| key.number) };
        self.lvm
            .create_thin_volume(&NewThinVolume {
                pool: self.path(self.config.pool.clone()),
                name: unfinished.clone(),
                size: layout.with_overhead(self.size_of(new, &pool)),
                tags: tags::written(new, WallTime::now(), layout),
            })
            .await?;
        let made = self.path(unfinished);
        let device = match &key {
            None => made.device(),
            Some(key) => self.make_encrypted(&made.device(), new.id, key).await?,
        };
        let kind = layout.file_system;
        filesystem::make(kind, &device).await?;
        // At a place of its own: the name of its device goes with the renaming, and so does, on some hosts, what is mounted by it.
        let (place, owner) = (self.scratch(new.id), new.owner);
        blocking(move || prepare(kind, &device, &place, owner)).await?;
        self.lvm.rename(&made, &final_name).await?;
        let held = self.lvm.volume(&self.path(final_name)).await?;
        let held = held.ok_or_else(|| unusable(new.id, "LVM does not list it though it was made just now"))?;
        let (volume, layout) = self.read(&held, new.id)?;
        self.ensure_mounted(&held, &volume, layout).await?;
        Ok(Creation::Made(volume))
    }

    pub(super) async fn refuses(&self, new: &NewVolume, pool: &Pool) -> Result<Option<Refusal>, VolumeError> {
        let path = self.pool_path();
        if pool.health != Health::Fine && pool.health != Health::OutOfData {
            return Ok(Some(Refusal::PoolUnwell { pool: path, why: pool.health.to_string() }));
        }
        let used = pool.data_used.max(pool.metadata_used);
        if used >= ADMISSION_LIMIT {
            return Ok(Some(Refusal::PoolNearlyFull { pool: path, used, limit: ADMISSION_LIMIT }));
        }
        let (kind, size) = (self.config.file_system, self.size_of(new, pool));
        if size < kind.least() {
            return Ok(Some(Refusal::TooSmall { size, least: kind.least(), file_system: kind.as_str() }));
        }
        if size > pool.size {
            return Ok(Some(Refusal::TooFull {
                pool: path,
                free: Bytes(pool.size.0.saturating_sub(pool.data_used.of(pool.size).0)),
                needed: size,
            }));
        }
        let (mounts, owner) = (self.config.mounts.clone(), new.owner);
        let blocked =
            blocking(move || folder::blocked_at(&mounts, owner).map_err(VolumeError::io("look above", mounts)));
        Ok(blocked.await?.map(|blocked_at| Refusal::OwnerLockedOut {
            pool: self.config.mounts.clone(),
            uid: new.owner.uid,
            blocked_at,
        }))
    }
}

/// The owner's folder in a new file system, on disk before the volume has its name.
fn prepare(kind: FileSystemKind, device: &Path, place: &Path, owner: Owner) -> Result<(), VolumeError> {
    make_folder(place)?;
    filesystem::mount_at(kind, device, place)?;
    let made = make_data(&place.join(DATA), owner);
    filesystem::unmount_from(place)?;
    filesystem::remove_folder(place)?;
    made
}

fn make_data(data: &Path, owner: Owner) -> Result<(), VolumeError> {
    make_folder(data)?;
    // Set, not asked for at creation: the umask must not have a say.
    fs::set_permissions(data, Permissions::from_mode(0o700)).map_err(VolumeError::io("set the mode of", data))?;
    chown(data, Some(owner.uid), Some(owner.gid))
        .map_err(VolumeError::io("give to the user of Postgres the folder", data))?;
    let above = data.parent().unwrap_or(data);
    for folder in [data, above] {
        File::open(folder).and_then(|file| file.sync_all()).map_err(VolumeError::io("sync", folder))?;
    }
    Ok(())
}
