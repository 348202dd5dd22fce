//! The nodes' own routes, for connections that showed a node's certificate: Raft's messages and reports.

use crate::controller::{Arrived, ControllerHandle};
use crate::granting::{self, GRANT_TIME_MAX};
use crate::instances::Instances;
use crate::lease::Asks;
use crate::member::LogRequest;
use crate::server::Connection;
use crate::storage::{Pools, RemoveError, SnapshotRequest};
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use pgstead_consensus::{Consensus, RaftRpc, TokioRuntime};
use pgstead_types::lease::RefusalRequest;
use pgstead_types::record::{Command, NodeRecord};
use pgstead_types::report::NodeReport;
use pgstead_types::{MemberId, SnapshotId, Tick, VolumeId, WallTime};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The leader that asks does not wait longer.
const REFUSAL_TIME_MAX: Duration = Duration::from_millis(1200);

#[derive(Clone)]
struct Internal {
    consensus: Consensus<TokioRuntime>,
    controller: ControllerHandle,
    instances: Instances,
    asks: Asks,
    storage: Pools,
}

pub fn router(
    consensus: Consensus<TokioRuntime>,
    controller: ControllerHandle,
    instances: Instances,
    asks: Asks,
    storage: Pools,
) -> Router {
    Router::new()
        .route("/internal/raft", post(raft))
        .route("/internal/report", post(report))
        .route("/internal/node", post(node))
        .route("/internal/members/{member}/sessions", post(sessions))
        .route("/internal/refusal", post(refusal))
        .route("/internal/log", post(log))
        .route("/internal/volumes/{volume}/remove", post(remove_volume))
        .route("/internal/snapshots", post(snapshot))
        .route("/internal/snapshots/{snapshot}/remove", post(remove_snapshot))
        .route_layer(axum::middleware::from_fn_with_state(consensus.clone(), nodes_only))
        .with_state(Internal { consensus, controller, instances, asks, storage })
}

/// Refuses before a byte of the body is read: who shows no node's certificate, and nodes that were removed. A node that the
/// record does not know yet is let in: this node may be behind, and must hear from whoever leads by now.
async fn nodes_only(State(consensus): State<Consensus<TokioRuntime>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Arc<Connection>>().and_then(|connection| connection.peer);
    let record = consensus.record();
    match peer {
        Some(node) if !record.removed_nodes.contains(&node) => next.run(request).await,
        _ => forbidden(),
    }
}

/// Only nodes may speak here, and only for themselves.
fn is_from(connection: &Connection, node: pgstead_types::NodeId) -> bool {
    connection.peer == Some(node)
}

fn forbidden() -> Response {
    (StatusCode::FORBIDDEN, "this route takes the certificate of the node that speaks").into_response()
}

async fn raft(
    State(internal): State<Internal>,
    Extension(connection): Extension<Arc<Connection>>,
    Json(rpc): Json<RaftRpc>,
) -> Response {
    if !is_from(&connection, rpc.from) {
        return forbidden();
    }
    connection.raft.store(true, Ordering::Relaxed);
    Json(internal.consensus.handle(rpc).await).into_response()
}

/// What a report may ask for.
#[derive(serde::Deserialize)]
struct ReportQuery {
    /// The answer is to bring a lease.
    #[serde(default)]
    lease: bool,
}

async fn report(
    State(internal): State<Internal>,
    Extension(connection): Extension<Arc<Connection>>,
    Query(query): Query<ReportQuery>,
    Json(report): Json<NodeReport>,
) -> Response {
    if !is_from(&connection, report.node) {
        return forbidden();
    }
    if !internal.consensus.leadership().am_leader {
        return (StatusCode::MISDIRECTED_REQUEST, "this node is not the controller").into_response();
    }
    connection.reports.store(true, Ordering::Relaxed);
    let arrived = Arrived { report, at: Tick::now(), connection: connection.id, grant: None };
    if !query.lease {
        internal.controller.arrived(arrived);
        return StatusCode::NO_CONTENT.into_response();
    }
    let (grant, answer) = granting::asking();
    internal.controller.arrived(Arrived { grant, ..arrived });
    match granting::granted(answer, GRANT_TIME_MAX).await {
        Some(grant) => Json(grant).into_response(),
        // The report has arrived; only the quorum did not answer in time.
        None => StatusCode::NO_CONTENT.into_response(),
    }
}

