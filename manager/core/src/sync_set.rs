//! The sync set of a leader that goes on working: who joins it, who leaves it, how many acknowledgements it asks for.
//!
//! One goal is computed from what is seen now. If it is another than what Postgres is to go by, the record is widened
//! towards it; once Postgres goes by it and enough of it have flushed past where the leader stood then, the change is
//! settled. All of that is in the record, so another controller goes on from anywhere. A leader that acknowledges alone
//! under a lease has no set that could change.

use crate::cut_off;
use crate::decide::Plan;
use crate::health;
use crate::lease;
use crate::members;
use crate::observed::{Memory, Observed, Policy};
use crate::steady::why_rebuild;
use pgstead_types::record::{ClusterChange, ClusterRecord, EpochConfig, SetChange, Standing, SyncSet};
use pgstead_types::report::{PrimarySeen, SetBy};
use pgstead_types::spec::Durability;
use pgstead_types::{Bytes, Epoch, Finding, Incarnation, Lsn, MemberId, Tick};
use std::collections::{BTreeMap, BTreeSet};

/// A standby within this of the leader's log has caught up: it flushes the rest in a moment.
pub(crate) const CAUGHT_UP: Bytes = Bytes(1 << 20);

/// What is remembered of a set between decisions. Another controller waits anew.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct SetMemory {
    epoch: Epoch,
    /// Since when a member of the set has not streamed.
    away: BTreeMap<Incarnation, Tick>,
    /// Since when fewer of the set stream than must acknowledge, seen all the while.
    short: Option<Tick>,
    /// The set that is being loaded, and where the leader's log ended when every WAL sender was first seen to go by it.
    in_force: Option<(SetChange, Lsn)>,
}

impl SetMemory {
    fn of(&mut self, epoch: Epoch) -> &mut Self {
        if self.epoch != epoch {
            *self = SetMemory { epoch, ..SetMemory::default() };
        }
        self
    }

    /// The leader was not seen for a moment, or was seen with enough: whether commits waited meanwhile, nobody knows.
    pub(crate) fn interrupted(&mut self) {
        self.short = None;
    }

    /// Since when it is seen that too few acknowledge. What was so before this controller could rely on what it hears
    /// (it is new, or its own clockwork stalled) does not count.
    pub(crate) fn short_since(&mut self, epoch: Epoch, observed: &Observed) -> Tick {
        let short = &mut self.of(epoch).short;
        let since = short.unwrap_or(observed.now).max(observed.since);
        *short = Some(since);
        since
    }
}

/// Whether commits may go on with fewer acknowledgements than asked for under this leader. Nobody is made anew from one whose
/// pages are wrong, so it is not left with the only copy; and one whose storage takes no writes gains nothing by it, while
/// only its own promise could elect anybody afterwards.
pub(crate) fn may_degrade(cluster: &ClusterRecord, observed: &Observed, leader: MemberId) -> bool {
    cluster.spec.durability == Durability::Available && !health::unfit(cluster, observed).contains(&leader)
}

/// By its node's fresh word the leader's guard counts a lease: without one it may not acknowledge alone.
pub(crate) fn counts_lease(cluster: &ClusterRecord, observed: &Observed, policy: &Policy, leader: MemberId) -> bool {
    let lease = observed.fresh(cluster, leader, policy).and_then(|report| report.lease);
    cluster.members.len() < 2 || lease.is_some_and(|lease| lease.remaining_ms > 0)
}

