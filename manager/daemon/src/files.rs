//! Where things are in a node's data folder, and how they get there: written whole, synced, then renamed into place, with
//! secrets readable by their owner only.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The layout of a data folder. The folder itself may be entered by others (Postgres runs as another user); what they
/// may not read is in folders of mode 0700.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }
    /// Keys and certificates of the node.
    pub fn secrets(&self) -> PathBuf {
        self.root.join("secrets")
    }
    pub fn identity(&self) -> PathBuf {
        self.secrets().join("node.json")
    }
    /// What `init` has prepared and the first start records.
    pub fn founding(&self) -> PathBuf {
        self.secrets().join("founding.json")
    }
    /// What the operator's commands need to reach the deployment.
    pub fn admin_profile(&self) -> PathBuf {
        self.secrets().join("admin.json")
    }
    /// The replicated log and record.
    pub fn record(&self) -> PathBuf {
        self.root.join("record")
    }
    /// Says that the record was made, outside the folder that holds it: its absence is a loss from then on.
    pub fn record_made(&self) -> PathBuf {
        self.secrets().join("record-made")
    }
    /// Promises and notes, one file per member; outside every volume.
    pub fn members(&self) -> PathBuf {
        self.root.join("members")
    }
    /// Run folders of the members: sockets, logs, certificates. Owned by Postgres' user.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }
    pub fn gateway(&self) -> PathBuf {
        self.root.join("gateway")
    }
    pub fn routes_socket(&self) -> PathBuf {
        self.gateway().join("routes.sock")
    }
    /// Copies of what a pool knows of itself; made by its driver, which sees to the mode.
    pub fn pool_backups(&self, pool: &str) -> PathBuf {
        self.root.join("pool-backups").join(pool)
    }
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Makes the folders that are not there yet.
    pub fn ensure(&self) -> io::Result<()> {
        ensure_dir(&self.root, 0o711)?;
        for (dir, mode) in [
            (self.secrets(), 0o700),
            (self.record(), 0o700),
            (self.members(), 0o700),
            (self.run(), 0o711),
            (self.gateway(), 0o700),
        ] {
            ensure_dir(&dir, mode)?;
        }
        Ok(())
    }
}

/// A folder with exactly this mode; its parents are made as needed.
pub fn ensure_dir(dir: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if fs::metadata(dir)?.permissions().mode() & 0o777 != mode {
        fs::set_permissions(dir, Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Writes a file so that after a crash it is the old one or the new one: a temporary file of mode 0600 beside it is
/// synced, renamed, and the folder is synced.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or_else(|| io::Error::other("a path without a folder"))?;
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write_durably(path, &serde_json::to_vec_pretty(value)?)
}

/// `None` when there is no such file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Held while the daemon runs; a second one on the same folder is refused.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// `Ok(None)` when another process holds it.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_written_for_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        write_durably(&path, b"secret").unwrap();
        write_durably(&path, b"newer").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newer");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_folder_is_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FolderLock::take(&path).unwrap();
        assert!(held.is_some());
        assert!(FolderLock::take(&path).unwrap().is_none());
    }
}
