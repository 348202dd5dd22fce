//! Who streams from another standby: outside the leader's zone one standby of a zone feeds those beside it, so that the leader
//! feeds one of each zone.
//!
//! Whoever is fed counts in no sync set, and a set keeps at least one standby more than a commit needs. An order is given
//! where nothing has changed for a while, and taken back as soon as its relay is not well: a fed member is then a standby of
//! the leader like any other. Members that come or go neither feed nor are fed.

use crate::decide::Plan;
use crate::health;
use crate::lease;
use crate::observed::{Memory, Observed, Policy, Presence};
use crate::steady::{streams, why_rebuild};
use crate::sync_set::caught_up;
use pgstead_types::record::{ClusterChange, ClusterRecord, EpochConfig, MemberRecord, Standing};
use pgstead_types::report::{PrimarySeen, StandbySeen, Upstream};
use pgstead_types::{Finding, Incarnation, MemberId, NodeId, Tick};
use std::collections::{BTreeMap, BTreeSet};

/// Where a node is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    pub region: String,
    pub zone: String,
}

/// What is remembered between decisions. Another controller waits anew.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct CascadeMemory {
    /// Since when a relay, or a member that is fed, has not streamed.
    broken: BTreeMap<MemberId, Tick>,
    /// Whose order was taken back because it or its relay did not stream.
    paused: BTreeMap<MemberId, Pause>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pause {
    /// From when on it may be tried again.
    until: Tick,
    /// How often in a row.
    times: u32,
}

/// A pause is doubled so often at most: an hour.
const PAUSE_DOUBLED_MAX: u32 = 6;
/// After so many first pauses without a failure it is another story: two hours.
const PAUSES_KEPT: u32 = 128;

/// The standbys that are to be fed by others, with their relays. Those that still count in the sync set leave it first.
pub(crate) fn wanted(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    primary: &PrimarySeen,
    leader: MemberId,
) -> BTreeMap<Incarnation, Incarnation> {
    let Some(config) = cluster.config().filter(|_| may_cascade(cluster, observed)) else {
        memory.cascade.broken.clear();
        return BTreeMap::new();
    };
    let Some(view) = View::new(cluster, observed, policy, memory, primary, config, leader) else {
        return BTreeMap::new();
    };
    let mut relays: BTreeMap<&Place, &MemberRecord> = BTreeMap::new();
    for (place, members) in &view.zones {
        // The one that relays already stays the one.
        let able = || members.iter().copied().filter(|member| view.can_relay(member));
        let is_relay = |member: &&MemberRecord| cluster.upstreams.values().any(|relay| *relay == member.current());
        if let Some(relay) = able().find(is_relay).or_else(|| able().next()) {
            relays.insert(place, relay);
        }
    }
    let mut fed: Vec<(&MemberRecord, &MemberRecord)> = Vec::new();
    for (place, relay) in relays {
        let others = view.zones.get(place).into_iter().flatten().filter(|member| member.id != relay.id);
        // One whose node is away feeds whom it does, and can let nobody else in. While members are to leave the set gives nobody
        // else away either.
        let may_begin = view.here.contains(&relay.id) && cluster.members_surplus() == 0;
        let is_order = |member: &MemberRecord| cluster.upstreams.get(&member.current()) == Some(&relay.current());
        let can_be = |member: &&&MemberRecord| view.can_be_fed(member) && (may_begin || is_order(member));
        fed.extend(others.filter(can_be).map(|member| (*member, relay)));
    }
    // Those that do not count already come first; of the others the last ones are spared.
    fed.sort_by_key(|(member, _)| (view.counts(member), std::cmp::Reverse(member.id)));
    let mut wanted: BTreeMap<Incarnation, Incarnation> = BTreeMap::new();
    for (member, relay) in fed {
        let spared: BTreeSet<Incarnation> = wanted.keys().copied().chain([member.current()]).collect();
        if view.can_spare(&spared, member) {
            wanted.insert(member.current(), relay.current());
        }
    }
    wanted
}

/// Nothing planned is under way, and the set is what the spec asks for.
fn may_cascade(cluster: &ClusterRecord, observed: &Observed) -> bool {
    cluster.may_cascade()
        && cluster.creating.is_none()
        && cluster.spec.is_asynchronous() == lease::is_asynchronous(cluster)
        && !observed.places.is_empty()
}

