//! An epoch is open: collect promises until they are enough, then choose once. Without enough it holds and says whom it
//! misses. Also: whether opening one has a prospect at all.

use crate::candidate::{Promises, choice, rank};
use crate::decide::Plan;
use crate::fetch;
use crate::forced;
use crate::health;
use crate::lease;
use crate::observed::{Memory, Observed, Policy, Presence};
use crate::quorum::Missing;
use crate::recovered;
use pgstead_types::record::{ClusterChange, ClusterRecord, EpochReason};
use pgstead_types::report::{DataSeen, MemberReport, PostgresSeen};
use pgstead_types::{Finding, Incarnation, MemberId, Tick};
use std::collections::BTreeSet;

/// Opens the next epoch if the members that are here could elect someone in it; else holds with the reason. An election
/// without a prospect would only stop standbys that may be serving a healthy leader.
pub(crate) fn begin(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    reason: EpochReason,
    preferred: Option<MemberId>,
) -> Plan {
    let here = could_promise(cluster, observed, policy);
    if let Some(finding) = recovered::waits_for(cluster, observed, policy, &here) {
        return Plan::wait(finding);
    }
    match lease::has_prospect(cluster, &here) {
        Ok(()) => Plan::change(ClusterChange::BeginEpoch { epoch: cluster.epoch.next(), reason, preferred }),
        Err(missing) => hold(cluster, observed, policy, missing),
    }
}

/// Not enough could promise, or have. Whoever refuses for a while is named too.
fn hold(cluster: &ClusterRecord, observed: &Observed, policy: &Policy, missing: Option<Missing>) -> Plan {
    let plan = Plan::wait(missing_finding(cluster, missing));
    match lease::refusing(cluster, observed, policy) {
        Some(finding) => plan.with(finding),
        None => plan,
    }
}

/// Present incarnations with complete data whose nodes are here: those who would answer.
pub(crate) fn could_promise(cluster: &ClusterRecord, observed: &Observed, policy: &Policy) -> BTreeSet<Incarnation> {
    let refuses = |life: &Incarnation| {
        observed.fresh(cluster, life.member, policy).is_some_and(|report| report.refusing.is_some())
    };
    here_with_data(cluster, observed, policy).into_iter().filter(|life| !refuses(life)).collect()
}

/// The same with those who refuse elections for a moment yet: they answer as soon as their word is over.
pub(crate) fn here_with_data(cluster: &ClusterRecord, observed: &Observed, policy: &Policy) -> BTreeSet<Incarnation> {
    let has_data = |life: &Incarnation| {
        observed.fresh(cluster, life.member, policy).is_some_and(|report| report.incarnation() == Some(*life))
    };
    cluster.members.values().map(|member| member.current()).filter(has_data).collect()
}

fn promises(cluster: &ClusterRecord, observed: &Observed, policy: &Policy, memory: &mut Memory) -> Promises {
    let fetching = fetch::under_way(cluster, observed, policy, memory);
    let answers = cluster.members.values().filter_map(|member| {
        let answer = observed.fresh(cluster, member.id, policy)?.answer?;
        let counts = answer.incarnation == member.current() && Some(answer.incarnation) != fetching;
        (answer.epoch == cluster.epoch && counts).then_some((answer.incarnation, answer))
    });
    answers.collect()
}

