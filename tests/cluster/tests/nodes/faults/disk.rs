//! The disk under the primary is full, and has space again.

use super::{Clients, Course, in_lab};
use crate::support::{LATER, session};
use anyhow::{Context, ensure};
use pgstead_cluster_tests::{Setup, Testbed};
use std::collections::BTreeMap;
use std::fs::File;
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

#[test]
fn a_full_disk_under_the_primary_loses_nothing_and_ends_with_space() -> anyhow::Result<()> {
    let setup = Setup { disk_mib: Some(DISK_MIB), ..Setup::default() };
    let settings = [("max_wal_size", "64MB"), ("min_wal_size", "32MB"), ("wal_keep_size", "32MB")];
    let settings: BTreeMap<_, _> = settings.map(|(name, value)| (name.to_string(), value.to_string())).into();
    in_lab(Course { setup, settings, ..Course::default() }, async |bed| {
        let clients = Clients::start(bed).await?;
        let heavy = session(&bed.direct("app").await?).await?;
        heavy.batch_execute("create table heavy (text text)").await?;
        let leader = bed.leader_node("app").await?;
        let ballast = fill(bed, leader)?;
        // Until it has hurt: a statement fails for want of space, or the log itself finds none and the primary ends.
        let insert = "insert into heavy select repeat(md5(random()::text), 30) from generate_series(1, 5000)";
        let failed = async {
            loop {
                if let Err(error) = heavy.batch_execute(insert).await {
                    return error;
                }
            }
        };
        let failed = tokio::time::timeout(LATER, failed).await.context("the full disk was not felt")?;
        println!("the disk was full: {failed} {:?}", failed.as_db_error().map(|error| error.message().to_string()));
        // Through whomever leads then; where the log still has room, that is the same one as before.
        let others = bed.others(leader);
        clients.all_write_through(bed, &others, pgstead_types::Tick::now()).await?;
        std::fs::remove_file(&ballast)?;
        bed.wait_healthy("app", LATER).await?;
        session(&bed.read_write("app").await?).await?.batch_execute(insert).await?;
        clients.verify(bed).await.map(drop)
    })
}
