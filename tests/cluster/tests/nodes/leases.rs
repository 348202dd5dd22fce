//! Leases: a guard stops its Postgres without its daemon, an asynchronous cluster waits for that, and a healthy leader goes on
//! without a controller for as long as a standby's word lets it.

use crate::support::{Bed, LATER, SOON, session};
use anyhow::{Context, ensure};
use pgstead_cluster_tests::{Setup, wait_until_gone};
use pgstead_types::Tick;
use pgstead_types::spec::{ClusterSpec, Durability};
use rustix::process::Signal;
use std::time::Duration;
use tokio_postgres::Client;

fn with_lease(nodes: usize, lease: Duration) -> Setup {
    Setup { nodes, config: format!("[timing]\nlease_ms = {}", lease.as_millis()), ..Setup::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_daemon_costs_an_asynchronous_leader_its_lease_and_another_leads_after_it() -> anyhow::Result<()> {
    // Long enough that a starved daemon does not let it run out before it is frozen.
    let bed = Bed::start_with(with_lease(3, Duration::from_secs(15))).await?;
    let durability = Durability::Asynchronous;
    bed.create_cluster(&ClusterSpec { durability, ..ClusterSpec::named("app") }).await?;
    let target = bed.read_write("app").await?;
    session(&target)
        .await?
        .batch_execute("create table leased (n int primary key); insert into leased values (1)")
        .await?;

    let leader = bed.leader_node("app").await?;
    let epoch = bed.client()?.cluster("app").await?.epoch;
    let postmaster = bed.postmaster("app", leader).await?;
    let daemon = bed.processes(leader).into_iter().find(|process| process.role() == "daemon");
    let daemon = daemon.with_context(|| format!("no daemon on node {leader}: {:?}", bed.processes(leader)))?;
    ensure!(daemon.signal(Signal::STOP), "{daemon} had ended before");
    // Nobody but the guard can do it: the others do not talk to that Postgres, and its daemon stands still.
    let left = wait_until_gone(std::slice::from_ref(&postmaster), LATER);
    ensure!(left.is_empty(), "the guard let {left:?} run past its lease");
    let next = bed.leader_leaves("app", leader).await?;
    ensure!(next != leader);
    let insert = "insert into leased values (2) on conflict do nothing";
    target.in_a_session(async |client| client.batch_execute(insert).await).await?;

    ensure!(daemon.signal(Signal::CONT), "{daemon} had ended before");
    let view = bed.wait_healthy("app", LATER).await?;
    ensure!(view.epoch > epoch, "another leads in the same epoch");
    let next = view.history.iter().find(|entry| entry.epoch > epoch).context("there is a history")?;
    // Its own log could not be asked.
    ensure!(next.possible_loss.is_some(), "the change of leader says that nothing can be lost: {next:?}");
    bed.finding("app", "may_have_lost").await?;
    let count = async |client: &Client| client.query_one("select count(*) from leased", &[]).await;
    let rows: i64 = target.in_a_session(count).await?.get(0);
    ensure!(rows == 2, "a row that every standby had long received is gone: {rows}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_goes_on_without_a_quorum_by_a_standbys_word_and_not_without_it() -> anyhow::Result<()> {
    // A third of it is left to ask the standby, more than once, however starved its daemon is.
    let lease = Duration::from_secs(27);
    let mut bed = Bed::start_with(with_lease(5, lease)).await?;
    bed.create_cluster(&ClusterSpec { members: 2, ..ClusterSpec::named("app") }).await?;
    let writers = bed.writers().await?;
    let leader = bed.leader_node("app").await?;
    let standby = *bed.standbys("app").await?.first().context("a standby")?;
    let postmaster = bed.postmaster("app", leader).await?;
    let epoch = bed.client()?.cluster("app").await?.epoch;

    // Three of five voters: nobody can be asked for a lease any more.
    let voters: Vec<usize> = bed.others(leader).into_iter().filter(|number| *number != standby).collect();
    for number in &voters {
        bed.kill_daemon(*number)?;
    }
    let lost = Tick::now();
    // Beyond every lease that was granted before.
    while Tick::now().since(lost) < lease + lease / 3 {
        writers.all_write_again(Tick::now(), SOON).await?;
    }
    ensure!(postmaster.is_alive(), "the leader was stopped though its standby had given its word");

    // Nobody gives a word any more.
    bed.kill_daemon(standby)?;
    let left = wait_until_gone(std::slice::from_ref(&postmaster), LATER);
    ensure!(left.is_empty(), "the guard let {left:?} run past its lease");

    bed.start_daemon(standby)?;
    for number in voters {
        bed.start_daemon(number)?;
    }
    let view = bed.nothing_is_lost(writers).await?;
    ensure!(view.epoch > epoch, "a leader was stopped and nobody was elected");
    Ok(())
}
