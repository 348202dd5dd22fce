//! `/v1/members`, and the members of one cluster.

use super::Look;
use crate::extract::{Asked, Params, find_cluster};
use crate::page::{Page, PageParams, cut};
use crate::problem::Problem;
use crate::router::App;
use crate::view::MemberView;
use axum::Json;
use axum::extract::State;
use pgstead_types::MemberId;
use pgstead_types::record::{ClusterRecord, MemberRecord};
use std::collections::BTreeMap;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(of_cluster))
}

/// All members of all clusters.
#[utoipa::path(get, path = "/v1/members", tag = "members", operation_id = "listMembers", params(PageParams), responses(
    (status = 200, body = Page<MemberView>),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
))]
async fn list(State(app): State<App>, Params(page): Params<PageParams>) -> Result<Json<Page<MemberView>>, Problem> {
    let look = Look::take(&*app).await;
    piece(&look, &page, look.record.clusters.values())
}

/// The members of one cluster.
#[utoipa::path(get, path = "/v1/clusters/{cluster}/members", tag = "members", operation_id = "listClusterMembers",
    params(("cluster" = String, Path, description = "Name or id"), PageParams), responses(
    (status = 200, body = Page<MemberView>),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
))]
async fn of_cluster(
    State(app): State<App>,
    Asked(asked): Asked,
    Params(page): Params<PageParams>,
) -> Result<Json<Page<MemberView>>, Problem> {
    let look = Look::take(&*app).await;
    piece(&look, &page, std::iter::once(find_cluster(&look.record, &asked)?))
}

fn piece<'a>(
    look: &'a Look,
    page: &PageParams,
    clusters: impl Iterator<Item = &'a ClusterRecord>,
) -> Result<Json<Page<MemberView>>, Problem> {
    let all: BTreeMap<MemberId, (&ClusterRecord, &MemberRecord)> = clusters
        .flat_map(|cluster| cluster.members.values().map(move |member| (member.id, (cluster, member))))
        .collect();
    let world = look.world();
    cut(page, all.iter().map(|(id, pair)| (*id, pair)), |(cluster, member)| MemberView::new(&world, cluster, member))
        .map(Json)
}
