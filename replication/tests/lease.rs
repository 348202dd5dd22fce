//! A guard counts the lease of its Postgres by itself: at its end every process is ended, whatever the daemon does.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use pgstead_replication::guard::{GuardEvent, GuardPaths};
use pgstead_replication::instance::LeaseCount;
use pgstead_types::Tick;
use pgstead_types::report::PostgresSeen;
use std::time::Duration;
use support::*;

const LONG: Duration = Duration::from_secs(3600);

/// A strict lease that the guard counts, and its end. One that was over when it reached the guard is refused and changes
/// nothing.
async fn short_lease(member: &Member, length: Duration) -> Tick {
    let counts = async || {
        let end = Tick::now() + length;
        (member.instance.count_lease(end, true).await.unwrap() == LeaseCount::Counts).then_some(end)
    };
    until("the guard counts a short lease", counts).await
}

#[tokio::test]
async fn postgres_is_ended_at_the_end_of_its_lease_without_a_daemon() {
    let cluster = Cluster::new();
    let member = cluster.leader(1, &[], 0).await;
    let postmaster = member.postmaster().await;
    let config = (*member.instance.config()).clone();
    let end = short_lease(&member, Duration::from_millis(700)).await;
    // Nobody is connected to the guard any more, as when the daemon is dead or frozen.
    drop(member);
    until("the guard ends Postgres", async || (!postmaster.is_alive()).then_some(())).await;
    assert!(Tick::now() >= end, "not before its end");
    let again = pgstead_replication::Instance::open(config).await.unwrap();
    until("nothing of it is left", async || matches!(again.probe().await, PostgresSeen::Down { .. }).then_some(()))
        .await;
    assert_eq!(again.lease_end(), None);
    again.start_standby(HOLDING).await.unwrap();
}

#[tokio::test]
async fn a_lease_that_is_renewed_ends_nothing_and_is_found_again() {
    let cluster = Cluster::new();
    let member = cluster.leader(1, &[], 0).await;
    let postmaster = member.postmaster().await;
    // Short enough to wait for, and long enough to be renewed in time on a busy machine.
    let short = Tick::now() + Duration::from_secs(6);
    assert_eq!(member.instance.count_lease(short, false).await.unwrap(), LeaseCount::Counts);
    let long = Tick::now() + LONG;
    assert_eq!(member.instance.count_lease(long, false).await.unwrap(), LeaseCount::Counts);
    until("the first end is over", async || (Tick::now() > short).then_some(())).await;
    // The guard has been asked after that end, so it has looked at its timer.
    assert!(member.instance.guard_status().await.unwrap().unwrap().postmaster.is_some());
    assert!(postmaster.is_alive());
    // A restarted daemon goes on from what the guard says.
    let again = member.found_again().await;
    assert_eq!(again.instance.lease_end(), Some(long));
    again.instance.forget_lease().await.unwrap();
    assert_eq!(again.instance.guard_status().await.unwrap().unwrap().lease_end_boottime_ns, None);
}

#[tokio::test]
async fn the_end_of_a_lease_is_told_and_a_dead_or_past_one_is_refused() {
    let cluster = Cluster::new();
    let member = cluster.leader(1, &[], 0).await;
    let past = member.instance.count_lease(Tick::from_millis(1), true).await.unwrap();
    assert!(matches!(past, LeaseCount::DoesNot { .. }), "{past:?}");
    assert!(member.instance.guard_status().await.unwrap().unwrap().postmaster.is_some());
    let mut events = member.instance.guard_events();
    short_lease(&member, Duration::from_millis(50)).await;
    let over = async || match tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap() {
        GuardEvent::LeaseOver { why } => Some(why),
        _ => None,
    };
    let why = until("the guard says why", over).await;
    assert!(why.contains("lease"), "{why}");
    until("it is down", async || matches!(member.instance.probe().await, PostgresSeen::Down { .. }).then_some(()))
        .await;
    let dead = member.instance.count_lease(Tick::now() + LONG, true).await.unwrap();
    assert!(matches!(dead, LeaseCount::DoesNot { .. }), "{dead:?}");
}

#[tokio::test]
async fn an_older_client_is_still_answered_in_its_own_version() {
    use std::io::{BufRead, BufReader, Write};
    let cluster = Cluster::new();
    let member = cluster.leader(1, &[], 0).await;
    member.instance.count_lease(Tick::now() + LONG, false).await.unwrap();
    let socket = GuardPaths::under(&member.instance.config().run_dir).socket;
    let answers = tokio::task::spawn_blocking(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
            .write_all(b"{\"v\":1,\"id\":1,\"request\":\"hello\"}\n{\"v\":1,\"id\":2,\"request\":\"status\"}\n")
            .unwrap();
        BufReader::new(stream).lines().take(2).map(Result::unwrap).collect::<Vec<_>>()
    });
    let answers = answers.await.unwrap();
    assert!(answers[0].contains("\"hello\"") && answers[1].contains("\"status\""), "{answers:?}");
}
