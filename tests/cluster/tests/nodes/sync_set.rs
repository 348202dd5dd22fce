//! The sync set changes under a leader that goes on working: how many acknowledge, who counts, and whether commits go on
//! without them. Each change is met by the death of the daemon that carries it out, before or after it has loaded the set.

use crate::support::{Bed, LATER, SOON};
use anyhow::{Context, ensure};
use pgstead_api::SpecChange;
use pgstead_api::view::{ClusterView, Phase, RpoState, SyncSetView};
use pgstead_cluster_tests::Setup;
use pgstead_types::spec::{ClusterSpec, Durability};
use pgstead_types::{Step, Tick};
use std::time::Duration;

/// Kept out of the way: these tests kill the leader's daemon again and again.
const CONFIG: &str = "[timing]\nlease_ms = 60000";

/// The set as recorded, and nothing left to settle.
async fn set_is(bed: &Bed, needed: u8, members: usize) -> anyhow::Result<ClusterView> {
    let client = bed.client()?;
    let is_so = async || {
        let view = client.cluster("app").await.map_err(|error| error.to_string())?;
        let set = &view.sync_set;
        if set.needed == needed && set.members.len() == members && set.becoming.is_none() {
            Ok(view)
        } else {
            Err(format!("{set:?}: {}", view.why))
        }
    };
    bed.wait_for(&format!("{needed} of {members} acknowledge"), LATER, is_so).await
}

/// Has the leader's daemon die `when` it loads a set for the next time, starts it again, and waits until there is a set of
/// `members` of which `needed` acknowledge. `cause` makes for the change.
async fn changes_though_the_daemon_dies(
    bed: &mut Bed,
    when: &str,
    (needed, members): (u8, usize),
    cause: impl AsyncFnOnce(&mut Bed, usize) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let leader = bed.leader_node("app").await?;
    let point = format!("{when}:{}", Step::UpdateSyncSet);
    let mark = bed.node(leader).data_dir().join("members").join(format!("aborted-{point}"));
    if mark.exists() {
        std::fs::remove_file(&mark)?;
    }
    bed.kill_daemon(leader)?;
    bed.start_daemon_with(leader, &[("PGSTEAD_TEST_ABORT".to_string(), point)])?;
    cause(bed, leader).await?;
    let client = bed.client()?;
    let died = async || {
        // Another may lead by now on a machine that is busy enough; then nobody dies.
        let set = client.cluster("app").await.map(|view| view.sync_set);
        let there = |set: &SyncSetView| set.needed == needed && set.members.len() == members && set.becoming.is_none();
        if mark.exists() || set.as_ref().is_ok_and(there) { Ok(()) } else { Err(format!("{set:?}")) }
    };
    bed.wait_for(&format!("the set changes, or the daemon dies {when} that"), LATER, died).await?;
    if bed.daemon_runs(leader) {
        bed.kill_daemon(leader)?;
    }
    bed.start_daemon(leader)?;
    set_is(bed, needed, members).await?;
    Ok(())
}

/// As an operator asks for it, again while the control plane has no leader.
pub async fn ask(bed: &Bed, change: &SpecChange) -> anyhow::Result<()> {
    let client = bed.client()?;
    let taken = async || {
        if client.cluster("app").await.is_ok_and(|view| change.apply_to(view.spec.clone()) == view.spec) {
            return Ok(());
        }
        client.update_cluster("app", change, None).await.map(drop).map_err(|error| error.to_string())
    };
    bed.wait_for(&format!("{change:?} is taken"), SOON, taken).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_and_fewer_acknowledge_though_the_leaders_daemon_dies_on_the_way() -> anyhow::Result<()> {
    let mut bed = Bed::with_cluster(3).await?;
    let writers = bed.writers().await?;
    for (needed, when) in [(2, "before"), (1, "before"), (2, "after"), (1, "after")] {
        let asks = async |bed: &mut Bed, _| {
            let change = SpecChange { sync_replicas: Some(needed), ..SpecChange::default() };
            ask(bed, &change).await
        };
        changes_though_the_daemon_dies(&mut bed, when, (needed, 2), asks).await?;
        writers.all_write_again(Tick::now(), SOON).await?;
    }
    // By the command line: one change that is refused, and one that is waited for.
    let refused = bed.pgstead(&["cluster", "update", "app", "--sync-replicas", "3"]).await?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("2 standbys"), "{refused:?}");
    let done = async || {
        let said = bed.pgstead(&["cluster", "update", "app", "--sync-replicas", "2"]).await;
        let said = said.map_err(|error| error.to_string())?;
        // Asked for before, and the answer was lost.
        if said.succeeded() || said.stderr.contains("already") { Ok(()) } else { Err(format!("{said:?}")) }
    };
    bed.wait_for("the command takes", LATER, done).await?;
    set_is(&bed, 2, 2).await?;
    bed.nothing_is_lost(writers).await?;
    Ok(())
}

