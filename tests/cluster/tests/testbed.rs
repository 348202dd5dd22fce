//! The testbed itself, on the shortest way through a cluster's life.

use pgstead_cluster_tests::{Load, Testbed, Writers, check};
use pgstead_types::Tick;
use pgstead_types::spec::ClusterSpec;
use std::time::Duration;

/// For each step; only a test that fails waits for so long.
const PATIENCE: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_survives_the_loss_of_its_leaders_node_and_every_process_of_it_is_gone() -> anyhow::Result<()> {
    let mut bed = Testbed::start(3).await?;
    let folder = bed.folder().to_path_buf();
    bed.create_cluster(&ClusterSpec::named("app")).await?;
    let target = bed.read_write("app").await?;
    let writers = Writers::start(&target, Load::default()).await?;
    writers.all_write_again(Tick::now(), PATIENCE).await?;

    let leader = bed.leader_node("app").await?;
    let killed = bed.kill_node(leader)?;
    for role in ["daemon", "guard", "gateway", "postmaster"] {
        assert!(killed.iter().any(|process| process.role() == role), "no {role} among {killed:?}");
    }
    assert!(bed.processes(leader).is_empty());

    bed.wait_for_another_leader("app", leader, PATIENCE).await?;
    writers.all_write_again(Tick::now(), PATIENCE).await?;
    bed.start_daemon(leader)?;
    bed.wait_healthy("app", PATIENCE).await?;
    let written = writers.stop().await;
    let checked = check(&target, &written.acknowledged).await?;
    assert!(checked.acknowledged > 0 && checked.lost.is_empty(), "{checked:?}");

    drop(bed);
    assert!(!folder.exists() && pgstead_cluster_tests::below_folder(&folder).is_empty());
    Ok(())
}
