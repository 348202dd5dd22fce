//! The leader is lost, or should not lead any more: the next epoch is opened. Slower where leaders are lost again and again,
//! and with the same leader preferred where the spec wants a crashed one restarted.

use crate::decide::Plan;
use crate::election;
use crate::health;
use crate::lease;
use crate::observed::{Memory, Observed, Policy};
use crate::quorum::electable;
use pgstead_types::record::{ClusterRecord, EpochReason};
use pgstead_types::spec::OnLeaderCrash;
use pgstead_types::{Finding, MemberId, Tick};
use std::collections::BTreeSet;

/// A crashed leader is preferred so often within the window; then another is elected.
const RESTARTS_MAX: usize = 2;

/// Losses kept: far more than the brake asks about.
const LOST_KEPT: usize = 32;

pub(crate) fn after_loss(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    leader: MemberId,
    reason: EpochReason,
    finding: Finding,
) -> Plan {
    let now = observed.now;
    let earlier: Vec<(MemberId, Tick)> = memory
        .lost
        .iter()
        .filter(|(epoch, _, at)| *epoch < cluster.epoch && now.since(*at) < policy.lost_window)
        .map(|(_, member, at)| (*member, *at))
        .collect();
    let mut findings = vec![finding];
    if earlier.len() >= policy.lost_max {
        let text = format!(
            "{} leaders were lost within {} s; look for a common cause",
            earlier.len() + 1,
            policy.lost_window.as_secs()
        );
        findings.push(Finding::error("leaders_lost_repeatedly", text).on_cluster(cluster.id));
        // One that is gone is replaced at once: waiting would only be downtime.
        if let (true, Some((_, last))) = (still_runs(reason), earlier.last())
            && now < *last + policy.brake
        {
            let until = *last + policy.brake;
            return Plan { findings, ..Plan::default() }.until(until);
        }
    }
    let crashed_before = earlier.iter().filter(|(member, _)| *member == leader).count();
    let restart = cluster.spec.on_leader_crash == OnLeaderCrash::Restart
        && reason == EpochReason::PostgresEnded
        && crashed_before < RESTARTS_MAX;
    let preferred = restart.then_some(leader);
    let mut plan = election::begin(cluster, observed, policy, reason, preferred);
    if plan.change.is_some() && memory.lost.last().is_none_or(|(epoch, ..)| *epoch != cluster.epoch) {
        memory.lost.push((cluster.epoch, leader, now));
        let surplus = memory.lost.len().saturating_sub(LOST_KEPT);
        memory.lost.drain(..surplus);
    }
    plan.findings.extend(findings);
    plan
}

/// The leader may still serve while one waits.
fn still_runs(reason: EpochReason) -> bool {
    matches!(
        reason,
        EpochReason::CutFromStandbys
            | EpochReason::PostgresHung
            | EpochReason::StorageFailed
            | EpochReason::DataCorruption
    )
}

/// The leader runs, and its storage or its data speaks against it: another one is elected where one is here that can be.
pub(crate) fn leave_unwell(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    leader: MemberId,
) -> Option<Plan> {
    let trouble = health::troubles(cluster, observed, leader).find(|trouble| trouble.speaks_against_leading())?;
    let reason = match trouble {
        pgstead_types::Trouble::Corrupted { .. } => EpochReason::DataCorruption,
        pgstead_types::Trouble::Unwritable { .. } => EpochReason::StorageFailed,
        // It works still: nothing is to be lost for that. It takes no writes until there is room.
        pgstead_types::Trouble::PoolFull { .. } if lease::is_asynchronous(cluster) => return None,
        pgstead_types::Trouble::PoolFull { .. } => EpochReason::StorageFailed,
        _ => return None,
    };
    let name = cluster.members.get(&leader).map_or("?", |member| member.name.as_str());
    let unfit = health::unfit(cluster, observed);
    let well: BTreeSet<_> = election::could_promise(cluster, observed, policy)
        .into_iter()
        .filter(|life| !unfit.contains(&life.member) && life.member != leader)
        .collect();
    // With nobody to take over, an election would only end what still works.
    electable(&cluster.configs, &well).ok()?;
    let text = format!("leader {name} gives way to another member: {trouble}");
    let finding = Finding::error("leader_unwell", text).on_cluster(cluster.id).on_member(leader);
    Some(after_loss(cluster, observed, policy, memory, leader, reason, finding))
}
