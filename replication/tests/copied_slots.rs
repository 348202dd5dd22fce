//! Logical slots over a change of leader, on a Postgres that does not copy them itself: a consumer that goes on misses no change, and
//! one that would finds no slot.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use pgstead_replication::instance::Consumer;
use pgstead_replication::{InstanceConfig, InstanceError};
use pgstead_types::Secret;
use pgstead_types::slots::SlotSeen;
use std::collections::BTreeSet;
use std::path::PathBuf;
use support::*;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

async fn member(cluster: &Cluster, number: u128) -> Member {
    let member = cluster.member(number).await;
    let held = (*member.instance.config()).clone();
    member.instance.set_config(InstanceConfig { logical_replication: true, ..held });
    member
}

async fn leader(cluster: &Cluster, standbys: &[&Member]) -> Member {
    let leader = member(cluster, 1).await;
    leader.instance.init_database(&bootstrap()).await.unwrap();
    leader.start().await;
    leader.lead(1, 2, standbys, 1).await;
    leader.instance.open_clients().await.unwrap();
    let consumer = Consumer { password: Secret::new("consumers"), mark: "first".to_string() };
    leader.instance.tend_consumers(Some(&consumer)).await.unwrap();
    leader
}

/// With a standby that streams.
async fn two_members(cluster: &Cluster) -> (Member, Member) {
    let two = member(cluster, 2).await;
    let one = leader(cluster, &[&two]).await;
    cluster.join(&one, &two, 1).await;
    one.app().await.unwrap().batch_execute("CREATE TABLE rows (id int PRIMARY KEY)").await.unwrap();
    (one, two)
}

async fn reader_of(member: &Member) -> Client {
    member.login("pgstead_consumer", "consumers", "app").await.unwrap()
}

async fn make_slot(reader: &Client, name: &str) {
    let made = format!("SELECT pg_create_logical_replication_slot('{name}', 'test_decoding')");
    reader.batch_execute(&made).await.unwrap();
}

/// Reads what there is and says so to the slot afterwards, as a consumer does that keeps what it is sent.
async fn consume(reader: &Client, got: &mut BTreeSet<i32>) -> Result<(), tokio_postgres::Error> {
    let peek =
        "SELECT lsn::text, data FROM pg_logical_slot_peek_changes('warehouse', NULL, NULL, 'skip-empty-xacts', '1')";
    let mut end: Option<String> = None;
    for row in reader.query(peek, &[]).await? {
        let data: String = row.get(1);
        // `table public.rows: INSERT: id[integer]:7`, and more of other columns.
        if let Some((_, id)) = data.split_once("INSERT: id[integer]:") {
            got.insert(id.split(' ').next().unwrap().parse().unwrap());
        }
        end = Some(row.get(0));
    }
    if let Some(end) = end {
        reader.batch_execute(&format!("SELECT pg_replication_slot_advance('warehouse', '{end}')")).await?;
    }
    Ok(())
}

async fn insert(app: &Client, next: &mut i32) {
    app.batch_execute(&format!("INSERT INTO rows VALUES ({next})")).await.unwrap();
    *next += 1;
}

async fn slots(member: &Member) -> Vec<SlotSeen> {
    let seen = member.instance.slots().await.unwrap();
    seen.slots.into_iter().filter(|slot| slot.database.is_some()).collect()
}

/// As its node does: slots are copied before it is started.
async fn restart(cluster: &Cluster, leader: &Member, standby: &Member, epoch: u64) -> Vec<String> {
    let source = cluster.source(leader, standby, epoch);
    standby.stop().await;
    let copied = standby.instance.copy_slots(&source).await.unwrap();
    standby.start().await;
    standby.instance.follow(&source).await.unwrap();
    standby.until_streaming().await;
    copied
}

/// While the consumer goes on.
async fn until_ready(
    cluster: &Cluster,
    (leader, epoch): (&Member, u64),
    standby: &Member,
    got: &mut BTreeSet<i32>,
    next: &mut i32,
) {
    let (app, reader) = (leader.app().await.unwrap(), reader_of(leader).await);
    let source = cluster.source(leader, standby, epoch);
    let ready = async || {
        insert(&app, next).await;
        consume(&reader, got).await.unwrap();
        standby.instance.tend_copies(&source).await.unwrap();
        slots(standby).await.iter().any(SlotSeen::is_ready_copy).then_some(())
    };
    until("the copy is ready", ready).await;
}

