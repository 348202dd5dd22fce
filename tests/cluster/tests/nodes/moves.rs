//! Members move to other nodes while clients write: one by one because a person says so, or all of a node that is drained. Nothing that
//! was acknowledged is missing, and nothing stays on the node that they left.

use crate::members::{members_are, volume};
use crate::support::{Bed, LATER, LONG_LEASE, SOON};
use anyhow::{Context, ensure};
use pgstead_api::view::NodeServiceView;
use pgstead_cluster_tests::Setup;
use pgstead_types::Tick;
use pgstead_types::spec::ClusterSpec;

async fn four_nodes() -> anyhow::Result<Bed> {
    let setup = Setup { nodes: 4, config: LONG_LEASE.to_string(), ..Setup::default() };
    let bed = Bed::start_with(setup).await?;
    bed.create_cluster(&ClusterSpec::named("app")).await?;
    Ok(bed)
}

fn name(bed: &Bed, number: usize) -> anyhow::Result<String> {
    let node = bed.nodes().iter().find(|node| node.number == number);
    Ok(node.context("there is such a node")?.name.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_drained_while_clients_write_though_it_leads() -> anyhow::Result<()> {
    let bed = four_nodes().await?;
    let leader = bed.leader_node("app").await?;
    let old = bed.member_on("app", leader).await?;
    let (_, folder) = volume(&bed, &old)?;
    let drained = name(&bed, leader)?;
    let writers = bed.writers().await?;
    bed.pgstead(&["node", "drain", &drained]).await?.output()?;
    let client = bed.client()?;
    let node = client.node(&drained).await?;
    ensure!(node.members.is_empty() && node.service == NodeServiceView::Draining, "{node:?}");
    let after = members_are(&bed, 3).await?;
    ensure!(after.members.iter().all(|member| member.node.name != drained), "{:?}", after.members);
    writers.all_write_again(Tick::now(), SOON).await?;
    // The command ends when nothing is a member there; what it had goes a little later.
    let gone = async || if folder.exists() { Err(format!("{} is there", folder.display())) } else { Ok(()) };
    bed.wait_for("its volume is removed", LATER, gone).await?;
    let told = async || {
        let findings = client.node(&drained).await.map_err(|error| error.to_string())?.findings;
        match findings.iter().any(|finding| finding.message.contains("holds nothing any more")) {
            true => Ok(()),
            false => Err(format!("{findings:?}")),
        }
    };
    bed.wait_for("the node is said to be empty", SOON, told).await?;
    // Nothing new comes there, until a person says so.
    let four = ["cluster", "create", "other", "--members", "4"];
    let refused = bed.pgstead(&four).await?;
    ensure!(!refused.succeeded() && refused.stderr.contains("uncordon"), "{refused:?}");
    let listed = bed.pgstead(&["node", "list"]).await?.output()?;
    ensure!(listed.contains("draining"), "{listed}");
    bed.pgstead(&["node", "uncordon", &drained]).await?.output()?;
    bed.nothing_is_lost(writers).await?;
    bed.pgstead(&four).await?.output()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_moves_and_a_move_can_be_taken_back() -> anyhow::Result<()> {
    let mut bed = four_nodes().await?;
    let (leader, standbys) = (bed.leader_node("app").await?, bed.standbys("app").await?);
    let (leads, moves) = (bed.member_on("app", leader).await?, bed.member_on("app", standbys[0]).await?);
    let free = (1..=4).find(|n| *n != leader && !standbys.contains(n)).context("a free node")?;
    for (args, said) in [
        (vec!["member", "move", &leads.name], "switchover"),
        (vec!["member", "move", "nobody"], "no member"),
        (vec!["member", "move", &moves.name, "--to", &leads.node.name], "has a member"),
        (vec!["member", "move", &moves.name, "--to", "nowhere"], "nowhere"),
        (vec!["member", "move", &moves.name, "--cancel"], "no member is being moved"),
    ] {
        let refused = bed.pgstead(&args).await?;
        ensure!(!refused.succeeded() && refused.stderr.contains(said), "{args:?}: {refused:?}");
    }
    let writers = bed.writers().await?;
    // Its node does nothing: the new member cannot come to be, and the old one goes on.
    bed.kill_node(free)?;
    let there = bed.pgstead(&["member", "move", &moves.name, "--no-wait"]).await?;
    ensure!(!there.succeeded(), "no node can take it: {there:?}");
    bed.start_daemon(free)?;
    bed.wait_reachable(4).await?;
    bed.pgstead(&["member", "move", &moves.name, "--to", &name(&bed, free)?]).await?.output()?;
    let after = members_are(&bed, 3).await?;
    let nodes: Vec<&str> = after.members.iter().map(|member| member.node.name.as_str()).collect();
    ensure!(nodes.contains(&name(&bed, free)?.as_str()) && !nodes.contains(&moves.node.name.as_str()), "{nodes:?}");
    writers.all_write_again(Tick::now(), SOON).await?;

    // Back to where it came from, and taken back before the new one has come to be.
    let (_, folder) = volume(&bed, &moves)?;
    let gone = async || if folder.exists() { Err(format!("{} is there", folder.display())) } else { Ok(()) };
    bed.wait_for("its old volume is removed", LATER, gone).await?;
    let client = bed.client()?;
    let forgotten = async || {
        let events = client.events(None, Some("app"), std::time::Duration::ZERO).await;
        let events = events.map_err(|error| error.to_string())?.events;
        match events.iter().any(|event| event.kind == "member_data_removed") {
            true => Ok(()),
            false => Err("the record still has it".to_string()),
        }
    };
    bed.wait_for("the old member is forgotten", LATER, forgotten).await?;
    let moved = bed.member_on("app", free).await?;
    bed.kill_daemon(standbys[0])?;
    bed.start_daemon_with(standbys[0], &[("PGSTEAD_TEST_ABORT".to_string(), "before:clone".to_string())])?;
    bed.wait_reachable(4).await?;
    bed.pgstead(&["member", "move", &moved.name, "--to", &moves.node.name, "--no-wait"]).await?.output()?;
    bed.pgstead(&["member", "move", &moved.name, "--cancel"]).await?.output()?;
    let left = members_are(&bed, 3).await?;
    ensure!(left.members.iter().any(|member| member.id == moved.id), "{:?}", left.members);
    bed.nothing_is_lost(writers).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_a_lost_host_is_replaced_by_itself_and_what_it_left_goes_when_the_host_is_back()
-> anyhow::Result<()> {
    let mut bed = four_nodes().await?;
    let said = bed.pgstead(&["cluster", "update", "app", "--replace-after", "9s"]).await?;
    ensure!(!said.succeeded() && said.stderr.contains("10s"), "{said:?}");
    bed.pgstead(&["cluster", "update", "app", "--replace-after", "10s"]).await?.output()?;
    let (leader, standbys) = (bed.leader_node("app").await?, bed.standbys("app").await?);
    let free = (1..=4).find(|n| *n != leader && !standbys.contains(n)).context("a free node")?;
    bed.pgstead(&["node", "cordon", &name(&bed, free)?]).await?.output()?;
    let writers = bed.writers().await?;
    // The host that leads: first another one does, and then what it had is made anew.
    let lost = bed.member_on("app", leader).await?;
    let (_, folder) = volume(&bed, &lost)?;
    bed.kill_node(leader)?;
    let told = bed.finding("app", "member_not_replaced").await?;
    ensure!(told.contains("uncordon"), "{told}");
    bed.pgstead(&["node", "uncordon", &name(&bed, free)?]).await?.output()?;
    let client = bed.client()?;
    let replaced = async || {
        let members = client.cluster_members("app").await.map_err(|error| error.to_string())?;
        match members.iter().any(|member| member.id == lost.id) {
            false if members.len() == 3 => Ok(()),
            _ => Err(format!("{:?}", members.iter().map(|member| &member.name).collect::<Vec<_>>())),
        }
    };
    bed.wait_for("the lost member is replaced", LATER, replaced).await?;
    members_are(&bed, 3).await?;
    ensure!(folder.exists(), "nobody was there to remove it");
    bed.start_daemon(leader)?;
    let gone = async || if folder.exists() { Err(format!("{} is there", folder.display())) } else { Ok(()) };
    bed.wait_for("what it left is removed", LATER, gone).await?;
    bed.nothing_is_lost(writers).await?;
    Ok(())
}