/// The next change of the set of a confirmed epoch, or what it waits for. `spared` are to be fed by others and not to count.
pub(crate) fn plan(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    primary: &PrimarySeen,
    leader: MemberId,
    spared: &BTreeSet<Incarnation>,
) -> Plan {
    let mut plan = Plan::default();
    let Some(config) = cluster.config().filter(|config| !config.asynchronous) else {
        memory.set.interrupted();
        return plan;
    };
    // Seen by a record that has it, and loaded by one that has it: the leader follows no older one any more.
    let of_it = |change: &SetChange| {
        let by = SetBy { epoch: cluster.epoch, revision: change.revision };
        let report = observed.fresh(cluster, leader, policy);
        report.is_some_and(|report| report.revision >= change.revision && report.set_by >= Some(by))
    };
    if lease::is_asynchronous(cluster) {
        // It is to acknowledge alone with its next epoch. What was begun before is seen to its end: a restart or a switchover,
        // which that epoch waits for, waits for it.
        memory.set.interrupted();
        let Some(change) = &config.target else { return plan };
        return settle(cluster, memory.set.of(cluster.epoch), primary, of_it(change), change, plan);
    }
    let may_leave = members::may_leave_from(cluster, observed, policy, memory).is_some_and(|from| observed.now >= from);
    let mut view = View::new(cluster, observed, policy, primary, config, leader, may_leave);
    view.spare(spared);
    let due = view.is_degrading_due(memory.set.of(cluster.epoch), observed, policy, &mut plan);
    if due && let Some(other) = cut_off::rather_than_degrade(cluster, observed, policy, memory, leader, primary) {
        return other;
    }
    let memory = memory.set.of(cluster.epoch);
    let degraded = view.degraded().filter(|_| due);
    let goal = degraded.unwrap_or_else(|| view.goal(memory, observed.now, policy, &mut plan));
    if goal != *config.loaded() {
        memory.in_force = None;
        plan.change = Some(ClusterChange::SetSyncSet { epoch: cluster.epoch, set: goal });
        return plan;
    }
    if let Some(change) = &config.target {
        return settle(cluster, memory, primary, of_it(change), change, plan);
    }
    memory.in_force = None;
    let wanted = cluster.spec.needed();
    if config.sync_set.needed < wanted && cluster.spec.durability == Durability::Available {
        let text = match config.sync_set.needed {
            0 => "commits are acknowledged by the leader alone; a standby that returns and catches up counts again"
                .into(),
            needed => format!("commits are acknowledged with {needed} of {wanted} standbys, until more return"),
        };
        plan.findings.push(Finding::error("degraded", text).on_cluster(cluster.id).on_member(leader));
    } else if config.sync_set.needed < wanted {
        let text = format!(
            "commits are acknowledged with {} of {wanted} standbys, until more have caught up",
            config.sync_set.needed
        );
        plan.findings.push(Finding::warning("short_of_copies", text).on_cluster(cluster.id));
    }
    plan
}

/// Every WAL sender goes by the target: whatever was acknowledged by an older set lies before where the leader's log
/// ended then. Once as many of the target as it asks for have flushed that, an election by it finds everything.
fn settle(
    cluster: &ClusterRecord,
    memory: &mut SetMemory,
    primary: &PrimarySeen,
    of_it: bool,
    change: &SetChange,
    mut plan: Plan,
) -> Plan {
    let wait = |why: &str| {
        Finding::info("sync_set_changing", format!("the sync set is being changed: {why}")).on_cluster(cluster.id)
    };
    let target = &change.set;
    // By an older record the same set may be that of an earlier change, and what came between not loaded yet.
    if !of_it || primary.sync_set.as_ref() != Some(target) {
        memory.in_force = None;
        plan.findings.push(wait("the leader's WAL senders must all have seen it"));
        return plan;
    }
    let from = match &memory.in_force {
        Some((known, from)) if known == change => *from,
        _ => primary.flushed,
    };
    memory.in_force = Some((change.clone(), from));
    let flushed = target.members.iter().filter(|life| flushed_past(primary, **life, from)).count();
    if flushed >= usize::from(target.needed) {
        plan.change = Some(ClusterChange::SettleSyncSet { epoch: cluster.epoch, set: target.clone() });
    } else {
        plan.findings.push(wait("its standbys must have what was acknowledged before"));
    }
    plan
}

pub(crate) fn flushed_past(primary: &PrimarySeen, life: Incarnation, lsn: Lsn) -> bool {
    primary.senders.iter().any(|sender| {
        sender.incarnation == Some(life) && sender.streaming && sender.flushed.is_some_and(|flushed| flushed >= lsn)
    })
}

pub(crate) fn caught_up(primary: &PrimarySeen, life: Incarnation) -> bool {
    primary.senders.iter().any(|sender| {
        sender.incarnation == Some(life)
            && sender.streaming
            && sender.flushed.is_some_and(|flushed| primary.flushed.bytes_since(flushed) <= CAUGHT_UP)
    })
}

