//! What a person asks for: another leader, and a restart of every member, under load.

use crate::support::{Bed, SOON, session, started_at};
use anyhow::{Context, ensure};
use pgstead_cluster_tests::Target;
use pgstead_types::Tick;
use std::collections::BTreeMap;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switchover_reaches_its_target_and_the_old_leader_streams_without_being_made_anew() -> anyhow::Result<()> {
    let bed = Bed::with_cluster(3).await?;
    let writers = bed.writers().await?;
    let before = bed.client()?.cluster("app").await?;
    let leader = before.leader.clone().context("it has a leader")?;

    let refused = bed.pgstead(&["cluster", "switchover", "app", "--to", &leader.name]).await?;
    ensure!(refused.code == Some(4) && refused.stderr.contains(&leader.name), "{refused:?}");
    let unknown = bed.pgstead(&["cluster", "switchover", "app", "--to", "app-9"]).await?;
    ensure!(matches!(unknown.code, Some(2..=4)) && unknown.stderr.contains("app-9"), "{unknown:?}");

    let targets: Vec<String> =
        before.members.iter().map(|member| member.name.clone()).filter(|name| *name != leader.name).collect();
    for target in targets.iter().chain([&leader.name]) {
        bed.pgstead(&["cluster", "switchover", "app", "--to", target]).await?.output()?;
        let view = bed.wait_healthy("app", SOON).await?;
        ensure!(view.leader.as_ref().is_some_and(|now| now.name == *target), "{:?} leads, not {target}", view.leader);
        writers.all_write_again(Tick::now(), SOON).await?;
    }
    // Without a target, it finds one.
    bed.pgstead(&["cluster", "switchover", "app"]).await?.output()?;
    let after = bed.nothing_is_lost(writers).await?;
    ensure!(after.leader.as_ref().is_some_and(|now| now.name != leader.name), "{} leads still", leader.name);
    for (old, new) in before.members.iter().zip(&after.members) {
        ensure!(old.incarnation == new.incarnation, "{} was made anew for a planned change", new.name);
    }
    Ok(())
}

/// Start times of the members' Postgres by their nodes.
async fn start_times(bed: &Bed) -> anyhow::Result<BTreeMap<usize, String>> {
    let connection = bed.connection("app").await?;
    let mut times = BTreeMap::new();
    for node in bed.nodes() {
        let target = Target::under_name(&connection, &node.host, node.host.parse()?, connection.direct.port)?;
        times.insert(node.number, started_at(&session(&target).await?).await?);
    }
    Ok(times)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_under_load_touches_every_member_and_loses_nothing() -> anyhow::Result<()> {
    let bed = Bed::with_cluster(3).await?;
    let writers = bed.writers().await?;
    let before = start_times(&bed).await?;
    bed.pgstead(&["cluster", "restart", "app"]).await?.output()?;
    let view = bed.nothing_is_lost(writers).await?;
    let after = start_times(&bed).await?;
    for (node, time) in &before {
        ensure!(after.get(node).is_some_and(|new| new > time), "node {node} was not restarted: {before:?} {after:?}");
    }
    ensure!(view.members.iter().all(|member| member.incarnation == 1), "a member was made anew: {:?}", view.members);
    Ok(())
}
