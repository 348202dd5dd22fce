//! A node as the API shows it.

use super::world::{cluster_ref, member_ref};
use super::{ClusterRef, FindingView, MemberRef, World, finding};
use pgstead_types::NodeId;
use pgstead_types::record::NodeRecord;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A host of the deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    #[schema(value_type = String, format = "uuid")]
    pub id: NodeId,
    pub name: String,
    pub host: String,
    /// The daemon's HTTPS port.
    pub port: u16,
    pub region: String,
    pub zone: String,
    pub postgres_majors: Vec<u16>,
    pub pools: Vec<String>,
    pub joined_at: String,
    /// Whether this node leads the Raft group, as far as the answering node knows.
    pub controller: bool,
    pub members: Vec<NodeMember>,
    /// `null` when the controller could not be asked.
    pub observed: Option<NodeObserved>,
    pub findings: Vec<FindingView>,
}

/// A member that is placed on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeMember {
    pub cluster: ClusterRef,
    pub member: MemberRef,
}

/// A node as the controller sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeObserved {
    pub reachable: bool,
    /// Time since its last report; `null` when there was none since this controller began.
    pub silent_ms: Option<u64>,
}

impl NodeView {
    pub fn new(world: &World<'_>, node: &NodeRecord) -> Self {
        let members = world.record.clusters_on(node.id);
        Self {
            id: node.id,
            name: node.name.clone(),
            host: node.host.clone(),
            port: node.port,
            region: node.region.clone(),
            zone: node.zone.clone(),
            postgres_majors: node.postgres_majors.clone(),
            pools: node.pools.clone(),
            joined_at: node.joined_at.to_string(),
            controller: world.controller == Some(node.id),
            members: members
                .map(|(cluster, member)| NodeMember { cluster: cluster_ref(cluster), member: member_ref(member) })
                .collect(),
            observed: world.observed.map(|observed| match observed.nodes.get(&node.id) {
                Some(seen) => NodeObserved { reachable: seen.reachable, silent_ms: seen.silent_ms },
                None => NodeObserved { reachable: false, silent_ms: None },
            }),
            findings: finding::of_node(world, node.id),
        }
    }
}
