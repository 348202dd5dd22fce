//! Changes of leader that are asked for: what stands in their way, what is scheduled, what was forced.

use super::world::{member_name, member_ref};
use super::{FindingView, MemberRef, World};
use crate::backend::{FailoverChecked, SwitchoverChecked};
use pgstead_types::record::{ClusterRecord, ForcedEpoch};
use pgstead_types::{Epoch, MemberId, OperationId, Severity};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a switchover would be now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SwitchoverCheckView {
    /// Nothing blocks it.
    pub clear: bool,
    /// What blocks it are warnings only, which `overrule` passes over.
    pub overrulable: bool,
    pub from: Option<MemberRef>,
    pub to: Option<MemberRef>,
    /// How far the target is behind.
    pub lag_bytes: Option<u64>,
    /// Everything at once. An error blocks, a warning blocks unless it is overruled, the rest does not.
    pub findings: Vec<FindingView>,
}

impl SwitchoverCheckView {
    pub fn new(world: &World<'_>, cluster: &ClusterRecord, checked: &SwitchoverChecked) -> Self {
        let gravest = checked.findings.iter().map(|finding| finding.severity).max();
        let reference = |id: Option<MemberId>| id.and_then(|id| cluster.members.get(&id)).map(member_ref);
        Self {
            clear: gravest.is_none_or(|gravest| gravest < Severity::Warning),
            overrulable: gravest == Some(Severity::Warning),
            from: reference(checked.from),
            to: reference(checked.to),
            lag_bytes: checked.lag.map(|lag| lag.0),
            findings: checked.findings.iter().map(|finding| FindingView::new(world, finding)).collect(),
        }
    }
}

/// What a forced failover would lose, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailoverCheckView {
    /// It may be done, if the loss is accepted.
    pub allowed: bool,
    pub to: String,
    /// The epoch that it would open.
    #[schema(value_type = u64)]
    pub epoch: Epoch,
    /// Members that do not answer and may hold what was acknowledged.
    pub missing: Vec<String>,
    /// How far any log of the cluster was ever seen to reach.
    pub known_end: Option<String>,
    /// How far the log of `to` reaches.
    pub reaches: Option<String>,
    /// Bytes of log between the two; `null` when nobody can know.
    pub gap_bytes: Option<u64>,
    pub members: Vec<FailoverMemberView>,
    /// Why it is refused.
    pub findings: Vec<FindingView>,
}

/// One member before a forced failover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailoverMemberView {
    pub name: String,
    /// Its node answers, and its data is complete.
    pub here: bool,
    /// How far its log reaches by its last report.
    pub reaches: Option<String>,
}

impl FailoverCheckView {
    pub fn new(world: &World<'_>, cluster: &ClusterRecord, to: MemberId, checked: &FailoverChecked) -> Self {
        let member = |(id, here, reaches): &(MemberId, bool, Option<pgstead_types::Position>)| FailoverMemberView {
            name: member_name(cluster, *id),
            here: *here,
            reaches: reaches.map(|at| at.to_string()),
        };
        Self {
            allowed: checked.refused.is_empty(),
            to: member_name(cluster, to),
            epoch: checked.epoch,
            missing: checked.loss.missing.iter().map(|id| member_name(cluster, *id)).collect(),
            known_end: checked.loss.known_end.map(|at| at.to_string()),
            reaches: checked.loss.best.map(|at| at.to_string()),
            gap_bytes: checked.loss.bytes.map(|bytes| bytes.0),
            members: checked.members.iter().map(member).collect(),
            findings: checked.refused.iter().map(|finding| FindingView::new(world, finding)).collect(),
        }
    }
}

/// A switchover that begins later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScheduledView {
    #[schema(value_type = String, format = "uuid")]
    pub operation: OperationId,
    /// The closest standby at that time if `null`.
    pub to: Option<String>,
    pub not_before: String,
    /// From here on it is missed.
    pub not_after: String,
}

impl ScheduledView {
    pub(super) fn of(cluster: &ClusterRecord) -> Option<Self> {
        cluster.planned.scheduled.as_ref().map(|scheduled| Self {
            operation: scheduled.operation,
            to: scheduled.to.map(|to| member_name(cluster, to)),
            not_before: scheduled.not_before.to_string(),
            not_after: scheduled.not_after.to_string(),
        })
    }
}

/// A change of leader that a person has forced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForcedView {
    #[schema(value_type = u64)]
    pub epoch: Epoch,
    pub at: String,
    /// Who accepted the loss.
    pub by: String,
    pub to: String,
    /// Members that were away.
    pub missing: Vec<String>,
    /// How far any log was known to reach.
    pub known_end: Option<String>,
    /// How far the log of `to` reached.
    pub reached: Option<String>,
    pub gap_bytes: Option<u64>,
    /// Members whose data was declared lost. Empty when enough promised after all: then nothing was lost.
    pub retired: Vec<String>,
}

impl ForcedView {
    pub(super) fn new(cluster: &ClusterRecord, forced: &ForcedEpoch) -> Self {
        Self {
            epoch: forced.epoch,
            at: forced.at.to_string(),
            by: forced.by.clone(),
            to: member_name(cluster, forced.to),
            missing: forced.loss.missing.iter().map(|id| member_name(cluster, *id)).collect(),
            known_end: forced.loss.known_end.map(|at| at.to_string()),
            reached: forced.loss.best.map(|at| at.to_string()),
            gap_bytes: forced.loss.bytes.map(|bytes| bytes.0),
            retired: forced.retired.iter().map(|life| member_name(cluster, life.member)).collect(),
        }
    }
}
