//! Logical slots over a change of leader, on a Postgres that copies them: a consumer never misses a change and is never ahead.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use pgstead_replication::instance::Consumer;
use pgstead_replication::proc;
use pgstead_replication::{Instance, InstanceConfig};
use pgstead_types::slots::SlotSeen;
use pgstead_types::{Epoch, Secret, Tick};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;
use support::*;

const ROLE: &str = "pgstead_consumer";

/// Programs of Postgres 17: what `PGSTEAD_NEWER_POSTGRES` names, or what `scripts/newer-postgres.sh` has fetched.
fn newer_postgres() -> PathBuf {
    let fetched = || {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
        root.join("target/postgres-17/usr/lib/postgresql/17/bin")
    };
    let bin = std::env::var_os("PGSTEAD_NEWER_POSTGRES").map_or_else(fetched, PathBuf::from);
    assert!(bin.join("postgres").exists(), "{} is missing; run scripts/setup.sh test", bin.display());
    bin
}

fn consumer(password: &str) -> Consumer {
    Consumer { password: Secret::new(password), mark: format!("mark of {password}") }
}

fn newer(member: &Member) {
    let held = (*member.instance.config()).clone();
    member.instance.set_config(InstanceConfig { bin_dir: newer_postgres(), major: 17, ..held });
}

fn ask(member: &Member, logical_replication: bool) {
    let held = (*member.instance.config()).clone();
    member.instance.set_config(InstanceConfig { logical_replication, ..held });
}

async fn member(cluster: &Cluster, number: u128) -> Member {
    let member = cluster.member(number).await;
    newer(&member);
    ask(&member, true);
    member
}

async fn lead_anew(leader: &Member, standbys: &[&Member]) {
    leader.instance.init_database(&bootstrap()).await.unwrap();
    leader.start().await;
    leader.lead(1, 2, standbys, 1).await;
    leader.instance.open_clients().await.unwrap();
}

async fn leader(cluster: &Cluster, standbys: &[&Member]) -> Member {
    let leader = member(cluster, 1).await;
    lead_anew(&leader, standbys).await;
    leader.instance.tend_consumers(Some(&consumer("consumers"))).await.unwrap();
    leader
}

/// A leader and its standby.
async fn pair() -> (Cluster, Member, Member) {
    let cluster = Cluster::new();
    let two = member(&cluster, 2).await;
    let one = leader(&cluster, &[&two]).await;
    cluster.join(&one, &two, 1).await;
    (cluster, one, two)
}

/// As a consumer, who makes a slot, in the application's database.
async fn consumer_of(member: &Member) -> tokio_postgres::Client {
    member.login(ROLE, "consumers", "app").await.unwrap()
}

async fn with_slot(leader: &Member) -> (tokio_postgres::Client, tokio_postgres::Client) {
    let (app, reader) = (leader.app().await.unwrap(), consumer_of(leader).await);
    app.batch_execute("CREATE TABLE rows (id int PRIMARY KEY)").await.unwrap();
    make_slot(&reader, "warehouse").await;
    (app, reader)
}

async fn make_slot(reader: &tokio_postgres::Client, name: &str) {
    let made = format!("SELECT pg_create_logical_replication_slot('{name}', 'test_decoding', failover => true)");
    reader.batch_execute(&made).await.unwrap();
}

/// Reads what there is and says so to the slot afterwards, as a consumer does that keeps what it is sent.
async fn consume(app: &tokio_postgres::Client, got: &mut BTreeSet<i32>) -> Result<(), tokio_postgres::Error> {
    let peek =
        "SELECT lsn::text, data FROM pg_logical_slot_peek_changes('warehouse', NULL, NULL, 'skip-empty-xacts', '1')";
    let mut end: Option<String> = None;
    for row in app.query(peek, &[]).await? {
        let data: String = row.get(1);
        // `table public.rows: INSERT: id[integer]:7`
        if let Some((_, id)) = data.split_once("INSERT: id[integer]:") {
            got.insert(id.parse().unwrap());
        }
        end = Some(row.get(0));
    }
    if let Some(end) = end {
        app.batch_execute(&format!("SELECT pg_replication_slot_advance('warehouse', '{end}')")).await?;
    }
    Ok(())
}

