//! The replicated record: what all nodes must agree on, and nothing else. Heartbeats and measurements are not here.
//!
//! `cluster` describes one cluster, `command` the log entries, `apply` the only way in which a record
//! changes, `epoch` how one epoch comes to be, `operator` what people have asked of a cluster beyond its spec, `cascade`
//! who streams from another standby, `place` how a cluster takes another one's place.

mod apply;
mod cascade;
mod cluster;
mod command;
mod epoch;
mod fetch;
mod members;
mod operator;
mod place;
mod recovery;
mod sync_set;
mod update;

pub use apply::{Applied, Refusal};
pub use cluster::{
    ClusterPorts, ClusterRecord, ClusterSecrets, EpochConfig, EpochReason, Forked, HistoryEntry, Leadership, Lifecycle,
    MemberRecord, PossibleLoss, Restart, Switchover,
};
pub use members::{DEPARTED_MAX, Departed, Moving, Standing};
pub use sync_set::{SetChange, SyncSet};

use apply::{Outcome, conflict};
pub use command::{ClusterChange, Command, NewCluster};
pub use fetch::LogFetch;
pub use operator::{ASKED_BY_MAX, ForcedEpoch, ForcedLoss, PastSwitchover, Planned, ScheduledSwitchover};
pub use place::{Aside, TakesPlace};
pub use recovery::Recovered;

use crate::ids::{ClusterId, DeploymentId, NodeId, OperationId, TokenId};
use crate::secret::Secret;
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Events kept; older ones go. At a few hundred bytes each this bounds the record's growth to well under a megabyte.
pub const EVENTS_MAX: usize = 1000;
/// Ended operations kept, for the same reason. Running ones are bounded by the clusters.
pub const OPERATIONS_MAX: usize = 500;

/// Everything that is agreed.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// Grows by one with every command that changed something.
    pub revision: u64,
    pub deployment: Option<Deployment>,
    #[serde(default)]
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Nodes that were removed: their certificates are still good by themselves, and open nothing any more. Sixteen bytes
    /// for each host that ever left.
    #[serde(default)]
    pub removed_nodes: BTreeSet<NodeId>,
    #[serde(default)]
    pub clusters: BTreeMap<ClusterId, ClusterRecord>,
    #[serde(default)]
    pub operations: BTreeMap<OperationId, OperationRecord>,
    #[serde(default)]
    pub join_tokens: BTreeMap<TokenId, JoinToken>,
    /// Oldest first.
    #[serde(default)]
    pub events: VecDeque<EventRecord>,
    /// Sequence number of the next event; never reused.
    #[serde(default)]
    pub next_event: u64,
}

/// The installation itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Deployment {
    pub id: DeploymentId,
    pub created_at: WallTime,
    pub ca_cert_pem: String,
    /// Every voter can admit nodes, so every voter holds the key.
    pub ca_key_pem: Secret,
    /// SHA-256 of the admin token, hexadecimal.
    pub admin_token_sha256: String,
    /// First port of the range from which clusters take theirs.
    pub port_first: u16,
    /// Last port of that range.
    pub port_last: u16,
    /// How long a node may run primaries after its report without another answer, in milliseconds. The same for every
    /// controller: a new one waits so long for what its predecessors have granted.
    #[serde(default = "lease_ms")]
    pub lease_ms: u64,
}

/// Of deployments that were founded before there were leases.
fn lease_ms() -> u64 {
    crate::lease::LEASE_MS_DEFAULT
}

/// A host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    pub id: NodeId,
    pub name: String,
    /// Host name or IP address for everything on this node: daemon, Postgres, gateway.
    pub host: String,
    /// Port of the daemon.
    pub port: u16,
    pub region: String,
    pub zone: String,
    /// Major versions of Postgres found on the node.
    pub postgres_majors: Vec<u16>,
    /// Names of its storage pools.
    pub pools: Vec<String>,
    pub joined_at: WallTime,
    /// What a person has said of it.
    #[serde(default, skip_serializing_if = "NodeService::is_open")]
    pub service: NodeService,
}

/// Whether a node takes members, and keeps those that it has. The node itself does not say that.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeService {
    #[default]
    Open,
    /// It takes no new members.
    Cordoned,
    /// And those that it has are moved to other nodes.
    Draining,
}

impl NodeService {
    pub fn is_open(&self) -> bool {
        *self == Self::Open
    }
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
        }
    }
}

/// A join token: who holds its secret may become a node, once and before it expires.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JoinToken {
    pub id: TokenId,
    /// SHA-256 of the secret, hexadecimal.
    pub secret_sha256: String,
    pub expires_at: WallTime,
    /// The node that used it, if any.
    pub used_by: Option<NodeId>,
}

/// A long piece of work as people see it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OperationRecord {
    pub id: OperationId,
    pub kind: OperationKind,
    pub cluster: ClusterId,
    pub cluster_name: String,
    pub started_at: WallTime,
    pub state: OperationState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    CreateCluster,
    DeleteCluster,
    RestartCluster,
    UpdateCluster,
    Switchover,
    ForcedFailover,
    MoveMember,
    RollBackCluster,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum OperationState {
    Running,
    Succeeded { at: WallTime },
    Failed { at: WallTime, why: String },
}

/// Something that happened, for people and for programs that follow along.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventRecord {
    /// Place in the sequence of all events; a reader resumes after the last one that it has seen.
    pub sequence: u64,
    pub at: WallTime,
    /// In snake case, such as `epoch_began` or `leader_confirmed`.
    pub kind: String,
    pub message: String,
    #[serde(default)]
    pub cluster: Option<ClusterId>,
    #[serde(default)]
    pub node: Option<NodeId>,
}

impl Record {
    pub fn cluster_named(&self, name: &str) -> Option<&ClusterRecord> {
        self.clusters.values().find(|cluster| cluster.spec.name == name)
    }
    pub fn node_named(&self, name: &str) -> Option<&NodeRecord> {
        self.nodes.values().find(|node| node.name == name)
    }
    /// The clusters that have a member on `node`.
    pub fn clusters_on(&self, node: NodeId) -> impl Iterator<Item = (&ClusterRecord, &MemberRecord)> {
        self.clusters.values().filter_map(move |cluster| {
            cluster.members.values().find(|member| member.node == node).map(|member| (cluster, member))
        })
    }
    /// All that `node` has to look after: its members, and those that have left and have a volume there still.
    pub fn held_on(&self, node: NodeId) -> impl Iterator<Item = (&ClusterRecord, &MemberRecord)> {
        self.clusters.values().flat_map(move |cluster| {
            let departed = cluster.departed.values().map(|departed| &departed.member);
            let all = cluster.members.values().chain(departed);
            all.filter(move |member| member.node == node).map(move |member| (cluster, member))
        })
    }
}

#[cfg(test)]
mod tests;
