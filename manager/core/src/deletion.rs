//! A cluster is being deleted: members leave the record as their nodes say that the volume is gone.

use crate::decide::Plan;
use crate::observed::{Observed, Policy};
use pgstead_types::Finding;
use pgstead_types::record::{ClusterChange, ClusterRecord};

pub(crate) fn plan(cluster: &ClusterRecord, observed: &Observed, policy: &Policy) -> Plan {
    let mut plan = Plan::default();
    for member in cluster.members.values() {
        match observed.fresh(cluster, member.id, policy) {
            Some(report) if !report.volume_present => {
                return Plan::change(ClusterChange::NoteRemoved { member: member.id });
            }
            Some(_) => {
                let text = format!("{} is being removed", member.name);
                plan = plan.with(Finding::info("removing", text).on_cluster(cluster.id).on_member(member.id));
            }
            None => {
                let text =
                    format!("the volume of {} waits for its node to come back before it can be removed", member.name);
                plan = plan.with(Finding::warning("removal_waits", text).on_cluster(cluster.id).on_member(member.id));
            }
        }
    }
    plan
}
