//! The keys of a pool: files of random bytes in a folder of root's, by number. The newest is the one for new volumes, and each that is
//! there is tried when a volume is opened. What is in them goes to `cryptsetup` by their paths, and is never in an argument or an error.
//!
//! ```text
//! <folder>/000001.key    mode 0600
//! <folder>/.new          being made, or cut short
//! ```

use crate::folder;
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Twice what the cipher takes: nobody guesses it, however little the derivation costs.
const KEY_BYTES: usize = 64;
const KEY_BYTES_MIN: u64 = 32;
/// A passphrase that a person has put there has less, and anything else is a mistake.
const KEY_BYTES_MAX: u64 = 8192;
/// Each is tried in turn, at a program's run each.
const KEYS_MAX: usize = 16;
const NEW: &str = ".new";

/// What is wrong with a folder of keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("could not {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not absolute; expected a path that begins with /", path.display())]
    NotAbsolute { path: PathBuf },
    #[error(
        "others than its owner may read {0}, which is for keys of volumes; `chown root:root {0}; chmod {mode} {0}`, and take a new key \
         (`pgstead pool rotate-key`) if somebody may have read it",
        path.display()
    )]
    OthersRead { path: PathBuf, mode: &'static str },
    #[error("{} is no key: expected a file of {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes", path.display())]
    NoKey { path: PathBuf },
    #[error("{} and {} hold the same key; remove the second, which is no new one", first.display(), second.display())]
    SameKey { first: PathBuf, second: PathBuf },
    #[error("{} has {KEYS_MAX} keys or more; remove those that the finding `key_not_needed` names", path.display())]
    TooMany { path: PathBuf },
    #[error("somebody else makes a key in {} at this moment; look whether it is there, and try again", path.display())]
    InUse { path: PathBuf },
}

impl KeyError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { doing, path, source }
    }
}

/// The file of one key, not what is in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    pub number: u32,
    pub path: PathBuf,
}

#[derive(Clone, Debug)]
pub struct KeyFolder {
    path: PathBuf,
}

impl KeyFolder {
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf() }
    }
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Where the key of that number is, if it is there.
    pub fn file(&self, number: u32) -> PathBuf {
        self.path.join(format!("{number:06}.key"))
    }

    /// The newest first; none where there is no folder. One that others may read is refused, and so are all with it.
    pub fn all(&self) -> Result<Vec<Key>, KeyError> {
        if !self.path.is_absolute() {
            return Err(KeyError::NotAbsolute { path: self.path.clone() });
        }
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(KeyError::io("list", &self.path))?,
        };
        check_private(&self.path, "700")?;
        let mut keys = Vec::new();
        for entry in entries {
            let path = entry.map_err(KeyError::io("list", &self.path))?.path();
            let Some(number) = number(&path) else { continue };
            check_key(&path)?;
            keys.push(Key { number, path });
            if keys.len() > KEYS_MAX {
                return Err(KeyError::TooMany { path: self.path.clone() });
            }
        }
        keys.sort_by_key(|key| std::cmp::Reverse(key.number));
        check_different(&keys)?;
        Ok(keys)
    }

    /// Makes one more, newer than all that are there; on disk when it returns.
    pub fn add(&self) -> Result<Key, KeyError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(KeyError::io("make", &self.path))?;
        let lock = folder::lock(&self.path).map_err(KeyError::io("lock", &self.path))?;
        let _lock = lock.ok_or_else(|| KeyError::InUse { path: self.path.clone() })?;
        let keys = self.all()?;
        if keys.len() >= KEYS_MAX {
            return Err(KeyError::TooMany { path: self.path.clone() });
        }
        let number = keys.first().map_or(1, |newest| newest.number.saturating_add(1));
        let (new, path) = (self.path.join(NEW), self.file(number));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(KeyError::io("remove", &new)(error)),
            _ => {}
        }
        write_random(&new).map_err(KeyError::io("write a key to", &new))?;
        // A link, which takes nobody's place.
        fs::hard_link(&new, &path).map_err(KeyError::io("name a key", &path))?;
        fs::remove_file(&new).map_err(KeyError::io("remove", &new))?;
        let sync = |folder: &Path| File::open(folder).and_then(|folder| folder.sync_all());
        sync(&self.path).map_err(KeyError::io("sync", &self.path))?;
        if let Some(above) = self.path.parent() {
            sync(above).map_err(KeyError::io("sync", above))?;
        }
        Ok(Key { number, path })
    }
}

fn number(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_suffix(".key")?.parse().ok()
}

