//! Volumes are mounted where their pool says, once, and only by what is seen to be theirs: the kernel's list of mounts is believed, and a
//! file system that has stopped after an error is checked and mounted anew as soon as nothing uses it.

use super::encryption::Attached;
use super::filesystem::{self, Check, FileSystemKind};
use super::tags::Layout;
use super::{Inner, blocking, luks, make_folder, unusable};
use crate::driver::{Volume, VolumeError};
use pgstead_lvm::{Health, LogicalVolume};
use pgstead_types::{Bytes, Tick, VolumeId};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

/// udev reads a device when whoever wrote to it closes it.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
const CLOSE_RETRY: Duration = Duration::from_millis(50);
/// A file system that works answers at once, and one with much to write soon.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);

impl Inner {
    /// The device that is mounted.
    pub async fn ensure_mounted(
        &self,
        held: &LogicalVolume,
        volume: &Volume,
        layout: Layout,
    ) -> Result<PathBuf, VolumeError> {
        match &held.health {
            Health::Fine | Health::OutOfData => {}
            unwell => return Err(unusable(volume.id, unwell.to_string())),
        }
        let held = match held.device_number {
            Some(_) => held.clone(),
            None => {
                self.lvm.activate(&held.path()).await?;
                let active = self.lvm.volume(&held.path()).await?;
                active.ok_or_else(|| unusable(volume.id, "it went away while it was activated"))?
            }
        };
        let attached = self.attach(&held, volume.id, layout).await?;
        let (Attached { device, number }, kind) = (&attached, layout.file_system);
        let place = self.mount_point(volume.id);
        let mounted = match is_mounted(device, *number, &place)? {
            Some(MountedAs::Writable) if self.has_stopped(volume.id).await? => Some(MountedAs::Stopped),
            // Nobody uses it: the daemon that checked it was ended before it could say that it may be used.
            Some(MountedAs::Writable) if kind == FileSystemKind::Xfs && self.is_unchecked(volume.id) => {
                let place = place.clone();
                blocking(move || filesystem::unmount_from(&place)).await?;
                None
            }
            found => found,
        };
        let gave_up = matches!(mounted, Some(MountedAs::Stopped));
        match mounted {
            Some(MountedAs::Writable) => {
                self.ensure_grown(&held, device, volume.id, layout).await;
                return Ok(attached.device);
            }
            // After an error, which may be over: it is checked and mounted again as soon as nothing uses it.
            Some(MountedAs::Stopped) => {
                let said = "its file system takes no writes since an error";
                let pool = self.pool().await?;
                if pool.free() == Bytes(0) {
                    return Err(unusable(volume.id, format!("{said}, and its pool has no room to mend it")));
                }
                let place = place.clone();
                if let Err(error) = blocking(move || filesystem::unmount_from(&place)).await {
                    return Err(unusable(volume.id, format!("{said}, and is in use ({error})")));
                }
                tracing::warn!(volume = %volume.id, "a file system has stopped after an error; checking it and mounting it anew");
            }
            None => {}
        }
        self.await_closed(volume.id, &held, layout, device).await?;
        match kind {
            FileSystemKind::Ext4 => filesystem::check(kind, device, Check::IfDirty).await?,
            FileSystemKind::Xfs => self.ensure_replayed(volume.id, device, gave_up).await?,
        }
        if let Err(error) = mount(kind, device, &place).await {
            // It may be damaged though it says that it is not.
            filesystem::check(kind, device, Check::Whole).await?;
            tracing::warn!(volume = %volume.id, %error, "a volume could not be mounted at first; trying again");
            mount(kind, device, &place).await?;
        }
        tracing::info!(volume = %volume.id, at = %volume.path.display(), "mounted a volume");
        self.ensure_grown(&held, device, volume.id, layout).await;
        Ok(attached.device)
    }

    /// One that does not answer is taken for one that works: xfs waits for room in a full pool, and goes on when there is some. While it
    /// does not, nobody else asks: a thread of the process waits with each question.
    async fn has_stopped(&self, id: VolumeId) -> Result<bool, VolumeError> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(asked) = asked.filter(|asked| !asked.is_finished()) {
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(id, asked);
            return Ok(false);
        }
        let place = self.mount_point(id);
        let mut asked = tokio::task::spawn_blocking(move || filesystem::has_stopped(&place));
        match tokio::time::timeout(PROBE_PATIENCE, &mut asked).await {
            Ok(answer) => answer.map_err(VolumeError::Stopped)?,
            Err(_) => {
                tracing::warn!(volume = %id, waited = ?PROBE_PATIENCE, "a file system does not answer; its device may be suspended (`dmsetup info`), or hang");
                self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(id, asked);
                Ok(false)
            }
        }
    }

    /// A device that is open and mounted nowhere that this process sees is another's: what looks at new devices on this host is done in
    /// a moment, and a mount of another namespace is not.
    async fn await_closed(
        &self,
        id: VolumeId,
        held: &LogicalVolume,
        layout: Layout,
        device: &Path,
    ) -> Result<(), VolumeError> {
        let begun = Tick::now();
        // What is encrypted has its logical volume open as long as it is open itself, and is seen in use by who has claimed it.
        let is_claimed = || luks::is_claimed(device);
        let mut open = if layout.key.is_some() { is_claimed()? } else { held.open };
        while open {
            if Tick::now().since(begun) > CLOSE_PATIENCE {
                let why = "its device is in use, and it is not mounted where this process sees it; expected nobody else to use it";
                return Err(unusable(id, why));
            }
            tokio::time::sleep(CLOSE_RETRY).await;
            open = match layout.key {
                Some(_) => is_claimed()?,
                None => self.lvm.volume(&held.path()).await?.is_some_and(|held| held.open),
            };
        }
        Ok(())
    }

    pub async fn ensure_unmounted(&self, id: VolumeId, held: &LogicalVolume) -> Result<(), VolumeError> {
        for place in [self.scratch(id), self.mount_point(id)] {
            blocking(move || {
                filesystem::unmount_from(&place)?;
                filesystem::remove_folder(&place)
            })
            .await?;
        }
        self.close_mapping(id).await?;
        self.forget_unchecked(id)?;
        if held.active {
            self.lvm.deactivate(&held.path()).await?;
        }
        Ok(())
    }
}

pub(super) async fn mount(kind: FileSystemKind, device: &Path, place: &Path) -> Result<(), VolumeError> {
    let (device, place) = (device.to_path_buf(), place.to_path_buf());
    blocking(move || {
        make_folder(&place)?;
        filesystem::mount_at(kind, &device, &place)
    })
    .await
}

/// Whether the device is what is mounted there. It may be mounted nowhere else, and nothing else may be mounted there.
fn is_mounted(device: &Path, number: (u32, u32), place: &Path) -> Result<Option<MountedAs>, VolumeError> {
    let mounts = filesystem::mounts()?;
    let here = mounts.iter().rev().find(|mounted| mounted.at == place);
    match here {
        Some(mounted) if mounted.device_number == number => {
            return Ok(Some(if mounted.read_only { MountedAs::Stopped } else { MountedAs::Writable }));
        }
        Some(mounted) => {
            return Err(VolumeError::OtherMounted {
                path: place.into(),
                device: device.into(),
                found: mounted.source.clone(),
            });
        }
        None => {}
    }
    match mounts.into_iter().find(|mounted| mounted.device_number == number) {
        Some(mounted) => {
            Err(VolumeError::MountedElsewhere { device: device.into(), at: mounted.at, path: place.into() })
        }
        None => Ok(None),
    }
}

enum MountedAs {
    Writable,
    /// It answers reads alone, if those.
    Stopped,
}