async fn copy_on(member: &Member) -> Option<SlotSeen> {
    let seen = member.instance.slots().await.ok()?;
    seen.slots.into_iter().find(|slot| slot.name == "warehouse" && slot.is_ready_copy())
}

/// A worker that has failed is started again after 10 s. It needs a record of running transactions, of which there is one in
/// 15 s, and another one where a transaction was open just then, and it looks again after up to 30 s.
const COPY_TIME_MAX: Duration = Duration::from_secs(150);

/// A copy is complete once the leader's slot has moved past where the copy began.
async fn until_copied(
    (app, reader): &(tokio_postgres::Client, tokio_postgres::Client),
    got: &mut BTreeSet<i32>,
    standby: &Member,
    next: &mut i32,
) {
    let copied = async || {
        insert(app, next).await;
        consume(reader, got).await.unwrap();
        // A postmaster at rest sees to its worker once a minute; a connection wakes it, as those of its node do.
        drop(standby.admin().await);
        copy_on(standby).await
    };
    until_within(COPY_TIME_MAX, "the slot is copied", copied).await;
}

async fn insert(app: &tokio_postgres::Client, next: &mut i32) {
    app.batch_execute(&format!("INSERT INTO rows VALUES ({next})")).await.unwrap();
    *next += 1;
}

async fn own_slots(member: &Member) -> Vec<String> {
    let seen = member.instance.slots().await.unwrap();
    let own = seen.slots.into_iter().filter(SlotSeen::is_standbys_own);
    let mut names: Vec<String> = own.map(|slot| slot.name).collect();
    names.sort();
    names
}

async fn shown(member: &Member, setting: &str) -> String {
    value(&member.admin().await, &format!("SHOW {setting}")).await
}

#[tokio::test]
async fn a_consumer_goes_on_with_the_next_leader_and_misses_nothing_and_again_when_it_goes_back() {
    let (cluster, one, two) = pair().await;
    let clients = with_slot(&one).await;
    let (mut got, mut next) = (BTreeSet::new(), 0);
    until_copied(&clients, &mut got, &two, &mut next).await;
    // Acknowledged, and not consumed before the leader is gone.
    for _ in 0..20 {
        insert(&clients.0, &mut next).await;
    }

    make_slot(&clients.1, "late").await;
    let end = lsn(&one.admin().await, "pg_current_wal_insert_lsn()").await;
    two.until_replayed(end).await;
    two.instance.cut_upstream().await.unwrap();
    one.instance.fence().await.unwrap();
    two.lead(2, 3, &[&one], 1).await;
    // As if it had come too late to be copied.
    let drop_it = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'late'";
    two.admin().await.batch_execute(drop_it).await.unwrap();
    assert!(!two.log().contains("invalid value for parameter"), "a slot was named that was not there: {}", two.log());
    // The former leader has everything, and its own slots of those names.
    let source = cluster.source(&two, &one, 2);
    one.start().await;
    one.instance.follow(&source).await.unwrap();
    one.until_streaming().await;
    two.instance.open_clients().await.unwrap();
    let clients = (two.app().await.unwrap(), consumer_of(&two).await);
    assert_eq!(own_slots(&one).await, ["late", "warehouse"]);
    one.instance.drop_slots_left_over(&source).await.unwrap();
    // What the leader does not have is the last of its kind.
    assert_eq!(own_slots(&one).await, ["late"]);
    consume(&clients.1, &mut got).await.unwrap();
    assert_eq!(got, (0..next).collect(), "a change was missed");
    until_copied(&clients, &mut got, &one, &mut next).await;
    // A copy is never dropped for a leftover.
    one.instance.drop_slots_left_over(&source).await.unwrap();
    assert!(copy_on(&one).await.is_some());

    one.instance.cut_upstream().await.unwrap();
    two.instance.fence().await.unwrap();
    one.lead(3, 4, &[&two], 1).await;
    two.start().await;
    two.instance.follow(&cluster.source(&one, &two, 3)).await.unwrap();
    one.instance.open_clients().await.unwrap();
    let (app, reader) = (one.app().await.unwrap(), consumer_of(&one).await);
    insert(&app, &mut next).await;
    consume(&reader, &mut got).await.unwrap();
    assert_eq!(got, (0..next).collect(), "a change was missed");
}

