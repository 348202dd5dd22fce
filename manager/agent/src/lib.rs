//! What a node does with its slice of the record: for each member, the one next step that brings what is seen nearer
//! to what is recorded. Pure and level-triggered: no IO, no clock, no memory; the daemon and the simulation execute.

mod action;
mod decide;
mod following;
mod leading;
pub mod lease;
mod promising;
pub mod wal_budget;

pub use action::Action;
pub use decide::{Next, decide};
