//! Puts the routes and what every request passes together.

use crate::backend::Backend;
use crate::extract::BODY_BYTES_MAX;
use crate::problem::{Code, Problem};
use crate::{forward, guard, openapi, routes};
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::Response;
use http::{HeaderValue, header};
use std::sync::Arc;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::trace::{DefaultOnFailure, DefaultOnRequest, DefaultOnResponse, TraceLayer};
use tracing::Level;
use utoipa_axum::router::OpenApiRouter;

pub(crate) type App = Arc<dyn Backend>;

/// Routes that the controller answers: writes, and reads with observations in them.
pub(crate) fn controller_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .merge(routes::nodes::routes())
        .merge(routes::tokens::routes())
        .merge(routes::clusters::routes())
        .merge(routes::members::routes())
        .merge(routes::moves::routes())
        .merge(routes::rollback::routes())
        .merge(routes::placement::routes())
        .merge(routes::volumes::routes())
        .merge(routes::snapshots::routes())
}

/// Routes that every node answers from its copy of the record.
pub(crate) fn local_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .merge(routes::connection::routes())
        .merge(routes::operations::routes())
        .merge(routes::events::routes())
}

/// Everything under `/v1`, and the health routes beside it.
pub fn router(backend: Arc<dyn Backend>) -> axum::Router {
    let forward = || from_fn_with_state(backend.clone(), forward::to_controller);
    let with_token = controller_routes()
        .layer(forward())
        .merge(local_routes())
        .layer(from_fn_with_state(backend.clone(), guard::require_token));
    // A new node has a join token and no admin token yet.
    let without_token = routes::join::routes().layer(forward()).merge(openapi::routes());
    let (api, _) = with_token.merge(without_token).split_for_parts();
    api.merge(routes::health::routes())
        .fallback(no_such_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(CatchPanicLayer::custom(guard::after_panic))
        .layer(from_fn(guard::limit_time))
        .layer(map_response(no_store))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(guard::span)
                .on_request(DefaultOnRequest::new().level(Level::TRACE))
                .on_response(DefaultOnResponse::new().level(Level::DEBUG))
                .on_failure(DefaultOnFailure::new().level(Level::WARN)),
        )
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        .with_state(backend)
}

async fn no_such_route(uri: http::Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    Problem::new(Code::NoSuchRoute, format!("there is no path {path}; GET /v1/openapi.json lists them"))
}

async fn method_not_allowed(method: http::Method, uri: http::Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    Problem::new(
        Code::MethodNotAllowed,
        format!("{path} does not take {method}; GET /v1/openapi.json lists what it takes"),
    )
}

/// Answers hold passwords and what is true only now.
async fn no_store(mut answer: Response) -> Response {
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
