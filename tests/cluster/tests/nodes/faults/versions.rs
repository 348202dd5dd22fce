//! The same on a newer major version of Postgres: failover, rejoin with and without a rewind, switchover, restart.

use super::{Clients, Course, another_leads, end_with_a_row_of_its_own, in_lab};
use crate::support::{LATER, session};
use anyhow::{Context, ensure};
use pgstead_cluster_tests::Setup;
use pgstead_types::Tick;
use std::fs;
use std::path::PathBuf;

/// Postgres' programs: those that `PGSTEAD_NEWER_POSTGRES` names, or what `scripts/newer-postgres.sh` has fetched.
pub(crate) fn newer_postgres() -> anyhow::Result<PathBuf> {
    if let Some(bin) = std::env::var_os("PGSTEAD_NEWER_POSTGRES") {
        return Ok(bin.into());
    }
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let bin = root.join("target/postgres-17/usr/lib/postgresql/17/bin");
    ensure!(bin.join("postgres").exists(), "{} is missing; run scripts/setup.sh test", bin.display());
    Ok(bin)
}

#[test]
fn a_newer_postgres_fails_over_rewinds_and_switches_over_like_the_oldest() -> anyhow::Result<()> {
    let bin = newer_postgres()?;
    let setup = Setup { config: format!("postgres_bin = [{bin:?}]\n"), ..Setup::default() };
    in_lab(Course { setup, ..Course::default() }, async |bed| {
        let clients = Clients::start(bed).await?;
        let asking = session(&bed.read_write("app").await?).await?;
        let version: String = asking.query_one("show server_version_num", &[]).await?.get(0);
        println!("on Postgres {version}");
        ensure!(version.parse::<u32>()? >= 170_000, "it runs on {version}");
        let alter: String = asking.query_one("show allow_alter_system", &[]).await?.get(0);
        ensure!(alter == "off", "settings can be changed behind the record's back");
        drop(asking);

        let leader = bed.leader_node("app").await?;
        bed.kill_node(leader)?;
        let others = bed.others(leader);
        another_leads(bed, leader, &others).await?;
        clients.all_write_through(bed, &others, Tick::now()).await?;
        bed.start_daemon(leader)?;
        bed.wait_healthy("app", LATER).await?;

        let leader = bed.leader_node("app").await?;
        end_with_a_row_of_its_own(bed, leader).await?;
        let others = bed.others(leader);
        for other in &others {
            bed.start_daemon(*other)?;
        }
        another_leads(bed, leader, &others).await?;
        bed.start_daemon(leader)?;
        bed.wait_healthy("app", LATER).await?;
        let log = fs::read_to_string(bed.node(leader).log())?;
        let rewound = log.lines().any(|line| line.contains("action=rewind") && line.contains(" done "));
        ensure!(rewound, "the old leader was not rewound: {}", bed.describe().await);

        for _ in 0..2 {
            bed.pgstead(&["cluster", "switchover", "app"]).await?.output().context("switchover")?;
            bed.wait_healthy("app", LATER).await?;
        }
        bed.pgstead(&["cluster", "restart", "app"]).await?.output().context("restart")?;
        clients.verify(bed).await.map(drop)
    })
}
