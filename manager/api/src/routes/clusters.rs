//! `/v1/clusters`: making, seeing and changing clusters.

use super::{Look, accepted};
use crate::backend::{ForkAsked, ForkOf, Rejected};
use crate::extract::{Asked, Body, IfMatch, Params, find_cluster, find_member};
use crate::page::{Page, PageParams, cut};
use crate::problem::{Code, Problem};
use crate::router::App;
use crate::view::{AcceptedView, ClusterSummary, ClusterView, IoLimitsSchema, SpecSchema};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;
use pgstead_types::io_limits::IoLimits;
use pgstead_types::placement::PlacementWeights;
use pgstead_types::record::{ClusterRecord, Refusal};
use pgstead_types::replacement::ReplaceAfter;
use pgstead_types::schedule::SnapshotSchedule;
use pgstead_types::size::VolumeSize;
use pgstead_types::slots::WalBudget;
use pgstead_types::spec::{Cascade, ClusterSpec, Durability};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Changes that somebody else makes meanwhile are waited out so often.
const TRIES: usize = 10;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, delete, update))
        .routes(routes!(restart))
        .routes(routes!(fork))
        .merge(super::leaders::routes())
}

/// All clusters.
#[utoipa::path(get, path = "/v1/clusters", tag = "clusters", operation_id = "listClusters", params(PageParams), responses(
    (status = 200, body = Page<ClusterSummary>),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
))]
async fn list(State(app): State<App>, Params(page): Params<PageParams>) -> Result<Json<Page<ClusterSummary>>, Problem> {
    let look = Look::take(&*app).await;
    let all = look.record.clusters.iter().map(|(id, cluster)| (*id, cluster));
    cut(&page, all, |cluster| ClusterSummary::new(&look.world(), cluster)).map(Json)
}

/// Makes a cluster. The answer names the operation that ends when the cluster serves.
#[utoipa::path(post, path = "/v1/clusters", tag = "clusters", operation_id = "createCluster", request_body = SpecSchema, responses(
    (status = 202, body = AcceptedView, headers(("location" = String, description = "The operation"))),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn create(State(app): State<App>, Body(spec): Body<ClusterSpec>) -> Result<Response, Problem> {
    spec.check().map_err(|error| Problem::new(Code::Invalid, error.to_string()))?;
    Ok(accepted(app.create_cluster(spec).await?))
}

/// One cluster, by name or id, with why it is as it is.
#[utoipa::path(get, path = "/v1/clusters/{cluster}", tag = "clusters", operation_id = "getCluster",
    params(("cluster" = String, Path, description = "Name or id")), responses(
    (status = 200, body = ClusterView, headers(("etag" = String, description = "The revision, for If-Match"))),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
))]
async fn show(State(app): State<App>, Asked(asked): Asked) -> Result<Response, Problem> {
    let look = Look::take(&*app).await;
    let view = ClusterView::new(&look.world(), find_cluster(&look.record, &asked)?);
    let etag = format!("\"{}\"", view.revision);
    Ok(([(header::ETAG, etag)], Json(view)).into_response())
}

