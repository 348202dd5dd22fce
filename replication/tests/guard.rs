//! The guard and a real Postgres below it: who dies with whom, and when nothing is left.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use pgstead_replication::guard::{GuardEvent, GuardPaths};
use pgstead_replication::proc::{self, ProcessId};
use pgstead_types::report::PostgresSeen;
use rustix::process::Signal;
use support::*;

/// A backend that computes and looks at nothing, with its own process.
async fn busy_backend(member: &Member) -> ProcessId {
    let app = member.app().await.unwrap();
    let pid: i32 = value(&app, "SELECT pg_backend_pid()").await.parse().unwrap();
    tokio::spawn(async move {
        let _ = app.batch_execute("SELECT count(*) FROM generate_series(1, 100000000000)").await;
    });
    // Until then it would notice by itself that its postmaster is gone.
    let admin = member.admin().await;
    let text = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND state = 'active'");
    let computes = async || (value(&admin, &text).await == "1").then_some(());
    until("the backend is busy", computes).await;
    ProcessId::of(pid).expect("the backend runs")
}

/// SIGSTOP to everything below a guard, until a look finds nobody who has not had it.
fn freeze_below(guard: ProcessId) {
    let mut told = Vec::new();
    loop {
        let all = proc::descendants_of(guard.pid).unwrap().into_iter().map(|process| process.id());
        let new: Vec<ProcessId> = all.filter(|process| !told.contains(process)).collect();
        if new.is_empty() {
            return;
        }
        for process in &new {
            process.signal(Signal::STOP).unwrap();
        }
        told.extend(new);
    }
}

#[tokio::test]
async fn when_the_guard_is_killed_its_postgres_ends_with_a_busy_backend() {
    let cluster = Cluster::new();
    let member = cluster.leader(1, &[], 0).await;
    let backend = busy_backend(&member).await;
    let postmaster = member.postmaster().await;
    member.guard().await.signal(Signal::KILL).unwrap();
    let gone = async || (!postmaster.is_alive() && !backend.is_alive()).then_some(());
    until("Postgres ends with its guard", gone).await;
    let down = async || matches!(member.instance.probe().await, PostgresSeen::Down { .. }).then_some(());
    until("the instance is down without a guard", down).await;
    member.start().await;
}

#[tokio::test]
async fn when_the_postmaster_is_killed_a_busy_backend_is_killed_and_only_then_is_it_down() {
    let cluster = Cluster::new();
    let member = cluster.leader(1, &[], 0).await;
    let backend = busy_backend(&member).await;
    let mut events = member.instance.guard_events();
    let postmaster = member.postmaster().await;
    postmaster.signal(Signal::KILL).unwrap();
    let event = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
    match event {
        GuardEvent::Exited { exit, tree_empty } => {
            assert_eq!((exit.postmaster, exit.signal, tree_empty), (postmaster, Some(9), false));
        }
        other => panic!("expected the end of the postmaster, heard {other:?}"),
    }
    assert_eq!(tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap(), GuardEvent::Emptied);
    assert!(!backend.is_alive());
    member.instance.fence().await.unwrap();
    let status = member.instance.guard_status().await.unwrap().unwrap();
    assert!(status.tree_empty && status.postmaster.is_none());
    assert!(matches!(member.instance.probe().await, PostgresSeen::Down { clean: None }));
    member.start().await;
}

#[tokio::test]
async fn a_fence_leaves_nothing_not_even_what_a_backend_has_started() {
    let cluster = Cluster::new();
    let member = cluster.leader(1, &[], 0).await;
    let backend = busy_backend(&member).await;
    let admin = member.admin().await;
    tokio::spawn(async move {
        let _ = admin.batch_execute("COPY (SELECT 1) TO PROGRAM 'setsid sleep 1000'").await;
    });
    let guard = member.guard().await;
    let sleeps = async || {
        let below = proc::descendants_of(guard.pid).unwrap();
        below.into_iter().find(|stat| proc::command_line(stat.pid).first().is_some_and(|word| word == "sleep"))
    };
    let sleep = until("the program of a backend runs", sleeps).await.id();
    member.instance.fence().await.unwrap();
    assert!(!backend.is_alive() && !sleep.is_alive());
    assert!(proc::descendants_of(guard.pid).unwrap().is_empty());
    member.instance.fence().await.unwrap();
}

