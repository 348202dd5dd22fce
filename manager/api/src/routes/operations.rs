//! `/v1/operations`: long work, and waiting for its end.

use crate::extract::{Asked, Params};
use crate::forward::{FORWARDED, ask};
use crate::page::{Page, PageParams, cut};
use crate::problem::{Code, Problem};
use crate::router::App;
use crate::view::OperationView;
use crate::wait::{check_wait, until};
use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use pgstead_types::OperationId;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show))
}

/// Running operations and the ended ones that are still kept.
#[utoipa::path(get, path = "/v1/operations", tag = "operations", operation_id = "listOperations", params(PageParams), responses(
    (status = 200, body = Page<OperationView>),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
))]
async fn list(State(app): State<App>, Params(page): Params<PageParams>) -> Result<Json<Page<OperationView>>, Problem> {
    let record = app.record();
    let all = record.operations.iter().map(|(id, operation)| (*id, operation));
    cut(&page, all, |operation| OperationView::new(&record, operation)).map(Json)
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ShowParams {
    /// Answer only when it has ended, or after this time, such as `30s`: up to 60s.
    wait: Option<String>,
}

/// One operation. With `wait`, answers when it has ended or the time is over, whichever comes first.
#[utoipa::path(get, path = "/v1/operations/{operation}", tag = "operations", operation_id = "getOperation",
    params(("operation" = String, Path, description = "Id"), ShowParams), responses(
    (status = 200, body = OperationView),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
))]
async fn show(
    State(app): State<App>,
    Asked(asked): Asked,
    Params(params): Params<ShowParams>,
    request: Request,
) -> Result<Response, Problem> {
    let wait = check_wait(params.wait.as_deref())?;
    let id: OperationId =
        asked.parse().map_err(|error: pgstead_types::ids::BadId| Problem::new(Code::Malformed, error.to_string()))?;
    if !app.record().operations.contains_key(&id) {
        // It may be too new for this node's copy of the record; the controller has recorded it.
        return match ask_controller(&app, request).await {
            Some(answer) => Ok(answer),
            None => Err(Problem::not_found("operation", &asked)),
        };
    }
    let look = |record: &pgstead_types::record::Record| {
        record.operations.get(&id).map(|operation| OperationView::new(record, operation))
    };
    let ended = |view: &Option<OperationView>| view.as_ref().is_none_or(OperationView::ended);
    match until(&*app, wait, look, ended).await {
        Some(view) => Ok(Json(view).into_response()),
        None => Err(Problem::not_found("operation", &asked)),
    }
}

async fn ask_controller(app: &App, request: Request) -> Option<Response> {
    let controller = app.controller().filter(|controller| *controller != app.node())?;
    if request.headers().contains_key(&FORWARDED) {
        return None;
    }
    let (parts, _) = request.into_parts();
    let answer = ask(&**app, controller, http::Request::from_parts(parts, Bytes::new())).await.ok()?;
    (!answer.status().is_server_error()).then(|| answer.map(Body::from))
}
