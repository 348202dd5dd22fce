//! What a node has found wrong with a member over a while, which one look at it does not show.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One thing that is wrong. Each was seen again and again, or cannot pass by itself; what follows from it is the
/// controller's decision.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "trouble")]
pub enum Trouble {
    /// The upstream can be reached and refuses to stream: it no longer has the log, or the histories part.
    StreamRefused { why: String },
    /// Recovery does not reach the point from which Postgres can be asked, and does not move.
    RecoveryStuck { why: String },
    /// Postgres ended soon after each of its last starts.
    CrashLoop { starts: u32 },
    /// Its processes are there and have answered nothing for a long while.
    Hung { why: String },
    /// Pages whose checksum is wrong were read. True until the data is made anew, whatever Postgres' own counters say.
    Corrupted { failures: u64 },
    /// The file system of the data takes no writes: it is full, read-only, failing, or a write does not return.
    Unwritable { why: String },
    /// The pool that it is on has little room left, which it shares with others. Writes still work. `brimming`: not for long.
    PoolFull { brimming: bool },
}

impl Trouble {
    /// Whether only other data helps.
    pub fn wants_other_data(&self) -> bool {
        match self {
            Trouble::StreamRefused { .. } | Trouble::RecoveryStuck { .. } | Trouble::Corrupted { .. } => true,
            // A setting or the host may be the cause as well, and then a copy ends in the same way.
            Trouble::CrashLoop { .. }
            | Trouble::Hung { .. }
            | Trouble::Unwritable { .. }
            | Trouble::PoolFull { .. } => false,
        }
    }
    /// Whether another member should lead rather than this one.
    pub fn speaks_against_leading(&self) -> bool {
        match self {
            Trouble::RecoveryStuck { .. }
            | Trouble::CrashLoop { .. }
            | Trouble::Corrupted { .. }
            | Trouble::Hung { .. }
            | Trouble::Unwritable { .. }
            | Trouble::PoolFull { .. } => true,
            Trouble::StreamRefused { .. } => false,
        }
    }
    /// A stable code for findings.
    pub fn code(&self) -> &'static str {
        match self {
            Trouble::StreamRefused { .. } => "stream_refused",
            Trouble::RecoveryStuck { .. } => "recovery_stuck",
            Trouble::CrashLoop { .. } => "crash_loop",
            Trouble::Hung { .. } => "postgres_hung",
            Trouble::Corrupted { .. } => "data_corruption",
            Trouble::Unwritable { .. } => "storage_unwritable",
            Trouble::PoolFull { .. } => "on_full_pool",
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::StreamRefused { why } => write!(f, "its upstream refuses to stream to it: {why}"),
            Trouble::RecoveryStuck { why } => write!(f, "its recovery does not get on: {why}"),
            Trouble::CrashLoop { starts } => {
                write!(f, "its Postgres ended soon after each of its last {starts} starts")
            }
            Trouble::Hung { why } => write!(f, "its Postgres answers nobody: {why}"),
            Trouble::Corrupted { failures } => write!(f, "{failures} reads found a page with a wrong checksum"),
            Trouble::Unwritable { why } => write!(f, "its storage takes no writes: {why}"),
            Trouble::PoolFull { brimming: false } => f.write_str("the pool that it is on has little room left"),
            Trouble::PoolFull { brimming: true } => f.write_str("the pool that it is on has hardly any room left"),
        }
    }
}
