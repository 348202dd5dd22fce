//! `/v1/snapshots` and `/v1/clusters/{cluster}/snapshots`: members' volumes as they were.

use super::Look;
use crate::extract::{Asked, OptionalBody, Params, find_cluster, find_member, parse_duration};
use crate::page::{Page, PageParams, cut};
use crate::problem::{Code, Problem};
use crate::router::App;
use crate::view::SnapshotView;
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use pgstead_types::storage::SnapshotSeen;
use pgstead_types::{NodeId, SnapshotId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// What is to be kept for longer is not kept on the disk that it is a copy of.
const KEEP_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(take)).routes(routes!(remove))
}

/// What to take.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TakeSnapshot {
    /// Of this member, by name or id; of the leader if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// For how long to keep it, such as `12h` or `7d`; until it is removed if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<String>,
}

/// All snapshots that nodes have told of.
#[utoipa::path(get, path = "/v1/snapshots", tag = "volumes", operation_id = "listSnapshots", params(PageParams), responses(
    (status = 200, body = Page<SnapshotView>),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
))]
async fn list(State(app): State<App>, Params(page): Params<PageParams>) -> Result<Json<Page<SnapshotView>>, Problem> {
    let look = Look::take(&*app).await;
    let all = all(&look);
    cut(&page, all.iter().map(|(id, found)| (*id, found)), |(_, view)| view.clone()).map(Json)
}

fn all(look: &Look) -> BTreeMap<SnapshotId, (NodeId, SnapshotView)> {
    let world = look.world();
    let storage = look.observed.iter().flat_map(|observed| &observed.storage);
    let seen = storage.flat_map(|(node, seen)| seen.snapshots.iter().map(|snapshot| (*node, snapshot)));
    seen.map(|(node, snapshot)| (snapshot.id, (node, SnapshotView::new(&world, node, snapshot)))).collect()
}

/// One that a node has told of, and that node.
pub(super) fn find(look: &Look, asked: &str) -> Result<(NodeId, SnapshotSeen), Problem> {
    let storage = look.observed.iter().flat_map(|observed| &observed.storage);
    let mut seen = storage.flat_map(|(node, seen)| seen.snapshots.iter().map(|snapshot| (*node, snapshot)));
    let id = asked.parse::<SnapshotId>().ok();
    let found = seen.find(|(_, snapshot)| Some(snapshot.id) == id).map(|(node, snapshot)| (node, snapshot.clone()));
    found.ok_or_else(|| Problem::not_found("snapshot", asked))
}

/// Takes a snapshot: the volume of one member as it is now, as the end of its host's power would leave it.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/snapshots", tag = "volumes", operation_id = "takeSnapshot",
    params(("cluster" = String, Path, description = "Name or id")),
    request_body = Option<TakeSnapshot>, responses(
    (status = 201, body = SnapshotView),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn take(
    State(app): State<App>,
    Asked(asked): Asked,
    OptionalBody(body): OptionalBody<TakeSnapshot>,
) -> Result<(StatusCode, Json<SnapshotView>), Problem> {
    let keep = match body.keep.as_deref().map(parse_duration).transpose() {
        Ok(Some(keep)) if keep.is_zero() || keep > KEEP_MAX => {
            return Err(Problem::new(Code::Invalid, "keep is out of range; expected more than 0 and at most 10 years"));
        }
        Ok(keep) => keep,
        Err(why) => return Err(Problem::new(Code::Invalid, format!("keep: {why}"))),
    };
    let (cluster, member) = {
        let record = app.record();
        let cluster = find_cluster(&record, &asked)?;
        let leader = || {
            cluster.leadership.leader().ok_or_else(|| {
                Problem::new(Code::Conflict, format!("{} has no leader now; name a member", cluster.spec.name))
            })
        };
        let member = match &body.member {
            Some(name) => find_member(cluster, name)?.id,
            None => leader()?,
        };
        (cluster.id, member)
    };
    let taken = app.take_snapshot(cluster, member, keep).await?;
    let look = Look::take(&*app).await;
    let node = look.record.clusters.get(&cluster).and_then(|held| held.held(member)).map(|member| member.node);
    let view = SnapshotView::new(&look.world(), node.unwrap_or_default(), &taken);
    Ok((StatusCode::CREATED, Json(view)))
}

/// Deletes a snapshot.
#[utoipa::path(delete, path = "/v1/snapshots/{snapshot}", tag = "volumes", operation_id = "removeSnapshot",
    params(("snapshot" = String, Path, description = "Id")), responses(
    (status = 204, description = "Deleted"),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn remove(State(app): State<App>, Asked(asked): Asked) -> Result<StatusCode, Problem> {
    let look = Look::take(&*app).await;
    let (node, snapshot) = find(&look, &asked)?;
    app.remove_snapshot(node, snapshot.id).await?;
    Ok(StatusCode::NO_CONTENT)
}
