//! Answers as programs get them: built from the record and, where there are some, the controller's observations. Pure.
//!
//! Field names end in their unit; times are RFC 3339 in UTC. A field that only observations can fill is `null` without.

mod cluster;
mod connection;
mod finding;
mod io_limits;
mod leaders;
mod log;
mod member;
mod node;
mod placement;
mod slots;
mod snapshot;
mod volume;
mod world;

pub use cluster::{
    ClusterSummary, ClusterView, Health, HistoryView, Phase, PortsView, RpoState, RpoView, SpecSchema, SyncSetView,
};
pub use connection::{ConnectionView, ConsumerView, Endpoints};
pub use finding::FindingView;
pub use io_limits::IoLimitsSchema;
pub use leaders::{FailoverCheckView, FailoverMemberView, ForcedView, ScheduledView, SwitchoverCheckView};
pub use log::{EventView, EventsView, OperationStateView, OperationView};
pub use member::{Access, DataState, MemberObserved, MemberState, MemberView, Role, WorkingView};
pub use node::{NodeObserved, NodeServiceView, NodeView, PoolStateView, PoolView};
pub use placement::{AgainstView, PlacementNodeView, PlacementView, PresentView, WeightsView};
pub use slots::{SlotView, SlotsView};
pub use snapshot::SnapshotView;
pub use volume::{VolumeState, VolumeView};
pub use world::World;

use pgstead_types::{ClusterId, MemberId, NodeId, OperationId, TokenId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something by its id and the name that people know it by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterRef {
    #[schema(value_type = String, format = "uuid")]
    pub id: ClusterId,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberRef {
    #[schema(value_type = String, format = "uuid")]
    pub id: MemberId,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeRef {
    #[schema(value_type = String, format = "uuid")]
    pub id: NodeId,
    pub name: String,
}

/// Long work has begun; it goes on whether or not anybody waits for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AcceptedView {
    /// `GET /v1/operations/{operation}?wait=30s` answers when it has ended.
    #[schema(value_type = String, format = "uuid")]
    pub operation: OperationId,
    #[schema(value_type = String, format = "uuid")]
    pub cluster: ClusterId,
}

/// A join token, shown this once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    #[schema(value_type = String, format = "uuid")]
    pub id: TokenId,
    /// The whole text that `pgstead node join` takes.
    pub token: String,
    pub expires_at: String,
}

#[cfg(test)]
mod tests;