/// The next change of who streams from whom, if there is one. Orders are taken back at once, and given when nothing has
/// changed for a while.
pub(crate) fn plan(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    wanted: &BTreeMap<Incarnation, Incarnation>,
) -> Plan {
    let set = |upstreams| Plan::change(ClusterChange::SetUpstreams { epoch: cluster.epoch, upstreams });
    let stands = |(member, relay): &(&Incarnation, &Incarnation)| wanted.get(member) == Some(*relay);
    let kept: BTreeMap<Incarnation, Incarnation> =
        cluster.upstreams.iter().filter(stands).map(|(member, relay)| (*member, *relay)).collect();
    if kept != cluster.upstreams {
        for (member, relay) in cluster.upstreams.iter().filter(|(member, _)| !kept.contains_key(member)) {
            memory.cascade.pause(member.member, relay.member, observed.now, policy);
        }
        return set(kept);
    }
    let mut plan = Plan::default();
    let Some(config) = cluster.config().filter(|_| may_cascade(cluster, observed)) else { return plan };
    // Whoever counts, in the record or by what Postgres goes by, leaves the set first.
    let counts = |life: &Incarnation| config.sync_set.members.contains(life) || config.loaded().members.contains(life);
    let next: BTreeMap<Incarnation, Incarnation> =
        wanted.iter().filter(|(member, _)| !counts(member)).map(|(member, relay)| (*member, *relay)).collect();
    let calm_from = calm_from(policy, memory);
    if next != cluster.upstreams && calm_from.is_some_and(|from| from <= observed.now) {
        return set(next);
    }
    let memory = &memory.cascade;
    let broken = memory.broken.values().map(|since| *since + policy.cascade_patience);
    let times = broken.chain(memory.paused.values().map(|pause| pause.until)).chain(calm_from);
    if let Some(at) = times.filter(|at| *at > observed.now).min() {
        plan = plan.until(at);
    }
    plan
}

/// From when on nothing has changed for long enough.
fn calm_from(policy: &Policy, memory: &Memory) -> Option<Tick> {
    memory.phase.map(|(_, since)| since + policy.cascade_after)
}

/// The leader itself is not seen. Who is fed by a standby that has gone, too, is sent to the leader: it may be the only one
/// that can say whether the leader's Postgres is still there. But only the leader's node can let it in: while the leader may
/// acknowledge by its lease, or by this one's word, a stream that goes on is all that brings its commits anywhere.
pub(crate) fn without_gone_relays(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    leader: MemberId,
) -> Option<ClusterChange> {
    let is_over = observed.lease_is_over(cluster, leader, policy);
    let goes_on = |member: &Incarnation, relay: &Incarnation| {
        let Some(report) = observed.fresh(cluster, member.member, policy) else { return !is_over };
        let streams = report.as_standby().is_some_and(|standby| receives(cluster, standby, Some(relay.member)));
        streams && (!is_over || report.refusing.is_some())
    };
    let is_gone = |relay: &Incarnation| {
        let node = cluster.members.get(&relay.member).map(|member| member.node);
        let presence = node.map_or(Presence::Gone, |node| observed.presence(node, policy));
        match presence {
            Presence::Gone | Presence::Silent { .. } => true,
            Presence::Doubtful { .. } => false,
            Presence::Fresh => observed.last(cluster, relay.member).is_none_or(|report| report.as_standby().is_none()),
        }
    };
    let kept: BTreeMap<Incarnation, Incarnation> = cluster
        .upstreams
        .iter()
        .filter(|(member, relay)| !is_gone(relay) || goes_on(member, relay))
        .map(|(member, relay)| (*member, *relay))
        .collect();
    (kept != cluster.upstreams).then_some(ClusterChange::SetUpstreams { epoch: cluster.epoch, upstreams: kept })
}

/// When those whom another standby feeds, or has fed, can say something of a leader that is not seen; `None` where there are none,
/// or they can already.
pub(crate) fn speak_from(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    leader: MemberId,
) -> Option<Tick> {
    let node = cluster.members.get(&leader).map(|member| member.node);
    let somebody = !(cluster.upstreams.is_empty() && cluster.returned.is_empty());
    somebody.then(|| observed.lease_end(node, policy)).filter(|end| *end > observed.now)
}