/// Five nodes, so that the record has its quorum without two of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_is_away_leaves_the_set_and_counts_again_when_it_is_back() -> anyhow::Result<()> {
    let setup = Setup { nodes: 5, config: CONFIG.to_string(), ..Setup::default() };
    let mut bed = Bed::start_with(setup).await?;
    bed.create_cluster(&ClusterSpec::named("app")).await?;
    let writers = bed.writers().await?;
    let away = *bed.standbys("app").await?.first().context("a standby")?;

    let leaves = async |bed: &mut Bed, _| bed.kill_node(away).map(drop);
    changes_though_the_daemon_dies(&mut bed, "after", (1, 1), leaves).await?;
    writers.all_write_again(Tick::now(), SOON).await?;
    let returns = async |bed: &mut Bed, _| bed.start_daemon(away);
    changes_though_the_daemon_dies(&mut bed, "before", (1, 2), returns).await?;
    writers.all_write_again(Tick::now(), SOON).await?;

    // Nobody waits for the word of who has left: the other one is elected by its own. It lets clients in with the first that
    // comes back.
    bed.kill_node(away)?;
    set_is(&bed, 1, 1).await?;
    let leader = bed.leader_node("app").await?;
    let before = bed.client()?.cluster("app").await?;
    bed.kill_node(leader)?;
    let client = bed.client()?;
    let elected = async || {
        let view = client.cluster("app").await.map_err(|error| error.to_string())?;
        let elected = view.epoch > before.epoch && view.phase == Phase::Promoted;
        if elected { Ok(()) } else { Err(view.why) }
    };
    bed.wait_for("the one that is left is elected", SOON, elected).await?;
    bed.start_daemon(leader)?;
    bed.start_daemon(away)?;
    bed.nothing_is_lost(writers).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_available_cluster_goes_on_alone_says_so_and_waits_again_when_it_can() -> anyhow::Result<()> {
    let setup = Setup { nodes: 3, config: CONFIG.to_string(), ..Setup::default() };
    let mut bed = Bed::start_with(setup).await?;
    bed.create_cluster(&ClusterSpec { members: 2, ..ClusterSpec::named("app") }).await?;
    let writers = bed.writers().await?;
    ask(&bed, &SpecChange { durability: Some(Durability::Available), ..SpecChange::default() }).await?;
    let standby = *bed.standbys("app").await?.first().context("a standby")?;

    let alone = async |bed: &mut Bed, _| bed.kill_node(standby).map(drop);
    changes_though_the_daemon_dies(&mut bed, "before", (0, 0), alone).await?;
    writers.all_write_again(Tick::now(), SOON).await?;
    bed.finding("app", "degraded").await?;
    let view = bed.client()?.cluster("app").await?;
    ensure!(view.rpo.state == RpoState::Unbounded, "{:?}", view.rpo);

    let back = async |bed: &mut Bed, _| bed.start_daemon(standby);
    changes_though_the_daemon_dies(&mut bed, "after", (1, 1), back).await?;
    // What only the leader had is on both now: the standby can take over.
    let leader = bed.leader_node("app").await?;
    bed.kill_node(leader)?;
    let next = bed.leader_leaves("app", leader).await?;
    ensure!(next == standby);
    bed.start_daemon(leader)?;
    let view = bed.nothing_is_lost(writers).await?;
    ensure!(view.spec.durability == Durability::Available && view.rpo.state == RpoState::Zero, "{:?}", view.rpo);
    let events = bed.client()?.events(None, Some("app"), Duration::ZERO).await?.events;
    for kind in ["durability_degraded", "durability_restored"] {
        ensure!(events.iter().any(|event| event.kind == kind), "no event {kind}: {events:?}");
    }
    Ok(())
}
