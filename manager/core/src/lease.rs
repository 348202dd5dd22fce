//! Leases: when the leader of an asynchronous configuration can acknowledge nothing any more, and what choosing another may
//! lose. A synchronous configuration asks nothing here: promises are its fence.
//!
//! While an epoch is open no lease is granted for the older one: a grant is good only for what the record says at the
//! revision that it names. So the old leader's lease ends, at the latest, when the last one ends that was granted
//! before this controller saw the epoch open. A controller that has just been elected knows of no grants of its
//! predecessors, and waits for as long as the longest of them can last.

use crate::candidate::Promises;
use crate::decide::Plan;
use crate::election;
use crate::observed::{Memory, Observed, Policy};
use crate::quorum::{Missing, electable_but};
use crate::sync_set;
use pgstead_types::record::{ClusterRecord, EpochConfig, EpochReason, PossibleLoss};
use pgstead_types::report::{DataSeen, PostgresSeen, PrimarySeen, PromiseAnswer};
use pgstead_types::{Epoch, Finding, Incarnation, Lsn, MemberId, Position, Tick};
use std::collections::BTreeSet;
use std::time::Duration;

/// What leaders that acknowledge alone mean for an election.
pub(crate) struct Leases {
    /// Asynchronous configurations that need no promise: their leader can acknowledge nothing any more.
    pub over: BTreeSet<Epoch>,
    /// When the lease of the one whose leader may still acknowledge is over. Also of a synchronous set that has come down to
    /// nobody: only its leader elects there, whatever the time, but a forced choice must not lead beside it.
    pub until: Option<Tick>,
}

/// Whether commits wait for nobody, now or as soon as the spec is followed: then the set cannot be changed in place.
pub(crate) fn is_asynchronous(cluster: &ClusterRecord) -> bool {
    cluster.spec.is_asynchronous() || cluster.config().is_some_and(|config| config.asynchronous)
}

/// The lease, if any, that this election must wait for. Called first when an epoch is first seen open, and from then on.
pub(crate) fn leases(cluster: &ClusterRecord, observed: &Observed, policy: &Policy, memory: &mut Memory) -> Leases {
    let mut leases = Leases { over: BTreeSet::new(), until: None };
    if cluster.recovering().is_some() {
        // The last leader may be one that the record does not know, on a node that was given up.
        leases.until = Some(observed.lease_end(None, policy)).filter(|until| observed.now < *until);
    }
    for config in cluster.configs.iter().filter(|config| config.acknowledges_alone()) {
        let is_last = cluster.configs.last().map(|last| last.epoch) == Some(config.epoch);
        // An earlier one's leader was out when the next was chosen, and an unconfirmed one has let no client in and never
        // will: this epoch is open.
        let may_acknowledge = is_last && cluster.configs.len() == 1;
        if may_acknowledge {
            let node = cluster.members.get(&config.leader.member).map(|member| member.node);
            let until = memory.lease_until.get_or_insert_with(|| observed.lease_end(node, policy));
            if is_out(cluster, observed, config) {
                // It stays so, whatever its next start looks like.
                *until = observed.now.min(*until);
            }
            if observed.now < *until {
                leases.until = leases.until.max(Some(*until));
                continue;
            }
        }
        if config.asynchronous {
            leases.over.insert(config.epoch);
        }
    }
    leases
}

/// By its own node's word, which cannot become untrue: it has promised the open epoch or a newer one, so it will never be the
/// primary of the older one again, and its guard sees no process of that primary. Or its data is gone, and so is every
/// process. One that takes no connections is no such word: a primary that is shut down takes none either, and its last
/// backends still acknowledge.
fn is_out(cluster: &ClusterRecord, observed: &Observed, config: &EpochConfig) -> bool {
    let Some(report) = observed.last(cluster, config.leader.member) else { return false };
    let ended = match &report.postgres {
        PostgresSeen::Down { .. } | PostgresSeen::Standby(_) => true,
        PostgresSeen::Primary(_) | PostgresSeen::Starting | PostgresSeen::Unresponsive { .. } => false,
    };
    let lost = matches!(&report.data, DataSeen::Lost { incarnation } if *incarnation == config.leader)
        && matches!(&report.postgres, PostgresSeen::Down { .. });
    lost || (ended && report.promised >= cluster.epoch)
}

/// Whether an epoch that is opened now could elect someone, sooner or later, with the promises of `here`.
pub(crate) fn has_prospect(cluster: &ClusterRecord, here: &BTreeSet<Incarnation>) -> Result<(), Option<Missing>> {
    let all = cluster.configs.iter().filter(|config| config.asynchronous).map(|config| config.epoch).collect();
    electable_but(&cluster.configs, here, &all)
}

