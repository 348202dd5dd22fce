//! Tokens, bodies, parameters, preconditions, and what each resource answers.

use super::{get, post, request, router, send};
use crate::backend::Backend;
use crate::fake::{APP, CONSUMER_PASSWORD, Fake, PASSWORD};
use axum::body::Body;
use http::{Request, StatusCode, header};
use pgstead_types::OperationId;
use pgstead_types::record::ClusterChange;
use pgstead_types::spec::Durability;
use serde_json::json;

#[tokio::test]
async fn everything_under_v1_asks_for_the_token_but_the_description() {
    let api = router(&Fake::new(1));
    let bare = |path: &str| Request::get(path).body(Body::empty()).unwrap();
    for path in ["/v1/nodes", "/v1/clusters/app", "/v1/clusters/app/connection", "/v1/events", "/v1/operations"] {
        let answer = send(&api, bare(path)).await;
        assert_eq!((answer.status, answer.problem().as_str()), (StatusCode::UNAUTHORIZED, "unauthorized"), "{path}");
        assert_eq!(answer.headers[header::WWW_AUTHENTICATE], "Bearer");
    }
    let wrong = Request::get("/v1/nodes").header(header::AUTHORIZATION, "Bearer nonsense");
    assert_eq!(send(&api, wrong.body(Body::empty()).unwrap()).await.problem(), "unauthorized");
    for path in ["/v1/openapi.json", "/healthz", "/readyz", "/metrics"] {
        assert_eq!(send(&api, bare(path)).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn a_node_that_is_not_ready_says_why() {
    let fake = Fake::new(1);
    fake.state().not_ready = Some("the record is not read yet".into());
    let answer = get(&router(&fake), "/readyz").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.text.contains("not read yet"));
}

#[tokio::test]
async fn a_body_that_does_not_fit_is_answered_by_what_is_wrong_with_it() {
    let api = router(&Fake::new(1));
    let unknown = post(&api, "/v1/clusters", r#"{"name":"b","replicas":3}"#).await;
    assert_eq!((unknown.status, unknown.problem().as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "invalid"));
    assert!(unknown.detail().contains("unknown field `replicas`"), "{}", unknown.detail());

    let broken = post(&api, "/v1/clusters", r#"{"name":"#).await;
    assert_eq!((broken.status, broken.problem().as_str()), (StatusCode::BAD_REQUEST, "malformed"));

    let spec = post(&api, "/v1/clusters", r#"{"name":"b","settings":{"fsync":"off"}}"#).await;
    assert_eq!((spec.status, spec.problem().as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "invalid"));
    assert!(spec.detail().contains("fsync belongs to pgstead"), "{}", spec.detail());

    let plain = request("POST", "/v1/clusters").body(Body::from("{}")).unwrap();
    assert_eq!(send(&api, plain).await.problem(), "not_json");

    let large = format!(r#"{{"name":"{}"}}"#, "x".repeat(300 * 1024));
    for path in ["/v1/clusters", "/v1/clusters/app/switchover", "/v1/tokens", "/v1/join"] {
        let answer = post(&api, path, &large).await;
        assert_eq!((answer.status, answer.problem().as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "too_large"), "{path}");
    }
}

#[tokio::test]
async fn wrong_paths_methods_and_parameters_are_problems_too() {
    let api = router(&Fake::new(1));
    assert_eq!(get(&api, "/v2/nodes").await.problem(), "no_such_route");
    assert_eq!(post(&api, "/v1/nodes", "{}").await.problem(), "method_not_allowed");
    for path in
        ["/v1/nodes?limit=0", "/v1/nodes?limit=1001", "/v1/nodes?page=2", "/v1/nodes?after=x", "/v1/events?wait=5"]
    {
        assert_eq!(get(&api, path).await.problem(), "malformed", "{path}");
    }
    assert_eq!(get(&api, "/v1/operations/x").await.problem(), "malformed");
    assert_eq!(get(&api, "/v1/clusters/%ff").await.problem(), "malformed");
    let missing = get(&api, "/v1/clusters/nope").await;
    assert_eq!((missing.status, missing.problem().as_str()), (StatusCode::NOT_FOUND, "not_found"));
}

#[tokio::test]
async fn creating_answers_with_the_operation_to_wait_for() {
    let api = router(&Fake::new(1));
    let answer = post(&api, "/v1/clusters", r#"{"name":"other","members":1}"#).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text);
    let location = answer.headers[header::LOCATION].to_str().unwrap().to_string();
    let operation = get(&api, &location).await.json();
    assert_eq!((&operation["state"], &operation["kind"]), (&json!("running"), &json!("create_cluster")));
    assert_eq!(operation["progress"], "other-1 is to be promoted");
    let again = post(&api, "/v1/clusters", r#"{"name":"other"}"#).await;
    assert_eq!((again.status, again.problem().as_str()), (StatusCode::CONFLICT, "exists"));
}

#[tokio::test]
async fn a_change_of_the_spec_names_what_changes_and_leaves_the_rest() {
    let fake = Fake::new(1);
    let api = router(&fake);
    let patch = async |body: &'static str| {
        let asked = request("PATCH", "/v1/clusters/app").header(header::CONTENT_TYPE, "application/json");
        send(&api, asked.body(Body::from(body)).unwrap()).await
    };
    let answer = patch(r#"{"sync_replicas":2,"durability":"available"}"#).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text);
    let location = answer.headers[header::LOCATION].to_str().unwrap().to_string();
    assert_eq!(get(&api, &location).await.json()["progress"], "commits need 1 standbys now, and 2 by the spec");
    let spec = &get(&api, "/v1/clusters/app").await.json()["spec"];
    assert_eq!(
        (&spec["sync_replicas"], &spec["durability"], &spec["members"]),
        (&json!(2), &json!("available"), &json!(3))
    );
    assert_eq!(patch(r#"{"sync_replicas":3}"#).await.problem(), "invalid");
    assert_eq!(patch(r#"{"members":0}"#).await.problem(), "invalid");
    assert_eq!(patch(r#"{"sync_replicas":2}"#).await.problem(), "conflict");
    assert_eq!(patch(r#"{"members":2}"#).await.problem(), "invalid", "two standbys are to acknowledge");
    let fewer = patch(r#"{"members":2,"sync_replicas":1}"#).await;
    assert_eq!(fewer.status, StatusCode::ACCEPTED, "{}", fewer.text);
    let location = fewer.headers[header::LOCATION].to_str().unwrap().to_string();
    assert!(
        get(&api, &location).await.json()["progress"].as_str().unwrap().starts_with("3 members, and 2 by the spec")
    );
    let members = &get(&api, "/v1/clusters/app/members").await.json()["items"];
    assert_eq!(members[0]["standing"], "settled", "{members}");
}

#[tokio::test]
async fn two_changes_of_the_spec_at_once_are_both_kept() {
    let fake = Fake::new(1);
    let api = router(&fake);
    let mut other = fake.record().clusters[&APP].spec.clone();
    other.durability = Durability::Available;
    let operation = OperationId::from_u128(77);
    let change = ClusterChange::UpdateSpec { operation, spec: Box::new(other), consumer_password: None };
    fake.state().meanwhile = Some(change);
    let asked = request("PATCH", "/v1/clusters/app").header(header::CONTENT_TYPE, "application/json");
    let answer = send(&api, asked.body(Body::from(r#"{"sync_replicas":2}"#)).unwrap()).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text);
    let spec = &fake.record().clusters[&APP].spec;
    assert_eq!((spec.sync_replicas, spec.durability), (Some(2), Durability::Available));
}

#[tokio::test]
async fn if_match_protects_against_acting_on_what_has_changed() {
    let api = router(&Fake::new(1));
    let seen = get(&api, "/v1/clusters/app").await;
    let etag = seen.headers[header::ETAG].to_str().unwrap().to_string();
    assert_eq!(etag, "\"3\"");
    let restart = |tag: &str| {
        let request = request("POST", "/v1/clusters/app/restart").header(header::IF_MATCH, tag);
        request.body(Body::empty()).unwrap()
    };
    let stale = send(&api, restart("\"2\"")).await;
    assert_eq!((stale.status, stale.problem().as_str()), (StatusCode::PRECONDITION_FAILED, "revision_changed"));
    assert_eq!(send(&api, restart("3")).await.problem(), "malformed");
    assert_eq!(send(&api, restart(&etag)).await.status, StatusCode::ACCEPTED);
    assert_eq!(send(&api, restart(&etag)).await.problem(), "revision_changed");
    let busy = post(&api, "/v1/clusters/app/switchover", r#"{"to":"app-2"}"#).await;
    assert_eq!((busy.status, busy.problem().as_str()), (StatusCode::CONFLICT, "conflict"));
    assert!(busy.detail().contains("restart is under way"), "{}", busy.detail());
}

#[tokio::test]
async fn a_switchover_takes_a_member_by_name_or_the_best_one() {
    let api = router(&Fake::new(1));
    let unknown = post(&api, "/v1/clusters/app/switchover", r#"{"to":"app-9"}"#).await;
    assert!(unknown.detail().contains("expected one of app-1, app-2, app-3"), "{}", unknown.detail());
    let leads = post(&api, "/v1/clusters/app/switchover", r#"{"to":"app-1"}"#).await;
    assert_eq!(leads.problem(), "conflict");
    let best = send(&api, request("POST", "/v1/clusters/app/switchover").body(Body::empty()).unwrap()).await;
    assert_eq!(best.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn lists_come_in_pieces() {
    let api = router(&Fake::new(1));
    for path in ["/v1/nodes", "/v1/members", "/v1/volumes", "/v1/clusters/app/members"] {
        let mut ids = Vec::new();
        let mut after = String::new();
        loop {
            let piece = get(&api, &format!("{path}?limit=2{after}")).await.json();
            ids.extend(piece["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_string()));
            match piece["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        assert_eq!(ids.len(), 3, "{path}");
        assert!(ids.is_sorted(), "{path}");
    }
}

#[tokio::test]
async fn a_volume_that_no_member_has_is_listed_and_removed_and_a_members_is_not() {
    let fake = Fake::new(1);
    let orphan = crate::fake::orphan();
    fake.state()
        .observed
        .as_mut()
        .unwrap()
        .storage
        .get_mut(&crate::fake::node(1))
        .unwrap()
        .orphans
        .push(orphan.clone());
    let api = router(&fake);
    let all = get(&api, "/v1/volumes").await.json();
    let (count, last) = (all["items"].as_array().unwrap().len(), &all["items"][3]);
    assert_eq!((count, &last["state"], &last["node"]["name"]), (4, &"orphaned".into(), &"n1".into()));
    let remove =
        async |id: &str| send(&api, request("DELETE", &format!("/v1/volumes/{id}")).body(Body::empty()).unwrap()).await;
    let held = remove(all["items"][0]["id"].as_str().unwrap()).await;
    assert_eq!((held.status, held.problem().as_str()), (StatusCode::CONFLICT, "conflict"));
    assert!(held.detail().contains("goes with its member"), "{}", held.detail());
    assert_eq!(remove(&orphan.id.to_string()).await.status, StatusCode::NO_CONTENT);
    for unknown in [orphan.id.to_string().as_str(), "app-1"] {
        assert_eq!(remove(unknown).await.status, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn a_snapshot_is_of_the_leader_or_of_who_is_named_and_is_removed_by_its_id() {
    let api = router(&Fake::new(1));
    let taken = post(&api, "/v1/clusters/app/snapshots", r#"{"keep":"7d"}"#).await;
    assert_eq!(taken.status, StatusCode::CREATED);
    let taken = taken.json();
    assert_eq!((&taken["member"]["name"], &taken["node"]["name"]), (&"app-1".into(), &"n1".into()));
    assert!(taken["expires_at"].is_string());
    let kept = send(&api, request("POST", "/v1/clusters/app/snapshots").body(Body::empty()).unwrap()).await.json();
    assert!(kept["expires_at"].is_null());
    assert_eq!(get(&api, "/v1/snapshots").await.json()["items"].as_array().unwrap().len(), 2);
    let other = post(&api, "/v1/clusters/app/snapshots", r#"{"member":"app-2"}"#).await;
    assert_eq!((other.problem().as_str(), other.detail().contains("takes no snapshots")), ("conflict", true));
    for (path, body, problem) in [
        ("/v1/clusters/nosuch/snapshots", "{}", "not_found"),
        ("/v1/clusters/app/snapshots", r#"{"keep":"soon"}"#, "invalid"),
        ("/v1/clusters/app/snapshots", r#"{"keep":"0s"}"#, "invalid"),
    ] {
        assert_eq!(post(&api, path, body).await.problem(), problem, "{path} {body}");
    }
    let id = taken["id"].as_str().unwrap();
    for status in [StatusCode::NO_CONTENT, StatusCode::NOT_FOUND] {
        let path = format!("/v1/snapshots/{id}");
        assert_eq!(send(&api, request("DELETE", &path).body(Body::empty()).unwrap()).await.status, status);
    }
}

#[tokio::test]
async fn a_fork_is_of_a_member_or_of_a_snapshot_of_that_cluster() {
    let api = router(&Fake::new(1));
    let id = post(&api, "/v1/clusters/app/snapshots", "{}").await.json()["id"].as_str().unwrap().to_string();
    let accepted = post(&api, "/v1/clusters/app/forks", r#"{"name":"twin","keep_passwords":true}"#).await;
    assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.text);
    let twin = get(&api, "/v1/clusters/twin").await.json();
    assert_eq!((&twin["forked"]["name"], &twin["spec"]["members"]), (&"app".into(), &1.into()));
    assert!(get(&api, "/v1/clusters/app").await.json()["forked"].is_null());
    let none = "01930000-0000-7000-8000-000000000000";
    for (path, body, problem) in [
        ("/v1/clusters/nosuch/forks", r#"{"name":"x"}"#.to_string(), "not_found"),
        ("/v1/clusters/app/forks", "{}".to_string(), "invalid"),
        ("/v1/clusters/app/forks", r#"{"name":"x","member":"app-9"}"#.to_string(), "not_found"),
        ("/v1/clusters/app/forks", format!(r#"{{"name":"x","snapshot":"{none}"}}"#), "not_found"),
        ("/v1/clusters/app/forks", format!(r#"{{"name":"x","snapshot":"{id}","member":"app-1"}}"#), "invalid"),
        ("/v1/clusters/twin/forks", format!(r#"{{"name":"x","snapshot":"{id}"}}"#), "invalid"),
        ("/v1/clusters/app/forks", r#"{"name":"twin"}"#.to_string(), "exists"),
    ] {
        assert_eq!(post(&api, path, &body).await.problem(), problem, "{path} {body}");
    }
}

#[tokio::test]
async fn a_cluster_goes_back_to_a_snapshot_and_may_think_again() {
    let api = router(&Fake::new(1));
    let id = post(&api, "/v1/clusters/app/snapshots", "{}").await.json()["id"].as_str().unwrap().to_string();
    post(&api, "/v1/clusters/app/forks", r#"{"name":"twin"}"#).await;
    let none = "01930000-0000-7000-8000-000000000000";
    for (path, body, problem) in [
        ("/v1/clusters/nosuch/rollback", format!(r#"{{"snapshot":"{id}"}}"#), "not_found"),
        ("/v1/clusters/app/rollback", "{}".to_string(), "invalid"),
        ("/v1/clusters/app/rollback", format!(r#"{{"snapshot":"{id}","undo":true}}"#), "invalid"),
        ("/v1/clusters/app/rollback", format!(r#"{{"snapshot":"{none}"}}"#), "not_found"),
        ("/v1/clusters/twin/rollback", format!(r#"{{"snapshot":"{id}"}}"#), "invalid"),
        ("/v1/clusters/app/rollback", format!(r#"{{"snapshot":"{id}","keep_as":"twin"}}"#), "exists"),
        ("/v1/clusters/app/rollback", r#"{"undo":true}"#.to_string(), "conflict"),
    ] {
        assert_eq!(post(&api, path, &body).await.problem(), problem, "{path} {body}");
    }
    let cancel = || send(&api, request("DELETE", "/v1/clusters/app/rollback").body(Body::empty()).unwrap());
    assert_eq!(cancel().await.problem(), "conflict");
    let accepted = post(&api, "/v1/clusters/app/rollback", &format!(r#"{{"snapshot":"{id}"}}"#)).await;
    assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.text);
    let operation = format!("/v1/operations/{}", accepted.json()["operation"].as_str().unwrap());
    let begun = get(&api, &operation).await.json();
    assert_eq!((&begun["kind"], &begun["state"]), (&"roll_back_cluster".into(), &"running".into()));
    assert!(begun["progress"].as_str().unwrap().contains("app-rollback is being made"), "{begun}");
    let made = get(&api, "/v1/clusters/app-rollback").await.json();
    assert_eq!(made["takes_place_of"]["name"], "app");
    assert_eq!(cancel().await.status, StatusCode::ACCEPTED);
    assert_eq!(get(&api, &operation).await.json()["state"], "failed");
}

#[tokio::test]
async fn a_node_with_members_cannot_be_removed() {
    let api = router(&Fake::new(1));
    let held = send(&api, request("DELETE", "/v1/nodes/n2").body(Body::empty()).unwrap()).await;
    assert_eq!((held.status, held.problem().as_str()), (StatusCode::CONFLICT, "conflict"));
    assert!(held.detail().contains("holds a member of cluster app"));
}

#[tokio::test]
async fn join_needs_a_join_token_and_no_admin_token() {
    let api = router(&Fake::new(1));
    let join = |token: &str, name: &str| {
        let body = json!({"token": token, "name": name, "host": "h", "port": 7480, "region": "r", "zone": "z",
            "postgres_majors": [15], "pools": ["default"], "csr_pem": "csr"});
        let request = Request::post("/v1/join").header(header::CONTENT_TYPE, "application/json");
        request.body(Body::from(body.to_string())).unwrap()
    };
    let answer = send(&api, join("join-me", "n4")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(answer.json()["peers"][0]["host"], "n1.example");
    let refused = send(&api, join("wrong", "n4")).await;
    assert_eq!((refused.status, refused.problem().as_str()), (StatusCode::FORBIDDEN, "bad_join_token"));
    assert_eq!(send(&api, join("join-me", "N 4")).await.problem(), "invalid");
}

#[tokio::test]
async fn tokens_live_as_long_as_asked_within_bounds() {
    let api = router(&Fake::new(1));
    let made = post(&api, "/v1/tokens", r#"{"ttl":"30m"}"#).await;
    assert_eq!(made.status, StatusCode::CREATED);
    assert_eq!(made.json()["expires_at"], "1970-01-01T00:30:00.000Z");
    for body in [r#"{"ttl":"8d"}"#, r#"{"ttl":"0s"}"#, r#"{"ttl":"soon"}"#] {
        assert_eq!(post(&api, "/v1/tokens", body).await.problem(), "invalid", "{body}");
    }
}

#[tokio::test]
async fn consumers_have_a_password_of_their_own_as_long_as_they_are_asked_for() {
    let api = router(&Fake::new(1));
    let connection = async || get(&api, "/v1/clusters/app/connection").await.json();
    let ask = async |wanted: bool| {
        let asked = request("PATCH", "/v1/clusters/app").header(header::CONTENT_TYPE, "application/json");
        let body = Body::from(format!(r#"{{"logical_replication":{wanted}}}"#));
        assert_eq!(send(&api, asked.body(body).unwrap()).await.status, StatusCode::ACCEPTED);
    };
    assert!(connection().await.get("consumer").is_none());
    ask(true).await;
    let shown = connection().await;
    assert_eq!(shown["consumer"]["user"], "pgstead_consumer");
    let login = format!("postgresql://pgstead_consumer:{CONSUMER_PASSWORD}@");
    assert!(shown["consumer"]["url"].as_str().unwrap().starts_with(&login), "{shown}");
    assert!(!get(&api, "/v1/clusters/app").await.text.contains(CONSUMER_PASSWORD));
    ask(false).await;
    assert!(connection().await.get("consumer").is_none());
}

#[tokio::test]
async fn only_the_connection_answer_holds_a_secret_and_no_answer_is_cached() {
    let api = router(&Fake::new(1));
    let encoded = PASSWORD.replace('/', "%2F");
    for path in
        ["/v1/nodes", "/v1/clusters", "/v1/clusters/app", "/v1/members", "/v1/volumes", "/v1/operations", "/v1/events"]
    {
        let answer = get(&api, path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        for secret in [PASSWORD, &encoded, "cluster-key", "server-key", "deployment-key"] {
            assert!(!answer.text.contains(secret), "{path} shows {secret}");
        }
        assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
        assert!(answer.headers.contains_key("x-request-id"));
    }
    let connection = get(&api, "/v1/clusters/app/connection").await.json();
    assert_eq!(
        connection["read_write"]["url"],
        format!(
            "postgresql://app:{encoded}@n1.example:6001,n2.example:6001,n3.example:6001/app?sslmode=verify-full&\
             sslrootcert=ca.pem"
        )
    );
    assert!(connection["direct"]["url"].as_str().unwrap().ends_with("&target_session_attrs=read-write"));
    assert_eq!(connection["direct"]["port"], 6000);
    assert_eq!(connection["ca_pem"], "cluster-ca");
}

#[tokio::test]
async fn a_panic_ends_one_request_and_tells_nothing_of_its_text() {
    let fake = Fake::new(1);
    fake.state().panic = Some("a defect with hunter2 in it".into());
    let api = router(&fake);
    let answer = get(&api, "/metrics").await;
    assert_eq!((answer.status, answer.problem().as_str()), (StatusCode::INTERNAL_SERVER_ERROR, "internal"));
    assert!(!answer.text.contains("hunter2"));
    assert_eq!(get(&api, "/healthz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_member_moves_and_a_node_is_taken_out_of_service() {
    let fake = Fake::new(1);
    let api = router(&fake);
    for (path, body, problem) in [
        ("/v1/clusters/nosuch/move", r#"{"member":"app-2"}"#, "not_found"),
        ("/v1/clusters/app/move", r#"{"member":"app-9"}"#, "not_found"),
        ("/v1/clusters/app/move", r#"{"member":"app-2","to":"nowhere"}"#, "not_found"),
        ("/v1/clusters/app/move", r#"{"to":"n1"}"#, "invalid"),
    ] {
        assert_eq!(post(&api, path, body).await.problem(), problem, "{path} {body}");
    }
    let none = send(&api, request("DELETE", "/v1/clusters/app/move").body(Body::empty()).unwrap()).await;
    assert_eq!((none.problem().as_str(), none.detail().contains("no member")), ("conflict", true));

    let put = async |path: &str, service: &str| {
        let put = request("PUT", path).header(header::CONTENT_TYPE, "application/json");
        send(&api, put.body(Body::from(format!(r#"{{"service":"{service}"}}"#))).unwrap()).await
    };
    assert_eq!(put("/v1/nodes/n2/service", "asleep").await.problem(), "invalid");
    assert_eq!(put("/v1/nodes/nosuch/service", "open").await.problem(), "not_found");
    for service in ["cordoned", "draining", "open", "open"] {
        let answer = put("/v1/nodes/n2/service", service).await;
        assert_eq!((answer.status, answer.json()["service"].as_str()), (StatusCode::OK, Some(service)));
        assert_eq!(get(&api, "/v1/nodes/n2").await.json()["service"], service);
    }
}

#[tokio::test]
async fn placement_is_explained_of_clusters_that_are_there_and_of_those_that_are_not() {
    let api = router(&Fake::new(1));
    let new = get(&api, "/v1/placement?members=2&regions=eu,us&zones_min=2&placement_weights=latency%3D1").await;
    let view = new.json();
    assert_eq!((new.status, &view["wanted"], &view["regions"]), (StatusCode::OK, &json!(2), &json!(["eu", "us"])));
    assert_eq!((&view["cluster"], &view["weights"]["latency"]), (&json!(null), &json!(1)));
    let nodes = view["nodes"].as_array().unwrap();
    assert_eq!((nodes.len(), &nodes[0]["chosen"], &nodes[2]["chosen"]), (3, &json!(1), &json!(null)));
    assert_eq!(nodes[2]["against"], json!({"rule": "not_reachable", "why": "it is not reachable"}));
    let app = get(&api, "/v1/clusters/app/placement").await.json();
    assert_eq!((&app["cluster"]["name"], &app["refused"].is_string()), (&json!("app"), &true));
    assert_eq!((app["present"].as_array().unwrap().len(), &app["against"]["has_member"]), (3, &json!(3)));
    assert_eq!(get(&api, "/v1/placement?members=8").await.problem(), "invalid");
    assert_eq!(get(&api, "/v1/placement?zones_min=4").await.problem(), "invalid");
    assert_eq!(get(&api, "/v1/placement?regions=").await.problem(), "invalid");
    assert_eq!(get(&api, "/v1/placement?placement_weights=idle%3D101").await.problem(), "malformed");
    assert_eq!(get(&api, "/v1/placement?speed=1").await.problem(), "malformed");
    assert_eq!(get(&api, "/v1/clusters/nope/placement").await.problem(), "not_found");
}
