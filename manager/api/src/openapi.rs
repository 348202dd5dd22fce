//! The API's own description, OpenAPI 3.1, made from the routes. The repository holds a copy for readers and generators.

use crate::problem::Problem;
use crate::router::{App, controller_routes, local_routes};
use crate::routes;
use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "pgstead",
        description = "Postgres clusters on local disks. Any node answers. Errors are application/problem+json with a \
                       stable `code`. Lists come in pieces of `limit`, continued by `after`."
    ),
    components(schemas(Problem)),
    modifiers(&Token),
    security(("token" = []))
)]
struct Api;

struct Token;
impl Modify for Token {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The admin token that `pgstead init` printed"))
            .build();
        api.components.get_or_insert_default().add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// The description as an object.
pub fn description() -> utoipa::openapi::OpenApi {
    let all: OpenApiRouter<App> = OpenApiRouter::with_openapi(Api::openapi())
        .merge(controller_routes())
        .merge(local_routes())
        .merge(routes::join::routes());
    all.into_openapi()
}

/// The text of docs/openapi.json.
pub fn text() -> String {
    let mut text = serde_json::to_string_pretty(&description()).expect("a description is plain JSON");
    text.push('\n');
    text
}

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().route("/v1/openapi.json", axum::routing::get(serve))
}

async fn serve() -> Response {
    ([(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")], Json(description())).into_response()
}
