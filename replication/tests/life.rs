//! A member's life on a real Postgres: made, started, promoted, watched, stopped, found again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use pgstead_replication::instance::{InstanceError, Started};
use pgstead_types::report::{ClientAccess, DataSeen, PostgresSeen};
use pgstead_types::{Epoch, Secret, Timeline};
use std::os::unix::fs::PermissionsExt;
use support::*;

#[tokio::test]
async fn a_new_cluster_is_made_started_promoted_and_opened() {
    let cluster = Cluster::new();
    let member = cluster.member(1).await;
    let instance = &member.instance;
    instance.check_binaries().await.unwrap();
    assert_eq!(instance.data_seen(None).await, DataSeen::Absent);
    assert_eq!(instance.probe().await, PostgresSeen::Down { clean: None });
    let identity = instance.init_database(&bootstrap()).await.unwrap();
    assert_eq!(instance.init_database(&bootstrap()).await.unwrap(), identity, "twice is once");
    assert_eq!(instance.data_seen(Some(&identity.system_identifier)).await, DataSeen::Present(identity.clone()));
    assert!(matches!(instance.data_seen(Some("7")).await, DataSeen::Foreign { .. }));

    assert_eq!(instance.start_standby(HOLDING).await.unwrap(), Started::Accepting);
    assert_eq!(instance.start_standby(HOLDING).await.unwrap(), Started::Already);
    let seen = member.try_standby().await.unwrap();
    assert_eq!((seen.upstream, seen.receiver, seen.access), (None, None, ClientAccess::Holding));
    let position = member.until_position().await;
    assert_eq!(position.timeline, Timeline(1));

    assert!(matches!(
        instance.promote(Epoch(1), Timeline(2)).await,
        Err(InstanceError::NotPrepared { epoch: Epoch(1) })
    ));
    member.lead(1, 2, &[], 0).await;
    let seen = member.primary().await;
    assert_eq!((seen.epoch, seen.timeline, seen.fork_lsn), (Some(Epoch(1)), Timeline(2), position.lsn));
    assert!(seen.end_of_recovery > seen.fork_lsn && seen.flushed >= seen.end_of_recovery);
    assert_eq!((seen.access, seen.sync_set), (ClientAccess::Holding, Some(set_of(&[], 0))));
    let again = instance.promote(Epoch(1), Timeline(2)).await.unwrap();
    assert_eq!((again.parent, again.end_of_recovery), (Timeline(1), seen.end_of_recovery), "twice is once");

    assert!(member.app().await.is_err(), "held until the epoch is confirmed");
    instance.open_clients().await.unwrap();
    let app = member.app().await.unwrap();
    app.batch_execute("CREATE TABLE rows (id int); INSERT INTO rows VALUES (1)").await.unwrap();
    assert_eq!(member.primary().await.access, ClientAccess::Open);
    for (user, database) in
        [("postgres", "postgres"), ("pgstead_replication", "postgres"), ("pgstead_rewind", "postgres")]
    {
        assert!(member.login(user, PASSWORD, database).await.is_err(), "{user} came in over the network");
    }
    assert_eq!(
        value(&member.admin().await, "SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = 'app'").await,
        "f"
    );

    instance.hold_clients().await.unwrap();
    assert!(app.batch_execute("SELECT 1").await.is_err(), "clients that were in are ended");
    assert!(member.app().await.is_err());
    instance.checkpoint().await.unwrap();
    member.stop().await;
    match instance.probe().await {
        PostgresSeen::Down { clean: Some(clean) } => assert_eq!(clean.timeline, Timeline(2)),
        other => panic!("expected a clean stop, found {other:?}"),
    }
}

#[tokio::test]
async fn a_daemon_that_was_started_again_knows_what_runs() {
    let cluster = Cluster::new();
    let member = cluster.leader(1, &[], 0).await;
    let before = member.primary().await;
    let again = member.found_again().await;
    assert_eq!(again.guard().await, member.guard().await, "the guard is taken over");
    let after = again.primary().await;
    assert_eq!((after.epoch, after.access), (Some(Epoch(1)), ClientAccess::Open));
    assert_eq!((after.sync_set, after.admitted), (before.sync_set, before.admitted));
    assert_eq!(after.end_of_recovery, before.end_of_recovery);
}

