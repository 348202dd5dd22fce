//! The entries of the replicated log. Each is stored as `{version, kind, body}` with named fields; a voter that meets a
//! kind it does not know stops rather than skips it.

use super::cluster::{ClusterPorts, ClusterSecrets, EpochReason, Forked, PossibleLoss};
use super::fetch::LogFetch;
use super::operator::{ForcedLoss, ScheduledSwitchover};
use super::place::TakesPlace;
use super::sync_set::SyncSet;
use super::{Deployment, JoinToken, MemberRecord, NodeRecord, NodeService};
use crate::ids::{ClusterId, Incarnation, MemberId, NodeId, OperationId, RecoveryId, TokenId};
use crate::position::{Epoch, Lsn, Position, Timeline};
use crate::secret::Secret;
use crate::spec::ClusterSpec;
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// One change of the record. `at` is the proposer's time of day, for people only.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "body")]
pub enum Command {
    /// The first entry of a deployment.
    Found {
        at: WallTime,
        deployment: Deployment,
        node: NodeRecord,
    },
    /// A known node says where it is now.
    UpdateNode {
        at: WallTime,
        node: NodeRecord,
    },
    /// A node joins by a token, which is used up by that.
    AdmitNode {
        at: WallTime,
        token: TokenId,
        node: NodeRecord,
    },
    /// A person takes a node out of service, or back.
    SetNodeService {
        at: WallTime,
        node: NodeId,
        service: NodeService,
    },
    /// A node without members leaves.
    RemoveNode {
        at: WallTime,
        node: NodeId,
    },
    AddJoinToken {
        at: WallTime,
        token: JoinToken,
    },
    CreateCluster {
        at: WallTime,
        cluster: Box<NewCluster>,
    },
    /// The same with the data of another cluster. A kind of its own: a voter that does not know it must not make an empty one.
    ForkCluster {
        at: WallTime,
        cluster: Box<NewCluster>,
        forked: Forked,
    },
    /// The same for a fork that is to take its source's place: the source goes back to what it was then.
    RollBackCluster {
        at: WallTime,
        cluster: Box<NewCluster>,
        forked: Forked,
        takes_place: TakesPlace,
    },
    /// A cluster takes the place of one that is set aside, and that one's leader has been seen to take no clients. Decided on exactly
    /// these revisions of the two.
    TakePlace {
        at: WallTime,
        cluster: ClusterId,
        revision: u64,
        of_revision: u64,
    },
    /// A change of one cluster, decided on exactly that revision of it.
    ChangeCluster {
        at: WallTime,
        cluster: ClusterId,
        revision: u64,
        change: ClusterChange,
    },
    /// Most voters were lost for good, and the record goes on from what one survivor had.
    RecoverQuorum {
        at: WallTime,
        recovery: RecoveryId,
        /// Where.
        node: NodeId,
        /// Who said that the others are lost.
        by: String,
        lost: BTreeSet<NodeId>,
    },
    EndOperation {
        at: WallTime,
        operation: OperationId,
        failure: Option<String>,
    },
}

/// A cluster to be made, already placed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NewCluster {
    pub id: ClusterId,
    pub operation: OperationId,
    pub spec: ClusterSpec,
    pub postgres_major: u16,
    pub ports: ClusterPorts,
    pub secrets: ClusterSecrets,
    /// All members; the first one runs `initdb`, unless the cluster is a fork, and leads epoch 1.
    pub members: Vec<MemberRecord>,
}