/// Whether a member receives the log of the present epoch's leader by the way that the record names. The leader's word on its
/// senders counts where it is fed by the leader.
pub(crate) fn is_fed(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    primary: &PrimarySeen,
    member: &MemberRecord,
) -> bool {
    match cluster.relay_of(member.id) {
        None => streams(primary, member),
        Some(relay) => observed
            .fresh(cluster, member.id, policy)
            .and_then(|report| report.as_standby())
            .is_some_and(|standby| receives(cluster, standby, Some(relay))),
    }
}

fn receives(cluster: &ClusterRecord, standby: &StandbySeen, relay: Option<MemberId>) -> bool {
    let Some(leader) = cluster.leadership.leader() else { return false };
    let told = Upstream { leader, epoch: cluster.epoch, relay };
    standby.upstream == Some(told) && standby.receiver.is_some_and(|receiver| receiver.streaming)
}

/// A member that is fed and receives nothing, for people.
pub(crate) fn not_fed(cluster: &ClusterRecord, member: &MemberRecord) -> Finding {
    let name = |id: MemberId| cluster.members.get(&id).map_or("?", |member| member.name.as_str());
    let text = match cluster.relay_of(member.id) {
        Some(relay) => format!("{} does not stream from {}, which is to feed it", member.name, name(relay)),
        None => format!("{} does not stream from the leader", member.name),
    };
    Finding::warning("not_streaming", text).on_cluster(cluster.id).on_member(member.id)
}

impl CascadeMemory {
    /// Since when `member` has been without a stream; forgotten when it has one.
    fn broken_since(&mut self, member: MemberId, is_broken: bool, now: Tick) -> Option<Tick> {
        if !is_broken {
            self.broken.remove(&member);
            return None;
        }
        Some(*self.broken.entry(member).or_insert(now))
    }

    /// One of the two did not stream: that is not tried again for a while.
    fn pause(&mut self, member: MemberId, relay: MemberId, now: Tick, policy: &Policy) {
        for id in [member, relay].into_iter().filter(|id| self.broken.contains_key(id)) {
            let times = self.paused.get(&id).map_or(0, |last| last.times);
            let until = now + policy.cascade_pause * (1 << times.min(PAUSE_DOUBLED_MAX));
            self.paused.insert(id, Pause { until, times: times.saturating_add(1) });
        }
    }

    fn is_paused(&self, member: MemberId, now: Tick) -> bool {
        self.paused.get(&member).is_some_and(|pause| now < pause.until)
    }
}

/// What there is to choose from.
struct View<'a> {
    config: &'a EpochConfig,
    /// Standbys by their zones, without the leader's zone and without those that come or go.
    zones: BTreeMap<Place, Vec<&'a MemberRecord>>,
    asynchronous: bool,
    /// `k`, of now or by the spec.
    needed: usize,
    /// Standbys that count or could at once, and are to stay.
    countable: BTreeSet<Incarnation>,
    streaming: BTreeSet<Incarnation>,
    /// Who is fed now, and can stay so.
    fed: BTreeSet<MemberId>,
    able: BTreeSet<MemberId>,
    feedable: BTreeSet<MemberId>,
    /// Whose nodes are here.
    here: BTreeSet<MemberId>,
    calm: bool,
}

