//! Takes a request to the controller, so that any node answers.
//!
//! A write that cannot get there is refused. A read falls back to this node's own record, which says so itself.

use crate::backend::{Backend, Rejected};
use crate::extract::{BODY_BYTES_MAX, too_large};
use crate::problem::{Code, Problem};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use pgstead_types::NodeId;
use std::sync::Arc;

/// Set on a forwarded request: whoever gets it answers or refuses, and never forwards again.
pub const FORWARDED: HeaderName = HeaderName::from_static("pgstead-forwarded");

pub async fn to_controller(State(backend): State<Arc<dyn Backend>>, request: Request, next: Next) -> Response {
    let controller = backend.controller();
    if controller == Some(backend.node()) {
        return next.run(request).await;
    }
    let reads = request.method().is_safe();
    if request.headers().contains_key(&FORWARDED) {
        // Two nodes that each take the other for the leader would pass it to and fro.
        return if reads {
            next.run(request).await
        } else {
            Problem::no_controller("the request was forwarded to a node that does not lead the Raft group")
                .into_response()
        };
    }
    let Some(controller) = controller else {
        return if reads {
            next.run(request).await
        } else {
            Problem::no_controller("the Raft group has no leader that this node knows of").into_response()
        };
    };
    let (parts, body) = request.into_parts();
    let bytes = match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => return too_large().into_response(),
        Err(_) => {
            return Problem::new(Code::Malformed, "the body ended early; expected as many bytes as announced")
                .into_response();
        }
    };
    let sent = http::Request::from_parts(parts.clone(), bytes.clone());
    match ask(&*backend, controller, sent).await {
        Ok(answer) if reads && answer.status().is_server_error() => {
            next.run(Request::from_parts(parts, Body::from(bytes))).await
        }
        Ok(answer) => answer.map(Body::from),
        Err(rejected) if reads => {
            tracing::debug!(node = %controller, error = %rejected, "answering from this node's own record");
            next.run(Request::from_parts(parts, Body::from(bytes))).await
        }
        Err(rejected) => Problem::from(rejected).into_response(),
    }
}

/// One request to another node's API.
pub async fn ask(
    backend: &dyn Backend,
    to: NodeId,
    mut request: http::Request<Bytes>,
) -> Result<http::Response<Bytes>, Rejected> {
    // What this node's router noted about the path is not the other's.
    request.extensions_mut().clear();
    let from = backend.node().to_string();
    request.headers_mut().insert(FORWARDED, HeaderValue::from_str(&from).expect("a UUID is plain text"));
    // What belongs to one connection only is set anew by the next.
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH, header::HOST, header::UPGRADE] {
        request.headers_mut().remove(name);
    }
    let mut answer = backend.forward(to, request).await?;
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH] {
        answer.headers_mut().remove(name);
    }
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Rejected::Unknown { why: "the other node answered with another protocol".into() });
    }
    Ok(answer)
}