#[tokio::test]
async fn a_frozen_postgres_is_unresponsive_and_can_be_fenced() {
    let cluster = Cluster::new();
    let member = cluster.leader(1, &[], 0).await;
    let guard = member.guard().await;
    freeze_below(guard);
    assert!(matches!(member.instance.probe().await, PostgresSeen::Unresponsive { .. }));
    member.instance.fence().await.unwrap();
    assert!(matches!(member.instance.probe().await, PostgresSeen::Down { .. }));
}

#[tokio::test]
async fn what_a_killed_guard_could_not_end_is_found_and_fenced_by_the_next() {
    let cluster = Cluster::new();
    let member = cluster.leader(1, &[], 0).await;
    let guard = member.guard().await;
    freeze_below(guard);
    let postmaster = member.postmaster().await;
    guard.signal(Signal::KILL).unwrap();
    until("the guard is gone", async || (!guard.is_alive()).then_some(())).await;
    assert!(postmaster.is_alive(), "a stopped process does not take the signal of its parent's death");
    let unknown = async || matches!(member.instance.probe().await, PostgresSeen::Unresponsive { .. }).then_some(());
    until("processes without a guard are not down", unknown).await;
    assert!(member.instance.start_standby(HOLDING).await.is_err(), "never a second postmaster");
    member.instance.fence().await.unwrap();
    assert!(!postmaster.is_alive());
    member.start().await;
}

#[tokio::test]
async fn the_guard_outlives_its_client_and_tolerates_no_second_one() {
    let cluster = Cluster::new();
    let member = cluster.leader(1, &[], 0).await;
    let (guard, postmaster) = (member.guard().await, member.postmaster().await);
    let config = member.instance.config();
    drop(member);
    let instance = pgstead_replication::Instance::open((*config).clone()).await.unwrap();
    let (sender, _) = tokio::sync::broadcast::channel(4);
    let second = pgstead_replication::GuardClient::spawn(
        &config.guard,
        &postgres_user(),
        &config.run_dir,
        &config.data_dir,
        sender,
    )
    .await;
    let error = second.err().expect("a second guard").to_string();
    assert!(error.contains("another guard"), "{error}");
    assert!(instance.release_guard().await.is_err(), "a guard with processes does not quit");
    let status = instance.guard_status().await.unwrap().unwrap();
    assert_eq!(status.postmaster, Some(postmaster));
    instance.fence().await.unwrap();
    instance.release_guard().await.unwrap();
    until("the guard is gone", async || (!guard.is_alive()).then_some(())).await;
}

#[tokio::test]
async fn a_stranger_on_the_socket_is_not_taken_for_the_guard() {
    let cluster = Cluster::new();
    let member = cluster.member(1).await;
    let paths = GuardPaths::under(&member.instance.config().run_dir);
    let _listener = std::os::unix::net::UnixListener::bind(&paths.socket).unwrap();
    assert!(member.instance.guard_if_any().await.is_none());
    let mut other = ProcessId::of_self();
    other.start_time += 1;
    std::fs::write(&paths.state, serde_json::to_vec(&other).unwrap()).unwrap();
    assert!(member.instance.guard_if_any().await.is_none());
}

#[tokio::test]
async fn requests_of_another_version_and_noise_are_refused_and_the_guard_goes_on() {
    use std::io::{BufRead, BufReader, Write};
    let cluster = Cluster::new();
    let member = cluster.leader(1, &[], 0).await;
    let socket = GuardPaths::under(&member.instance.config().run_dir).socket;
    let answers = tokio::task::spawn_blocking(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
            .write_all(
                b"{\"v\":9,\"id\":1,\"request\":\"status\"}\nnoise\n{\"v\":1,\"id\":2,\"request\":{\"dance\":1}}\n\
                  {\"v\":1,\"id\":3,\"request\":\"status\"}\n",
            )
            .unwrap();
        BufReader::new(stream).lines().take(4).map(Result::unwrap).collect::<Vec<_>>()
    });
    let answers = answers.await.unwrap();
    assert!(answers[..3].iter().all(|answer| answer.contains("refused")), "{answers:?}");
    assert!(answers[3].contains("\"tree_empty\":false"), "{answers:?}");
}

#[tokio::test]
async fn a_guard_is_small() {
    let cluster = Cluster::new();
    let member = cluster.leader(1, &[], 0).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", member.guard().await.pid)).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap().to_string();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 4096, "a node runs one per member: {line}");
}