#[tokio::test]
async fn a_consumer_is_sent_nothing_that_a_failover_would_not_keep() {
    let (cluster, one, two) = pair().await;
    let clients = with_slot(&one).await;
    let (mut got, mut next) = (BTreeSet::new(), 0);
    until_copied(&clients, &mut got, &two, &mut next).await;
    let before = got.clone();

    // On one disk only, and not acknowledged.
    two.instance.cut_upstream().await.unwrap();
    let (app, reader) = clients;
    app.batch_execute("SET synchronous_commit = local; INSERT INTO rows VALUES (1000000)").await.unwrap();
    reader.batch_execute("SET statement_timeout = '2s'").await.unwrap();
    let refused = consume(&reader, &mut got).await.unwrap_err();
    assert_eq!(refused.code(), Some(&tokio_postgres::error::SqlState::QUERY_CANCELED), "{refused:?}");
    assert_eq!(got, before, "it was sent what only the leader has");

    // With another standby as the set it goes on: the list follows the set.
    let three = member(&cluster, 3).await;
    let set = set_of(&[&three], 1);
    let admitted = incarnations(&[&two, &three]);
    one.instance.update_sync_set(Epoch(1), &set, &admitted).await.unwrap();
    cluster.join(&one, &three, 1).await;
    reader.batch_execute("SET statement_timeout = '60s'").await.unwrap();
    consume(&reader, &mut got).await.unwrap();
    assert!(got.contains(&1_000_000));
}

/// What was asked for while Postgres runs waits for its next start: an early 17 ends its postmaster otherwise.
#[tokio::test]
async fn what_copies_slots_is_loaded_only_by_a_postgres_that_was_started_for_it() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.member(1).await, cluster.member(2).await);
    for member in [&one, &two] {
        newer(member);
    }
    lead_anew(&one, &[&two]).await;
    cluster.join(&one, &two, 1).await;
    let receiver = two.instance.receiver_pid().await;
    for member in [&one, &two] {
        ask(member, true);
        assert!(!member.instance.presents_config());
        member.instance.reload().await.unwrap();
        for (setting, expected) in [
            ("wal_level", "replica"),
            ("sync_replication_slots", "off"),
            ("hot_standby_feedback", "off"),
            ("synchronized_standby_slots", ""),
        ] {
            assert_eq!(shown(member, setting).await, expected, "{setting}");
        }
        assert!(!member.log().contains("cannot be changed without restarting"), "{}", member.log());
        assert_eq!(member.instance.slots().await.unwrap().logical, Some(false));
    }
    assert!(!shown(&two, "primary_conninfo").await.contains("dbname"));
    assert_eq!(two.instance.receiver_pid().await, receiver, "its stream was begun anew for nothing");
    // A daemon that was restarted knows it as well.
    let two = two.found_again().await;
    two.instance.reload().await.unwrap();
    assert_eq!(shown(&two, "sync_replication_slots").await, "off");

    let restart = async |member: &Member| {
        member.stop().await;
        member.start().await;
        let source = cluster.source(&one, member, 1);
        member.instance.follow(&source).await.unwrap();
        member.until_streaming().await;
    };
    restart(&two).await;
    for (setting, expected) in
        [("wal_level", "logical"), ("sync_replication_slots", "on"), ("hot_standby_feedback", "on")]
    {
        assert_eq!(shown(&two, setting).await, expected, "{setting}");
    }
    // Asked for no more, or by an order from before: with a logical slot left Postgres would not start.
    ask(&two, false);
    let two = two.found_again().await;
    restart(&two).await;
    assert_eq!(shown(&two, "wal_level").await, "logical");
}

#[tokio::test]
async fn a_start_never_takes_away_what_the_control_file_says_that_slots_may_need() {
    let cluster = Cluster::new();
    let (two, three) = (member(&cluster, 2).await, member(&cluster, 3).await);
    let one = leader(&cluster, &[&two, &three]).await;
    ask(&two, false);
    cluster.join(&one, &two, 1).await;
    assert_eq!(shown(&two, "wal_level").await, "logical", "the leader's data needs it");
}

