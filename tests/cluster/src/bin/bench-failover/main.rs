//! `make bench-failover`: how long clients are without an acknowledged write when the leader dies, beside a plain pair of
//! Postgres whose standby is promoted the instant the primary dies; what is lost; and what management costs at rest.

mod report;
mod usage;

use anyhow::{Context, bail};
use pgstead_cluster_tests::{Load, Reference, Target, Testbed, Writers, Written, check};
use pgstead_types::Tick;
use pgstead_types::spec::ClusterSpec;
use report::{Fault, Proof, Report, Round, Subject, ms};
use std::time::Duration;

const CLUSTER: &str = "app";
const PATIENCE: Duration = Duration::from_secs(120);
/// Writing before the fault and after it.
const BEFORE: Duration = Duration::from_millis(1000);
const AFTER: Duration = Duration::from_millis(300);
const IDLE: Duration = Duration::from_secs(30);
/// Ids of one round never meet those of the next.
const IDS_PER_ROUND: i64 = 1_000_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let rounds = match std::env::var("ROUNDS") {
        Ok(text) => text.parse().ok().filter(|rounds| *rounds > 0).context("ROUNDS must be a number above 0")?,
        Err(_) => 10,
    };
    tokio::select! {
        result = bench(rounds) => result,
        // Dropped on the way out: every process of both subjects ends.
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    }
}

async fn bench(rounds: usize) -> anyhow::Result<()> {
    let begun = Tick::now();
    let load = Load::default();
    let mut bed = Testbed::start(3).await?;
    bed.create_cluster(&ClusterSpec::named(CLUSTER)).await?;
    println!("Three nodes with a cluster of three members; measuring them at rest for {} s.", IDLE.as_secs());
    let idle_fresh = usage::measure(&bed, IDLE).await?;
    let mut reference = Reference::start().await?;
    println!("{rounds} rounds of {} faults, pgstead and the reference in turn:", Fault::ALL.len());
    let mut results = Vec::new();
    for round in 1..=rounds {
        for fault in Fault::ALL {
            let first_id = results.len() as i64 * IDS_PER_ROUND;
            results.push(lose_pgsteads(&mut bed, fault, round, load, first_id).await?);
            println!("{}", results[results.len() - 1].line());
            results.push(lose_references(&mut reference, fault, round, load, first_id).await?);
            println!("{}", results[results.len() - 1].line());
        }
    }
    let proof = prove_the_check(&mut reference, load, results.len() as i64 * IDS_PER_ROUND).await?;
    drop(reference);
    let idle_after_rounds = usage::measure(&bed, IDLE).await?;
    let report = Report {
        rounds,
        release: !cfg!(debug_assertions),
        clients: load.clients,
        writes_per_second: load.per_second,
        retry_ms: ms(load.retry),
        results,
        proof,
        idle_seconds: IDLE.as_secs(),
        idle_fresh,
        idle_after_rounds,
        elapsed_seconds: Tick::now().since(begun).as_secs(),
    };
    println!("{report}");
    std::fs::create_dir_all("target/bench")?;
    std::fs::write("target/bench/failover.json", serde_json::to_vec_pretty(&report)?)?;
    println!("Everything measured is in target/bench/failover.json.");
    if report.proof.lost == 0 {
        bail!("the check found no loss where one was made on purpose, so it proves nothing");
    }
    match report.lost(Subject::Pgstead) {
        0 => Ok(()),
        lost => bail!("{lost} acknowledged rows were lost"),
    }
}

