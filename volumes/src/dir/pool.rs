//! One directory as a pool: its checks, and the calls that change it. Everything here blocks; `dir` moves it off the
//! runtime. One process at a time works in a pool, which its lock sees to.

use super::DirConfig;
use super::delete::{self, Progress};
use super::layout::{self, DATA, Unreadable, sync_folder, trash_name, unfinished_name, volume_name};
use crate::driver::{
    Creation, Inventory, NewVolume, Owner, Refusal, Stray, StrayKind, Usage, Volume, VolumeError, VolumeTags,
};
use crate::entry::Entry;
use crate::folder;
use pgstead_types::storage::PoolState;
use pgstead_types::{Bytes, VolumeId, WallTime};
use rustix::fs::statvfs;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A directory that cannot serve as a pool. The text is for the person who configured it.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error("the pool path {} is not absolute; expected one that begins with /", path.display())]
    NotAbsolute { path: PathBuf },
    #[error("the pool {} is not a directory; choose another path", path.display())]
    NotADirectory { path: PathBuf },
    #[error("the pool {} is not there and cannot be made; make it, or choose another path", path.display())]
    NotMade {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the pool {} cannot be written to; expected a directory that this user may write", path.display())]
    NotWritable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("every user may write to the pool {}; run chmod o-w on it, or choose another path", path.display())]
    WorldWritable { path: PathBuf },
    #[error("another process already works in the pool {}; expected one pool per node", path.display())]
    InUse { path: PathBuf },
    #[error("the pool {} could not be cleared of an unfinished volume", path.display())]
    NotCleared {
        path: PathBuf,
        #[source]
        source: Box<VolumeError>,
    },
}

#[derive(Debug)]
pub struct Pool {
    path: PathBuf,
    free_min: Bytes,
    /// The open directory, with an exclusive lock that ends with the process.
    _lock: File,
    /// Held while names change. Deleting what is already set aside needs none.
    names: Mutex<()>,
}

/// A volume, taken out of the inventory.
pub enum Taken {
    /// The folders of it that are set aside, this and earlier ones.
    Trash(Vec<String>),
    Refused(Refusal),
}