/// What there is to choose from.
struct View {
    now: SyncSet,
    /// `k` of the spec.
    wanted: u8,
    /// Commits may go on with fewer.
    may_degrade: bool,
    /// With nobody at all.
    may_be_alone: bool,
    /// They went on with fewer, and must not any more: they wait until so many are back, whoever is here now.
    waits_again: bool,
    streaming: BTreeSet<Incarnation>,
    /// Every standby, those that must be made anew among them.
    everyone: BTreeSet<Incarnation>,
    /// Standbys outside the set that have caught up.
    joining: BTreeSet<Incarnation>,
    /// Members of the set that must not stay in it.
    leaving: BTreeSet<Incarnation>,
    /// Members of the set that are as good as the others and leave the cluster: they go once enough others stream.
    departing: BTreeSet<Incarnation>,
    /// Members of the set that are to be fed by others; until they have left it they count like any.
    spared: BTreeSet<Incarnation>,
    /// Somebody is fed by another standby, so that the set must have one more than a commit needs.
    feeds: bool,
}

impl View {
    fn new(
        cluster: &ClusterRecord,
        observed: &Observed,
        policy: &Policy,
        primary: &PrimarySeen,
        config: &EpochConfig,
        leader: MemberId,
        may_leave: bool,
    ) -> Self {
        let now = config.loaded().clone();
        let standbys = || cluster.members.values().filter(|member| member.id != leader);
        let streams = |life: Incarnation| {
            primary.senders.iter().any(|sender| sender.incarnation == Some(life) && sender.streaming)
        };
        // Members that are too many stay as they are under a leader that may not be well: they may hold the last that is good.
        // Where it is not, they count like all others, so that one of them can be elected.
        let none_leaves = cluster.members_surplus() > 0 && !may_leave;
        let leaving_may_join = none_leaves && !health::is_well(cluster, observed, policy, leader);
        let spec = cluster.spec.needed();
        let mut view = Self {
            wanted: if none_leaves { spec.max(now.needed) } else { spec },
            may_degrade: may_degrade(cluster, observed, leader),
            may_be_alone: counts_lease(cluster, observed, policy, leader),
            waits_again: config.degraded && cluster.spec.durability == Durability::Strict,
            everyone: standbys().map(|member| member.current()).collect(),
            streaming: standbys().map(|member| member.current()).filter(|life| streams(*life)).collect(),
            joining: BTreeSet::new(),
            leaving: BTreeSet::new(),
            departing: BTreeSet::new(),
            spared: BTreeSet::new(),
            feeds: !cluster.upstreams.is_empty(),
            now,
        };
        for member in standbys() {
            let life = member.current();
            let broken = why_rebuild(cluster, observed, policy, member).is_some();
            let departs = member.standing == Standing::Leaving;
            if departs && !none_leaves && view.now.members.contains(&life) {
                view.departing.insert(life);
            }
            let can_be_made_anew = || health::no_good_source(cluster, observed, leader, member).is_none();
            match (view.now.members.contains(&life), broken) {
                (true, true) if can_be_made_anew() => _ = view.leaving.insert(life),
                (false, false) if (!departs || leaving_may_join) && caught_up(primary, life) => {
                    _ = view.joining.insert(life)
                }
                _ => {}
            }
        }
        view
    }

    fn spare(&mut self, spared: &BTreeSet<Incarnation>) {
        self.joining.retain(|life| !spared.contains(life));
        self.spared = self.now.members.intersection(spared).copied().collect();
    }

    /// Of these, how many stream.
    fn live(&self, members: &BTreeSet<Incarnation>) -> usize {
        members.intersection(&self.streaming).count()
    }

    /// Everyone who counts or could.
    fn candidates(&self) -> BTreeSet<Incarnation> {
        self.now.members.union(&self.joining).copied().collect()
    }
    fn staying(&self, members: &BTreeSet<Incarnation>) -> BTreeSet<Incarnation> {
        members.difference(&self.leaving).copied().collect()
    }

