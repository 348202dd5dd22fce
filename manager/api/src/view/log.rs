//! Operations and events as the API shows them. Both come from the record alone, so any node has them.

use super::world::member_name;
use super::{ClusterRef, World};
use pgstead_types::record::{
    ClusterRecord, EventRecord, Leadership, MemberRecord, OperationKind, OperationRecord, OperationState, Record,
    Standing,
};
use pgstead_types::{ClusterId, NodeId, OperationId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A long piece of work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationView {
    #[schema(value_type = String, format = "uuid")]
    pub id: OperationId,
    /// `create_cluster`, `delete_cluster`, `restart_cluster`, `update_cluster`, `switchover`, `forced_failover`, `move_member` or
    /// `roll_back_cluster`.
    #[schema(value_type = String, example = "create_cluster")]
    pub kind: OperationKind,
    /// Kept also after the cluster is gone.
    pub cluster: ClusterRef,
    pub started_at: String,
    pub state: OperationStateView,
    pub ended_at: Option<String>,
    /// Why it failed.
    pub failure: Option<String>,
    /// What it is at, while it runs.
    pub progress: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationStateView {
    Running,
    Succeeded,
    Failed,
}

impl OperationView {
    pub fn new(record: &Record, operation: &OperationRecord) -> Self {
        let (state, ended_at, failure) = match &operation.state {
            OperationState::Running => (OperationStateView::Running, None, None),
            OperationState::Succeeded { at } => (OperationStateView::Succeeded, Some(at.to_string()), None),
            OperationState::Failed { at, why } => (OperationStateView::Failed, Some(at.to_string()), Some(why.clone())),
        };
        let running = state == OperationStateView::Running;
        Self {
            id: operation.id,
            kind: operation.kind,
            cluster: ClusterRef { id: operation.cluster, name: operation.cluster_name.clone() },
            started_at: operation.started_at.to_string(),
            state,
            ended_at,
            failure,
            progress: record.clusters.get(&operation.cluster).filter(|_| running).map(|cluster| match operation.kind {
                OperationKind::RollBackCluster => describe_rollback(record, operation.id),
                kind => describe_progress(kind, cluster),
            }),
        }
    }

    pub fn ended(&self) -> bool {
        self.state != OperationStateView::Running
    }
}

/// Members join or are to leave.
fn is_moving(cluster: &ClusterRecord) -> bool {
    cluster.members_surplus() > 0 || !moving(cluster).is_empty()
}

fn moving(cluster: &ClusterRecord) -> Vec<String> {
    let text = |member: &MemberRecord| match member.standing {
        Standing::Settled => None,
        Standing::Joining => Some(format!("{} is joining", member.name)),
        Standing::Leaving => Some(format!("{} is leaving", member.name)),
    };
    cluster.members.values().filter_map(text).collect()
}

fn describe_rollback(record: &Record, operation: OperationId) -> String {
    let is_it = |held: &&ClusterRecord| held.takes_place.as_ref().is_some_and(|place| place.operation == operation);
    let Some(taker) = record.clusters.values().find(is_it) else { return "it is over".to_string() };
    let of = taker.takes_place.as_ref().and_then(|place| record.clusters.get(&place.of));
    let name = &taker.spec.name;
    match of {
        Some(of) if of.aside.is_some_and(|aside| aside.to == taker.id) => {
            format!("{} lets go of its clients, and {name} takes its place", of.spec.name)
        }
        _ if taker.creating.is_some() => {
            format!("{name} is being made: {}", describe_progress(OperationKind::CreateCluster, taker))
        }
        _ => format!("{name} is to be all that its spec says"),
    }
}

fn describe_progress(kind: OperationKind, cluster: &ClusterRecord) -> String {
    let leading = || match &cluster.leadership {
        Leadership::Electing { .. } => format!("electing a leader in epoch {}", cluster.epoch),
        Leadership::Chosen { leader } => format!("{} is to be promoted", member_name(cluster, *leader)),
        Leadership::Promoted { leader } => {
            format!("{} is promoted; its standbys are to stream from it", member_name(cluster, *leader))
        }
        Leadership::Confirmed { leader } => format!("{} leads", member_name(cluster, *leader)),
    };
    match (kind, &cluster.switchover, &cluster.restart) {
        (OperationKind::CreateCluster, ..) => leading(),
        (OperationKind::DeleteCluster, ..) => {
            let left = cluster.members.len() + cluster.departed.len();
            format!("{left} of {} members still have a volume", usize::from(cluster.spec.members).max(left))
        }
        (OperationKind::MoveMember, ..) => match cluster.moving {
            Some(moving) if cluster.is_leaving(moving.member) => {
                format!(
                    "{} counts, and {} is leaving",
                    member_name(cluster, moving.to),
                    member_name(cluster, moving.member)
                )
            }
            Some(moving) => format!(
                "{} is to count before {} leaves",
                member_name(cluster, moving.to),
                member_name(cluster, moving.member)
            ),
            None => leading(),
        },
        (OperationKind::UpdateCluster, ..) if is_moving(cluster) => format!(
            "{} members, and {} by the spec; {}",
            cluster.members.len(),
            cluster.spec.members,
            match moving(cluster).as_slice() {
                [] => "the controller chooses who leaves".to_string(),
                names => names.join(", "),
            }
        ),
        (OperationKind::UpdateCluster, ..) => match cluster.config().map(|config| (config, &config.target)) {
            Some((_, Some(target))) => format!(
                "the sync set is being changed: {} of {} are to acknowledge",
                target.set.needed,
                target.set.members.len()
            ),
            Some((config, None)) => format!(
                "commits need {} standbys now, and {} by the spec",
                config.sync_set.needed,
                cluster.spec.needed()
            ),
            None => leading(),
        },
        (_, Some(switchover), _) => {
            let (from, to) = (member_name(cluster, switchover.from), member_name(cluster, switchover.to));
            match (&cluster.leadership, switchover.draining) {
                (Leadership::Confirmed { leader }, false) if *leader == switchover.from => {
                    format!("{from} writes a checkpoint before it hands over to {to}")
                }
                (Leadership::Confirmed { leader }, true) if *leader == switchover.from => {
                    format!("{from} lets go of its clients and stops cleanly for {to}")
                }
                _ => leading(),
            }
        }
        (_, None, Some(restart)) => {
            let all = cluster.members.len();
            let done = all.saturating_sub(restart.remaining.len());
            match restart.current {
                Some(member) => format!("{done} of {all} members restarted, now {}", member_name(cluster, member)),
                None => format!("{done} of {all} members restarted"),
            }
        }
        (OperationKind::Switchover, None, None) if cluster.planned.scheduled.is_some() => {
            let begins = cluster.planned.scheduled.as_ref().map(|scheduled| scheduled.not_before.to_string());
            format!("scheduled for {}", begins.unwrap_or_default())
        }
        (_, None, None) => leading(),
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// Resume after the last one seen by `after`.
    pub sequence: u64,
    pub at: String,
    /// In snake case, such as `leader_confirmed`.
    pub kind: String,
    pub message: String,
    #[schema(value_type = Option<String>, format = "uuid")]
    pub cluster: Option<ClusterId>,
    /// `null` also when the cluster is gone.
    pub cluster_name: Option<String>,
    #[schema(value_type = Option<String>, format = "uuid")]
    pub node: Option<NodeId>,
}

impl EventView {
    fn new(record: &Record, event: &EventRecord) -> Self {
        let cluster_name =
            event.cluster.and_then(|id| record.clusters.get(&id)).map(|cluster| cluster.spec.name.clone());
        Self {
            sequence: event.sequence,
            at: event.at.to_string(),
            kind: event.kind.clone(),
            message: event.message.clone(),
            cluster: event.cluster,
            cluster_name,
            node: event.node,
        }
    }
}

/// Events in their order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventsView {
    pub events: Vec<EventView>,
    /// Ask again with `after` set to it. `null` while nothing has ever happened.
    pub next_after: Option<u64>,
    /// Events after the asked one that are kept no more.
    pub missed: u64,
}

impl EventsView {
    /// At most `limit` events after `after`, of one cluster if asked so. Without `after`, from the oldest that is kept.
    pub fn new(record: &Record, after: Option<u64>, limit: usize, cluster: Option<ClusterId>) -> Self {
        let first = after.map_or(0, |after| after.saturating_add(1));
        let oldest = record.events.front().map_or(record.next_event, |event| event.sequence);
        let missed = if after.is_some() { oldest.saturating_sub(first) } else { 0 };
        let wanted = |event: &&EventRecord| cluster.is_none() || event.cluster == cluster;
        let mut rest = record.events.iter().filter(|event| event.sequence >= first).filter(wanted);
        let events: Vec<EventView> = rest.by_ref().take(limit).map(|event| EventView::new(record, event)).collect();
        // When nothing is left over, everything up to the newest event has been looked at, wanted or not.
        let looked = if rest.next().is_some() {
            events.last().map(|event| event.sequence)
        } else {
            record.next_event.checked_sub(1)
        };
        Self { events, next_after: looked.max(after), missed }
    }
}

impl World<'_> {
    pub fn operation(&self, operation: &OperationRecord) -> OperationView {
        OperationView::new(self.record, operation)
    }
}
