//! The folder of backups: each is made under another name and gets its own when it is on disk, the newest few are kept, and one that is
//! like the one before is not.
//!
//! ```text
//! <folder>/<number>-<time>/group.vg     for vgcfgrestore
//! <folder>/<number>-<time>/pool.xml     for thin_restore
//! <folder>/.new/                        being made, or cut short
//! ```

use crate::driver::{BackedUp, VolumeError};
use pgstead_types::{Bytes, WallTime};
use rustix::fs::statvfs;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

const NEW: &str = ".new";
const GROUP: &str = "group.vg";
const MAPPINGS: &str = "pool.xml";
/// In the first line of the text.
const BLOCKS_UNKNOWN: &str = "nr_data_blocks=\"0\"";
const FIRST_LINE_MAX: u64 = 4096;
/// Changes of a day or more, where there are few.
const KEPT_MAX: usize = 8;
/// The text of a large pool with many snapshots has gigabytes: fewer are kept then, but never the last one alone.
const KEPT_BYTES_MAX: Bytes = Bytes(4 << 30);
const KEPT_MIN: usize = 2;
const ONE_BYTES_MAX: Bytes = Bytes(2 << 30);
/// The folder is on the disk of the node's own state.
const ROOM_FOR_OTHERS: Bytes = Bytes(128 << 20);

#[derive(Clone, Debug)]
pub struct Kept {
    folder: PathBuf,
}

impl Kept {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf() }
    }
    pub fn folder(&self) -> &Path {
        &self.folder
    }
    pub fn group(&self) -> PathBuf {
        self.folder.join(NEW).join(GROUP)
    }
    pub fn mappings(&self) -> PathBuf {
        self.folder.join(NEW).join(MAPPINGS)
    }
    pub fn mappings_size(&self) -> Bytes {
        fs::metadata(self.mappings()).map(|found| Bytes(found.len())).unwrap_or_default()
    }

    /// Whether an attempt was ended on its way.
    pub fn was_cut_short(&self) -> bool {
        self.folder.join(NEW).exists()
    }

    /// An empty place for another one, and how much there may be of it; or why there is no room.
    pub fn begin(&self) -> Result<Result<Bytes, String>, VolumeError> {
        make_private(&self.folder)?;
        self.discard()?;
        let new = self.folder.join(NEW);
        let found = statvfs(&self.folder).map_err(|errno| VolumeError::io("measure", &self.folder)(errno.into()))?;
        let free = Bytes(found.f_bavail.saturating_mul(found.f_frsize));
        if free <= ROOM_FOR_OTHERS {
            let folder = self.folder.display();
            return Ok(Err(format!(
                "{free} are free at {folder}, expected more than {ROOM_FOR_OTHERS}; free some space"
            )));
        }
        make_private(&new)?;
        sync(&self.folder)?;
        Ok(Ok(Bytes((free.0 - ROOM_FOR_OTHERS.0) / 2).min(ONE_BYTES_MAX)))
    }

    /// The kernel does not tell how many blocks there are in what it holds, and without their number nothing can be restored of it.
    pub fn note_blocks(&self, blocks: u64) -> Result<(), VolumeError> {
        let (from, to) = (self.mappings(), self.folder.join(NEW).join("whole"));
        let failed = || VolumeError::io("complete", &from);
        let mut text = BufReader::new(File::open(&from).map_err(failed())?);
        let mut first = String::new();
        (&mut text).take(FIRST_LINE_MAX).read_line(&mut first).map_err(failed())?;
        if first.contains(BLOCKS_UNKNOWN) {
            let mut whole = File::create(&to).map_err(failed())?;
            let first = first.replacen(BLOCKS_UNKNOWN, &format!("nr_data_blocks=\"{blocks}\""), 1);
            whole.write_all(first.as_bytes()).map_err(failed())?;
            io::copy(&mut text, &mut whole).map_err(failed())?;
            fs::rename(&to, &from).map_err(failed())?;
        }
        Ok(())
    }

    pub fn discard(&self) -> Result<(), VolumeError> {
        remove(&self.folder.join(NEW))
    }

    /// What is there of it is all.
    pub fn finish(&self) -> Result<BackedUp, VolumeError> {
        let (new, before) = (self.folder.join(NEW), self.all()?);
        if let Some((_, newest)) = before.last()
            && is_like(newest, &new)?
        {
            self.discard()?;
            return Ok(BackedUp::Unchanged);
        }
        for file in [self.group(), self.mappings()] {
            fs::set_permissions(&file, Permissions::from_mode(0o600))
                .map_err(VolumeError::io("set the mode of", &file))?;
            sync(&file)?;
        }
        sync(&new)?;
        // By its number it is the newest, whatever the clock says.
        let number = before.last().map_or(1, |(number, _)| number.saturating_add(1));
        let time = WallTime::now().to_string().replace(':', "-");
        let path = self.folder.join(format!("{number:06}-{time}"));
        fs::rename(&new, &path).map_err(VolumeError::io("rename to its final name", &new))?;
        sync(&self.folder)?;
        self.prune()?;
        Ok(BackedUp::Written(path))
    }

    fn prune(&self) -> Result<(), VolumeError> {
        let all = self.all()?;
        let mut bytes = 0u64;
        for (held, (_, path)) in all.iter().rev().enumerate() {
            bytes = bytes.saturating_add(size(path));
            if held >= KEPT_MAX || (held >= KEPT_MIN && bytes > KEPT_BYTES_MAX.0) {
                remove(path)?;
            }
        }
        Ok(())
    }

    /// By their numbers. Names that are none of ours are left alone.
    fn all(&self) -> Result<Vec<(u64, PathBuf)>, VolumeError> {
        let failed = || VolumeError::io("list", &self.folder);
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let number = name.and_then(|name| name.split_once('-')).and_then(|(number, _)| number.parse().ok());
            all.extend(number.map(|number| (number, path)));
        }
        all.sort();
        Ok(all)
    }
}

