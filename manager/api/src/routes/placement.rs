//! `/v1/placement` and `/v1/clusters/{cluster}/placement`: where members would go now, and why not elsewhere.

use crate::backend::PlacementAsked;
use crate::extract::{Asked, Params, find_cluster};
use crate::problem::{Code, Problem};
use crate::router::App;
use crate::view::PlacementView;
use axum::Json;
use axum::extract::State;
use pgstead_types::placement::PlacementWeights;
use pgstead_types::spec::ClusterSpec;
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(of_new)).routes(routes!(of_cluster))
}

/// What a new cluster would ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PlacementParams {
    /// Members in all: 1 to 7; 3 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<u8>,
    /// In these regions only, with commas between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regions: Option<String>,
    /// In so many zones at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zones_min: Option<u8>,
    /// In pools of this class; in those of the class of each node's first one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// Some of `latency=10,free=30,health=20,idle=40`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub placement_weights: Option<PlacementWeights>,
}

impl PlacementParams {
    fn spec(&self) -> ClusterSpec {
        let mut spec = ClusterSpec::named("new");
        spec.members = self.members.unwrap_or(spec.members);
        spec.regions = self.regions.iter().flat_map(|all| all.split(',')).map(|one| one.trim().to_string()).collect();
        spec.zones_min = self.zones_min;
        spec.storage_class.clone_from(&self.storage_class);
        spec.placement_weights = self.placement_weights.unwrap_or_default();
        spec
    }
}

/// Where the members of a new cluster would go now. Every node is told of, with the first hard rule that speaks against it, or its score
/// and what that is made of. The same decision places them.
#[utoipa::path(get, path = "/v1/placement", tag = "placement", operation_id = "explainPlacement", params(PlacementParams), responses(
    (status = 200, body = PlacementView),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn of_new(
    State(app): State<App>,
    Params(params): Params<PlacementParams>,
) -> Result<Json<PlacementView>, Problem> {
    let spec = params.spec();
    spec.check().map_err(|error| Problem::new(Code::Invalid, error.to_string()))?;
    let found = app.explain_placement(PlacementAsked::New(Box::new(spec.clone()))).await?;
    Ok(Json(PlacementView::new(&app.record(), None, &spec, &found)))
}

/// Where one more member of a cluster would go now, and how the members that it has are placed.
#[utoipa::path(get, path = "/v1/clusters/{cluster}/placement", tag = "placement", operation_id = "explainClusterPlacement",
    params(("cluster" = String, Path, description = "Name or id")), responses(
    (status = 200, body = PlacementView),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn of_cluster(State(app): State<App>, Asked(asked): Asked) -> Result<Json<PlacementView>, Problem> {
    let cluster = find_cluster(&app.record(), &asked)?.id;
    let found = app.explain_placement(PlacementAsked::More(cluster)).await?;
    let record = app.record();
    let held = find_cluster(&record, &cluster.to_string())?;
    Ok(Json(PlacementView::new(&record, Some(held), &held.spec, &found)))
}
