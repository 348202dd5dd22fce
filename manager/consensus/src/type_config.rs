//! The types that openraft is instantiated with, for any runtime.
//!
//! Leader ids are those of the Raft paper (`leader_id_std`): a term never has two leaders, so a term names a leader.

use openraft::impls::{BoxedErrorSource, InlineBatch, ProgressResponder, leader_id_std};
use openraft::vote::RaftLeaderId;
use openraft::{AsyncRuntime, OptionalSend, RaftTypeConfig};
use pgstead_types::NodeId;
use pgstead_types::record::{Applied, Command, Refusal};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

pub(crate) type LeaderId = leader_id_std::LeaderId<u64, NodeId>;
pub(crate) type CommittedLeaderId = <LeaderId as RaftLeaderId>::Committed;
pub(crate) type LogId = openraft::LogId<CommittedLeaderId>;
pub(crate) type Vote = openraft::Vote<LeaderId>;
pub(crate) type Payload = openraft::EntryPayload<Change, NodeId, RaftAddress>;
pub(crate) type Entry = openraft::Entry<CommittedLeaderId, Payload>;
pub(crate) type RaftMembership = openraft::Membership<NodeId, RaftAddress>;
pub(crate) type EffectiveMembership = openraft::StoredMembership<CommittedLeaderId, NodeId, RaftAddress>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId, NodeId, RaftAddress>;
pub(crate) type Snapshot =
    openraft::Snapshot<CommittedLeaderId, NodeId, RaftAddress, Arc<pgstead_types::record::Record>>;

/// Where a node's daemon listens. Never identity: it may change while the node stays the same.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RaftAddress {
    pub host: String,
    pub port: u16,
}

impl fmt::Display for RaftAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The body of a log entry that is not Raft's own.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    Known(Arc<Command>),
    /// Written by a newer version. It is carried as it came, and the store refuses to take it.
    Unknown(Arc<UnknownChange>),
}

#[derive(Clone, PartialEq, Debug)]
pub struct UnknownChange {
    pub version: u32,
    pub kind: String,
    pub body: serde_json::Value,
    /// Why this build cannot read it.
    pub why: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The command itself may hold secrets and is long; openraft prints this in its traces.
            Change::Known(_) => write!(f, "command"),
            Change::Unknown(unknown) => write!(f, "unknown {} version {}", unknown.kind, unknown.version),
        }
    }
}

/// openraft's configuration for the runtime `R`. Only a name: it has no values of its own.
pub struct TypeConfig<R>(PhantomData<fn() -> R>);

// Derived implementations would demand the same of `R`, which has no reason to have them.
impl<R> Clone for TypeConfig<R> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<R> Copy for TypeConfig<R> {}
impl<R> Default for TypeConfig<R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}
impl<R> fmt::Debug for TypeConfig<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TypeConfig")
    }
}
impl<R> PartialEq for TypeConfig<R> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<R> Eq for TypeConfig<R> {}
impl<R> PartialOrd for TypeConfig<R> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<R> Ord for TypeConfig<R> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}

impl<R: AsyncRuntime> RaftTypeConfig for TypeConfig<R> {
    type D = Change;
    type R = Result<Applied, Refusal>;
    type NodeId = NodeId;
    type Node = RaftAddress;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = R;
    type Responder<T>
        = ProgressResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}
