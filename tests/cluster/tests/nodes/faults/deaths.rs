//! Nodes and postmasters end, one after the other, together, or for a while.

use super::{
    Clients, Course, Together, all_know, another_leads, in_lab, is_drill, leader_and_raft, let_it_last, rounds,
};
use crate::support::{Bed, LATER, SOON, session};
use anyhow::ensure;
use pgstead_cluster_tests::Target;
use pgstead_types::Tick;
use std::time::Duration;

/// Longer than any lease, in the long form.
const LONG: Duration = Duration::from_secs(14);

/// A backend of the leader that computes and does not look at its postmaster meanwhile.
async fn a_backend_is_busy(bed: &Bed, leader: usize) -> anyhow::Result<tokio::task::JoinHandle<bool>> {
    let view = bed.connection("app").await?;
    let host = bed.node(leader).host.clone();
    let busy = session(&Target::under_name(&view, &host, host.parse()?, view.direct.port)?).await?;
    let query = "select sum(length(md5(n::text))) from generate_series(1, 1000000000) n";
    let busy = tokio::spawn(async move { busy.query_one(query, &[]).await.is_err() });
    let computes = async || {
        let all = bed.processes(leader);
        let found = all.iter().any(|one| one.words.first().is_some_and(|title| title.ends_with(" SELECT")));
        if found { Ok(()) } else { Err("nobody computes".to_string()) }
    };
    bed.wait_for("a backend is busy", SOON, computes).await?;
    Ok(busy)
}

#[test]
fn postmasters_and_nodes_of_leaders_die_one_after_the_other() -> anyhow::Result<()> {
    in_lab(Course { every_node_leads: true, ..Course::default() }, async |bed| {
        let clients = Clients::start(bed).await?;
        for _ in 0..rounds() {
            let leader = bed.leader_node("app").await?;
            let busy = a_backend_is_busy(bed, leader).await?;
            bed.kill_postmaster("app", leader).await?;
            bed.leader_leaves("app", leader).await?;
            ensure!(busy.await?, "the busy backend outlived its postmaster");

            for together in [Together::No, Together::Yes] {
                let leader = leader_and_raft(bed, together).await?;
                bed.kill_node(leader)?;
                let others = bed.others(leader);
                let second = another_leads(bed, leader, &others).await?;
                clients.all_write_through(bed, &others, Tick::now()).await?;
                bed.start_daemon(leader)?;
                bed.wait_healthy("app", LATER).await?;
                // The next one at once, on another member.
                bed.kill_node(second)?;
                let others = bed.others(second);
                another_leads(bed, second, &others).await?;
                clients.all_write_through(bed, &others, Tick::now()).await?;
                bed.start_daemon(second)?;
                bed.wait_healthy("app", LATER).await?;
            }
        }
        clients.verify(bed).await.map(drop)
    })
}

#[test]
fn two_of_three_nodes_die_and_then_all_of_them() -> anyhow::Result<()> {
    in_lab(Course::default(), async |bed| {
        let clients = Clients::start(bed).await?;
        for _ in 0..rounds() {
            // The leader and a standby, then both standbys: neither side can elect anybody.
            for leader_too in [true, false] {
                let leader = bed.leader_node("app").await?;
                let others = bed.others(leader);
                let lost = if leader_too { [leader, others[0]] } else { [others[0], others[1]] };
                lost.iter().for_each(|node| drop(bed.freeze_node(*node)));
                for node in lost {
                    bed.kill_node(node)?;
                }
                for node in lost {
                    bed.start_daemon(node)?;
                }
                bed.wait_healthy("app", LATER).await?;
            }
            for node in [1, 2, 3] {
                bed.freeze_node(node);
            }
            for node in [1, 2, 3] {
                bed.kill_node(node)?;
            }
            for node in [3, 1, 2] {
                bed.start_daemon(node)?;
            }
            bed.wait_healthy("app", LATER).await?;
        }
        clients.verify(bed).await.map(drop)
    })
}

#[test]
fn a_leaders_node_that_was_frozen_wakes_and_acknowledges_nothing_of_its_own() -> anyhow::Result<()> {
    in_lab(Course { every_node_leads: true, ..Course::default() }, async |bed| {
        let mut clients = Clients::start(bed).await?;
        for _ in 0..rounds() {
            for together in [Together::No, Together::Yes] {
                let leader = leader_and_raft(bed, together).await?;
                let others = bed.others(leader);
                let mut beside = Clients::beside(bed, leader).await?;
                bed.freeze_node(leader);
                beside.is_alone_now();
                another_leads(bed, leader, &others).await?;
                beside.is_replaced(bed, &others).await?;
                clients.all_write_through(bed, &others, Tick::now()).await?;
                if is_drill() {
                    let_it_last(LONG).await;
                }
                bed.thaw_node(leader);
                all_know(bed, &others).await?;
                bed.wait_healthy("app", LATER).await?;
                beside.was_told_nothing(bed, &mut clients).await?;
            }
        }
        clients.verify(bed).await.map(drop)
    })
}