pub(crate) fn plan(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    reason: EpochReason,
    preferred: Option<MemberId>,
) -> Plan {
    if let Some(change) = recovered::adoption(cluster, observed, policy) {
        return Plan::change(change);
    }
    let leases = lease::leases(cluster, observed, policy, memory);
    let promises = promises(cluster, observed, policy, memory);
    let lacking = recovered::waits_for(cluster, observed, policy, &promises.keys().copied().collect());
    if reason == EpochReason::Forced && (lacking.is_some() || !forced::is_needless(cluster, observed, &promises)) {
        return forced::plan(cluster, observed, policy, memory, &promises, preferred, &leases);
    }
    if lacking.is_some() {
        memory.electable = None;
        let here = could_promise(cluster, observed, policy);
        return match recovered::waits_for(cluster, observed, policy, &here) {
            Some(finding) => Plan::wait(finding),
            None => Plan::wait(arriving(cluster)),
        };
    }
    let chosen = match rank(cluster, &promises, preferred, &health::unfit(cluster, observed), &leases.over) {
        Ok(chosen) => chosen,
        Err(missing) => {
            memory.electable = None;
            let promised = promises.keys().copied().collect();
            if let Some(until) = leases.until
                && lease::has_prospect(cluster, &promised).is_ok()
            {
                return Plan::wait(lease::waiting(cluster, until, observed.now)).until(until);
            }
            if let Some(plan) = fetch::awaited(cluster, observed, policy, memory, None) {
                return plan;
            }
            if lease::has_prospect(cluster, &could_promise(cluster, observed, policy)).is_ok() {
                return Plan::wait(arriving(cluster));
            }
            return hold(cluster, observed, policy, missing);
        }
    };
    if let Some(plan) = fetch::awaited(cluster, observed, policy, memory, Some(chosen)) {
        return plan;
    }
    if health::is_corrupted(cluster, observed, chosen.incarnation.member) && cluster.members.len() > 1 {
        memory.electable = None;
        if let Some(plan) = fetch::order(cluster, observed, &promises, chosen) {
            return plan;
        }
        let hold = Plan::wait(health::only_corrupted(cluster, chosen.incarnation.member));
        return match fetch::again(cluster, policy, memory, observed.now) {
            Some((at, _)) if observed.now >= at => begin(cluster, observed, policy, reason, preferred),
            Some((at, finding)) => hold.with(finding).until(at),
            None => hold,
        };
    }
    let since = *memory.electable.get_or_insert(observed.now);
    let awaited = Awaited { reason, preferred, chosen: chosen.incarnation };
    if let Some(until) = worth_waiting(cluster, observed, policy, &promises, &awaited, since) {
        let text = "enough members have promised; waiting a moment for the others that are here";
        return Plan::wait(Finding::info("promises_arriving", text).on_cluster(cluster.id)).until(until);
    }
    if let Some(until) = lease::awaits_old_leader(cluster, observed, policy, &promises, since) {
        let text = "enough members have promised; the old leader, which acknowledged alone, may be back in a moment";
        return Plan::wait(Finding::info("promises_arriving", text).on_cluster(cluster.id)).until(until);
    }
    if let Some((until, finding)) = lease::awaits_better(cluster, policy, &promises, chosen, (since, observed.now))
        && observed.now < until
    {
        return Plan::wait(finding).until(until);
    }
    if let Some(plan) = fetch::order(cluster, observed, &promises, chosen) {
        return plan;
    }
    let rebuild = must_rebuild(cluster, observed, policy, &promises, chosen.incarnation.member);
    let loss = lease::possible_loss(cluster, memory, &promises, chosen);
    Plan::change(choice(cluster, &promises, chosen, &rebuild, loss))
}

fn arriving(cluster: &ClusterRecord) -> Finding {
    let text = format!("epoch {} is open: promises are arriving", cluster.epoch);
    Finding::info("promises_arriving", text).on_cluster(cluster.id)
}

/// What an election that could end now is about.
struct Awaited {
    reason: EpochReason,
    preferred: Option<MemberId>,
    /// Who would be chosen.
    chosen: Incarnation,
}

