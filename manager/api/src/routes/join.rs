//! `/v1/join`: how a host becomes a node. The join token in the body stands for the admin token.

use crate::backend::{JoinAnswer, JoinRequest};
use crate::extract::Body;
use crate::problem::{Code, Problem};
use crate::router::App;
use axum::Json;
use axum::extract::State;
use pgstead_types::spec::check_name;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(join))
}

/// Shows `JoinRequest` to readers.
#[derive(Serialize, ToSchema)]
#[schema(as = JoinRequest)]
struct JoinRequestSchema {
    token: String,
    name: String,
    host: String,
    port: u16,
    region: String,
    zone: String,
    postgres_majors: Vec<u16>,
    pools: Vec<String>,
    /// A PKCS #10 request; the key stays on the host.
    csr_pem: String,
}

/// Shows `JoinAnswer` to readers.
#[derive(Serialize, ToSchema)]
#[schema(as = JoinAnswer)]
struct JoinAnswerSchema {
    #[schema(format = "uuid")]
    node: String,
    #[schema(format = "uuid")]
    deployment: String,
    ca_pem: String,
    cert_pem: String,
    peers: Vec<PeerSchema>,
}

/// Another node's address.
#[derive(Serialize, ToSchema)]
#[schema(as = Peer)]
struct PeerSchema {
    #[schema(format = "uuid")]
    node: String,
    host: String,
    port: u16,
}

/// Admits a host as a node.
#[utoipa::path(post, path = "/v1/join", tag = "nodes", operation_id = "join", security(()), request_body = JoinRequestSchema, responses(
    (status = 200, body = JoinAnswerSchema),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn join(State(app): State<App>, Body(request): Body<JoinRequest>) -> Result<Json<JoinAnswer>, Problem> {
    let invalid = |why: String| Problem::new(Code::Invalid, why);
    check_name("node name", &request.name).map_err(|error| invalid(error.to_string()))?;
    if request.host.is_empty() || request.host.len() > 253 || request.port == 0 {
        return Err(invalid(
            "host or port is out of range; expected the host name or IP address at which other nodes reach this one, \
             and the daemon's port"
                .to_string(),
        ));
    }
    Ok(Json(app.join(request).await?))
}
