//! Volumes that are encrypted: the device that is mounted is a mapping by dm-crypt, of the volume's name, on the logical volume. Whether it
//! is there, and on what, is asked of the kernel: a daemon that died leaves it open, and it is used again.

use super::keys::{Key, KeyFolder};
use super::tags::{self, Layout};
use super::{Inner, LvmPoolError, blocking, filesystem, luks, unusable};
use crate::driver::VolumeError;
use pgstead_lvm::{LogicalVolume, program};
use pgstead_types::{Bytes, VolumeId};
use std::fs::File;
use std::path::{Path, PathBuf};

/// What is mounted of a volume.
pub(super) struct Attached {
    pub device: PathBuf,
    pub number: (u32, u32),
}

impl Layout {
    /// What of the logical volume is not for the file system.
    pub fn overhead(self) -> Bytes {
        if self.key.is_some() { luks::HEADER } else { Bytes(0) }
    }
    /// How large a logical volume has to be for so much.
    pub fn with_overhead(self, size: Bytes) -> Bytes {
        Bytes(size.0.saturating_add(self.overhead().0))
    }
}

impl Inner {
    /// Makes the first key of a pool that encrypts and holds nothing yet that is: to what there is, a new key would be a wrong one.
    pub async fn open_keys(&self) -> Result<(), LvmPoolError> {
        let keys = self.keys().all()?;
        if !self.config.encrypts {
            return Ok(());
        }
        if program::find(luks::PROGRAM).is_none() {
            return Err(LvmPoolError::NoCryptsetup);
        }
        if !keys.is_empty() {
            return Ok(());
        }
        let all = self.lvm.volumes(&self.config.group).await?;
        if all.iter().any(|held| !matches!(tags::read_encrypted(held), Ok(None | Some((_, Layout { key: None, .. })))))
        {
            tracing::error!(folder = %self.config.keys.display(), "the pool has encrypted volumes, and their keys are not there; put them back");
            return Ok(());
        }
        let made = self.keys().add()?;
        tracing::info!(key = %made.path.display(), "made the first key of a pool that encrypts; keep a copy of it elsewhere");
        Ok(())
    }

    pub fn keys(&self) -> KeyFolder {
        KeyFolder::new(&self.config.keys)
    }

    /// The one for a new volume, where those are encrypted.
    pub async fn key_for_new(&self, id: VolumeId) -> Result<Option<Key>, VolumeError> {
        if !self.config.encrypts {
            return Ok(None);
        }
        let newest = self.all_keys().await?.into_iter().next();
        let none = || {
            let folder = self.config.keys.display();
            unusable(
                id,
                format!(
                    "its pool encrypts new volumes, and there is no key in {folder}; put the pool's keys back there"
                ),
            )
        };
        newest.ok_or_else(none).map(Some)
    }

    pub async fn all_keys(&self) -> Result<Vec<Key>, VolumeError> {
        let keys = self.keys();
        blocking(move || Ok(keys.all()?)).await
    }

    /// Encrypts an unfinished volume, and opens it.
    pub async fn make_encrypted(&self, made: &Path, id: VolumeId, key: &Key) -> Result<PathBuf, VolumeError> {
        luks::format(made, key).await?;
        let name = luks::name(id);
        // Of a volume that had this id before, and was not this one.
        self.close_mapping(id).await?;
        if !luks::open(made, key, &name).await? {
            return Err(unusable(id, "the key that it was encrypted with just now does not open it"));
        }
        let mapping = luks::find(name).await?;
        mapping.map(|mapping| mapping.device).ok_or_else(|| not_listed(id))
    }

    /// The device to mount of an active volume; opened where it is encrypted and not open yet.
    pub async fn attach(&self, held: &LogicalVolume, id: VolumeId, layout: Layout) -> Result<Attached, VolumeError> {
        let number = held.device_number.ok_or_else(|| unusable(id, "it was activated and has no device"))?;
        let device = held.path().device();
        let Some(number_of_key) = layout.key else { return Ok(Attached { device, number }) };
        let name = luks::name(id);
        match luks::find(name.clone()).await? {
            Some(found) if found.below.len() == 1 && found.below.contains(&number) => {
                return Ok(Attached { device: found.device, number: found.number });
            }
            Some(_) => {
                tracing::warn!(volume = %id, mapping = %name, "what is open under the volume's name is on another device; closing it");
                luks::close(&name).await?;
            }
            None => {}
        }
        for key in self.keys_in_order(number_of_key).await? {
            if luks::open(&device, &key, &name).await? {
                let found = luks::find(name).await?.ok_or_else(|| not_listed(id))?;
                return Ok(Attached { device: found.device, number: found.number });
            }
        }
        Err(self.no_key(id, number_of_key))
    }

    pub fn no_key(&self, id: VolumeId, number: u32) -> VolumeError {
        let (folder, file) = (self.config.keys.display(), self.keys().file(number));
        let why = format!(
            "it is encrypted, and no key in {folder} opens it; expected {}, with the key that it was given; put that file back, for root \
             alone (mode 0600). Nothing of the volume was changed",
            file.display()
        );
        unusable(id, why)
    }

    /// The one that it was given first: it is the right one but while a key is being changed.
    async fn keys_in_order(&self, number: u32) -> Result<Vec<Key>, VolumeError> {
        let mut keys = self.all_keys().await?;
        keys.sort_by_key(|key| key.number != number);
        Ok(keys)
    }

    pub async fn close_mapping(&self, id: VolumeId) -> Result<(), VolumeError> {
        let name = luks::name(id);
        match luks::find(name.clone()).await? {
            Some(_) => luks::close(&name).await,
            None => Ok(()),
        }
    }

    /// Has the mapping take all of a volume that has grown.
    pub async fn fill_volume(
        &self,
        held: &LogicalVolume,
        attached: &Path,
        id: VolumeId,
        layout: Layout,
    ) -> Result<(), VolumeError> {
        let Some(number) = layout.key else { return Ok(()) };
        let (below, above) = (held.path().device(), attached.to_path_buf());
        let fills = blocking(move || {
            let (below, above) = (filesystem::device_size(&below)?, filesystem::device_size(&above)?);
            Ok(layout.with_overhead(above) >= below)
        });
        if fills.await? {
            return Ok(());
        }
        let name = luks::name(id);
        for key in self.keys_in_order(number).await? {
            if luks::resize(&name, &key).await? {
                return Ok(());
            }
        }
        Err(self.no_key(id, number))
    }

    /// LVM has the file system write what it holds before a snapshot, but it does not see one above a mapping.
    pub async fn sync_mounted(&self, id: VolumeId, layout: Layout) -> Result<(), VolumeError> {
        if layout.key.is_none() {
            return Ok(());
        }
        let place = self.mount_point(id);
        blocking(move || {
            if !filesystem::mounts()?.iter().any(|mounted| mounted.at == place) {
                return Ok(());
            }
            let folder = File::open(&place).map_err(VolumeError::io("open", &place))?;
            rustix::fs::syncfs(folder).map_err(|errno| VolumeError::io("sync", &place)(errno.into()))
        })
        .await
    }
}

fn not_listed(id: VolumeId) -> VolumeError {
    unusable(id, "it was opened with its key, and the kernel does not list it")
}
