//! A confirmed epoch: watch the leader, bring members back that have left its history, count those that have caught up,
//! and carry out what was asked for.

use crate::cascade;
use crate::decide::Plan;
use crate::election::{self, has_lost_data};
use crate::health;
use crate::leader_lost::{LeaderSeen, leader_seen};
use crate::lease;
use crate::observed::{Memory, Observed, Policy};
use crate::{change_leader, members, moving, recovered, restart, schedule, slots, switchover, sync_set};
use pgstead_types::record::{ClusterChange, ClusterRecord, EpochConfig, EpochReason, MemberRecord, Standing};
use pgstead_types::report::{ClientAccess, PrimarySeen};
use pgstead_types::spec::{Cascade, Durability};
use pgstead_types::{Finding, Incarnation, MemberId};
use std::collections::BTreeMap;

pub(crate) fn plan(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    leader: MemberId,
) -> Plan {
    // A switchover that has let go of the leader goes on without it; one that has ended otherwise says so first.
    if let Some(switchover) = &cluster.switchover
        && match switchover.epoch == cluster.epoch {
            true => switchover.draining,
            false => switchover.to != leader,
        }
    {
        memory.set.interrupted();
        return switchover::plan(cluster, observed, policy, memory, switchover, leader, None);
    }
    let primary = match leader_seen(cluster, observed, policy, memory, leader) {
        LeaderSeen::Runs(primary) => primary,
        LeaderSeen::Unsure { until, finding } => {
            memory.set.interrupted();
            let change = cascade::without_gone_relays(cluster, observed, policy, leader);
            let plan = Plan { change, ..Plan::wait(finding) };
            let again = cascade::speak_from(cluster, observed, policy, leader);
            return until.into_iter().chain(again).fold(plan, Plan::until);
        }
        LeaderSeen::Lost { reason, finding } => {
            memory.set.interrupted();
            return change_leader::after_loss(cluster, observed, policy, memory, leader, reason, finding);
        }
    };
    memory.failed.clear();
    members::note_well(cluster, observed, policy, memory);
    if let Some(plan) = change_leader::leave_unwell(cluster, observed, policy, memory, leader) {
        memory.set.interrupted();
        return plan;
    }
    // Before the members are tended: between the two kinds nothing changes in place.
    let nothing_asked = cluster.switchover.is_none() && cluster.restart.is_none();
    let kind = lease::change_of_kind(cluster, observed, policy, primary, leader).filter(|_| nothing_asked);
    let lacking = match kind {
        Some(plan) if plan.change.is_some() => return plan,
        Some(plan) => plan.findings,
        None => Vec::new(),
    };
    let mut plan = tend_members(cluster, observed, policy, memory, primary, leader);
    plan.findings.extend(health::findings(cluster, observed));
    plan.findings.extend(slots::findings(cluster, observed, policy, leader));
    plan.findings.extend(lacking);
    if !plan.settled() {
        return plan;
    }
    plan.findings.extend(lease::may_have_lost(cluster));
    if let Some(switchover) = &cluster.switchover {
        let mut next = switchover::plan(cluster, observed, policy, memory, switchover, leader, Some(primary));
        next.findings.extend(plan.findings);
        return next;
    }
    if let Some(wanted) = &cluster.restart {
        let mut next = restart::plan(cluster, observed, policy, memory, wanted, leader, primary);
        next.findings.extend(plan.findings);
        return next;
    }
    let is_fed = |member: &MemberRecord| cascade::is_fed(cluster, observed, policy, primary, member);
    let everyone_streams = cluster.members.values().filter(|member| member.id != leader).all(is_fed);
    let serves = everyone_streams && (primary.access == ClientAccess::Open || cluster.aside.is_some());
    if let (Some(operation), true) = (cluster.creating, serves) {
        plan.ended = Some((operation, None));
        return plan;
    }
    let moved = members::plan(cluster, observed, policy, memory, primary, leader);
    plan.findings.extend(moved.findings);
    if let Some(at) = moved.wake_at {
        plan = plan.until(at);
    }
    if moved.change.is_some() {
        plan.change = moved.change;
        return plan;
    }
    if let (Some(operation), Some(config)) = (cluster.updating, cluster.config())
        && config.target.is_none()
        && members::are_as_asked(cluster, primary)
        && members::volumes_are_as_asked(cluster, observed)
        && config.sync_set.needed == cluster.spec.needed()
        && config.asynchronous == cluster.spec.is_asynchronous()
        && (cluster.spec.cascade != Cascade::None || cluster.upstreams.is_empty())
    {
        plan.ended = Some((operation, None));
        return plan;
    }
    if let Some(moving) = cluster.moving.filter(|_| moving::is_done(cluster)) {
        plan.ended = Some((moving.operation, None));
        return plan;
    }
    if let Some(scheduled) = &cluster.planned.scheduled {
        let mut next = schedule::plan(cluster, observed, policy, scheduled);
        next.findings.extend(plan.findings);
        return next;
    }
    plan
}

pub(crate) fn streams(primary: &PrimarySeen, member: &MemberRecord) -> bool {
    primary.senders.iter().any(|sender| sender.incarnation == Some(member.current()) && sender.streaming)
}

/// How many of the set stream.
pub(crate) fn acknowledging(primary: &PrimarySeen, config: &EpochConfig) -> usize {
    let streams = |life: &&Incarnation| primary.senders.iter().any(|s| s.incarnation == Some(**life) && s.streaming);
    config.sync_set.members.iter().filter(streams).count()
}

