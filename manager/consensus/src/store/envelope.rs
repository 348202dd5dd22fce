//! The forms in which Raft's things are stored and sent: `{version, kind, body}` as JSON with named fields.
//!
//! They are our own, so that neither the files nor the wire change with a release of openraft. A kind that this build
//! does not know, or a newer version of one, is carried as it came; the store refuses it and the voter stops.

use crate::type_config::{
    Change, CommittedLeaderId, EffectiveMembership, Entry, LeaderId, LogId, Payload, RaftAddress, RaftMembership,
    Snapshot, SnapshotMeta, UnknownChange, Vote,
};
use openraft::vote::RaftLeaderId;
use pgstead_types::NodeId;
use pgstead_types::record::{Command, Record};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Version of every kind of entry, and of most snapshots. It rises with a form that an older voter would misread, and such
/// an entry is only proposed once every voter reports that it knows it.
pub const VERSION: u32 = 1;

/// Of a snapshot in which members come, or have gone: an older voter would read it, forget these, and go on without the others.
const WITH_MEMBERS_MOVING: u32 = 2;

/// And of one with forks, with a member that is being replaced elsewhere, or with a node that takes no members.
const WITH_MOVES: u32 = 3;

/// And of one in which a cluster is to take another one's place, or is kept aside.
const WITH_PLACES: u32 = 4;

const BLANK: &str = "blank";
const MEMBERSHIP: &str = "membership";
const RECORD: &str = "record";

/// A place in the log. The term names the leader that wrote it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct LogPosition {
    pub term: u64,
    pub index: u64,
}

impl From<LogId> for LogPosition {
    fn from(id: LogId) -> Self {
        Self { term: id.leader_id.term, index: id.index }
    }
}
impl From<LogPosition> for LogId {
    fn from(at: LogPosition) -> Self {
        LogId { leader_id: CommittedLeaderId::from(at.term), index: at.index }
    }
}

/// Whom a node has voted for in a term, and whether a quorum did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ballot {
    pub term: u64,
    pub node: NodeId,
    pub granted_by_quorum: bool,
}

impl From<Vote> for Ballot {
    fn from(vote: Vote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.voted_for, granted_by_quorum: vote.committed }
    }
}
impl From<Ballot> for Vote {
    fn from(ballot: Ballot) -> Self {
        Vote { leader_id: LeaderId::new(ballot.term, ballot.node), committed: ballot.granted_by_quorum }
    }
}

/// Who votes and who only listens. Two sets of voters while one is being replaced by the other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoredMembership {
    pub voter_sets: Vec<BTreeSet<NodeId>>,
    /// Voters and learners.
    pub nodes: BTreeMap<NodeId, RaftAddress>,
}

impl From<&RaftMembership> for StoredMembership {
    fn from(from: &RaftMembership) -> Self {
        Self {
            voter_sets: from.get_joint_config().clone(),
            nodes: from.nodes().map(|(id, address)| (*id, address.clone())).collect(),
        }
    }
}
impl StoredMembership {
    fn into_raft(self) -> Result<RaftMembership, String> {
        if self.voter_sets.is_empty() && self.nodes.is_empty() {
            return Ok(RaftMembership::default()); // Nothing is known yet; only a snapshot of nothing has it.
        }
        RaftMembership::new(self.voter_sets, self.nodes).map_err(|error| error.to_string())
    }
}

/// One entry of the log, as it stands in the file and in an append message.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StoredEntry {
    #[serde(flatten)]
    pub at: LogPosition,
    #[serde(flatten)]
    pub envelope: Envelope,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Envelope {
    pub version: u32,
    pub kind: String,
    pub body: Value,
}

impl Envelope {
    fn of(kind: &str, body: Value) -> Self {
        Self { version: VERSION, kind: kind.to_string(), body }
    }
    /// The contents must have string keys and no failing serializers, which holds for all of ours.
    fn of_change(change: &Change) -> Self {
        match change {
            Change::Known(command) => {
                let mut tagged = to_value(&**command);
                let kind = tagged["kind"].as_str().expect("a command is tagged with its kind").to_string();
                Self { version: VERSION, kind, body: tagged["body"].take() }
            }
            Change::Unknown(unknown) => {
                Self { version: unknown.version, kind: unknown.kind.clone(), body: unknown.body.clone() }
            }
        }
    }
    fn into_change(self) -> Change {
        let unknown = |why: String, envelope: Envelope| {
            Change::Unknown(Arc::new(UnknownChange {
                version: envelope.version,
                kind: envelope.kind,
                body: envelope.body,
                why,
            }))
        };
        if self.version > VERSION {
            return unknown(format!("it has version {} and this build knows up to {VERSION}", self.version), self);
        }
        match serde_json::from_value::<Command>(json!({ "kind": self.kind, "body": self.body })) {
            Ok(command) => Change::Known(Arc::new(command)),
            Err(error) => unknown(error.to_string(), self),
        }
    }
}

