//! A cluster is being deleted, or members have left it: they leave the record as their nodes say that the volume is gone.

use crate::decide::Plan;
use crate::observed::{Observed, Policy};
use pgstead_types::Finding;
use pgstead_types::record::{ClusterChange, ClusterRecord, Lifecycle, MemberRecord};
use pgstead_types::report::{MemberReport, PostgresSeen};

pub(crate) fn plan(cluster: &ClusterRecord, observed: &Observed, policy: &Policy) -> Plan {
    let mut plan = departed(cluster, observed, policy);
    if plan.change.is_some() {
        return plan;
    }
    for member in cluster.members.values() {
        match removal(cluster, observed, policy, member, 0) {
            Ok(change) => return Plan::change(change),
            Err(finding) => plan = plan.with(finding),
        }
    }
    plan
}

/// Members that have left: forgotten once their nodes say that the volume is gone.
pub(crate) fn departed(cluster: &ClusterRecord, observed: &Observed, policy: &Policy) -> Plan {
    let mut plan = Plan::default();
    for departed in cluster.departed.values() {
        match removal(cluster, observed, policy, &departed.member, departed.revision) {
            Ok(change) => return Plan::change(change),
            Err(finding) => plan = plan.with(finding),
        }
    }
    plan
}

fn is_down(report: &MemberReport) -> bool {
    matches!(report.postgres, PostgresSeen::Down { .. })
}

/// `since`: a report by an older revision may be of before the volume was made.
fn removal(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    member: &MemberRecord,
    since: u64,
) -> Result<ClusterChange, Finding> {
    let finding = match observed.fresh(cluster, member.id, policy) {
        // Processes that still run may write it again, and a daemon that is killed then would know nothing of them.
        Some(report) if !report.volume_present && is_down(report) && report.revision >= since => {
            return Ok(ClusterChange::NoteRemoved { member: member.id });
        }
        Some(report) if cluster.lifecycle == Lifecycle::Active && cluster.holds_given_up(report) => {
            let text = format!(
                "{} has left, and data of it that was given up stays on its node until somebody has removed that",
                member.name
            );
            Finding::warning("removal_waits", text)
        }
        Some(report) if cluster.departed.get(&member.id).is_some_and(|left| left.released != Some(report.session)) => {
            let text = format!(
                "{} has left; its data stays until the leader and the others are seen to have it all in good order",
                member.name
            );
            Finding::info("removal_waits", text)
        }
        Some(_) => Finding::info("removing", format!("{} is being removed", member.name)),
        None => {
            let text =
                format!("the volume of {} waits for its node to come back before it can be removed", member.name);
            Finding::warning("removal_waits", text)
        }
    };
    Err(finding.on_cluster(cluster.id).on_member(member.id))
}