/// The leader that may have acknowledged what the others lack: that of the last confirmed configuration.
pub(crate) fn acknowledged_alone(cluster: &ClusterRecord) -> Option<&EpochConfig> {
    cluster.configs.first().filter(|config| config.asynchronous)
}

/// How far a log that ends at `position` is the same as that of the leader that acknowledged alone, by the record: what was
/// acknowledged is nowhere else. Where nobody has, all of it counts.
pub(crate) fn shared(cluster: &ClusterRecord, position: Position) -> Position {
    let Some(config) = acknowledged_alone(cluster) else { return position };
    let its_log = Position { timeline: config.timeline, lsn: Lsn(u64::MAX) };
    // Whoever was chosen from there ended there, inside a record perhaps, and forked before it.
    let at_its_start = position.timeline == config.start.timeline && position.lsn <= config.start.lsn;
    if at_its_start || cluster.is_prefix(position, its_log) {
        return position;
    }
    let ancestors = cluster.ancestry(position.timeline);
    let shared = ancestors.iter().map(|(timeline, lsn)| Position { timeline: *timeline, lsn: *lsn });
    shared.filter(|at| cluster.is_prefix(*at, its_log)).max().unwrap_or_default()
}

/// Whether a log had left the history before the leader that acknowledged alone led: it lacks everything since. Not one that was
/// chosen in a later epoch, nor any before the first promotion is noted.
fn is_astray(cluster: &ClusterRecord, position: Position) -> bool {
    let Some(config) = acknowledged_alone(cluster).filter(|_| cluster.recovering().is_none()) else { return false };
    let has_led = cluster.history.iter().any(|entry| entry.timeline == config.timeline);
    let was_chosen = cluster.configs.iter().any(|later| later.timeline == position.timeline);
    let shared = shared(cluster, position);
    has_led && !was_chosen && shared != position && shared.timeline != config.timeline
}

/// Until when others are worth waiting for where only a log that is astray could lead: choosing it gives up not a tail, but all that
/// was committed since, which others have on their disks. After that it is chosen, with what that may lose on record.
pub(crate) fn awaits_better(
    cluster: &ClusterRecord,
    policy: &Policy,
    promises: &Promises,
    chosen: PromiseAnswer,
    (since, now): (Tick, Tick),
) -> Option<(Tick, Finding)> {
    let away = cluster.members.values().filter(|member| !promises.contains_key(&member.current()));
    let away: Vec<&str> = away.map(|member| member.name.as_str()).collect();
    if away.is_empty() || !is_astray(cluster, chosen.position) {
        return None;
    }
    let name = cluster.members.get(&chosen.incarnation.member).map_or("?", |member| member.name.as_str());
    let until = since + policy.astray_patience;
    let text = format!(
        "{name} could be elected, but its log left the history before the last leader led: all that was committed since would be \
         given up. Bring back {}, which may have it; in {} s {name} leads without",
        away.join(" or "),
        until.since(now).as_secs()
    );
    Some((until, Finding::error("promise_missing", text).on_cluster(cluster.id)))
}

/// What the old leader was last seen to have flushed. Forgotten by a new controller.
pub(crate) fn note_flushed(cluster: &ClusterRecord, primary: &PrimarySeen, memory: &mut Memory) {
    if cluster.config().is_some_and(|config| config.asynchronous) {
        memory.flushed = Some((cluster.epoch, primary.flushed));
    }
}

/// What choosing `chosen` may leave behind; `None` where the old leader itself says that it is nothing.
pub(crate) fn possible_loss(
    cluster: &ClusterRecord,
    memory: &Memory,
    promises: &Promises,
    chosen: PromiseAnswer,
) -> Option<PossibleLoss> {
    let config = acknowledged_alone(cluster)?;
    if chosen.incarnation == config.leader {
        return None;
    }
    let own = promises.get(&config.leader).map(|answer| answer.position);
    if own.is_some_and(|position| cluster.is_prefix(position, chosen.position)) {
        return None;
    }
    let seen = memory.flushed.filter(|(epoch, _)| *epoch == config.epoch).map(|(_, flushed)| flushed);
    let last = own.filter(|position| position.timeline == config.timeline).map(|position| position.lsn).or(seen);
    // Up to where the chosen one's log is the same as the old leader's.
    let shared = if chosen.position.timeline == config.timeline {
        Some(chosen.position.lsn)
    } else {
        let ancestry = cluster.ancestry(chosen.position.timeline);
        ancestry.iter().find(|(timeline, _)| *timeline == config.timeline).map(|(_, shared)| *shared)
    };
    let bytes = last.zip(shared).map(|(last, shared)| last.bytes_since(shared).0);
    Some(PossibleLoss { bytes })
}

