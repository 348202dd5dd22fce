//! More members than the spec asks for: which of them leaves, and when it is a member no more. New ones need nothing of this:
//! they are recorded with the spec, are copied like any other standby, and count once they have caught up.
//!
//! A member leaves in three recorded steps, and each is safe to stop after: it is marked; it leaves the sync set in place, like
//! any that must, while enough others stream; and then, when no election asks for it and no WAL sender counts it, it is removed.

use crate::Connection;
use crate::cascade;
use crate::decide::Plan;
use crate::health;
use crate::lease;
use crate::moving;
use crate::observed::{Memory, Observed, Policy, Presence};
use crate::steady::{streams, why_rebuild};
use crate::sync_set::caught_up;
use pgstead_types::record::{ClusterChange, ClusterRecord, DEPARTED_MAX, EpochConfig, MemberRecord, Standing};
use pgstead_types::report::{DataSeen, PostgresSeen, PrimarySeen};
use pgstead_types::{Epoch, Finding, MemberId, Tick};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// As many as asked for, and each new one streams.
pub(crate) fn are_as_asked(cluster: &ClusterRecord, primary: &PrimarySeen) -> bool {
    cluster.members.len() == usize::from(cluster.spec.members)
        && cluster.members.values().all(|member| match member.standing {
            Standing::Settled => true,
            Standing::Joining => streams(primary, member) || cluster.leadership.leader() == Some(member.id),
            Standing::Leaving => false,
        })
}

/// Nobody's volume was last seen to hold less than was asked for. Where volumes have no size, nothing was asked for.
pub(crate) fn volumes_are_as_asked(cluster: &ClusterRecord, observed: &Observed) -> bool {
    let Some(asked) = cluster.spec.volume_size else { return true };
    // One whose node is away grows when that is back; nobody waits for it.
    let here = cluster.members.values().filter_map(|member| {
        let node = observed.nodes.get(&member.node).filter(|node| node.connection == Connection::Open)?;
        Some(node.report.members.iter().find(|report| report.member == member.id))
    });
    here.into_iter().all(|report| report.is_some_and(|seen| seen.volume_size.is_none_or(|size| size >= asked.0)))
}

/// A member that is well, and for how long that has been seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SeenWell {
    pub(crate) epoch: Epoch,
    /// Of its node's daemon: one that has begun anew needs a while to find again what is wrong with its disk.
    pub(crate) session: u64,
    pub(crate) since: Tick,
}

/// Takes note of who is well. Whoever asks nothing of its members now may do so in a moment.
pub(crate) fn note_well(cluster: &ClusterRecord, observed: &Observed, policy: &Policy, memory: &mut Memory) {
    let (epoch, mut before) = (cluster.epoch, std::mem::take(&mut memory.well));
    for member in cluster.members.keys().filter(|member| health::is_well(cluster, observed, policy, **member)) {
        let Some(session) = observed.last(cluster, *member).map(|report| report.session) else { continue };
        let well = match before.remove(member) {
            Some(held) if (held.epoch, held.session) == (epoch, session) => held,
            _ => SeenWell { epoch, session, since: observed.now },
        };
        memory.well.insert(*member, well);
    }
}

/// From when on a member has been seen well for a while, in this epoch. `None` where it is not well.
fn proven_from(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &Memory,
    member: MemberId,
) -> Option<Tick> {
    let well = memory.well.get(&member).filter(|well| well.epoch == cluster.epoch)?;
    // Maybe not any more, where nobody took note meanwhile.
    health::is_well(cluster, observed, policy, member).then_some(well.since.max(observed.since) + policy.shrink_after)
}

/// From when on members may leave under the present leader, and others count for less: once it has been seen well for a while.
/// `None` where it is not well.
pub(crate) fn may_leave_from(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &Memory,
) -> Option<Tick> {
    proven_from(cluster, observed, policy, memory, cluster.leadership.leader()?)
}

