//! `make bench-failover`: how long clients are without an acknowledged write when the leader dies, beside a plain pair of
//! Postgres whose standby is promoted the instant the primary dies; what is lost; and what management costs at rest.

mod report;
mod usage;

use anyhow::{Context, bail};
use pgstead_api::SwitchoverBody;
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
/// Clusters at rest beside each other, for the second measurement at rest.
const MANY: usize = 5;
/// Writes after which clients have gone on.
const ENOUGH: usize = 100;
/// Attempts to find the controller on the leader's node: it moves away from there by itself.
const ATTEMPTS: usize = 10;
/// Ids of one round never meet those of the next.
const IDS_PER_ROUND: i64 = 1_000_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let rounds = match std::env::var("ROUNDS") {
        Ok(text) => text.parse().ok().filter(|rounds| *rounds > 0).context("ROUNDS must be a number above 0")?,
        Err(_) => 20,
    };
    let faults = match std::env::var("FAULTS").ok().filter(|text| !text.is_empty()) {
        Some(text) => text.split(',').map(Fault::parse).collect::<anyhow::Result<Vec<_>>>()?,
        None => Fault::ALL.to_vec(),
    };
    tokio::select! {
        result = bench(rounds, &faults) => result,
        // Dropped on the way out: every process of both subjects ends.
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    }
}