/// Deletes a cluster with all its data.
#[utoipa::path(delete, path = "/v1/clusters/{cluster}", tag = "clusters", operation_id = "deleteCluster",
    params(
        ("cluster" = String, Path, description = "Name or id"),
        ("if-match" = Option<String>, Header, description = "Only if the cluster is still at this revision"),
    ), responses(
    (status = 202, body = AcceptedView, headers(("location" = String, description = "The operation"))),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn delete(State(app): State<App>, Asked(asked): Asked, IfMatch(revision): IfMatch) -> Result<Response, Problem> {
    let cluster = {
        let record = app.record();
        at_revision(find_cluster(&record, &asked)?, revision)?.id
    };
    Ok(accepted(app.delete_cluster(cluster, revision).await?))
}

/// What is to change; the rest stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecChange {
    /// Members in all, the leader counted. New ones are placed on nodes of their own; of those that are too many the least
    /// useful leave, never the leader, and their data is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<u8>,
    /// Standbys that must have a commit on disk before it is acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync_replicas: Option<u8>,
    /// `strict`, `available` or `asynchronous`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub durability: Option<Durability>,
    /// `auto`, or a size such as `8GB`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub slot_wal_budget: Option<WalBudget>,
    /// `none` or `zone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub cascade: Option<Cascade>,
    /// `true` takes effect on each member when it is restarted. With `false` consumers are locked out at once; slots that are left
    /// stay, and `wal_level` with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logical_replication: Option<bool>,
    /// How much every member's volume is to hold, such as `200GB`; what is larger already stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub volume_size: Option<VolumeSize>,
    /// Up to where a volume that has become nearly full grows by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub volume_limit: Option<VolumeSize>,
    /// `off`, or such as `every 6h keep 7d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub snapshots: Option<SnapshotSchedule>,
    /// `off`, or such as `10m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub replace_after: Option<ReplaceAfter>,
    /// New members go to these regions only; to any if empty. Those that are elsewhere stay until they are moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regions: Option<BTreeSet<String>>,
    /// New members go where so many zones are reached; 1 asks for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zones_min: Option<u8>,
    /// For new members: those that are there stay where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// Some of `latency=10,free=30,health=20,idle=40`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub placement_weights: Option<PlacementWeights>,
    /// All limits that there are to be from now on; `{}` takes them away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<IoLimitsSchema>)]
    pub io_limits: Option<IoLimits>,
}

impl SpecChange {
    pub fn apply_to(&self, mut spec: ClusterSpec) -> ClusterSpec {
        spec.members = self.members.unwrap_or(spec.members);
        spec.durability = self.durability.unwrap_or(spec.durability);
        spec.cascade = self.cascade.unwrap_or(spec.cascade);
        // Where no standby is to have a commit, how many it was is of no meaning any more.
        let before = spec.sync_replicas.filter(|_| spec.durability != Durability::Asynchronous);
        spec.sync_replicas = self.sync_replicas.or(before);
        spec.slot_wal_budget = self.slot_wal_budget.unwrap_or(spec.slot_wal_budget);
        spec.logical_replication = self.logical_replication.unwrap_or(spec.logical_replication);
        spec.volume_size = self.volume_size.or(spec.volume_size);
        spec.volume_limit = self.volume_limit.or(spec.volume_limit);
        spec.snapshots = self.snapshots.unwrap_or(spec.snapshots);
        spec.replace_after = self.replace_after.unwrap_or(spec.replace_after);
        spec.regions = self.regions.clone().unwrap_or(spec.regions);
        spec.zones_min = self.zones_min.or(spec.zones_min);
        spec.storage_class = self.storage_class.clone().or(spec.storage_class);
        spec.placement_weights = self.placement_weights.unwrap_or(spec.placement_weights);
        spec.io_limits = self.io_limits.unwrap_or(spec.io_limits);
        spec
    }
}

/// Changes the spec of a running cluster. The operation ends when the cluster is what it says.
#[utoipa::path(patch, path = "/v1/clusters/{cluster}", tag = "clusters", operation_id = "updateCluster",
    params(
        ("cluster" = String, Path, description = "Name or id"),
        ("if-match" = Option<String>, Header, description = "Only if the cluster is still at this revision"),
    ),
    request_body = SpecChange, responses(
    (status = 202, body = AcceptedView, headers(("location" = String, description = "The operation"))),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn update(
    State(app): State<App>,
    Asked(asked): Asked,
    IfMatch(revision): IfMatch,
    Body(change): Body<SpecChange>,
) -> Result<Response, Problem> {
    for _ in 0..TRIES {
        let (cluster, spec, read_at) = {
            let record = app.record();
            let cluster = at_revision(find_cluster(&record, &asked)?, revision)?;
            (cluster.id, change.apply_to(cluster.spec.clone()), cluster.revision)
        };
        spec.check().map_err(|error| Problem::new(Code::Invalid, error.to_string()))?;
        // At the revision that it was made from: what somebody else has changed meanwhile stays changed.
        match app.update_cluster(cluster, spec, Some(read_at)).await {
            Err(Rejected::Refused(Refusal::StaleRevision { .. })) if revision.is_none() => {}
            answer => return Ok(accepted(answer?)),
        }
    }
    let why = "the cluster changed each time while this was being recorded; nothing was done, ask again";
    Err(Problem::new(Code::Conflict, why))
}

/// A cluster to be made of another one's data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkCluster {
    /// Of the new cluster.
    pub name: String,
    /// Members in all; 1 if absent. The first one is made where the data is, the others are copies of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<u8>,
    /// Of this member as it is now, by name or id; of the leader if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// Of this snapshot, by id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Roles keep the passwords that they have in the source. Without it only the owner can log in, with a new one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_passwords: bool,
}

