//! `/v1/clusters/{cluster}/rollback`: a cluster goes back to what it was at a snapshot; what it was until then is kept aside.

use super::{Look, accepted};
use crate::backend::RollBackAsked;
use crate::extract::{Asked, Body, find_cluster};
use crate::problem::{Code, Problem};
use crate::router::App;
use crate::view::AcceptedView;
use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(begin, cancel))
}

/// Where to go back to: one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollBackBody {
    /// This snapshot, by id: of the cluster, or of one that it has taken the place of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// What was kept aside by the last rollback.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undo: bool,
    /// Name of what the cluster is now, which is kept aside; one that is free if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_as: Option<String>,
}

/// Makes a cluster from the snapshot, and once it has all its members has it take this one's place: the name, the gateways' ports, the
/// passwords and certificates that clients know. This one is kept as it is then, under another name, and takes no clients; it goes when
/// it is deleted, and a rollback with `undo` exchanges the two again. The answer names the operation that ends when the place
/// is taken, a moment before clients are let in.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/rollback", tag = "clusters", operation_id = "rollBackCluster",
    params(("cluster" = String, Path, description = "Name or id")),
    request_body = RollBackBody, responses(
    (status = 202, body = AcceptedView, headers(("location" = String, description = "The operation"))),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn begin(
    State(app): State<App>,
    Asked(asked): Asked,
    Body(body): Body<RollBackBody>,
) -> Result<Response, Problem> {
    let look = Look::take(&*app).await;
    let cluster = find_cluster(&look.record, &asked)?;
    let to = match (&body.snapshot, body.undo) {
        (Some(id), false) => {
            let (node, snapshot) = super::snapshots::find(&look, id)?;
            let of_it = look.record.clusters.get(&snapshot.cluster).and_then(|held| held.aside);
            if snapshot.cluster != cluster.id && of_it.is_none_or(|aside| aside.to != cluster.id) {
                let why = format!("snapshot {id} is of another cluster than {}", cluster.spec.name);
                return Err(Problem::new(Code::Invalid, why));
            }
            RollBackAsked::To { node, snapshot, keep_as: body.keep_as }
        }
        (None, true) => RollBackAsked::Undo { keep_as: body.keep_as },
        _ => {
            let why = "expected either snapshot, which to go back to, or undo, which takes the last rollback back";
            return Err(Problem::new(Code::Invalid, why));
        }
    };
    Ok(accepted(app.roll_back(cluster.id, to).await?))
}

/// Takes a rollback back that has not been done yet. The cluster stays as it is, and what was made for it is deleted.
#[utoipa::path(delete, path = "/v1/clusters/{cluster}/rollback", tag = "clusters", operation_id = "cancelRollback",
    params(("cluster" = String, Path, description = "Name or id")), responses(
    (status = 202, body = AcceptedView, headers(("location" = String, description = "The operation"))),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn cancel(State(app): State<App>, Asked(asked): Asked) -> Result<Response, Problem> {
    let cluster = find_cluster(&app.record(), &asked)?.id;
    Ok(accepted(app.cancel_rollback(cluster).await?))
}