/// The next step of members that are too many, under a confirmed leader and with nothing else to do.
pub(crate) fn plan(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    primary: &PrimarySeen,
    leader: MemberId,
) -> Plan {
    let Some(config) = cluster.config().filter(|_| cluster.members_surplus() > 0) else {
        memory.missed.clear();
        return Plan::default();
    };
    let world = Members::of(cluster, observed, policy, memory, primary, leader);
    world.note_missed(memory);
    if let Some(plan) = moving::plan(cluster, observed, policy, memory, primary, leader) {
        return plan;
    }
    let Some(from) = may_leave_from(cluster, observed, policy, memory) else {
        let name = cluster.members.get(&leader).map_or("?", |member| member.name.as_str());
        let text = format!(
            "there are too many members and none leaves: {name} leads and is not well, and others may have the last good data; have another lead, or {}",
            match cluster.moving {
                Some(_) => "take the move back (`pgstead member move ... --cancel`)",
                None => "ask for as many --members as there are",
            }
        );
        return Plan::wait(Finding::warning("member_leaving", text).on_cluster(cluster.id));
    };
    if observed.now < from {
        let text = "there are too many members; none leaves before the leader has been seen well for a while";
        return Plan::wait(Finding::info("member_leaving", text).on_cluster(cluster.id)).until(from);
    }
    // Who is here is not known for a moment; it decides who is of use.
    let unsure = cluster.members.values().filter_map(|member| match observed.presence(member.node, policy) {
        Presence::Doubtful { until } => Some(until),
        Presence::Fresh | Presence::Gone | Presence::Silent { .. } => None,
    });
    if let Some(until) = unsure.min() {
        return Plan::default().until(until);
    }
    let marked = || cluster.members.values().filter(|member| member.standing == Standing::Leaving);
    if marked().count() < cluster.members_surplus() {
        let moves = moving::who_leaves(cluster);
        let next = match moves {
            Some(moves) => world.staying().find(|member| member.id == moves),
            None => world.staying().min_by_key(|member| world.use_of(member)),
        };
        return next.map_or_else(Plan::default, |member| {
            Plan::change(ClusterChange::MarkLeaving { member: member.id, instead_of: None })
        });
    }
    let mut plan = Plan::default();
    let next = world.staying().filter_map(|member| world.proven_from.get(&member.id)).filter(|at| **at > observed.now);
    if let Some(at) = next.min() {
        plan = plan.until(*at);
    }
    for member in marked() {
        match waits_for(&world, config, member) {
            None => return Plan::change(ClusterChange::RemoveMember { member: member.id }),
            Some(why) => {
                let text = format!("{} is leaving the cluster: {why}", member.name);
                plan = plan.with(Finding::info("member_leaving", text).on_cluster(cluster.id).on_member(member.id));
            }
        }
    }
    world.another_leaves(memory, plan)
}

/// A member that has left, whose node is here: what it has may go once a leader that has been well for a while, and as many
/// others as count, have it all in good order.
pub(crate) fn release(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &Memory,
) -> Option<ClusterChange> {
    let config = cluster.config().filter(|_| cluster.is_confirmed())?;
    let leader = config.leader.member;
    let primary = observed.fresh(cluster, leader, policy)?.as_primary()?;
    if may_leave_from(cluster, observed, policy, memory).is_none_or(|from| observed.now < from) {
        return None;
    }
    let world = Members::of(cluster, observed, policy, memory, primary, leader);
    if world.sound_copies(config) < wanted_copies(cluster) {
        return None;
    }
    cluster.departed.values().find_map(|departed| {
        let report = observed.fresh(cluster, departed.member.id, policy)?;
        // Only what can go at once. Whatever it would wait for may last longer than what is known now.
        let is_down = matches!(report.postgres, PostgresSeen::Down { .. });
        let is_known = !matches!(report.data, DataSeen::Foreign { .. });
        if !is_down || !is_known || !report.volume_present || cluster.holds_given_up(report) {
            return None;
        }
        let (member, session) = (departed.member.id, report.session);
        (departed.released != Some(session)).then_some(ClusterChange::ReleaseData { member, session })
    })
}

/// So many beside the leader must have everything before a member is dispensable.
fn wanted_copies(cluster: &ClusterRecord) -> usize {
    usize::from(cluster.spec.needed().max(u8::from(cluster.spec.members > 1)))
}

/// The members as they are seen, to say who is of use.
struct Members<'a> {
    cluster: &'a ClusterRecord,
    observed: &'a Observed,
    policy: &'a Policy,
    primary: &'a PrimarySeen,
    leader: MemberId,
    unfit: BTreeSet<MemberId>,
    /// Since when, as far as they are well, members will have been seen so for a while.
    proven_from: BTreeMap<MemberId, Tick>,
}

impl<'a> Members<'a> {
    fn of(
        cluster: &'a ClusterRecord,
        observed: &'a Observed,
        policy: &'a Policy,
        memory: &Memory,
        primary: &'a PrimarySeen,
        leader: MemberId,
    ) -> Self {
        let from = |member: &MemberId| Some((*member, proven_from(cluster, observed, policy, memory, *member)?));
        let proven_from = cluster.members.keys().filter_map(from).collect();
        Self { cluster, observed, policy, primary, leader, unfit: health::unfit(cluster, observed), proven_from }
    }