/// A leader that neither answers nor ends leaves whoever asks it in the middle of that.
#[tokio::test]
async fn a_promotion_does_not_wait_for_who_copies_slots_from_a_leader_that_has_stopped() {
    let (_cluster, one, two) = pair().await;
    let clients = with_slot(&one).await;
    let (mut got, mut next) = (BTreeSet::new(), 0);
    until_copied(&clients, &mut got, &two, &mut next).await;

    let frozen = proc::postgres_in(&one.instance.config().data_dir).unwrap();
    for process in &frozen {
        let _ = process.id().signal(Signal::STOP);
    }
    let admin = two.admin().await;
    let asks = "SELECT count(*)::text FROM pg_stat_activity WHERE backend_type = 'slotsync worker' AND wait_event LIKE 'Libpqwalreceiver%'";
    until("the worker waits for the leader", async || (value(&admin, asks).await == "1").then_some(())).await;
    assert!(two.instance.slot_worker_process().await.unwrap().is_some());

    let begun = Tick::now();
    two.instance.cut_upstream().await.unwrap();
    assert_eq!(two.instance.slot_worker_process().await.unwrap(), None, "it is there after the cut");
    two.lead(2, 3, &[], 0).await;
    let took = Tick::now().since(begun);
    assert_eq!(two.instance.slot_worker_process().await.unwrap(), None);
    for process in &frozen {
        let _ = process.id().signal(Signal::KILL);
    }
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn consumers_have_a_role_that_can_be_taken_away_and_the_owner_never_replicates() {
    let cluster = Cluster::new();
    let one = cluster.member(1).await;
    lead_anew(&one, &[]).await;
    let replicates = async |role: &str| {
        let text =
            format!("SELECT count(*)::text FROM pg_roles WHERE rolname = '{role}' AND rolreplication AND rolcanlogin");
        value(&one.admin().await, &text).await == "1"
    };
    let tend = async |instance: &Instance, password: Option<&str>| {
        let consumer = password.map(consumer);
        instance.tend_consumers(consumer.as_ref()).await.unwrap();
    };
    tend(&one.instance, Some("first")).await;
    assert!(replicates(ROLE).await && !replicates("app").await);
    // Before it was asked for and started for, the rules let nobody in.
    assert!(one.login(ROLE, "first", "app").await.is_err());
    ask(&one, true);
    one.stop().await;
    one.start().await;
    one.lead(2, 3, &[], 0).await;
    one.instance.open_clients().await.unwrap();
    let client = one.login(ROLE, "first", "app").await.unwrap();
    client.batch_execute("SELECT pg_create_logical_replication_slot('warehouse', 'test_decoding')").await.unwrap();
    let owner = one.app().await.unwrap();
    let refused = owner.batch_execute("SELECT pg_create_logical_replication_slot('mine', 'test_decoding')").await;
    assert_eq!(refused.unwrap_err().code(), Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE));

    // What a person has taken stays taken, until there is another password; the old one is of no use then.
    one.admin().await.batch_execute(&format!("ALTER ROLE {ROLE} NOREPLICATION")).await.unwrap();
    tend(&one.instance, Some("first")).await;
    assert!(!replicates(ROLE).await);
    tend(&one.instance, Some("second")).await;
    assert!(replicates(ROLE).await);
    assert!(one.login(ROLE, "first", "app").await.is_err());
    drop(one.login(ROLE, "second", "app").await.unwrap());

    tend(&one.instance, None).await;
    tend(&one.instance, None).await;
    assert!(!replicates(ROLE).await);
    until("its sessions are gone", async || client.batch_execute("SELECT 1").await.is_err().then_some(())).await;
    assert!(one.login(ROLE, "second", "app").await.is_err());
    tend(&one.instance, Some("second")).await;
    drop(one.login(ROLE, "second", "app").await.unwrap());
    // The file refuses before the role is seen to.
    ask(&one, false);
    one.instance.reload().await.unwrap();
    assert!(one.login(ROLE, "second", "app").await.is_err());
    assert!(!one.log().contains("SCRAM-SHA-256$"), "the log has what the password is checked by");
}

