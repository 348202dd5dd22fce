//! A node as the API shows it.

use super::world::{cluster_ref, member_ref};
use super::{ClusterRef, FindingView, MemberRef, World, finding};
use pgstead_types::NodeId;
use pgstead_types::record::{NodeRecord, NodeService};
use pgstead_types::storage::{PoolSeen, PoolState, StorageSeen};
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
    #[serde(default)]
    pub service: NodeServiceView,
    /// Whether this node leads the Raft group, as far as the answering node knows.
    pub controller: bool,
    pub members: Vec<NodeMember>,
    /// `null` when the controller could not be asked.
    pub observed: Option<NodeObserved>,
    pub findings: Vec<FindingView>,
}

/// Whether a node takes members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeServiceView {
    #[default]
    Open,
    /// It takes no new members.
    Cordoned,
    /// It takes none, and those that it has are moved to other nodes.
    Draining,
}

impl From<NodeService> for NodeServiceView {
    fn from(service: NodeService) -> Self {
        match service {
            NodeService::Open => Self::Open,
            NodeService::Cordoned => Self::Cordoned,
            NodeService::Draining => Self::Draining,
        }
    }
}
impl From<NodeServiceView> for NodeService {
    fn from(service: NodeServiceView) -> Self {
        match service {
            NodeServiceView::Open => Self::Open,
            NodeServiceView::Cordoned => Self::Cordoned,
            NodeServiceView::Draining => Self::Draining,
        }
    }
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
    /// The one that is configured first comes first, and its class is for clusters that ask for none. Empty when the node has not said yet.
    pub pools: Vec<PoolView>,
}

/// How full a pool of a node is, by a look of some seconds ago.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolView {
    pub name: String,
    /// `dir` or `lvm`.
    pub driver: String,
    /// What clusters ask for as `storage_class`.
    pub class: String,
    /// Sizes are in bytes.
    pub total: u64,
    pub used: u64,
    /// Free for volumes; less than the difference where a file system reserves some for root.
    pub free: u64,
    /// How full the pool's own bookkeeping is, in percent, where it has a size of its own.
    pub metadata_used_percent: Option<u8>,
    /// Set aside, to be given back by `pgstead pool ballast release` on the host.
    pub ballast: u64,
    pub state: PoolStateView,
    /// What was found and what was expected, where the state is not `fine`.
    pub why: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolStateView {
    Fine,
    /// It takes no new volume.
    NearlyFull,
    /// Soon nothing on it can be written; what is led from it takes no writes.
    Full,
    /// The next writes may fail; what is led from it takes no clients.
    Brimming,
    /// Its storage has a fault.
    Unwell,
}

impl PoolView {
    fn new(seen: &PoolSeen) -> Self {
        let (state, why) = match &seen.state {
            PoolState::Fine => (PoolStateView::Fine, None),
            PoolState::NearlyFull { why } => (PoolStateView::NearlyFull, Some(why)),
            PoolState::Full { why } => (PoolStateView::Full, Some(why)),
            PoolState::Brimming { why } => (PoolStateView::Brimming, Some(why)),
            PoolState::Unwell { why } => (PoolStateView::Unwell, Some(why)),
        };
        Self {
            name: seen.name.clone(),
            driver: seen.driver.clone(),
            class: seen.class.clone(),
            total: seen.total.0,
            used: seen.used.0,
            free: seen.free.0,
            metadata_used_percent: seen.metadata_used.and_then(|used| u8::try_from(used.div_ceil(100)).ok()),
            ballast: seen.ballast.0,
            state,
            why: why.cloned(),
        }
    }
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
            service: node.service.into(),
            controller: world.controller == Some(node.id),
            members: members
                .map(|(cluster, member)| NodeMember { cluster: cluster_ref(cluster), member: member_ref(member) })
                .collect(),
            observed: world.observed.map(|observed| match observed.nodes.get(&node.id) {
                Some(seen) => NodeObserved {
                    reachable: seen.reachable,
                    silent_ms: seen.silent_ms,
                    pools: observed
                        .storage
                        .get(&node.id)
                        .into_iter()
                        .flat_map(StorageSeen::pools)
                        .map(PoolView::new)
                        .collect(),
                },
                None => NodeObserved { reachable: false, silent_ms: None, pools: Vec::new() },
            }),
            findings: finding::of_node(world, node.id),
        }
    }
}