async fn bench(rounds: usize, faults: &[Fault]) -> anyhow::Result<()> {
    let begun = Tick::now();
    let load = Load::default();
    let mut bed = Testbed::start(3).await?;
    bed.create_cluster(&ClusterSpec::named(CLUSTER)).await?;
    println!("Three nodes with a cluster of three members; measuring them at rest for {} s.", IDLE.as_secs());
    let idle_fresh = usage::measure(&bed, IDLE).await?;
    let idle_many = with_many(&mut bed).await?;
    let mut reference = Reference::start().await?;
    println!("{rounds} rounds of {} faults, pgstead and the reference in turn:", faults.len());
    let mut results = Vec::new();
    let mut first_id = 0;
    for round in 1..=rounds {
        for fault in faults.iter().copied() {
            first_id += IDS_PER_ROUND;
            let begun_round = Round::of(Subject::Pgstead, fault, round);
            let Some(lost) = lose_pgsteads(&mut bed, begun_round, load, first_id).await? else {
                println!(
                    "  {round}  {fault} is left out: the controller did not stay where it needs it, {ATTEMPTS} times"
                );
                continue;
            };
            results.push(lost);
            println!("{}", results[results.len() - 1].line());
            results.push(lose_references(&mut reference, fault, round, load, first_id).await?);
            println!("{}", results[results.len() - 1].line());
        }
    }
    let proof = prove_the_check(&mut reference, load, first_id + IDS_PER_ROUND).await?;
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
        idle_many,
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

/// The same at rest with more clusters, which go again.
async fn with_many(bed: &mut Testbed) -> anyhow::Result<Vec<usage::Usage>> {
    println!("The same with {MANY} clusters.");
    let others: Vec<String> = (2..=MANY).map(|number| format!("{CLUSTER}{number}")).collect();
    for name in &others {
        bed.create_cluster(&ClusterSpec::named(name)).await?;
    }
    let usages = usage::measure(bed, IDLE).await?;
    let client = bed.client()?;
    for name in &others {
        client.delete_cluster(name, None).await?;
    }
    let gone = async || match client.clusters().await {
        Ok(clusters) if clusters.len() == 1 => Ok(()),
        Ok(clusters) => Err(format!("{} clusters are there", clusters.len())),
        Err(error) => Err(error.to_string()),
    };
    bed.wait_for("the other clusters are gone", PATIENCE, gone).await?;
    Ok(usages)
}

/// The node that leads the cluster, and whether the controller is there as well.
async fn leader_and_controller(bed: &Testbed) -> anyhow::Result<(usize, bool)> {
    let leader = bed.leader_node(CLUSTER).await?;
    let name = &bed.node(leader).name;
    Ok((leader, bed.client()?.nodes().await?.iter().any(|node| node.controller && node.name == *name)))
}

/// Waits for what the fault is about: the controller away from the leader's node, or there.
async fn arrange(bed: &Testbed, fault: Fault) -> anyhow::Result<()> {
    bed.wait_healthy(CLUSTER, PATIENCE).await?;
    match fault {
        Fault::ControllerNodeKilled => {
            let controller = bed.client()?.nodes().await?.into_iter().find(|node| node.controller);
            let controller = controller.context("no node is the controller")?.name;
            let (leader, there) = leader_and_controller(bed).await?;
            if !there {
                let members = bed.client()?.cluster_members(CLUSTER).await?;
                let target = members.iter().find(|member| member.node.name == controller).context("no member there")?;
                bed.client()?
                    .switchover(CLUSTER, &SwitchoverBody { to: Some(target.name.clone()), ..Default::default() }, None)
                    .await?;
                bed.wait_for_another_leader(CLUSTER, leader, PATIENCE).await?;
                bed.wait_healthy(CLUSTER, PATIENCE).await?;
            }
            Ok(())
        }
        _ => {
            let away = async || match leader_and_controller(bed).await {
                Ok((_, false)) => Ok(()),
                Ok((_, true)) => Err("the controller is on the leader's node".to_string()),
                Err(error) => Err(format!("{error:#}")),
            };
            bed.wait_for("the controller leaves the leader's node", PATIENCE, away).await
        }
    }
}

/// `None` where the fault could not be arranged: a node that leads hands the control plane on as soon as it can.
async fn lose_pgsteads(bed: &mut Testbed, round: Round, load: Load, first_id: i64) -> anyhow::Result<Option<Round>> {
    let fault = round.fault;
    for attempt in 0..ATTEMPTS {
        arrange(bed, fault).await?;
        let target = bed.read_write(CLUSTER).await?;
        let writers = warm(&target, load, first_id + (attempt * 10_000) as i64).await?;
        let (leader, controller_there) = leader_and_controller(bed).await?;
        if controller_there != (fault == Fault::ControllerNodeKilled) {
            writers.stop().await;
            continue;
        }
        let postmaster = bed.postmaster(CLUSTER, leader).await?;
        let at = Tick::now();
        match fault {
            Fault::PostmasterKilled => {
                if !postmaster.signal(rustix::process::Signal::KILL) {
                    bail!("{postmaster} had ended by itself");
                }
            }
            Fault::NodeKilled | Fault::ControllerNodeKilled => {
                bed.kill_node(leader)?;
            }
            Fault::NodeFrozen => {
                bed.freeze_node(leader);
            }
            Fault::Switchover => {
                bed.client()?.switchover(CLUSTER, &SwitchoverBody::default(), None).await?;
            }
        }
        bed.wait_for_another_leader(CLUSTER, leader, PATIENCE).await?;
        if fault == Fault::NodeFrozen {
            // Whoever came through its gateway waits with it; the others have gone on long before it wakes.
            let since = Tick::now();
            let gone_on = async || match writers.acknowledged_since(since) {
                0..ENOUGH => Err("they do not".to_string()),
                _ => Ok(()),
            };
            bed.wait_for("clients of the other gateways write", PATIENCE, gone_on).await?;
            bed.thaw_node(leader);
        }
        let written = cool(writers).await;
        if matches!(fault, Fault::NodeKilled | Fault::ControllerNodeKilled) {
            bed.start_daemon(leader)?;
        }
        return judge(&target, &written?, at, Round { controller_there, ..round }).await.map(Some);
    }
    Ok(None)
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
        // Whoever freezes the primary knows it at once as well; its clients would not, so that it is killed here.
        Fault::NodeKilled | Fault::ControllerNodeKilled | Fault::NodeFrozen => {
            reference.kill_all_and_promote(&standby).await?;
        }
        Fault::Switchover => reference.switch_over(&standby).await?,
    }
    let written = cool(writers).await?;
    let result = judge(&target, &written, at, Round::of(Subject::Reference, fault, round)).await;
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
