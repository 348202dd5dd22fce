//! What a node tells the controller of its members. The same observation is the agent's input on the node itself, so
//! that both decide from one description.

use crate::finding::Finding;
use crate::ids::{ClusterId, Incarnation, MemberId, NodeId, OperationId};
use crate::position::{Bytes, Epoch, Lsn, Position, Timeline};
use crate::record::SyncSet;
use crate::slots::SlotsSeen;
use crate::step::Step;
use crate::storage::StorageSeen;
use crate::trouble::Trouble;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Everything that one node has to say; sent whole, at once on a change and briefly every heartbeat.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    pub node: NodeId,
    /// Random per start of the daemon, so that a restarted one is told from a delayed report.
    pub session: u64,
    /// Grows by one per report within a session; an older one is dropped.
    pub sequence: u64,
    /// Revision of the record that the node had applied.
    pub revision: u64,
    pub members: Vec<MemberReport>,
    /// Facts about the node itself, such as a gateway that does not run.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// Its pool, by a look of some seconds ago; `None` where there was none yet, or none since the last report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageSeen>,
    /// The shortest time that one of the last reports took to the controller and back, in microseconds; 0 on the controller itself.
    /// `None` where none has yet, and from a daemon that does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_us: Option<u64>,
}

/// One member as its own node sees it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MemberReport {
    pub cluster: ClusterId,
    pub member: MemberId,
    /// Revision of the cluster's record at or after which all of this was seen, and by which nothing is still being done
    /// that an older record has ordered. 0 from a daemon that does not say.
    #[serde(default)]
    pub revision: u64,
    /// Whether the member's volume is on this node.
    pub volume_present: bool,
    /// How much it may hold, where its driver says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_size: Option<Bytes>,
    pub data: DataSeen,
    /// The epoch on the node's disk: the member streams only from the leader of this epoch or a newer one.
    pub promised: Epoch,
    /// The answer to the promise of `promised`, once it is complete.
    pub answer: Option<PromiseAnswer>,
    /// The epoch in which it was last to fetch log, when it has done so or given it up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<Epoch>,
    pub postgres: PostgresSeen,
    /// The restart that the member's Postgres was last started for; see `MemberRecord::restarts`.
    #[serde(default)]
    pub restarts: u32,
    /// The switchover for which the leader has written a checkpoint.
    #[serde(default)]
    pub checkpointed: Option<OperationId>,
    /// The record by which a sync set was loaded last, while it led, from the node's own notes. It loads none by an older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_by: Option<SetBy>,
    /// The lease that the member's guard counts: at its end it stops Postgres. `None` where it counts none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseSeen>,
    /// The member obeys no election for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusing: Option<RefusalSeen>,
    /// The step in flight, or the one that failed last and waits to be tried again.
    pub working: Option<Working>,
    /// Where the oldest log kept here begins; `None` while that is not known. Who needs older log cannot stream from here.
    #[serde(default)]
    pub oldest_log: Option<Lsn>,
    /// Its replication slots, by a look of some seconds ago; `None` where there was none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<SlotsSeen>,
    /// Of the daemon that has looked; random per start of it.
    #[serde(default)]
    pub session: u64,
    /// Lives of data that were given up and are kept beside the member's own, for a person.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub kept: BTreeSet<u32>,
    /// What is wrong with it and does not pass by itself.
    #[serde(default)]
    pub troubles: Vec<Trouble>,
    #[serde(default)]
    pub findings: Vec<Finding>,
}

/// A cluster's record, by the order in which it changes within an epoch. Epochs come first: a record that was recovered counts
/// its revisions from an earlier one, in a later epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct SetBy {
    pub epoch: Epoch,
    pub revision: u64,
}

/// What is left of a lease, when the report was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaseSeen {
    pub remaining_ms: u64,
}

/// A durable refusal: until it ends, this member promises no epoch newer than `epoch`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RefusalSeen {
    pub epoch: Epoch,
    pub remaining_ms: u64,
}

/// The data folder on the volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataSeen {
    Absent,
    /// An `initdb`, a copy or a rewind was cut short. A marker beside the folder says so; the folder alone never does.
    Partial,
    /// Complete data of this incarnation was here by the node's own notes (kept outside the volume) and is gone.
    Lost {
        incarnation: Incarnation,
    },
    Present(DataIdentity),
    /// Something that is not this member's: another cluster's, another major version's, or unreadable. Never touched.
    Foreign {
        why: String,
    },
}

/// Whose data it is, written beside the folder when it became complete and checked against the folder's control file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DataIdentity {
    pub incarnation: Incarnation,
    /// Postgres' own number for the system, in decimal (it exceeds what JSON numbers hold exactly).
    pub system_identifier: String,
    pub postgres_major: u16,
}

/// A complete promise: from now on this incarnation acknowledges nothing of an older epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PromiseAnswer {
    pub epoch: Epoch,
    pub incarnation: Incarnation,
    /// The end of the WAL on disk after the receiver was seen gone (or Postgres was stopped).
    pub position: Position,
}

/// The member's Postgres as its guard and a probe see it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PostgresSeen {
    /// No process of it is left: the guard saw the tree empty, or there is neither a guard nor a postmaster.
    Down {
        /// Set when the control file says that it was shut down cleanly.
        clean: Option<CleanStop>,
    },
    /// A standby start whose postmaster does not accept yet (recovery before consistency).
    Starting,
    /// Processes are there or may be, and nothing answers. Neither alive nor dead.
    Unresponsive {
        why: String,
    },
    Primary(PrimarySeen),
    Standby(StandbySeen),
}

