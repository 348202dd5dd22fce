//! A copy of a data folder beside it, made before something rewrites the folder in place.

use super::basebackup::CloneProgress;
use super::{Instance, InstanceError};
use crate::files;
use pgstead_types::Bytes;
use rustix::fs::{StatVfs, statvfs};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

/// What must stay free on the file system beside a copy, since Postgres goes on writing meanwhile: so many hundredths of it, and
/// never more than that many bytes.
const FREE_PERCENT: u64 = 10;
const FREE_BYTES_MAX: u64 = 4 << 30;

/// Whether there is a copy now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SafetyCopy {
    /// Of so many bytes; none of them were written where the file system shares blocks.
    Made { bytes: u64, shared: bool },
    /// An earlier one of the same data, or the data has been made anew since.
    AlreadyThere,
    /// It would have left the file system too full, so there is none.
    NoRoom { needed: u64, free: u64 },
}

/// Stops a copy whose caller has gone.
struct StopWhenDropped(Arc<AtomicBool>);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Instance {
    /// Where data is kept that something else takes the place of: beside the data folder, on its volume.
    pub fn kept_data(&self) -> PathBuf {
        self.config().beside_data("previous")
    }

    /// Copies the complete data of an earlier incarnation to [`Self::kept_data`], unless that is there already. Postgres must be
    /// down. A copy that was cut short is not there, and is begun anew. `pool_free`: what the storage below can still take, which
    /// may be less than its file system says.
    pub async fn copy_aside(&self, pool_free: Bytes, progress: CloneProgress<'_>) -> Result<SafetyCopy, InstanceError> {
        let config = self.config();
        let identity = self.present_data().await?;
        if identity.incarnation == config.incarnation {
            return Ok(SafetyCopy::AlreadyThere);
        }
        self.must_be_down().await?;
        self.end_strays().await?;
        let (from, to) = (config.data_dir.clone(), self.kept_data());
        // Whose copy it is, beside it, so that nothing in the copy is ours.
        let label = config.beside_data("previous-identity");
        if to.exists() && files::read_json(&label).ok().flatten().as_ref() == Some(&identity) {
            return Ok(SafetyCopy::AlreadyThere);
        }
        let unfinished = config.beside_data("previous-unfinished");
        let stop = StopWhenDropped(Arc::default());
        let percent = Arc::new(AtomicU8::new(0));
        let (stopped, done) = (stop.0.clone(), percent.clone());
        let error = InstanceError::file("make a safety copy of", &from);
        let mut copying = tokio::task::spawn_blocking(move || {
            for old in [&unfinished, &to] {
                remove_folder(old)?;
            }
            files::remove(&label)?;
            let copy = Copy {
                stopped: &stopped,
                percent: &done,
                shares: shares_blocks(&from, &unfinished)?,
                ..Copy::of(&from)?
            };
            if let Some(no_room) = copy.no_room(&from, pool_free)? {
                remove_folder(&unfinished)?;
                return Ok(no_room);
            }
            let made = copy.run(&from, &unfinished);
            if let Err(error) = made {
                // What is left of it would take the room that is missing.
                remove_folder(&unfinished)?;
                return Err(error);
            }
            fs::rename(&unfinished, &to)?;
            files::replace_json(&label, &identity, config.owner(), files::Survives::PowerLoss)?;
            files::sync_parent(&to)?;
            Ok(SafetyCopy::Made { bytes: copy.bytes, shared: copy.shares })
        });
        let mut look = tokio::time::interval(Duration::from_millis(500));
        let made = loop {
            tokio::select! {
                made = &mut copying => break made,
                _ = look.tick() => progress(percent.load(Ordering::Relaxed)),
            }
        };
        drop(stop);
        made.map_err(io::Error::other).and_then(|made| made).map_err(error)
    }

    /// Removes what is kept, if there is anything.
    pub async fn discard_kept_data(&self) -> Result<(), InstanceError> {
        let config = self.config();
        let kept = self.kept_data();
        super::on_disk("remove", &kept.clone(), move || {
            for folder in [kept, config.beside_data("previous-unfinished")] {
                remove_folder(&folder)?;
            }
            files::remove(&config.beside_data("previous-identity")).map(drop)
        })
        .await
    }
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Tries it with a file that every data folder has. Makes `to`.
fn shares_blocks(from: &Path, to: &Path) -> io::Result<bool> {
    fs::create_dir(to)?;
    let probe = to.join("probe");
    let shared = share(&from.join("global/pg_control"), &probe)?;
    files::remove(&probe)?;
    Ok(shared)
}

/// Whether `to` is now a copy of `from` that shares its blocks; the file is there in any case.
fn share(from: &Path, to: &Path) -> io::Result<bool> {
    let (from, to) = (File::open(from)?, File::create(to)?);
    Ok(rustix::fs::ioctl_ficlone(&to, &from).is_ok())
}

/// One copy of a folder.
struct Copy<'a> {
    stopped: &'a AtomicBool,
    percent: &'a AtomicU8,
    shares: bool,
    bytes: u64,
}

static NEVER: AtomicBool = AtomicBool::new(false);
static NOBODY: AtomicU8 = AtomicU8::new(0);