/// The standby has everything, and leads.
async fn change_leader(cluster: &Cluster, from: &Member, to: &Member, epoch: u64) {
    let end = lsn(&from.admin().await, "pg_current_wal_insert_lsn()").await;
    to.until_replayed(end).await;
    to.instance.cut_upstream().await.unwrap();
    from.instance.fence().await.unwrap();
    to.lead(epoch, epoch as u32 + 1, &[from], 1).await;
    from.start().await;
    from.instance.follow(&cluster.source(to, from, epoch)).await.unwrap();
    from.until_streaming().await;
    to.instance.open_clients().await.unwrap();
}

#[tokio::test]
async fn a_consumer_goes_on_with_the_next_leader_and_misses_nothing_and_again_when_it_goes_back() {
    let cluster = Cluster::new();
    let (one, two) = two_members(&cluster).await;
    let (app, reader) = (one.app().await.unwrap(), reader_of(&one).await);
    let (mut got, mut next) = (BTreeSet::new(), 0);
    // Open before there is a slot, and all the time that it is copied: decoding goes on from what was known of it.
    let open = one.app().await.unwrap();
    make_slot(&reader, "warehouse").await;
    open.batch_execute("BEGIN; INSERT INTO rows VALUES (1000000)").await.unwrap();
    for _ in 0..3 {
        insert(&app, &mut next).await;
        one.admin().await.batch_execute("CHECKPOINT").await.unwrap();
        consume(&reader, &mut got).await.unwrap();
    }
    assert_eq!(restart(&cluster, &one, &two, 1).await, ["warehouse"]);
    let seen = slots(&two).await;
    assert!(seen.iter().all(|slot| slot.synced && slot.temporary), "nobody has looked at it yet: {seen:?}");
    until_ready(&cluster, (&one, 1), &two, &mut got, &mut next).await;
    // A restart keeps what is known to be good.
    assert_eq!(restart(&cluster, &one, &two, 1).await, Vec::<String>::new());
    assert!(slots(&two).await.iter().any(SlotSeen::is_ready_copy));

    // Acknowledged, and not consumed before the leader is gone; and the rows that say what the table was like are removed.
    for _ in 0..10 {
        insert(&app, &mut next).await;
    }
    open.batch_execute("COMMIT").await.unwrap();
    app.batch_execute("ALTER TABLE rows ADD COLUMN more int DEFAULT 1; ALTER TABLE rows RENAME TO others")
        .await
        .unwrap();
    app.batch_execute("ALTER TABLE others RENAME TO rows").await.unwrap();
    insert(&app, &mut next).await;
    change_leader(&cluster, &one, &two, 2).await;
    let reader = reader_of(&two).await;
    two.app().await.unwrap().batch_execute("VACUUM").await.unwrap();
    consume(&reader, &mut got).await.unwrap();
    let all = |next: i32| (0..next).chain([1_000_000]).collect::<BTreeSet<_>>();
    assert_eq!(got, all(next), "a change was missed");

    // The former leader has the slot still: it serves as a copy as soon as it is known to be good.
    let seen = slots(&one).await;
    assert!(!seen.iter().any(SlotSeen::is_ready_copy), "{seen:?}");
    until_ready(&cluster, (&two, 2), &one, &mut got, &mut next).await;
    insert(&two.app().await.unwrap(), &mut next).await;
    change_leader(&cluster, &two, &one, 3).await;
    consume(&reader_of(&one).await, &mut got).await.unwrap();
    assert_eq!(got, all(next), "a change was missed");
}

#[tokio::test]
async fn a_copy_of_which_nobody_knows_whether_it_is_good_is_dropped_before_a_consumer_comes() {
    let cluster = Cluster::new();
    let (one, two) = two_members(&cluster).await;
    make_slot(&reader_of(&one).await, "warehouse").await;
    assert_eq!(restart(&cluster, &one, &two, 1).await, ["warehouse"]);
    change_leader(&cluster, &one, &two, 2).await;
    assert_eq!(slots(&two).await, vec![]);
    let refused = consume(&reader_of(&two).await, &mut BTreeSet::new()).await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::UNDEFINED_OBJECT), "{refused:?}");

    // Its own slots stay over a restart after which it leads again, and the former leader's do not vouch for it.
    make_slot(&reader_of(&two).await, "mine").await;
    two.stop().await;
    two.start().await;
    two.lead(3, 4, &[&one], 1).await;
    two.instance.open_clients().await.unwrap();
    let names: Vec<String> = slots(&two).await.into_iter().map(|slot| slot.name).collect();
    assert_eq!(names, ["mine"]);
    let seen = slots(&one).await;
    assert!(matches!(&seen[..], [own] if own.name == "warehouse" && own.is_standbys_own()), "{seen:?}");
}

