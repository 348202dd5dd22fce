//! `/v1/clusters/{cluster}/connection`: how applications connect, password included.

use crate::extract::{Asked, find_cluster};
use crate::problem::Problem;
use crate::router::App;
use crate::view::ConnectionView;
use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(show))
}

/// Connection strings, the password and the CA.
#[utoipa::path(get, path = "/v1/clusters/{cluster}/connection", tag = "clusters", operation_id = "getConnection",
    params(("cluster" = String, Path, description = "Name or id")), responses(
    (status = 200, body = ConnectionView),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
))]
async fn show(State(app): State<App>, Asked(asked): Asked) -> Result<Json<ConnectionView>, Problem> {
    let record = app.record();
    Ok(Json(ConnectionView::new(&record, find_cluster(&record, &asked)?)))
}
