//! The guard: one small process per member, the parent of its postmaster. It outlives the daemon, tells of the
//! postmaster's end at once, and knows for certain when no process of it is left.
//!
//! `protocol` is what the two say to each other, `server` the guard itself, `tree` its processes, `lease` the time for which
//! they may run, `log` the server log, `client` the daemon's side.

mod client;
mod lease;
mod log;
pub(crate) mod protocol;
mod server;
mod tree;

pub use client::{GuardClient, GuardError, GuardLaunch};
pub use protocol::{ExitSeen, GuardEvent, GuardStatus, StopMode};
pub use server::{GuardOptions, guard_main};

use std::path::{Path, PathBuf};

/// Where a guard keeps its things in the member's run folder.
#[derive(Clone, Debug)]
pub struct GuardPaths {
    pub socket: PathBuf,
    /// Held locked for as long as the guard lives.
    pub lock: PathBuf,
    /// Who the guard is ([`crate::proc::ProcessId`]), for the check of whoever answers on the socket.
    pub state: PathBuf,
    /// What Postgres writes to its standard error.
    pub server_log: PathBuf,
    /// What the guard has to say itself.
    pub own_log: PathBuf,
}

impl GuardPaths {
    pub fn under(run_dir: &Path) -> Self {
        Self {
            socket: run_dir.join("guard.sock"),
            lock: run_dir.join("guard.lock"),
            state: run_dir.join("guard.json"),
            server_log: run_dir.join("postgres.log"),
            own_log: run_dir.join("guard.log"),
        }
    }
}
