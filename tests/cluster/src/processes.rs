//! Processes as `/proc` shows them, read without the product's own code: what the tests claim about processes must not
//! rest on what is tested. A process belongs to a folder when it works there or was started on something in it.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::Timespec;
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Programs that may be running on behalf of a node. Anything else that names the folder (an editor, `tail`) is not ours.
const PROGRAMS: [&str; 9] =
    ["pgstead", "setsid", "nsenter", "setpriv", "postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_ctl"];

/// One process, known by pid and start time together: pids are used again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// Clock ticks from boot to its start.
    start_time: u64,
    /// As `ps` shows it: `R`, `S`, `T` (stopped), `Z` (dead and not reaped).
    pub state: char,
    /// The program, cut at 15 bytes.
    pub program: String,
    pub words: Vec<String>,
}

impl Process {
    pub fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may itself hold spaces and parentheses.
        let (head, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).trim().to_string());
        Some(Self {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            start_time: fields.get(19)?.parse().ok()?,
            state: fields.first()?.chars().next()?,
            program: head.split_once('(')?.1.to_string(),
            words: words.filter(|word| !word.is_empty()).collect(),
        })
    }

    /// Whether this very process is more than a zombie.
    pub fn is_alive(&self) -> bool {
        Self::read(self.pid).is_some_and(|now| now.start_time == self.start_time && now.state != 'Z')
    }

    fn open(&self) -> Option<std::os::fd::OwnedFd> {
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // The pid may have changed hands before it was opened.
        self.is_alive().then_some(fd)
    }

    /// Sends a signal to this very process; false when it is gone.
    pub fn signal(&self, signal: Signal) -> bool {
        self.open().is_some_and(|fd| pidfd_send_signal(&fd, signal).is_ok())
    }

    fn is_below(&self, folder: &Path) -> bool {
        let names_it = |word: &String| {
            let path = word.rsplit_once('=').map_or(word.as_str(), |(_, path)| path);
            path.starts_with('/') && Path::new(path).starts_with(folder)
        };
        PROGRAMS.contains(&self.program.as_str())
            && (self.words.iter().skip(1).any(names_it)
                || fs::read_link(format!("/proc/{}/cwd", self.pid)).is_ok_and(|cwd| cwd.starts_with(folder)))
    }

    /// What it is in a node: `daemon`, `guard`, `gateway`, `postmaster`, or Postgres' own word, such as `checkpointer`.
    pub fn role(&self) -> String {
        let word = |at: usize| self.words.get(at).map_or("", String::as_str);
        match (self.program.as_str(), word(1)) {
            ("pgstead", "node") => "daemon".to_string(),
            ("pgstead", other) => other.to_string(),
            ("postgres", "-D") => "postmaster".to_string(),
            // `postgres: <cluster_name>: walsender pgstead_replication 127.0.0.1(5) streaming 0/1`
            ("postgres", _) => {
                let title = word(0).rsplit_once(": ").map_or(word(0), |(_, title)| title);
                let known =
                    ["walsender", "walreceiver", "walwriter", "background writer", "logical replication launcher"];
                match known.iter().find(|name| title.starts_with(**name)) {
                    Some(name) => (*name).to_string(),
                    None if title.contains('[') || title.contains('(') => "backend".to_string(),
                    None => title.split_whitespace().next().unwrap_or("postgres").to_string(),
                }
            }
            (program, _) => program.to_string(),
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} [{}]", self.pid, self.role(), self.state)
    }
}

/// Every process that could be read.
pub fn all_processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Process::read(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// The living processes of the node (or testbed) in `folder`, and all their descendants.
pub fn below_folder(folder: &Path) -> Vec<Process> {
    let me = rustix::process::getpid().as_raw_nonzero().get();
    let all = all_processes();
    let mut found: BTreeSet<i32> = all.iter().filter(|process| process.is_below(folder)).map(|one| one.pid).collect();
    loop {
        let before = found.len();
        found.extend(all.iter().filter(|one| found.contains(&one.parent)).map(|one| one.pid).collect::<Vec<_>>());
        if found.len() == before {
            break;
        }
    }
    all.into_iter().filter(|one| found.contains(&one.pid) && one.pid != me && one.state != 'Z').collect()
}

/// Sends a signal to everything below `folder` until a look finds nobody who has not had it; returns who got it.
pub fn signal_all_below(folder: &Path, signal: Signal) -> Vec<Process> {
    let mut told: Vec<Process> = Vec::new();
    loop {
        let knows = |one: &Process| told.iter().any(|old| old.pid == one.pid && old.start_time == one.start_time);
        let new: Vec<Process> = below_folder(folder).into_iter().filter(|one| !knows(one)).collect();
        if new.is_empty() {
            return told;
        }
        for process in &new {
            process.signal(signal);
        }
        told.extend(new);
    }
}

/// Waits until none of these is alive; returns those that still are when the time is over.
pub fn wait_until_gone(processes: &[Process], patience: Duration) -> Vec<Process> {
    let until = pgstead_types::Tick::now() + patience;
    for process in processes {
        let Some(fd) = process.open() else { continue };
        let left = until.since(pgstead_types::Tick::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        // A signal that interrupts it only makes the look below come early.
        let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout));
    }
    processes.iter().filter(|process| process.is_alive()).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_itself_alive_and_not_in_a_folder_of_a_node() {
        let me = Process::read(rustix::process::getpid().as_raw_nonzero().get()).unwrap();
        assert!(me.is_alive() && !me.is_below(Path::new("/")), "{me:?}");
        let other = Process { start_time: me.start_time + 1, ..me };
        assert!(!other.is_alive() && !other.signal(Signal::KILL), "a pid that changed hands is not the process");
    }

    #[test]
    fn a_postgres_process_is_called_what_postgres_calls_it() {
        let named = |words: &[&str], program: &str| {
            let words = words.iter().map(ToString::to_string).collect();
            Process { pid: 1, parent: 0, start_time: 0, state: 'S', program: program.into(), words }.role()
        };
        assert_eq!(named(&["postgres: 01a_1: checkpointer"], "postgres"), "checkpointer");
        assert_eq!(named(&["postgres: 01a_1: walsender r 127.0.0.1(5) streaming 0/1"], "postgres"), "walsender");
        assert_eq!(named(&["postgres: 01a_1: app app 127.0.0.1(5) idle"], "postgres"), "backend");
        assert_eq!(named(&["/usr/bin/postgres", "-D", "/x"], "postgres"), "postmaster");
        assert_eq!(named(&["/x/pgstead", "node", "run"], "pgstead"), "daemon");
        assert_eq!(named(&["/x/pgstead", "guard"], "pgstead"), "guard");
    }
}
