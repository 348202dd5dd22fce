//! Promises on a real Postgres: after a cut, nothing that was acknowledged lies beyond the reported position.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use pgstead_replication::instance::{CutStep, InstanceError};
use pgstead_types::{Epoch, Lsn, Timeline};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::*;

/// Inserts rows one by one, and keeps what was acknowledged: the row and a position just before its commit record.
#[derive(Clone, Default)]
struct Writer {
    acknowledged: Arc<Mutex<Vec<(i64, Lsn)>>>,
    stop: Arc<AtomicBool>,
}

impl Writer {
    async fn begin(leader: &Member) -> Self {
        let writer = Self::default();
        let app = leader.app().await.unwrap();
        app.batch_execute("CREATE TABLE rows (id bigint)").await.unwrap();
        let inner = writer.clone();
        tokio::spawn(async move {
            for id in 0.. {
                if inner.stop.load(Ordering::Relaxed) {
                    break;
                }
                let insert = format!("BEGIN; INSERT INTO rows VALUES ({id}); SELECT pg_current_wal_insert_lsn()::text");
                let Ok(messages) = app.simple_query(&insert).await else { break };
                let before: Lsn = messages
                    .iter()
                    .find_map(|message| match message {
                        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(|text| text.parse().unwrap()),
                        _ => None,
                    })
                    .unwrap();
                if app.batch_execute("COMMIT").await.is_err() {
                    break;
                }
                inner.acknowledged.lock().unwrap().push((id, before));
            }
        });
        writer
    }
    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }
    fn newest(&self) -> Lsn {
        self.acknowledged.lock().unwrap().last().map_or(Lsn(0), |(_, lsn)| *lsn)
    }
    async fn until_more(&self) {
        let wanted = self.count() + 10;
        until("commits go on", async || (self.count() >= wanted).then_some(())).await;
    }
    async fn all_are_on(&self, member: &Member) {
        let acknowledged: Vec<i64> = self.acknowledged.lock().unwrap().iter().map(|(id, _)| *id).collect();
        let client = member.login("app", PASSWORD, "app").await.unwrap();
        let found: Vec<i64> =
            client.query("SELECT id FROM rows", &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        let missing: Vec<&i64> = acknowledged.iter().filter(|id| !found.contains(id)).collect();
        assert!(missing.is_empty(), "{} of {} acknowledged rows are lost", missing.len(), acknowledged.len());
    }
}

#[tokio::test]
async fn held_up_at_any_step_of_the_cut_nothing_acknowledged_lies_beyond_the_position() {
    let cluster = Cluster::new();
    let standby = cluster.member(2).await;
    let leader = cluster.leader(1, &[&standby], 1).await;
    cluster.join(&leader, &standby, 1).await;
    let writer = Writer::begin(&leader).await;
    for held_up in CutStep::ALL {
        standby.until_streaming().await;
        writer.until_more().await;
        let inner = writer.clone();
        let hook = move |step: CutStep| -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
            let writer = inner.clone();
            Box::pin(async move {
                if step == held_up {
                    // While the receiver lives commits go on; once it has ended none can.
                    let wanted = writer.count() + 20;
                    let more = async {
                        while writer.count() < wanted {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                    };
                    let _ = tokio::time::timeout(Duration::from_millis(500), more).await;
                }
            })
        };
        standby.instance.cut_upstream_watched(&hook).await.unwrap();
        let position = standby.until_position().await;
        assert!(writer.newest() < position.lsn, "{held_up:?}: {} is not below {position}", writer.newest());
        let count = writer.count();
        assert_eq!(standby.instance.receiver_pid().await, None);
        // The same request gets the same answer, and none was acknowledged meanwhile.
        standby.instance.cut_upstream().await.unwrap();
        assert_eq!(standby.until_position().await, position);
        assert!(writer.count() <= count + 1, "{held_up:?}: at most the answer that was under way");
        if held_up != CutStep::Verified {
            standby.instance.follow(&cluster.source(&leader, &standby, 1)).await.unwrap();
        }
    }
    writer.stop.store(true, Ordering::Relaxed);
    standby.lead(2, 3, &[], 0).await;
    standby.instance.open_clients().await.unwrap();
    writer.all_are_on(&standby).await;
}

