//! The relay between two in-memory connections.

use super::*;
use crate::cancel::CancelKeys;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::oneshot;

/// A relay between two in-memory connections, and both far ends.
struct World {
    client: DuplexStream,
    member: DuplexStream,
    depose: oneshot::Sender<()>,
    stopping: watch::Sender<Stopping>,
    watch: Arc<CommitWatch>,
    task: tokio::task::JoinHandle<(Ended, bool)>,
}

fn start() -> World {
    let (client, mut near_client) = duplex(64 * 1024);
    let (member, mut near_member) = duplex(64 * 1024);
    let (depose, deposed) = oneshot::channel::<()>();
    let stopping = watch::Sender::new(Stopping::No);
    let stopping_seen = stopping.subscribe();
    let watch = Arc::new(CommitWatch::default());
    let mut relay = Relay::new(KeySwap::for_tests(&CancelKeys::default()), watch.clone(), b"", b"");
    let task = tokio::spawn(async move {
        let deposed = async {
            deposed.await.ok();
        };
        let ended = relay.run(&mut near_client, &mut near_member, deposed, stopping_seen).await;
        (ended, relay.is_between_messages())
    });
    World { client, member, depose, stopping, watch, task }
}

async fn expect(stream: &mut DuplexStream, bytes: &[u8]) {
    let mut seen = vec![0; bytes.len()];
    stream.read_exact(&mut seen).await.unwrap();
    assert_eq!(seen, bytes);
}

/// What is left to read once the relay has let go.
async fn rest(mut stream: DuplexStream) -> Vec<u8> {
    let mut seen = Vec::new();
    stream.read_to_end(&mut seen).await.unwrap();
    seen
}

const READY: &[u8] = &[b'Z', 0, 0, 0, 5, b'I'];
const ROW_BEGIN: &[u8] = &[b'D', 0, 0, 0, 100, 1, 2, 3];

#[tokio::test]
async fn carries_messages_both_ways() {
    let mut world = start();
    world.member.write_all(READY).await.unwrap();
    expect(&mut world.client, READY).await;
    world.client.write_all(b"Q\0\0\0\x06x\0").await.unwrap();
    expect(&mut world.member, b"Q\0\0\0\x06x\0").await;
    drop(world.client);
    assert!(matches!(world.task.await.unwrap(), (Ended::Client, true)));
}

#[tokio::test]
async fn nothing_passes_after_the_cut() {
    let mut world = start();
    world.member.write_all(READY).await.unwrap();
    expect(&mut world.client, READY).await;
    world.depose.send(()).unwrap();
    world.member.write_all(b"C\0\0\0\x0bCOMMIT\0").await.unwrap();
    assert!(matches!(world.task.await.unwrap(), (Ended::Deposed, true)));
    assert_eq!(rest(world.client).await, b"");
}

#[tokio::test]
async fn a_cut_within_a_message_is_known_as_such() {
    let mut world = start();
    world.member.write_all(ROW_BEGIN).await.unwrap();
    expect(&mut world.client, ROW_BEGIN).await;
    world.depose.send(()).unwrap();
    assert!(matches!(world.task.await.unwrap(), (Ended::Deposed, false)));
}

#[tokio::test]
async fn an_idle_session_ends_when_asked_and_a_busy_one_when_done() {
    let mut world = start();
    world.member.write_all(READY).await.unwrap();
    expect(&mut world.client, READY).await;
    world.client.write_all(b"Q\0\0\0\x06x\0").await.unwrap();
    expect(&mut world.member, b"Q\0\0\0\x06x\0").await;
    world.stopping.send_replace(Stopping::WhenIdle);
    world.member.write_all(ROW_BEGIN).await.unwrap();
    expect(&mut world.client, ROW_BEGIN).await;
    world.member.write_all(&[0; 93]).await.unwrap();
    world.member.write_all(READY).await.unwrap();
    expect(&mut world.client, &[0; 93]).await;
    expect(&mut world.client, READY).await;
    assert!(matches!(world.task.await.unwrap(), (Ended::Stopped, true)));
}

#[tokio::test]
async fn what_comes_after_an_error_waits_for_the_end_of_a_cancel_and_the_sync_of_the_error_does_not() {
    let mut world = start();
    world.member.write_all(READY).await.unwrap();
    expect(&mut world.client, READY).await;
    let (parse, sync, query) = (b"P\0\0\0\x08\0\0\0\0", b"S\0\0\0\x04", b"Q\0\0\0\x06x\0");
    world.client.write_all(parse).await.unwrap();
    expect(&mut world.member, parse).await;
    world.watch.on_cancel_begins();
    let error = b"E\0\0\0\x0bCXX000\0";
    world.member.write_all(error).await.unwrap();
    expect(&mut world.client, error).await;
    world.client.write_all(sync).await.unwrap();
    expect(&mut world.member, sync).await;
    world.member.write_all(READY).await.unwrap();
    expect(&mut world.client, READY).await;
    world.client.write_all(query).await.unwrap();
    let mut seen = [0; 1];
    let early = tokio::time::timeout(Duration::from_millis(50), world.member.read(&mut seen)).await;
    assert!(early.is_err(), "{seen:?}");
    world.watch.on_cancel_ends();
    expect(&mut world.member, query).await;
}

#[tokio::test]
async fn a_commit_under_a_cancel_never_arrives() {
    let mut world = start();
    world.member.write_all(READY).await.unwrap();
    expect(&mut world.client, READY).await;
    world.client.write_all(b"Q\0\0\0\x06x\0").await.unwrap();
    expect(&mut world.member, b"Q\0\0\0\x06x\0").await;
    world.watch.on_cancel_begins();
    world.member.write_all(b"C\0\0\0\x0fINSERT 0 1\0").await.unwrap();
    assert!(matches!(world.task.await.unwrap(), (Ended::Withheld(_), true)));
    assert_eq!(rest(world.client).await, b"");
}