/// Until when to wait for promises beyond the necessary ones: the preferred leader's, or a standby's that streams and is
/// about to answer anyway, so that the new set starts larger. The old leader's is waited for only in a planned change,
/// where it is well, and only if the set would be too small without it: it has to be started first, and clients wait. Where
/// only the leader that has just been lost could be chosen, a standby that would do instead gets longer.
fn worth_waiting(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    promises: &Promises,
    about: &Awaited,
    since: Tick,
) -> Option<Tick> {
    let Awaited { reason, preferred, chosen } = *about;
    let suspect = cluster.configs.last().map(|config| config.leader.member);
    let here = could_promise(cluster, observed, policy);
    let others = promises.keys().filter(|life| Some(life.member) != suspect).count();
    let suspect_counts = reason.is_planned() && others <= usize::from(cluster.spec.needed());
    let awaited = |life: &Incarnation| {
        (Some(life.member) != suspect || suspect_counts)
            && !promises.contains_key(life)
            && observed.last(cluster, life.member).is_some_and(|report| {
                matches!(report.postgres, PostgresSeen::Standby(_)) || (suspect_counts && Some(life.member) == suspect)
            })
    };
    let is_preferred = |life: &Incarnation| Some(life.member) == preferred && !promises.contains_key(life);
    let same_again = Some(chosen.member) == suspect
        && !reason.is_planned()
        && preferred != suspect
        && lease::acknowledged_alone(cluster).is_none();
    // Whoever is waited for by name may also be one whose node has not been heard for a moment.
    let named = |life: &Incarnation| is_preferred(life) || (same_again && Some(life.member) != suspect);
    let doubtful = cluster.members.values().filter_map(|member| match observed.presence(member.node, policy) {
        Presence::Doubtful { until } if named(&member.current()) => Some(until),
        _ => None,
    });
    let until = if here.iter().any(|life| is_preferred(life) || (same_again && awaited(life))) {
        since + policy.preferred_patience
    } else if let Some(until) = doubtful.min() {
        until.min(since + policy.preferred_patience)
    } else if here.iter().any(awaited) {
        since + policy.promise_patience
    } else {
        return None;
    };
    (observed.now < until).then_some(until)
}

/// Members that cannot be in a set as they are: their data is gone, or of no use to them, or the chosen one no longer has
/// the log that they lack. The old leader, if it is away, stays as it is: where its log has left the history, that is
/// seen when it comes back, and until then its data may yet be needed.
fn must_rebuild(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    promises: &Promises,
    chosen: MemberId,
) -> BTreeSet<MemberId> {
    let oldest = observed.fresh(cluster, chosen, policy).and_then(|report| report.oldest_log);
    cluster
        .members
        .values()
        .filter(|member| match promises.get(&member.current()) {
            // One that is here and does not come to answer, its recovery being stuck or its pages broken, would be as little
            // use to the next set.
            None => {
                has_lost_data(cluster, observed, policy, member.id).is_some()
                    || recovered::unknown_life(cluster, observed, policy, member).is_some()
                    || (observed.fresh(cluster, member.id, policy).is_some_and(|report| !accepts(report))
                        && health::wants_other_data(cluster, observed, member.id).is_some())
            }
            Some(answer) => {
                answer.incarnation.member != chosen
                    && (oldest.is_some_and(|oldest| answer.position.lsn < oldest)
                        || health::wants_other_data(cluster, observed, member.id).is_some())
            }
        })
        .map(|member| member.id)
        .collect()
}

fn accepts(report: &MemberReport) -> bool {
    report.as_primary().is_some() || report.as_standby().is_some()
}

/// By its node's fresh word, the present incarnation's data is gone.
pub(crate) fn has_lost_data(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    member: MemberId,
) -> Option<Incarnation> {
    let current = cluster.members.get(&member)?.current();
    match &observed.fresh(cluster, member, policy)?.data {
        DataSeen::Lost { incarnation } if *incarnation == current => Some(current),
        // A life that a recovered record never knew is gone as well.
        DataSeen::Lost { incarnation }
            if cluster.recovered.is_some()
                && incarnation.member == current.member
                && incarnation.number > current.number =>
        {
            Some(current)
        }
        _ => None,
    }
}

pub(crate) fn missing_finding(cluster: &ClusterRecord, missing: Option<Missing>) -> Finding {
    let name = |life: &Incarnation| {
        cluster.members.get(&life.member).map_or_else(|| life.to_string(), |member| member.name.clone())
    };
    let text = match missing {
        None if cluster.configs.is_empty() => {
            "no configuration was ever recorded, so nobody can be elected".to_string()
        }
        None => "no failover: no member with its data is here that is free to promise; bring one back".to_string(),
        Some(missing) if missing.absent.is_empty() => {
            format!("no failover: only {} itself can say what was acknowledged; bring it back", name(&missing.leader))
        }
        Some(missing) => {
            let absent: Vec<String> = missing.absent.iter().map(name).collect();
            format!(
                "no failover without losing what may be acknowledged: missing the promise of {} of {} (or of the leader of epoch {}, {}); bring one back",
                missing.more,
                absent.join(", "),
                missing.epoch,
                name(&missing.leader)
            )
        }
    };
    Finding::error("promise_missing", text).on_cluster(cluster.id)
}
