//! The disk under the primary is full, and has space again.

use super::{Clients, Course, another_leads, in_lab, rounds};
use crate::support::{Bed, LATER, LONG_LEASE, session};
use anyhow::{bail, ensure};
use pgstead_cluster_tests::{Setup, Testbed, between, until};
use pgstead_types::{Step, Tick};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::time::Duration;

/// Somewhat more than the free space that a new volume is asked to have.
const DISK_MIB: u64 = 1200;

/// Less than a node wants to see free, and enough for a Postgres that has its segments.
const ROOM_LEFT: u64 = 24 << 20;

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

/// The disk of the one standby that has what was acknowledged last takes no more: it would be chosen for its log, and could
/// not lead. Its log is on its way to the other one before that is chosen; also where the daemon there dies before and after.
#[test]
fn the_standby_with_the_most_has_no_room_and_the_other_one_leads_with_its_log() -> anyhow::Result<()> {
    let setup = Setup { disk_mib: Some(DISK_MIB), config: LONG_LEASE.to_string(), ..Setup::default() };
    in_lab(Course { setup, ..Course::default() }, async |bed| {
        let clients = Clients::start(bed).await?;
        for mortal in [false, true] {
            let leader = bed.leader_node("app").await?;
            let others = bed.others(leader);
            let [holder, behind] = others[..] else { bail!("three nodes") };
            if mortal {
                bed.kill_daemon(behind)?;
                start_to_die_at(bed, behind, Step::FetchLog)?;
            }
            // Its Postgres goes on in the segments that it has.
            let ballast = fill(bed, holder)?;
            let length = fs::metadata(&ballast)?.len().saturating_sub(ROOM_LEFT);
            File::options().write(true).open(&ballast)?.set_len(length)?;
            bed.finding("app", "storage_unwritable").await?;
            bed.lab()?.cut(&between(&[leader], &[behind]))?;
            clients.all_write_through(bed, &[leader, holder], Tick::now()).await?;
            bed.kill_node(leader)?;
            // The kernel would still deliver what the dead had sent, if the way were open again.
            for death in 1..=if mortal { 2 } else { 0 } {
                let ended =
                    until(LATER, async || if bed.daemon_runs(behind) { Err("it runs".to_string()) } else { Ok(()) });
                if ended.await.is_err() {
                    bail!("the daemon that fetches has died {} of 2 times\n{}", death - 1, bed.describe().await);
                }
                start_to_die_at(bed, behind, Step::FetchLog)?;
            }
            let second = another_leads(bed, leader, &others).await?;
            ensure!(mortal || second == behind, "node {second} leads, whose disk is full");
            let events = bed.client_of_any(&others)?.events(None, Some("app"), Duration::ZERO).await?.events;
            ensure!(events.iter().any(|event| event.kind == "log_fetch"), "no log was fetched: {events:?}");
            clients.all_write_through(bed, &others, Tick::now()).await?;

            bed.lab()?.heal()?;
            fs::remove_file(&ballast)?;
            bed.start_daemon(leader)?;
            bed.wait_healthy("app", LATER).await?;
            // The next round waits for the next one to say so.
            let has_room = async || {
                let view = bed.client().map_err(|error| error.to_string())?.cluster("app").await;
                let findings = view.map_err(|error| error.to_string())?.findings;
                match findings.iter().find(|finding| finding.code == "storage_unwritable") {
                    Some(finding) => Err(finding.message.clone()),
                    None => Ok(()),
                }
            };
            bed.wait_for("the disk has room again", LATER, has_room).await?;
        }
        clients.verify(bed).await.map(drop)
    })
}

/// At the first step it dies before and after, whichever daemon this is.
fn start_to_die_at(bed: &mut Bed, node: usize, step: Step) -> anyhow::Result<()> {
    let points = format!("before:{step},after:{step}");
    bed.start_daemon_with(node, &[("PGSTEAD_TEST_ABORT".to_string(), points)])
}