/// A leader that hears no controller asks a member of this node to obey no election for a while.
async fn refusal(
    State(internal): State<Internal>,
    Extension(connection): Extension<Arc<Connection>>,
    Json(request): Json<RefusalRequest>,
) -> Response {
    let record = internal.consensus.record();
    let asks_for_itself = record
        .clusters
        .get(&request.cluster)
        .and_then(|cluster| cluster.members.get(&request.leader.member))
        .is_some_and(|leader| connection.peer == Some(leader.node));
    if !asks_for_itself {
        return forbidden();
    }
    Json(internal.asks.ask(request, REFUSAL_TIME_MAX).await).into_response()
}

/// Log of a member of this node, for the one that the record has fetch it in the open election. It does not change there: its
/// member has promised that election.
async fn log(
    State(internal): State<Internal>,
    Extension(connection): Extension<Arc<Connection>>,
    Json(request): Json<LogRequest>,
) -> Response {
    let record = internal.consensus.record();
    let cluster = record.clusters.get(&request.cluster);
    let fetch = cluster.and_then(|cluster| Some((cluster, cluster.fetch()?)));
    let Some((cluster, fetch)) = fetch.filter(|(_, fetch)| fetch.epoch == request.epoch) else {
        let why = format!("this node knows of no log to be fetched in epoch {}", request.epoch);
        return (StatusCode::CONFLICT, why).into_response();
    };
    if cluster.members.get(&fetch.to.member).is_none_or(|member| connection.peer != Some(member.node)) {
        return forbidden();
    }
    match internal.instances.segment(fetch.from.member, &request.segment).await {
        Ok(bytes) => bytes.into_response(),
        Err(why) => (StatusCode::NOT_FOUND, why).into_response(),
    }
}

/// What the clients of a member of this node are at.
async fn sessions(State(internal): State<Internal>, Path(member): Path<MemberId>) -> Response {
    match internal.instances.sessions(member).await {
        Ok(seen) => Json(seen).into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
    }
}

/// The controller passes on that a person has a volume removed that no member has.
async fn remove_volume(State(internal): State<Internal>, Path(volume): Path<VolumeId>) -> Response {
    match internal.storage.remove(volume).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(why @ RemoveError::NoOrphan(_)) => (StatusCode::NOT_FOUND, why.to_string()).into_response(),
        Err(why) => (StatusCode::CONFLICT, crate::member::chain(&why)).into_response(),
    }
}

/// The controller passes on that a person wants a snapshot of a member of this node.
async fn snapshot(State(internal): State<Internal>, Json(asked): Json<SnapshotRequest>) -> Response {
    match internal.storage.snapshot(asked).await {
        Ok(snapshot) => Json(snapshot).into_response(),
        Err(why) => (StatusCode::CONFLICT, crate::member::chain(&why)).into_response(),
    }
}

async fn remove_snapshot(State(internal): State<Internal>, Path(snapshot): Path<SnapshotId>) -> Response {
    match internal.storage.remove_snapshot(snapshot).await {
        Ok(true) => StatusCode::NO_CONTENT.into_response(),
        Ok(false) => StatusCode::NOT_FOUND.into_response(),
        Err(why) => (StatusCode::CONFLICT, crate::member::chain(&why)).into_response(),
    }
}

/// A node says where it is now.
async fn node(
    State(internal): State<Internal>,
    Extension(connection): Extension<Arc<Connection>>,
    Json(node): Json<NodeRecord>,
) -> Response {
    if !is_from(&connection, node.id) {
        return forbidden();
    }
    let command = Command::UpdateNode { at: WallTime::now(), node };
    match internal.consensus.propose(command, Duration::from_secs(4)).await {
        Ok(Ok(_)) => StatusCode::NO_CONTENT.into_response(),
        Ok(Err(refusal)) => (StatusCode::CONFLICT, refusal.to_string()).into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why.to_string()).into_response(),
    }
}
