//! Holds, and cuts when the leader changes.

use crate::postgres::Postgres;
use crate::world::{Certificates, World, code, eventually, soon};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_connection_waits_for_the_next_leader() {
    let mut world = World::with(Certificates::new(), |options| options.hold = Duration::from_secs(60)).await;
    let postgres = Postgres::start(&world.certificates).await;
    let conninfo = world.conninfo(&world.read_write());
    let endpoint = postgres.endpoint();
    let waiting = tokio::spawn(crate::programs::client_owned("psql", &["-XAtq", "-d", &conninfo, "-c", "show port"]));
    eventually("psql waits at the gateway", async || world.gateway().connections() == 1).await;
    world.lead(Some(endpoint)).await;
    let output = soon("psql connects", waiting).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), postgres.port.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_ends_with_a_sentence() {
    let world = World::with(Certificates::new(), |options| options.hold = Duration::from_millis(200)).await;
    let error = soon("the hold ends", world.connect(&world.read_write())).await.expect_err("no session");
    assert_eq!(code(&error), "57P03");
    assert_eq!(error.as_db_error().unwrap().message(), "cluster app has no leader now (waited 0.2 s); try again");
    let error = soon("the hold ends", world.connect(&world.read_only())).await.expect_err("no session");
    assert_eq!(code(&error), "57P03");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_gives_up_frees_its_place() {
    let world = World::with(Certificates::new(), |options| options.hold = Duration::from_secs(600)).await;
    {
        let address = world.read_write();
        let connect = world.connect(&address);
        tokio::pin!(connect);
        let waits = eventually("it waits", async || world.gateway().connections() == 1);
        tokio::select! {
            _ = &mut connect => panic!("there is no leader to connect to"),
            () = waits => {}
        }
    }
    eventually("its place is free", async || world.gateway().connections() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_leader_is_tried_until_the_routes_name_another() {
    let mut world = World::with(Certificates::new(), |options| options.hold = Duration::from_secs(60)).await;
    let postgres = Postgres::start(&world.certificates).await;
    let mut dead = postgres.endpoint();
    dead.port = crate::world::free_port();
    world.lead(Some(dead)).await;
    let conninfo = world.conninfo(&world.read_write());
    let waiting = tokio::spawn(crate::programs::client_owned("psql", &["-XAtq", "-d", &conninfo, "-c", "show port"]));
    eventually("psql waits at the gateway", async || world.gateway().connections() == 1).await;
    world.lead(Some(postgres.endpoint())).await;
    assert!(soon("psql connects", waiting).await.unwrap().status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_a_deposed_leader_are_cut() {
    let mut world = World::new().await;
    let (old, new) = (Postgres::start(&world.certificates).await, Postgres::start(&world.certificates).await);
    world.lead(Some(old.endpoint())).await;
    let (idle, idle_task) = world.connect(&world.read_write()).await.unwrap();
    let (busy, _busy_task) = world.connect(&world.read_write()).await.unwrap();
    let statement = tokio::spawn(async move { busy.simple_query("select pg_sleep(600)").await.map(drop) });
    eventually("the statement runs", async || {
        let sql = "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep%'";
        idle.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    world.lead(Some(new.endpoint())).await;
    let error = soon("the busy session is cut", statement).await.unwrap().unwrap_err();
    assert_eq!(code(&error), "57P01");
    assert_eq!(error.as_db_error().unwrap().message(), "the leader of cluster app changed; reconnect");
    let end = soon("the idle session is cut", idle_task).await.unwrap();
    assert!(end.is_err() || idle.is_closed());
    let port = world.psql(&world.conninfo(&world.read_write()), "show port").await;
    assert_eq!(port, Ok(new.port.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_epoch_of_the_same_leader_or_none_cuts_as_well() {
    let mut world = World::new().await;
    let postgres = Postgres::start(&world.certificates).await;
    world.lead(Some(postgres.endpoint())).await;
    for next in [Some(postgres.endpoint()), None] {
        let (_client, task) = world.connect(&world.read_write()).await.unwrap();
        world.lead(next).await;
        let _ = soon("the session is cut", task).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_a_replica_end_when_it_leaves_and_survive_a_new_leader() {
    let mut world = World::new().await;
    let (leader, replica) = (Postgres::start(&world.certificates).await, Postgres::start(&world.certificates).await);
    world.push(|route| route.replicas = vec![replica.endpoint()]).await;
    world.lead(Some(leader.endpoint())).await;
    let (client, task) = world.connect(&world.read_only()).await.unwrap();
    world.lead(None).await;
    assert_eq!(client.query_one("select 1", &[]).await.unwrap().get::<_, i32>(0), 1);
    world.push(|route| route.replicas.clear()).await;
    let _ = soon("the session is cut", task).await.unwrap();
    assert!(client.is_closed());
}