/// What can change in a cluster.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum ClusterChange {
    /// Open an election: from here on every member that sees it promises.
    BeginEpoch {
        epoch: Epoch,
        reason: EpochReason,
        preferred: Option<MemberId>,
    },
    /// Name the leader of the open epoch, once. `rebuild` lists members whose incarnation is raised with it.
    Choose {
        epoch: Epoch,
        leader: Incarnation,
        timeline: Timeline,
        start: Position,
        sync_set: SyncSet,
        rebuild: Vec<MemberId>,
        /// Acknowledged commits may be left behind by it. Only from an asynchronous leader.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        possible_loss: Option<PossibleLoss>,
    },
    /// A promiser of the open election fetches log from another one, once in an epoch.
    FetchLog {
        fetch: LogFetch,
    },
    /// The chosen one runs on its timeline.
    NotePromotion {
        epoch: Epoch,
        timeline: Timeline,
        parent: Timeline,
        fork_lsn: Lsn,
        end_of_recovery: Lsn,
        system_identifier: String,
    },
    /// `k` of the set have flushed past the end of recovery; everything acknowledged before is in this epoch.
    Confirm {
        epoch: Epoch,
    },
    /// A member that has caught up counts from now on. Recorded before Postgres hears of it.
    AddToSyncSet {
        epoch: Epoch,
        incarnation: Incarnation,
    },
    /// The set is to become this one, in place. The record is widened first, so that an election finds whatever the old
    /// and the new set acknowledge; Postgres loads `set` then.
    SetSyncSet {
        epoch: Epoch,
        set: SyncSet,
    },
    /// Every WAL sender goes by `set`, and so many of it as it asks for have flushed what was acknowledged before.
    SettleSyncSet {
        epoch: Epoch,
        set: SyncSet,
    },
    /// Who streams from another standby from now on, and from whom; everybody else streams from the leader.
    SetUpstreams {
        epoch: Epoch,
        upstreams: BTreeMap<Incarnation, Incarnation>,
    },
    /// A member whose history has left the cluster's starts again under the next number.
    Rebuild {
        member: MemberId,
        incarnation: u32,
        why: String,
    },
    /// In the election after the record was recovered: a member holds a life of data that the record does not know.
    AdoptIncarnation {
        member: MemberId,
        incarnation: u32,
    },
    /// What a person asks of the cluster has changed, and not the number of members.
    UpdateSpec {
        operation: OperationId,
        spec: Box<ClusterSpec>,
        /// A new one, for a spec that begins to ask for logical replication.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        consumer_password: Option<Secret>,
    },
    /// More members are asked for, or fewer, and maybe other things with it.
    ChangeMembers {
        operation: OperationId,
        spec: Box<ClusterSpec>,
        /// Members that it asks for beyond those that there are, already placed.
        #[serde(default)]
        added: Vec<MemberRecord>,
        /// As for [`ClusterChange::UpdateSpec`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        consumer_password: Option<Secret>,
    },
    /// There are more members than the spec asks for, and this one is to go.
    MarkLeaving {
        member: MemberId,
        /// One that was to go, and stays, because this one has been lost.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instead_of: Option<MemberId>,
    },
    /// A member is to be replaced by a new one on another node, which is there beside it until it counts.
    MoveMember {
        operation: OperationId,
        member: MemberId,
        added: MemberRecord,
    },
    /// The member stays, and the new one goes. By a person, or because the new one is lost.
    CancelMove {
        operation: OperationId,
        why: String,
    },
    /// A leaving member counts nowhere any more: it is none from here on.
    RemoveMember {
        member: MemberId,
    },
    /// Its node is here, and those that are left have all of it in good order: the node removes what it has of it.
    ReleaseData {
        member: MemberId,
        /// Of its node's daemon. One that is started later asks anew.
        session: u64,
    },
    RequestSwitchover {
        operation: OperationId,
        to: MemberId,
    },
    /// A switchover for later.
    ScheduleSwitchover {
        scheduled: ScheduledSwitchover,
    },
    /// A person thinks again.
    CancelSwitchover {
        operation: OperationId,
    },
    /// Its time is over and it could not be begun.
    MissSwitchover {
        operation: OperationId,
        why: String,
    },
    /// Its time has come.
    BeginScheduledSwitchover {
        operation: OperationId,
        to: MemberId,
    },
    /// A person opens an epoch whose election may do without the promises that are missing. `epoch` may skip numbers: it is
    /// greater than any that was promised.
    ForceEpoch {
        at: WallTime,
        epoch: Epoch,
        operation: OperationId,
        to: MemberId,
        by: String,
        loss: ForcedLoss,
    },
    /// The leader has checkpointed: clients go and it stops cleanly.
    DrainLeader,
    /// Ends a switchover, either way.
    EndSwitchover {
        failure: Option<String>,
    },
    RequestRestart {
        operation: OperationId,
    },
    /// Restart this member's Postgres next (`None`: that one has come back).
    RestartMember {
        member: Option<MemberId>,
    },
    /// The last part of a restart: the leader hands over and is started again as a standby.
    RestartLeader {
        to: MemberId,
    },
    EndRestart {
        failure: Option<String>,
    },
    RequestDelete {
        operation: OperationId,
    },
    /// The cluster takes no clients from now on: that one takes its place.
    SetAside {
        to: ClusterId,
    },
    /// A cluster that is kept aside takes the place back of the one that has taken it.
    TakeBackPlace {
        operation: OperationId,
        /// What that one is called from then on.
        kept_as: String,
    },
    /// It takes nobody's place after all.
    CancelPlace {
        operation: OperationId,
        why: String,
    },
    /// The volume of a member is gone, of a deleted cluster or of one that it has left.
    NoteRemoved {
        member: MemberId,
    },
    /// New certificates, because the nodes have changed.
    ReplaceSecrets {
        secrets: ClusterSecrets,
    },
}
