//! The gateway's directory: a lock, so that only one gateway runs on it, and the last routes, so that it serves after
//! a restart without the daemon.

use pgstead_types::routes::Routes;
use rustix::fs::FlockOperation;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    #[error("cannot make the gateway's directory {path:?}")]
    Make { path: PathBuf, source: std::io::Error },
    #[error("cannot open {path:?}")]
    Open { path: PathBuf, source: std::io::Error },
    #[error("another gateway runs on {path:?}; stop it first, or give this one a state directory of its own")]
    Locked { path: PathBuf },
    #[error("cannot write {path:?}")]
    Write { path: PathBuf, source: std::io::Error },
}

pub struct StateDir {
    routes: PathBuf,
    /// The lock ends with the process, however it ends.
    _lock: File,
}

impl StateDir {
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| StateDirError::Make { path: path.to_path_buf(), source })?;
        let lock_path = path.join("gateway.lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|source| StateDirError::Open { path: lock_path, source })?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StateDirError::Locked { path: path.to_path_buf() })?;
        Ok(Self { routes: path.join("routes.json"), _lock: lock })
    }

    /// The routes that were saved last. What cannot be read counts as none: the daemon sends them anew.
    pub fn load(&self) -> Option<Routes> {
        let bytes = match std::fs::read(&self.routes) {
            Ok(bytes) => bytes,
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => return None,
            Err(why) => {
                tracing::warn!(path = ?self.routes, %why, "the saved routes cannot be read; waiting for the daemon");
                return None;
            }
        };
        serde_json::from_slice(&bytes)
            .inspect_err(|why| tracing::warn!(path = ?self.routes, %why, "the saved routes are not routes; waiting for the daemon"))
            .ok()
    }

    /// Replaces the saved routes; after a crash there are the old ones or the new ones. `json` holds keys.
    pub fn save(&self, json: &[u8]) -> Result<(), StateDirError> {
        let failed = |source| StateDirError::Write { path: self.routes.clone(), source };
        let next = self.routes.with_extension("json.new");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next).map_err(failed)?;
        file.write_all(json).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(&next, &self.routes).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn routes_survive_and_are_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("gateway")).unwrap();
        assert_eq!(state.load(), None);
        let routes = Routes { version: 1, revision: 7, clusters: Vec::new() };
        state.save(&serde_json::to_vec(&routes).unwrap()).unwrap();
        assert_eq!(state.load(), Some(routes));
        let mode = std::fs::metadata(&state.routes).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(&state.routes, "{").unwrap();
        assert_eq!(state.load(), None);
    }

    #[test]
    fn only_one_gateway_runs_on_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        assert!(matches!(StateDir::open(dir.path()), Err(StateDirError::Locked { .. })));
        drop(first);
        assert!(StateDir::open(dir.path()).is_ok());
    }
}
