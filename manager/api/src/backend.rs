//! What the API needs of the node it runs on. The daemon implements it; the tests have a fake.

use async_trait::async_trait;
use bytes::Bytes;
use pgstead_types::placement::{Judged, Judgement};
use pgstead_types::record::{ForcedLoss, NodeService, Record, Refusal};
use pgstead_types::report::MemberReport;
use pgstead_types::spec::{ClusterSpec, SpecError};
use pgstead_types::storage::{SnapshotSeen, StorageSeen};
use pgstead_types::{
    ClusterId, DeploymentId, Epoch, Finding, MemberId, NodeId, OperationId, Position, Secret, SnapshotId, TokenId,
    VolumeId, WallTime,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// One node of a deployment, as the API sees it.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// This node.
    fn node(&self) -> NodeId;
    /// The record as far as this node has applied it.
    fn record(&self) -> Arc<Record>;
    /// Carries the record's revision. A waiter subscribes, reads `record()`, and waits for the next change.
    fn watch_revision(&self) -> tokio::sync::watch::Receiver<u64>;
    /// The node that leads the Raft group, as far as this one knows.
    fn controller(&self) -> Option<NodeId>;
    /// Whether this is the admin token. Compares in constant time.
    fn authenticate(&self, bearer: &str) -> bool;
    /// What nodes report and what the controller concludes; `None` anywhere but on the controller.
    async fn observed(&self) -> Option<Observations>;

    async fn create_cluster(&self, spec: ClusterSpec) -> Result<Accepted, Rejected>;
    /// Makes a cluster that begins with the data of another one.
    async fn fork_cluster(&self, source: ClusterId, asked: ForkAsked) -> Result<Accepted, Rejected>;
    /// Has a cluster go back to what it was, and keeps what it is now.
    async fn roll_back(&self, cluster: ClusterId, asked: RollBackAsked) -> Result<Accepted, Rejected>;
    /// Takes a rollback back that has not been done yet.
    async fn cancel_rollback(&self, cluster: ClusterId) -> Result<Accepted, Rejected>;
    /// With `revision`, only if the cluster is still at that one.
    async fn delete_cluster(&self, cluster: ClusterId, revision: Option<u64>) -> Result<Accepted, Rejected>;
    async fn update_cluster(
        &self,
        cluster: ClusterId,
        spec: ClusterSpec,
        revision: Option<u64>,
    ) -> Result<Accepted, Rejected>;
    async fn restart_cluster(&self, cluster: ClusterId, revision: Option<u64>) -> Result<Accepted, Rejected>;
    async fn switchover(
        &self,
        cluster: ClusterId,
        asked: SwitchoverAsked,
        revision: Option<u64>,
    ) -> Result<Accepted, Rejected>;
    /// What blocks a switchover now, everything at once. Changes nothing.
    async fn check_switchover(&self, cluster: ClusterId, to: Option<MemberId>) -> Result<SwitchoverChecked, Rejected>;
    /// Takes back a switchover that was asked for later.
    async fn cancel_switchover(&self, cluster: ClusterId, revision: Option<u64>) -> Result<Accepted, Rejected>;
    /// What a forced failover to `to` would lose, as far as is known, and whether it may be done. Changes nothing.
    async fn check_failover(&self, cluster: ClusterId, to: MemberId) -> Result<FailoverChecked, Rejected>;
    /// Elects without the promises that are missing. `by` says who accepts the loss.
    async fn force_failover(
        &self,
        cluster: ClusterId,
        to: MemberId,
        by: String,
        revision: Option<u64>,
    ) -> Result<Accepted, Rejected>;
    async fn create_join_token(&self, ttl: Duration) -> Result<NewJoinToken, Rejected>;
    async fn join(&self, request: JoinRequest) -> Result<JoinAnswer, Rejected>;
    async fn remove_node(&self, node: NodeId) -> Result<(), Rejected>;
    async fn set_node_service(&self, node: NodeId, service: NodeService) -> Result<(), Rejected>;
    /// Replaces a member by a new one on that node, or on the best one.
    async fn move_member(&self, cluster: ClusterId, member: MemberId, to: Option<NodeId>)
    -> Result<Accepted, Rejected>;
    /// Takes back a move whose old member is there still; with `member`, only if that one is being moved.
    async fn cancel_move(&self, cluster: ClusterId, member: Option<MemberId>) -> Result<Accepted, Rejected>;
    /// Where members would go now, by the decision that places them. Changes nothing.
    async fn explain_placement(&self, asked: PlacementAsked) -> Result<PlacementExplained, Rejected>;
    /// Removes a volume of that node that no member has.
    async fn remove_volume(&self, node: NodeId, volume: VolumeId) -> Result<(), Rejected>;
    /// Takes a snapshot of a member's volume, to be kept for so long.
    async fn take_snapshot(
        &self,
        cluster: ClusterId,
        member: MemberId,
        keep: Option<Duration>,
    ) -> Result<SnapshotSeen, Rejected>;
    async fn remove_snapshot(&self, node: NodeId, snapshot: SnapshotId) -> Result<(), Rejected>;

    /// Sends a request as it is to another node's API and brings back its answer. The bearer token travels along and is
    /// checked again there. `Rejected::Unreachable` when nothing was sent, `Rejected::Unknown` when it may have been.
    async fn forward(&self, to: NodeId, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, Rejected>;

    /// Prometheus' text format.
    fn metrics(&self) -> String;
    /// `Err` says in one sentence why this node should not get requests now.
    fn ready(&self) -> Result<(), String>;
}

/// What the controller holds of the nodes' reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observations {
    pub at: WallTime,
    pub nodes: BTreeMap<NodeId, NodeSeen>,
    pub members: BTreeMap<MemberId, MemberSeen>,
    /// Of the controller's decisions and of the nodes themselves. Members' own are in their reports.
    pub findings: Vec<Finding>,
    /// Of the nodes that have looked at theirs.
    pub storage: BTreeMap<NodeId, StorageSeen>,
}