#[tokio::test]
async fn a_receiver_that_dials_again_in_the_middle_of_a_cut_is_refused() {
    let cluster = Cluster::new();
    let standby = cluster.member(2).await;
    let leader = cluster.leader(1, &[&standby], 1).await;
    cluster.join(&leader, &standby, 1).await;
    let (cut, on_leader) = (standby.instance.clone(), leader.clone());
    let hook = move |step: CutStep| -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        let (instance, leader) = (cut.clone(), on_leader.clone());
        Box::pin(async move {
            if step != CutStep::CertificatesRemoved {
                return;
            }
            // Postgres still has the old configuration, so it starts another receiver at once.
            let receiver = instance.receiver_process().await.unwrap().expect("it streams");
            receiver.signal(rustix::process::Signal::TERM).unwrap();
            let begun = pgstead_types::Tick::now();
            while !leader.log().contains("connection requires a valid client certificate") {
                assert!(pgstead_types::Tick::now().since(begun) < PATIENCE, "no receiver was refused");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(leader.primary().await.senders.is_empty());
        })
    };
    standby.instance.cut_upstream_watched(&hook).await.unwrap();
    assert_eq!(standby.instance.receiver_pid().await, None);
}

#[tokio::test]
async fn with_replay_behind_what_was_received_is_the_position() {
    let cluster = Cluster::new();
    let standby = cluster.member(2).await;
    let leader = cluster.leader(1, &[&standby], 1).await;
    cluster.join(&leader, &standby, 1).await;
    standby.admin().await.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    let writer = Writer::begin(&leader).await;
    writer.until_more().await;
    let (instance, inner) = (standby.instance.clone(), writer.clone());
    let hook = move |step: CutStep| -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        let (instance, writer) = (instance.clone(), inner.clone());
        Box::pin(async move {
            if step == CutStep::ConfigurationLoaded {
                // Why ending the receiver is work: the setting alone has not ended it.
                assert!(instance.receiver_pid().await.is_some());
                let wanted = writer.count() + 10;
                while writer.count() < wanted {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        })
    };
    standby.instance.cut_upstream_watched(&hook).await.unwrap();
    let position = standby.until_position().await;
    let seen = standby.try_standby().await.unwrap();
    assert!(seen.replayed < position.lsn && writer.newest() < position.lsn, "{seen:?}");
    writer.stop.store(true, Ordering::Relaxed);
    standby.lead(2, 3, &[], 0).await;
    standby.instance.open_clients().await.unwrap();
    writer.all_are_on(&standby).await;
}

#[tokio::test]
async fn after_a_restart_the_log_on_disk_counts_and_nothing_does_before_it_is_read() {
    let cluster = Cluster::new();
    let standby = cluster.member(2).await;
    let leader = cluster.leader(1, &[&standby], 1).await;
    cluster.join(&leader, &standby, 1).await;
    standby.admin().await.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    let writer = Writer::begin(&leader).await;
    writer.until_more().await;
    let received = lsn(&standby.admin().await, "pg_last_wal_receive_lsn()").await;
    // Killed with replay behind; what comes back delays its replay for as long as it is not promoted.
    standby.instance.fence().await.unwrap();
    let newest = writer.newest();
    standby.settings(&[("recovery_min_apply_delay", "1h")]);
    standby.start().await;
    assert_eq!(value(&standby.admin().await, "SELECT pg_last_wal_receive_lsn() IS NULL").await, "t");
    let delayed = "SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup'";
    let admin = standby.admin().await;
    until("replay is delayed", async || (value(&admin, delayed).await == "RecoveryApplyDelay").then_some(())).await;
    assert_eq!(standby.instance.position().await.unwrap(), None, "still replaying is no answer");
    standby.settings(&[("recovery_min_apply_delay", "0")]);
    standby.instance.reload().await.unwrap();
    standby.instance.cut_upstream().await.unwrap();
    let position = standby.until_position().await;
    assert!(position.lsn >= received && newest < position.lsn, "{position} is before {received} or {newest}");
    writer.stop.store(true, Ordering::Relaxed);
    standby.lead(2, 3, &[], 0).await;
    standby.instance.open_clients().await.unwrap();
    writer.all_are_on(&standby).await;
}

#[tokio::test]
async fn a_cut_of_a_stopped_member_holds_for_its_next_start() {
    let cluster = Cluster::new();
    let standby = cluster.member(2).await;
    let leader = cluster.leader(1, &[&standby], 1).await;
    cluster.join(&leader, &standby, 1).await;
    standby.stop().await;
    standby.instance.cut_upstream().await.unwrap();
    standby.start().await;
    assert_eq!(value(&standby.admin().await, "SHOW primary_conninfo").await, "");
    let seen = standby.try_standby().await.unwrap();
    assert_eq!((seen.upstream, seen.receiver), (None, None));
    assert!(matches!(leader.instance.cut_upstream().await, Err(InstanceError::NotAStandby)));
}

#[tokio::test]
async fn a_promotion_that_did_not_happen_leaves_no_burned_timelines() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.member(2).await, cluster.member(3).await);
    let leader = cluster.leader(1, &[&one, &two], 1).await;
    cluster.join(&leader, &one, 1).await;
    cluster.join(&leader, &two, 1).await;
    assert!(matches!(
        one.instance.prepare_promotion(Epoch(2), Timeline(7), &set_of(&[], 0), &incarnations(&[])).await,
        Err(InstanceError::NotCut { epoch: Epoch(1) })
    ));
    for standby in [&one, &two] {
        standby.instance.cut_upstream().await.unwrap();
    }
    leader.instance.fence().await.unwrap();
    let set = set_of(&[&two], 1);
    one.instance.prepare_promotion(Epoch(2), Timeline(7), &set, &set.members).await.unwrap();
    let pg_wal = one.instance.config().data_dir.join("pg_wal");
    assert!(pg_wal.join("00000006.history").exists());
    one.instance.fence().await.unwrap();
    one.start().await;
    assert!(!pg_wal.join("00000006.history").exists() && pg_wal.join("00000002.history").exists());

    // Another one is chosen, and the one that was prepared follows, once without a restart in between.
    one.instance.prepare_promotion(Epoch(3), Timeline(8), &set, &set.members).await.unwrap();
    two.lead(4, 9, &[&one], 1).await;
    one.instance.follow(&cluster.source(&two, &one, 4)).await.unwrap();
    one.until_streaming().await;
    let seen = one.try_standby().await.unwrap();
    assert_eq!(value(&one.admin().await, "SHOW synchronous_standby_names").await, "ANY 1 (\"pgstead_none\")");
    assert!(seen.upstream.is_some());
    assert_eq!(value(&one.admin().await, "SELECT count(*) FROM pg_replication_slots").await, "0");
}

