//! The server log: the postmaster's standard error, appended to a file that is bounded in size.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Two files of this size are kept. Smaller loses the story of a bad night, larger fills small system disks when a node
/// has dozens of members.
const LOG_BYTES_MAX: u64 = 16 << 20;

pub struct ServerLog {
    path: PathBuf,
    bytes_max: u64,
}

impl ServerLog {
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_path_buf(), bytes_max: LOG_BYTES_MAX }
    }

    /// An appending handle for the postmaster.
    pub fn open(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)
    }

    /// Moves the content aside when the file has grown past its bound. The postmaster keeps its handle, so the file is
    /// copied and cut rather than renamed; lines written between the two are lost, which a log can bear.
    pub fn rotate_if_large(&self) -> io::Result<bool> {
        match fs::metadata(&self.path) {
            Ok(now) if now.len() > self.bytes_max => {}
            _ => return Ok(false),
        }
        let older = self.path.with_extension("log.1");
        fs::copy(&self.path, older)?;
        OpenOptions::new().write(true).open(&self.path)?.set_len(0)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_large_log_moves_aside_and_the_writer_goes_on_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let log = ServerLog { path: dir.path().join("postgres.log"), bytes_max: 10 };
        let mut writer = log.open().unwrap();
        writer.write_all(b"more than ten bytes").unwrap();
        assert!(log.rotate_if_large().unwrap());
        writer.write_all(b"new").unwrap();
        assert_eq!(fs::read(dir.path().join("postgres.log")).unwrap(), b"new");
        assert_eq!(fs::read(dir.path().join("postgres.log.1")).unwrap(), b"more than ten bytes");
        assert!(!log.rotate_if_large().unwrap());
    }
}
