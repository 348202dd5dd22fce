//! The HTTP API under `/v1`: what an operator may ask of a deployment, how the answers look, and a typed client.
//!
//! `backend` is what the daemon provides; `view` makes answers from the record and what nodes report, purely; `routes`
//! has a file per resource; `forward` takes a request to the node that can answer it.

pub mod backend;
pub mod client;

mod extract;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod forward;
mod guard;
pub mod openapi;
mod page;
mod percent;
pub mod problem;
mod router;
mod routes;
pub mod view;
mod wait;

pub use backend::{
    Accepted, Backend, JoinAnswer, JoinRequest, MemberSeen, NewJoinToken, NodeSeen, Observations, Rejected,
};
pub use extract::parse_duration;
pub use page::Page;
pub use problem::{Code, Problem};
pub use router::router;
pub use routes::clusters::{ForkCluster, SpecChange};
pub use routes::leaders::{FailoverBody, SwitchoverBody};
pub use routes::moves::MoveBody;
pub use routes::placement::PlacementParams;
pub use routes::rollback::RollBackBody;
pub use routes::snapshots::TakeSnapshot;
pub use routes::tokens::NewToken;

#[cfg(test)]
mod tests;