/// What the control file of a cleanly stopped Postgres says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CleanStop {
    pub timeline: Timeline,
    /// Start of the shutdown checkpoint; a standby has everything when its position lies beyond it.
    pub checkpoint: Lsn,
}

/// Who may connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientAccess {
    /// Only the node itself and replication.
    Holding,
    /// The cluster's roles as well.
    Open,
}

/// A Postgres that is out of recovery.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PrimarySeen {
    /// The epoch in which this very postmaster was promoted, from the node's own notes; `None` for a stranger.
    pub epoch: Option<Epoch>,
    pub timeline: Timeline,
    /// End of the WAL flushed here.
    pub flushed: Lsn,
    /// Where the timeline left its parent.
    pub fork_lsn: Lsn,
    /// The timeline that it left, by the history on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Timeline>,
    /// A position at or beyond the end-of-recovery record of this promotion.
    pub end_of_recovery: Lsn,
    pub access: ClientAccess,
    /// Transactions are begun as read-only, since there is little room left.
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// The effective `synchronous_standby_names`; `None` when it names anything that is not an incarnation, as the
    /// default `pgstead_none` does.
    pub sync_set: Option<SyncSet>,
    /// The incarnations that may replicate from here under `epoch`.
    pub admitted: BTreeSet<Incarnation>,
    /// Physical slots that still keep log, by the incarnation that each is named after.
    pub slots: BTreeSet<Incarnation>,
    /// One entry per WAL sender.
    pub senders: Vec<SenderSeen>,
}

/// A row of `pg_stat_replication` on a primary.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SenderSeen {
    /// `application_name`, whatever it is.
    pub name: String,
    /// The incarnation, when the name is one and the client certificate says the same.
    pub incarnation: Option<Incarnation>,
    pub streaming: bool,
    pub flushed: Option<Lsn>,
    pub replayed: Option<Lsn>,
}

/// A Postgres in recovery.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StandbySeen {
    /// Whom it was told to stream from, and in which epoch; `None` while `primary_conninfo` is empty, which was seen.
    pub upstream: Option<Upstream>,
    /// What was begun of a change of `upstream` or `relays_to` and not seen to end: until it is done again those say the worse of
    /// before and after, and neither may be so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<Unfinished>,
    /// `None` when no WAL receiver process exists.
    pub receiver: Option<ReceiverSeen>,
    pub replayed: Lsn,
    /// The end of the WAL on disk, or `None` while that cannot be told yet (still replaying what a restart has left).
    pub position: Option<Position>,
    /// A timeline after the position's whose history it was given and nothing of whose log. A running standby follows that
    /// timeline or one that comes from it, and no other, until it is started without that history.
    #[serde(default)]
    pub expects: Option<Timeline>,
    /// The incarnations that may stream from here, in the epoch of `upstream`; also those that it has stopped to admit and whose
    /// WAL senders were not seen gone yet.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub relays_to: BTreeSet<Incarnation>,
    /// Physical slots that still keep log, by the incarnation that each is named after.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub slots: BTreeSet<Incarnation>,
    pub access: ClientAccess,
}

/// A change that was cut short: the daemon died in it, or it failed half way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unfinished {
    /// It was to stream from nobody.
    Cut,
    /// It was to stream from `upstream`.
    Follow,
    /// It streams from `upstream`, and was to admit others than before.
    Relay,
}

/// The leader of an epoch as an upstream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Upstream {
    pub leader: MemberId,
    pub epoch: Epoch,
    /// The standby of that leader which passes its log on. Whoever streams from that one says nothing of the leader itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<MemberId>,
}

impl Upstream {
    pub fn of(leader: MemberId, epoch: Epoch) -> Self {
        Self { leader, epoch, relay: None }
    }
    /// Whose Postgres is connected to.
    pub fn source(&self) -> MemberId {
        self.relay.unwrap_or(self.leader)
    }
    /// By whomever it comes, it is the log of this leader in this epoch.
    pub fn is_of(&self, leader: MemberId, epoch: Epoch) -> bool {
        self.leader == leader && self.epoch == epoch
    }
}

/// A WAL receiver.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReceiverSeen {
    pub streaming: bool,
    /// Time since it last heard from its sender, in milliseconds, when this report was made.
    pub silent_ms: u64,
}

/// A step and how it goes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Working {
    pub step: Step,
    /// How long the present attempt has taken, in milliseconds.
    pub elapsed_ms: u64,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// 0 to 100, where the step can tell.
    pub percent: Option<u8>,
    /// Why the last attempt failed; set while the next one waits.
    pub error: Option<String>,
}

impl MemberReport {
    /// The identity of complete data of this cluster, if there is any.
    pub fn identity(&self) -> Option<&DataIdentity> {
        match &self.data {
            DataSeen::Present(identity) => Some(identity),
            DataSeen::Absent | DataSeen::Partial | DataSeen::Lost { .. } | DataSeen::Foreign { .. } => None,
        }
    }
    /// The incarnation of the data on disk.
    pub fn incarnation(&self) -> Option<Incarnation> {
        self.identity().map(|identity| identity.incarnation)
    }
    /// Pages with wrong checksums were found in its data.
    pub fn is_corrupted(&self) -> bool {
        self.troubles.iter().any(|trouble| matches!(trouble, Trouble::Corrupted { .. }))
    }
    pub fn as_primary(&self) -> Option<&PrimarySeen> {
        match &self.postgres {
            PostgresSeen::Primary(primary) => Some(primary),
            _ => None,
        }
    }
    pub fn as_standby(&self) -> Option<&StandbySeen> {
        match &self.postgres {
            PostgresSeen::Standby(standby) => Some(standby),
            _ => None,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_false(value: &bool) -> bool {
    !*value
}
