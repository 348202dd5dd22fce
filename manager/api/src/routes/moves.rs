//! `/v1/clusters/{cluster}/move`: a member is replaced by a new one on another node.

use super::{Look, accepted};
use crate::extract::{Asked, Body, Params, find_cluster, find_member, find_node};
use crate::problem::Problem;
use crate::router::App;
use crate::view::AcceptedView;
use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(begin, cancel))
}

/// Who moves, and where to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveBody {
    /// By name or id. It may not lead.
    pub member: String,
    /// The node for the new one, by name or id; the best one for the cluster if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// Replaces a member by a new one on another node. The new one is copied and counts beside it before the old one leaves and its volume is
/// removed. The answer names the operation that ends when the old one is a member no more.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/move", tag = "members", operation_id = "moveMember",
    params(("cluster" = String, Path, description = "Name or id")),
    request_body = MoveBody, responses(
    (status = 202, body = AcceptedView, headers(("location" = String, description = "The operation"))),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn begin(State(app): State<App>, Asked(asked): Asked, Body(body): Body<MoveBody>) -> Result<Response, Problem> {
    let look = Look::take(&*app).await;
    let cluster = find_cluster(&look.record, &asked)?;
    let member = find_member(cluster, &body.member)?.id;
    let to = match &body.to {
        Some(to) => Some(find_node(&look.record, to)?.id),
        None => None,
    };
    Ok(accepted(app.move_member(cluster.id, member, to).await?))
}

/// What to take back.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CancelParams {
    /// Only if this member is being moved, by name or id.
    pub member: Option<String>,
}

/// Takes a move back: the new member goes, and the old one stays. Not once the old one has left.
#[utoipa::path(delete, path = "/v1/clusters/{cluster}/move", tag = "members", operation_id = "cancelMove",
    params(("cluster" = String, Path, description = "Name or id"), CancelParams), responses(
    (status = 202, body = AcceptedView, headers(("location" = String, description = "The operation that has ended"))),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn cancel(
    State(app): State<App>,
    Asked(asked): Asked,
    Params(params): Params<CancelParams>,
) -> Result<Response, Problem> {
    let (cluster, member) = {
        let record = app.record();
        let cluster = find_cluster(&record, &asked)?;
        let member = params.member.as_deref().map(|member| find_member(cluster, member)).transpose()?;
        (cluster.id, member.map(|member| member.id))
    };
    Ok(accepted(app.cancel_move(cluster, member).await?))
}
