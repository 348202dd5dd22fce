//! A leader is chosen: see it promoted to its timeline, then see `k` of its set flush past its end of recovery.

use crate::change_leader;
use crate::cut_off;
use crate::decide::Plan;
use crate::election;
use crate::health;
use crate::leader_lost::{LeaderSeen, leader_seen};
use crate::lease;
use crate::observed::{Memory, Observed, Policy, Presence};
use crate::steady::{leave_set, why_rebuild};
use crate::sync_set;
use pgstead_types::record::{
    ClusterChange, ClusterRecord, EpochConfig, EpochReason, HistoryEntry, MemberRecord, SyncSet,
};
use pgstead_types::report::PrimarySeen;
use pgstead_types::{Finding, Incarnation, MemberId, Step, Tick};
use std::collections::BTreeSet;
use std::time::Duration;

/// So many failed attempts to promote make another election worthwhile.
const ATTEMPTS_MAX: u32 = 3;
/// Failed promotions that are remembered: beyond them the wait grows no more.
const FAILED_KEPT: usize = 8;

pub(crate) fn await_promotion(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    leader: MemberId,
) -> Plan {
    let began = memory.phase_began(cluster, observed.now);
    let Some(config) = cluster.config() else { return Plan::default() };
    let Some(member) = cluster.members.get(&leader) else { return Plan::default() };
    let deadline = began + policy.promotion_deadline;
    let fresh = observed.fresh(cluster, leader, policy);
    if let Some(primary) = fresh.and_then(|report| report.as_primary())
        && primary.epoch == Some(cluster.epoch)
        && primary.timeline == config.timeline
    {
        let identity = fresh.and_then(|report| report.identity());
        return match identity {
            Some(identity) => Plan::change(ClusterChange::NotePromotion {
                epoch: cluster.epoch,
                timeline: primary.timeline,
                // The first epoch leaves the timeline that initdb made, or the one that a fork came with.
                parent: match cluster.begins() {
                    true => primary.parent.unwrap_or(pgstead_types::Timeline(1)),
                    false => config.start.timeline.max(pgstead_types::Timeline(1)),
                },
                fork_lsn: primary.fork_lsn,
                end_of_recovery: primary.end_of_recovery,
                system_identifier: identity.system_identifier.clone(),
            }),
            None => Plan::default(),
        };
    }
    // Nobody else has any data yet: only its own log can call for another epoch.
    let first = cluster.begins();
    let why = match fresh {
        None if first => None,
        None => match observed.presence(member.node, policy) {
            Presence::Doubtful { until } => {
                return Plan::wait(waiting(cluster, leader, "its node has not been heard for a moment")).until(until);
            }
            _ => Some("its node is gone"),
        },
        Some(report) => {
            let spent = report
                .as_standby()
                .and_then(|standby| standby.position)
                .is_some_and(|position| position.timeline >= config.timeline);
            let failed = report.working.as_ref().is_some_and(|working| {
                matches!(working.step, Step::Promote | Step::PreparePromotion) && working.attempt > ATTEMPTS_MAX
            });
            if spent {
                Some("it was promoted and has ended since")
            } else if failed {
                Some("its promotion failed again and again")
            } else if observed.now >= deadline && !first {
                Some("it took too long")
            } else {
                None
            }
        }
    };
    match why {
        None if first => Plan::wait(waiting(cluster, leader, "it is being made")),
        None => Plan::wait(waiting(cluster, leader, "it is being promoted")).until(deadline),
        Some(why) => {
            let finding = waiting(cluster, leader, why);
            if fresh.is_some()
                && let Some(until) = another_attempt_from(cluster, observed, memory)
            {
                let text = "promotions fail one after the other; the next election waits longer each time";
                let again = Finding::error("promotions_fail", text).on_cluster(cluster.id);
                return Plan::wait(finding).with(again).until(until);
            }
            election::begin(cluster, observed, policy, EpochReason::PromotionFailed, None).with(finding)
        }
    }
}