/// Makes a cluster that begins with the data of this one, as it is now or was when a snapshot was taken, and has nothing to do with it
/// from then on. It has the source's database, owner and settings, and passwords, certificates and timelines of its own. The answer
/// names the operation that ends when it serves.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/forks", tag = "clusters", operation_id = "forkCluster",
    params(("cluster" = String, Path, description = "The source, by name or id")),
    request_body = ForkCluster, responses(
    (status = 202, body = AcceptedView, headers(("location" = String, description = "The operation"))),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn fork(State(app): State<App>, Asked(asked): Asked, Body(body): Body<ForkCluster>) -> Result<Response, Problem> {
    let look = Look::take(&*app).await;
    let source = find_cluster(&look.record, &asked)?;
    let of = match (&body.member, &body.snapshot) {
        (Some(_), Some(_)) => {
            let why = "member and snapshot both say what the fork is made of; leave one out";
            return Err(Problem::new(Code::Invalid, why));
        }
        (None, Some(id)) => {
            let (node, snapshot) = super::snapshots::find(&look, id)?;
            if snapshot.cluster != source.id {
                let why = format!("snapshot {id} is of another cluster than {}", source.spec.name);
                return Err(Problem::new(Code::Invalid, why));
            }
            ForkOf::Snapshot(node, snapshot)
        }
        (Some(name), None) => ForkOf::Member(find_member(source, name)?.id),
        (None, None) => ForkOf::Member(source.leadership.leader().ok_or_else(|| {
            Problem::new(Code::Conflict, format!("{} has no leader now; name a member", source.spec.name))
        })?),
    };
    let ForkCluster { name, members, keep_passwords, .. } = body;
    let asked = ForkAsked { name, members: members.unwrap_or(1), of, keeps_passwords: keep_passwords };
    Ok(accepted(app.fork_cluster(source.id, asked).await?))
}

/// Restarts every member, standbys first, one at a time, the leader last by a switchover.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/restart", tag = "clusters", operation_id = "restartCluster",
    params(
        ("cluster" = String, Path, description = "Name or id"),
        ("if-match" = Option<String>, Header, description = "Only if the cluster is still at this revision"),
    ), responses(
    (status = 202, body = AcceptedView, headers(("location" = String, description = "The operation"))),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn restart(State(app): State<App>, Asked(asked): Asked, IfMatch(revision): IfMatch) -> Result<Response, Problem> {
    let cluster = {
        let record = app.record();
        at_revision(find_cluster(&record, &asked)?, revision)?.id
    };
    Ok(accepted(app.restart_cluster(cluster, revision).await?))
}

/// Refuses early what the record would refuse; it checks again when it applies the change.
pub(super) fn at_revision(cluster: &ClusterRecord, revision: Option<u64>) -> Result<&ClusterRecord, Problem> {
    match revision {
        Some(expected) if expected != cluster.revision => {
            let refusal = Refusal::StaleRevision { expected, found: cluster.revision };
            Err(Rejected::from(refusal).into())
        }
        _ => Ok(cluster),
    }
}
