//! Cancel keys of the gateway's own, and commits whose acknowledgement was cancelled.

use crate::postgres::Postgres;
use crate::world::{World, code, eventually, soon};
use tokio_postgres::Client;

/// Waits, as another session sees it, until a statement like this waits for that event.
async fn waits_for(observer: &Client, event: &str) {
    eventually(event, async || {
        let sql = "select count(*) from pg_stat_activity where wait_event = $1";
        observer.query_one(sql, &[&event]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_the_statement_and_the_session_goes_on() {
    let mut world = World::new().await;
    let postgres = Postgres::start(&world.certificates).await;
    world.lead(Some(postgres.endpoint())).await;
    let (observer, _observing) = world.connect(&world.read_write()).await.unwrap();
    let (client, _task) = world.connect(&world.read_write()).await.unwrap();
    let token = client.cancel_token();
    let statement = async { client.simple_query("select pg_sleep(600)").await };
    let cancel = async {
        waits_for(&observer, "PgSleep").await;
        token.cancel_query(world.tls()).await.unwrap();
    };
    let (result, ()) = soon("the cancel works", async { tokio::join!(statement, cancel) }).await;
    assert_eq!(code(&result.unwrap_err()), "57014");
    // Sent while the cancel is on its way, perhaps: it is hit by nothing of it, however long the cancel's connection lasts.
    client.simple_query("create table t (i int)").await.expect("a write passes");
}

/// Stands between the gateway and Postgres. It passes `passes` connections on at once; the next is told of by the first
/// receiver's end and passed on at the word of the second.
async fn hold_a_connection(
    target: u16,
    passes: usize,
) -> (u16, tokio::sync::oneshot::Receiver<()>, tokio::sync::oneshot::Sender<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (came, on_come) = tokio::sync::oneshot::channel();
    let (release, on_release) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let pass = async |mut stream: tokio::net::TcpStream| {
            let mut member = tokio::net::TcpStream::connect(("127.0.0.1", target)).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut stream, &mut member).await });
        };
        for _ in 0..passes {
            pass(listener.accept().await.unwrap().0).await;
        }
        let (held, _) = listener.accept().await.unwrap();
        came.send(()).unwrap();
        on_release.await.unwrap();
        pass(held).await;
    });
    (port, on_come, release)
}

/// A cancel that is under way for longer than the statement it was meant for hits no later one: what follows waits for
/// its end, and whoever sent it sees its connection end no sooner.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_comes_late_hits_nothing_else() {
    let mut world = World::new().await;
    let postgres = Postgres::start(&world.certificates).await;
    let mut endpoint = postgres.endpoint();
    let (port, on_come, release) = hold_a_connection(endpoint.port, 2).await;
    endpoint.port = port;
    world.lead(Some(endpoint)).await;
    let (observer, _observing) = world.connect(&world.read_write()).await.unwrap();
    let (client, _task) = world.connect(&world.read_write()).await.unwrap();
    observer.simple_query("create table t (i int); select pg_advisory_lock(1)").await.unwrap();
    let token = client.cancel_token();
    let statement = client.simple_query("do $$ begin perform pg_advisory_lock(1); raise 'awake'; end $$");
    let (result, ()) = soon("the statement ends by itself", async {
        tokio::join!(statement, async {
            waits_for(&observer, "advisory").await;
            token.cancel_query(world.tls()).await.unwrap();
            on_come.await.unwrap();
            observer.simple_query("select pg_advisory_unlock(1)").await.unwrap();
        })
    })
    .await;
    assert_eq!(code(&result.unwrap_err()), "P0001", "the cancel has not reached it");
    let mut write = std::pin::pin!(client.simple_query("insert into t values (1)"));
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), &mut write).await;
    assert!(early.is_err(), "it waits: {early:?}");
    release.send(()).unwrap();
    soon("the cancel is delivered", write).await.expect("it found the session idle");
}

