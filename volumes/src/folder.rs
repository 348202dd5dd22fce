//! What drivers need of folders: a lock that ends with the process, and whether a user can reach one.

use crate::driver::Owner;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Takes a folder for this process alone. `None`: another one has it.
pub fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = File::open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The topmost folder that `owner` may not pass on its way into `folder`. It knows nothing of supplementary groups and
/// access lists; on a host that relies on them, the execute permission for others is asked for all the same.
pub fn blocked_at(folder: &Path, owner: Owner) -> io::Result<Option<PathBuf>> {
    if owner.uid == 0 {
        return Ok(None);
    }
    let folder = fs::canonicalize(folder)?;
    let mut folders: Vec<_> = folder.ancestors().collect();
    folders.reverse();
    for folder in folders {
        let found = fs::metadata(folder)?;
        let may_pass = match () {
            () if found.uid() == owner.uid => found.mode() & 0o100,
            () if found.gid() == owner.gid => found.mode() & 0o010,
            () => found.mode() & 0o001,
        };
        if may_pass == 0 {
            return Ok(Some(folder.to_path_buf()));
        }
    }
    Ok(None)
}