impl<'a> View<'a> {
    fn new(
        cluster: &'a ClusterRecord,
        observed: &Observed,
        policy: &Policy,
        memory: &mut Memory,
        primary: &PrimarySeen,
        config: &'a EpochConfig,
        leader: MemberId,
    ) -> Option<Self> {
        let place = |node: NodeId| observed.places.get(&node);
        let home = place(cluster.members.get(&leader)?.node)?;
        let now = observed.now;
        let calm = calm_from(policy, memory).is_some_and(|from| from <= now);
        let kept = policy.cascade_pause * PAUSES_KEPT;
        memory.cascade.paused.retain(|member, pause| cluster.members.contains_key(member) && now < pause.until + kept);
        memory.cascade.broken.retain(|member, _| cluster.members.contains_key(member));
        let unfit = health::unfit(cluster, observed);
        let mut view = Self {
            config,
            zones: BTreeMap::new(),
            asynchronous: config.asynchronous,
            needed: usize::from(config.loaded().needed.max(cluster.spec.needed())),
            countable: BTreeSet::new(),
            streaming: BTreeSet::new(),
            fed: BTreeSet::new(),
            able: BTreeSet::new(),
            feedable: BTreeSet::new(),
            here: BTreeSet::new(),
            calm,
        };
        for member in cluster.members.values().filter(|member| member.id != leader) {
            let (id, life) = (member.id, member.current());
            let fresh = observed.fresh(cluster, id, policy);
            let standby = fresh.and_then(|report| report.as_standby());
            let is_well = !unfit.contains(&id) && why_rebuild(cluster, observed, policy, member).is_none();
            let direct = streams(primary, member);
            let receives_direct = direct && standby.is_some_and(|standby| receives(cluster, standby, None));
            let relay = cluster.upstreams.get(&life).map(|relay| relay.member);
            let relays = cluster.upstreams.values().any(|by| *by == life);
            let is_fed = relay.is_some_and(|relay| standby.is_some_and(|s| receives(cluster, s, Some(relay))));
            // Where its own node says nothing, the leader's word is what there is.
            let has_stream = match (relay, fresh) {
                (Some(_), _) => is_fed,
                (None, Some(_)) => receives_direct,
                (None, None) => direct,
            };
            // Of those who are here, or who others depend on.
            let matters = relays || (relay.is_some() && fresh.is_some());
            let since = memory.cascade.broken_since(id, matters && !has_stream, now);
            let is_broken = since.is_some_and(|since| now >= since + policy.cascade_patience);
            let paused = memory.cascade.is_paused(id, now);
            if fresh.is_some() {
                view.here.insert(id);
            }
            if direct {
                view.streaming.insert(life);
            }
            let counts = config.loaded().members.contains(&life);
            let could = is_well && (caught_up(primary, life) || relay.is_some());
            if member.standing != Standing::Leaving && (counts || could) {
                view.countable.insert(life);
            }
            // A relay whose stream was cut for a moment goes on; one that is no standby does not. That its daemon is away says nothing
            // of its Postgres, while the leader feeds that and somebody is fed by it.
            let feeds = || {
                let fed = cluster.upstreams.iter().filter(|(_, by)| **by == life).map(|(fed, _)| fed.member);
                let seen = |id| observed.fresh(cluster, id, policy).and_then(|report| report.as_standby());
                fed.filter_map(seen).any(|standby| receives(cluster, standby, Some(id)))
            };
            let is_there = match observed.presence(member.node, policy) {
                Presence::Fresh => standby.is_some(),
                Presence::Doubtful { .. } => true,
                Presence::Gone | Presence::Silent { .. } => direct && feeds(),
            };
            let relays_on = relays && is_there && !is_broken;
            if is_well && relay.is_none() && (relays_on || (receives_direct && !paused && caught_up(primary, life))) {
                view.able.insert(id);
            }
            if relay.is_some() && is_well && !is_broken {
                view.fed.insert(id);
            }
            if view.fed.contains(&id) || (is_well && receives_direct && caught_up(primary, life) && !paused) {
                view.feedable.insert(id);
            }
            let settled = member.standing == Standing::Settled;
            if let Some(place) = place(member.node).filter(|place| settled && *place != home) {
                view.zones.entry(place.clone()).or_default().push(member);
            }
        }
        Some(view)
    }

    fn counts(&self, member: &MemberRecord) -> bool {
        self.config.loaded().members.contains(&member.current())
    }
    /// Streams from the leader, and counts where anybody does.
    fn can_relay(&self, member: &MemberRecord) -> bool {
        self.able.contains(&member.id) && (self.asynchronous || self.counts(member))
    }
    fn can_be_fed(&self, member: &MemberRecord) -> bool {
        self.feedable.contains(&member.id)
    }

    /// Whether the set does without all of `spared`: it keeps one more standby than a commit needs. For one that counts now
    /// those must all be streaming, and nothing may have changed for a while.
    fn can_spare(&self, spared: &BTreeSet<Incarnation>, member: &MemberRecord) -> bool {
        if self.asynchronous {
            return true;
        }
        let rest: BTreeSet<Incarnation> = self.countable.difference(spared).copied().collect();
        let live = rest.intersection(&self.streaming).count();
        if self.counts(member) {
            return self.calm && live > self.needed;
        }
        rest.len() > self.needed && live >= self.needed
    }
}

#[cfg(test)]
mod tests;