/// libpq before 17 sends its cancels without TLS.
#[tokio::test(flavor = "multi_thread")]
async fn psql_cancels_with_its_interrupt_key() {
    let mut world = World::new().await;
    let postgres = Postgres::start(&world.certificates).await;
    world.lead(Some(postgres.endpoint())).await;
    let (observer, _observing) = world.connect(&world.read_write()).await.unwrap();
    let conninfo = world.conninfo(&world.read_write());
    let (pid, output) =
        crate::programs::spawn_client("psql", &["-XAtq", "-d", &conninfo, "-c", "select pg_sleep(600)"]);
    waits_for(&observer, "PgSleep").await;
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = soon("psql ends", output).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("canceling statement due to user request"), "{said}");
}

async fn cancelled_commit(setup: &str, statement: &str) -> (World, Postgres, Result<(), tokio_postgres::Error>) {
    let mut world = World::new().await;
    let postgres = Postgres::start(&world.certificates).await;
    world.lead(Some(postgres.endpoint())).await;
    let (observer, _observing) = world.connect(&world.read_write()).await.unwrap();
    for sql in
        ["create table t (i int)", "alter system set synchronous_standby_names = 'nobody'", "select pg_reload_conf()"]
    {
        observer.simple_query(sql).await.unwrap();
    }
    eventually("the setting is in force", async || {
        observer.query_one("show synchronous_standby_names", &[]).await.unwrap().get::<_, String>(0) == "nobody"
    })
    .await;
    // Backends wait only once the checkpointer has reloaded as well and said so in shared memory, which it does before
    // it takes up a checkpoint.
    observer.simple_query("checkpoint").await.unwrap();
    let (client, _task) = world.connect(&world.read_write()).await.unwrap();
    client.simple_query(setup).await.unwrap();
    let token = client.cancel_token();
    let run = async {
        if statement.contains("prepared") {
            client.execute("insert into t values (1)", &[]).await.map(drop)
        } else {
            client.simple_query(statement).await.map(drop)
        }
    };
    let cancel = async {
        waits_for(&observer, "SyncRep").await;
        token.cancel_query(world.tls()).await.unwrap();
    };
    let (result, ()) = soon("the wait is cancelled", async { tokio::join!(run, cancel) }).await;
    assert!(client.is_closed() || soon("the session ends", client.simple_query("select 1")).await.is_err());
    (world, postgres, result)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_wait_was_cancelled_is_never_a_success() {
    for (setup, statement) in [
        ("select 1", "insert into t values (1)"),
        ("set client_min_messages = error", "insert into t values (1)"),
        ("set client_min_messages = error; begin; insert into t values (1)", "commit"),
        ("set client_min_messages = error", "prepared insert"),
    ] {
        let (_world, _postgres, result) = cancelled_commit(setup, statement).await;
        let error = result.err().unwrap_or_else(|| panic!("{setup}; {statement}: reported as a success"));
        assert_eq!(code(&error), "08007", "{setup}; {statement}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_cancelled_by_another_session_is_seen_by_its_warning() {
    let mut world = World::new().await;
    let postgres = Postgres::start(&world.certificates).await;
    world.lead(Some(postgres.endpoint())).await;
    let (observer, _observing) = world.connect(&world.read_write()).await.unwrap();
    for sql in
        ["create table t (i int)", "alter system set synchronous_standby_names = 'nobody'", "select pg_reload_conf()"]
    {
        observer.simple_query(sql).await.unwrap();
    }
    let (client, _task) = world.connect(&world.read_write()).await.unwrap();
    eventually("the setting is in force", async || {
        client.query_one("show synchronous_standby_names", &[]).await.unwrap().get::<_, String>(0) == "nobody"
    })
    .await;
    client.simple_query("checkpoint").await.unwrap();
    let run = async { client.simple_query("insert into t values (1)").await };
    let cancel = async {
        waits_for(&observer, "SyncRep").await;
        observer
            .simple_query("select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'")
            .await
            .unwrap();
    };
    let (result, ()) = soon("the wait is cancelled", async { tokio::join!(run, cancel) }).await;
    assert_eq!(code(&result.unwrap_err()), "08007");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_key_cancels_nothing() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::new().await;
    let mut stream = tokio::net::TcpStream::connect(world.read_write()).await.unwrap();
    let packet = [&[0, 0, 0, 16], &80_877_102u32.to_be_bytes()[..], &[0, 0, 0, 1, 1, 2, 3, 4]].concat();
    stream.write_all(&packet).await.unwrap();
    let mut answer = Vec::new();
    soon("the gateway closes", stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"");
}
