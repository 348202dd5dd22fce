//! The deterministic simulation: the real `core`, `agent` and `consensus` drive a modelled world of machines, disks,
//! networks, Postgres and clients on virtual time. Everything follows from one seed.

pub mod cascade;
pub mod clients;
pub mod clock;
pub mod controller;
mod copies;
pub mod daemon;
pub mod faults;
mod fetch;
pub mod invariants;
pub mod lease;
pub mod machine;
pub mod members;
pub mod mutant;
pub mod operator;
pub mod postgres;
pub mod raft;
pub mod rng;
pub mod rollback;
pub mod run;
pub mod scenario;
pub mod tally;
pub mod wal;
pub mod world;
