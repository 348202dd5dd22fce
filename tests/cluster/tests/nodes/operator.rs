//! What a person does to a real deployment: looks before a switchover, asks for one later, undoes one, forces a leader, and
//! goes on after most nodes are gone for good.

use crate::support::{Bed, LATER, SOON, session};
use anyhow::{Context, ensure};
use pgstead_api::view::Health;
use pgstead_cluster_tests::check;
use pgstead_types::spec::ClusterSpec;
use pgstead_types::{Tick, WallTime};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switchover_is_checked_refused_overruled_and_undone() -> anyhow::Result<()> {
    let bed = Bed::with_cluster(3).await?;
    let first = bed.wait_healthy("app", SOON).await?.leader.context("a leader")?.name;
    let clear = bed.pgstead(&["cluster", "switchover", "app", "--dry-run"]).await?.output()?;
    ensure!(clear.contains("nothing blocks it"), "{clear}");
    ensure!(bed.pgstead(&["cluster", "switchover", "app", "--undo"]).await?.output().is_err(), "nothing was done yet");

    bed.pgstead(&["cluster", "switchover", "app"]).await?.output()?;
    let second = bed.wait_healthy("app", LATER).await?.leader.context("a leader")?.name;
    ensure!(second != first, "{second} leads still");
    bed.pgstead(&["cluster", "switchover", "app", "--undo"]).await?.output()?;
    let back = bed.wait_healthy("app", LATER).await?;
    ensure!(back.leader.as_ref().is_some_and(|leader| leader.name == first), "{:?}", back.leader);
    ensure!(back.members.iter().all(|member| member.incarnation == 1), "made anew: {:?}", back.members);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduled_switchover_begins_by_itself() -> anyhow::Result<()> {
    let bed = Bed::with_cluster(3).await?;
    let leader = bed.leader_node("app").await?;
    // One for tomorrow is shown and taken back.
    let tomorrow = WallTime::now().plus(Duration::from_secs(24 * 3600)).to_string();
    bed.pgstead(&["cluster", "switchover", "app", "--at", &tomorrow]).await?.output()?;
    bed.finding("app", "switchover_scheduled").await?;
    bed.pgstead(&["cluster", "switchover", "app", "--cancel"]).await?.output()?;
    // In the past it would be refused, and asking may take a while.
    let soon = WallTime::now().plus(Duration::from_secs(20)).to_string();
    bed.pgstead(&["cluster", "switchover", "app", "--at", &soon]).await?.output()?;
    bed.leader_leaves("app", leader).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_nodes_are_gone_for_good_and_the_third_serves_again() -> anyhow::Result<()> {
    let mut bed = Bed::start(3).await?;
    bed.create_cluster(&ClusterSpec { sync_replicas: Some(2), ..ClusterSpec::named("app") }).await?;
    let writers = bed.writers().await?;
    writers.all_write_again(Tick::now(), SOON).await?;
    let survivor = bed.standbys("app").await?[0];
    let lost = bed.others(survivor);
    let name = bed.member_on("app", survivor).await?.name;
    for number in &lost {
        bed.kill_node(*number)?;
        std::fs::remove_dir_all(bed.node(*number).folder.clone())?;
    }
    let written = writers.stop().await;

    // Nothing is decided without a quorum, and the daemon must be stopped for its recovery.
    let config = bed.node(survivor).config().display().to_string();
    let names: Vec<String> = lost.iter().map(|number| bed.node(*number).name.clone()).collect();
    let mut args = vec!["node", "recover-quorum", "--config", &config];
    names.iter().for_each(|name| args.extend(["--lost", name.as_str()]));
    let running = bed.pgstead(&[&args[..], &["--yes"]].concat()).await?.output();
    ensure!(running.is_err_and(|why| format!("{why:#}").contains("stop it first")), "it was done under the daemon");
    bed.kill_daemon(survivor)?;
    let one =
        bed.pgstead(&["node", "recover-quorum", "--config", &config, "--lost", &names[0], "--yes"]).await?.output();
    ensure!(one.is_err_and(|why| format!("{why:#}").contains("still a majority")), "a majority was left out");
    let shown = bed.pgstead(&[&args[..], &["--dry-run"]].concat()).await?.output()?;
    ensure!(shown.contains("Nothing was changed") && shown.contains("1 members are left"), "{shown}");
    bed.pgstead(&[&args[..], &["--yes"]].concat()).await?.output()?;
    bed.start_daemon(survivor)?;

    // The record answers again; who leads needs a person's word, after the gap was shown.
    let client = bed.client_of(survivor)?;
    let answers = async || client.cluster("app").await.map(|view| view.epoch).map_err(|error| error.to_string());
    bed.wait_for("the survivor answers", LATER, answers).await?;
    let shows = async || {
        let said =
            bed.pgstead(&["cluster", "failover", "app", "--to", &name]).await.map_err(|error| error.to_string())?;
        let text = format!("{}{}", said.stdout, said.stderr);
        if text.contains("--accept-data-loss does it") { Ok(()) } else { Err(text) }
    };
    bed.wait_for("the gap is shown", LATER, shows).await?;
    // Refused, and nothing done, where the record has changed since the command looked: the recovered cluster still gets
    // ready. Then a person asks again.
    let forces = async || {
        let said = bed.pgstead(&["cluster", "failover", "app", "--to", &name, "--accept-data-loss", "--yes"]).await;
        let said = said.map_err(|error| error.to_string())?;
        if said.code == Some(4) { Err(said.stderr) } else { Ok(said) }
    };
    bed.wait_for("nothing else changes the cluster", LATER, forces).await?.output()?;
    let view = bed.health("app", Health::Degraded).await?;
    ensure!(view.leader.as_ref().is_some_and(|leader| leader.name == name), "{:?} leads", view.leader);
    ensure!(view.forced.len() == 1 && view.forced[0].retired.len() == 2, "{:?}", view.forced);
    let events = client.events(None, None, Duration::ZERO).await?.events;
    for kind in ["quorum_recovered", "failover_forced", "data_retired"] {
        ensure!(events.iter().any(|event| event.kind == kind), "no event {kind}");
    }
    // Both standbys had every commit before it was acknowledged, so the one that is left has them all.
    let checked = check(&bed.read_write("app").await?, &written.acknowledged).await?;
    ensure!(checked.acknowledged > 0 && checked.lost.is_empty(), "{checked:?}");
    let writes = session(&bed.read_write("app").await?).await?;
    writes.batch_execute("create table after_it (n int); insert into after_it values (1)").await?;
    Ok(())
}
