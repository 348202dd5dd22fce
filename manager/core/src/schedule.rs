//! A switchover for later: begun when its time has come and nothing blocks it, given up when its time is over. The time of
//! day comes in with the observations and decides nothing else.

use crate::decide::Plan;
use crate::observed::{Observed, Policy};
use crate::switchover_check::{Overrule, check_switchover};
use pgstead_types::Finding;
use pgstead_types::record::{ClusterChange, ClusterRecord, ScheduledSwitchover};
use std::time::Duration;

/// The time of day may be set meanwhile, so it is looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// In a confirmed epoch with nothing else to do.
pub(crate) fn plan(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    scheduled: &ScheduledSwitchover,
) -> Plan {
    if observed.wall < scheduled.not_before {
        let left = u64::try_from(scheduled.not_before.0.saturating_sub(observed.wall.0)).unwrap_or_default();
        let until = observed.now + Duration::from_millis(left).min(LOOK_AGAIN);
        let text = format!("a switchover is scheduled for {}", scheduled.not_before);
        return Plan::wait(Finding::info("switchover_scheduled", text).on_cluster(cluster.id)).until(until);
    }
    if observed.wall >= scheduled.not_after {
        return Plan::default(); // It is missed.
    }
    let check = check_switchover(cluster, observed, policy, scheduled.to);
    match check.to {
        Some(to) if check.is_clear(Overrule::Nothing) => {
            Plan::change(ClusterChange::BeginScheduledSwitchover { operation: scheduled.operation, to })
        }
        _ => {
            let text = format!(
                "the scheduled switchover waits until {} for what blocks it: {}",
                scheduled.not_after,
                reasons(&check.findings)
            );
            let finding = Finding::warning("scheduled_switchover_blocked", text).on_cluster(cluster.id);
            Plan::wait(finding).until(observed.now + LOOK_AGAIN)
        }
    }
}

/// Its time is over: it is never done late. Whatever the cluster is at meanwhile comes first.
pub(crate) fn missed(cluster: &ClusterRecord, observed: &Observed, policy: &Policy) -> Option<ClusterChange> {
    let scheduled = cluster.planned.scheduled.as_ref().filter(|scheduled| observed.wall >= scheduled.not_after)?;
    let check = check_switchover(cluster, observed, policy, scheduled.to);
    let why = match check.is_clear(Overrule::Nothing) {
        true => format!("no controller looked at it before {}", scheduled.not_after),
        false => format!("until {} this blocked it: {}", scheduled.not_after, reasons(&check.findings)),
    };
    Some(ClusterChange::MissSwitchover { operation: scheduled.operation, why })
}

fn reasons(findings: &[Finding]) -> String {
    findings.iter().map(|finding| finding.message.as_str()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::testing::{World, lag, member, world};
    use pgstead_types::{OperationId, WallTime};

    const OPERATION: OperationId = OperationId::from_u128(9);

    fn scheduled(world: World, now: i64) -> World {
        let mut world = world.recorded(|record| {
            record.planned.scheduled = Some(ScheduledSwitchover {
                operation: OPERATION,
                to: Some(member("b")),
                not_before: WallTime(5_000),
                not_after: WallTime(9_000),
            });
        });
        world.observed.wall = WallTime(now);
        world
    }
    fn well() -> World {
        world().leader("a").standby("b", lag(0)).standby("c", lag(0))
    }

    #[test]
    fn it_begins_when_its_time_has_come_and_not_before() {
        let early = scheduled(well(), 4_000).decide();
        assert_eq!(early.change, None);
        assert_eq!(early.wake_at, Some(well().observed.now + Duration::from_secs(1)));
        let due = scheduled(well(), 5_000).decide();
        let begins = ClusterChange::BeginScheduledSwitchover { operation: OPERATION, to: member("b") };
        assert_eq!(due.change, Some(begins));
    }

    #[test]
    fn what_blocks_it_is_said_and_may_pass() {
        let mut world = scheduled(well().gone("b"), 6_000);
        assert!(world.findings().contains(&"scheduled_switchover_blocked".to_string()));
        assert_eq!(world.decide().change, None);
    }

    #[test]
    fn it_is_never_done_late() {
        for world in [well(), well().gone("b"), well().gone("a").gone("b").gone("c")] {
            let missed = scheduled(world, 9_000).decide().change;
            assert!(matches!(missed, Some(ClusterChange::MissSwitchover { .. })), "{missed:?}");
        }
    }

    #[test]
    fn a_lost_leader_comes_first() {
        let lost = scheduled(well().gone("a").deaf("b").deaf("c"), 9_000).decide().change;
        assert!(matches!(lost, Some(ClusterChange::BeginEpoch { .. })), "{lost:?}");
    }
}
