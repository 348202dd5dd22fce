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
    // For one cancel Postgres signals the backend and then its group, which it leads: the second signal may be on its way still as
    // the first one's error is here, and hits what runs next.
    let write = async || client.simple_query("create table t (i int)").await;
    match write().await {
        Err(error) if code(&error) == "57014" => drop(write().await.expect("the cancel is over, a write passes")),
        other => drop(other.expect("a write passes")),
    }
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
