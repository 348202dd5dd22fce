//! Findings with names instead of ids.

use super::World;
use pgstead_types::record::ClusterRecord;
use pgstead_types::{Finding, Severity};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An observed fact that explains what is done or not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FindingView {
    /// `info`, `warning` or `error`.
    #[schema(value_type = String, example = "warning")]
    pub severity: Severity,
    /// Stable, in snake case.
    pub code: String,
    /// What is wrong, what was expected, what happens next.
    pub message: String,
    pub cluster: Option<String>,
    pub member: Option<String>,
    pub node: Option<String>,
}

impl FindingView {
    pub(crate) fn new(world: &World<'_>, finding: &Finding) -> Self {
        let cluster = finding.cluster.map(|id| match world.record.clusters.get(&id) {
            Some(cluster) => cluster.spec.name.clone(),
            None => id.to_string(),
        });
        let member = finding.member.map(|id| {
            let held = world.record.clusters.values().find_map(|cluster| cluster.held(id));
            held.map_or_else(|| id.to_string(), |member| member.name.clone())
        });
        Self {
            severity: finding.severity,
            code: finding.code.clone(),
            message: finding.message.clone(),
            cluster,
            member,
            node: finding.node.map(|id| world.node_ref(id).name),
        }
    }
}

/// Said in place of observations when there are none.
pub(super) fn not_observed(world: &World<'_>) -> FindingView {
    let node = world.node_ref(world.answering).name;
    let why = match world.controller {
        None => "the Raft group has no leader",
        Some(_) => "the controller did not answer",
    };
    let message = format!(
        "{why}, so this is node {node}'s copy of the record alone: what members do now is unknown and newer changes may \
         be missing; check the voters' daemons and the network between them"
    );
    FindingView::new(world, &Finding::warning("not_observed", message))
}

/// Everything known about one cluster, most severe first.
pub(super) fn of_cluster(world: &World<'_>, cluster: &ClusterRecord) -> Vec<FindingView> {
    let Some(observed) = world.observed else { return vec![not_observed(world)] };
    let about = |finding: &&Finding| {
        finding.cluster == Some(cluster.id)
            || finding.member.is_some_and(|member| cluster.members.contains_key(&member))
            || (finding.cluster.is_none()
                && finding.member.is_none()
                && finding.node.is_some_and(|node| cluster.member_on(node).is_some()))
    };
    let mut all: Vec<&Finding> = observed.findings.iter().filter(about).collect();
    let held = cluster.members.keys().chain(cluster.departed.keys());
    all.extend(held.filter_map(|id| world.seen(*id)).flat_map(|seen| &seen.report.findings));
    sorted(world, all)
}

/// Everything known about one node.
pub(super) fn of_node(world: &World<'_>, node: pgstead_types::NodeId) -> Vec<FindingView> {
    let Some(observed) = world.observed else { return vec![not_observed(world)] };
    sorted(world, observed.findings.iter().filter(|finding| finding.node == Some(node)).collect())
}

fn sorted(world: &World<'_>, mut all: Vec<&Finding>) -> Vec<FindingView> {
    all.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
    all.dedup();
    all.into_iter().map(|finding| FindingView::new(world, finding)).collect()
}
