//! What is claimed of pgstead, on real nodes with real Postgres and real faults. A file per kind of claim; every test waits
//! for conditions with a deadline and says what it saw when one passes.

mod bad_input;
mod cascade;
mod cli;
mod clients;
mod daemon;
mod failover;
mod faults;
mod forks;
mod https;
mod io_limits;
mod kill_points;
mod leases;
mod logical;
mod members;
mod moves;
mod operator;
mod orphans;
mod placement;
mod planned;
mod pools;
mod rollback;
mod slots;
mod support;
mod sync_set;
