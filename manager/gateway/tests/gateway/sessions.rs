//! Ordinary use: who gets in, over what TLS, to which member.

use crate::postgres::Postgres;
use crate::programs;
use crate::world::{Certificates, World, code, free_port, soon};

#[tokio::test(flavor = "multi_thread")]
async fn psql_passes_with_scram_and_channel_binding() {
    let mut world = World::new().await;
    let postgres = Postgres::start(&world.certificates).await;
    world.lead(Some(postgres.endpoint())).await;
    let conninfo = world.conninfo(&world.read_write());
    assert_eq!(world.psql(&conninfo, "show port").await, Ok(postgres.port.to_string()));
    let wrong = format!("{conninfo} password=wrong");
    let complaint = world.psql(&wrong, "select 1").await.unwrap_err();
    assert!(complaint.contains("password authentication failed"), "{complaint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_refuses_a_gateway_of_another_ca() {
    let world = World::new().await;
    std::fs::write(world.ca_file(), Certificates::new().ca_pem).unwrap();
    let complaint = world.psql(&world.conninfo(&world.read_write()), "select 1").await.unwrap_err();
    assert!(complaint.contains("certificate verify failed"), "{complaint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_another_certificate_gets_no_session() {
    let mut world = World::with(Certificates::new(), |options| options.hold = std::time::Duration::ZERO).await;
    for certificates in [Certificates::new(), Certificates::for_names(&["127.0.0.9"])] {
        let postgres = Postgres::start(&certificates).await;
        world.lead(Some(postgres.endpoint())).await;
        let error = world.connect(&world.read_write()).await.expect_err("no session");
        assert_eq!(code(&error), "57P03");
        let message = error.as_db_error().unwrap().message();
        assert!(message.contains("cluster app cannot be reached") && message.contains("TLS"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_exchanged_without_a_restart() {
    let mut world = World::new().await;
    let next = Certificates::new();
    let postgres = Postgres::start(&next).await;
    world.lead(Some(postgres.endpoint())).await;
    world
        .push(|route| {
            route.certificate_pem = next.certificate_pem.clone();
            route.key_pem = pgstead_types::Secret::new(next.key_pem.clone());
            route.ca_pem = next.ca_pem.clone();
        })
        .await;
    std::fs::write(world.ca_file(), &next.ca_pem).unwrap();
    assert_eq!(world.psql(&world.conninfo(&world.read_write()), "select 1").await, Ok("1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_connections_take_turns_and_fall_back_to_the_leader() {
    let mut world = World::new().await;
    let leader = Postgres::start(&world.certificates).await;
    let (first, second) = (Postgres::start(&world.certificates).await, Postgres::start(&world.certificates).await);
    let conninfo = world.conninfo(&world.read_only());
    world.lead(Some(leader.endpoint())).await;
    assert_eq!(world.psql(&conninfo, "show port").await, Ok(leader.port.to_string()));
    world.push(|route| route.replicas = vec![first.endpoint(), second.endpoint()]).await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.push(world.psql(&conninfo, "show port").await.unwrap());
    }
    seen.sort();
    let mut expected = [first.port.to_string(), second.port.to_string()];
    expected.sort();
    assert_eq!(seen, expected);
    drop((first, second));
    assert_eq!(world.psql(&conninfo, "show port").await, Ok(leader.port.to_string()), "dead replicas are passed over");
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_and_bulk_data_pass() {
    let mut world = World::new().await;
    let postgres = Postgres::start(&world.certificates).await;
    world.lead(Some(postgres.endpoint())).await;
    let conninfo = world.conninfo(&world.read_write());
    for args in [
        &["-i", "-q", "-s", "1", &conninfo][..],
        &["-c", "4", "-j", "2", "-t", "50", "-n", "-M", "prepared", &conninfo],
        &["-c", "2", "-t", "50", "-n", "-C", "-S", &conninfo],
    ] {
        let output = soon("pgbench ends", programs::client("pgbench", args)).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let sum = world.psql(&conninfo, "select count(*) from pgbench_history").await;
    assert_eq!(sum, Ok("200".into()));
    let big = world.psql(&conninfo, "select repeat('x', 1000) from generate_series(1, 20000)").await.unwrap();
    assert_eq!(big.len(), 20_000 * 1001 - 1);
    let notice = "do $$ begin raise notice '%', repeat('n', 100000); end $$";
    assert_eq!(world.psql(&conninfo, notice).await, Ok(String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_connections_is_said_and_kept() {
    let mut world = World::with(Certificates::new(), |options| options.connections_max = 1).await;
    let postgres = Postgres::start(&world.certificates).await;
    world.lead(Some(postgres.endpoint())).await;
    let (first, task) = world.connect(&world.read_write()).await.unwrap();
    let error = world.connect(&world.read_write()).await.expect_err("no second session");
    assert_eq!(code(&error), "53300");
    drop(first);
    soon("the first session ends", task).await.unwrap().unwrap();
    crate::world::eventually("its place is free", async || world.gateway().connections() == 0).await;
    assert!(world.connect(&world.read_write()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_address_is_reported_and_bound_later() {
    let mut world = World::new().await;
    let port = free_port();
    let taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let address = format!("127.0.0.1:{port}");
    world.push(|route| route.read_only = address.clone()).await;
    let daemon = world.daemon.as_ref().unwrap();
    let said = daemon.last_heard();
    assert_eq!(said["errors"][0]["address"], address.as_str(), "{said}");
    assert_eq!(said["listening"], serde_json::json!([world.read_write()]));
    drop(taken);
    crate::world::eventually("the address is bound", async || daemon.last_heard()["errors"] == serde_json::json!([]))
        .await;
    assert_eq!(daemon.heard.lock().unwrap()[0]["v"], 1);
}
