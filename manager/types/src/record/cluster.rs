//! One cluster as recorded: its members, its epoch, who leads it, and what an election must hear.

use super::fetch::LogFetch;
use super::members::{Departed, Moving, Standing};
use super::operator::{ForcedEpoch, Planned};
use super::place::{Aside, TakesPlace};
use super::recovery::Recovered;
use super::sync_set::{SetChange, SyncSet};
use crate::ids::{ClusterId, Incarnation, MemberId, NodeId, OperationId, SnapshotId, VolumeId};
use crate::position::{Epoch, Lsn, Position, Timeline};
use crate::secret::Secret;
use crate::spec::ClusterSpec;
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ClusterRecord {
    pub id: ClusterId,
    pub spec: ClusterSpec,
    /// Grows by one with each change of this cluster; a change names the revision that it was decided on.
    pub revision: u64,
    pub created_at: WallTime,
    pub lifecycle: Lifecycle,
    pub ports: ClusterPorts,
    pub postgres_major: u16,
    pub secrets: ClusterSecrets,
    /// Known once the first member has been promoted; from then on nobody runs `initdb` for this cluster.
    pub system_identifier: Option<String>,
    pub members: BTreeMap<MemberId, MemberRecord>,
    /// Members no more, whose nodes have yet to say that the volume is gone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub departed: BTreeMap<MemberId, Departed>,
    pub epoch: Epoch,
    pub leadership: Leadership,
    /// Oldest first: the last confirmed configuration (none before the first confirmation), then every later chosen one.
    /// An election must satisfy each of them. The last entry is that of `epoch` unless an election is open.
    pub configs: Vec<EpochConfig>,
    /// One entry per promotion that happened, oldest first.
    pub history: Vec<HistoryEntry>,
    /// The greatest timeline number ever given, used or not.
    pub last_timeline: Timeline,
    pub switchover: Option<Switchover>,
    pub restart: Option<Restart>,
    /// The operation that made the cluster, until it has ended.
    pub creating: Option<OperationId>,
    #[serde(default)]
    pub planned: Planned,
    /// Changes of leader that a person has forced, oldest first.
    #[serde(default)]
    pub forced: Vec<ForcedEpoch>,
    /// Set when the record went on from one survivor's copy, and kept from then on.
    #[serde(default)]
    pub recovered: Option<Recovered>,
    /// The operation that changed the spec, until the cluster is what it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updating: Option<OperationId>,
    /// A member that is being replaced by one on another node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Moving>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetch: Option<LogFetch>,
    /// Who streams from another standby rather than from the leader, and from whom. See [`ClusterRecord::relay_of`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub upstreams: BTreeMap<Incarnation, Incarnation>,
    /// Whose data the cluster began with, where it is a fork.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forked: Option<Forked>,
    /// Who was sent back to the leader in this epoch, and by which revision. The leader's node has to know that one before it
    /// lets them in: until then that they do not hear the leader says nothing of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub returned: BTreeMap<Incarnation, u64>,
    /// Whose place it takes as soon as it is what its spec says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takes_place: Option<TakesPlace>,
    /// It takes no clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aside: Option<Aside>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Lifecycle {
    Active,
    /// Members remove their volumes and leave; the record goes with the last of them.
    Deleting {
        operation: OperationId,
    },
}

/// Where the data of a fork comes from: a snapshot of a member of another cluster, on the node of the fork's first member.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Forked {
    pub cluster: ClusterId,
    /// That cluster's name then.
    pub name: String,
    /// Whose volume the snapshot is of.
    pub member: MemberId,
    pub snapshot: SnapshotId,
    /// When it was taken.
    pub taken: WallTime,
    /// The member of the fork whose volume is made from it.
    pub first: MemberId,
    /// Passwords of roles that are not pgstead's own stay what they were; else they are removed before anyone is let in.
    #[serde(default, skip_serializing_if = "is_false")]
    pub keeps_passwords: bool,
}

/// Ports, the same on every node, recorded at creation. Those of the gateways go with the name, where another cluster takes this one's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterPorts {
    /// The members' own Postgres.
    pub postgres: u16,
    /// The gateways' read-write port.
    pub read_write: u16,
    /// The gateways' read-only port.
    pub read_only: u16,
}

/// Keys and passwords of one cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterSecrets {
    /// The cluster's own CA: clients and members trust it, and it signs replication certificates.
    pub ca_cert_pem: String,
    pub ca_key_pem: Secret,
    /// The one server certificate that members and gateways present alike, so that SCRAM's channel binding passes through.
    pub server_cert_pem: String,
    pub server_key_pem: Secret,
    /// Hosts that the server certificate names.
    pub server_hosts: BTreeSet<String>,
    /// Password of the spec's owner.
    pub owner_password: Secret,
    /// Password of the role that consumers of logical slots log in as. `None` where the spec asks for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer_password: Option<Secret>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemberRecord {
    pub id: MemberId,
    /// `<cluster>-<n>`, for people.
    pub name: String,
    pub node: NodeId,
    pub volume: VolumeId,
    /// The number that this member's data must have. When it is raised, the member rebuilds its data first.
    pub incarnation: u32,
    /// Grows when the member's Postgres has to be restarted.
    #[serde(default)]
    pub restarts: u32,
    /// Whether it is to stay.
    #[serde(default, skip_serializing_if = "Standing::is_settled")]
    pub standing: Standing,
}

