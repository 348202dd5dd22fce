//! Leaders and standbys end in every way that a test can end them. Nothing that was acknowledged is lost, and when the
//! faults are over every cluster is whole again.

use crate::support::{Bed, LATER, LOAD, LONG_LEASE, SOON, session};
use anyhow::ensure;
use pgstead_api::view::{Health, MemberState, Phase};
use pgstead_cluster_tests::{Process, Setup, Testbed, Writers, check};
use pgstead_types::Tick;
use pgstead_types::spec::ClusterSpec;
use rustix::process::Signal;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leaders_node_is_lost_and_right_after_it_the_next_leaders() -> anyhow::Result<()> {
    let mut bed = Bed::with_cluster(3).await?;
    let writers = bed.writers().await?;

    let first = bed.leader_node("app").await?;
    let killed_at = Tick::now();
    bed.kill_node(first)?;
    let second = bed.leader_leaves("app", first).await?;
    writers.all_write_again(killed_at, SOON).await?;
    bed.start_daemon(first)?;
    bed.wait_healthy("app", LATER).await?;

    // This time the next one goes as soon as it leads, when the first is not back yet.
    bed.kill_node(second)?;
    let third = bed.leader_leaves("app", second).await?;
    bed.kill_node(third)?;
    bed.start_daemon(second)?;
    bed.start_daemon(third)?;
    bed.nothing_is_lost(writers).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postmaster_dies_while_a_backend_is_busy_and_another_writes() -> anyhow::Result<()> {
    let bed = Bed::with_cluster(3).await?;
    let through_gateways = bed.writers().await?;
    let direct = Writers::start_at(&bed.direct("app").await?, LOAD, 1_000_000).await?;
    let leader = bed.leader_node("app").await?;
    let busy = session(&bed.direct("app").await?).await?;
    // It does not look at the postmaster while it computes.
    let query = "select sum(length(md5(n::text))) from generate_series(1, 1000000000) n";
    let busy = tokio::spawn(async move { busy.query_one(query, &[]).await });
    let computes = async || {
        let busy = |one: &Process| one.words.first().is_some_and(|title| title.ends_with("SELECT"));
        bed.processes(leader).iter().any(busy).then_some(()).ok_or_else(|| "nobody computes".to_string())
    };
    bed.wait_for("a backend is busy", SOON, computes).await?;

    bed.kill_postmaster("app", leader).await?;
    bed.leader_leaves("app", leader).await?;
    ensure!(busy.await?.is_err(), "the busy backend outlived its postmaster");
    direct.all_write_again(Tick::now(), SOON).await?;
    let direct = direct.stop().await;
    bed.nothing_is_lost(through_gateways).await?;
    let checked = check(&bed.read_write("app").await?, &direct.acknowledged).await?;
    ensure!(checked.acknowledged > 0 && checked.lost.is_empty(), "{checked:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_leader_that_thaws_has_acknowledged_nothing_that_is_lost() -> anyhow::Result<()> {
    let bed = Bed::with_cluster(3).await?;
    let through_gateways = bed.writers().await?;
    // These stay connected to the frozen one until they give up.
    let direct = Writers::start_at(&bed.direct("app").await?, LOAD, 1_000_000).await?;
    direct.all_write_again(Tick::now(), SOON).await?;
    let leader = bed.leader_node("app").await?;

    bed.freeze_node(leader);
    bed.leader_leaves("app", leader).await?;
    bed.thaw_node(leader);
    direct.all_write_again(Tick::now(), LATER).await?;
    let direct = direct.stop().await;
    let view = bed.nothing_is_lost(through_gateways).await?;
    let checked = check(&bed.read_write("app").await?, &direct.acknowledged).await?;
    ensure!(checked.acknowledged > 0 && checked.lost.is_empty(), "{checked:?}");
    let primaries = view.members.iter().filter_map(|member| member.observed.as_ref());
    let primaries = primaries.filter(|seen| matches!(seen.state, MemberState::Primary | MemberState::StrayPrimary));
    ensure!(primaries.count() == 1, "not one leader: {:?}", view.members);
    Ok(())
}

/// A commit that nobody answers for: the leader's backend says so in its title.
async fn a_commit_waits(bed: &Testbed, leader: usize) -> anyhow::Result<()> {
    let waits = async || {
        let titles: Vec<String> =
            bed.processes(leader).into_iter().filter_map(|one| one.words.into_iter().next()).collect();
        let waiting = titles.iter().any(|title| title.contains("INSERT waiting for"));
        if waiting { Ok(()) } else { Err(format!("{titles:?}")) }
    };
    bed.wait_for("a commit waits for standbys", SOON, waits).await
}

/// Five nodes, so that the record has its quorum whatever happens to two of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_without_one_standby_wait_without_both_and_nobody_is_elected_without_enough_promises()
-> anyhow::Result<()> {
    let mut bed = Bed::start_with(Setup { nodes: 5, config: LONG_LEASE.to_string(), ..Setup::default() }).await?;
    bed.create_cluster(&ClusterSpec::named("app")).await?;
    let writers = bed.writers().await?;
    let leader = bed.leader_node("app").await?;
    let epoch = bed.client()?.cluster("app").await?.epoch;
    let standbys = bed.standbys("app").await?;

    bed.kill_node(standbys[0])?;
    bed.health("app", Health::Degraded).await?;
    writers.all_write_again(Tick::now(), SOON).await?;

    bed.kill_node(standbys[1])?;
    bed.health("app", Health::WritesWait).await?;
    a_commit_waits(&bed, leader).await?;
    let client = bed.client()?;
    for standby in &standbys {
        let name = bed.member_on("app", *standby).await?.name;
        // What is found is what the controller last decided on, which may be older than what it sees.
        let is_named = async || {
            let view = client.cluster("app").await.map_err(|error| error.to_string())?;
            let mut about = view.findings.iter().filter(|found| found.code == "not_streaming");
            let named = view.health == Health::WritesWait && about.any(|found| found.message.contains(&name));
            if named { Ok(()) } else { Err(format!("{:?}, {:?}", view.health, view.findings)) }
        };
        bed.wait_for(&format!("it is said that {name} does not stream"), SOON, is_named).await?;
    }
    let waiting_since = Tick::now();
    bed.start_daemon(standbys[0])?;
    writers.all_write_again(waiting_since, LATER).await?;
    bed.start_daemon(standbys[1])?;
    let view = bed.wait_healthy("app", LATER).await?;
    ensure!(view.epoch == epoch, "losing standbys led to epoch {} after {epoch}", view.epoch);

    // The leader and a standby: what was acknowledged may be on the lost two only.
    let lost = [leader, standbys[0]];
    let names = [bed.member_on("app", lost[0]).await?.name, bed.member_on("app", lost[1]).await?.name];
    // The standby first, and neither may do anything while the other dies: together with the third it could still elect.
    bed.freeze_node(standbys[0]);
    bed.freeze_node(leader);
    for number in lost {
        bed.kill_node(number)?;
    }
    let message = bed.finding("app", "promise_missing").await?;
    ensure!(names.iter().all(|name| message.contains(name)), "{names:?} are missing, and it says: {message}");
    let view = bed.client()?.cluster("app").await?;
    ensure!(view.phase != Phase::Confirmed || view.epoch == epoch, "somebody was elected: {}", view.why);

    // Either of them is enough: its own promise is the leader's, or makes two of the standbys'.
    bed.start_daemon(lost[1])?;
    bed.leader_leaves("app", leader).await?;
    bed.start_daemon(lost[0])?;
    bed.nothing_is_lost(writers).await?;
    Ok(())
}

/// SIGSTOP to every process of Postgres on a node, until a look finds none that has not had it.
fn freeze_postgres(bed: &Testbed, number: usize) -> Vec<Process> {
    let mut told: Vec<Process> = Vec::new();
    loop {
        let all = bed.processes(number).into_iter().filter(|process| process.program == "postgres");
        let new: Vec<Process> = all.filter(|one| told.iter().all(|old| old.pid != one.pid)).collect();
        if new.is_empty() {
            return told;
        }
        for process in &new {
            process.signal(Signal::STOP);
        }
        told.extend(new);
    }
}

/// Both standbys of three nodes, frozen in their Postgres alone: their daemons live, so the record has its quorum.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_wait_while_the_postgres_of_both_standbys_is_frozen() -> anyhow::Result<()> {
    let bed = Bed::with_cluster(3).await?;
    let writers = bed.writers().await?;
    let leader = bed.leader_node("app").await?;
    let mut frozen = Vec::new();
    for standby in bed.standbys("app").await? {
        frozen.extend(freeze_postgres(&bed, standby));
    }
    a_commit_waits(&bed, leader).await?;
    bed.health("app", Health::WritesWait).await?;
    for process in &frozen {
        process.signal(Signal::CONT);
    }
    bed.nothing_is_lost(writers).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_comes_back_by_itself_and_a_cluster_of_two_fails_over() -> anyhow::Result<()> {
    let mut bed = Bed::start(3).await?;
    for (name, members) in [("one", 1), ("two", 2)] {
        bed.create_cluster(&ClusterSpec { members, ..ClusterSpec::named(name) }).await?;
    }
    let writers = [bed.writers_on("one").await?, bed.writers_on("two").await?];
    let [one, two] = writers;
    let leader = bed.leader_node("one").await?;
    bed.kill_postmaster("one", leader).await?;
    bed.nothing_is_lost_of("one", one).await?;

    let leader = bed.leader_node("two").await?;
    bed.kill_postmaster("two", leader).await?;
    bed.leader_leaves("two", leader).await?;
    two.all_write_again(Tick::now(), LATER).await?;
    bed.wait_healthy("two", LATER).await?;

    // With its only standby gone nobody can acknowledge; the two of them go on as soon as they are two.
    let leader = bed.leader_node("two").await?;
    bed.kill_node(leader)?;
    bed.start_daemon(leader)?;
    bed.nothing_is_lost_of("two", two).await?;
    Ok(())
}
