//! Packets between nodes are dropped: around the primary, in one direction only, and on and off.

use super::{
    Beside, Clients, Course, Together, another_leads, heal, in_lab, is_drill, leader_and_raft, leader_of, let_it_last,
    rounds,
};
use crate::faults::newer_postgres;
use crate::logical::Following;
use crate::support::{Bed, LATER, SOON, session};
use anyhow::{Context, ensure};
use pgstead_cluster_tests::{Appends, Direction, Fault, Setup, Target, between};
use pgstead_types::Tick;
use std::time::Duration;

/// For as long as a leader could think that it still leads, and longer than any lease.
const LONG: Duration = Duration::from_secs(14);

/// Cuts around the leader, until another leads and the others' clients write again; then everything passes again.
async fn cut_around(bed: &Bed, clients: &mut Clients, leader: usize, cut: &[Direction]) -> anyhow::Result<()> {
    let others = bed.others(leader);
    let mut beside: Beside = Clients::beside(bed, leader).await?;
    bed.lab()?.cut(cut)?;
    beside.is_alone_now();
    another_leads(bed, leader, &others).await?;
    beside.is_replaced(bed, &others).await?;
    clients.all_write_through(bed, &others, Tick::now()).await?;
    if is_drill() {
        let_it_last(LONG).await;
    }
    beside.was_told_nothing(bed, clients).await?;
    heal(bed, &others).await?;
    bed.wait_healthy("app", LATER).await?;
    Ok(())
}

#[test]
fn a_primary_that_is_cut_off_acknowledges_nothing_alone_or_with_the_raft_leader() -> anyhow::Result<()> {
    in_lab(Course { every_node_leads: true, ..Course::default() }, async |bed| {
        let mut clients = Clients::start(bed).await?;
        for _ in 0..rounds() {
            for together in [Together::No, Together::Yes] {
                let leader = leader_and_raft(bed, together).await?;
                cut_around(bed, &mut clients, leader, &between(&[leader], &bed.others(leader))).await?;
            }
        }
        clients.verify(bed).await.map(drop)
    })
}

#[test]
fn a_primary_that_is_heard_and_hears_nothing_is_replaced_and_one_that_hears_and_is_not_heard() -> anyhow::Result<()> {
    in_lab(Course::default(), async |bed| {
        let mut clients = Clients::start(bed).await?;
        for _ in 0..rounds() {
            let leader = bed.leader_node("app").await?;
            let deaf: Vec<Direction> = bed.others(leader).iter().map(|other| (*other, leader)).collect();
            cut_around(bed, &mut clients, leader, &deaf).await?;
            let leader = bed.leader_node("app").await?;
            let mute: Vec<Direction> = bed.others(leader).iter().map(|other| (leader, *other)).collect();
            cut_around(bed, &mut clients, leader, &mute).await?;
        }
        clients.verify(bed).await.map(drop)
    })
}

/// A leader that answers nobody and is not known to be dead: whoever copies its slots waits for it.
#[test]
fn a_consumer_of_changes_goes_on_when_the_leader_is_cut_off_and_misses_nothing() -> anyhow::Result<()> {
    let setup = Setup { config: format!("postgres_bin = [{:?}]\n", newer_postgres()?), ..Setup::default() };
    in_lab(Course { setup, logical_replication: true, ..Course::default() }, async |bed| {
        let following = Following::start(bed).await?;
        for _ in 0..rounds() {
            following.copied_everywhere(bed).await?;
            following.writes_go_on(bed).await?;
            let leader = bed.leader_node("app").await?;
            let others = bed.others(leader);
            let begun = Tick::now();
            bed.lab()?.cut(&between(&[leader], &others))?;
            another_leads(bed, leader, &others).await?;
            println!("another leads after {:?}", Tick::now().since(begun));
            heal(bed, &others).await?;
            bed.wait_healthy("app", LATER).await?;
            following.writes_go_on(bed).await?;
            following.has_caught_up(bed).await?;
        }
        following.end().await
    })
}

/// Loses writes on purpose: a client that waits for no standby is acknowledged what its primary alone has. Were this not
/// found, the other tests would prove nothing.
#[test]
fn the_check_finds_what_a_client_loses_that_waits_for_no_standby() -> anyhow::Result<()> {
    in_lab(Course::default(), async |bed| {
        let leader = bed.leader_node("app").await?;
        let others = bed.others(leader);
        let (view, host) = (bed.connection("app").await?, bed.node(leader).host.clone());
        let careful = Target::under_name(&view, &host, host.parse()?, view.direct.port)?;
        session(&careful).await?;
        Appends::prepare(&careful).await?;
        let careless = Appends::start([careful.with_options("-c synchronous_commit=local")]);
        careless.all_append_again(Tick::now(), SOON).await?;
        bed.lab()?.cut(&between(&[leader], &others))?;
        let cut = Tick::now();
        careless.all_append_again(cut, SOON).await?;
        another_leads(bed, leader, &others).await?;
        heal(bed, &others).await?;
        let healthy = bed.wait_healthy("app", LATER).await?;
        let history = careless.stop().await;
        ensure!(history.acknowledged_by(&host, cut, Tick::now()) > 0, "it was acknowledged nothing after the cut");
        let now =
            leader_of(bed, &healthy).filter(|now| *now != leader).context("the one that was cut off leads again")?;
        // Not through a gateway, which could still know what was before the cut.
        let host = &bed.node(now).host;
        let lists = Appends::lists(&Target::under_name(&view, host, host.parse()?, view.direct.port)?).await?;
        let faults = history.faults(&lists);
        ensure!(faults.iter().any(|fault| matches!(fault, Fault::Lost { .. })), "no loss was found: {faults:?}");
        Ok(())
    })
}

/// The network comes and goes around the primary, then between the standbys, then around each in turn.
#[test]
fn a_flapping_network_loses_nothing_and_settles() -> anyhow::Result<()> {
    in_lab(Course::default(), async |bed| {
        let clients = Clients::start(bed).await?;
        let leader = bed.leader_node("app").await?;
        let others = bed.others(leader);
        // Shorter than what makes a node suspect, about as long, and longer.
        let times = [300, 900, 1600, 2400, 3200].map(Duration::from_millis);
        for _ in 0..rounds() {
            for time in times {
                for cut in [between(&[leader], &others), between(&others[..1], &others[1..])] {
                    bed.lab()?.cut(&cut)?;
                    let_it_last(time).await;
                    bed.lab()?.heal()?;
                    let_it_last(Duration::from_millis(400)).await;
                }
            }
        }
        clients.verify(bed).await.map(drop)
    })
}
