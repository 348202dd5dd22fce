//! A file that only takes room.

use super::DirConfig;
use crate::ballast::BallastError;
use pgstead_types::Bytes;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

fn file(pool: &Path) -> PathBuf {
    pool.join("ballast")
}

pub(super) fn size(pool: &Path) -> Bytes {
    fs::metadata(file(pool)).map_or(Bytes(0), |found| Bytes(found.len()))
}

/// Sets so much aside, whole or not at all, and no more where there is some already.
pub(crate) fn reserve(config: &DirConfig, asked: Bytes) -> Result<Bytes, BallastError> {
    let pool = &config.path;
    let failed = |source| BallastError::Io { path: file(pool), source };
    let held = size(pool);
    if held >= asked {
        return Ok(held);
    }
    if held > Bytes(0) {
        return Err(BallastError::Smaller { has: held, asked });
    }
    let found =
        rustix::fs::statvfs(pool).map_err(|error| BallastError::Io { path: pool.clone(), source: error.into() })?;
    let free = Bytes(found.f_bavail.saturating_mul(found.f_frsize));
    if asked.0.saturating_add(config.free_min.0) > free.0 {
        return Err(BallastError::NoRoom { place: pool.display().to_string(), free, asked });
    }
    // Under another name until it has all of its room: what a crash leaves is made anew.
    let unfinished = pool.join(".ballast");
    let made =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished).and_then(|made| {
            rustix::fs::fallocate(&made, rustix::fs::FallocateFlags::empty(), 0, asked.0)?;
            made.sync_all()?;
            fs::rename(&unfinished, file(pool))
        });
    if let Err(source) = made {
        // It only takes room that is short now.
        if let Err(error) = fs::remove_file(&unfinished)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %unfinished.display(), %error, "cannot remove a part of the ballast");
        }
        return Err(failed(source));
    }
    Ok(asked)
}

/// Gives it back; how much that was.
pub(crate) fn release(config: &DirConfig) -> Result<Bytes, BallastError> {
    let held = size(&config.path);
    match fs::remove_file(file(&config.path)) {
        Ok(()) => Ok(held),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Bytes(0)),
        Err(source) => Err(BallastError::Io { path: file(&config.path), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_room_until_it_is_released_and_never_the_last() {
        let pool = tempfile::tempdir().unwrap();
        let config = DirConfig { path: pool.path().into(), free_min: Bytes(1 << 20) };
        assert_eq!(release(&config).unwrap(), Bytes(0));
        assert_eq!(reserve(&config, Bytes(8 << 20)).unwrap(), Bytes(8 << 20));
        assert_eq!(reserve(&config, Bytes(1 << 20)).unwrap(), Bytes(8 << 20), "there is as much");
        let more = reserve(&config, Bytes(9 << 20));
        assert!(matches!(more, Err(BallastError::Smaller { has: Bytes(8_388_608), .. })), "{more:?}");
        assert_eq!(release(&config).unwrap(), Bytes(8 << 20));
        assert_eq!(size(pool.path()), Bytes(0));
        let all = reserve(&config, Bytes(1 << 60));
        assert!(matches!(all, Err(BallastError::NoRoom { .. })), "{all:?}");
        let needy = DirConfig { free_min: Bytes(1 << 60), ..config };
        assert!(matches!(reserve(&needy, Bytes(1 << 20)), Err(BallastError::NoRoom { .. })), "it would be full by it");
        assert_eq!(fs::read_dir(pool.path()).unwrap().count(), 0);
    }
}
