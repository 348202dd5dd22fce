//! Data of one cluster that becomes another's: copied while it is written to, adopted, and cut off from what its source is connected to.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use pgstead_replication::instance::{Isolation, copy_folder};
use pgstead_types::report::{DataSeen, Upstream};
use pgstead_types::{Bytes, ClusterId, Secret, Timeline};
use std::path::Path;
use std::time::Duration;
use support::*;

const PLENTY: Bytes = Bytes(u64::MAX);

/// A volume for `member` with a copy of what `source` has, as a driver makes it.
async fn forked(source: &Member, member: &Member) {
    let config = member.instance.config();
    let volume = config.data_dir.parent().unwrap();
    source.instance.copy_running(volume, PLENTY, &|_| ()).await.unwrap();
}

fn isolation(keeps_passwords: bool) -> Isolation {
    Isolation {
        cluster: ClusterId::from_u128(9),
        owner: "app".to_string(),
        owner_password: Secret::new("another password"),
        keeps_passwords,
    }
}

#[tokio::test]
async fn a_fork_has_every_row_that_was_acknowledged_and_is_nobody_elses() {
    let cluster = Cluster::new();
    let (standby, fork) = (cluster.member(2).await, cluster.member(3).await);
    let leader = cluster.leader(1, &[&standby], 1).await;
    cluster.join(&leader, &standby, 1).await;
    let app = leader.app().await.unwrap();
    app.batch_execute("CREATE TABLE rows (id int)").await.unwrap();
    let admin = leader.admin().await;
    let roles = "CREATE ROLE reader LOGIN PASSWORD 'of the source'; \
                 SELECT pg_create_physical_replication_slot('of_somebody', true); CREATE TABLE mine AS SELECT 1 AS n; \
                 CREATE SUBSCRIPTION sub CONNECTION 'host=127.0.0.1 port=1' PUBLICATION pub WITH (connect = false)";
    admin.batch_execute(roles).await.unwrap();
    // Pages change while they are copied.
    let writer = tokio::spawn(async move {
        for n in 0.. {
            if app.execute("INSERT INTO rows SELECT $1 + generate_series(1, 100)", &[&(n * 100)]).await.is_err() {
                return;
            }
        }
    });
    let rows = "SELECT count(*) FROM rows";
    let in_app = leader.login("app", PASSWORD, "app").await.unwrap();
    until("there are rows", async || (value(&in_app, rows).await.parse::<u32>().unwrap() > 1000).then_some(())).await;
    for (number, source) in [(3, &leader), (4, &standby)] {
        let before: u32 = value(&in_app, rows).await.parse().unwrap();
        // What a standby has replayed is what it can give.
        let written = lsn(&admin, "pg_current_wal_flush_lsn()").await;
        if number == 4 {
            standby.until_replayed(written).await;
        }
        let fork = if number == 3 { fork.clone() } else { cluster.member(4).await };
        forked(source, &fork).await;
        let of = source.incarnation().member;
        assert!(matches!(fork.instance.data_seen(None).await, DataSeen::Foreign { .. }));
        let other = fork.instance.adopt_data(fork.incarnation().member).await.unwrap_err();
        assert!(format!("{other:?}").contains("expected that of member"), "{other:?}");
        let identity = fork.instance.adopt_data(of).await.unwrap();
        assert_eq!(fork.instance.data_seen(None).await, DataSeen::Present(identity.clone()));
        assert_eq!(fork.instance.adopt_data(of).await.unwrap(), identity, "twice is as good as once");
        let mut config = (*fork.instance.config()).clone();
        config.forked = true;
        fork.instance.set_config(config);
        fork.start().await;
        let seen = fork.try_standby().await.unwrap();
        assert_eq!((seen.upstream, seen.receiver), (None::<Upstream>, None));
        assert_eq!(fork.until_position().await.timeline, Timeline(2));
        fork.lead(1, 12, &[], 0).await;
        assert_eq!(fork.primary().await.parent, Some(Timeline(2)));
        assert!(fork.instance.isolate(&isolation(number == 4)).await.unwrap());
        assert!(!fork.instance.isolate(&isolation(false)).await.unwrap(), "once");
        fork.instance.open_clients().await.unwrap();
        let inside = fork.login("app", "another password", "app").await.unwrap();
        let after: u32 = value(&inside, rows).await.parse().unwrap();
        assert!(after >= before && before > 1000, "{before} acknowledged, {after} there");
        assert!(fork.login("app", PASSWORD, "app").await.is_err(), "the source's password");
        assert_eq!(fork.login("reader", "of the source", "app").await.is_ok(), number == 4);
        let admin = fork.admin().await;
        let left = "SELECT count(*) FROM pg_replication_slots";
        assert_eq!(value(&admin, left).await, "0");
        let quiet = "SELECT subenabled::text || coalesce(subslotname, '-') FROM pg_subscription";
        assert_eq!(value(&admin, quiet).await, "false-");
        assert_eq!(value(&admin, "SHOW max_logical_replication_workers").await, "0");
        // Pages and their checksums are whole.
        fork.stop().await;
        assert!(checksums_are_right(&fork), "pages are damaged");
        fork.start().await;
    }
    writer.abort();
    assert_eq!(
        value(&admin, "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'pgstead_copy%'").await,
        "0"
    );
}

#[expect(clippy::disallowed_methods, reason = "a program of Postgres that only this test runs")]
fn checksums_are_right(member: &Member) -> bool {
    let config = member.instance.config();
    let program = config.bin_dir.join("pg_checksums");
    let output = std::process::Command::new(program).arg("--check").arg("-D").arg(&config.data_dir).output().unwrap();
    eprintln!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    output.status.success()
}

#[tokio::test]
async fn a_copy_that_does_not_fit_or_is_not_wanted_any_more_leaves_the_source_as_it_was() {
    let cluster = Cluster::new();
    let leader = cluster.leader(1, &[], 0).await;
    let admin = leader.admin().await;
    let place = tempfile::tempdir().unwrap();
    let error = leader.instance.copy_running(place.path(), Bytes(1 << 20), &|_| ()).await.unwrap_err();
    assert!(error.to_string().contains("can be used"), "{error}");
    let slots = "SELECT count(*) FROM pg_replication_slots";
    let none = async || (value(&admin, slots).await == "0").then_some(());
    until("its slot is gone", none).await;
    let second = tempfile::tempdir().unwrap();
    let cut_short =
        tokio::time::timeout(Duration::from_millis(20), leader.instance.copy_running(second.path(), PLENTY, &|_| ()));
    let _ = cut_short.await;
    until("its slot is gone", none).await;
    let third = tempfile::tempdir().unwrap();
    leader.instance.copy_running(third.path(), PLENTY, &|_| ()).await.unwrap();
    let copy = tempfile::tempdir().unwrap();
    copy_folder(third.path(), copy.path(), PLENTY, &|_| ()).await.unwrap();
    assert!(Path::new(&copy.path().join("data/backup_label")).is_file());
    assert!(copy.path().join("data.identity").is_file());
}
