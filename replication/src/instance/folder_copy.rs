//! Copies of whole folders: sharing blocks where the file system can, with progress, and stopped when nobody waits for them.

use super::basebackup::CloneProgress;
use crate::files;
use pgstead_types::Bytes;
use rustix::fs::{StatVfs, statvfs};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

/// A copy looks at the room that is left whenever it has written so much.
const LOOK_BYTES: u64 = 64 << 20;
/// What must stay free on the file system beside a copy, since Postgres goes on writing meanwhile: so many hundredths of it, and
/// never more than that many bytes.
const FREE_PERCENT: u64 = 10;
const FREE_BYTES_MAX: u64 = 4 << 30;

/// Stops a copy whose caller has gone.
struct StopWhenDropped(Arc<AtomicBool>);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs a copy beside the runtime's own threads, and tells how far it is. Dropping the future stops it.
pub async fn with_progress<T: Send + 'static>(
    work: impl FnOnce(&AtomicBool, &AtomicU8) -> io::Result<T> + Send + 'static,
    progress: CloneProgress<'_>,
) -> io::Result<T> {
    let stop = StopWhenDropped(Arc::default());
    let percent = Arc::new(AtomicU8::new(0));
    let (stopped, done) = (stop.0.clone(), percent.clone());
    let mut copying = tokio::task::spawn_blocking(move || work(&stopped, &done));
    let mut look = tokio::time::interval(Duration::from_millis(500));
    let made = loop {
        tokio::select! {
            made = &mut copying => break made,
            _ = look.tick() => progress(percent.load(Ordering::Relaxed)),
        }
    };
    drop(stop);
    made.map_err(io::Error::other).and_then(|made| made)
}

/// Such a copy would leave too little.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom {
    pub needed: u64,
    pub free: u64,
}

/// What a copy does without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// Whatever is there is copied.
    Nothing,
    /// What a running Postgres has there for itself, by the Postgres manual on low-level base backups; and its log and its control
    /// file, which come last. Files may go while they are copied.
    OfRunning,
}

/// Folders whose content is of no use to another Postgres, or is copied apart.
const EMPTY: &[&str] =
    &["pg_wal", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"];
const LEFT_OUT: &[&str] =
    &["postmaster.pid", "postmaster.opts", "backup_label", "tablespace_map", "standby.signal", "global/pg_control"];

impl Left {
    fn leaves(self, within: &Path) -> bool {
        let Left::OfRunning = self else { return false };
        let name = within.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let temporary = name.starts_with("pgsql_tmp") || name.starts_with("pg_internal.init");
        let in_emptied = within.parent().and_then(Path::to_str).is_some_and(|folder| EMPTY.contains(&folder));
        temporary || in_emptied || within.to_str().is_some_and(|within| LEFT_OUT.contains(&within))
    }
    fn forgives(self, error: &io::Error) -> bool {
        self == Left::OfRunning && error.kind() == io::ErrorKind::NotFound
    }
}

/// Tries it with a file.
pub fn shares_blocks(file: &Path, to: &Path) -> io::Result<bool> {
    let probe = to.join("probe");
    let shared = share(file, &probe)?;
    files::remove(&probe)?;
    Ok(shared)
}

/// What the file has, into a new one; a link is not followed, whoever puts one there.
pub fn plain_copy(from: &Path, to: &Path) -> io::Result<()> {
    io::copy(&mut open_plain(from)?, &mut new_file(to)?).map(drop)
}

fn open_plain(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no plain file")),
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::options().write(true).create_new(true).open(path)
}

/// Whether `to` is now a copy of `from` that shares its blocks; the file is there in any case.
fn share(from: &Path, to: &Path) -> io::Result<bool> {
    let (from, to) = (open_plain(from)?, new_file(to)?);
    Ok(rustix::fs::ioctl_ficlone(&to, &from).is_ok())
}

/// One copy of a folder.
pub struct Copy<'a> {
    pub stopped: &'a AtomicBool,
    pub percent: &'a AtomicU8,
    pub shares: bool,
    pub bytes: u64,
    pub left: Left,
}

static NEVER: AtomicBool = AtomicBool::new(false);
static NOBODY: AtomicU8 = AtomicU8::new(0);

