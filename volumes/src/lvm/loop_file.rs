//! Files that stand for disks, to try LVM on a host that has none to spare.

use super::make::DEVICE_MIN;
use pgstead_lvm::{Lvm, LvmError, ProgramError, Run};
use pgstead_types::Bytes;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What keeps a file from standing for a disk. The text is for the person who asked for it.
#[derive(Debug, thiserror::Error)]
pub enum LoopFileError {
    #[error("{} is not absolute; expected a path that begins with /", path.display())]
    NotAbsolute { path: PathBuf },
    #[error("{} is not there; make the pool (`pgstead pool create` with --loop-file), or correct its path in the configuration", path.display())]
    NotThere { path: PathBuf },
    #[error("{} is not a plain file; expected the file that was made for the pool", path.display())]
    NotAFile { path: PathBuf },
    #[error("{} is not made: its folder has {free} free, and {size} were asked for; expected a tenth more than that", path.display())]
    NoRoom { path: PathBuf, size: Bytes, free: Bytes },
    #[error("{} cannot be used as a disk", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} of {size} is too small for a pool; expected at least {DEVICE_MIN}", path.display())]
    TooSmall { path: PathBuf, size: Bytes },
    #[error(transparent)]
    Lvm(#[from] LvmError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("{} stands for several disks at once ({devices}); detach all but one (`losetup --detach`)", path.display())]
    Several { path: PathBuf, devices: String },
}

/// Whether the file is there already. Changes nothing.
pub async fn plan_loop_file(path: &Path, size: Bytes) -> Result<bool, LoopFileError> {
    if !path.is_absolute() {
        return Err(LoopFileError::NotAbsolute { path: path.into() });
    }
    if size < DEVICE_MIN {
        return Err(LoopFileError::TooSmall { path: path.into(), size });
    }
    Lvm::find().await?;
    Ok(path.exists())
}

/// Makes the file with room for all of it, so that what is written to the disk always has a place. `false`: it is there already.
pub fn make_loop_file(path: &Path, size: Bytes) -> Result<bool, LoopFileError> {
    let failed = |source| LoopFileError::Io { path: path.into(), source };
    if !path.is_absolute() {
        return Err(LoopFileError::NotAbsolute { path: path.into() });
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    let found = rustix::fs::statvfs(folder).map_err(|error| failed(error.into()))?;
    let free = Bytes(found.f_bavail.saturating_mul(found.f_frsize));
    let file = match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        opened => opened.map_err(failed)?,
    };
    let made = match free.0 / 10 * 9 < size.0 {
        true => Err(LoopFileError::NoRoom { path: path.into(), size, free }),
        false => rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size.0)
            .map_err(io::Error::from)
            .and_then(|()| file.sync_all())
            .map_err(failed),
    };
    if made.is_err() {
        // It holds nothing yet.
        fs::remove_file(path).map_err(failed)?;
    }
    made.map(|()| true)
}

/// The device that the file stands for, after a reboot a new one.
pub async fn attach_loop_file(path: &Path) -> Result<PathBuf, LoopFileError> {
    let failed = |source| LoopFileError::Io { path: path.into(), source };
    let found = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(LoopFileError::NotThere { path: path.into() });
        }
        found => found.map_err(failed)?,
    };
    if !found.is_file() {
        return Err(LoopFileError::NotAFile { path: path.into() });
    }
    let path = fs::canonicalize(path).map_err(failed)?;
    let text = path.to_string_lossy();
    let said = losetup().args(["--noheadings", "--output", "NAME", "--associated"]).arg(&*text).output().await?;
    let devices: Vec<&str> = said.stdout.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match *devices {
        [] => {}
        [one] => return Ok(PathBuf::from(one)),
        _ => {
            let devices = devices.join(", ");
            return Err(LoopFileError::Several { path, devices });
        }
    }
    let said = losetup().args(["--find", "--show"]).arg(&*text).lasting().output().await?;
    let device = PathBuf::from(said.stdout.trim());
    tracing::info!(file = %path.display(), device = %device.display(), "a file stands for a disk");
    Ok(device)
}

fn losetup() -> Run {
    Run::new("losetup")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_made_whole_or_not_at_all_and_never_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let huge = make_loop_file(&path, Bytes(1 << 60));
        assert!(matches!(huge, Err(LoopFileError::NoRoom { .. })), "{huge:?}");
        assert!(!path.exists());
        assert!(make_loop_file(&path, Bytes(1 << 20)).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
        fs::write(&path, "something").unwrap();
        assert!(!make_loop_file(&path, Bytes(1 << 20)).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "something");
        assert!(matches!(make_loop_file(Path::new("disk"), Bytes(1)), Err(LoopFileError::NotAbsolute { .. })));
    }
}
