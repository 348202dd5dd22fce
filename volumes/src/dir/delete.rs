//! Deleting a folder in turns. The contents were another user's, who may still change them: every step goes through
//! an open folder and never follows a symbolic link, so nothing outside the folder can be reached.

use crate::driver::VolumeError;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::path::Path;

/// Postgres' own folders are four deep. One open folder per level: the limit keeps a hostile tree from taking them all.
const DEPTH_MAX: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    Done,
    MoreLeft,
}

/// Deletes at most about `entries` entries of the folder `name` under `parent`, the folder itself last. `first` names an
/// entry that goes before the others, so that the file that says whose the folder was stays until the end.
pub fn delete_some(parent: &Path, name: &str, first: &str, entries: usize) -> Result<Progress, VolumeError> {
    let path = parent.join(name);
    let fail = |why: Failure| match why {
        Failure::Io(errno) => VolumeError::Io { doing: "delete", path: path.clone(), source: errno.into() },
        Failure::TooDeep => VolumeError::TooDeep { path: path.clone(), limit: DEPTH_MAX },
    };
    let mut budget = entries;
    let result = (|| {
        let parent = open_folder(rustix::fs::CWD, parent)?;
        let name = c_string(name);
        let folder = match open_folder(parent.as_fd(), &name) {
            Err(Errno::NOENT) => return Ok(Progress::Done),
            other => other?,
        };
        if delete_entry(folder.as_fd(), &c_string(first), &mut budget, 0)? == Progress::MoreLeft {
            return Ok(Progress::MoreLeft);
        }
        delete_folder(parent.as_fd(), &name, &mut budget, 0)
    })();
    result.map_err(fail)
}

enum Failure {
    Io(Errno),
    TooDeep,
}
impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Failure::Io(errno)
    }
}

fn c_string(name: &str) -> CString {
    CString::new(name).expect("our own names have no NUL")
}

fn open_folder(parent: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Anything: tried as a file first, for unlinking a link or a file never harms what it points to.
fn delete_entry(parent: BorrowedFd<'_>, name: &CStr, budget: &mut usize, depth: usize) -> Result<Progress, Failure> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) => *budget = budget.saturating_sub(1),
        Err(Errno::NOENT) => {}
        Err(Errno::ISDIR | Errno::PERM) => return delete_folder(parent, name, budget, depth),
        Err(errno) => return Err(errno.into()),
    }
    Ok(Progress::Done)
}

fn delete_folder(parent: BorrowedFd<'_>, name: &CStr, budget: &mut usize, depth: usize) -> Result<Progress, Failure> {
    if depth > DEPTH_MAX {
        return Err(Failure::TooDeep);
    }
    let folder = open_folder(parent, name)?;
    loop {
        if *budget == 0 {
            return Ok(Progress::MoreLeft);
        }
        // Names first, deletions after: a listing that changes under its reader may leave some out.
        let names = some_names(&folder, *budget)?;
        if names.is_empty() {
            unlinkat(parent, name, AtFlags::REMOVEDIR)?;
            *budget -= 1;
            return Ok(Progress::Done);
        }
        for name in names {
            if delete_entry(folder.as_fd(), &name, budget, depth + 1)? == Progress::MoreLeft {
                return Ok(Progress::MoreLeft);
            }
        }
    }
}

fn some_names(folder: &OwnedFd, most: usize) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        names.push(name.to_owned());
        if names.len() >= most {
            break;
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn goes_on_where_the_last_turn_stopped() {
        let pool = tempfile::tempdir().unwrap();
        let folder = pool.path().join("gone");
        for group in 0..5 {
            let group = folder.join("data").join(group.to_string());
            fs::create_dir_all(&group).unwrap();
            for file in 0..7 {
                fs::write(group.join(file.to_string()), "x").unwrap();
            }
        }
        fs::write(folder.join("volume.json"), "{}").unwrap();
        let mut turns = 1;
        while delete_some(pool.path(), "gone", "data", 4).unwrap() == Progress::MoreLeft {
            turns += 1;
            assert!(folder.join("volume.json").exists() || !folder.join("data").exists(), "the tags go last");
            assert!(turns < 100, "no progress");
        }
        assert!(turns > 5, "a turn is bounded, this took {turns}");
        assert!(!folder.exists());
        assert_eq!(delete_some(pool.path(), "gone", "data", 4).unwrap(), Progress::Done);
    }

    #[test]
    fn a_link_is_deleted_and_what_it_points_to_is_not() {
        let pool = tempfile::tempdir().unwrap();
        let kept = tempfile::tempdir().unwrap();
        fs::write(kept.path().join("precious"), "x").unwrap();
        let data = pool.path().join("gone/data/pg_tblspc");
        fs::create_dir_all(&data).unwrap();
        std::os::unix::fs::symlink(kept.path(), data.join("16384")).unwrap();
        assert_eq!(delete_some(pool.path(), "gone", "data", 100).unwrap(), Progress::Done);
        assert!(kept.path().join("precious").exists());
        assert!(!pool.path().join("gone").exists());
    }

    #[test]
    fn a_tree_that_is_too_deep_is_refused_with_its_name() {
        let pool = tempfile::tempdir().unwrap();
        let deep = (0..80).fold(pool.path().join("gone/data"), |path, _| path.join("d"));
        fs::create_dir_all(deep).unwrap();
        let error = delete_some(pool.path(), "gone", "data", 10_000).unwrap_err();
        assert!(matches!(&error, VolumeError::TooDeep { path, .. } if path.ends_with("gone")), "{error}");
    }
}
