//! What every request passes: the token, the time limit, the log line, and what a panic becomes.

use crate::backend::Backend;
use crate::problem::{Code, Problem};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header;
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

/// Longer than the longest wait that a request may ask for (60 s) with a forward on top; shorter would cut long polls,
/// longer would let dead peers pile up.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(75);

/// Lets only holders of the admin token through.
pub async fn require_token(State(backend): State<Arc<dyn Backend>>, request: Request, next: Next) -> Response {
    match bearer(&request) {
        Some(token) if backend.authenticate(token) => next.run(request).await,
        Some(_) => Problem::new(
            Code::Unauthorized,
            "the token is not this deployment's; expected the admin token that `pgstead init` printed: check the token \
             in your profile",
        )
        .into_response(),
        None => Problem::new(
            Code::Unauthorized,
            "the request has no token; expected the header authorization: Bearer <admin token>",
        )
        .into_response(),
    }
}

fn bearer(request: &Request) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token.trim())
}

/// Ends what takes too long, a body that never comes included.
pub async fn limit_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(answer) => answer,
        Err(_) => Problem::new(
            Code::OutcomeUnknown,
            format!(
                "the node did not answer within {} s; whether it was done is unknown: look at the present state before \
                 asking again",
                REQUEST_TIMEOUT.as_secs()
            ),
        )
        .into_response(),
    }
}

/// A panic ends one request, never the node.
pub fn after_panic(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no text");
    tracing::error!(panic = text, "a request panicked");
    Problem::new(
        Code::Internal,
        "the node failed to answer because of a defect; its log says where, under this request's x-request-id",
    )
    .into_response()
}

/// The span of a request. Neither headers nor the query go into it.
pub fn span(request: &http::Request<axum::body::Body>) -> tracing::Span {
    let id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or("-");
    tracing::info_span!("request", method = %request.method(), path = request.uri().path(), request_id = id)
}
