//! What nodes say to each other about leases: the controller's grant, and a member's refusal to obey an election.

use crate::ids::{ClusterId, Incarnation, MemberId};
use crate::position::Epoch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;

/// Long, because its end stops healthy primaries that merely cannot hear the controller; a change of leader in a
/// synchronous cluster never waits for it, and detection has times of its own.
pub const LEASE_MS_DEFAULT: u64 = 10_000;
/// Silence for so long is suspicious, of a node and of a WAL sender alike: whichever is noticed first waits for the other.
pub const SILENCE_MS_DEFAULT: u64 = 1600;
/// Below this, a host that is busy for a moment would stop its primaries.
pub const LEASE_MS_MIN: u64 = 2_000;
pub const LEASE_MS_MAX: u64 = 600_000;

/// The times that follow from a lease's length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseTimes {
    /// What is granted, counted by the node from the moment at which it sent its report.
    pub lease: Duration,
}

impl LeaseTimes {
    pub const fn of_ms(lease_ms: u64) -> Self {
        Self { lease: Duration::from_millis(lease_ms) }
    }
    /// What the controller waits beyond the lease, counted from its answer: clocks that run apart (they do by well under a
    /// hundredth), and the time that a guard on a busy host takes to end the last process.
    pub fn margin(self) -> Duration {
        (self.lease / 5).max(Duration::from_millis(500))
    }
    /// A node asks for the next grant after this.
    pub fn renew_after(self) -> Duration {
        self.lease / 5
    }
    /// With no more than this left, the controller counts as lost, and members are asked to refuse elections.
    pub fn running_out(self) -> Duration {
        self.lease / 3
    }
    /// For how long a member refuses at a time: a failover that becomes possible again waits at most so long for it.
    pub fn refusal(self) -> Duration {
        self.lease / 2
    }
    /// What the refusing member adds to its own count.
    pub fn refusal_margin(self) -> Duration {
        (self.refusal() / 5).max(Duration::from_millis(250))
    }
}

impl Default for LeaseTimes {
    fn default() -> Self {
        Self::of_ms(LEASE_MS_DEFAULT)
    }
}

/// The controller's answer to a report, given after a quorum has confirmed that it leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaseGrant {
    pub lease_ms: u64,
    /// It is good for what the record says at this revision or a later one: a node that has not applied so much cannot
    /// count on it yet, as it may not lead any more.
    pub revision: u64,
}

/// A leader that cannot hear the controller asks a member to obey no election for a while.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RefusalRequest {
    pub cluster: ClusterId,
    /// Who is asked.
    pub member: MemberId,
    /// Who asks, and in which epoch it leads.
    pub leader: Incarnation,
    pub epoch: Epoch,
    /// The cluster's revision, as the leader knows it.
    pub revision: u64,
    /// All members that the leader knows, and could ask.
    pub members: BTreeSet<MemberId>,
    pub for_ms: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum RefusalAnswer {
    /// Durable: until `for_ms` after the request was made it promises no newer epoch.
    Refuses,
    /// It may obey an election.
    DoesNot { why: String },
}
