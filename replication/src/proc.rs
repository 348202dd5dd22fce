//! Processes as `/proc` shows them. A pid alone is never identity: it goes with the start time.

use rustix::process::{Pid, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::{fs, io};

/// One process for as long as it lives: pids are used again, pairs of pid and start time are not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks from boot to its start.
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has this pid now; `None` when there is none.
    pub fn of(pid: i32) -> Option<Self> {
        Stat::read(pid).map(|stat| Self { pid, start_time: stat.start_time })
    }
    pub fn of_self() -> Self {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        Self { pid, start_time: Stat::read(pid).map_or(0, |stat| stat.start_time) }
    }
    /// Whether it still exists and is more than a zombie.
    pub fn is_alive(self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.start_time == self.start_time && stat.state != 'Z')
    }
    /// A file descriptor of this very process; `None` when it is gone. It is readable once the process has ended.
    pub fn open(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        match pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            // The pid may have changed hands between the look at its start time and the open: look again.
            Ok(fd) if Self::of(self.pid) == Some(self) => Ok(Some(fd)),
            Ok(_) | Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
    /// Sends a signal to this very process; false when it is gone.
    pub fn signal(self, signal: Signal) -> io::Result<bool> {
        let Some(fd) = self.open()? else { return Ok(false) };
        match pidfd_send_signal(&fd, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// What is needed of `/proc/<pid>/stat`.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    pub pid: i32,
    pub parent: i32,
    pub state: char,
    pub start_time: u64,
}

impl Stat {
    pub fn read(pid: i32) -> Option<Self> {
        Self::of(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }
    fn of(pid: i32, text: &str) -> Option<Self> {
        // The name stands in parentheses and may itself hold spaces and parentheses.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        Some(Self {
            pid,
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            start_time: fields.get(19)?.parse().ok()?,
        })
    }
    pub fn id(&self) -> ProcessId {
        ProcessId { pid: self.pid, start_time: self.start_time }
    }
}

/// Every process of the host. One that cannot be read, for want of file descriptors or memory, is an error: it is not gone.
pub fn all() -> io::Result<Vec<Stat>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(text) => found.extend(Stat::of(pid, &text)),
            // Gone since it was listed, or somebody else's that is hidden from this user.
            Err(error) if is_gone(&error) || error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// The direct children of `parent`.
pub fn children_of(parent: i32) -> io::Result<Vec<Stat>> {
    Ok(all()?.into_iter().filter(|stat| stat.parent == parent).collect())
}

/// Children, their children and so on, as one pass over `/proc` shows them. A pass can miss what is being forked, so an
/// empty answer proves nothing.
pub fn descendants_of(ancestor: i32) -> io::Result<Vec<Stat>> {
    let mut by_parent: BTreeMap<i32, Vec<Stat>> = BTreeMap::new();
    for stat in all()? {
        by_parent.entry(stat.parent).or_default().push(stat);
    }
    let mut found: Vec<Stat> = Vec::new();
    let mut seen = BTreeSet::from([ancestor]);
    let mut next = vec![ancestor];
    while let Some(parent) = next.pop() {
        for stat in by_parent.remove(&parent).unwrap_or_default() {
            if seen.insert(stat.pid) {
                next.push(stat.pid);
                found.push(stat);
            }
        }
    }
    Ok(found)
}

/// The words of a process' command line. For a Postgres process the first holds its whole title.
pub fn command_line(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).trim().to_string()).collect()
}

/// Postgres processes, whoever started them, that work in `data_dir`: the postmaster and its children have it as their
/// current folder. This finds what an earlier guard has left behind.
pub fn postgres_in(data_dir: &Path) -> io::Result<Vec<Stat>> {
    let Ok(data_dir) = data_dir.canonicalize() else { return Ok(Vec::new()) };
    let works_there = |stat: &Stat| {
        stat.state != 'Z'
            && fs::read_link(format!("/proc/{}/cwd", stat.pid)).is_ok_and(|cwd| cwd == data_dir)
            && fs::read_to_string(format!("/proc/{}/comm", stat.pid)).is_ok_and(|comm| comm.starts_with("postgres"))
    };
    Ok(all()?.into_iter().filter(works_there).collect())
}

/// Programs such as `pg_basebackup` that a dead daemon has left running on `data_dir`: they name it in their arguments.
pub fn programs_on(data_dir: &Path) -> io::Result<Vec<Stat>> {
    const PROGRAMS: [&str; 4] = ["initdb", "pg_basebackup", "pg_rewind", "postgres"];
    let data_dir = data_dir.to_string_lossy();
    let works_on = |stat: &Stat| {
        let comm = fs::read_to_string(format!("/proc/{}/comm", stat.pid)).unwrap_or_default();
        stat.state != 'Z'
            && PROGRAMS.contains(&comm.trim())
            && command_line(stat.pid).iter().any(|word| *word == data_dir)
    };
    Ok(all()?.into_iter().filter(works_on).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_itself_alive_and_not_under_another_start_time() {
        let me = ProcessId::of_self();
        assert!(me.is_alive() && me.open().unwrap().is_some());
        let other = ProcessId { start_time: me.start_time + 1, ..me };
        assert!(!other.is_alive());
        assert!(other.open().unwrap().is_none(), "a pid that changed hands is not the process");
    }

    #[test]
    fn its_parent_has_it_among_the_descendants() {
        let me = ProcessId::of_self();
        let parent = Stat::read(me.pid).unwrap().parent;
        assert!(descendants_of(parent).unwrap().iter().any(|stat| stat.pid == me.pid));
        assert!(children_of(parent).unwrap().iter().any(|stat| stat.pid == me.pid));
    }
}