/// Of a pool that is a directory: below a quarter of the gibibyte that a new volume must leave it has little room, below a sixteenth
/// hardly any.
const LITTLE: u64 = 160 << 20;
const HARDLY_ANY: u64 = 56 << 20;

/// Leaves so much of a node's disk, by a file that takes the rest.
fn leave(bed: &Bed, node: usize, room: u64) -> anyhow::Result<std::path::PathBuf> {
    let ballast = bed.lab()?.outside(&bed.node(node).disk()).join("ballast");
    let _ = fs::remove_file(&ballast);
    let ballast = fill(bed, node)?;
    let length = fs::metadata(&ballast)?.len().saturating_sub(room);
    File::options().write(true).open(&ballast)?.set_len(length)?;
    Ok(ballast)
}

/// A leader whose pool gets full hands over; the last one that could lead takes no writes, and at the brim no clients, and goes on by
/// itself when there is room. Its daemon dies before and after it is told to.
#[test]
fn a_leader_leaves_a_full_pool_and_one_that_cannot_takes_no_writes_until_there_is_room() -> anyhow::Result<()> {
    let setup = Setup { disk_mib: Some(DISK_MIB), config: LONG_LEASE.to_string(), ..Setup::default() };
    let settings = [("max_wal_size", "64MB"), ("min_wal_size", "32MB"), ("wal_keep_size", "32MB")];
    let settings: BTreeMap<_, _> = settings.map(|(name, value)| (name.to_string(), value.to_string())).into();
    in_lab(Course { setup, settings, ..Course::default() }, async |bed| {
        let clients = Clients::start(bed).await?;
        let first = bed.leader_node("app").await?;
        let others = bed.others(first);
        leave(bed, first, LITTLE)?;
        let next = another_leads(bed, first, &others).await?;
        clients.all_write_through(bed, &[1, 2, 3], Tick::now()).await?;

        let last = others.into_iter().find(|node| *node != next).unwrap_or_default();
        leave(bed, last, LITTLE)?;
        bed.finding("app", "on_full_pool").await?;
        bed.kill_daemon(next)?;
        leave(bed, next, LITTLE)?;
        for _ in 1..=2 {
            start_to_die_at(bed, next, Step::LimitWrites)?;
            let ended = until(LATER, async || if bed.daemon_runs(next) { Err("it runs".to_string()) } else { Ok(()) });
            if let Err((passed, seen)) = ended.await {
                bail!("after {passed:?} {seen}\n{}", bed.describe().await);
            }
        }
        bed.start_daemon(next)?;
        let writes = "create table never (id int)";
        let refused = async || {
            let session = bed.read_write("app").await.map_err(|error| error.to_string())?.connect().await;
            let session = session.map_err(|error| error.to_string())?;
            let read = session.query_one("select 1", &[]).await.map_err(|error| error.to_string())?;
            match session.batch_execute(writes).await {
                Err(error) if error.code() == Some(&READ_ONLY) => Ok(read.get::<_, i32>(0)),
                other => Err(format!("{other:?}")),
            }
        };
        bed.wait_for("clients read and do not write", LATER, refused).await?;
        ensure!(bed.leader_node("app").await? == next, "another leads, with as little room");

        leave(bed, next, HARDLY_ANY)?;
        let kept_out = async || match bed.direct("app").await.map_err(|error| error.to_string())?.connect().await {
            Ok(_) => Err("clients are let in".to_string()),
            Err(_) => Ok(()),
        };
        bed.wait_for("clients are kept out", LATER, kept_out).await?;
        for node in [1, 2, 3] {
            fs::remove_file(bed.lab()?.outside(&bed.node(node).disk()).join("ballast"))?;
        }
        clients.all_write_through(bed, &[1, 2, 3], Tick::now()).await?;
        bed.wait_healthy("app", LATER).await?;
        clients.verify(bed).await.map(drop)
    })
}

const READ_ONLY: tokio_postgres::error::SqlState = tokio_postgres::error::SqlState::READ_ONLY_SQL_TRANSACTION;