    /// Those who may be marked: who is to stay, without the leader.
    fn staying(&self) -> impl Iterator<Item = &'a MemberRecord> {
        let leader = self.leader;
        let stays = move |member: &&MemberRecord| member.id != leader && member.standing != Standing::Leaving;
        self.cluster.members.values().filter(stays)
    }

    fn is_here(&self, member: &MemberRecord) -> bool {
        self.observed.fresh(self.cluster, member.id, self.policy).is_some()
    }

    /// It is here and well, with data that it can go on with.
    fn is_sound(&self, member: &MemberRecord) -> bool {
        health::is_well(self.cluster, self.observed, self.policy, member.id)
            && why_rebuild(self.cluster, self.observed, self.policy, member).is_none()
    }

    /// How many of those that stay, without the leader, have been well for a while, have it all, and count where that is asked for.
    fn sound_copies(&self, config: &EpochConfig) -> usize {
        self.staying().filter(|other| self.has_it_all(config, other)).count()
    }

    fn has_it_all(&self, config: &EpochConfig, member: &MemberRecord) -> bool {
        self.is_sound(member)
            // A daemon that has just begun does not know yet that a disk takes no writes.
            && self.proven_from.get(&member.id).is_some_and(|from| self.observed.now >= *from)
            && caught_up(self.primary, member.current())
            && (lease::is_asynchronous(self.cluster) || config.sync_set.members.contains(&member.current()))
    }

    /// Whether the one that takes the place of another could be lost for no less than that one could.
    fn has_taken_over(&self, config: &EpochConfig, to: MemberId) -> bool {
        let held = self.cluster.members.get(&to);
        to == self.leader || held.is_some_and(|member| self.has_it_all(config, member))
    }

    /// The least is of least use: away, or not well; then one that does not stream, from the leader or from the standby that
    /// feeds it, or does not count; of equals the one that was numbered last.
    fn use_of(&self, member: &MemberRecord) -> impl Ord + use<> {
        let counts = self.cluster.config().is_some_and(|config| config.sync_set.members.contains(&member.current()));
        let number = member.name.rsplit('-').next().and_then(|number| number.parse::<u32>().ok()).unwrap_or(0);
        (
            self.is_here(member),
            !self.unfit.contains(&member.id),
            // Data that was given up stays on its node, and is easier to find on one that is a member.
            self.may_hold_given_up(member),
            cascade::is_fed(self.cluster, self.observed, self.policy, self.primary, member),
            counts,
            Reverse((number, member.id)),
        )
    }

    fn may_hold_given_up(&self, member: &MemberRecord) -> bool {
        match self.observed.last(self.cluster, member.id) {
            Some(report) => self.cluster.holds_given_up(report),
            None => self.cluster.has_given_up_data_of(member.id),
        }
    }

    /// Since when those that are to stay are away or not well.
    fn note_missed(&self, memory: &mut Memory) {
        let lost = |member: &&MemberRecord| !self.is_here(member) || self.unfit.contains(&member.id);
        let lost: BTreeSet<MemberId> = self.staying().filter(lost).map(|member| member.id).collect();
        memory.missed.retain(|member, _| lost.contains(member));
        for member in lost {
            memory.missed.entry(member).or_insert(self.observed.now);
        }
    }

    /// Those that are to go cannot, and one that was to stay has been lost: then that one goes, and one of them stays.
    fn another_leaves(&self, memory: &Memory, plan: Plan) -> Plan {
        let stays = self.cluster.members.values().filter(|member| {
            member.standing == Standing::Leaving && self.is_sound(member) && streams(self.primary, member)
        });
        let Some(stays) = stays.max_by_key(|member| self.use_of(member)) else { return plan };
        let from = |member: &MemberRecord| {
            let since = memory.missed.get(&member.id)?;
            Some((*since).max(self.observed.since) + self.policy.shrink_after)
        };
        let goes = self.staying().filter(|member| from(member).is_some_and(|from| self.observed.now >= from));
        if let Some(goes) = goes.min_by_key(|member| self.use_of(member)) {
            return Plan::change(ClusterChange::MarkLeaving { member: goes.id, instead_of: Some(stays.id) });
        }
        self.staying().filter_map(from).min().map_or(plan.clone(), |from| plan.until(from))
    }
}

/// Why a leaving member cannot be removed yet.
fn waits_for(world: &Members<'_>, config: &EpochConfig, member: &MemberRecord) -> Option<String> {
    let cluster = world.cluster;
    if config.target.is_some() || config.sync_set.members.iter().any(|life| life.member == member.id) {
        return Some("it counts in the sync set until enough others do and Postgres goes by that".into());
    }
    // With one member there is no such kind, and nothing to change.
    if cluster.spec.members > 1 && config.asynchronous != cluster.spec.is_asynchronous() {
        return Some("how many acknowledge is being changed first".into());
    }
    if let Some(moving) = cluster.moving.filter(|moving| moving.member == member.id)
        && !world.has_taken_over(config, moving.to)
    {
        let name = cluster.members.get(&moving.to).map_or("?", |member| member.name.as_str());
        return Some(format!(
            "{name}, which takes its place, must have been well for a while, count, and have caught up"
        ));
    }
    // Somebody else has it all, in good order, and goes on having it.
    let (wanted, others) = (wanted_copies(cluster), world.sound_copies(config));
    if others < wanted {
        return Some(format!(
            "{wanted} of those that stay must have been well for a while, stream and have caught up, and {others} are"
        ));
    }
    if cluster.departed.len() >= DEPARTED_MAX {
        return Some(
            "the volumes of members that have left wait for their nodes; bring those back or remove them".into(),
        );
    }
    None
}

#[cfg(test)]
mod tests;
