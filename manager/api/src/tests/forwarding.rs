//! Any node answers: by itself, through the controller, or with what it has.

use super::{get, post, request, router, send};
use crate::fake::{Fake, node};
use crate::forward::FORWARDED;
use axum::body::Body;
use http::StatusCode;
use std::sync::Arc;

/// Node 1, the controller, and node 2 that reaches it.
fn two_nodes() -> (Arc<Fake>, Arc<Fake>) {
    let (first, second) = (Fake::new(1), Fake::new(2));
    second.state().peers.insert(node(1), router(&first));
    (first, second)
}

#[tokio::test]
async fn a_write_goes_to_the_controller_and_its_answer_comes_back() {
    let (first, second) = two_nodes();
    let api = router(&second);
    let answer = post(&api, "/v1/clusters/app/switchover", r#"{"to":"app-3"}"#).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text);
    assert!(answer.headers.contains_key("location"));
    use crate::Backend;
    assert!(first.record().clusters[&crate::fake::APP].switchover.is_some());
    assert_eq!(second.state().forwarded, ["POST /v1/clusters/app/switchover"]);
    let refused = post(&api, "/v1/clusters/app/restart", "").await;
    assert_eq!(refused.problem(), "conflict", "a refusal comes back as it was given");
    let unknown = post(&api, "/v1/clusters", r#"{"name":"b","x":1}"#).await;
    assert_eq!(unknown.problem(), "invalid");
}

#[tokio::test]
async fn the_token_is_checked_before_anything_is_forwarded() {
    let (_first, second) = two_nodes();
    let bare = http::Request::post("/v1/clusters/app/restart").body(Body::empty()).unwrap();
    assert_eq!(send(&router(&second), bare).await.problem(), "unauthorized");
    assert!(second.state().forwarded.is_empty());
}

#[tokio::test]
async fn a_read_with_observations_comes_from_the_controller() {
    let (_first, second) = two_nodes();
    let cluster = get(&router(&second), "/v1/clusters/app").await.json();
    assert_eq!((&cluster["observed"], &cluster["health"]), (&true.into(), &"healthy".into()));
}

#[tokio::test]
async fn without_a_controller_reads_come_from_the_record_and_say_so() {
    let fake = Fake::new(2);
    let api = router(&fake);
    let unreachable = get(&api, "/v1/clusters/app").await.json();
    fake.state().controller = None;
    let leaderless = get(&api, "/v1/clusters/app").await.json();
    for cluster in [unreachable, leaderless] {
        assert_eq!((&cluster["observed"], &cluster["health"]), (&false.into(), &"unknown".into()));
        assert!(cluster["members"][0]["observed"].is_null());
        assert_eq!(cluster["leader"]["name"], "app-1");
        assert_eq!(cluster["findings"][0]["code"], "not_observed");
    }
    let nodes = get(&api, "/v1/nodes").await.json();
    assert!(nodes["items"][0]["observed"].is_null());
}

#[tokio::test]
async fn without_a_controller_writes_are_refused_with_what_to_check() {
    let fake = Fake::new(2);
    let api = router(&fake);
    let unreachable = post(&api, "/v1/clusters/app/restart", "").await;
    assert_eq!(
        (unreachable.status, unreachable.problem().as_str()),
        (StatusCode::BAD_GATEWAY, "controller_unreachable")
    );
    assert!(unreachable.detail().contains("nothing was done"), "{}", unreachable.detail());
    fake.state().controller = None;
    let leaderless = post(&api, "/v1/clusters", r#"{"name":"b"}"#).await;
    assert_eq!((leaderless.status, leaderless.problem().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "no_controller"));
    assert!(leaderless.detail().contains("majority of the voters"), "{}", leaderless.detail());
    assert!(leaderless.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn two_nodes_that_take_each_other_for_the_leader_do_not_pass_a_request_to_and_fro() {
    let (first, second) = two_nodes();
    first.state().controller = Some(node(2));
    first.state().peers.insert(node(2), router(&second));
    let api = router(&second);
    assert_eq!(post(&api, "/v1/clusters/app/restart", "").await.problem(), "no_controller");
    assert_eq!(get(&api, "/v1/nodes").await.status, StatusCode::OK);
    assert!(first.state().forwarded.is_empty(), "the second hop is never taken");
    assert_eq!(second.state().forwarded.len(), 2);
}

#[tokio::test]
async fn a_forwarded_request_says_so_and_is_answered_on_the_controller() {
    let fake = Fake::new(1);
    let forwarded = request("POST", "/v1/clusters/app/restart").header(FORWARDED, node(2).to_string());
    assert_eq!(send(&router(&fake), forwarded.body(Body::empty()).unwrap()).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn an_operation_that_this_node_does_not_know_yet_is_asked_of_the_controller() {
    let (_first, second) = two_nodes();
    let api = router(&second);
    let answer = post(&api, "/v1/clusters/app/restart", "").await;
    let location = answer.headers["location"].to_str().unwrap().to_string();
    let operation = get(&api, &location).await;
    assert_eq!((operation.status, operation.json()["kind"].as_str()), (StatusCode::OK, Some("restart_cluster")));
    second.state().controller = None;
    assert_eq!(get(&api, &location).await.problem(), "not_found");
}

#[tokio::test]
async fn too_large_a_body_is_not_forwarded() {
    let (_first, second) = two_nodes();
    let answer = post(&router(&second), "/v1/clusters", &"x".repeat(300 * 1024)).await;
    assert_eq!(answer.problem(), "too_large");
    assert!(second.state().forwarded.is_empty());
}