fn tend_members(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    primary: &PrimarySeen,
    leader: MemberId,
) -> Plan {
    let Some(config) = cluster.config() else { return Plan::default() };
    let cascaded = cascade::wanted(cluster, observed, policy, memory, primary, leader);
    let spared = cascaded.keys().copied().collect();
    let mut plan = sync_set::plan(cluster, observed, policy, memory, primary, leader, &spared);
    if !plan.settled() {
        return plan;
    }
    plan.findings.extend(doubled_senders(cluster, primary));
    for member in cluster.members.values().filter(|member| member.id != leader) {
        let in_set = config.sync_set.members.contains(&member.current());
        if member.standing == Standing::Leaving && !in_set {
            // Nobody waits for it, and it is not worth a copy.
            continue;
        }
        if let Some(why) = why_rebuild(cluster, observed, policy, member) {
            if let Some(finding) = health::no_good_source(cluster, observed, leader, member) {
                plan.findings.push(finding);
                continue;
            }
            let paused =
                || health::may_rebuild_from(cluster, policy, memory, member).filter(|from| *from > observed.now);
            // Without this one no commit is acknowledged: then it is made anew however often that was in vain.
            let is_needed = in_set && acknowledging(primary, config) < usize::from(config.sync_set.needed);
            if let Some(from) = paused().filter(|_| !is_needed) {
                let text = format!("{} was made anew lately and is no better ({why}); it waits a while", member.name);
                plan = plan
                    .until(from)
                    .with(Finding::error("rebuilt_in_vain", text).on_cluster(cluster.id).on_member(member.id));
                continue;
            }
            if in_set && can_do_without(cluster, primary, config, member) {
                let text = format!("{} must be made anew ({why}) and leaves the sync set first", member.name);
                let finding = Finding::warning("leaving_sync_set", text);
                plan.findings.push(finding.on_cluster(cluster.id).on_member(member.id));
                continue;
            }
            health::note_rebuild(cluster, policy, memory, member, observed.now);
            if !in_set {
                return Plan::change(ClusterChange::Rebuild {
                    member: member.id,
                    incarnation: cluster.next_incarnation(member),
                    why,
                });
            }
            return leave_set(cluster, observed, policy, member, leader, &why);
        }
        if !cascade::is_fed(cluster, observed, policy, primary, member) {
            plan.findings.extend(health::cannot_be_copied(cluster, observed, policy, leader, member));
            plan.findings.push(cascade::not_fed(cluster, member));
        } else if !in_set && !lease::is_asynchronous(cluster) && !spared.contains(&member.current()) {
            let text = format!("{} streams and does not count yet: it is catching up", member.name);
            plan.findings.push(Finding::info("catching_up", text).on_cluster(cluster.id).on_member(member.id));
        }
    }
    let feeding = cascade::plan(cluster, observed, policy, memory, &cascaded);
    plan.change = feeding.change;
    match feeding.wake_at {
        Some(at) => plan.until(at),
        None => plan,
    }
}

/// Whether a member leaves the set in place: others stream that can acknowledge, or commits may do with fewer in a moment.
fn can_do_without(cluster: &ClusterRecord, primary: &PrimarySeen, config: &EpochConfig, broken: &MemberRecord) -> bool {
    let others = config.loaded().members.iter().filter(|life| life.member != broken.id).filter(|life| {
        cluster.members.get(&life.member).is_some_and(|member| member.current() == **life && streams(primary, member))
    });
    cluster.spec.durability == Durability::Available || others.count() >= usize::from(config.loaded().needed)
}

/// Why a member cannot go on with the data that it has.
pub(crate) fn why_rebuild(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    member: &MemberRecord,
) -> Option<String> {
    if has_lost_data(cluster, observed, policy, member.id).is_some() {
        return Some("its data is gone".to_string());
    }
    if recovered::unknown_life(cluster, observed, policy, member).is_some() {
        return Some("its data is of a life that the recovered record does not know".to_string());
    }
    let report = observed.fresh(cluster, member.id, policy)?;
    if report.incarnation() != Some(member.current()) {
        return None;
    }
    if let Some(why) = health::lacks_log(cluster, observed, policy, member.id) {
        return Some(why);
    }
    if let Some(why) = health::wants_other_data(cluster, observed, member.id) {
        return Some(why);
    }
    let position = report.as_standby().filter(|standby| standby.upstream.is_none())?.position?;
    match cluster.may_follow(position) {
        Some(false) => Some(format!("its log ends at {position}, outside the leader's history")),
        Some(true) | None => None,
    }
}

/// A member of the set must leave it before it forgets. Where the others stream, it does so in place. Where they cannot
/// acknowledge without it, writes wait already, and would for ever: an election in which the leader's own promise is
/// enough names the member's next incarnation.
pub(crate) fn leave_set(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    member: &MemberRecord,
    leader: MemberId,
    why: &str,
) -> Plan {
    let text = format!("{} counts in the sync set and must be made anew ({why}): it leaves the set first", member.name);
    let finding = Finding::warning("leaving_sync_set", text).on_cluster(cluster.id).on_member(member.id);
    // A switchover that waits for this member would wait for ever; it ends with its epoch.
    election::begin(cluster, observed, policy, EpochReason::SyncSetChange, Some(leader)).with(finding)
}

/// Two senders of one name: one of them is not who it says.
fn doubled_senders(cluster: &ClusterRecord, primary: &PrimarySeen) -> Vec<Finding> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for sender in &primary.senders {
        *counts.entry(sender.name.as_str()).or_default() += 1;
    }
    let strange = |name: &str, count: usize| {
        let known = cluster.members.values().any(|member| member.current().to_string() == name);
        known && count > 1
    };
    let doubled = counts.into_iter().filter(|(name, count)| strange(name, *count));
    doubled
        .map(|(name, count)| {
            let text = format!("{count} WAL senders carry the name {name}; only one can be that member");
            Finding::error("doubled_sender", text).on_cluster(cluster.id)
        })
        .collect()
}