impl Pool {
    pub fn open(config: DirConfig) -> Result<Self, PoolError> {
        let path = config.path;
        if !path.is_absolute() {
            return Err(PoolError::NotAbsolute { path });
        }
        let found = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&path)
                .and_then(|()| fs::metadata(&path))
                .map_err(|source| PoolError::NotMade { path: path.clone(), source })?,
            Err(source) => return Err(PoolError::NotMade { path, source }),
            Ok(found) => found,
        };
        if !found.is_dir() {
            return Err(PoolError::NotADirectory { path });
        }
        if found.mode() & 0o002 != 0 {
            return Err(PoolError::WorldWritable { path });
        }
        let lock = lock(&path)?;
        probe_writing(&path).map_err(|source| PoolError::NotWritable { path: path.clone(), source })?;
        let pool = Self { path, free_min: config.free_min, _lock: lock, names: Mutex::new(()) };
        pool.clear_unfinished()
            .and_then(|()| pool.clear_snapshots())
            .map_err(|source| PoolError::NotCleared { path: pool.path.clone(), source: Box::new(source) })?;
        Ok(pool)
    }

    pub fn create(&self, new: &NewVolume) -> Result<Creation, VolumeError> {
        let _names = self.lock_names();
        if let Some(volume) = self.find(new.id)? {
            if volume.tags == new.tags {
                return Ok(Creation::AlreadyThere(volume));
            }
            return Ok(Creation::Refused(Refusal::other_tags(new.id, volume.tags, new.tags)));
        }
        if let Some(refusal) = self.refuses(new)? {
            return Ok(Creation::Refused(refusal));
        }
        let created = WallTime::now();
        self.begin(new, created)?;
        let path = self.path.join(volume_name(new.id));
        self.give_name(&self.path.join(unfinished_name(new.id)), &path)?;
        Ok(Creation::Made(Volume {
            id: new.id,
            tags: new.tags,
            size: new.size,
            owner: new.owner,
            created,
            path: path.join(DATA),
        }))
    }

    /// A volume without its name yet; where its data belongs.
    pub(super) fn begin(&self, new: &NewVolume, created: WallTime) -> Result<PathBuf, VolumeError> {
        let unfinished = unfinished_name(new.id);
        self.delete_whole(&unfinished)?;
        let folder = self.path.join(&unfinished);
        let data = make_place(&folder, new.owner)?;
        layout::write_tags(&folder, new, created)?;
        Ok(data)
    }

    pub(super) fn give_name(&self, unfinished: &Path, path: &Path) -> Result<(), VolumeError> {
        fs::set_permissions(unfinished, Permissions::from_mode(0o755))
            .map_err(VolumeError::io("set the mode of", unfinished))?;
        sync_folder(&unfinished.join(DATA))?;
        sync_folder(unfinished)?;
        fs::rename(unfinished, path).map_err(VolumeError::io("rename to its final name", unfinished))?;
        sync_folder(&self.path) // Only now may anyone rely on it.
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// `None` when there is no such name; an error when there is one that is not readable as a volume.
    pub fn find(&self, id: VolumeId) -> Result<Option<Volume>, VolumeError> {
        let folder = self.path.join(volume_name(id));
        match fs::symlink_metadata(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(VolumeError::io("look at", folder)(source)),
            Ok(_) => {}
        }
        match layout::read_volume(&folder, id) {
            Ok(volume) => Ok(Some(volume)),
            Err(Unreadable(why)) => Err(VolumeError::Unreadable { path: folder, why }),
        }
    }

    pub fn list(&self) -> Result<Inventory, VolumeError> {
        let mut inventory = Inventory::default();
        for (name, entry) in self.entries()? {
            let path = self.path.join(name);
            let (id, kind) = match entry {
                Entry::Volume(id) => match layout::read_volume(&path, id) {
                    Ok(volume) => {
                        inventory.volumes.push(volume);
                        continue;
                    }
                    Err(Unreadable(why)) => (id, StrayKind::Unreadable { why }),
                },
                Entry::Unfinished(id) => (id, StrayKind::Unfinished),
                Entry::Trash(id) => {
                    let tags = layout::read_tags(&path, id).ok().map(|volume| volume.tags);
                    (id, StrayKind::SetAside { tags })
                }
            };
            inventory.strays.push(Stray { id, path, kind });
        }
        inventory.volumes.sort_by_key(|volume| volume.id);
        inventory.strays.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(inventory)
    }

    /// Renames the volume out of the inventory, if it is there, and names all that is set aside of it.
    pub fn set_aside(&self, id: VolumeId, tags: &VolumeTags) -> Result<Taken, VolumeError> {
        let _names = self.lock_names();
        // A copy that was to become this volume.
        self.delete_whole(&unfinished_name(id))?;
        if let Some(volume) = self.find(id)? {
            if volume.tags != *tags {
                return Ok(Taken::Refused(Refusal::other_tags(id, volume.tags, *tags)));
            }
            let from = self.path.join(volume_name(id));
            let to = (1..).map(|number| self.path.join(trash_name(id, number))).find(|path| !path.exists());
            let to = to.expect("numbers do not run out before disks do");
            fs::rename(&from, to).map_err(VolumeError::io("set aside", &from))?;
            sync_folder(&self.path)?; // Before the first byte is deleted: a half-deleted volume must never be listed.
        }
        let mut trash = Vec::new();
        for (name, entry) in self.entries()? {
            if entry != Entry::Trash(id) {
                continue;
            }
            let folder = self.path.join(&name);
            match layout::read_tags(&folder, id) {
                Ok(volume) if volume.tags == *tags => {}
                Ok(volume) => return Ok(Taken::Refused(Refusal::other_tags(id, volume.tags, *tags))),
                // The tags go last: without data, a deletion was cut short at its very end.
                Err(_) if !folder.join(DATA).exists() => {}
                Err(Unreadable(why)) => return Err(VolumeError::Unreadable { path: folder, why }),
            }
            trash.push(name);
        }
        Ok(Taken::Trash(trash))
    }

    pub fn delete_some(&self, name: &str, entries: usize) -> Result<Progress, VolumeError> {
        delete::delete_some(&self.path, name, DATA, entries)
    }

    pub fn usage(&self) -> Result<Usage, VolumeError> {
        let found = statvfs(&self.path).map_err(|errno| VolumeError::io("measure", &self.path)(errno.into()))?;
        let bytes = |blocks: u64| Bytes(blocks.saturating_mul(found.f_frsize));
        let (free, least) = (bytes(found.f_bavail), self.free_min);
        let said = || format!("{free} are free, expected at least {least}");
        let state = match free {
            free if free >= least => PoolState::Fine,
            free if free.0 >= least.0 / 4 => PoolState::NearlyFull { why: said() },
            free if free.0 >= least.0 / 16 => PoolState::Full { why: said() },
            _ => PoolState::Brimming { why: said() },
        };
        Ok(Usage {
            total: bytes(found.f_blocks),
            used: bytes(found.f_blocks.saturating_sub(found.f_bfree)),
            free,
            metadata_used: None,
            ballast: super::ballast::size(&self.path),
            state,
        })
    }

    pub(super) fn refuses(&self, new: &NewVolume) -> Result<Option<Refusal>, VolumeError> {
        let free = self.usage()?.free;
        let needed = Bytes(self.free_min.0.saturating_add(new.size.unwrap_or_default().0));
        if free < needed {
            return Ok(Some(Refusal::TooFull { pool: self.path.clone(), free, needed }));
        }
        let blocked = folder::blocked_at(&self.path, new.owner).map_err(VolumeError::io("look above", &self.path))?;
        Ok(blocked.map(|blocked_at| Refusal::OwnerLockedOut {
            pool: self.path.clone(),
            uid: new.owner.uid,
            blocked_at,
        }))
    }

    /// An unfinished volume never held data: its name changes before anyone is told of it.
    fn clear_unfinished(&self) -> Result<(), VolumeError> {
        for (name, entry) in self.entries()? {
            if let Entry::Unfinished(id) = entry {
                tracing::info!(volume = %id, pool = %self.path.display(), "cleared an unfinished volume");
                self.delete_whole(&name)?;
            }
        }
        Ok(())
    }

    pub(super) fn delete_whole(&self, name: &str) -> Result<(), VolumeError> {
        while self.delete_some(name, 1000)? == Progress::MoreLeft {}
        Ok(())
    }

    fn entries(&self) -> Result<Vec<(String, Entry)>, VolumeError> {
        let names = self.names()?.into_iter();
        Ok(names.filter_map(|name| layout::entry(&name).map(|entry| (name, entry))).collect())
    }

    pub(super) fn names(&self) -> Result<Vec<String>, VolumeError> {
        let fail = || VolumeError::io("list", &self.path);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(fail())? {
            names.extend(entry.map_err(fail())?.file_name().into_string());
        }
        Ok(names)
    }

    pub(super) fn lock_names(&self) -> MutexGuard<'_, ()> {
        // It guards names on disk, not memory: a panic elsewhere leaves nothing broken behind it.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(path: &Path) -> Result<File, PoolError> {
    match folder::lock(path) {
        Ok(Some(file)) => Ok(file),
        Ok(None) => Err(PoolError::InUse { path: path.into() }),
        Err(source) => Err(PoolError::NotWritable { path: path.into(), source }),
    }
}

/// Permissions alone do not tell: root passes them all, and a file system may be mounted read-only or out of inodes.
fn probe_writing(pool: &Path) -> io::Result<()> {
    let probe = pool.join(".probe");
    fs::write(&probe, "pgstead")?;
    fs::remove_file(&probe)
}

fn make_folder(path: &Path, mode: u32) -> Result<(), VolumeError> {
    fs::create_dir(path).map_err(VolumeError::io("make", path))?;
    // Set, not asked for at creation: the umask must not have a say.
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(VolumeError::io("set the mode of", path))
}

/// A folder with an empty one for data in it, which is the owner's.
pub(super) fn make_place(folder: &Path, owner: Owner) -> Result<PathBuf, VolumeError> {
    // Nobody else gets in until it is whole: what is copied into it is copied by root.
    make_folder(folder, 0o700)?;
    let data = folder.join(DATA);
    make_folder(&data, 0o700)?;
    chown(&data, Some(owner.uid), Some(owner.gid))
        .map_err(VolumeError::io("give to the user of Postgres the folder", &data))?;
    Ok(data)
}
