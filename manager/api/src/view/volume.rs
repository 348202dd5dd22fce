//! A volume as the API shows it.

use super::world::{cluster_ref, member_ref};
use super::{ClusterRef, MemberRef, NodeRef, World};
use pgstead_types::record::{ClusterRecord, MemberRecord};
use pgstead_types::storage::{Orphan, OrphanState};
use pgstead_types::{Bytes, NodeId, VolumeId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A file system on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeView {
    #[schema(value_type = String, format = "uuid")]
    pub id: VolumeId,
    /// The cluster and the member that have it, or had it.
    pub cluster: Option<ClusterRef>,
    pub member: Option<MemberRef>,
    pub node: NodeRef,
    pub state: VolumeState,
    /// Whether the node has it, by its last report; `null` when there is none.
    pub present: Option<bool>,
    /// Where it lies on its node; only of one that no member has.
    pub path: Option<String>,
    /// When it was made; only of one that no member has.
    pub created_at: Option<String>,
    /// How much it may hold, in bytes, where its driver says.
    pub size: Option<u64>,
    /// Why it cannot be read.
    pub why: Option<String>,
}

/// Whose a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// A member's.
    InUse,
    /// Nobody's any more; kept until a person removes it.
    Orphaned,
    /// Nobody's, and its removal goes on by itself.
    BeingRemoved,
    /// Nobody's, and what it is cannot be read.
    Unreadable,
}

impl VolumeView {
    pub fn new(world: &World<'_>, cluster: &ClusterRecord, member: &MemberRecord) -> Self {
        Self {
            id: member.volume,
            cluster: Some(cluster_ref(cluster)),
            member: Some(member_ref(member)),
            node: world.node_ref(member.node),
            state: VolumeState::InUse,
            present: world.seen(member.id).map(|seen| seen.report.volume_present),
            path: None,
            created_at: None,
            size: world.seen(member.id).and_then(|seen| seen.report.volume_size).map(|Bytes(bytes)| bytes),
            why: None,
        }
    }

    /// One that no member has.
    pub fn of_orphan(world: &World<'_>, node: NodeId, orphan: &Orphan) -> Self {
        let mut view = Self {
            id: orphan.id,
            cluster: None,
            member: None,
            node: world.node_ref(node),
            state: VolumeState::BeingRemoved,
            present: Some(true),
            path: Some(orphan.path.clone()),
            created_at: None,
            size: None,
            why: None,
        };
        let member_of = |id| MemberRef { id, name: id.to_string() };
        match &orphan.state {
            OrphanState::Whole { cluster, member, created, size, .. } => {
                let held = world.record.clusters.get(cluster);
                let name = held.map_or_else(|| cluster.to_string(), |held| held.spec.name.clone());
                view.state = VolumeState::Orphaned;
                view.cluster = Some(ClusterRef { id: *cluster, name });
                view.member =
                    Some(held.and_then(|held| held.held(*member)).map_or_else(|| member_of(*member), member_ref));
                view.created_at = Some(created.to_string());
                view.size = size.map(|Bytes(bytes)| bytes);
            }
            OrphanState::SetAside { member } => view.member = member.map(member_of),
            OrphanState::Unreadable { why } => {
                view.state = VolumeState::Unreadable;
                view.why = Some(why.clone());
            }
        }
        view
    }
}