impl MemberRecord {
    pub fn current(&self) -> Incarnation {
        Incarnation { member: self.id, number: self.incarnation }
    }
}

/// Who leads, in the order in which it comes to be: record, fence, promote, confirm, publish.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Leadership {
    /// The epoch is recorded and its leader is not. Members promise; nobody is obeyed.
    Electing {
        reason: EpochReason,
        /// Taken over an equal one, as a switchover asks.
        preferred: Option<MemberId>,
    },
    /// Written once per epoch. The leader promotes.
    Chosen { leader: MemberId },
    /// The leader runs on its timeline; its set must flush past the end of recovery.
    Promoted { leader: MemberId },
    /// Clients are let in.
    Confirmed { leader: MemberId },
}

impl Leadership {
    pub fn leader(&self) -> Option<MemberId> {
        match self {
            Leadership::Electing { .. } => None,
            Leadership::Chosen { leader } | Leadership::Promoted { leader } | Leadership::Confirmed { leader } => {
                Some(*leader)
            }
        }
    }
}

/// Why an epoch began; shown to people and kept in the events.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EpochReason {
    /// The first epoch of a cluster.
    Created,
    /// The leader's guard saw its Postgres end.
    PostgresEnded,
    /// The leader's node closed its connections, and no standby hears from its Postgres.
    NodeLost,
    /// The leader's node fell silent, and a standby says the same of its Postgres.
    NodeSilent,
    /// The leader runs, and too few of its standbys can reach it.
    CutFromStandbys,
    /// The leader's Postgres accepts connections and answers nobody.
    PostgresHung,
    /// The leader's storage takes no writes: full, read-only or failing.
    StorageFailed,
    /// Pages of the leader have wrong checksums.
    DataCorruption,
    /// The sync set changes and cannot do so in place: a standby that must be made anew leaves it and nobody else could
    /// acknowledge, or the leader is to acknowledge alone from now on, or no longer.
    SyncSetChange,
    /// The chosen one could not be promoted.
    PromotionFailed,
    Switchover,
    Restart,
    /// A person accepts the loss of what only absent members may have.
    Forced,
    /// The record was recovered from one survivor's copy, and its members may know newer epochs than it does.
    RecordBehind,
}

impl EpochReason {
    /// Whether the old leader is well and can be stopped cleanly instead of being fenced.
    pub fn is_planned(self) -> bool {
        matches!(
            self,
            EpochReason::Switchover | EpochReason::Restart | EpochReason::SyncSetChange | EpochReason::DataCorruption
        )
    }
}

/// A leader, its timeline and its sync set, chosen once per epoch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EpochConfig {
    pub epoch: Epoch,
    pub leader: Incarnation,
    /// `T_e`: greater than every number given before.
    pub timeline: Timeline,
    /// Where the leader stood when it was chosen; its promotion forks at or after this. Zero for the first epoch.
    pub start: Position,
    /// What an election asks. While a change is under way it covers every set that Postgres may still go by.
    pub sync_set: SyncSet,
    /// Its leader acknowledges alone, under a lease, though the cluster has other members. The sync set is empty.
    #[serde(default, skip_serializing_if = "is_false")]
    pub asynchronous: bool,
    /// The choice may have left acknowledged commits behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub possible_loss: Option<PossibleLoss>,
    /// Fewer acknowledgements are asked for than the spec says, because durability `available` went on without those who were
    /// away: not by a person's word, and not because more are still to be asked for.
    #[serde(default, skip_serializing_if = "is_false")]
    pub degraded: bool,
    /// What Postgres is to go by, while that is not the recorded set itself: the change is settled once it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<SetChange>,
}

impl EpochConfig {
    /// What Postgres is to go by.
    pub fn loaded(&self) -> &SyncSet {
        self.target.as_ref().map_or(&self.sync_set, |change| &change.set)
    }
}

impl EpochConfig {
    /// What its leader writes is acknowledged whether or not anybody else has it: an asynchronous leader, one to whom a person
    /// has left too few copies, the only member.
    pub fn acknowledges_alone(&self) -> bool {
        self.sync_set.needed == 0
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

/// Commits that an asynchronous leader may have acknowledged and that no chosen member has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PossibleLoss {
    /// From where the new leader stood to where the old one was last known to have flushed; more may have been written after
    /// that. `None` when its last position is not known.
    pub bytes: Option<u64>,
}

impl std::fmt::Display for PossibleLoss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.bytes {
            Some(bytes) => {
                write!(f, "at least {} of log that the old leader had, by its last report", crate::Bytes(bytes))
            }
            None => f.write_str("an unknown part of the old leader's log"),
        }
    }
}