impl Copy<'_> {
    fn of(from: &Path) -> io::Result<Self> {
        let mut bytes = 0;
        walk(from, &mut |_, metadata| {
            bytes += if metadata.is_file() { metadata.blocks() * 512 } else { 0 };
            Ok(())
        })?;
        Ok(Self { stopped: &NEVER, percent: &NOBODY, shares: false, bytes })
    }

    fn no_room(&self, from: &Path, pool_free: Bytes) -> io::Result<Option<SafetyCopy>> {
        let StatVfs { f_frsize, f_bavail, f_blocks, .. } = statvfs(from)?;
        Ok(self.no_room_in((f_bavail * f_frsize).min(pool_free.0), f_blocks * f_frsize))
    }
    fn no_room_in(&self, available: u64, all: u64) -> Option<SafetyCopy> {
        let free = available.saturating_sub((all / 100 * FREE_PERCENT).min(FREE_BYTES_MAX));
        let needed = self.bytes;
        (!self.shares && needed > free).then_some(SafetyCopy::NoRoom { needed, free })
    }

    /// Everything is on disk when it returns.
    fn run(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut copied = 0;
        let mut folders = Vec::new();
        walk(from, &mut |path, metadata| {
            if self.stopped.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "nobody waits for it any more"));
            }
            let target = to.join(path.strip_prefix(from).map_err(io::Error::other)?);
            if metadata.is_symlink() {
                symlink(fs::read_link(path)?, &target)?;
                return lchown(&target, Some(metadata.uid()), Some(metadata.gid()));
            }
            if metadata.is_dir() {
                // The outermost is there already.
                match fs::create_dir(&target) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => folders.push(target.clone()),
                }
            } else if metadata.is_file() {
                if !(self.shares && share(path, &target)?) {
                    fs::copy(path, &target)?;
                }
                File::open(&target)?.sync_all()?;
                copied += metadata.blocks() * 512;
                let percent = copied.saturating_mul(100) / self.bytes.max(1);
                self.percent.store(percent.min(99) as u8, Ordering::Relaxed);
            } else {
                // Sockets and pipes are nobody's data.
                return Ok(());
            }
            fs::set_permissions(&target, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
            chown(&target, Some(metadata.uid()), Some(metadata.gid()))
        })?;
        folders.iter().try_for_each(|folder| File::open(folder)?.sync_all())
    }
}

/// A folder and all below it, each folder before what is in it; links are not followed.
fn walk(folder: &Path, visit: &mut impl FnMut(&Path, &Metadata) -> io::Result<()>) -> io::Result<()> {
    let mut open = vec![folder.to_path_buf()];
    while let Some(path) = open.pop() {
        let metadata = fs::symlink_metadata(&path)?;
        visit(&path, &metadata)?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_every_file_link_and_mode() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("data"), place.path().join("copy"));
        fs::create_dir_all(from.join("base/5")).unwrap();
        fs::write(from.join("base/5/16384"), vec![7; 20_000]).unwrap();
        fs::write(from.join("secret"), b"x").unwrap();
        fs::set_permissions(from.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(from.join("base"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink("/elsewhere", from.join("pg_wal")).unwrap();
        fs::create_dir(&to).unwrap();
        let copy = Copy::of(&from).unwrap();
        assert!(copy.bytes >= 20_000);
        copy.run(&from, &to).unwrap();
        assert_eq!(fs::read(to.join("base/5/16384")).unwrap(), vec![7; 20_000]);
        assert_eq!(fs::metadata(to.join("secret")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(to.join("base")).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::read_link(to.join("pg_wal")).unwrap(), Path::new("/elsewhere"));
    }

    #[test]
    fn a_copy_that_does_not_fit_is_not_begun() {
        let place = tempfile::tempdir().unwrap();
        let of = |bytes, shares| Copy { bytes, shares, ..Copy::of(place.path()).unwrap() };
        let gib = 1 << 30;
        assert_eq!(of(2 * gib, false).no_room_in(12 * gib, 90 * gib), None);
        let refused = Some(SafetyCopy::NoRoom { needed: 9 * gib, free: 8 * gib });
        assert_eq!(of(9 * gib, false).no_room_in(12 * gib, 90 * gib), refused);
        assert_eq!(of(9 * gib, true).no_room_in(12 * gib, 90 * gib), None, "it takes no room");
        assert_eq!(
            of(gib, false).no_room_in(gib, 8 * gib),
            Some(SafetyCopy::NoRoom { needed: gib, free: gib - 8 * gib / 100 * 10 })
        );
        let huge = of(u64::MAX / 4, false);
        assert!(matches!(huge.no_room(place.path(), Bytes(u64::MAX)).unwrap(), Some(SafetyCopy::NoRoom { .. })));
        let small = of(1 << 20, false).no_room(place.path(), Bytes(1 << 20)).unwrap();
        assert!(
            matches!(small, Some(SafetyCopy::NoRoom { .. })),
            "the pool has less than the file system says: {small:?}"
        );
    }

    #[test]
    fn a_copy_stops_when_nobody_waits() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("data"), place.path().join("copy"));
        fs::create_dir_all(&from).unwrap();
        fs::create_dir(&to).unwrap();
        let stopped = AtomicBool::new(true);
        let copy = Copy { stopped: &stopped, ..Copy::of(&from).unwrap() };
        assert_eq!(copy.run(&from, &to).unwrap_err().kind(), io::ErrorKind::Interrupted);
    }
}