/// A node as the controller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSeen {
    /// False also while nothing was heard of it since the controller began.
    pub reachable: bool,
    /// Time since its last report; `None` when there was none since the controller began.
    pub silent_ms: Option<u64>,
}

/// The last report of a member.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberSeen {
    pub report: MemberReport,
    /// Time since it arrived at the controller.
    pub age_ms: u64,
    /// Its node is, as the controller judges.
    pub reachable: bool,
}

/// A fork as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkAsked {
    pub name: String,
    pub members: u8,
    pub of: ForkOf,
    pub keeps_passwords: bool,
}

/// Where a cluster is to go back to, and under which name what it is now is kept; one that is free if absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RollBackAsked {
    To {
        node: NodeId,
        snapshot: SnapshotSeen,
        keep_as: Option<String>,
    },
    /// What was kept aside last.
    Undo {
        keep_as: Option<String>,
    },
}

/// What a fork is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForkOf {
    /// This member as it is now.
    Member(MemberId),
    /// A snapshot that is there, on that node.
    Snapshot(NodeId, SnapshotSeen),
}

/// A switchover as asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwitchoverAsked {
    /// Without it, the standby that is closest when it begins.
    pub to: Option<MemberId>,
    /// From when and until when it may begin; at once if absent.
    pub when: Option<(WallTime, WallTime)>,
    /// Passes over what is only a warning.
    pub overrule: bool,
}

/// Whose placement is to be explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlacementAsked {
    /// A cluster that is not there yet.
    New(Box<ClusterSpec>),
    /// One that is: of one more member, and of those that it has.
    More(ClusterId),
}

/// What placement would do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementExplained {
    pub judgement: Judgement,
    /// Why it would not be done.
    pub refused: Option<String>,
    pub present: Vec<PresentJudged>,
}

/// A member that is there, as if it had no node yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresentJudged {
    pub member: MemberId,
    /// Its own node.
    pub at: Judged,
    pub better: Option<NodeId>,
}

/// What a switchover would be now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SwitchoverChecked {
    pub from: Option<MemberId>,
    pub to: Option<MemberId>,
    pub lag: Option<pgstead_types::Bytes>,
    /// An error blocks, a warning blocks unless it is overruled, the rest does not.
    pub findings: Vec<Finding>,
}

/// What a forced failover would be now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FailoverChecked {
    pub epoch: Epoch,
    pub loss: ForcedLoss,
    /// Every member, whether it is here, and how far its log was last seen to reach.
    pub members: Vec<(MemberId, bool, Option<Position>)>,
    /// Why it is refused; empty if it may be done.
    pub refused: Vec<Finding>,
}

/// Long work has begun; it is recorded and goes on without the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub operation: OperationId,
    pub cluster: ClusterId,
}

/// A join token as it is shown, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJoinToken {
    pub id: TokenId,
    /// The whole text that `pgstead node join` takes.
    pub token: Secret,
    pub expires_at: WallTime,
}

/// A host that wants to become a node. It made its key itself; only the request to sign it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    pub token: Secret,
    pub name: String,
    pub host: String,
    pub port: u16,
    pub region: String,
    pub zone: String,
    pub postgres_majors: Vec<u16>,
    pub pools: Vec<String>,
    pub csr_pem: String,
}

/// What a new node needs to take part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinAnswer {
    pub node: NodeId,
    pub deployment: DeploymentId,
    pub ca_pem: String,
    pub cert_pem: String,
    pub peers: Vec<Peer>,
}

/// Another node's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub node: NodeId,
    pub host: String,
    pub port: u16,
}

/// Why a request was not done. The texts are for the person who asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The record did not take it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    BadSpec(#[from] SpecError),
    /// Well formed, and it cannot be, for example a name, a lifetime or a signing request.
    #[error("{why}")]
    Invalid { why: String },
    #[error("no {what} {id:?} in this deployment")]
    NotFound { what: &'static str, id: String },
    /// Cannot be done in the present state, for example too few nodes.
    #[error("{why}")]
    Conflict { why: String },
    #[error("the join token is {why}; make a new one with `pgstead token create`")]
    BadToken { why: String },
    /// This node does not lead the Raft group (any more), and nothing was done.
    #[error("this node does not lead the Raft group")]
    NotController,
    /// The Raft group has no quorum, and nothing was done.
    #[error("{why}")]
    NoQuorum { why: String },
    /// Another node could not be reached, and nothing was sent.
    #[error("node {node} cannot be reached: {why}")]
    Unreachable { node: NodeId, why: String },
    /// It may or may not have been done.
    #[error("whether it was done is unknown: {why}")]
    Unknown { why: String },
    #[error("{why}")]
    Internal { why: String },
}
