//! A snapshot as the API shows it.

use super::{ClusterRef, MemberRef, NodeRef, World};
use pgstead_types::storage::{SnapshotSeen, SnapshotWhy};
use pgstead_types::{NodeId, SnapshotId, VolumeId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A member's volume as it was at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotView {
    #[schema(value_type = String, format = "uuid")]
    pub id: SnapshotId,
    /// The cluster and the member whose volume it was taken of; their ids for names when they are gone.
    pub cluster: ClusterRef,
    pub member: MemberRef,
    pub node: NodeRef,
    #[schema(value_type = String, format = "uuid")]
    pub volume: VolumeId,
    /// What it was taken for: `asked`, by a person; `scheduled`, by the cluster's spec.
    #[schema(value_type = String)]
    pub why: SnapshotWhy,
    pub created_at: String,
    /// When it goes by itself; `null`: it is kept until it is removed.
    pub expires_at: Option<String>,
    /// How much the volume could hold then, in bytes.
    pub size: u64,
}

impl SnapshotView {
    pub fn new(world: &World<'_>, node: NodeId, seen: &SnapshotSeen) -> Self {
        let held = world.record.clusters.get(&seen.cluster);
        let cluster = held.map_or_else(|| seen.cluster.to_string(), |held| held.spec.name.clone());
        let member = held.and_then(|held| held.held(seen.member));
        let member = member.map_or_else(|| seen.member.to_string(), |member| member.name.clone());
        Self {
            id: seen.id,
            cluster: ClusterRef { id: seen.cluster, name: cluster },
            member: MemberRef { id: seen.member, name: member },
            node: world.node_ref(node),
            volume: seen.volume,
            why: seen.why,
            created_at: seen.created.to_string(),
            expires_at: seen.expires.map(|at| at.to_string()),
            size: seen.size.0,
        }
    }
}
