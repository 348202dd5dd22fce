//! A member as the API shows it: what the record wants of it and what its Postgres does.

use super::world::{cluster_ref, is_fresh};
use super::{ClusterRef, FindingView, NodeRef, World};
use crate::backend::MemberSeen;
use pgstead_types::record::{ClusterRecord, MemberRecord, Standing};
use pgstead_types::report::{ClientAccess, DataSeen, PostgresSeen, SenderSeen, StandbySeen, Working};
use pgstead_types::{Epoch, Lsn, MemberId, Timeline, VolumeId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One Postgres instance of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberView {
    #[schema(value_type = String, format = "uuid")]
    pub id: MemberId,
    pub name: String,
    pub cluster: ClusterRef,
    pub node: NodeRef,
    #[schema(value_type = String, format = "uuid")]
    pub volume: VolumeId,
    /// Which life of its data: raised when it is rewound or copied anew.
    pub incarnation: u32,
    /// By the record.
    pub role: Role,
    /// Whether its acknowledgement counts.
    pub in_sync_set: bool,
    /// `settled`; `joining` while the change of the number of members that added it is under way; `leaving` once it is to go.
    #[serde(default)]
    #[schema(value_type = String, pattern = "^(settled|joining|leaving)$")]
    pub standing: Standing,
    /// The member that it is to stream from, by the record; `null` for the leader, and while nobody leads.
    pub upstream: Option<String>,
    /// Its last report; `null` when the controller could not be asked or has not heard of it yet.
    pub observed: Option<MemberObserved>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Leader,
    Standby,
}

/// What the member's node last said of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberObserved {
    /// Time since the report arrived.
    pub age_ms: u64,
    /// Too old to say what is.
    pub stale: bool,
    pub state: MemberState,
    /// Why, where the state has a reason.
    pub why: Option<String>,
    pub data: DataState,
    #[schema(value_type = Option<u32>)]
    pub timeline: Option<Timeline>,
    /// End of the WAL on its disk.
    #[schema(value_type = Option<String>, example = "16/B374D848")]
    pub flushed_lsn: Option<Lsn>,
    /// Standbys only.
    #[schema(value_type = Option<String>)]
    pub replayed_lsn: Option<Lsn>,
    /// How far its disk is behind the leader's; `null` for the leader and when it cannot be told.
    pub lag_bytes: Option<u64>,
    /// How far its readers are behind the leader's disk.
    pub replay_lag_bytes: Option<u64>,
    /// The epoch that it has promised.
    #[schema(value_type = u64)]
    pub promised_epoch: Epoch,
    /// Who may connect; `null` unless it runs.
    pub access: Option<Access>,
    /// The step in flight, or the one that failed and will be tried again.
    pub working: Option<WorkingView>,
    pub findings: Vec<FindingView>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Runs as the primary of the recorded epoch.
    Primary,
    /// Runs as a primary that the record does not name; it can acknowledge nothing.
    StrayPrimary,
    /// Receives WAL from the leader of the recorded epoch.
    Streaming,
    /// Runs in recovery and receives nothing.
    Waiting,
    Starting,
    Down,
    /// Neither alive nor dead.
    Unresponsive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DataState {
    Absent,
    /// A copy or a rewind was cut short.
    Partial,
    /// It was complete and is gone.
    Lost,
    Present,
    /// Not this member's; never touched.
    Foreign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Only the node itself and replication.
    Holding,
    Open,
}

/// A step and how it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkingView {
    /// In snake case, such as `clone`.
    pub step: String,
    pub elapsed_ms: u64,
    pub attempt: u32,
    /// 0 to 100, where the step can tell.
    pub percent: Option<u8>,
    /// Why the last attempt failed, while the next one waits.
    pub error: Option<String>,
}

impl WorkingView {
    fn new(working: &Working) -> Self {
        Self {
            step: working.step.to_string(),
            elapsed_ms: working.elapsed_ms,
            attempt: working.attempt,
            percent: working.percent,
            error: working.error.clone(),
        }
    }
}

impl MemberView {
    pub fn new(world: &World<'_>, cluster: &ClusterRecord, member: &MemberRecord) -> Self {
        let leads = cluster.leadership.leader() == Some(member.id);
        // While an election is open the last configuration's set still decides it.
        let in_sync_set =
            cluster.configs.last().is_some_and(|config| config.sync_set.members.contains(&member.current()));
        Self {
            id: member.id,
            name: member.name.clone(),
            cluster: cluster_ref(cluster),
            node: world.node_ref(member.node),
            volume: member.volume,
            incarnation: member.incarnation,
            role: if leads { Role::Leader } else { Role::Standby },
            in_sync_set,
            standing: member.standing,
            upstream: upstream(cluster, member),
            observed: world.seen(member.id).map(|seen| MemberObserved::new(world, cluster, member, seen)),
        }
    }

