//! What daemon and guard say to each other: JSON objects, one per line, each with the version of the protocol.
//!
//! A guard lives through upgrades of the daemon, so a new daemon meets old guards: fields are only ever added, and a
//! request of a version that the guard does not know is refused rather than guessed at.

use crate::proc::ProcessId;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The newest version spoken here. 2 has leases.
pub const VERSION: u32 = 2;
/// No line is longer; a peer that sends a longer one is cut off.
pub const LINE_BYTES_MAX: usize = 256 * 1024;

/// Daemon to guard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RequestLine {
    pub v: u32,
    /// Comes back with the answer.
    pub id: u64,
    pub request: Request,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Hello,
    /// Run the postmaster. Refused while any process of an earlier one is left.
    Start {
        program: PathBuf,
        args: Vec<String>,
    },
    /// Tell the postmaster to shut down. The answer says that it was told; its end is an event.
    Stop {
        mode: StopMode,
    },
    /// SIGKILL to every process; answered when none is left.
    Fence,
    Status,
    /// Version 2. End every process at that point of `CLOCK_BOOTTIME`, unless a later one is given before; `None`: not any
    /// more. Refused where no process runs, or the point has passed.
    Lease {
        end_boottime_ns: Option<u64>,
        /// A jump of the wall clock ends them too.
        strict: bool,
    },
    /// Events on this connection from now on.
    Subscribe,
    /// End the guard. Refused while any process is left.
    Quit,
}

impl Request {
    /// The version that a guard must know for it. Everything else is asked in the first one, so that older guards answer.
    pub fn version(&self) -> u32 {
        match self {
            Request::Lease { .. } => 2,
            Request::Hello
            | Request::Start { .. }
            | Request::Stop { .. }
            | Request::Fence
            | Request::Status
            | Request::Subscribe
            | Request::Quit => 1,
        }
    }
}

/// How a postmaster is told to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    /// SIGINT: sessions end, a shutdown checkpoint is written, standbys receive everything.
    Fast,
    /// SIGQUIT: no checkpoint, recovery at the next start.
    Immediate,
}

/// Guard to daemon: an answer (with `id`) or an event.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReplyLine {
    pub v: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    pub reply: Reply,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Hello {
        guard: ProcessId,
        /// The newest version that this guard speaks.
        version: u32,
    },
    Started {
        postmaster: ProcessId,
    },
    Stopping,
    /// No process is left.
    Fenced,
    Status(GuardStatus),
    LeaseCounted,
    Subscribed,
    Quitting,
    Refused {
        why: String,
    },
    Event(GuardEvent),
}

/// The guard's processes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GuardStatus {
    /// The postmaster, while it runs.
    pub postmaster: Option<ProcessId>,
    /// No process of any postmaster is left. It is never true while `postmaster` is set.
    pub tree_empty: bool,
    /// How the last postmaster of this guard ended.
    pub last_exit: Option<ExitSeen>,
    /// Where on `CLOCK_BOOTTIME` the lease ends that it counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_end_boottime_ns: Option<u64>,
}

/// A postmaster's end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExitSeen {
    pub postmaster: ProcessId,
    /// Its exit status, when it ended by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

/// Pushed to subscribers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardEvent {
    /// The postmaster ended. Backends that are left (`tree_empty` false) are being killed and may still acknowledge.
    Exited { exit: ExitSeen, tree_empty: bool },
    /// No process is left, after there were some when the postmaster ended or a fence began.
    Emptied,
    /// The guard ends Postgres by itself.
    LeaseOver { why: String },
    /// Made by the client, never sent: the guard's connection closed, and Postgres ends with the guard.
    GuardLost,
}