/// The first failure has another election at once; each further one without a confirmed epoch in between waits longer.
fn another_attempt_from(cluster: &ClusterRecord, observed: &Observed, memory: &mut Memory) -> Option<Tick> {
    let failed = *memory.failed.entry(cluster.epoch).or_insert(observed.now);
    let earlier = memory.failed.len() - 1;
    if memory.failed.len() > FAILED_KEPT {
        memory.failed.pop_first();
    }
    let wait = Duration::from_millis(500) * (1u32 << earlier.min(6));
    let until = failed + wait;
    (earlier > 0 && observed.now < until).then_some(until)
}

fn waiting(cluster: &ClusterRecord, leader: MemberId, why: &str) -> Finding {
    let name = cluster.members.get(&leader).map_or("?", |member| member.name.as_str());
    Finding::info("awaiting_promotion", format!("{name} is chosen for epoch {}: {why}", cluster.epoch))
        .on_cluster(cluster.id)
        .on_member(leader)
}

pub(crate) fn await_confirmation(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    leader: MemberId,
) -> Plan {
    let primary = match leader_seen(cluster, observed, policy, memory, leader) {
        LeaderSeen::Runs(primary) => primary,
        LeaderSeen::Unsure { until, finding } => {
            memory.set.interrupted();
            let plan = Plan::wait(finding);
            return until.map_or(plan.clone(), |until| plan.until(until));
        }
        LeaderSeen::Lost { reason, finding } => {
            memory.set.interrupted();
            return change_leader::after_loss(cluster, observed, policy, memory, leader, reason, finding);
        }
    };
    let (Some(config), Some(promotion)) = (cluster.config(), cluster.promotion()) else { return Plan::default() };
    // Where nobody is to be waited for any more, an epoch of the other kind is confirmed at once.
    if cluster.spec.is_asynchronous()
        && let Some(plan) = lease::change_of_kind(cluster, observed, policy, primary, leader)
        && plan.change.is_some()
    {
        return plan;
    }
    let flushed = flushed_past(cluster, primary, promotion);
    if flushed >= usize::from(config.sync_set.needed) {
        memory.cut = None;
        memory.set.interrupted();
        return Plan::change(ClusterChange::Confirm { epoch: cluster.epoch });
    }
    let cut = cut_off::unconfirmed(cluster, observed, policy, memory, leader, primary).unwrap_or_default();
    if cut.change.is_some() || !cut.findings.is_empty() {
        return cut;
    }
    let degrades = degrade(cluster, observed, policy, memory, primary, promotion);
    if degrades.change.is_some() || !degrades.findings.is_empty() {
        return degrades;
    }
    let plan = rechoose(cluster, observed, policy, memory, leader, config);
    let plan = plan.unwrap_or_else(|| awaiting_confirmation(cluster, config, flushed, leader));
    match cut.wake_at.into_iter().chain(degrades.wake_at).min() {
        Some(at) if plan.change.is_none() => plan.until(at),
        _ => plan,
    }
}

/// Where commits may go on with fewer: so they do, after a while, with those who have the end of recovery. Nothing is
/// acknowledged in this epoch yet, and the leader has all that was before. Before that another leader is tried, where
/// standbys are here that cannot reach this one.
fn degrade(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    primary: &PrimarySeen,
    promotion: &HistoryEntry,
) -> Plan {
    let Some(config) = cluster.config().filter(|_| !lease::is_asynchronous(cluster)) else { return Plan::default() };
    let leader = config.leader.member;
    if !sync_set::may_degrade(cluster, observed, leader) {
        return Plan::default();
    }
    let until = memory.set.short_since(cluster.epoch, observed) + policy.degrade_after;
    if observed.now < until {
        return Plan::default().until(until);
    }
    if let Some(plan) = cut_off::rather_than_degrade(cluster, observed, policy, memory, leader, primary) {
        return plan;
    }
    let loaded = config.loaded();
    let has_it = |life: &&Incarnation| sync_set::flushed_past(primary, **life, promotion.end_of_recovery);
    let members: BTreeSet<Incarnation> = loaded.members.iter().filter(has_it).copied().collect();
    let set = SyncSet { needed: u8::try_from(members.len()).unwrap_or(u8::MAX), members };
    if set == *loaded || (set.needed == 0 && !sync_set::counts_lease(cluster, observed, policy, leader)) {
        return Plan::default();
    }
    Plan::change(ClusterChange::SetSyncSet { epoch: cluster.epoch, set })
}

