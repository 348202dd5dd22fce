//! `/v1/nodes`: the hosts.

use super::Look;
use crate::extract::{Asked, Body, Params, find_node};
use crate::page::{Page, PageParams, cut};
use crate::problem::Problem;
use crate::router::App;
use crate::view::{NodeServiceView, NodeView};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show, remove)).routes(routes!(set_service))
}

/// All nodes.
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes", operation_id = "listNodes", params(PageParams), responses(
    (status = 200, body = Page<NodeView>),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
))]
async fn list(State(app): State<App>, Params(page): Params<PageParams>) -> Result<Json<Page<NodeView>>, Problem> {
    let look = Look::take(&*app).await;
    let all = look.record.nodes.iter().map(|(id, node)| (*id, node));
    cut(&page, all, |node| NodeView::new(&look.world(), node)).map(Json)
}

/// One node, by name or id.
#[utoipa::path(get, path = "/v1/nodes/{node}", tag = "nodes", operation_id = "getNode",
    params(("node" = String, Path, description = "Name or id")), responses(
    (status = 200, body = NodeView),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
))]
async fn show(State(app): State<App>, Asked(asked): Asked) -> Result<Json<NodeView>, Problem> {
    let look = Look::take(&*app).await;
    Ok(Json(NodeView::new(&look.world(), find_node(&look.record, &asked)?)))
}

/// Whether a node takes members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceBody {
    pub service: NodeServiceView,
}

/// Takes a node out of service, or back. While it is draining, the leaders on it hand over, and its members are replaced by new ones on
/// other nodes, a few at a time; the node's own view says how many are left, and its findings what is in the way.
#[utoipa::path(put, path = "/v1/nodes/{node}/service", tag = "nodes", operation_id = "setNodeService",
    params(("node" = String, Path, description = "Name or id")), request_body = ServiceBody, responses(
    (status = 200, body = NodeView),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn set_service(
    State(app): State<App>,
    Asked(asked): Asked,
    Body(body): Body<ServiceBody>,
) -> Result<Json<NodeView>, Problem> {
    let node = find_node(&app.record(), &asked)?.id;
    app.set_node_service(node, body.service.into()).await?;
    let look = Look::take(&*app).await;
    Ok(Json(NodeView::new(&look.world(), find_node(&look.record, &node.to_string())?)))
}

/// Removes a node that holds no members. It may not come back under its old id.
#[utoipa::path(delete, path = "/v1/nodes/{node}", tag = "nodes", operation_id = "removeNode",
    params(("node" = String, Path, description = "Name or id")), responses(
    (status = 204, description = "Removed"),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn remove(State(app): State<App>, Asked(asked): Asked) -> Result<StatusCode, Problem> {
    let node = find_node(&app.record(), &asked)?.id;
    app.remove_node(node).await?;
    Ok(StatusCode::NO_CONTENT)
}
