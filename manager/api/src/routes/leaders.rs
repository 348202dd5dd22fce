//! `/v1/clusters/{cluster}/switchover` and `/failover`: changing the leader, now or later, and what stands in its way.

use super::clusters::at_revision;
use super::{Look, accepted};
use crate::backend::SwitchoverAsked;
use crate::extract::{Asked, Body, IfMatch, OptionalBody, Params, find_cluster, find_member};
use crate::problem::{Code, Problem};
use crate::router::App;
use crate::view::{AcceptedView, FailoverCheckView, SwitchoverCheckView};
use axum::Json;
use axum::extract::State;
use axum::response::Response;
use pgstead_types::record::{ASKED_BY_MAX, ClusterRecord, Leadership};
use pgstead_types::{MemberId, WallTime};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// A switchover at a time may begin up to so much later; after that it is missed. Long enough for a change of controller and
/// a standby that catches up, short enough that nobody is surprised.
const LATE_MAX: Duration = Duration::from_secs(300);
/// A time farther off is a slip.
const AHEAD_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(switchover, cancel))
        .routes(routes!(check_switchover))
        .routes(routes!(failover))
        .routes(routes!(check_failover))
}

/// Whither and when.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SwitchoverBody {
    /// The member to lead next, by name or id; the closest standby if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Begin at this time, in RFC 3339 with an offset. It is given up when it could not begin within 5 minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Begin in the next maintenance window of the spec, and not outside of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_window: bool,
    /// Back to the leader before the last switchover.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undo: bool,
    /// Go on in spite of warnings, such as long transactions that it will end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overrule: bool,
}

/// What to check.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CheckParams {
    /// The member to lead next, by name or id; the closest standby if absent.
    pub to: Option<String>,
    /// Back to the leader before the last switchover.
    #[serde(default)]
    pub undo: bool,
}

fn target(cluster: &ClusterRecord, to: Option<&str>, undo: bool) -> Result<Option<MemberId>, Problem> {
    match (to, undo) {
        (Some(_), true) => Err(Problem::new(Code::Invalid, "`to` and `undo` name two targets; expected one of them")),
        (Some(to), false) => Ok(Some(find_member(cluster, to)?.id)),
        (None, true) => undone(cluster).map(Some),
        (None, false) => Ok(None),
    }
}

/// The leader before the last switchover, while that one's target leads.
fn undone(cluster: &ClusterRecord) -> Result<MemberId, Problem> {
    let name = |id: MemberId| cluster.members.get(&id).map_or_else(|| id.to_string(), |member| member.name.clone());
    let Some(last) = cluster.planned.last else {
        return Err(Problem::new(Code::Conflict, "no switchover of this cluster was done, so there is none to undo"));
    };
    match cluster.leadership {
        Leadership::Confirmed { leader } if leader == last.to && cluster.members.contains_key(&last.from) => {
            Ok(last.from)
        }
        Leadership::Confirmed { leader } => Err(Problem::new(
            Code::Conflict,
            format!(
                "the last switchover went from {} to {}, and {} has come to lead since; name the member to lead with `to`",
                name(last.from),
                name(last.to),
                name(leader)
            ),
        )),
        _ => Err(Problem::new(Code::Conflict, "the cluster has no confirmed leader now; wait for it")),
    }
}

/// From when and until when.
fn when(
    cluster: &ClusterRecord,
    body: &SwitchoverBody,
    now: WallTime,
) -> Result<Option<(WallTime, WallTime)>, Problem> {
    let invalid = |why: String| Problem::new(Code::Invalid, why);
    match (&body.at, body.in_window) {
        (Some(_), true) => Err(invalid("`at` and `in_window` name two times; expected one of them".into())),
        (Some(at), false) => {
            let at = WallTime::parse(at).map_err(|error| invalid(format!("`at`: {error}")))?;
            if at < now {
                return Err(invalid(format!("{at} is over, now it is {now}; leave `at` out to begin at once")));
            }
            if at > now.plus(AHEAD_MAX) {
                return Err(invalid(format!("{at} is more than a year away; expected an earlier time")));
            }
            Ok(Some((at, at.plus(LATE_MAX))))
        }
        (None, true) => match cluster.spec.window() {
            Ok(Some(window)) => Ok(Some(window.next(now))),
            _ => Err(Problem::new(
                Code::Conflict,
                "the cluster's spec has no maintenance_window; name a time with `at` instead",
            )),
        },
        (None, false) => Ok(None),
    }
}