/// Every acknowledgement counts by a name that anybody may take who may replicate.
#[tokio::test]
async fn a_sender_with_a_members_name_and_anothers_certificate_is_ended_when_it_is_seen() {
    let cluster = Cluster::new();
    let (two, three) = (cluster.member(2).await, cluster.member(3).await);
    let one = cluster.leader(1, &[&two, &three], 1).await;
    cluster.join(&one, &two, 1).await;
    cluster.join(&one, &three, 1).await;
    one.primary().await;
    assert_eq!(one.instance.take_false_sender(), None);

    three.instance.cut_upstream().await.unwrap();
    three.instance.follow(&cluster.source(&one, &two, 1)).await.unwrap();
    let name = three.incarnation().to_string();
    let seen = async || {
        let senders = one.primary().await.senders;
        assert!(senders.iter().all(|sender| sender.incarnation != Some(three.incarnation())), "{senders:?}");
        one.instance.take_false_sender()
    };
    assert_eq!(until("it is seen", seen).await, name);
    let ended = async || one.log().contains("terminating connection due to administrator command").then_some(());
    until("it was ended", ended).await;
    // Who is what its certificate says stays.
    three.instance.cut_upstream().await.unwrap();
    one.primary().await;
    one.instance.take_false_sender();
    three.instance.follow(&cluster.source(&one, &three, 1)).await.unwrap();
    three.until_streaming().await;
    two.until_streaming().await;
    assert_eq!(one.primary().await.senders.iter().filter_map(|sender| sender.incarnation).count(), 2);
    assert_eq!(one.instance.take_false_sender(), None);
}

#[tokio::test]
async fn slots_of_people_leave_members_their_places_and_where_none_is_left_somebody_leads_all_the_same() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.member(1).await, cluster.member(2).await);
    let (three, four) = (cluster.member(3).await, cluster.member(4).await);
    one.settings(&[("max_replication_slots", "4")]);
    lead_anew(&one, &[]).await;
    one.instance.hold_places().await.unwrap();
    one.instance.hold_places().await.unwrap();
    let seen = one.instance.slots().await.unwrap();
    assert_eq!((seen.total, seen.slots_max), (0, Some(0)), "places are nobody's slots: {seen:?}");
    let admin = one.admin().await;
    let made = admin.batch_execute("SELECT pg_create_physical_replication_slot('mine')").await;
    assert!(made.is_err(), "the place is held");

    let update = async |members: &[&Member]| {
        one.instance.update_sync_set(Epoch(1), &set_of(&[], 0), &incarnations(members)).await
    };
    update(&[&two, &three]).await.unwrap();
    assert_eq!(one.primary().await.slots, incarnations(&[&two, &three]));
    // The last places are taken away, and filled.
    let give =
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'pgstead_place_%'";
    admin.batch_execute(give).await.unwrap();
    admin
        .batch_execute("SELECT pg_create_physical_replication_slot('mine' || n) FROM generate_series(1, 2) AS n")
        .await
        .unwrap();
    let refused = update(&[&two, &three, &four]).await.unwrap_err();
    assert!(format!("{refused:?}").contains("all replication slots are in use"), "{refused:?}");
    let seen = one.primary().await;
    assert_eq!(seen.admitted, incarnations(&[&two, &three, &four]), "all the rest is done");
    assert_eq!(seen.slots, incarnations(&[&two, &three]));
    // And so is a promotion.
    one.stop().await;
    one.start().await;
    one.lead(2, 3, &[&two, &three, &four], 0).await;
    assert_eq!(one.primary().await.slots, incarnations(&[&two, &three]));
    let admin = one.admin().await;
    admin.batch_execute("SELECT pg_drop_replication_slot('mine1')").await.unwrap();
    let admitted = incarnations(&[&two, &three, &four]);
    one.instance.update_sync_set(Epoch(2), &set_of(&[], 0), &admitted).await.unwrap();
    assert_eq!(one.primary().await.slots, admitted);
}
