//! Files that are either the old or the new whole, with the right owner and mode from their first byte.

use crate::user::RunAs;
use pgstead_types::Bytes;
use rustix::fs::{Gid, Uid};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What must be true when a write returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Survives {
    /// The end of this process. Enough for what a start writes anew anyway.
    Processes,
    /// A power cut.
    PowerLoss,
}

/// On the file system of `path`, without what is kept for root.
pub fn free_for_postgres(path: &Path) -> io::Result<Bytes> {
    let found = rustix::fs::statvfs(path)?;
    Ok(Bytes(found.f_bavail.saturating_mul(found.f_frsize)))
}

/// Replaces `path`. Readable by its owner alone.
pub fn replace(path: &Path, bytes: &[u8], owner: RunAs, survives: Survives) -> io::Result<()> {
    let fresh = path.with_file_name(format!("{}.new", path.file_name().unwrap_or_default().to_string_lossy()));
    remove(&fresh)?;
    // Exclusive: the folder belongs to the user that Postgres runs as, and root must not follow a link it finds there.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    give_to(&file, owner)?;
    file.write_all(bytes)?;
    if survives == Survives::PowerLoss {
        file.sync_all()?;
    }
    fs::rename(&fresh, path)?;
    if survives == Survives::PowerLoss {
        sync_parent(path)?;
    }
    Ok(())
}

/// [`replace`] where anything is not as that would make it; else the file is left alone.
pub fn ensure(path: &Path, bytes: &[u8], owner: RunAs, survives: Survives) -> io::Result<()> {
    if is_as_wanted(path, bytes, owner).unwrap_or(false) { Ok(()) } else { replace(path, bytes, owner, survives) }
}

/// Never follows a link and never waits, whatever the folder's user has put there.
fn is_as_wanted(path: &Path, bytes: &[u8], owner: RunAs) -> io::Result<bool> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    let found = file.metadata()?;
    if !found.is_file()
        || found.permissions().mode() & 0o7777 != 0o600
        || (found.uid(), found.gid()) != (owner.uid, owner.gid)
        || found.len() != bytes.len() as u64
    {
        return Ok(false);
    }
    let mut held = Vec::with_capacity(bytes.len());
    file.read_to_end(&mut held)?;
    Ok(held == bytes)
}

/// Gives each of `paths`, which must not exist and lie in one folder, the same content: names of one file, so that a thousand
/// cost no more syncs than one. It survives a power cut.
pub fn place_alike(paths: &[PathBuf], bytes: &[u8], owner: RunAs) -> io::Result<()> {
    let Some(first) = paths.first() else { return Ok(()) };
    let model = first.with_extension("model");
    replace(&model, bytes, owner, Survives::PowerLoss)?;
    for path in paths {
        fs::hard_link(&model, path)?;
    }
    remove(&model)?;
    sync_parent(first)
}

pub fn replace_json<T: Serialize>(path: &Path, value: &T, owner: RunAs, survives: Survives) -> io::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
    bytes.push(b'\n');
    replace(path, &bytes, owner, survives)
}

/// `None` when there is no such file; an error when it is there and cannot be understood.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match read_plain(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// For a file in a folder of the user that Postgres runs as: no link is followed, and nothing waited for.
pub fn open_plain(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no plain file")) }
}

/// All of it; what pgstead keeps in such files is small.
pub fn read_plain(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_plain(path)?.take(64 << 20).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Removes a file; false when there was none.
pub fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a folder that only its owner can enter, or gives an existing one to it.
pub fn ensure_folder(path: &Path, owner: RunAs) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let folder = File::open(path)?;
    give_to(&folder, owner)?;
    folder.set_permissions(fs::Permissions::from_mode(0o700))
}

pub fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn give_to(file: &File, owner: RunAs) -> io::Result<()> {
    if owner.is_someone_else() {
        rustix::fs::fchown(file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_a_plain_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, link) = (dir.path().join("plain"), dir.path().join("link"));
        fs::write(&plain, "7").unwrap();
        std::os::unix::fs::symlink(&plain, &link).unwrap();
        assert_eq!(read_json::<u32>(&plain).unwrap(), Some(7));
        assert_eq!(read_json::<u32>(&dir.path().join("none")).unwrap(), None);
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        for path in [&link, &pipe, &dir.path().to_path_buf()] {
            assert!(read_json::<u32>(path).is_err(), "{path:?}");
        }
    }
}
