//! The one that holds most of the log should not lead: another promiser fetches the rest from it first, and leads.

use crate::candidate::Promises;
use crate::decide::Plan;
use crate::health;
use crate::lease;
use crate::observed::{Memory, Observed, Policy, Presence};
use pgstead_types::record::{ClusterChange, ClusterRecord, LogFetch};
use pgstead_types::report::PromiseAnswer;
use pgstead_types::{Finding, Incarnation, MemberId, Tick};
use std::collections::BTreeSet;

/// An order that stands, and until when it is waited for.
fn ordered<'a>(
    cluster: &'a ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
) -> Option<(&'a LogFetch, Tick)> {
    let fetch = cluster.fetch()?;
    Some((fetch, memory.phase_began(cluster, observed.now) + policy.fetch_deadline))
}

/// Who fetches now. What it answered before is not gone by: the end of its log is about to be another.
pub(crate) fn under_way(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
) -> Option<Incarnation> {
    let (fetch, until) = ordered(cluster, observed, policy, memory)?;
    let report = observed.last(cluster, fetch.to.member);
    let done = report.is_some_and(|report| report.fetched == Some(cluster.epoch));
    (!done && observed.now < until).then_some(fetch.to)
}

/// Until what was ordered has been done, or given up, while the one that fetches is not known to be away. `chosen`: who would be
/// without it, where anybody could.
pub(crate) fn awaited(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    chosen: Option<PromiseAnswer>,
) -> Option<Plan> {
    let (fetch, until) = ordered(cluster, observed, policy, memory)?;
    let does_without = |chosen: PromiseAnswer| {
        let lacks = lease::acknowledged_alone(cluster).is_some() && chosen.position < fetch.upto;
        !lacks && !health::unfit(cluster, observed).contains(&chosen.incarnation.member)
    };
    let node = cluster.members.get(&fetch.to.member).map(|member| member.node)?;
    let is_away = matches!(observed.presence(node, policy), Presence::Gone | Presence::Silent { .. });
    if chosen.is_some_and(does_without) || is_away || observed.now >= until {
        return None;
    }
    // What it said last, if that is a moment ago. One that was not heard yet is about to be.
    let over = observed.last(cluster, fetch.to.member).is_some_and(|report| {
        let answered = report.answer.is_some_and(|answer| answer.epoch == cluster.epoch);
        report.incarnation() != Some(fetch.to) || (report.fetched == Some(cluster.epoch) && answered)
    });
    if over {
        return None;
    }
    let text = format!(
        "{} fetches the log that only {} holds, which is not well",
        name(cluster, fetch.to),
        name(cluster, fetch.from)
    );
    let finding = Finding::info("log_fetching", text).on_cluster(cluster.id).on_member(fetch.to.member);
    Some(Plan::wait(finding).until(until))
}

/// Has a promiser that is well fetch what it lacks before `chosen` is chosen. `None` where that is of no use, or was done.
pub(crate) fn order(
    cluster: &ClusterRecord,
    observed: &Observed,
    promises: &Promises,
    chosen: PromiseAnswer,
) -> Option<Plan> {
    if cluster.fetch().is_some() {
        return None;
    }
    let unfit = health::unfit(cluster, observed);
    let (from, to) = match unfit.contains(&chosen.incarnation.member) {
        true => (chosen, best_well(cluster, observed, promises, &unfit, chosen)?),
        false => (more_of_it(cluster, promises, &unfit, chosen)?, chosen),
    };
    let fetch = LogFetch { epoch: cluster.epoch, from: from.incarnation, to: to.incarnation, upto: from.position };
    Some(Plan::change(ClusterChange::FetchLog { fetch }))
}

/// It did not get everything, and nobody can be elected without the rest: from when on it is tried again, in another epoch.
pub(crate) fn again(
    cluster: &ClusterRecord,
    policy: &Policy,
    memory: &mut Memory,
    now: Tick,
) -> Option<(Tick, Finding)> {
    let fetch = cluster.fetch()?;
    let at = memory.phase_began(cluster, now) + policy.fetch_again;
    let text = format!(
        "{to} did not get all of the log up to {} that only {} holds; it is tried again in {} s, and the log of {to}'s node says what \
         was in the way",
        fetch.upto,
        name(cluster, fetch.from),
        at.since(now).as_secs(),
        to = name(cluster, fetch.to),
    );
    Some((at, Finding::warning("log_not_fetched", text).on_cluster(cluster.id).on_member(fetch.to.member)))
}

fn name(cluster: &ClusterRecord, life: Incarnation) -> &str {
    cluster.members.get(&life.member).map_or("?", |member| member.name.as_str())
}

/// Of those who are well, the one that lacks least of it.
fn best_well(
    cluster: &ClusterRecord,
    observed: &Observed,
    promises: &Promises,
    unfit: &BTreeSet<MemberId>,
    holder: PromiseAnswer,
) -> Option<PromiseAnswer> {
    let is_well = |member| !unfit.contains(&member) && health::wants_other_data(cluster, observed, member).is_none();
    let lacking = promises.values().filter(|answer| lacks_some(answer, &holder) && is_well(answer.incarnation.member));
    lacking.max_by_key(|answer| answer.position).copied()
}

/// Whoever is not well and holds more than `chosen` of what an asynchronous leader has acknowledged. Where commits wait for
/// standbys, those who are enough for an election hold all of it.
fn more_of_it(
    cluster: &ClusterRecord,
    promises: &Promises,
    unfit: &BTreeSet<MemberId>,
    chosen: PromiseAnswer,
) -> Option<PromiseAnswer> {
    lease::acknowledged_alone(cluster)?;
    let more = promises.values().filter(|answer| unfit.contains(&answer.incarnation.member));
    // Beyond where the leader went on from, it is in nobody's history.
    let of_it = |answer: &&PromiseAnswer| lease::shared(cluster, answer.position) == answer.position;
    more.filter(of_it).filter(|answer| lacks_some(&chosen, answer)).max_by_key(|answer| answer.position).copied()
}

/// On one timeline: what is there of it is the same on both.
fn lacks_some(answer: &PromiseAnswer, holder: &PromiseAnswer) -> bool {
    answer.position.timeline == holder.position.timeline && answer.position.lsn < holder.position.lsn
}

#[cfg(test)]
mod tests;
