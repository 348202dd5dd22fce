//! The gateway against a real Postgres, real clients (psql, pgbench, tokio-postgres) and a daemon played by the test.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it should do then")]

mod cancels;
mod leader_changes;
mod packets;
mod postgres;
mod programs;
mod restarts;
mod sessions;
mod world;