async fn lose_pgsteads(
    bed: &mut Testbed,
    fault: Fault,
    round: usize,
    load: Load,
    first_id: i64,
) -> anyhow::Result<Round> {
    bed.wait_healthy(CLUSTER, PATIENCE).await?;
    let leader = bed.leader_node(CLUSTER).await?;
    let name = bed.node(leader).name.clone();
    let controller_there = bed.client()?.nodes().await?.iter().any(|node| node.controller && node.name == name);
    let target = bed.read_write(CLUSTER).await?;
    let writers = warm(&target, load, first_id).await?;
    let postmaster = bed.postmaster(CLUSTER, leader).await?;
    let at = Tick::now();
    match fault {
        Fault::PostmasterKilled => {
            if !postmaster.signal(rustix::process::Signal::KILL) {
                bail!("{postmaster} had ended by itself");
            }
        }
        Fault::NodeKilled => {
            bed.kill_node(leader)?;
        }
        Fault::Switchover => {
            bed.client()?.switchover(CLUSTER, None, None).await?;
        }
    }
    bed.wait_for_another_leader(CLUSTER, leader, PATIENCE).await?;
    let written = cool(writers).await?;
    if fault == Fault::NodeKilled {
        bed.start_daemon(leader)?;
    }
    judge(&target, &written, at, Round { controller_there, ..empty(Subject::Pgstead, fault, round) }).await
}

async fn lose_references(
    reference: &mut Reference,
    fault: Fault,
    round: usize,
    load: Load,
    first_id: i64,
) -> anyhow::Result<Round> {
    let target = reference.read_write();
    let writers = warm(&target, load, first_id).await?;
    let standby = reference.standby_session().await?;
    let at = Tick::now();
    match fault {
        Fault::PostmasterKilled => reference.kill_postmaster_and_promote(&standby).await?,
        Fault::NodeKilled => reference.kill_all_and_promote(&standby).await?,
        Fault::Switchover => reference.switch_over(&standby).await?,
    }
    let written = cool(writers).await?;
    let result = judge(&target, &written, at, empty(Subject::Reference, fault, round)).await;
    reference.rebuild_standby().await?;
    result
}

/// A loss made on purpose: acknowledged before it was on a second disk, and the standby stopped listening long ago.
async fn prove_the_check(reference: &mut Reference, load: Load, first_id: i64) -> anyhow::Result<Proof> {
    let target = reference.read_write();
    let careless = target.clone().with_options("-c synchronous_commit=off");
    let writers = warm(&careless, load, first_id).await?;
    reference.cut_standby().await?;
    let cut = Tick::now();
    writers.all_write_again(cut, PATIENCE).await?;
    tokio::time::sleep(BEFORE).await;
    let standby = reference.standby_session().await?;
    reference.kill_all_and_promote(&standby).await?;
    let written = cool(writers).await?;
    let checked = check(&target, &written.acknowledged).await?;
    Ok(Proof { acknowledged: checked.acknowledged, lost: checked.lost.len() })
}

/// Writers that have all written for a while.
async fn warm(target: &Target, load: Load, first_id: i64) -> anyhow::Result<Writers> {
    let writers = Writers::start_at(target, load, first_id).await?;
    writers.all_write_again(Tick::now(), PATIENCE).await?;
    tokio::time::sleep(BEFORE).await;
    Ok(writers)
}

/// Ends them once they all write again.
async fn cool(writers: Writers) -> anyhow::Result<Written> {
    writers.all_write_again(Tick::now(), PATIENCE).await?;
    tokio::time::sleep(AFTER).await;
    Ok(writers.stop().await)
}

fn empty(subject: Subject, fault: Fault, round: usize) -> Round {
    Round {
        subject,
        fault,
        round,
        gap_ms: 0,
        client_gap_ms: 0,
        acknowledged: 0,
        lost: 0,
        failures: 0,
        controller_there: false,
    }
}

async fn judge(target: &Target, written: &Written, at: Tick, round: Round) -> anyhow::Result<Round> {
    let checked = check(target, &written.acknowledged).await?;
    Ok(Round {
        gap_ms: ms(written.longest_gap(at).length),
        client_gap_ms: ms(written.longest_gap_of_a_client(at).length),
        acknowledged: checked.acknowledged,
        lost: checked.lost.len(),
        failures: written.failures,
        ..round
    })
}