#[tokio::test]
async fn every_start_is_a_standby_start_also_of_what_was_a_primary() {
    let cluster = Cluster::new();
    let member = cluster.leader(1, &[], 0).await;
    let app = member.app().await.unwrap();
    app.batch_execute("CREATE TABLE rows (id int)").await.unwrap();
    member.instance.fence().await.unwrap();
    assert_eq!(member.instance.probe().await, PostgresSeen::Down { clean: None }, "a fence is not a clean stop");
    member.start().await;
    let position = member.until_position().await;
    assert_eq!(position.timeline, Timeline(2));
    assert_eq!(value(&member.admin().await, "SHOW synchronous_standby_names").await, "ANY 1 (\"pgstead_none\")");
    member.lead(2, 3, &[], 0).await;
    let seen = member.primary().await;
    assert_eq!((seen.epoch, seen.timeline), (Some(Epoch(2)), Timeline(3)));
}

#[tokio::test]
async fn an_init_cut_short_is_partial_and_begins_anew_after_it_was_discarded() {
    let cluster = Cluster::new();
    let member = cluster.member(1).await;
    let instance = member.instance.clone();
    let made = tokio::spawn(async move { instance.init_database(&bootstrap()).await });
    let data_dir = member.instance.config().data_dir.clone();
    until("initdb has begun", async || data_dir.join("PG_VERSION").exists().then_some(())).await;
    made.abort();
    let _ = made.await;
    assert_eq!(member.instance.data_seen(None).await, DataSeen::Partial);
    assert!(matches!(member.instance.init_database(&bootstrap()).await, Err(InstanceError::PartialData { .. })));
    assert!(matches!(member.instance.start_standby(HOLDING).await, Err(InstanceError::PartialData { .. })));
    assert!(member.instance.discard_partial().await.unwrap());
    assert_eq!(member.instance.data_seen(None).await, DataSeen::Absent);
    assert!(!member.instance.discard_partial().await.unwrap());
    member.instance.init_database(&bootstrap()).await.unwrap();
    assert!(!member.instance.discard_partial().await.unwrap(), "complete data is never discarded");
}

#[tokio::test]
async fn data_of_another_or_lost_data_is_never_taken_for_its_own() {
    let cluster = Cluster::new();
    let member = cluster.member(1).await;
    let identity = member.instance.init_database(&bootstrap()).await.unwrap();
    let data_dir = member.instance.config().data_dir.clone();
    let beside = data_dir.with_file_name("data.identity");
    let kept = std::fs::read(&beside).unwrap();
    std::fs::remove_file(&beside).unwrap();
    assert!(matches!(member.instance.data_seen(None).await, DataSeen::Foreign { .. }));
    assert!(matches!(member.instance.start_standby(HOLDING).await, Err(InstanceError::ForeignData { .. })));
    std::fs::write(&beside, kept).unwrap();
    assert!(matches!(member.instance.data_seen(None).await, DataSeen::Present(_)));
    std::fs::rename(&data_dir, data_dir.with_file_name("elsewhere")).unwrap();
    let lost = DataSeen::Lost { incarnation: identity.incarnation };
    assert_eq!(member.instance.data_seen(None).await, lost);
    assert!(matches!(member.instance.init_database(&bootstrap()).await, Err(InstanceError::LostData { .. })));
}

#[tokio::test]
async fn a_setting_that_postgres_refuses_is_told_with_its_words() {
    let cluster = Cluster::new();
    let member = cluster.member(1).await;
    member.instance.init_database(&bootstrap()).await.unwrap();
    member.settings(&[("work_mem", "no size")]);
    let error = member.instance.start_standby(HOLDING).await.unwrap_err().to_string();
    assert!(error.contains("work_mem"), "{error}");
    member.settings(&[("work_mem", "5MB")]);
    member.start().await;
    member.settings(&[("work_mem", "6MB")]);
    member.instance.reload().await.unwrap();
    assert_eq!(value(&member.admin().await, "SHOW work_mem").await, "6MB");
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let cluster = Cluster::new();
    let member = cluster.member(1).await;
    let mut config = (*member.instance.config()).clone();
    config.major = 16;
    member.instance.set_config(config.clone());
    assert!(matches!(member.instance.check_binaries().await, Err(InstanceError::WrongMajor { major: 16, .. })));
    config.bin_dir = "/nowhere".into();
    member.instance.set_config(config);
    assert!(matches!(
        member.instance.check_binaries().await,
        Err(InstanceError::NoProgram { program: "postgres", .. })
    ));
}