impl Copy<'_> {
    pub fn of(from: &Path, left: Left) -> io::Result<Self> {
        let mut bytes = 0;
        walk(from, left, &mut |_, metadata| {
            bytes += if metadata.is_file() { metadata.blocks() * 512 } else { 0 };
            Ok(())
        })?;
        Ok(Self { stopped: &NEVER, percent: &NOBODY, shares: false, bytes, left })
    }

    /// `pool_free`: what the storage below can still take, which may be less than its file system says.
    pub fn no_room(&self, from: &Path, pool_free: Bytes) -> io::Result<Option<NoRoom>> {
        let StatVfs { f_frsize, f_bavail, f_blocks, .. } = statvfs(from)?;
        Ok(self.no_room_in((f_bavail * f_frsize).min(pool_free.0), f_blocks * f_frsize))
    }
    fn no_room_in(&self, available: u64, all: u64) -> Option<NoRoom> {
        let free = available.saturating_sub((all / 100 * FREE_PERCENT).min(FREE_BYTES_MAX));
        let needed = self.bytes;
        (!self.shares && needed > free).then_some(NoRoom { needed, free })
    }

    /// Everything is on disk when it returns. `to` is there.
    pub fn run(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut copied = 0;
        let mut folders = Vec::new();
        walk(from, self.left, &mut |path, metadata| {
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
                match self.copy_file(path, &target) {
                    Err(error) if self.left.forgives(&error) => return Ok(()),
                    copied => copied?,
                }
                let before = copied;
                copied += metadata.blocks() * 512;
                if before / LOOK_BYTES != copied / LOOK_BYTES {
                    self.check_room(to)?;
                }
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

    fn copy_file(&self, path: &Path, target: &Path) -> io::Result<()> {
        if !(self.shares && share(path, target)?) {
            plain_copy(path, target)?;
        }
        File::open(target)?.sync_all()
    }

    /// Others write meanwhile, and what they need is not to be taken from them.
    fn check_room(&self, to: &Path) -> io::Result<()> {
        let StatVfs { f_frsize, f_bavail, f_blocks, .. } = statvfs(to)?;
        let least = (f_blocks * f_frsize / 100 * FREE_PERCENT).min(FREE_BYTES_MAX) / 2;
        match self.shares || f_bavail * f_frsize >= least {
            true => Ok(()),
            false => {
                Err(io::Error::new(io::ErrorKind::StorageFull, "there is less and less room; the copy is given up"))
            }
        }
    }
}

/// A folder and all below it, each folder before what is in it; links are not followed.
fn walk(folder: &Path, left: Left, visit: &mut impl FnMut(&Path, &Metadata) -> io::Result<()>) -> io::Result<()> {
    let mut open = vec![folder.to_path_buf()];
    while let Some(path) = open.pop() {
        if left.leaves(path.strip_prefix(folder).map_err(io::Error::other)?) {
            continue;
        }
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if left.forgives(&error) => continue,
            found => found?,
        };
        visit(&path, &metadata)?;
        if metadata.is_dir() {
            let entries = match fs::read_dir(&path) {
                Err(error) if left.forgives(&error) => continue,
                found => found?,
            };
            for entry in entries {
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
        let copy = Copy::of(&from, Left::Nothing).unwrap();
        assert!(copy.bytes >= 20_000);
        copy.run(&from, &to).unwrap();
        assert_eq!(fs::read(to.join("base/5/16384")).unwrap(), vec![7; 20_000]);
        assert_eq!(fs::metadata(to.join("secret")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(to.join("base")).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::read_link(to.join("pg_wal")).unwrap(), Path::new("/elsewhere"));
    }

    #[test]
    fn a_copy_of_what_runs_leaves_out_what_is_its_own() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("data"), place.path().join("copy"));
        for folder in ["base/5", "base/pgsql_tmp", "global", "pg_wal/archive_status", "pg_replslot/other"] {
            fs::create_dir_all(from.join(folder)).unwrap();
        }
        let files =
            ["PG_VERSION", "postmaster.pid", "global/pg_control", "global/1262", "pg_wal/000000010000000000000001"];
        for file in files.iter().chain(&["pg_replslot/other/state", "base/5/pg_internal.init", "base/5/1249"]) {
            fs::write(from.join(file), b"x").unwrap();
        }
        fs::create_dir(&to).unwrap();
        Copy::of(&from, Left::OfRunning).unwrap().run(&from, &to).unwrap();
        let there = |name: &str| to.join(name).exists();
        assert!(["PG_VERSION", "global/1262", "base/5/1249", "pg_wal", "pg_replslot"].into_iter().all(there));
        let left =
            ["postmaster.pid", "global/pg_control", "pg_wal/archive_status", "pg_replslot/other", "base/pgsql_tmp"];
        assert!(!left.into_iter().any(there));
        assert!(!there("base/5/pg_internal.init"));
    }

    #[test]
    fn a_copy_that_does_not_fit_is_not_begun() {
        let place = tempfile::tempdir().unwrap();
        let of = |bytes, shares| Copy { bytes, shares, ..Copy::of(place.path(), Left::Nothing).unwrap() };
        let gib = 1 << 30;
        assert_eq!(of(2 * gib, false).no_room_in(12 * gib, 90 * gib), None);
        let refused = Some(NoRoom { needed: 9 * gib, free: 8 * gib });
        assert_eq!(of(9 * gib, false).no_room_in(12 * gib, 90 * gib), refused);
        assert_eq!(of(9 * gib, true).no_room_in(12 * gib, 90 * gib), None, "it takes no room");
        assert_eq!(
            of(gib, false).no_room_in(gib, 8 * gib),
            Some(NoRoom { needed: gib, free: gib - 8 * gib / 100 * 10 })
        );
        let huge = of(u64::MAX / 4, false);
        assert!(matches!(huge.no_room(place.path(), Bytes(u64::MAX)).unwrap(), Some(NoRoom { .. })));
        let small = of(1 << 20, false).no_room(place.path(), Bytes(1 << 20)).unwrap();
        assert!(matches!(small, Some(NoRoom { .. })), "the pool has less than the file system says: {small:?}");
    }

    #[test]
    fn a_copy_stops_when_nobody_waits() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("data"), place.path().join("copy"));
        fs::create_dir_all(&from).unwrap();
        fs::create_dir(&to).unwrap();
        let stopped = AtomicBool::new(true);
        let copy = Copy { stopped: &stopped, ..Copy::of(&from, Left::Nothing).unwrap() };
        assert_eq!(copy.run(&from, &to).unwrap_err().kind(), io::ErrorKind::Interrupted);
    }
}
