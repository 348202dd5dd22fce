//! The controller's decisions: `decide(record of one cluster, what is observed, memory) -> plan`. Pure: no IO, no clock,
//! no randomness. It runs on the Raft leader only, once per change; a new controller resumes from the record alone.
//!
//! A file per situation; `decide` is control flow only, `quorum` and `candidate` are the arithmetic of elections.

mod candidate;
mod cascade;
mod change_leader;
mod cut_off;
mod decide;
mod deletion;
mod election;
mod fetch;
mod forced;
mod health;
mod leader_lost;
mod lease;
mod members;
mod moving;
mod observed;
mod placement;
mod promotion;
mod quorum;
mod record_behind;
mod recovered;
mod restart;
mod schedule;
mod slots;
mod steady;
mod switchover;
mod switchover_check;
mod sync_set;
mod takes_place;

pub use cascade::Place;
pub use decide::{Plan, decide};
pub use forced::{CandidateSeen, ForcedCheck, check_forced};
pub use observed::{Connection, Memory, NodeSeen, Observed, Policy};
pub use placement::{Facts, NodeFacts, Placed, PlacementError, Who, place};
pub use quorum::{Missing, electable};
pub use switchover_check::{Overrule, SwitchoverCheck, check_switchover, closest_standby};
pub use takes_place::{CLOSED_MAX, PlaceStep, take_place, takes_no_clients};
