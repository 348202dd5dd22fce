//! The controller's decisions: `decide(record of one cluster, what is observed, memory) -> plan`. Pure: no IO, no clock,
//! no randomness. It runs on the Raft leader only, once per change; a new controller resumes from the record alone.
//!
//! A file per situation; `decide` is control flow only, `quorum` and `candidate` are the arithmetic of elections.

mod candidate;
mod decide;
mod deletion;
mod election;
mod leader_lost;
mod observed;
mod placement;
mod promotion;
mod quorum;
mod restart;
mod steady;
mod switchover;

pub use decide::{Plan, decide};
pub use observed::{Connection, Memory, NodeSeen, Observed, Policy};
pub use placement::{PlacementError, place};
pub use quorum::{Missing, electable};
