//! `/v1/volumes`: the members' file systems, and those that no member has.

use super::Look;
use crate::extract::{Asked, Params};
use crate::page::{Page, PageParams, cut};
use crate::problem::{Code, Problem};
use crate::router::App;
use crate::view::VolumeView;
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use pgstead_types::VolumeId;
use std::collections::BTreeMap;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(remove))
}

/// All volumes: of members, and those that nodes have found and no member has.
#[utoipa::path(get, path = "/v1/volumes", tag = "volumes", operation_id = "listVolumes", params(PageParams), responses(
    (status = 200, body = Page<VolumeView>),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
))]
async fn list(State(app): State<App>, Params(page): Params<PageParams>) -> Result<Json<Page<VolumeView>>, Problem> {
    let look = Look::take(&*app).await;
    let all = all(&look);
    cut(&page, all.iter().map(|(id, view)| (*id, view)), VolumeView::clone).map(Json)
}

fn all(look: &Look) -> BTreeMap<VolumeId, VolumeView> {
    let world = look.world();
    let storage = look.observed.iter().flat_map(|observed| &observed.storage);
    let orphans = storage.flat_map(|(node, seen)| seen.orphans.iter().map(|orphan| (*node, orphan)));
    let mut all: BTreeMap<_, _> =
        orphans.map(|(node, orphan)| (orphan.id, VolumeView::of_orphan(&world, node, orphan))).collect();
    // A member's wins: the node's look was before the record gave it to that member.
    for cluster in look.record.clusters.values() {
        let members = cluster.members.values();
        all.extend(members.map(|member| (member.volume, VolumeView::new(&world, cluster, member))));
    }
    all
}

/// Removes a volume that no member has, with all its data. A member's own is refused.
#[utoipa::path(delete, path = "/v1/volumes/{volume}", tag = "volumes", operation_id = "removeVolume",
    params(("volume" = String, Path, description = "Id")), responses(
    (status = 204, description = "Out of the inventory; its data is deleted by and by"),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn remove(State(app): State<App>, Asked(asked): Asked) -> Result<StatusCode, Problem> {
    let look = Look::take(&*app).await;
    let found = asked.parse().ok().and_then(|id: VolumeId| all(&look).remove(&id));
    let volume = found.ok_or_else(|| Problem::not_found("volume", &asked))?;
    if volume.path.is_none() {
        let member = volume.member.map_or_else(String::new, |member| member.name);
        let text = format!("volume {asked} is that of {member}; it goes with its member, not alone");
        return Err(Problem::new(Code::Conflict, text));
    }
    app.remove_volume(volume.node.id, volume.id).await?;
    Ok(StatusCode::NO_CONTENT)
}