    /// Runs as the record wants it to, by a fresh report.
    pub fn is_well(&self) -> bool {
        let wanted = match self.role {
            Role::Leader => MemberState::Primary,
            Role::Standby => MemberState::Streaming,
        };
        self.observed.as_ref().is_some_and(|observed| !observed.stale && observed.state == wanted)
    }
}

impl MemberObserved {
    fn new(world: &World<'_>, cluster: &ClusterRecord, member: &MemberRecord, seen: &MemberSeen) -> Self {
        let report = &seen.report;
        let mut timeline = None;
        let mut flushed_lsn = None;
        let mut replayed_lsn = None;
        let mut access = None;
        let mut why = None;
        let state = match &report.postgres {
            PostgresSeen::Down { .. } => MemberState::Down,
            PostgresSeen::Starting => MemberState::Starting,
            PostgresSeen::Unresponsive { why: reason } => {
                why = Some(reason.clone());
                MemberState::Unresponsive
            }
            PostgresSeen::Primary(primary) => {
                timeline = Some(primary.timeline);
                flushed_lsn = Some(primary.flushed);
                access = Some(primary.access);
                let rightful = cluster.leadership.leader() == Some(member.id) && primary.epoch == Some(cluster.epoch);
                if rightful { MemberState::Primary } else { MemberState::StrayPrimary }
            }
            PostgresSeen::Standby(standby) => {
                timeline = standby.position.map(|position| position.timeline);
                flushed_lsn = standby.position.map(|position| position.lsn);
                replayed_lsn = Some(standby.replayed);
                access = Some(standby.access);
                if streams(world, cluster, member, standby) { MemberState::Streaming } else { MemberState::Waiting }
            }
        };
        if let DataSeen::Foreign { why: reason } = &report.data {
            why = Some(reason.clone());
        }
        let stale = !is_fresh(seen);
        let lag =
            if stale { Lag::default() } else { Lag::of(world, cluster, member, state, flushed_lsn, replayed_lsn) };
        Self {
            age_ms: seen.age_ms,
            stale,
            state,
            why,
            data: match &report.data {
                DataSeen::Absent => DataState::Absent,
                DataSeen::Partial => DataState::Partial,
                DataSeen::Lost { .. } => DataState::Lost,
                DataSeen::Present(_) => DataState::Present,
                DataSeen::Foreign { .. } => DataState::Foreign,
            },
            timeline,
            flushed_lsn,
            replayed_lsn,
            lag_bytes: lag.flush,
            replay_lag_bytes: lag.replay,
            promised_epoch: report.promised,
            access: access.map(|access| match access {
                ClientAccess::Holding => Access::Holding,
                ClientAccess::Open => Access::Open,
            }),
            working: report.working.as_ref().map(WorkingView::new),
            findings: report.findings.iter().map(|finding| FindingView::new(world, finding)).collect(),
        }
    }
}

fn upstream(cluster: &ClusterRecord, member: &MemberRecord) -> Option<String> {
    let leader = cluster.leadership.leader().filter(|leader| *leader != member.id)?;
    let source = cluster.relay_of(member.id).unwrap_or(leader);
    cluster.members.get(&source).map(|source| source.name.clone())
}

/// By its own report, and by the leader's where that feeds it and is seen: whoever judges a switchover goes by the latter.
fn streams(world: &World<'_>, cluster: &ClusterRecord, member: &MemberRecord, standby: &StandbySeen) -> bool {
    let receives = standby.receiver.is_some_and(|receiver| receiver.streaming)
        && standby
            .upstream
            .is_some_and(|up| up.epoch == cluster.epoch && cluster.leadership.leader() == Some(up.leader));
    if standby.upstream.is_some_and(|upstream| upstream.relay.is_some()) {
        return receives;
    }
    let sends = |sender: &SenderSeen| {
        sender.incarnation == Some(member.current()) && sender.streaming && sender.flushed.is_some()
    };
    receives && world.leading(cluster).is_none_or(|primary| primary.senders.iter().any(sends))
}

#[derive(Default)]
struct Lag {
    flush: Option<u64>,
    replay: Option<u64>,
}

impl Lag {
    /// Positions on different timelines are not compared; the leader's own row about the standby comes first because
    /// both of its ends are of one moment.
    fn of(
        world: &World<'_>,
        cluster: &ClusterRecord,
        member: &MemberRecord,
        state: MemberState,
        flushed: Option<Lsn>,
        replayed: Option<Lsn>,
    ) -> Self {
        if cluster.leadership.leader() == Some(member.id) {
            return Self::default();
        }
        let Some(primary) = world.leading(cluster) else { return Self::default() };
        let behind = |lsn: Lsn| primary.flushed.bytes_since(lsn).0;
        match primary.senders.iter().find(|sender| sender.incarnation == Some(member.current())) {
            Some(sender) => {
                Self { flush: sender.flushed.or(flushed).map(behind), replay: sender.replayed.or(replayed).map(behind) }
            }
            None if state == MemberState::Streaming => {
                Self { flush: flushed.map(behind), replay: replayed.map(behind) }
            }
            None => Self::default(),
        }
    }
}
