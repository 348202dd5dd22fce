//! Life without the daemon, restarts, an orderly end.

use crate::postgres::Postgres;
use crate::world::{Daemon, World, code, eventually, soon};
use pgstead_gateway::Gateway;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn serves_without_the_daemon_and_finds_it_again() {
    let mut world = World::new().await;
    let postgres = Postgres::start(&world.certificates).await;
    world.lead(Some(postgres.endpoint())).await;
    world.daemon = None;
    let conninfo = world.conninfo(&world.read_write());
    assert_eq!(world.psql(&conninfo, "select 1").await, Ok("1".into()));
    world.daemon = Some(Daemon::listen(&world.options.routes_socket));
    world.lead(None).await;
    world.lead(Some(postgres.endpoint())).await;
    assert_eq!(world.psql(&conninfo, "select 1").await, Ok("1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_gateway_serves_from_its_saved_routes() {
    let mut world = World::new().await;
    let postgres = Postgres::start(&world.certificates).await;
    world.lead(Some(postgres.endpoint())).await;
    let saved = world.options.state_dir.join("routes.json");
    let revision = world.routes.revision;
    eventually("the routes are saved", async || {
        let json = std::fs::read(&saved).unwrap_or_default();
        serde_json::from_slice::<serde_json::Value>(&json).is_ok_and(|routes| routes["revision"] == revision)
    })
    .await;
    world.daemon = None;
    assert!(Gateway::start(world.options.clone()).await.is_err(), "one gateway per directory");
    world.restart_gateway().await;
    assert_eq!(world.gateway().revision(), revision);
    assert_eq!(world.psql(&world.conninfo(&world.read_write()), "select 1").await, Ok("1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_that_cannot_be_taken_leave_the_last_ones_in_force() {
    let mut world = World::new().await;
    let postgres = Postgres::start(&world.certificates).await;
    world.lead(Some(postgres.endpoint())).await;
    let daemon = world.daemon.as_ref().unwrap();
    let newer = pgstead_types::routes::Routes { version: 99, revision: 1000, clusters: Vec::new() };
    daemon.send(newer);
    eventually("the refusal is said", async || {
        daemon.last_heard()["errors"][0]["why"].as_str().is_some_and(|why| why.contains("upgrade the gateway"))
    })
    .await;
    assert_eq!(daemon.last_heard()["applied"], world.routes.revision);
    assert_eq!(world.psql(&world.conninfo(&world.read_write()), "select 1").await, Ok("1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_idle_sessions_and_lets_busy_ones_finish() {
    let mut world = World::new().await;
    let postgres = Postgres::start(&world.certificates).await;
    world.options.drain = Duration::from_secs(60);
    world.restart_gateway().await;
    world.lead(Some(postgres.endpoint())).await;
    let (_idle, idle_task) = world.connect(&world.read_write()).await.unwrap();
    let (busy, _busy_task) = world.connect(&world.read_write()).await.unwrap();
    busy.simple_query("begin").await.unwrap();
    let gateway = world.gateway.take().unwrap();
    let stopped = tokio::spawn(gateway.shutdown());
    let end = soon("the idle session ends", idle_task).await.unwrap().unwrap_err();
    assert_eq!(code(&end), "57P01");
    busy.simple_query("create table t (i int)").await.unwrap();
    busy.simple_query("commit").await.unwrap();
    soon("the gateway stops", stopped).await.unwrap();
    assert!(busy.is_closed() || busy.simple_query("select 1").await.is_err());
}
