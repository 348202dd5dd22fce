//! What `placement explain` says is what is then done, or refused in the same words.

use crate::support::{Bed, LATER, LONG_LEASE, SOON};
use anyhow::{Context, ensure};
use pgstead_api::view::{NodeRef, PlacementView};
use pgstead_cluster_tests::{Said, Setup};
use pgstead_types::spec::ClusterSpec;
use std::collections::BTreeSet;

async fn explained(bed: &Bed, args: &[&str]) -> anyhow::Result<PlacementView> {
    let args = [&["placement", "explain", "--output", "json"][..], args].concat();
    // Only the controller explains, and there may be another one meanwhile.
    let said = async || {
        let said = bed.pgstead(&args).await.and_then(Said::output);
        said.map_err(|error| format!("{error:#}"))
    };
    let said = bed.wait_for("the controller explains", SOON, said).await?;
    serde_json::from_str(&said).context("the explanation")
}

fn names<'a>(nodes: impl Iterator<Item = &'a NodeRef>) -> BTreeSet<String> {
    nodes.map(|node| node.name.clone()).collect()
}

async fn nodes_of(bed: &Bed, cluster: &str) -> anyhow::Result<BTreeSet<String>> {
    let members = bed.client()?.cluster_members(cluster).await?;
    Ok(names(members.iter().map(|member| &member.node)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_explained_is_what_is_done() -> anyhow::Result<()> {
    let setup = Setup { nodes: 3, config: LONG_LEASE.to_string(), ..Setup::default() };
    let bed = Bed::start_with(setup).await?;
    let told = async || {
        let seen = explained(&bed, &[]).await.map_err(|error| format!("{error:#}"))?;
        let silent: Vec<&str> =
            seen.nodes.iter().filter(|node| node.round_trip_us.is_none()).map(|node| node.node.name.as_str()).collect();
        if silent.is_empty() { Ok(()) } else { Err(format!("{silent:?} have told no round trip")) }
    };
    bed.wait_for("every node tells how far the controller is", LATER, told).await?;

    // One node has something to do, so the other two get the next ones.
    bed.create_cluster(&ClusterSpec { members: 1, ..ClusterSpec::named("first") }).await?;
    let busy = nodes_of(&bed, "first").await?;
    let next = explained(&bed, &["--members", "2"]).await?;
    ensure!(next.refused.is_none() && names(next.chosen.iter()).is_disjoint(&busy), "{next:?}");
    bed.create_cluster(&ClusterSpec { members: 2, ..ClusterSpec::named("app") }).await?;
    ensure!(nodes_of(&bed, "app").await? == names(next.chosen.iter()), "{next:?}");

    // Of a cluster that is there, one more goes to the node that has none.
    let more = explained(&bed, &["app"]).await?;
    ensure!(names(more.chosen.iter()) == busy && more.present.len() == 2, "{more:?}");
    ensure!(more.against.get("has_member") == Some(&2), "{more:?}");
    let free = busy.first().context("a node")?;
    bed.pgstead(&["node", "cordon", free]).await?.output()?;
    let none = explained(&bed, &["app"]).await?;
    let why = none.refused.context("no node is left")?;
    let refused = bed.pgstead(&["cluster", "update", "app", "--members", "3"]).await?;
    ensure!(!refused.succeeded() && refused.stderr.contains(&why), "{why}: {refused:?}");
    let shown = bed.pgstead(&["placement", "explain", "app"]).await?.output()?;
    ensure!(shown.contains("it is cordoned") && shown.contains("it has a member of it already"), "{shown}");
    bed.pgstead(&["node", "uncordon", free]).await?.output()?;
    bed.pgstead(&["cluster", "update", "app", "--members", "3"]).await?.output()?;
    ensure!(nodes_of(&bed, "app").await?.is_superset(&busy), "{more:?}");

    // What is asked of nodes changes while the cluster runs, and members stay where they are.
    let weights = ["--zones-min", "3", "--placement-weights", "latency=0,idle=100"];
    bed.pgstead(&[&["cluster", "update", "app"][..], &weights].concat()).await?.output()?;
    let asked = explained(&bed, &["app"]).await?;
    ensure!((asked.zones_min, asked.weights.idle, asked.present.len()) == (Some(3), 100, 3), "{asked:?}");
    ensure!(asked.present.iter().all(|one| one.better.is_none()), "{asked:?}");

    // And in the same words where a spec asks for what is not there.
    let elsewhere = explained(&bed, &["--members", "1", "--region", "elsewhere"]).await?;
    let why = elsewhere.refused.context("there is no such region")?;
    let refused = bed.pgstead(&["cluster", "create", "other", "--members", "1", "--region", "elsewhere"]).await?;
    ensure!(!refused.succeeded() && refused.stderr.contains(&why), "{why}: {refused:?}");
    Ok(())
}
