//! Processes in a control group (cgroups(7), version 2). Who makes the group and what it is limited to is the daemon's business.

use crate::proc::{self, ProcessId};
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

/// What is being forked is found by the next pass; each finds far less than the one before.
const PASSES_MAX: usize = 10;

/// Puts a process into the group, and with it whatever it starts from now on. False when it is gone.
pub fn enter(group: &Path, pid: i32) -> io::Result<bool> {
    let entered = OpenOptions::new().write(true).open(group.join("cgroup.procs"));
    match entered.and_then(|mut file| file.write_all(pid.to_string().as_bytes())) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Puts a guard with all of its processes into the group. The guard goes last: while it is outside, something else may be.
pub fn bring_in(group: &Path, guard: ProcessId) -> io::Result<()> {
    for _ in 0..PASSES_MAX {
        let inside = processes(group)?;
        if inside.contains(&guard.pid) || !guard.is_alive() {
            return Ok(());
        }
        let there = proc::descendants_of(guard.pid)?;
        let mut outside = there.iter().filter(|stat| stat.state != 'Z' && !inside.contains(&stat.pid)).peekable();
        if outside.peek().is_none() {
            enter(group, guard.pid)?;
        }
        for stat in outside {
            enter(group, stat.pid)?;
        }
    }
    Err(io::Error::other(format!("its processes are more after {PASSES_MAX} passes than were moved")))
}

/// Without those that have ended and were not reaped yet, which are in no group's list.
pub fn processes(group: &Path) -> io::Result<BTreeSet<i32>> {
    let text = std::fs::read_to_string(group.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
}
