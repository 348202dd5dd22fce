//! Real nodes on loopback: daemons, guards, gateways and Postgres as processes of their own, each node in its own folder
//! and on its own address. The tests, `make demo` and `make bench-failover` all run on this.

mod appends;
mod client;
mod command;
mod history;
mod lab;
mod place;
mod processes;
mod reference;
mod testbed;
mod wait;
mod writers;

pub use appends::{Appends, Via};
pub use client::{Target, TargetError};
pub use command::{Said, pgstead_binary, postgres_bin, run, run_blocking};
pub use history::{Append, Fault, History, Look, Outcome, SplitBrain, Stamp};
pub use lab::{Direction, Lab, between};
pub use place::{Place, PlaceError};
pub use processes::{Process, all_processes, below_folder, signal_all_below, wait_until_gone};
pub use reference::Reference;
pub use testbed::{Node, Setup, Testbed};
pub use wait::{POLL, until};
pub use writers::{Acknowledged, Checked, Gap, Load, Writers, Written, check};