    /// Whether commits have waited for long enough to go on with fewer.
    fn is_degrading_due(&self, memory: &mut SetMemory, observed: &Observed, policy: &Policy, plan: &mut Plan) -> bool {
        let enough = usize::from(self.now.needed.min(self.wanted));
        if self.live(&self.staying(&self.candidates())) >= enough {
            memory.interrupted();
            return false;
        }
        // While those that must be made anew still acknowledge, no commit waits: others get time to come back.
        let acknowledged = self.live(&self.candidates()) >= enough;
        let patience = if acknowledged { policy.degrade_after.max(policy.shrink_after) } else { policy.degrade_after };
        let until = memory.short_since(memory.epoch, observed) + patience;
        if self.may_degrade && observed.now < until {
            plan.wake_at = Some(plan.wake_at.map_or(until, |held| held.min(until)));
        }
        self.may_degrade && observed.now >= until
    }

    /// Those who are here, as few as they are.
    fn degraded(&self) -> Option<SyncSet> {
        let members: BTreeSet<Incarnation> =
            self.staying(&self.candidates()).intersection(&self.streaming).copied().collect();
        let set = SyncSet { needed: count(members.len()), members };
        (set.needed > 0 || self.may_be_alone).then_some(set)
    }

    fn goal(&self, memory: &mut SetMemory, now: Tick, policy: &Policy, plan: &mut Plan) -> SyncSet {
        memory.away.retain(|life, _| self.now.members.contains(life) && !self.streaming.contains(life));
        for life in self.now.members.difference(&self.streaming) {
            memory.away.entry(*life).or_insert(now);
        }
        let mut members = self.candidates();
        let mut needed = self.now.needed.min(self.wanted);
        if self.waits_again {
            // Whoever is away or broken too, where the others are too few: commits wait for them, or for their next lives.
            if self.live(&self.staying(&members)) < usize::from(self.wanted) {
                members.extend(&self.everyone);
            }
            needed = self.wanted.min(count(members.len())).max(needed);
        }
        let lasting: BTreeSet<Incarnation> = self.staying(&members).difference(&self.departing).copied().collect();
        // Those who are fed come back first where more are asked for than the others are good for.
        let live = self.live(&lasting).saturating_sub(usize::from(self.feeds));
        // More are asked for only when so many stream and are to stay: it never makes commits wait that did not.
        if live > usize::from(needed) {
            needed = self.wanted.min(count(live)).max(needed);
        }
        // Whoever must leave goes, and whoever has been away for long, as long as enough of the others stream: nobody
        // waits for them then, neither a commit nor an election.
        let long_away =
            |life: &Incarnation| memory.away.get(life).is_some_and(|since| now >= *since + policy.shrink_after);
        let may_go = |members: &BTreeSet<Incarnation>, life: &Incarnation| {
            let rest: BTreeSet<Incarnation> = members.iter().copied().filter(|other| other != life).collect();
            rest.len() >= usize::from(needed) && self.live(&rest) >= usize::from(needed)
        };
        for life in self.now.members.iter() {
            let goes = self.leaving.contains(life) || self.spared.contains(life) || long_away(life);
            if goes && may_go(&members, life) {
                members.remove(life);
            }
        }
        // A sound one is to be missed only where as many sound ones stay; and one more while somebody is fed, who comes back
        // first where that is too many.
        for life in self.departing.iter().filter(|life| !self.leaving.contains(life)) {
            let rest: BTreeSet<Incarnation> = members.iter().copied().filter(|other| other != life).collect();
            let enough = rest.len() >= usize::from(needed) + usize::from(self.feeds);
            if enough && self.live(&self.staying(&rest)) >= usize::from(needed) {
                members.remove(life);
            }
        }
        let next = memory
            .away
            .iter()
            .filter(|(life, _)| members.contains(life))
            .map(|(_, since)| *since + policy.shrink_after);
        if let Some(next) = next.filter(|at| *at > now).min() {
            plan.wake_at = Some(plan.wake_at.map_or(next, |held| held.min(next)));
        }
        if needed == 0 {
            members.clear();
        }
        SyncSet { members, needed }
    }
}

fn count(members: usize) -> u8 {
    u8::try_from(members).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests;