#[tokio::test]
async fn the_password_is_in_no_log_no_argument_and_no_file_that_others_read() {
    let cluster = Cluster::new();
    let member = cluster.member(1).await;
    let seen = tokio::spawn({
        let instance = member.instance.clone();
        async move { instance.init_database(&bootstrap()).await }
    });
    while !seen.is_finished() {
        for process in pgstead_replication::proc::all().unwrap() {
            let words = pgstead_replication::proc::command_line(process.pid).join(" ");
            assert!(!words.contains(PASSWORD) && !words.contains("SCRAM-SHA-256$"), "{words}");
        }
        tokio::task::yield_now().await;
    }
    seen.await.unwrap().unwrap();
    member.start().await;
    member.lead(1, 2, &[], 0).await;
    member.instance.open_clients().await.unwrap();
    member.app().await.unwrap();
    assert!(member.login("app", "wrong", "app").await.is_err());
    let key = member.instance.config().tls.key_pem.expose().to_string();
    let mut folders = vec![cluster.folder.join("m1")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let text = String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()).into_owned();
                let name = entry.path();
                assert!(!text.contains(PASSWORD), "the password is in {}", name.display());
                if text.contains(&key) || text.contains("SCRAM-SHA-256$") {
                    let mode = entry.metadata().unwrap().permissions().mode();
                    assert_eq!(mode & 0o077, 0, "others read {}", name.display());
                }
            }
        }
    }
    assert!(!format!("{:?}", member.instance.config()).contains("PRIVATE KEY"));
    assert!(!format!("{:?}", Secret::new(PASSWORD)).contains(PASSWORD));
}

#[test]
fn every_step_can_run_on_a_task_of_its_own() {
    fn can_be_spawned<T: Future + Send>(_: impl FnOnce(std::sync::Arc<pgstead_replication::Instance>) -> T) {}
    type Source = pgstead_replication::instance::UpstreamSource;
    can_be_spawned(|it| async move { it.probe().await });
    can_be_spawned(|it| async move { it.cut_upstream().await });
    can_be_spawned(|it| async move { it.position().await });
    can_be_spawned(|it| async move { it.start_standby(HOLDING).await });
    can_be_spawned(|it| async move { it.fence().await });
    can_be_spawned(|it| async move { it.promote(Epoch(1), Timeline(1)).await });
    can_be_spawned(|it| async move { it.prepare_promotion(Epoch(1), Timeline(1), &set_of(&[], 0), &[].into()).await });
    can_be_spawned(|it| async move { it.update_sync_set(Epoch(1), &set_of(&[], 0), &[].into()).await });
    can_be_spawned(|it| async move { it.hold_clients().await });
    can_be_spawned(|it| async move { it.discard_superseded().await });
    fn with_a_source(source: Source) {
        let (one, two) = (source.clone(), source.clone());
        can_be_spawned(move |it| async move { it.copy_from(&one, &|_| ()).await });
        can_be_spawned(move |it| async move { it.follow(&two).await });
        let divergence = pgstead_replication::instance::Divergence { timeline: Timeline(1), fork: None };
        can_be_spawned(move |it| async move { it.rewind_from(&source, divergence, &|_| ()).await });
    }
    let _ = with_a_source;
}

#[tokio::test]
async fn a_primary_that_is_being_shut_down_does_not_look_like_a_standby_that_starts() {
    let cluster = Cluster::new();
    let member = cluster.leader(1, &[], 0).await;
    let session = member.admin().await;
    // As somebody on the host would: it waits for the sessions that there are and lets no other in.
    member.postmaster().await.signal(rustix::process::Signal::TERM).unwrap();
    let why = until("no other session is let in", async || {
        // Found anew, so without the session that its probes keep.
        match member.found_again().await.instance.probe().await {
            PostgresSeen::Unresponsive { why } => Some(why),
            PostgresSeen::Primary(_) => None,
            other => panic!("expected that it is still a primary, found {other:?}"),
        }
    })
    .await;
    assert!(why.contains("takes no connections"), "{why}");
    assert_eq!(value(&session, "SELECT pg_is_in_recovery()").await, "f", "the old session still can commit");
}