/// Changes the leader in a planned way: clients wait, nothing is lost, the old leader becomes a standby.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/switchover", tag = "clusters", operation_id = "switchover",
    params(
        ("cluster" = String, Path, description = "Name or id"),
        ("if-match" = Option<String>, Header, description = "Only if the cluster is still at this revision"),
    ),
    request_body = Option<SwitchoverBody>, responses(
    (status = 202, body = AcceptedView, headers(("location" = String, description = "The operation"))),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn switchover(
    State(app): State<App>,
    Asked(asked): Asked,
    IfMatch(revision): IfMatch,
    OptionalBody(body): OptionalBody<SwitchoverBody>,
) -> Result<Response, Problem> {
    let (cluster, asked) = {
        let record = app.record();
        let cluster = at_revision(find_cluster(&record, &asked)?, revision)?;
        let to = target(cluster, body.to.as_deref(), body.undo)?;
        let when = when(cluster, &body, WallTime::now())?;
        (cluster.id, SwitchoverAsked { to, when, overrule: body.overrule })
    };
    Ok(accepted(app.switchover(cluster, asked, revision).await?))
}

/// Takes back a switchover that was asked for later.
#[utoipa::path(delete, path = "/v1/clusters/{cluster}/switchover", tag = "clusters", operation_id = "cancelSwitchover",
    params(
        ("cluster" = String, Path, description = "Name or id"),
        ("if-match" = Option<String>, Header, description = "Only if the cluster is still at this revision"),
    ), responses(
    (status = 202, body = AcceptedView, headers(("location" = String, description = "The operation"))),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn cancel(State(app): State<App>, Asked(asked): Asked, IfMatch(revision): IfMatch) -> Result<Response, Problem> {
    let cluster = {
        let record = app.record();
        at_revision(find_cluster(&record, &asked)?, revision)?.id
    };
    Ok(accepted(app.cancel_switchover(cluster, revision).await?))
}

/// What stands in the way of a switchover now: everything at once. Changes nothing.
#[utoipa::path(get, path = "/v1/clusters/{cluster}/switchover/check", tag = "clusters", operation_id = "checkSwitchover",
    params(("cluster" = String, Path, description = "Name or id"), CheckParams), responses(
    (status = 200, body = SwitchoverCheckView),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn check_switchover(
    State(app): State<App>,
    Asked(asked): Asked,
    Params(params): Params<CheckParams>,
) -> Result<Json<SwitchoverCheckView>, Problem> {
    let (cluster, to) = {
        let record = app.record();
        let cluster = find_cluster(&record, &asked)?;
        (cluster.id, target(cluster, params.to.as_deref(), params.undo)?)
    };
    let checked = app.check_switchover(cluster, to).await?;
    let look = Look::take(&*app).await;
    Ok(Json(SwitchoverCheckView::new(&look.world(), find_cluster(&look.record, &cluster.to_string())?, &checked)))
}

/// A person accepts the loss of what only absent members may have.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailoverBody {
    /// The member to lead, by name or id.
    pub to: String,
    /// Must be true: commits that were acknowledged may be lost.
    pub accept_data_loss: bool,
    /// Who says so, for the record; at most 100 bytes.
    pub by: String,
}

/// Elects a leader although too few members can promise that nothing is lost. Refused while an ordinary election could
/// succeed. Kept in the cluster's history for ever.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/failover", tag = "clusters", operation_id = "forceFailover",
    params(
        ("cluster" = String, Path, description = "Name or id"),
        ("if-match" = Option<String>, Header, description = "Only if the cluster is still at this revision"),
    ),
    request_body = FailoverBody, responses(
    (status = 202, body = AcceptedView, headers(("location" = String, description = "The operation"))),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn failover(
    State(app): State<App>,
    Asked(asked): Asked,
    IfMatch(revision): IfMatch,
    Body(body): Body<FailoverBody>,
) -> Result<Response, Problem> {
    let (cluster, to) = {
        let record = app.record();
        let cluster = at_revision(find_cluster(&record, &asked)?, revision)?;
        (cluster.id, find_member(cluster, &body.to)?.id)
    };
    if !body.accept_data_loss {
        let why = "a failover by hand may lose acknowledged commits; GET failover/check says how many, and \
                   accept_data_loss must be true";
        return Err(Problem::new(Code::Invalid, why));
    }
    let by = body.by.trim();
    if by.is_empty() || by.len() > ASKED_BY_MAX || by.chars().any(char::is_control) {
        let why = format!("`by` must say who accepts the loss, in 1 to {ASKED_BY_MAX} bytes on one line");
        return Err(Problem::new(Code::Invalid, why));
    }
    Ok(accepted(app.force_failover(cluster, to, by.to_string(), revision).await?))
}

/// The member that would be forced to lead.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FailoverParams {
    /// By name or id.
    pub to: String,
}

/// What a forced failover would lose, as far as is known. Changes nothing.
#[utoipa::path(get, path = "/v1/clusters/{cluster}/failover/check", tag = "clusters", operation_id = "checkFailover",
    params(("cluster" = String, Path, description = "Name or id"), FailoverParams), responses(
    (status = 200, body = FailoverCheckView),
    (status = "4XX", body = Problem, content_type = "application/problem+json"),
    (status = "5XX", body = Problem, content_type = "application/problem+json"),
))]
async fn check_failover(
    State(app): State<App>,
    Asked(asked): Asked,
    Params(params): Params<FailoverParams>,
) -> Result<Json<FailoverCheckView>, Problem> {
    let (cluster, to) = {
        let record = app.record();
        let cluster = find_cluster(&record, &asked)?;
        (cluster.id, find_member(cluster, &params.to)?.id)
    };
    let checked = app.check_failover(cluster, to).await?;
    let look = Look::take(&*app).await;
    Ok(Json(FailoverCheckView::new(&look.world(), find_cluster(&look.record, &cluster.to_string())?, to, &checked)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_types::record::PastSwitchover;

    fn cluster() -> ClusterRecord {
        crate::fake::record().clusters[&crate::fake::APP].clone()
    }

    #[test]
    fn a_time_that_is_over_or_far_off_is_refused() {
        let now = WallTime::parse("2026-11-26T12:00:00Z").unwrap();
        let at = |at: &str| when(&cluster(), &SwitchoverBody { at: Some(at.into()), ..Default::default() }, now);
        assert!(at("2026-11-26T11:59:59Z").is_err() && at("2028-01-01T00:00:00Z").is_err() && at("tonight").is_err());
        let (from, to) = at("2026-11-26T13:00:00+01:00").unwrap().unwrap();
        assert_eq!((from, to), (now, now.plus(LATE_MAX)));
    }

    #[test]
    fn the_window_is_that_of_the_spec() {
        let now = WallTime::parse("2026-11-26T12:00:00Z").unwrap();
        let mut cluster = cluster();
        let body = SwitchoverBody { in_window: true, ..Default::default() };
        assert!(when(&cluster, &body, now).is_err(), "it has none");
        cluster.spec.maintenance_window = Some("Sun 02:00-04:00".into());
        let (from, _) = when(&cluster, &body, now).unwrap().unwrap();
        assert_eq!(from, WallTime::parse("2026-11-29T02:00:00Z").unwrap());
    }

    #[test]
    fn only_the_last_switchover_is_undone_and_only_while_its_target_leads() {
        let mut cluster = cluster();
        let leader = cluster.leadership.leader().unwrap();
        let other = cluster.members.keys().copied().find(|id| *id != leader).unwrap();
        assert!(undone(&cluster).is_err(), "none was done");
        cluster.planned.last = Some(PastSwitchover { from: other, to: leader, epoch: cluster.epoch });
        assert_eq!(undone(&cluster).unwrap(), other);
        cluster.planned.last = Some(PastSwitchover { from: leader, to: other, epoch: cluster.epoch });
        assert!(undone(&cluster).is_err(), "another has come to lead since");
    }
}