/// Until when the old leader's own promise is worth waiting for, beyond the necessary: its log may hold what the others lack,
/// and its node is here.
pub(crate) fn awaits_old_leader(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    promises: &Promises,
    since: Tick,
) -> Option<Tick> {
    let leader = acknowledged_alone(cluster)?.leader;
    if promises.contains_key(&leader) {
        return None;
    }
    let here = observed.fresh(cluster, leader.member, policy)?.incarnation() == Some(leader);
    let until = since + policy.preferred_patience;
    (here && observed.now < until).then_some(until)
}

/// Enough have promised and the old leader's lease is not over.
pub(crate) fn waiting(cluster: &ClusterRecord, until: Tick, now: Tick) -> Finding {
    let name = cluster.configs.last().and_then(|config| cluster.members.get(&config.leader.member));
    let name = name.map_or("?", |member| member.name.as_str());
    let text = format!(
        "commits of {name} wait for nobody, so its lease must be over before another leads: {} ms more, or its guard's word that its Postgres has ended",
        until.since(now).as_millis()
    );
    Finding::warning("lease_runs", text).on_cluster(cluster.id)
}

/// How long members that are here go on refusing elections, the last of them.
pub(crate) fn longest_refusal(cluster: &ClusterRecord, observed: &Observed, policy: &Policy) -> Duration {
    let left = |member: &MemberId| Some(observed.fresh(cluster, *member, policy)?.refusing?.remaining_ms);
    Duration::from_millis(cluster.members.keys().filter_map(left).max().unwrap_or(0))
}

/// Members that would promise and obey no election now, because a leader that could not hear the controller has asked them to.
pub(crate) fn refusing(cluster: &ClusterRecord, observed: &Observed, policy: &Policy) -> Option<Finding> {
    let mut left = 0;
    let names: Vec<&str> = cluster
        .members
        .values()
        .filter_map(|member| {
            let refusal = observed.fresh(cluster, member.id, policy)?.refusing?;
            left = left.max(refusal.remaining_ms);
            Some(member.name.as_str())
        })
        .collect();
    if names.is_empty() {
        return None;
    }
    let text = format!(
        "the leader could not hear a controller and goes on by the word of {}, who obey no election for up to {left} ms more",
        names.join(", ")
    );
    Some(Finding::warning("refusing_elections", text).on_cluster(cluster.id))
}

/// The change of leader that made this epoch may have lost something: shown for as long as the epoch lasts.
pub(crate) fn may_have_lost(cluster: &ClusterRecord) -> Option<Finding> {
    let entry = cluster.promotion()?;
    let loss = entry.possible_loss?;
    let text = format!("epoch {} began without {loss}", entry.epoch);
    Some(Finding::warning("may_have_lost", text).on_cluster(cluster.id))
}

/// Between waiting for standbys and not waiting for them there is only a planned epoch: the leader stops cleanly, promises,
/// and is chosen again under the other rule. Where commits are to wait for standbys from then on, these must be here first:
/// the epoch is confirmed, and clients let in, only when so many have its beginning.
pub(crate) fn change_of_kind(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    primary: &PrimarySeen,
    leader: MemberId,
) -> Option<Plan> {
    let config = cluster.config()?;
    if config.asynchronous == cluster.spec.is_asynchronous()
        // One member is of neither kind: what it is left with becomes so with the last of the others.
        || cluster.members.len() < 2
        || cluster.spec.members < 2
    {
        return None;
    }
    let standbys = cluster.members.values().filter(|member| member.id != leader);
    let here = standbys.filter(|member| sync_set::caught_up(primary, member.current())).count();
    let needed = if cluster.spec.is_asynchronous() { 0 } else { usize::from(cluster.spec.needed()) };
    if here < needed {
        let text = format!(
            "commits still wait for nobody: they are to wait for {needed} standbys, and {here} stream and have caught up"
        );
        return Some(Plan::wait(Finding::warning("short_of_copies", text).on_cluster(cluster.id)));
    }
    let change = election::begin(cluster, observed, policy, EpochReason::SyncSetChange, Some(leader)).change?;
    Some(Plan::change(change))
}

#[cfg(test)]
mod tests;
