//! A confirmed epoch: watch the leader, bring members back that have left its history, count those that have caught up,
//! and carry out what was asked for.

use crate::decide::Plan;
use crate::election::{self, has_lost_data};
use crate::health;
use crate::leader_lost::{LeaderSeen, leader_seen};
use crate::lease;
use crate::observed::{Memory, Observed, Policy};
use crate::{change_leader, recovered, restart, schedule, switchover};
use pgstead_types::record::{ClusterChange, ClusterRecord, EpochConfig, EpochReason, MemberRecord};
use pgstead_types::report::{ClientAccess, PrimarySeen};
use pgstead_types::{Bytes, Finding, Incarnation, MemberId};
use std::collections::BTreeMap;

/// A standby within this of the leader's log has caught up: it flushes the rest in a moment.
const CAUGHT_UP: Bytes = Bytes(1 << 20);

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
        return switchover::plan(cluster, observed, policy, memory, switchover, leader, None);
    }
    let primary = match leader_seen(cluster, observed, policy, memory, leader) {
        LeaderSeen::Runs(primary) => primary,
        LeaderSeen::Unsure { until, finding } => {
            let plan = Plan::wait(finding);
            return until.map_or(plan.clone(), |until| plan.until(until));
        }
        LeaderSeen::Lost { reason, finding } => {
            return change_leader::after_loss(cluster, observed, policy, memory, leader, reason, finding);
        }
    };
    memory.failed.clear();
    if let Some(plan) = change_leader::leave_unwell(cluster, observed, policy, memory, leader) {
        return plan;
    }
    let mut plan = tend_members(cluster, observed, policy, memory, primary, leader);
    plan.findings.extend(health::findings(cluster, observed));
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
    if let Some(change) = lease::change_of_kind(cluster, observed, policy, leader) {
        return Plan::change(change);
    }
    let everyone_streams =
        cluster.members.values().filter(|member| member.id != leader).all(|member| streams(primary, member));
    let serves = everyone_streams && primary.access == ClientAccess::Open;
    if let (Some(operation), true) = (cluster.creating, serves) {
        plan.ended = Some((operation, None));
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
fn acknowledging(primary: &PrimarySeen, config: &EpochConfig) -> usize {
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
    let mut plan = Plan::default();
    let mut ready = 0;
    let Some(config) = cluster.config() else { return plan };
    plan.findings.extend(doubled_senders(cluster, primary));
    for member in cluster.members.values().filter(|member| member.id != leader) {
        let in_set = config.sync_set.members.contains(&member.current());
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
        let Some(sender) = primary.senders.iter().find(|sender| sender.incarnation == Some(member.current())) else {
            let text = format!("{} does not stream from the leader", member.name);
            plan.findings.push(Finding::warning("not_streaming", text).on_cluster(cluster.id).on_member(member.id));
            continue;
        };
        let caught_up =
            sender.streaming && sender.flushed.is_some_and(|flushed| primary.flushed.bytes_since(flushed) <= CAUGHT_UP);
        if lease::is_asynchronous(cluster) {
            // Nobody counts; it only streams.
            continue;
        }
        // With fewer copies than the spec asks for, the set is made whole by an epoch, all of it at once.
        if !in_set && caught_up && !cluster.is_short_of_copies() {
            // Recorded first: the election's quorum grows before Postgres can count the newcomer.
            return Plan::change(ClusterChange::AddToSyncSet { epoch: cluster.epoch, incarnation: member.current() });
        }
        if !in_set {
            let text = format!("{} streams and does not count yet: it is catching up", member.name);
            plan.findings.push(Finding::info("catching_up", text).on_cluster(cluster.id).on_member(member.id));
        }
        ready += usize::from(caught_up);
    }
    if cluster.is_short_of_copies() {
        return make_whole(cluster, observed, policy, leader, ready, plan);
    }
    plan
}

/// Since a forced failover fewer acknowledge than the spec asks for. When enough standbys have caught up, an election with
/// the same leader preferred gives it a whole set: Postgres never counts anyone whom the record does not ask.
fn make_whole(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    leader: MemberId,
    ready: usize,
    mut plan: Plan,
) -> Plan {
    let needed = usize::from(cluster.spec.needed());
    let held = cluster.config().map_or(0, |config| config.sync_set.needed);
    let text = format!(
        "since a forced failover a commit is acknowledged by {held} standbys and not by {needed}: {ready} have caught up"
    );
    plan.findings.push(Finding::warning("short_of_copies", text).on_cluster(cluster.id));
    let busy = cluster.switchover.is_some() || cluster.restart.is_some();
    if ready < needed || busy || health::is_corrupted(cluster, observed, leader) {
        return plan;
    }
    let mut next = election::begin(cluster, observed, policy, EpochReason::SyncSetChange, Some(leader));
    next.findings.extend(plan.findings);
    next
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

/// A member of the set must leave it before it forgets. An election with the same leader preferred does that by the one
/// mechanism that is known to be safe. It costs the cluster a moment while other standbys can acknowledge; where none
/// can, writes wait already, and would for ever: the leader's own promise elects it with the member's next incarnation.
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
