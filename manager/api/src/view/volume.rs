//! A volume as the API shows it.

use super::world::{cluster_ref, member_ref};
use super::{ClusterRef, MemberRef, NodeRef, World};
use pgstead_types::VolumeId;
use pgstead_types::record::{ClusterRecord, MemberRecord};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A member's file system on its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeView {
    #[schema(value_type = String, format = "uuid")]
    pub id: VolumeId,
    pub cluster: ClusterRef,
    pub member: MemberRef,
    pub node: NodeRef,
    /// Whether the node has it, by its last report; `null` when there is none.
    pub present: Option<bool>,
}

impl VolumeView {
    pub fn new(world: &World<'_>, cluster: &ClusterRecord, member: &MemberRecord) -> Self {
        Self {
            id: member.volume,
            cluster: cluster_ref(cluster),
            member: member_ref(member),
            node: world.node_ref(member.node),
            present: world.seen(member.id).map(|seen| seen.report.volume_present),
        }
    }
}
