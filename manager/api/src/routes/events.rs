//! `/v1/events`: what happened, in one sequence, to be followed by long polls.

use crate::extract::{Params, find_cluster};
use crate::page::check_limit;
use crate::problem::Problem;
use crate::router::App;
use crate::view::EventsView;
use crate::wait::{check_wait, until};
use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EventParams {
    /// Events after this sequence number; from the oldest that is kept if absent.
    after: Option<u64>,
    /// At most so many, 1 to 1000; 100 if absent.
    limit: Option<usize>,
    /// Only this cluster's, by name or id.
    cluster: Option<String>,
    /// If there is none yet, wait so long for one, such as `30s`: up to 60s.
    wait: Option<String>,
}

/// Events in their order. `missed` says how many were asked for and are kept no more.
#[utoipa::path(get, path = "/v1/events", tag = "events", operation_id = "listEvents", params(EventParams), responses(
    (status = 200, body = EventsView),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
))]
async fn list(State(app): State<App>, Params(params): Params<EventParams>) -> Result<Json<EventsView>, Problem> {
    let wait = check_wait(params.wait.as_deref())?;
    let limit = check_limit(params.limit)?;
    let cluster = match params.cluster.as_deref() {
        None => None,
        // A deleted cluster's events are still there, by its id.
        Some(asked) => match asked.parse() {
            Ok(id) => Some(id),
            Err(_) => Some(find_cluster(&app.record(), asked)?.id),
        },
    };
    let view = until(
        &*app,
        wait,
        |record| EventsView::new(record, params.after, limit, cluster),
        |view| !view.events.is_empty() || view.missed > 0,
    )
    .await;
    Ok(Json(view))
}