fn check_private(path: &Path, mode: &'static str) -> Result<fs::Metadata, KeyError> {
    let found = fs::symlink_metadata(path).map_err(KeyError::io("look at", path))?;
    let owner = rustix::process::geteuid().as_raw();
    if found.uid() != owner || found.mode() & 0o077 != 0 {
        return Err(KeyError::OthersRead { path: path.to_path_buf(), mode });
    }
    Ok(found)
}

fn check_key(path: &Path) -> Result<(), KeyError> {
    let found = fs::symlink_metadata(path).map_err(KeyError::io("look at", path))?;
    if !found.is_file() || !(KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&found.len()) {
        return Err(KeyError::NoKey { path: path.to_path_buf() });
    }
    check_private(path, "600").map(drop)
}

/// Taking away the older of two that are the same would take the newer one too.
fn check_different(keys: &[Key]) -> Result<(), KeyError> {
    let read = |key: &Key| fs::read(&key.path).map_err(KeyError::io("read", &key.path));
    for (at, key) in keys.iter().enumerate() {
        let bytes = read(key)?;
        for other in &keys[at + 1..] {
            if read(other)? == bytes {
                return Err(KeyError::SameKey { first: other.path.clone(), second: key.path.clone() });
            }
        }
    }
    Ok(())
}

fn write_random(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut bytes = [0; KEY_BYTES];
    // Up to 256 bytes come whole.
    if getrandom(&mut bytes, GetRandomFlags::empty())? != KEY_BYTES {
        return Err(io::Error::other("the kernel gave fewer random bytes than asked for"));
    }
    file.write_all(&bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_is_made_for_its_owner_alone_and_the_newest_comes_first() {
        let home = tempfile::tempdir().unwrap();
        let keys = KeyFolder::new(&home.path().join("keys"));
        assert_eq!(keys.all().unwrap(), []);
        let (first, second) = (keys.add().unwrap(), keys.add().unwrap());
        assert_eq!((first.number, second.number), (1, 2));
        assert_eq!(keys.all().unwrap(), [second.clone(), first.clone()]);
        let found = fs::metadata(&first.path).unwrap();
        assert_eq!((found.mode() & 0o777, found.len()), (0o600, KEY_BYTES as u64));
        assert_eq!(fs::metadata(keys.path()).unwrap().mode() & 0o777, 0o700);
        assert_ne!(fs::read(&first.path).unwrap(), fs::read(&second.path).unwrap());
        assert!(!keys.path().join(NEW).exists());
    }

    #[test]
    fn what_others_may_read_is_refused_with_what_to_do() {
        let home = tempfile::tempdir().unwrap();
        let keys = KeyFolder::new(&home.path().join("keys"));
        let key = keys.add().unwrap();
        for (path, bad, good) in [(key.path.clone(), 0o640, 0o600), (keys.path().to_path_buf(), 0o755, 0o700)] {
            mode(&path, bad);
            let refused = keys.all().unwrap_err().to_string();
            assert!(refused.contains(&format!("chmod {good:o} {}", path.display())), "{refused}");
            mode(&path, good);
        }
        assert_eq!(keys.all().unwrap(), [key]);
    }

    #[test]
    fn what_is_no_key_or_no_new_one_is_refused_and_other_files_are_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let keys = KeyFolder::new(&home.path().join("keys"));
        let key = keys.add().unwrap();
        fs::write(keys.path().join("README"), "mine").unwrap();
        fs::write(keys.path().join(NEW), "half").unwrap();
        assert_eq!(keys.all().unwrap(), std::slice::from_ref(&key));
        fs::copy(&key.path, keys.file(2)).unwrap();
        assert!(matches!(keys.all(), Err(KeyError::SameKey { first, .. }) if first == key.path));
        fs::write(keys.file(2), "short").unwrap();
        let refused = keys.all().unwrap_err();
        assert!(matches!(&refused, KeyError::NoKey { path } if *path == keys.file(2)));
        assert!(!refused.to_string().contains("short"), "what is in it is not shown");
        fs::remove_file(keys.file(2)).unwrap();
        assert_eq!(keys.add().unwrap().number, 2, "what was cut short is in nobody's way");
    }

    #[test]
    fn there_are_so_many_at_most() {
        let home = tempfile::tempdir().unwrap();
        let keys = KeyFolder::new(&home.path().join("keys"));
        for _ in 0..KEYS_MAX {
            keys.add().unwrap();
        }
        assert!(matches!(keys.add(), Err(KeyError::TooMany { .. })));
        assert_eq!(keys.all().unwrap().len(), KEYS_MAX);
    }
}