fn to_value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).expect("our types have string keys and serializers that cannot fail")
}

impl From<&Entry> for StoredEntry {
    fn from(entry: &Entry) -> Self {
        let envelope = match &entry.payload {
            Payload::Blank => Envelope::of(BLANK, json!({})),
            Payload::Membership(membership) => Envelope::of(MEMBERSHIP, to_value(&StoredMembership::from(membership))),
            Payload::Normal(change) => Envelope::of_change(change),
        };
        Self { at: entry.log_id.into(), envelope }
    }
}

impl StoredEntry {
    /// An entry that says who votes.
    pub(crate) fn membership(at: LogPosition, of: &StoredMembership) -> Self {
        Self { at, envelope: Envelope::of(MEMBERSHIP, to_value(of)) }
    }
}

impl From<StoredEntry> for Entry {
    /// Never fails: what cannot be read becomes a `Change::Unknown`, which the store refuses by name.
    fn from(stored: StoredEntry) -> Self {
        let StoredEntry { at, envelope } = stored;
        let known = envelope.version <= VERSION;
        let payload = match envelope.kind.as_str() {
            BLANK if known => Payload::Blank,
            MEMBERSHIP if known => {
                let read = serde_json::from_value::<StoredMembership>(envelope.body.clone())
                    .map_err(|error| error.to_string())
                    .and_then(StoredMembership::into_raft);
                match read {
                    Ok(membership) => Payload::Membership(membership),
                    Err(why) => Payload::Normal(Change::Unknown(Arc::new(UnknownChange {
                        version: envelope.version,
                        kind: envelope.kind,
                        body: envelope.body,
                        why,
                    }))),
                }
            }
            _ => Payload::Normal(envelope.into_change()),
        };
        Entry { log_id: at.into(), payload }
    }
}

// openraft asks its entries for these; we store and send `StoredEntry`, which has the same form.
impl Serialize for Change {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        Envelope::of_change(self).serialize(to)
    }
}
impl<'de> Deserialize<'de> for Change {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Envelope::deserialize(from).map(Envelope::into_change)
    }
}

/// The whole record up to a place in the log, as it stands in the file and in a snapshot message.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StoredSnapshot {
    /// The last entry in it.
    pub last: Option<LogPosition>,
    /// The last membership in it, and where that was written.
    pub membership: StoredMembership,
    pub membership_at: Option<LogPosition>,
    #[serde(flatten)]
    pub envelope: SnapshotEnvelope,
}

/// The record is kept as itself while it is in memory: at a few megabytes, a detour over `Value` would be felt.
#[derive(Clone, PartialEq, Debug)]
pub enum SnapshotEnvelope {
    Known(Arc<Record>),
    Unknown { version: u32, kind: String, body: Value },
}

impl Serialize for SnapshotEnvelope {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Form<'a, B> {
            version: u32,
            kind: &'a str,
            body: &'a B,
        }
        match self {
            Self::Known(record) => {
                let version = match () {
                    () if record.has_places_taken() => WITH_PLACES,
                    () if record.has_moves_or_forks() => WITH_MOVES,
                    () if record.has_members_moving() => WITH_MEMBERS_MOVING,
                    () => VERSION,
                };
                Form { version, kind: RECORD, body: &**record }.serialize(to)
            }
            Self::Unknown { version, kind, body } => Form { version: *version, kind, body }.serialize(to),
        }
    }
}
impl<'de> Deserialize<'de> for SnapshotEnvelope {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let Envelope { version, kind, body } = Envelope::deserialize(from)?;
        if version > WITH_PLACES || kind != RECORD {
            return Ok(Self::Unknown { version, kind, body });
        }
        serde_json::from_value(body).map(|record| Self::Known(Arc::new(record))).map_err(D::Error::custom)
    }
}

impl From<&Snapshot> for StoredSnapshot {
    fn from(from: &Snapshot) -> Self {
        Self {
            last: from.meta.last_log_id.map(Into::into),
            membership: from.meta.last_membership.membership().into(),
            membership_at: from.meta.last_membership.log_id().map(Into::into),
            envelope: SnapshotEnvelope::Known(from.snapshot.clone()),
        }
    }
}
impl StoredSnapshot {
    /// Why it cannot be used, if it cannot.
    pub(crate) fn into_raft(self) -> Result<Snapshot, String> {
        let record = match self.envelope {
            SnapshotEnvelope::Known(record) => record,
            SnapshotEnvelope::Unknown { version, kind, .. } => {
                return Err(format!(
                    "it is a {kind:?} of version {version}, and this build knows {RECORD:?} up to {WITH_PLACES}"
                ));
            }
        };
        let membership = EffectiveMembership::new(self.membership_at.map(Into::into), self.membership.into_raft()?);
        let meta = SnapshotMeta { last_log_id: self.last.map(Into::into), last_membership: membership };
        Ok(Snapshot { meta, snapshot: record })
    }
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;
