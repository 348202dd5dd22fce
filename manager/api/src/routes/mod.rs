//! One file per resource. Each offers `routes()`; `router` decides what stands before them.

pub mod clusters;
pub mod connection;
pub mod events;
pub mod health;
pub mod join;
pub mod leaders;
pub mod members;
pub mod moves;
pub mod nodes;
pub mod operations;
pub mod placement;
pub mod rollback;
pub mod snapshots;
pub mod tokens;
pub mod volumes;

use crate::backend::{Accepted, Backend, Observations};
use crate::view::{AcceptedView, World};
use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use pgstead_types::NodeId;
use pgstead_types::record::Record;
use std::sync::Arc;

/// One reading of the world, kept for as long as answers are made from it.
struct Look {
    record: Arc<Record>,
    observed: Option<Observations>,
    answering: NodeId,
    controller: Option<NodeId>,
}

impl Look {
    async fn take(backend: &dyn Backend) -> Self {
        let observed = backend.observed().await;
        // After the observations: they never name what this record does not know yet.
        Self { record: backend.record(), observed, answering: backend.node(), controller: backend.controller() }
    }
    fn world(&self) -> World<'_> {
        World {
            record: &self.record,
            observed: self.observed.as_ref(),
            answering: self.answering,
            controller: self.controller,
        }
    }
}

/// 202 with the place to wait at.
fn accepted(accepted: Accepted) -> Response {
    let body = AcceptedView { operation: accepted.operation, cluster: accepted.cluster };
    let location = format!("/v1/operations/{}", accepted.operation);
    (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(body)).into_response()
}
