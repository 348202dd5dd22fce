//! Coming back: a diverged member is rewound, or says that it cannot be.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use pgstead_replication::instance::{Divergence, InstanceError, SafetyCopy};
use pgstead_types::Bytes;
use pgstead_types::report::DataSeen;
use pgstead_types::{Epoch, Tick, Timeline};
use support::*;

/// What the storage below the file system can take.
const EMPTY_POOL: Bytes = Bytes(u64::MAX);

/// A leader that has written what nobody acknowledged, and the one that took over from it.
async fn diverged(cluster: &Cluster) -> (Member, Member) {
    let new = cluster.member(2).await;
    let old = cluster.leader(1, &[&new], 1).await;
    cluster.join(&old, &new, 1).await;
    // Enough pages that Postgres takes the better part of a minute over a checkpoint that it spreads.
    let pages = "CREATE TABLE pages AS SELECT generate_series(1, 100000) AS id";
    let rows = format!("{pages}; CREATE TABLE rows (id int); INSERT INTO rows VALUES (1)");
    old.app().await.unwrap().batch_execute(&rows).await.unwrap();
    new.instance.cut_upstream().await.unwrap();
    let alone = old.app().await.unwrap();
    alone
        .batch_execute("SET synchronous_commit = local; INSERT INTO rows SELECT generate_series(100, 5000)")
        .await
        .unwrap();
    (old, new)
}

async fn take_over(old: &Member, new: &Member) -> Divergence {
    take_over_in(old, new, 2).await
}

async fn take_over_in(old: &Member, new: &Member, epoch: u64) -> Divergence {
    // The old leader is gone for good as this incarnation; the next one is admitted.
    old.become_incarnation(2);
    let (set, timeline) = (set_of(&[old], 1), Timeline(epoch as u32 + 1));
    new.instance.prepare_promotion(Epoch(epoch), timeline, &set, &set.members).await.unwrap();
    let promoted = new.instance.promote(Epoch(epoch), timeline).await.unwrap();
    Divergence { timeline, fork: Some(promoted.fork_lsn) }
}

async fn comes_back(cluster: &Cluster, old: &Member, new: &Member, divergence: Divergence) {
    comes_back_in(cluster, old, new, divergence, 2, "1,2").await;
}

async fn comes_back_in(
    cluster: &Cluster,
    old: &Member,
    new: &Member,
    divergence: Divergence,
    epoch: u64,
    expected: &str,
) {
    let source = cluster.source(new, old, epoch);
    // Right after the promotion, with no checkpoint in between but the one that the rewind asks for.
    let identity = old.instance.rewind_from(&source, divergence, &|_| ()).await.unwrap();
    assert_eq!(identity.incarnation.number, 2);
    old.instance.start_standby(HOLDING).await.unwrap();
    old.instance.follow(&source).await.unwrap();
    old.until_streaming().await;
    new.instance.open_clients().await.unwrap();
    let app = new.app().await.unwrap();
    app.batch_execute("INSERT INTO rows VALUES (2)").await.unwrap();
    let written = lsn(&new.admin().await, "pg_current_wal_flush_lsn()").await;
    old.until_replayed(written).await;
    old.instance.open_clients().await.unwrap();
    let reader = old.app().await.unwrap();
    assert_eq!(value(&reader, "SELECT string_agg(id::text, ',' ORDER BY id) FROM rows").await, expected);
    assert_eq!(old.until_position().await.timeline, Timeline(epoch as u32 + 1));
}

#[tokio::test]
async fn a_fenced_leader_that_diverged_is_rewound_right_after_the_promotion() {
    let cluster = Cluster::new();
    let (old, new) = diverged(&cluster).await;
    old.instance.fence().await.unwrap();
    let divergence = take_over(&old, &new).await;
    comes_back(&cluster, &old, &new, divergence).await;
}

#[tokio::test]
async fn a_leader_that_had_promised_as_a_standby_and_was_fenced_again_is_rewound() {
    let cluster = Cluster::new();
    let (old, new) = diverged(&cluster).await;
    old.instance.fence().await.unwrap();
    old.start().await;
    old.instance.cut_upstream().await.unwrap();
    assert!(old.until_position().await > new.until_position().await, "it has more, and nobody was told of it");
    old.instance.fence().await.unwrap();
    let divergence = take_over(&old, &new).await;
    comes_back(&cluster, &old, &new, divergence).await;
}

#[tokio::test]
async fn a_member_that_was_rewound_under_load_starts_without_its_leader() {
    let cluster = Cluster::new();
    let (old, new) = diverged(&cluster).await;
    old.instance.fence().await.unwrap();
    let divergence = take_over(&old, &new).await;
    new.instance.open_clients().await.unwrap();
    let app = new.app().await.unwrap();
    app.batch_execute("SET synchronous_commit = local").await.unwrap();
    let load = tokio::spawn(async move {
        while app.batch_execute("INSERT INTO rows SELECT generate_series(10000, 10020)").await.is_ok() {}
    });
    let source = cluster.source(&new, &old, 2);
    old.instance.rewind_from(&source, divergence, &|_| ()).await.unwrap();
    old.instance.start_standby(HOLDING).await.unwrap();
    assert_eq!(old.until_position().await.timeline, Timeline(3));
    load.abort();
}