fn awaiting_confirmation(cluster: &ClusterRecord, config: &EpochConfig, flushed: usize, leader: MemberId) -> Plan {
    let text = format!(
        "epoch {} has {flushed} of {} acknowledgements that it needs before clients are let in",
        cluster.epoch, config.sync_set.needed
    );
    Plan::wait(Finding::info("awaiting_confirmation", text).on_cluster(cluster.id).on_member(leader))
}

/// The set can never confirm as it is, or not with those who are here: the next epoch gives the same leader another one.
/// Clients are held meanwhile, so nobody who is needed waits for having been made anew lately.
fn rechoose(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    leader: MemberId,
    config: &EpochConfig,
) -> Option<Plan> {
    let needed = usize::from(config.sync_set.needed);
    let (mut broken, mut away) = (Vec::new(), 0);
    for life in &config.sync_set.members {
        let member = cluster.members.get(&life.member).filter(|member| member.current() == *life)?;
        match why_rebuild(cluster, observed, policy, member) {
            Some(why) => broken.push((member, why)),
            None => away += usize::from(observed.fresh(cluster, life.member, policy).is_none()),
        }
    }
    if config.sync_set.members.len() - broken.len() - away >= needed {
        return None;
    }
    // Those who are away may be back in a moment; what is broken stays so.
    let until = memory.phase_began(cluster, observed.now) + policy.cut_patience;
    let waits = config.sync_set.members.len() - broken.len() >= needed && observed.now < until;
    if let Some((member, why)) = broken.first() {
        if let Some(finding) = health::no_good_source(cluster, observed, leader, member) {
            let other = change_leader::leave_unwell(cluster, observed, policy, memory, leader);
            return Some(other.unwrap_or_else(|| Plan::wait(finding)));
        }
        if waits {
            return Some(Plan::wait(set_away(cluster)).until(until));
        }
        for (member, _) in &broken {
            health::note_rebuild(cluster, policy, memory, member, observed.now);
        }
        return Some(leave_set(cluster, observed, policy, member, leader, why));
    }
    // Members of the set that stay away, while others that are here could take their place: a set of those.
    let is_here = |member: &MemberRecord| {
        observed.fresh(cluster, member.id, policy).is_some_and(|report| {
            report.incarnation() == Some(member.current())
                && report.as_standby().and_then(|standby| standby.position).and_then(|at| cluster.may_follow(at))
                    == Some(true)
        })
    };
    let here = cluster.members.values().filter(|member| member.id != leader && is_here(member)).count();
    (here >= needed).then(|| match waits {
        true => Plan::wait(set_away(cluster)).until(until),
        false => {
            election::begin(cluster, observed, policy, EpochReason::SyncSetChange, Some(leader)).with(set_away(cluster))
        }
    })
}

fn set_away(cluster: &ClusterRecord) -> Finding {
    let text = "too few of the sync set are here to confirm the epoch; others are, and take their place soon";
    Finding::warning("sync_set_away", text).on_cluster(cluster.id)
}

/// How many of the set have the end of recovery on disk. Counted by incarnation, however many senders carry its name.
fn flushed_past(cluster: &ClusterRecord, primary: &PrimarySeen, promotion: &HistoryEntry) -> usize {
    let Some(config) = cluster.config() else { return 0 };
    config
        .sync_set
        .members
        .iter()
        .filter(|life| sync_set::flushed_past(primary, **life, promotion.end_of_recovery))
        .count()
}