#[tokio::test]
async fn a_leader_vouches_for_no_copy_before_its_own_that_may_lack_something_are_gone() {
    let cluster = Cluster::new();
    let (one, two) = two_members(&cluster).await;
    make_slot(&reader_of(&one).await, "warehouse").await;
    assert_eq!(restart(&cluster, &one, &two, 1).await, ["warehouse"]);
    let end = lsn(&one.admin().await, "pg_current_wal_insert_lsn()").await;
    two.until_replayed(end).await;
    two.instance.cut_upstream().await.unwrap();
    one.instance.fence().await.unwrap();
    // It has the slot, as the former leader does, and nobody knows whether it lacks something.
    two.lead(2, 3, &[&one], 1).await;
    let source = cluster.source(&two, &one, 2);
    let told = one.instance.copy_slots(&source).await.unwrap_err();
    assert!(matches!(told, InstanceError::SlotsNotSettled), "{told}");
    one.start().await;
    one.instance.follow(&source).await.unwrap();
    one.until_streaming().await;
    for _ in 0..3 {
        one.instance.tend_copies(&source).await.unwrap();
        let seen = slots(&one).await;
        assert!(seen.len() == 1 && !seen.iter().any(SlotSeen::is_ready_copy), "{seen:?}");
    }
    two.instance.open_clients().await.unwrap();
    assert_eq!(slots(&two).await, vec![]);
    // Nobody else could have made it on a standby, and nobody could go on with it.
    let gone = async || {
        one.instance.tend_copies(&source).await.unwrap();
        slots(&one).await.is_empty().then_some(())
    };
    until("the former leader's slot is dropped", gone).await;
}

#[tokio::test]
async fn copies_go_with_their_slots_and_a_leader_that_is_away_holds_no_start_up() {
    let cluster = Cluster::new();
    let (one, two) = two_members(&cluster).await;
    let reader = reader_of(&one).await;
    for name in ["warehouse", "other"] {
        make_slot(&reader, name).await;
    }
    assert_eq!(restart(&cluster, &one, &two, 1).await, ["other", "warehouse"]);
    // A slot of its own that the leader does not have may be the last of its kind.
    reader.batch_execute("SELECT pg_drop_replication_slot('other')").await.unwrap();
    let source = cluster.source(&one, &two, 1);
    let gone = async || {
        two.instance.tend_copies(&source).await.unwrap();
        let seen = slots(&two).await;
        matches!(&seen[..], [copy] if copy.name == "warehouse").then_some(())
    };
    until("the copy is dropped", gone).await;
    two.stop().await;
    one.instance.fence().await.unwrap();
    assert!(two.instance.copy_slots(&source).await.is_err());
    two.start().await;
    assert_eq!(slots(&two).await.len(), 1);
}

