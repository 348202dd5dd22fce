//! `/v1/volumes`: the members' file systems.

use super::Look;
use crate::extract::Params;
use crate::page::{Page, PageParams, cut};
use crate::problem::Problem;
use crate::router::App;
use crate::view::VolumeView;
use axum::Json;
use axum::extract::State;
use pgstead_types::VolumeId;
use pgstead_types::record::{ClusterRecord, MemberRecord};
use std::collections::BTreeMap;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list))
}

/// All volumes.
#[utoipa::path(get, path = "/v1/volumes", tag = "volumes", operation_id = "listVolumes", params(PageParams), responses(
    (status = 200, body = Page<VolumeView>),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
))]
async fn list(State(app): State<App>, Params(page): Params<PageParams>) -> Result<Json<Page<VolumeView>>, Problem> {
    let look = Look::take(&*app).await;
    let world = look.world();
    let clusters = look.record.clusters.values();
    let all: BTreeMap<VolumeId, (&ClusterRecord, &MemberRecord)> = clusters
        .flat_map(|cluster| cluster.members.values().map(move |member| (member.volume, (cluster, member))))
        .collect();
    cut(&page, all.iter().map(|(id, pair)| (*id, pair)), |(cluster, member)| VolumeView::new(&world, cluster, member))
        .map(Json)
}
