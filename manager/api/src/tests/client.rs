//! The client against a real TLS listener in this process.

use crate::client::{Client, ClientError, Profile};
use crate::fake::{Ca, Fake, TOKEN, acceptor, ca, node, serve};
use crate::problem::Code;
use pgstead_types::Secret;
use pgstead_types::spec::ClusterSpec;
use std::time::Duration;
use tokio::net::TcpListener;

/// A port where nobody listens.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("https://{}", listener.local_addr().unwrap())
}

fn client(servers: &[&str], ca: &Ca) -> Client {
    let servers = servers.iter().map(ToString::to_string).collect();
    Client::new(&Profile { servers, ca_pem: ca.pem.clone(), token: Secret::new(TOKEN) }).unwrap()
}

#[tokio::test]
async fn asks_over_tls_and_reads_every_kind_of_answer() {
    let (fake, ca) = (Fake::new(1), ca());
    let server = serve(&fake, &ca).await;
    let client = client(&[&server], &ca);
    assert_eq!(client.nodes().await.unwrap().len(), 3);
    assert_eq!(client.node("n2").await.unwrap().name, "n2");
    assert_eq!(client.clusters().await.unwrap()[0].name, "app");
    assert_eq!(client.cluster("app").await.unwrap().members.len(), 3);
    assert_eq!(client.members().await.unwrap().len(), 3);
    assert_eq!(client.cluster_members("app").await.unwrap().len(), 3);
    assert_eq!(client.volumes().await.unwrap().len(), 3);
    assert_eq!(client.connection("app").await.unwrap().user, "app");
    assert_eq!(client.create_token(None).await.unwrap().token, "join-me");
    let made = client.create_cluster(&ClusterSpec { members: 1, ..ClusterSpec::named("b") }).await.unwrap();
    assert!(!client.operation(made.operation, Duration::ZERO).await.unwrap().ended());
    assert_eq!(client.operations().await.unwrap().len(), 2);
    let events = client.events(None, Some("b"), Duration::ZERO).await.unwrap();
    assert_eq!(events.events[0].kind, "cluster_created");
    let stale = client.restart_cluster("app", Some(1)).await.unwrap_err();
    assert_eq!(stale.code(), Some(Code::RevisionChanged));
    client
        .switchover("app", &crate::SwitchoverBody { to: Some("app-2".into()), ..Default::default() }, Some(3))
        .await
        .unwrap();
    client.delete_cluster("b", None).await.unwrap();
    let missing = client.cluster("no/such").await.unwrap_err();
    assert_eq!(missing.code(), Some(Code::NotFound), "{missing}");
}

#[tokio::test]
async fn a_server_of_another_deployment_is_refused() {
    let (fake, theirs, ours) = (Fake::new(1), ca(), ca());
    let server = serve(&fake, &theirs).await;
    let error = client(&[&server], &ours).nodes().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }));
    assert!(error.to_string().contains("certificate is not one of this deployment"), "{error}");
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_is_down_or_knows_no_controller() {
    let (first, second, ca) = (Fake::new(1), Fake::new(2), ca());
    second.state().controller = None;
    let (down, blind, good) = (nobody().await, serve(&second, &ca).await, serve(&first, &ca).await);
    let client = client(&[&down, &blind, &good], &ca);
    client.restart_cluster("app", None).await.expect("the third server does it");
    assert_eq!(client.nodes().await.unwrap()[0].id, node(1));
}

#[tokio::test]
async fn when_nobody_answers_every_server_is_named() {
    let ca = ca();
    let (one, two) = (nobody().await, nobody().await);
    let error = client(&[&one, &two], &ca).nodes().await.unwrap_err().to_string();
    assert!(error.contains(&one) && error.contains(&two) && error.contains("profile"), "{error}");
}

#[tokio::test]
async fn no_controller_anywhere_is_told_as_such() {
    let (fake, ca) = (Fake::new(2), ca());
    fake.state().controller = None;
    let server = serve(&fake, &ca).await;
    let error = client(&[&server], &ca).restart_cluster("app", None).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::NoController));
}

#[tokio::test]
async fn a_broken_write_is_not_sent_again() {
    let ca = ca();
    let fake = Fake::new(1);
    let good = serve(&fake, &ca).await;
    // Speaks TLS, takes the request and hangs up.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rude = format!("https://{}", listener.local_addr().unwrap());
    let acceptor = acceptor(&ca);
    tokio::spawn(async move {
        loop {
            let Ok((tcp, _)) = listener.accept().await else { return };
            let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
            let mut some = [0; 64];
            let _read = tokio::io::AsyncReadExt::read(&mut stream, &mut some).await;
        }
    });
    let client = client(&[&rude, &good], &ca);
    let error = client.restart_cluster("app", None).await.unwrap_err();
    assert!(matches!(error, ClientError::Lost { .. }), "{error}");
    assert_eq!(client.nodes().await.unwrap().len(), 3, "a read goes on to the next server");
}