fn make_private(folder: &Path) -> Result<(), VolumeError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(VolumeError::io("make", folder))?;
    fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(VolumeError::io("set the mode of", folder))
}

fn remove(folder: &Path) -> Result<(), VolumeError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VolumeError::io("remove", folder)(error)),
        _ => Ok(()),
    }
}

fn sync(path: &Path) -> Result<(), VolumeError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(VolumeError::io("sync", path))
}

fn size(backup: &Path) -> u64 {
    let of = |name| fs::metadata(backup.join(name)).map(|found| found.len()).unwrap_or_default();
    of(GROUP).saturating_add(of(MAPPINGS))
}

/// Whether they say the same of the pool. One that cannot be read is like none.
fn is_like(one: &Path, other: &Path) -> Result<bool, VolumeError> {
    let read =
        |folder: &Path| fs::read_to_string(folder.join(GROUP)).map_err(VolumeError::io("read", folder.join(GROUP)));
    let Ok(before) = read(one) else { return Ok(false) };
    let same_group = description(&before).eq(description(&read(other)?));
    let same = || same_bytes(&one.join(MAPPINGS), &other.join(MAPPINGS)).unwrap_or(false);
    Ok(same_group && same())
}

/// LVM's text without the lines that say when and why it was written.
fn description(text: &str) -> impl Iterator<Item = &str> {
    const OF_THE_WRITING: [&str; 4] = ["#", "description =", "creation_host =", "creation_time ="];
    // Volumes are indented, and have such lines of their own.
    text.lines().filter(|line| !OF_THE_WRITING.iter().any(|begin| line.starts_with(begin)))
}

fn same_bytes(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (BufReader::new(one), BufReader::new(other));
    loop {
        let (a, b) = (one.fill_buf()?, other.fill_buf()?);
        let some = a.len().min(b.len());
        if some == 0 {
            return Ok(a.len() == b.len());
        }
        if a[..some] != b[..some] {
            return Ok(false);
        }
        one.consume(some);
        other.consume(some);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(kept: &Kept, time: &str, group: &str, mappings: &str) -> BackedUp {
        kept.begin().unwrap().unwrap();
        let group = format!("# Generated by LVM2: {time}\n\ncreation_time = {time}\nnvme {{\n\t{group}\n}}\n");
        fs::write(kept.group(), group).unwrap();
        fs::write(kept.mappings(), mappings).unwrap();
        kept.finish().unwrap()
    }

    #[test]
    fn one_that_says_the_same_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::new(&folder.path().join("nvme"));
        let BackedUp::Written(first) = write(&kept, "1", "seqno = 1", "<a/>") else { panic!("there was none") };
        assert_eq!(write(&kept, "2", "seqno = 1", "<a/>"), BackedUp::Unchanged);
        assert!(matches!(write(&kept, "3", "seqno = 1", "<b/>"), BackedUp::Written(_)));
        assert!(matches!(write(&kept, "4", "seqno = 2", "<b/>"), BackedUp::Written(_)));
        assert_eq!(fs::read_to_string(first.join(MAPPINGS)).unwrap(), "<a/>");
        for (path, mode) in [(kept.folder().to_path_buf(), 0o700), (first.clone(), 0o700), (first.join(GROUP), 0o600)] {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
        }
    }

    #[test]
    fn the_newest_few_are_kept_and_what_is_not_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::new(folder.path());
        fs::write(folder.path().join("notes"), "mine").unwrap();
        for number in 0..KEPT_MAX + 3 {
            write(&kept, "1", &format!("seqno = {number}"), "<a/>");
        }
        let all = kept.all().unwrap();
        assert_eq!(all.len(), KEPT_MAX);
        assert_eq!(all.last().unwrap().0, KEPT_MAX as u64 + 3);
        assert!(folder.path().join("notes").exists());
    }

    #[test]
    fn one_that_was_cut_short_is_no_backup_and_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::new(folder.path());
        assert!(!kept.was_cut_short());
        kept.begin().unwrap().unwrap();
        fs::write(kept.mappings(), "<half").unwrap();
        assert!(kept.was_cut_short() && kept.all().unwrap().is_empty());
        kept.begin().unwrap().unwrap();
        assert!(!kept.mappings().exists());
    }

    #[test]
    fn a_number_of_blocks_that_is_not_told_is_put_in() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::new(folder.path());
        for (told, expected) in [("0", "8"), ("7", "7")] {
            let text = |blocks: &str| {
                format!("<superblock version=\"2\" nr_data_blocks=\"{blocks}\">\n  <device/>\n</superblock>\n")
            };
            kept.begin().unwrap().unwrap();
            fs::write(kept.mappings(), text(told)).unwrap();
            kept.note_blocks(8).unwrap();
            assert_eq!(fs::read_to_string(kept.mappings()).unwrap(), text(expected));
        }
    }

    #[test]
    fn texts_of_one_length_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: String| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let long = "x".repeat(100_000);
        let (a, b) = (file("a", format!("{long}a")), file("b", format!("{long}b")));
        assert!(same_bytes(&a, &a).unwrap() && !same_bytes(&a, &b).unwrap());
    }
}
