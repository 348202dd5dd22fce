//! Clusters that begin with the data of others, as they are or were, and have nothing to do with them from then on.

use crate::support::{Bed, LATER, SOON, session};
use anyhow::{Context, ensure};
use pgstead_api::view::Health;
use pgstead_cluster_tests::check;
use pgstead_types::Tick;
use pgstead_types::spec::ClusterSpec;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_has_all_that_was_acknowledged_and_outlives_its_source() -> anyhow::Result<()> {
    let bed = Bed::with_cluster(3).await?;
    let owner = session(&bed.read_write("app").await?).await?;
    owner.batch_execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id").await?;
    let writers = bed.writers().await?;
    let asked = Tick::now();
    bed.pgstead(&["cluster", "fork", "app", "twin", "--members", "3"]).await?.output()?;
    bed.wait_healthy("twin", LATER).await?;
    let written = writers.stop().await;
    let before: Vec<_> = written.acknowledged.iter().filter(|row| row.at < asked).cloned().collect();
    let checked = check(&bed.read_write("twin").await?, &before).await?;
    ensure!(checked.acknowledged > 0 && checked.lost.is_empty(), "{checked:?}");

    // Its timelines are above all that the source has had; its passwords are its own.
    let client = bed.client()?;
    let (source, twin) = (client.cluster("app").await?, client.cluster("twin").await?);
    ensure!(twin.timeline > source.timeline, "{:?} and {:?}", twin.timeline, source.timeline);
    ensure!(twin.history.first().is_some_and(|first| first.parent >= pgstead_types::Timeline(2)), "{:?}", twin.history);
    let (of_source, of_twin) = (bed.connection("app").await?, bed.connection("twin").await?);
    ensure!(of_source.password != of_twin.password && of_source.ca_pem != of_twin.ca_pem);
    let shown = bed.pgstead(&["cluster", "show", "twin"]).await?.output()?;
    ensure!(shown.contains("forked from") && shown.contains("app as it was at"), "{shown}");

    // What one writes the other does not have.
    let inside = session(&bed.read_write("twin").await?).await?;
    inside.batch_execute("DELETE FROM kept WHERE id > 10").await?;
    owner.batch_execute("INSERT INTO kept VALUES (0)").await?;
    let count = "SELECT count(*) FROM kept";
    ensure!(inside.query_one(count, &[]).await?.get::<_, i64>(0) == 10);
    ensure!(owner.query_one(count, &[]).await?.get::<_, i64>(0) == 1001);

    // It is a cluster like any other, also when its source is gone.
    bed.pgstead(&["cluster", "delete", "app", "--yes"]).await?.output()?;
    let writers = bed.writers_on("twin").await?;
    let leader = bed.leader_node("twin").await?;
    bed.kill_postmaster("twin", leader).await?;
    bed.leader_leaves("twin", leader).await?;
    bed.nothing_is_lost_of("twin", writers).await?;
    let inside = session(&bed.read_write("twin").await?).await?;
    ensure!(inside.query_one(count, &[]).await?.get::<_, i64>(0) == 10);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_of_a_snapshot_is_as_the_source_was() -> anyhow::Result<()> {
    let bed = Bed::start(2).await?;
    bed.create_cluster(&ClusterSpec { members: 2, ..ClusterSpec::named("app") }).await?;
    let owner = session(&bed.read_write("app").await?).await?;
    owner.batch_execute("CREATE TABLE kept AS SELECT 1 AS id").await?;
    let standby = bed.standbys("app").await?.first().copied().context("a standby")?;
    let member = bed.member_on("app", standby).await?.name;
    // Also of a standby; it has what it has replayed.
    let replayed = session(&bed.read_only("app").await?).await?;
    bed.wait_for("the standby has the row", SOON, async || {
        let found = replayed.query_one("SELECT count(*) FROM kept", &[]).await.map_err(|error| error.to_string())?;
        if found.get::<_, i64>(0) == 1 { Ok(()) } else { Err("not yet".to_string()) }
    })
    .await?;
    bed.pgstead(&["snapshot", "create", "app", "--member", &member, "--keep", "1h"]).await?.output()?;
    owner.batch_execute("DELETE FROM kept").await?;
    let client = bed.client()?;
    let listed = async || {
        let all = client.snapshots().await.map_err(|error| error.to_string())?;
        all.into_iter().next().ok_or("no snapshot is listed".to_string())
    };
    let snapshot = bed.wait_for("the snapshot is listed", SOON, listed).await?;
    let id = snapshot.id.to_string();

    let said = bed.pgstead(&["cluster", "fork", "app", "app", "--snapshot", &id]).await?;
    ensure!(!said.succeeded() && said.stderr.contains("exists already"), "{said:?}");
    let none = "01930000-0000-7000-8000-000000000000";
    let said = bed.pgstead(&["cluster", "fork", "app", "old", "--snapshot", none]).await?;
    ensure!(!said.succeeded() && said.stderr.contains("snapshot"), "{said:?}");
    let said = bed.pgstead(&["cluster", "fork", "app", "old", "--member", "app-9"]).await?;
    ensure!(!said.succeeded() && said.stderr.contains("app-9"), "{said:?}");
    let said = bed.pgstead(&["cluster", "fork", "app", "old", "--members", "3"]).await?;
    ensure!(!said.succeeded() && said.stderr.contains("nodes"), "{said:?}");
    ensure!(client.snapshots().await?.len() == 1, "what was refused has left a snapshot");

    bed.pgstead(&["cluster", "fork", "app", "old", "--snapshot", &id]).await?.output()?;
    bed.pgstead(&["cluster", "fork", "app", "new"]).await?.output()?;
    for (name, rows) in [("old", 1_i64), ("new", 0), ("app", 0)] {
        let inside = session(&bed.read_write(name).await?).await?;
        let found: i64 = inside.query_one("SELECT count(*) FROM kept", &[]).await?.get(0);
        ensure!(found == rows, "{name} has {found} rows, expected {rows}");
    }
    // One that was taken for a fork alone goes with it; one that was asked for stays.
    bed.wait_for("only the snapshot is left that was asked for", SOON, async || {
        let all = client.snapshots().await.map_err(|error| error.to_string())?;
        let left: Vec<_> = all.into_iter().map(|snapshot| snapshot.id.to_string()).collect();
        if left == [id.clone()] { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await?;
    bed.pgstead(&["snapshot", "remove", &id]).await?.output()?;
    for name in ["old", "new"] {
        ensure!(client.cluster(name).await?.health == Health::Healthy);
        bed.pgstead(&["cluster", "delete", name, "--yes"]).await?.output()?;
    }
    Ok(())
}
