//! xfs after a crash. Mounting replays its log, and only then can it be checked: `xfs_repair` takes for damage what the log would have
//! mended. It is checked without a change, and its log is never thrown away (`-L`): what that costs is for a person to say.

use super::filesystem::{self, Check, FileSystemKind};
use super::mounting::mount;
use super::{Inner, blocking};
use crate::driver::VolumeError;
use pgstead_lvm::Run;
use pgstead_types::VolumeId;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// It reads the log alone, which has 2 GiB at most.
const LOOK_DEADLINE: Duration = Duration::from_secs(600);
/// The line that says it is short.
const LINE_BYTES_MAX: u64 = 4096;

impl Inner {
    /// Replays the log of an xfs that was not unmounted in good order, then checks it. `gave_up`: the kernel has ended it after an error,
    /// so that it is checked whatever its log says. One that was found damaged is so until a check finds nothing, also for a
    /// later daemon.
    pub async fn ensure_replayed(&self, id: VolumeId, device: &Path, gave_up: bool) -> Result<(), VolumeError> {
        let mark = self.unchecked(id);
        if !gave_up && !self.is_unchecked(id) && !is_dirty(device).await? {
            return Ok(());
        }
        tracing::info!(volume = %id, "a volume was not unmounted in good order; replaying its log and checking it");
        // Before the replay: from then on nothing of the file system itself says that it was not checked.
        put(&mark).map_err(VolumeError::io("note an unchecked volume in", &mark))?;
        let place = self.mount_point(id);
        if let Err(error) = mount(FileSystemKind::Xfs, device, &place).await {
            tracing::warn!(volume = %id, %error, "the log of a volume cannot be replayed; looking for the reason");
            filesystem::check(FileSystemKind::Xfs, device, Check::Whole).await?;
            return Err(error);
        }
        blocking(move || filesystem::unmount_from(&place)).await?;
        filesystem::check(FileSystemKind::Xfs, device, Check::Whole).await?;
        self.forget_unchecked(id)
    }

    pub fn is_unchecked(&self, id: VolumeId) -> bool {
        self.unchecked(id).exists()
    }

    pub fn forget_unchecked(&self, id: VolumeId) -> Result<(), VolumeError> {
        let mark = self.unchecked(id);
        match fs::remove_file(&mark) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VolumeError::io("remove", mark)(error)),
            _ => Ok(()),
        }
    }

    /// A file on the node's own disk: while it is there, the volume's check has not come to its end.
    fn unchecked(&self, id: VolumeId) -> PathBuf {
        self.config.mounts.join(format!(".unchecked-{id}"))
    }
}

fn put(mark: &Path) -> io::Result<()> {
    File::create(mark)?.sync_all()?;
    File::open(mark.parent().unwrap_or(mark))?.sync_all()
}

/// By the line of xfs_logprint(8): `    log tail: 2 head: 2 state: <CLEAN>`. What cannot be read is not clean.
async fn is_dirty(device: &Path) -> Result<bool, VolumeError> {
    let mut clean = false;
    let run = Run::new("xfs_logprint").arg("-t").arg(device.to_string_lossy()).deadline(LOOK_DEADLINE);
    let looked = run.each_line(LINE_BYTES_MAX, |line| clean |= says_clean(line)).await;
    if let Err(error) = &looked {
        tracing::debug!(device = %device.display(), %error, "the log cannot be read as it is");
    }
    Ok(!clean || looked.is_err())
}

fn says_clean(line: &str) -> bool {
    line.trim_start().starts_with("log tail:") && line.trim_end().ends_with("state: <CLEAN>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_log_that_says_so_is_clean() {
        assert!(says_clean("    log tail: 2 head: 2 state: <CLEAN>"));
        for other in ["    log tail: 2 head: 11 state: <DIRTY>", "xfs_logprint:", "", "state: <CLEAN>"] {
            assert!(!says_clean(other), "{other}");
        }
    }

    #[tokio::test]
    async fn what_is_no_xfs_is_not_clean() {
        assert!(is_dirty(Path::new("/nowhere")).await.unwrap());
    }
}
