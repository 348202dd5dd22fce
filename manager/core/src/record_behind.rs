//! A member has promised a newer epoch than the record knows. That happens only to a record that was recovered from a node
//! which lacked its last entries: the next epoch must lie beyond everything that was ever promised, or members would
//! take orders for two leaderships of one number.

use crate::decide::Plan;
use crate::election;
use crate::observed::{Observed, Policy};
use pgstead_types::record::{ClusterChange, ClusterRecord, EpochReason, Leadership};
use pgstead_types::{Epoch, Finding};

pub(crate) fn plan(cluster: &ClusterRecord, observed: &Observed, policy: &Policy) -> Option<Plan> {
    let promised = newest_promise(cluster, observed, policy).filter(|promised| *promised > cluster.epoch)?;
    let text = format!(
        "a member has promised epoch {promised} and the record ends at {}: the next epoch lies beyond both",
        cluster.epoch
    );
    let finding = Finding::warning("record_behind", text).on_cluster(cluster.id);
    // A forced election stays one.
    if let Leadership::Electing { reason: EpochReason::Forced, .. } = cluster.leadership {
        return None;
    }
    let mut plan = election::begin(cluster, observed, policy, EpochReason::RecordBehind, cluster.leadership.leader());
    if let Some(ClusterChange::BeginEpoch { epoch, .. }) = &mut plan.change {
        *epoch = promised.next();
    }
    Some(plan.with(finding))
}

fn newest_promise(cluster: &ClusterRecord, observed: &Observed, policy: &Policy) -> Option<Epoch> {
    // A new controller that has not applied all of the log yet is not behind: those who report have seen the rest of it.
    if observed.nodes.values().any(|seen| seen.report.revision > observed.revision) {
        return None;
    }
    let fresh = cluster.members.keys().filter_map(|member| observed.fresh(cluster, *member, policy));
    fresh.map(|report| report.promised).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::testing::{lag, world};

    #[test]
    fn the_next_epoch_is_beyond_every_promise() {
        let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0));
        let mut world = world.report("b", |report| report.promised = Epoch(6));
        let change = world.decide().change;
        assert!(
            matches!(
                change,
                Some(ClusterChange::BeginEpoch { epoch: Epoch(7), reason: EpochReason::RecordBehind, .. })
            ),
            "{change:?}"
        );
    }

    #[test]
    fn a_controller_that_has_not_applied_everything_yet_waits_for_that() {
        let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0));
        let mut world = world.report("b", |report| report.promised = Epoch(6));
        world.observed.revision = 0;
        assert!(!world.findings().contains(&"record_behind".to_string()));
    }

    #[test]
    fn without_a_prospect_it_says_so_and_waits() {
        let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0)).gone("a").gone("c");
        let mut world = world.report("b", |report| report.promised = Epoch(6));
        let plan = world.decide();
        let codes: Vec<&str> = plan.findings.iter().map(|finding| finding.code.as_str()).collect();
        assert_eq!((plan.change, codes), (None, vec!["promise_missing", "record_behind"]));
    }
}
