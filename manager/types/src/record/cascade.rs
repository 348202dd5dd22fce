//! Who streams from another standby rather than from the leader: a relay feeds the members of its zone.
//!
//! The chain is one link long, and nobody in it may matter to an election or a commit but the relay: whoever counts in a
//! sync set streams from the leader. An order lives as long as its epoch is confirmed and nothing planned is under way. It
//! names lives of data, so that a member that is made anew begins at the leader; one that is new, or is to leave the cluster,
//! streams from there too, and feeds nobody.

use super::cluster::{ClusterRecord, Lifecycle};
use super::members::Standing;
use super::{Outcome, Refusal, conflict};
use crate::ids::{Incarnation, MemberId};
use crate::position::Epoch;
use crate::spec::Cascade;
use std::collections::{BTreeMap, BTreeSet};

impl ClusterRecord {
    /// The standby that `member` streams from instead of the leader; `None` for the leader itself, and while no leader is
    /// confirmed.
    pub fn relay_of(&self, member: MemberId) -> Option<MemberId> {
        let current = self.members.get(&member)?.current();
        self.upstreams.get(&current).filter(|_| self.is_confirmed()).map(|relay| relay.member)
    }

    /// Whom `relay` is to feed.
    pub fn relayed_by(&self, relay: MemberId) -> BTreeSet<Incarnation> {
        let fed = |(member, by): (&Incarnation, &Incarnation)| {
            (by.member == relay && self.relay_of(member.member).is_some()).then_some(*member)
        };
        self.upstreams.iter().filter_map(fed).collect()
    }

    /// Why `member` cannot stream from `relay` where `upstreams` are the other orders; `None` if it can.
    fn why_not_from(
        &self,
        upstreams: &BTreeMap<Incarnation, Incarnation>,
        member: Incarnation,
        relay: Incarnation,
    ) -> Option<String> {
        let is_current =
            |life: Incarnation| self.members.get(&life.member).is_some_and(|known| known.current() == life);
        if let Some(stranger) = [member, relay].into_iter().find(|life| !is_current(*life)) {
            return Some(format!("{stranger} is not a present incarnation of a member"));
        }
        let (name, from) = (self.member_name(member.member), self.member_name(relay.member));
        if member.member == relay.member {
            return Some(format!("{name} cannot stream from itself"));
        }
        if let Some(leader) = self.leadership.leader().filter(|leader| [member.member, relay.member].contains(leader)) {
            return Some(format!("{} leads: it neither streams nor relays", self.member_name(leader)));
        }
        let moves = |life: Incarnation| {
            self.members.get(&life.member).is_some_and(|member| member.standing != Standing::Settled)
        };
        if let Some(moving) = [member, relay].into_iter().find(|life| moves(*life)) {
            let name = self.member_name(moving.member);
            return Some(format!("{name} is joining or leaving: it streams from the leader and feeds nobody"));
        }
        // One link, and by that no circle either.
        if upstreams.keys().any(|fed| fed.member == relay.member) {
            return Some(format!("{from} does not stream from the leader itself, so nobody streams from it"));
        }
        let counts = self
            .configs
            .iter()
            .any(|config| config.sync_set.members.contains(&member) || config.loaded().members.contains(&member));
        counts.then(|| format!("{name} counts in the sync set and streams from the leader"))
    }

    /// Whether anybody may stream from another than the leader now.
    pub fn may_cascade(&self) -> bool {
        self.spec.cascade != Cascade::None
            && self.lifecycle == Lifecycle::Active
            && self.is_confirmed()
            && self.switchover.is_none()
            && self.restart.is_none()
    }

    pub(super) fn set_upstreams(
        &mut self,
        epoch: Epoch,
        upstreams: &BTreeMap<Incarnation, Incarnation>,
        outcome: &mut Outcome,
    ) -> Result<(), Refusal> {
        self.in_epoch(epoch)?;
        if *upstreams == self.upstreams {
            return Err(conflict("they stream from there already"));
        }
        if !upstreams.is_empty() && !self.may_cascade() {
            return Err(conflict("everybody streams from the leader now"));
        }
        for (member, relay) in upstreams {
            if let Some(why) = self.why_not_from(upstreams, *member, *relay) {
                return Err(conflict(why));
            }
        }
        for (member, relay) in upstreams.iter().filter(|(member, relay)| self.upstreams.get(member) != Some(relay)) {
            let text = format!("{} streams from {}", self.member_name(member.member), self.member_name(relay.member));
            outcome.event("cascaded", text);
        }
        for member in self.upstreams.keys().filter(|member| !upstreams.contains_key(member)) {
            let text = format!("{} streams from the leader again", self.member_name(member.member));
            outcome.event("cascade_ended", text);
        }
        self.upstreams.clone_from(upstreams);
        Ok(())
    }

    /// After a change of `before`, under its own revision.
    pub(super) fn note_returned(&mut self, before: &ClusterRecord) {
        if self.epoch != before.epoch {
            self.returned.clear();
        } else {
            let gone = before.upstreams.keys().filter(|life| !self.upstreams.contains_key(life));
            self.returned.extend(gone.map(|life| (*life, self.revision)));
        }
        let (upstreams, members) = (&self.upstreams, &self.members);
        let is_current = |life: &Incarnation| members.get(&life.member).is_some_and(|member| member.current() == *life);
        self.returned.retain(|life, _| !upstreams.contains_key(life) && is_current(life));
    }

    /// After every change: an order that could not be given now does not stand any more.
    pub(super) fn drop_void_upstreams(&mut self) {
        if self.upstreams.is_empty() {
            return;
        }
        let mut kept = if self.may_cascade() { self.upstreams.clone() } else { BTreeMap::new() };
        let all = kept.clone();
        kept.retain(|member, relay| self.why_not_from(&all, *member, *relay).is_none());
        self.upstreams = kept;
    }
}
