//! The one that holds most of the log should not lead: another promiser fetches the rest from it first, and leads.

use crate::candidate::Promises;
use crate::decide::Plan;
use crate::health;
use crate::observed::{Memory, Observed, Policy, Presence};
use pgstead_types::record::{ClusterChange, ClusterRecord, LogFetch};
use pgstead_types::report::PromiseAnswer;
use pgstead_types::{Finding, Incarnation, MemberId, Tick};
use std::collections::BTreeSet;

/// Who fetches now. What it answered before is not gone by: the end of its log is about to be another.
pub(crate) fn under_way(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
) -> Option<Incarnation> {
    let fetch = cluster.fetch()?;
    let until = memory.phase_began(cluster, observed.now) + policy.fetch_deadline;
    let report = observed.last(cluster, fetch.to.member);
    let done = report.is_some_and(|report| report.fetched == Some(cluster.epoch));
    (!done && observed.now < until).then_some(fetch.to)
}

/// What comes before `chosen` is chosen; `None` where nothing does.
pub(crate) fn plan(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    promises: &Promises,
    chosen: PromiseAnswer,
) -> Option<Plan> {
    let unfit = health::unfit(cluster, observed);
    let is_unfit = unfit.contains(&chosen.incarnation.member);
    if let Some(fetch) = cluster.fetch() {
        let lacks = acknowledged_alone(cluster) && chosen.position < fetch.upto;
        return (is_unfit || lacks).then(|| awaited(cluster, observed, policy, memory)).flatten();
    }
    let (from, to) = match is_unfit {
        true => (chosen, best_well(cluster, observed, promises, &unfit, chosen)?),
        false => (more_of_it(cluster, promises, &unfit, chosen)?, chosen),
    };
    let fetch = LogFetch { epoch: cluster.epoch, from: from.incarnation, to: to.incarnation, upto: from.position };
    Some(Plan::change(ClusterChange::FetchLog { fetch }))
}

/// Until it has been done, or given up, or for as long as `fetch_deadline` allows, while the one that fetches is not known to be
/// away.
pub(crate) fn awaited(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
) -> Option<Plan> {
    let fetch = cluster.fetch()?;
    let until = memory.phase_began(cluster, observed.now) + policy.fetch_deadline;
    let node = cluster.members.get(&fetch.to.member).map(|member| member.node)?;
    if matches!(observed.presence(node, policy), Presence::Gone | Presence::Silent { .. }) || observed.now >= until {
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
    let name = |life: Incarnation| cluster.members.get(&life.member).map_or("?", |member| member.name.as_str());
    let text = format!("{} fetches the log that only {} holds, which is not well", name(fetch.to), name(fetch.from));
    let finding = Finding::info("log_fetching", text).on_cluster(cluster.id).on_member(fetch.to.member);
    Some(Plan::wait(finding).until(until))
}

/// A fetch that did not get everything is tried again in another epoch, where nobody can be elected without it; from when on.
pub(crate) fn again_from(cluster: &ClusterRecord, policy: &Policy, memory: &mut Memory, now: Tick) -> Option<Tick> {
    cluster.fetch().map(|_| memory.phase_began(cluster, now) + policy.fetch_again)
}

/// Its leader's commits need be on no standby.
fn acknowledged_alone(cluster: &ClusterRecord) -> bool {
    cluster.configs.first().is_some_and(|config| config.asynchronous)
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
    if !acknowledged_alone(cluster) {
        return None;
    }
    let more = promises.values().filter(|answer| unfit.contains(&answer.incarnation.member));
    more.filter(|answer| lacks_some(&chosen, answer)).max_by_key(|answer| answer.position).copied()
}

/// On one timeline: what is there of it is the same on both.
fn lacks_some(answer: &PromiseAnswer, holder: &PromiseAnswer) -> bool {
    answer.position.timeline == holder.position.timeline && answer.position.lsn < holder.position.lsn
}

#[cfg(test)]
mod tests;
