//! `/v1/tokens`: join tokens. Only their hashes are kept, so one is shown once.

use crate::extract::{OptionalBody, parse_duration};
use crate::problem::{Code, Problem};
use crate::router::App;
use crate::view::TokenView;
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

const TTL_DEFAULT: Duration = Duration::from_secs(3600);
/// A token that lies around is a way in; a week spans a rollout.
const TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(create))
}

/// What to make.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// How long it can be used, such as `30m` or `24h`: up to 7 days, 1 hour if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

/// Makes a token with which one host may join.
#[utoipa::path(post, path = "/v1/tokens", tag = "nodes", operation_id = "createToken", request_body = Option<NewToken>, responses(
    (status = 201, body = TokenView),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn create(
    State(app): State<App>,
    OptionalBody(asked): OptionalBody<NewToken>,
) -> Result<(StatusCode, Json<TokenView>), Problem> {
    let ttl = match asked.ttl.as_deref() {
        None => TTL_DEFAULT,
        Some(text) => parse_duration(text).map_err(|why| Problem::new(Code::Invalid, format!("ttl: {why}")))?,
    };
    if ttl.is_zero() || ttl > TTL_MAX {
        return Err(Problem::new(Code::Invalid, "ttl is out of range; expected more than 0 and at most 7 days (168h)"));
    }
    let made = app.create_join_token(ttl).await?;
    let token = made.token.expose().to_string();
    Ok((StatusCode::CREATED, Json(TokenView { id: made.id, token, expires_at: made.expires_at.to_string() })))
}
