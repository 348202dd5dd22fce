//! The number of members changes while clients write. What is added is copied and counts; what leaves is never missed, and
//! nothing of it stays on its node, though its daemon dies on the way.

use crate::support::{Bed, LATER, LONG_LEASE, SOON};
use crate::sync_set::ask;
use anyhow::{Context, ensure};
use pgstead_api::SpecChange;
use pgstead_api::view::{ClusterView, MemberView};
use pgstead_cluster_tests::Setup;
use pgstead_types::record::Standing;
use pgstead_types::spec::ClusterSpec;
use pgstead_types::{Step, Tick};
use std::path::PathBuf;
use std::time::Duration;

/// So many members, all to stay, and everyone but the leader counts.
pub async fn members_are(bed: &Bed, members: usize) -> anyhow::Result<ClusterView> {
    let client = bed.client()?;
    let is_so = async || {
        let view = client.cluster("app").await.map_err(|error| error.to_string())?;
        let settled = view.members.iter().all(|member| member.standing == Standing::Settled);
        let count = view.sync_set.members.len() + 1 == members && view.sync_set.becoming.is_none();
        match settled && count && view.members.len() == members && view.operation.is_none() {
            true => Ok(view),
            false => Err(format!("{:?}: {}", view.sync_set, view.why)),
        }
    };
    bed.wait_for(&format!("there are {members} members"), LATER, is_so).await
}

pub fn volume(bed: &Bed, member: &MemberView) -> anyhow::Result<(usize, PathBuf)> {
    let node = bed.nodes().iter().find(|node| node.name == member.node.name).context("its node")?;
    Ok((node.number, node.data_dir().join("pools/default").join(member.volume.to_string())))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_while_clients_write() -> anyhow::Result<()> {
    let setup = Setup { nodes: 4, config: LONG_LEASE.to_string(), ..Setup::default() };
    let mut bed = Bed::start_with(setup).await?;
    bed.create_cluster(&ClusterSpec { members: 1, ..ClusterSpec::named("app") }).await?;
    let writers = bed.writers().await?;

    let refused = bed.pgstead(&["cluster", "update", "app", "--members", "5"]).await?;
    ensure!(!refused.succeeded() && refused.stderr.contains("add nodes"), "{refused:?}");
    ask(&bed, &SpecChange { members: Some(3), ..SpecChange::default() }).await?;
    let three = members_are(&bed, 3).await?;
    ensure!(three.sync_set.needed == 1, "{:?}", three.sync_set);
    writers.all_write_again(Tick::now(), SOON).await?;

    // Whoever leaves, its daemon dies as it is about to remove the volume.
    let standbys = bed.standbys("app").await?;
    let point = format!("before:{}", Step::RemoveVolume);
    for standby in &standbys {
        bed.kill_daemon(*standby)?;
        bed.start_daemon_with(*standby, &[("PGSTEAD_TEST_ABORT".to_string(), point.clone())])?;
    }
    ask(&bed, &SpecChange { members: Some(2), ..SpecChange::default() }).await?;
    let two = members_are(&bed, 2).await?;
    let left = three.members.iter().find(|member| two.members.iter().all(|stays| stays.id != member.id));
    let left = left.context("somebody has left")?;
    let (node, folder) = volume(&bed, left)?;
    let mark = bed.node(node).data_dir().join("members").join(format!("aborted-{point}"));
    let died = async || if mark.exists() { Ok(()) } else { Err("it runs".to_string()) };
    bed.wait_for("the daemon of the one that left dies", LATER, died).await?;
    ensure!(folder.exists(), "it died before it removed anything");
    writers.all_write_again(Tick::now(), SOON).await?;
    if bed.daemon_runs(node) {
        bed.kill_daemon(node)?;
    }
    // As if it had died a moment later: the volume is there by its name no more, and its data is.
    let pool = folder.parent().context("its pool")?;
    let id = left.volume;
    std::fs::rename(&folder, pool.join(format!(".trash-{id}-1")))?;
    bed.start_daemon(node)?;
    let gone = async || match std::fs::read_dir(pool).map(|entries| entries.count()) {
        Ok(0) => Ok(()),
        left => Err(format!("{left:?} are in {}", pool.display())),
    };
    let client = bed.client()?;
    let noted = async || {
        let events = client.events(None, Some("app"), Duration::ZERO).await.map_err(|error| error.to_string())?.events;
        let known = |kind: &str| events.iter().any(|event| event.kind == kind);
        let all = ["member_added", "member_leaving", "member_removed", "member_data_removed"];
        all.iter().find(|kind| !known(kind)).map_or(Ok(()), |kind| Err(format!("no event {kind}")))
    };
    bed.wait_for("all of it is told", LATER, noted).await?;
    // Told only when nothing is left.
    gone().await.map_err(anyhow::Error::msg)?;

    // The two that stay are a cluster: the one takes over from the other and has everything.
    for standby in standbys.into_iter().filter(|standby| *standby != node) {
        bed.kill_daemon(standby)?;
        bed.start_daemon(standby)?;
    }
    let leader = bed.leader_node("app").await?;
    bed.kill_postmaster("app", leader).await?;
    bed.leader_leaves("app", leader).await?;
    bed.nothing_is_lost(writers).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_was_given_up_stays_though_its_member_has_left() -> anyhow::Result<()> {
    let setup = Setup { nodes: 5, config: LONG_LEASE.to_string(), ..Setup::default() };
    let mut bed = Bed::start_with(setup).await?;
    bed.create_cluster(&ClusterSpec::named("app")).await?;
    let (leader, standbys) = (bed.leader_node("app").await?, bed.standbys("app").await?);
    let (lost, survivor) = (bed.member_on("app", leader).await?, bed.member_on("app", standbys[1]).await?);
    let (_, folder) = volume(&bed, &lost)?;
    bed.kill_node(leader)?;
    bed.kill_node(standbys[0])?;
    // The one that is left may lack commits: a person's word, when it is known who is gone.
    let forces = async || {
        let args = ["cluster", "failover", "app", "--to", &survivor.name, "--accept-data-loss", "--yes"];
        let said = bed.pgstead(&args).await.map_err(|error| error.to_string())?;
        said.output().map_err(|error| format!("{error:#}"))
    };
    bed.wait_for("the one that is left is forced to lead", LATER, forces).await?;
    let leads = async || match bed.leader_node("app").await {
        Ok(number) if number == standbys[1] => Ok(()),
        other => Err(format!("{other:?}")),
    };
    bed.wait_for("it leads", LATER, leads).await?;
    ask(&bed, &SpecChange { members: Some(1), ..SpecChange::default() }).await?;
    members_are(&bed, 1).await?;

    // Its node comes back to a cluster that it has no part in, with what nobody else may have.
    bed.start_daemon(leader)?;
    let told = bed.finding("app", "data_kept").await?;
    let data = folder.join("data/pgdata");
    ensure!(told.contains(&data.display().to_string()) && data.join("PG_VERSION").exists(), "{told}");
    let rests = async || match bed.processes(leader).iter().find(|process| process.program == "postgres") {
        None => Ok(()),
        Some(process) => Err(format!("{process}")),
    };
    bed.wait_for("its Postgres does not run", LATER, rests).await?;
    // A person has looked.
    std::fs::remove_dir_all(&data)?;
    let gone = async || if folder.exists() { Err(format!("{} is there", folder.display())) } else { Ok(()) };
    bed.wait_for("the rest of it is removed", LATER, gone).await?;
    Ok(())
}