#[tokio::test]
async fn a_leader_that_is_lost_right_after_its_own_promotion_is_rewound_too() {
    let cluster = Cluster::new();
    let (first, second) = diverged(&cluster).await;
    first.instance.fence().await.unwrap();
    let divergence = take_over(&first, &second).await;
    second.instance.open_clients().await.unwrap();
    // Postgres takes minutes over its own checkpoint after a promotion, and until then a rewind would go by the timeline before.
    // Here before the first one's rewind, which asks for one as well.
    let admin = second.admin().await;
    let begun = Tick::now();
    while value(&admin, "SELECT timeline_id::text FROM pg_control_checkpoint()").await != "3" {
        assert!(Tick::now().since(begun).as_secs() < 20, "no checkpoint is written after the promotion");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    comes_back(&cluster, &first, &second, divergence).await;
    first.instance.cut_upstream().await.unwrap();
    let alone = second.app().await.unwrap();
    let unacknowledged = "SET synchronous_commit = local; INSERT INTO rows SELECT generate_series(100, 5000)";
    alone.batch_execute(unacknowledged).await.unwrap();
    second.instance.fence().await.unwrap();
    let divergence = take_over_in(&second, &first, 3).await;
    comes_back_in(&cluster, &second, &first, divergence, 3, "1,2,2").await;
}

#[tokio::test]
async fn a_rewind_from_a_leader_that_has_recycled_the_common_log_is_unfinished_and_a_copy_helps() {
    let cluster = Cluster::new();
    let (old, new) = diverged(&cluster).await;
    old.instance.fence().await.unwrap();
    let divergence = take_over(&old, &new).await;
    let admin = new.admin().await;
    // As a leader that was itself made anew: nothing from before.
    admin.batch_execute("SELECT pg_switch_wal(); CHECKPOINT").await.unwrap();
    let needed = lsn(&admin, "pg_current_wal_flush_lsn()").await.0 / (16 << 20);
    for entry in std::fs::read_dir(new.instance.config().data_dir.join("pg_wal")).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.len() == 24 && u64::from_str_radix(&name[16..], 16).unwrap() < needed {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let source = cluster.source(&new, &old, 2);
    let made = old.instance.copy_aside(EMPTY_POOL, &|_| ()).await.unwrap();
    assert!(matches!(made, SafetyCopy::Made { .. }), "{made:?}");
    assert_eq!(old.instance.copy_aside(EMPTY_POOL, &|_| ()).await.unwrap(), SafetyCopy::AlreadyThere);
    let before = std::fs::read(old.instance.config().data_dir.join("global/pg_control")).unwrap();
    let error = old.instance.rewind_from(&source, divergence, &|_| ()).await.unwrap_err();
    assert!(matches!(error, InstanceError::RewindLacksWal { .. }), "{error}");
    // What the rewind has begun to change is still there as it was.
    let kept = old.instance.kept_data();
    assert_eq!(std::fs::read(kept.join("global/pg_control")).unwrap(), before);
    assert_eq!(old.instance.data_seen(None).await, DataSeen::Partial);
    assert!(old.instance.discard_partial().await.unwrap());
    old.instance.copy_from(&source, &|_| ()).await.unwrap();
    old.start().await;
    assert!(kept.exists(), "nothing else than what asks for it removes it");
    old.instance.discard_kept_data().await.unwrap();
    assert!(!kept.exists());
}

#[tokio::test]
async fn no_rewind_required_is_not_believed_of_data_beyond_the_fork() {
    let cluster = Cluster::new();
    let member = cluster.member(2).await;
    let leader = cluster.leader(1, &[&member], 1).await;
    cluster.join(&leader, &member, 1).await;
    member.stop().await;
    member.become_incarnation(2);
    let (epoch, set) = (Epoch(1), set_of(&[&member], 1));
    leader.instance.update_sync_set(epoch, &set, &set.members).await.unwrap();
    let source = cluster.source(&leader, &member, 1);
    let elsewhere = Divergence { timeline: Timeline(9), fork: None };
    let error = member.instance.rewind_from(&source, elsewhere, &|_| ()).await.unwrap_err();
    assert!(matches!(error, InstanceError::SourceElsewhere { found: Timeline(2), .. }), "{error}");
    assert!(matches!(member.instance.data_seen(None).await, DataSeen::Present(_)), "nothing was touched");
    let divergence = Divergence { timeline: Timeline(2), fork: Some(pgstead_types::Lsn(0)) };
    let error = member.instance.rewind_from(&source, divergence, &|_| ()).await.unwrap_err();
    assert!(matches!(error, InstanceError::RewindDisbelieved { .. }), "{error}");
    assert_eq!(member.instance.data_seen(None).await, DataSeen::Partial);
    // What remains is a copy.
    assert!(member.instance.discard_partial().await.unwrap());
    member.instance.copy_from(&source, &|_| ()).await.unwrap();
    member.start().await;
}

#[tokio::test]
async fn superseded_data_makes_room_for_a_copy_and_current_data_never_does() {
    let cluster = Cluster::new();
    let member = cluster.member(2).await;
    let leader = cluster.leader(1, &[&member], 0).await;
    cluster.join(&leader, &member, 1).await;
    assert!(!member.instance.discard_superseded().await.unwrap());
    member.stop().await;
    assert!(!member.instance.discard_superseded().await.unwrap());
    member.become_incarnation(2);
    let set = set_of(&[&member], 0);
    leader.instance.update_sync_set(Epoch(1), &set, &set.members).await.unwrap();
    let source = cluster.source(&leader, &member, 1);
    assert!(matches!(member.instance.copy_from(&source, &|_| ()).await, Err(InstanceError::DataExists { .. })));
    assert!(member.instance.discard_superseded().await.unwrap());
    assert_eq!(member.instance.data_seen(None).await, DataSeen::Absent);
    assert_eq!(member.instance.copy_from(&source, &|_| ()).await.unwrap().incarnation.number, 2);
}
