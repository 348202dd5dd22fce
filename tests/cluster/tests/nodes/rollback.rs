//! Clusters that go back to a snapshot while clients write. Clients know one cluster before and after; whatever was acknowledged is in
//! it, or in what is kept aside of it.

use crate::support::{Bed, LATER, SOON, session};
use anyhow::{bail, ensure};
use pgstead_api::view::{ClusterView, Health};
use pgstead_cluster_tests::{Target, Written};
use pgstead_types::Tick;
use pgstead_types::spec::ClusterSpec;
use std::collections::BTreeSet;
use std::time::Duration;

/// By default a gateway has a client wait for a leader for so long.
const HOLD: Duration = Duration::from_secs(15);

async fn count(target: &Target) -> anyhow::Result<i64> {
    Ok(session(target).await?.query_one("SELECT count(*) FROM kept", &[]).await?.get(0))
}

async fn written_ids(target: &Target) -> anyhow::Result<BTreeSet<i64>> {
    let rows = session(target).await?.query("SELECT id FROM written", &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

pub async fn snapshot(bed: &Bed, cluster: &str) -> anyhow::Result<String> {
    bed.pgstead(&["snapshot", "create", cluster, "--keep", "1h"]).await?.output()?;
    let client = bed.client()?;
    let listed = async || {
        let all = client.snapshots().await.map_err(|error| error.to_string())?;
        all.last().map(|snapshot| snapshot.id.to_string()).ok_or("no snapshot is listed".to_string())
    };
    bed.wait_for("the snapshot is listed", SOON, listed).await
}

/// Everything is in one of them, and no client has gone from the second back to the first.
fn split(written: &Written, first: &BTreeSet<i64>, second: &BTreeSet<i64>) -> anyhow::Result<usize> {
    let mut over = BTreeSet::new();
    for row in &written.acknowledged {
        match (first.contains(&row.id), second.contains(&row.id)) {
            (false, false) => bail!("row {} was acknowledged and is nowhere", row.id),
            (true, false) => ensure!(!over.contains(&row.client), "client {} has gone back", row.client),
            (false, true) => {
                over.insert(row.client);
            }
            (true, true) => {}
        }
    }
    Ok(over.len())
}

/// It takes nobody, not by the members' own addresses either.
async fn is_closed(bed: &Bed, cluster: &str) -> anyhow::Result<ClusterView> {
    let view = bed.health(cluster, Health::Healthy).await?;
    ensure!(view.why.contains("kept aside"), "{}", view.why);
    match bed.direct(cluster).await?.connect().await {
        Ok(_) => bail!("{cluster} takes clients"),
        Err(refused) => ensure!(format!("{refused:?}").contains("28000"), "{refused:?}"),
    }
    Ok(view)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_goes_back_to_a_snapshot_while_clients_write_and_forth_again() -> anyhow::Result<()> {
    let bed = Bed::with_cluster(3).await?;
    // What applications are configured with, from beginning to end.
    let (app, before) = (bed.read_write("app").await?, bed.connection("app").await?);
    let inside = session(&app).await?;
    inside.batch_execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id").await?;
    let writers = bed.writers().await?;
    let id = snapshot(&bed, "app").await?;
    inside.batch_execute("DELETE FROM kept WHERE id > 10").await?;
    drop(inside);
    let none = "01930000-0000-7000-8000-000000000000";
    for (args, said) in [
        (vec!["cluster", "rollback", "app"], "--undo"),
        (vec!["cluster", "rollback", "app", "--to", none, "--yes"], "snapshot"),
        (vec!["cluster", "rollback", "app", "--to", &id], "--yes"),
        (vec!["cluster", "rollback", "app", "--to", &id, "--keep-as", "app", "--yes"], "exists already"),
        (vec!["cluster", "rollback", "app", "--undo", "--yes"], "nothing to undo"),
        (vec!["cluster", "rollback", "app", "--cancel"], "no rollback"),
    ] {
        let refused = bed.pgstead(&args).await?;
        ensure!(!refused.succeeded() && refused.stderr.contains(said), "{args:?}: {refused:?}");
    }
    let begun = Tick::now();
    let said = bed.pgstead(&["cluster", "rollback", "app", "--to", &id, "--yes"]).await?.output()?;
    ensure!(said.contains("--undo"), "{said}");
    writers.all_write_again(Tick::now(), SOON).await?;
    // Who waits at the gateways for the one cluster is served by the other.
    let gap = writers.longest_gap(begun).length;
    ensure!(gap < HOLD, "for {gap:?} nobody was acknowledged anything");
    ensure!(count(&app).await? == 1000, "it is not what it was");
    let after = bed.connection("app").await?;
    ensure!(after.password == before.password && after.ca_pem == before.ca_pem, "clients have to be configured anew");
    let view = bed.wait_healthy("app", LATER).await?;
    ensure!(view.members.len() == 3 && view.members.iter().all(|one| one.name.starts_with("app-")), "{view:?}");
    is_closed(&bed, "app-kept").await?;
    let shown = bed.pgstead(&["cluster", "show", "app-kept"]).await?.output()?;
    ensure!(shown.contains("app has taken its place"), "{shown}");

    // It is a cluster like any other.
    let leader = bed.leader_node("app").await?;
    bed.kill_postmaster("app", leader).await?;
    bed.leader_leaves("app", leader).await?;
    writers.all_write_again(Tick::now(), LATER).await?;
    let written = writers.stop().await;
    let second = written_ids(&app).await?;

    bed.pgstead(&["cluster", "rollback", "app", "--undo", "--yes"]).await?.output()?;
    ensure!(count(&app).await? == 10, "what was written after the snapshot is not there");
    let over = split(&written, &written_ids(&app).await?, &second)?;
    ensure!(over > 0, "nobody has written to what it was");
    is_closed(&bed, "app-undone").await?;
    let refused = bed.pgstead(&["cluster", "delete", "app-undone", "--yes"]).await?;
    ensure!(refused.succeeded(), "{refused:?}");
    bed.nothing_is_lost(bed.writers().await?).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_is_taken_back_before_it_is_done() -> anyhow::Result<()> {
    let bed = Bed::start(2).await?;
    bed.create_cluster(&ClusterSpec { members: 2, ..ClusterSpec::named("app") }).await?;
    let inside = session(&bed.read_write("app").await?).await?;
    inside.batch_execute("CREATE TABLE kept AS SELECT 1 AS id").await?;
    let id = snapshot(&bed, "app").await?;
    inside.batch_execute("INSERT INTO kept VALUES (2)").await?;
    // What is to take its place takes seconds to be copied.
    bed.pgstead(&["cluster", "rollback", "app", "--to", &id, "--yes", "--no-wait"]).await?.output()?;
    let refused = bed.pgstead(&["cluster", "delete", "app", "--yes"]).await?;
    ensure!(!refused.succeeded() && refused.stderr.contains("--cancel"), "{refused:?}");
    bed.pgstead(&["cluster", "rollback", "app", "--cancel"]).await?.output()?;
    bed.wait_healthy("app", LATER).await?;
    ensure!(count(&bed.read_write("app").await?).await? == 2, "it is not what it was");
    let client = bed.client()?;
    let alone = async || {
        let all = client.clusters().await.map_err(|error| error.to_string())?;
        if all.len() == 1 { Ok(()) } else { Err(format!("{all:?}")) }
    };
    bed.wait_for("what was made for the rollback is gone", LATER, alone).await?;
    Ok(())
}
