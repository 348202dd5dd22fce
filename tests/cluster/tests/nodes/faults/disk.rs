//! The disk under the primary is full, and has space again.

use super::{Clients, Course, another_leads, in_lab, rounds};
use crate::support::{Bed, LATER, session};
use anyhow::{bail, ensure};
use pgstead_cluster_tests::{Setup, Testbed};
use pgstead_types::Tick;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;

/// Somewhat more than the free space that a new volume is asked to have.
const DISK_MIB: u64 = 1200;

/// Writes a file that takes all the space that is left.
fn fill(testbed: &Testbed, node: usize) -> anyhow::Result<std::path::PathBuf> {
    let path = testbed.lab()?.outside(&testbed.node(node).disk()).join("ballast");
    let mut file = File::create(&path)?;
    let block = vec![7_u8; 64 * 1024];
    for size in [block.len(), 4096] {
        let mut written = 0_u64;
        while let Ok(count) = file.write(&block[..size]) {
            written += count as u64;
            ensure!(count > 0 && written < DISK_MIB << 20, "the disk of node {node} has no end");
        }
    }
    Ok(path)
}

/// Runs a statement again and again until it fails, and with it the session; why.
async fn until_it_hurts(bed: &Bed, statement: &str) -> anyhow::Result<String> {
    let session = session(&bed.direct("app").await?).await?;
    let failed = async {
        loop {
            if let Err(error) = session.batch_execute(statement).await {
                return error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_string());
            }
        }
    };
    match tokio::time::timeout(LATER, failed).await {
        Ok(why) => Ok(why),
        Err(_) => bail!("the full disk was not felt within {LATER:?}\n{}", bed.describe().await),
    }
}

/// The first statement finds no space for its table, and the primary goes on. The second finds none for the log, which ends
/// the primary; another leads meanwhile, and the old one cannot even start before there is space.
#[test]
fn a_full_disk_under_the_primary_loses_nothing_and_ends_with_space() -> anyhow::Result<()> {
    let setup = Setup { disk_mib: Some(DISK_MIB), ..Setup::default() };
    let settings = [("max_wal_size", "64MB"), ("min_wal_size", "32MB"), ("wal_keep_size", "32MB")];
    let settings: BTreeMap<_, _> = settings.map(|(name, value)| (name.to_string(), value.to_string())).into();
    in_lab(Course { setup, settings, ..Course::default() }, async |bed| {
        let clients = Clients::start(bed).await?;
        session(&bed.direct("app").await?).await?.batch_execute("create table heavy (text text)").await?;
        let for_tables = "insert into heavy select repeat(md5(random()::text), 30) from generate_series(1, 5000)";
        let for_the_log = "select pg_logical_emit_message(true, 'ballast', repeat('x', 4000000))";
        for _ in 0..rounds() {
            for statement in [for_tables, for_the_log] {
                let leader = bed.leader_node("app").await?;
                let ballast = fill(bed, leader)?;
                let why = until_it_hurts(bed, statement).await?;
                println!("the disk was full: {why}");
                // Through whomever leads then.
                let others = bed.others(leader);
                if statement == for_the_log {
                    another_leads(bed, leader, &others).await?;
                }
                clients.all_write_through(bed, &others, Tick::now()).await?;
                fs::remove_file(&ballast)?;
                bed.wait_healthy("app", LATER).await?;
                let target = bed.read_write("app").await?;
                target.in_a_session(async |client| client.batch_execute(statement).await).await?;
            }
        }
        clients.verify(bed).await.map(drop)
    })
}