#[tokio::test]
async fn preparing_keeps_out_every_client_also_one_in_the_middle_of_its_login() {
    use std::io::{Read, Write};
    let cluster = Cluster::new();
    let standby = cluster.member(2).await;
    let leader = cluster.leader(1, &[&standby], 1).await;
    cluster.join(&leader, &standby, 1).await;
    standby.instance.open_clients().await.unwrap();
    let reader = standby.app().await.unwrap();
    // Has a backend, forked under the open rules, that waits for the rest of the login.
    let mut halfway = std::net::TcpStream::connect(("127.0.0.1", standby.port())).unwrap();
    halfway.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).unwrap();
    let mut answer = [0];
    halfway.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"S");
    standby.instance.cut_upstream().await.unwrap();
    let set = set_of(&[], 0);
    standby.instance.prepare_promotion(Epoch(2), Timeline(3), &set, &set.members).await.unwrap();
    assert!(reader.batch_execute("SELECT 1").await.is_err(), "clients that were in are ended");
    assert!(standby.app().await.is_err(), "and no new one comes in");
    halfway.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    match halfway.read(&mut answer) {
        Ok(0) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("a login that was half in goes on: {other:?}"),
    }
}

#[tokio::test]
async fn a_daemon_killed_in_the_middle_of_a_promotion_finds_it_again() {
    let cluster = Cluster::new();
    let member = cluster.member(1).await;
    member.instance.init_database(&bootstrap()).await.unwrap();
    member.start().await;
    let (epoch, timeline, set) = (Epoch(1), Timeline(2), set_of(&[], 0));
    member.instance.prepare_promotion(epoch, timeline, &set, &set.members).await.unwrap();
    let note = member.instance.config().run_dir.join("promotion.json");
    let promoting = tokio::spawn({
        let instance = member.instance.clone();
        async move { instance.promote(epoch, timeline).await }
    });
    until("the promotion is noted", async || note.exists().then_some(())).await;
    promoting.abort();
    let _ = promoting.await;
    let again = member.found_again().await;
    let promoted = again.instance.promote(epoch, timeline).await.unwrap();
    let seen = again.primary().await;
    assert_eq!((seen.epoch, seen.end_of_recovery), (Some(epoch), promoted.end_of_recovery));
    assert!(matches!(again.instance.promote(Epoch(2), timeline).await, Err(InstanceError::NotPrepared { .. })));
}
