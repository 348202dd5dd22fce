//! Long polls answer at the change, or when their time is over.

use super::{get, request, router, send};
use crate::Backend;
use crate::fake::Fake;
use axum::body::Body;
use pgstead_types::record::ClusterChange;
use pgstead_types::{Epoch, WallTime};
use serde_json::json;

#[tokio::test]
async fn waiting_for_an_operation_ends_with_the_operation() {
    let fake = Fake::new(1);
    let api = router(&fake);
    let begun = send(&api, request("POST", "/v1/clusters/app/restart").body(Body::empty()).unwrap()).await;
    let location = begun.headers["location"].to_str().unwrap().to_string();
    let path = format!("{location}?wait=60s");
    let waiting = tokio::spawn({
        let api = api.clone();
        async move { get(&api, &path).await }
    });
    // A change that is not the end must not end the wait; the yields let the waiter see each.
    tokio::task::yield_now().await;
    fake.change(ClusterChange::RestartMember { member: Some(crate::fake::member(2)) }).unwrap();
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    fake.change(ClusterChange::EndRestart { failure: Some("no standby came back".into()) }).unwrap();
    let ended = waiting.await.unwrap().json();
    assert_eq!((&ended["state"], &ended["failure"]), (&json!("failed"), &json!("no standby came back")));
    let at_once = get(&api, &format!("{location}?wait=60s")).await.json();
    assert_eq!(at_once["state"], "failed", "an ended operation is not waited for");
}

#[tokio::test]
async fn a_wait_that_runs_out_answers_with_what_is() {
    let fake = Fake::new(1);
    let api = router(&fake);
    let begun = send(&api, request("POST", "/v1/clusters/app/restart").body(Body::empty()).unwrap()).await;
    let location = begun.headers["location"].to_str().unwrap();
    let answer = get(&api, &format!("{location}?wait=50ms")).await.json();
    assert_eq!((&answer["state"], &answer["progress"]), (&json!("running"), &json!("0 of 3 members restarted")));
    let events = get(&api, "/v1/events?after=1000&wait=50ms").await.json();
    assert_eq!((&events["events"], &events["next_after"]), (&json!([]), &json!(1000)));
    assert_eq!(get(&api, "/v1/events?wait=61s").await.problem(), "malformed");
}

#[tokio::test]
async fn events_are_resumed_after_the_last_one_seen() {
    let fake = Fake::new(1);
    let api = router(&fake);
    let mut seen = Vec::new();
    let mut after = String::new();
    loop {
        let piece = get(&api, &format!("/v1/events?limit=2{after}")).await.json();
        let events = piece["events"].as_array().unwrap();
        if events.is_empty() {
            break;
        }
        seen.extend(events.iter().map(|event| event["sequence"].as_u64().unwrap()));
        after = format!("&after={}", piece["next_after"]);
    }
    let all: Vec<u64> = (0..fake.record().next_event).collect();
    assert_eq!(seen, all);
    let path = format!("/v1/events?wait=60s{after}&cluster=app");
    let waiting = tokio::spawn({
        let api = api.clone();
        async move { get(&api, &path).await }
    });
    tokio::task::yield_now().await;
    let reason = pgstead_types::record::EpochReason::PostgresEnded;
    fake.change(ClusterChange::BeginEpoch { epoch: Epoch(2), reason, preferred: None }).unwrap();
    let news = waiting.await.unwrap().json();
    assert_eq!((&news["events"][0]["kind"], &news["missed"]), (&json!("epoch_began"), &json!(0)));
}

#[tokio::test]
async fn events_that_are_gone_are_counted() {
    let fake = Fake::new(1);
    for round in 0..1200 {
        let token = pgstead_types::record::JoinToken {
            id: pgstead_types::TokenId::from_u128(round),
            secret_sha256: String::new(),
            expires_at: WallTime(1),
            used_by: None,
        };
        fake.apply(&pgstead_types::record::Command::AddJoinToken { at: WallTime(2), token }).unwrap();
    }
    let oldest = fake.record().events[0].sequence;
    let view = get(&router(&fake), "/v1/events?after=4&limit=1").await.json();
    assert_eq!(view["missed"], oldest - 5);
}