#[tokio::test]
async fn a_copy_is_judged_anew_once_what_kept_its_rows_was_gone_for_a_while() {
    let cluster = Cluster::new();
    let (one, two) = two_members(&cluster).await;
    let (app, reader) = (one.app().await.unwrap(), reader_of(&one).await);
    let (mut got, mut next) = (BTreeSet::new(), 0);
    make_slot(&reader, "warehouse").await;
    assert_eq!(restart(&cluster, &one, &two, 1).await, ["warehouse"]);
    until_ready(&cluster, (&one, 1), &two, &mut got, &mut next).await;

    // The leader keeps nothing for the copy while its own slot goes on.
    let (admin, life) = (one.admin().await, two.incarnation());
    let catalog_xmin = "(SELECT catalog_xmin FROM pg_replication_slots WHERE slot_name = 'warehouse')";
    let before = value(&admin, catalog_xmin).await;
    let drop = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{life}' AND active; \
         SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{life}' AND NOT active"
    );
    let slot_of_two = format!("(SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{life}')");
    let gone = async || {
        admin.batch_execute(&drop).await.unwrap();
        (value(&admin, &slot_of_two).await == "0").then_some(())
    };
    until("its slot is gone", gone).await;
    app.batch_execute("SET synchronous_commit = local").await.unwrap();
    let mut goes_on = async || {
        let before = value(&admin, catalog_xmin).await;
        let newer = async || {
            insert(&app, &mut next).await;
            admin.batch_execute("CHECKPOINT").await.unwrap();
            consume(&reader, &mut got).await.unwrap();
            (value(&admin, catalog_xmin).await != before).then_some(())
        };
        until("the leader's slot needs newer rows", newer).await;
    };
    goes_on().await;
    admin.batch_execute(&format!("SELECT pg_create_physical_replication_slot('{life}', true)")).await.unwrap();
    let kept =
        format!("(SELECT coalesce(catalog_xmin::text, '') FROM pg_replication_slots WHERE slot_name = '{life}')");
    let told = async || (value(&admin, &kept).await == before).then_some(());
    until("it is told again to keep what may be gone", told).await;
    // It cannot be moved to where the leader's is.
    two.admin().await.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    goes_on().await;
    two.instance.tend_copies(&cluster.source(&one, &two, 1)).await.unwrap();
    let seen = slots(&two).await;
    assert!(seen.len() == 1 && !seen.iter().any(SlotSeen::is_ready_copy), "{seen:?}");

    two.admin().await.batch_execute("SELECT pg_wal_replay_resume()").await.unwrap();
    until_ready(&cluster, (&one, 1), &two, &mut got, &mut next).await;
}

/// With a copy that is ready, and the file in which that is noted. The leader is gone, and the copy's member has everything.
async fn with_a_ready_copy(cluster: &Cluster) -> (Member, Member, PathBuf) {
    let (one, two) = two_members(cluster).await;
    make_slot(&reader_of(&one).await, "warehouse").await;
    assert_eq!(restart(cluster, &one, &two, 1).await, ["warehouse"]);
    until_ready(cluster, (&one, 1), &two, &mut BTreeSet::new(), &mut 0).await;
    let end = lsn(&one.admin().await, "pg_current_wal_insert_lsn()").await;
    two.until_replayed(end).await;
    two.instance.cut_upstream().await.unwrap();
    one.instance.fence().await.unwrap();
    let note = two.instance.config().data_dir.with_extension("slot-copies");
    (one, two, note)
}

#[tokio::test]
async fn nobody_but_consumers_waits_while_what_is_known_of_copies_cannot_be_settled() {
    let cluster = Cluster::new();
    let (one, two, note) = with_a_ready_copy(&cluster).await;
    two.lead(2, 3, &[&one], 1).await;
    // What cannot be understood vouches for nothing, and this cannot be removed.
    std::fs::remove_file(&note).unwrap();
    std::fs::create_dir(&note).unwrap();
    two.instance.open_clients().await.unwrap();
    assert!(two.app().await.is_ok());
    assert!(two.login("pgstead_consumer", "consumers", "app").await.is_err());
    assert_eq!(slots(&two).await, vec![]);
    assert!(two.instance.settle_waiting_consumers().await.is_err());
    assert_eq!(value(&two.admin().await, "SHOW pgstead.slots_settled").await, "off");

    std::fs::remove_dir(&note).unwrap();
    two.instance.settle_waiting_consumers().await.unwrap();
    assert!(two.login("pgstead_consumer", "consumers", "app").await.is_ok());
    assert_eq!(value(&two.admin().await, "SHOW pgstead.slots_settled").await, "on");
}

#[tokio::test]
async fn a_copy_that_is_back_behind_where_it_was_ready_is_dropped() {
    let cluster = Cluster::new();
    let (one, two, note) = with_a_ready_copy(&cluster).await;
    // As after a crash: where it was is not on disk.
    let held = std::fs::read_to_string(&note).unwrap();
    let mut held: serde_json::Value = serde_json::from_str(&held).unwrap();
    held["copies"]["warehouse"]["passes"] = "F/0".into();
    std::fs::write(&note, held.to_string()).unwrap();
    two.lead(2, 3, &[&one], 1).await;
    two.instance.open_clients().await.unwrap();
    assert_eq!(slots(&two).await, vec![]);
}
