//! Copies of the headers of encrypted volumes, without which no key opens anything: one of each volume, as of its last change of keys.
//!
//! ```text
//! <folder>/<volume id>-<key number>.luks    for luksHeaderRestore, mode 0600
//! ```

use super::{Inner, blocking, luks, tags};
use crate::driver::VolumeError;
use pgstead_types::VolumeId;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

const NEW: &str = ".new";
/// Those of volumes that are not there now are kept for a while: LVM's own list of them may be what is lost.
const GONE_MAX: usize = 64;

impl Inner {
    /// Of volumes in use, with the number of the key that each was given last.
    pub async fn save_headers(&self, folder: &Path, volumes: Vec<(VolumeId, u32)>) -> Result<(), VolumeError> {
        if volumes.is_empty() {
            return Ok(());
        }
        let made = folder.to_path_buf();
        blocking(move || {
            DirBuilder::new().recursive(true).mode(0o700).create(&made).map_err(VolumeError::io("make", &made))
        })
        .await?;
        for (id, key) in &volumes {
            let to = folder.join(file_name(*id, *key));
            if to.exists() {
                continue;
            }
            let (new, device) = (folder.join(NEW), self.path(tags::volume_name(*id)).device());
            remove(&new)?;
            luks::save_header(&device, &new).await?;
            blocking(move || put(&new, &to)).await?;
        }
        let folder = folder.to_path_buf();
        blocking(move || prune(&folder, &volumes)).await
    }
}

fn file_name(id: VolumeId, key: u32) -> String {
    format!("{id}-{key:06}.luks")
}

fn remove(path: &Path) -> Result<(), VolumeError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VolumeError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn put(new: &Path, to: &Path) -> Result<(), VolumeError> {
    fs::set_permissions(new, Permissions::from_mode(0o600)).map_err(VolumeError::io("set the mode of", new))?;
    let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all()).map_err(VolumeError::io("sync", path));
    sync(new)?;
    fs::rename(new, to).map_err(VolumeError::io("rename to its final name", new))?;
    sync(to.parent().unwrap_or(to))
}

/// A header from before a change of keys is opened by the key that was taken away.
fn prune(folder: &Path, volumes: &[(VolumeId, u32)]) -> Result<(), VolumeError> {
    let mut gone = Vec::new();
    for entry in fs::read_dir(folder).map_err(VolumeError::io("list", folder))? {
        let path = entry.map_err(VolumeError::io("list", folder))?.path();
        let Some((id, key)) = read_name(&path) else { continue };
        match volumes.iter().find(|(there, _)| *there == id) {
            Some((_, now)) if *now != key => remove(&path)?,
            Some(_) => {}
            None => gone.push((fs::metadata(&path).and_then(|found| found.modified()).ok(), path)),
        }
    }
    gone.sort();
    for (_, path) in gone.iter().rev().skip(GONE_MAX) {
        remove(path)?;
    }
    Ok(())
}

fn read_name(path: &Path) -> Option<(VolumeId, u32)> {
    let (id, key) = path.file_name()?.to_str()?.strip_suffix(".luks")?.rsplit_once('-')?;
    Some((id.parse().ok()?, key.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_kept_until_its_volume_has_another_key() {
        let home = tempfile::tempdir().unwrap();
        let (id, gone) = (VolumeId::from_u128(7), VolumeId::from_u128(8));
        for name in [file_name(id, 1), file_name(id, 2), file_name(gone, 1), "notes".to_string()] {
            fs::write(home.path().join(name), "x").unwrap();
        }
        prune(home.path(), &[(id, 2)]).unwrap();
        let is_there = |name: String| home.path().join(name).exists();
        assert!(!is_there(file_name(id, 1)) && is_there(file_name(id, 2)));
        assert!(is_there(file_name(gone, 1)) && is_there("notes".to_string()));
        for number in 100..100 + GONE_MAX as u128 {
            fs::write(home.path().join(file_name(VolumeId::from_u128(number), 1)), "x").unwrap();
        }
        prune(home.path(), &[(id, 2)]).unwrap();
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), GONE_MAX + 2);
        assert!(is_there(file_name(id, 2)));
    }

    #[test]
    fn a_header_has_its_place_with_the_mode_of_a_secret() {
        let home = tempfile::tempdir().unwrap();
        let (new, to) = (home.path().join(NEW), home.path().join(file_name(VolumeId::from_u128(7), 1)));
        fs::write(&new, "x").unwrap();
        put(&new, &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!new.exists());
        assert_eq!(read_name(&to), Some((VolumeId::from_u128(7), 1)));
    }
}