/// One promotion that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HistoryEntry {
    pub epoch: Epoch,
    pub timeline: Timeline,
    /// The timeline that it left.
    pub parent: Timeline,
    /// Where it left it.
    pub fork_lsn: Lsn,
    /// Flushed past this by `k` of the set, the epoch is confirmed.
    pub end_of_recovery: Lsn,
    pub leader: MemberId,
    /// What this change of leader may have lost; nothing, where this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub possible_loss: Option<PossibleLoss>,
}

/// A planned change of leader.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Switchover {
    pub operation: OperationId,
    pub from: MemberId,
    pub to: MemberId,
    /// The epoch in which it was asked for. In any later one it is over, whoever leads.
    pub epoch: Epoch,
    /// False while the leader is still asked to checkpoint; true once it is to let go of clients and stop cleanly.
    pub draining: bool,
    /// Set when this switchover is the last part of a restart.
    pub for_restart: bool,
}

/// Every member is restarted, standbys first, one at a time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Restart {
    pub operation: OperationId,
    /// Members still to be restarted.
    pub remaining: BTreeSet<MemberId>,
    /// The standby that is being restarted now.
    pub current: Option<MemberId>,
    /// The epoch that this restart has begun for a leader with nobody to hand over to.
    #[serde(default)]
    pub leader_restarted_in: Option<Epoch>,
}

impl ClusterRecord {
    pub fn leader(&self) -> Option<&MemberRecord> {
        self.leadership.leader().and_then(|id| self.members.get(&id))
    }
    /// The configuration of the present epoch, once a leader is chosen.
    pub fn config(&self) -> Option<&EpochConfig> {
        self.configs.last().filter(|config| config.epoch == self.epoch)
    }
    /// The entry of the present epoch, once its leader was promoted.
    pub fn promotion(&self) -> Option<&HistoryEntry> {
        self.history.last().filter(|entry| entry.epoch == self.epoch)
    }
    /// The epoch whose promotion made the last noted leader one: later epochs that it led as well do not count. 0 before the
    /// first promotion.
    pub fn leads_since(&self) -> Epoch {
        let last = self.history.last().map(|entry| entry.leader);
        let its_own = self.history.iter().rev().take_while(|entry| Some(entry.leader) == last);
        its_own.last().map_or(Epoch(0), |entry| entry.epoch)
    }
    /// Nobody was ever promoted: there is no data yet, or that of a fork's source.
    pub fn begins(&self) -> bool {
        self.system_identifier.is_none() && self.history.is_empty()
    }
    /// A fork whose first member may still need the snapshot that it is made of.
    pub fn is_being_forked(&self) -> bool {
        self.begins() && self.forked.is_some() && self.lifecycle == Lifecycle::Active
    }
    pub fn member_on(&self, node: NodeId) -> Option<&MemberRecord> {
        self.members.values().find(|member| member.node == node)
    }
    pub fn is_confirmed(&self) -> bool {
        matches!(self.leadership, Leadership::Confirmed { .. })
    }
    /// The timelines that lead to `timeline`, oldest first, each with the position up to which it is shared. A promotion
    /// that was chosen and never noted counts with where its leader stood: its true fork lies there or later.
    pub fn ancestry(&self, timeline: Timeline) -> Vec<(Timeline, Lsn)> {
        let mut ancestry = Vec::new();
        let mut child = timeline;
        loop {
            let noted = self.history.iter().find(|entry| entry.timeline == child).map(|e| (e.parent, e.fork_lsn));
            let chosen = || {
                let config = self.configs.iter().find(|config| config.timeline == child)?;
                Some((config.start.timeline, config.start.lsn))
            };
            match noted.or_else(chosen) {
                // Parents are always older numbers, so this ends.
                Some((parent, fork)) if parent < child && parent > Timeline(0) => {
                    ancestry.push((parent, fork));
                    child = parent;
                }
                _ => break,
            }
        }
        ancestry.reverse();
        ancestry
    }

    /// Whether a log that ends at `position` is a prefix of one that ends at `end`.
    pub fn is_prefix(&self, position: Position, end: Position) -> bool {
        if position.timeline == end.timeline {
            return position.lsn <= end.lsn;
        }
        self.ancestry(end.timeline)
            .iter()
            .any(|(timeline, shared)| *timeline == position.timeline && position.lsn <= *shared)
    }

    /// Whether a member at `position` may stream from the present epoch's leader: its log is a prefix of the leader's.
    /// Until the promotion is noted, where the leader stood when it was chosen is the bound. `None` while the epoch has
    /// no leader.
    pub fn may_follow(&self, position: Position) -> Option<bool> {
        let config = self.config()?;
        if position.timeline == config.timeline {
            // Already on the epoch's own timeline, which only its leader writes.
            return Some(true);
        }
        let end = match self.promotion() {
            // The chosen one's log may have ended inside a record, which it dropped when it forked. Whoever ends at or
            // before that place holds the same bytes and cannot have replayed that record either.
            Some(promotion) if promotion.parent == config.start.timeline => {
                Position { timeline: promotion.parent, lsn: promotion.fork_lsn.max(config.start.lsn) }
            }
            Some(promotion) => Position { timeline: promotion.parent, lsn: promotion.fork_lsn },
            None => config.start,
        };
        Some(self.is_prefix(position, end))
    }
}
