//! The number of members of a running cluster changes. New ones are recorded together with the spec that asks for them; of
//! those that are too many each is marked first, leaves the sync set like any other, is a member no more once it counts
//! nowhere, and is remembered until its node says that the volume is gone.

use super::cluster::{ClusterRecord, Lifecycle, MemberRecord};
use super::{OperationKind, OperationState, Outcome, Record, Refusal, conflict};
use crate::ids::{MemberId, NodeId, OperationId};
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Departed members whose volume is still somewhere. A cluster that has so many waits for their nodes, or for them to be removed.
pub const DEPARTED_MAX: usize = 16;

/// Whether a member is to stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    #[default]
    Settled,
    /// Added by the change of the spec that is under way. It is a member like any other; the operation waits for it.
    Joining,
    /// To go: it leaves the sync set while enough others stream, and leads only where nobody else could.
    Leaving,
}

impl Standing {
    pub(super) fn is_settled(&self) -> bool {
        *self == Self::Settled
    }
}

/// A member that has left.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Departed {
    pub member: MemberRecord,
    /// The cluster's revision with which it left. What its node said by an older one may be of a time before its volume was made.
    pub revision: u64,
    /// Its data is of no use to anyone, said to this session of its node's daemon while a leader that is well was here: whoever
    /// comes back much later does not take with it what may be the last copy by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<u64>,
}

/// A member and the one that takes its place. Both are members until the new one counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Moving {
    pub operation: OperationId,
    pub member: MemberId,
    pub to: MemberId,
}

impl ClusterRecord {
    /// A member, or one that has left and whose volume is still there.
    pub fn held(&self, member: MemberId) -> Option<&MemberRecord> {
        self.members.get(&member).or_else(|| self.departed.get(&member).map(|departed| &departed.member))
    }

    pub fn is_leaving(&self, member: MemberId) -> bool {
        self.members.get(&member).is_some_and(|member| member.standing == Standing::Leaving)
    }

    /// How many more members there are than the spec asks for.
    pub fn members_surplus(&self) -> usize {
        self.members.len().saturating_sub(usize::from(self.spec.members))
    }

    /// Deleted, and nothing of it is left on any node.
    pub(super) fn is_gone(&self) -> bool {
        self.members.is_empty() && self.departed.is_empty()
    }

    pub(super) fn settle_joining(&mut self) {
        for member in self.members.values_mut().filter(|member| member.standing == Standing::Joining) {
            member.standing = Standing::Settled;
        }
    }

    /// So many members are asked for from now on. Before the spec says so.
    pub(super) fn change_members(
        &mut self,
        asked: u8,
        added: &[MemberRecord],
        outcome: &mut Outcome,
    ) -> Result<(), Refusal> {
        if asked == self.spec.members && added.is_empty() {
            return Ok(());
        }
        self.check_idle()?;
        if !self.is_confirmed() {
            return Err(conflict("the cluster has no confirmed leader now; its members can change once it has"));
        }
        if self.planned.scheduled.is_some() {
            return Err(conflict("a switchover is scheduled; cancel it before the members change"));
        }
        if self.moving.is_some() {
            return Err(conflict("a member is being moved; wait for that, or cancel it, before their number changes"));
        }
        let missing = usize::from(asked).saturating_sub(self.members.len());
        if added.len() != missing {
            let (here, placed) = (self.members.len(), added.len());
            return Err(conflict(format!(
                "there are {here} members and {placed} new ones are placed where {missing} are needed; look again and decide anew"
            )));
        }
        self.check_added(added)?;
        // Those that were to go and need not any more stay.
        let surplus = self.members.len().saturating_sub(usize::from(asked));
        let marked: Vec<MemberId> = self.members.keys().copied().filter(|id| self.is_leaving(*id)).collect();
        for id in marked.into_iter().skip(surplus) {
            if let Some(member) = self.members.get_mut(&id) {
                member.standing = Standing::Settled;
                outcome.event("member_stays", format!("{} stays after all", member.name));
            }
        }
        for member in added {
            outcome.event("member_added", format!("{} is a member from now on", member.name));
            self.members.insert(member.id, MemberRecord { standing: Standing::Joining, ..member.clone() });
        }
        Ok(())
    }

    pub(super) fn move_member(
        &mut self,
        operation: OperationId,
        member: MemberId,
        added: &MemberRecord,
        outcome: &mut Outcome,
    ) -> Result<(), Refusal> {
        self.check_active()?;
        self.check_idle()?;
        if !self.is_confirmed() {
            return Err(conflict("the cluster has no confirmed leader now; its members can move once it has"));
        }
        if self.planned.scheduled.is_some() {
            return Err(conflict("a switchover is scheduled; cancel it before a member moves"));
        }
        if self.updating.is_some() {
            return Err(conflict("what is asked of the cluster is being changed; wait for that to end"));
        }
        if self.departed.len() >= DEPARTED_MAX {
            return Err(conflict(
                "too many members that have left wait for their nodes; bring those back or remove them",
            ));
        }
        if self.moving.is_some() || self.members.len() != usize::from(self.spec.members) {
            return Err(conflict("members are coming or going already; wait for that to end"));
        }
        let from = self.members.get(&member).ok_or_else(|| super::apply::not_found("member", member))?;
        if self.leadership.leader() == Some(member) {
            let (name, cluster) = (&from.name, &self.spec.name);
            return Err(conflict(format!(
                "{name} leads; have another one lead before it moves (`pgstead cluster switchover {cluster}`)"
            )));
        }
        let message = format!("{} is to be replaced by {}, which is on another node", from.name, added.name);
        self.check_added(std::slice::from_ref(added))?;
        self.members.insert(added.id, MemberRecord { standing: Standing::Joining, ..added.clone() });
        self.moving = Some(Moving { operation, member, to: added.id });
        outcome.event("member_moving", message);
        outcome.start = Some((operation, OperationKind::MoveMember));
        Ok(())
    }

    pub(super) fn cancel_move(
        &mut self,
        operation: OperationId,
        why: &str,
        outcome: &mut Outcome,
    ) -> Result<(), Refusal> {
        self.check_active()?;
        let moving = self.moving.filter(|moving| moving.operation == operation);
        let Moving { member, to, .. } = moving.ok_or_else(|| conflict("no such move is under way"))?;
        if !self.is_confirmed() {
            return Err(conflict("the cluster has no confirmed leader now; wait for one"));
        }
        if !self.members.contains_key(&member) {
            return Err(conflict("the old member has left already; the move ends in a moment"));
        }
        if self.leadership.leader() == Some(to) {
            return Err(conflict(format!("{} leads, and stays", self.member_name(to))));
        }
        for (id, standing) in [(member, Standing::Settled), (to, Standing::Leaving)] {
            if let Some(held) = self.members.get_mut(&id) {
                held.standing = standing;
            }
        }
        let (stays, goes) = (self.member_name(member), self.member_name(to));
        outcome.event("move_cancelled", format!("{stays} stays where it is, and {goes} goes: {why}"));
        outcome.end = Some((operation, Some(why.to_string())));
        self.moving = None;
        Ok(())
    }

    /// The mark is on another one than the one that was to move, or on the new one: the move is over.
    fn end_moot_move(&mut self, stays: Option<MemberId>, goes: MemberId, outcome: &mut Outcome) {
        let is_moot = |moving: &mut Moving| goes == moving.to || stays == Some(moving.member);
        if let Some(moving) = self.moving.take_if(is_moot) {
            // A member like any other from now on.
            if let Some(held) = self.members.get_mut(&moving.to).filter(|held| held.standing == Standing::Joining) {
                held.standing = Standing::Settled;
            }
            let why = format!("{} has been lost and leaves instead", self.member_name(goes));
            outcome.end = Some((moving.operation, Some(why)));
        }
    }

    /// One member per node, and nothing that was there before: neither a name nor a volume nor a life.
    fn check_added(&self, added: &[MemberRecord]) -> Result<(), Refusal> {
        if added.is_empty() {
            return Ok(());
        }
        let departed = || self.departed.values().map(|departed| &departed.member);
        let all = || self.members.values().chain(departed()).chain(added);
        let count = all().count();
        let nodes: BTreeSet<NodeId> = all().map(|member| member.node).collect();
        let names: BTreeSet<&str> = all().map(|member| member.name.as_str()).collect();
        let ids: BTreeSet<MemberId> = all().map(|member| member.id).collect();
        let volumes: BTreeSet<_> = all().map(|member| member.volume).collect();
        if nodes.len() != count {
            return Err(conflict(
                "every member needs a node of its own, on which none that has left has a volume still",
            ));
        }
        if names.len() != count || ids.len() != count || volumes.len() != count {
            return Err(conflict("a new member needs a name, an id and a volume that no other has"));
        }
        if added.iter().any(|member| member.incarnation != 1) {
            return Err(conflict("a new member begins with its first incarnation"));
        }
        Ok(())
    }

    pub(super) fn mark_leaving(
        &mut self,
        member: MemberId,
        instead_of: Option<MemberId>,
        outcome: &mut Outcome,
    ) -> Result<(), Refusal> {
        self.check_active()?;
        if let Some(stays) = instead_of {
            let held = self.members.get_mut(&stays).filter(|held| held.standing == Standing::Leaving);
            let held = held.ok_or_else(|| conflict("only one that is leaving can stay instead"))?;
            held.standing = Standing::Settled;
            outcome.event("member_stays", format!("{} stays after all", held.name));
        }
        let marked = self.members.keys().filter(|id| self.is_leaving(**id)).count();
        if marked >= self.members_surplus() {
            return Err(conflict("no more members are to leave than are marked already"));
        }
        if !self.is_confirmed() || self.leadership.leader() == Some(member) {
            return Err(conflict("the leader does not leave, and nobody does before the epoch is confirmed"));
        }
        let held = self.members.get_mut(&member).ok_or_else(|| super::apply::not_found("member", member))?;
        if held.standing == Standing::Leaving {
            return Err(conflict(format!("{} is leaving already", held.name)));
        }
        held.standing = Standing::Leaving;
        outcome.event("member_leaving", format!("{} is to leave the cluster", held.name));
        self.end_moot_move(instead_of, member, outcome);
        Ok(())
    }

    /// What was seen of a leader and its standbys says nothing of the next one's.
    pub(super) fn withdraw_releases(&mut self) {
        self.departed.values_mut().for_each(|left| left.released = None);
    }

    pub(super) fn release_data(&mut self, member: MemberId, session: u64) -> Result<(), Refusal> {
        self.check_active()?;
        if !self.is_confirmed() {
            return Err(conflict("nothing is removed before the epoch is confirmed"));
        }
        let held = self.departed.get_mut(&member).filter(|held| held.released != Some(session));
        held.ok_or_else(|| conflict("only a member that has left has data to be removed"))?.released = Some(session);
        Ok(())
    }

    /// No election asks for it any more, no WAL sender counts it, and it does not lead.
    pub(super) fn remove_member(&mut self, member: MemberId, outcome: &mut Outcome) -> Result<(), Refusal> {
        self.check_idle()?;
        if !self.is_leaving(member) {
            return Err(conflict("only a member that is leaving can be removed"));
        }
        if !self.is_confirmed() || self.leadership.leader() == Some(member) {
            return Err(conflict("the leader does not leave, and nobody does before the epoch is confirmed"));
        }
        let counts = self.configs.iter().any(|config| {
            config.leader.member == member
                || config.target.is_some()
                || config.sync_set.members.iter().any(|life| life.member == member)
        });
        if counts {
            return Err(conflict(format!(
                "{} counts still, or the sync set is being changed",
                self.member_name(member)
            )));
        }
        if self.departed.len() >= DEPARTED_MAX {
            return Err(conflict(
                "too many members that have left wait for their nodes; bring those back or remove them",
            ));
        }
        let revision = self.revision + 1;
        let Some(held) = self.members.remove(&member) else { return Err(conflict("no such member")) };
        outcome.event("member_removed", format!("{} is a member no more", held.name));
        self.departed.insert(member, Departed { member: held, revision, released: None });
        if self.members.len() == 1 {
            // The only member acknowledges alone without a lease: nobody is there whom a lease that is over would excuse.
            for config in &mut self.configs {
                config.asynchronous = false;
            }
        }
        Ok(())
    }

    /// A volume is gone, of a deleted cluster or of a member that has left.
    pub(super) fn note_removed(&mut self, member: MemberId, outcome: &mut Outcome) -> Result<(), Refusal> {
        if let Some(departed) = self.departed.remove(&member) {
            outcome.event(
                "member_data_removed",
                format!("the data of {}, which has left, is removed", departed.member.name),
            );
        } else if matches!(self.lifecycle, Lifecycle::Deleting { .. }) {
            self.members.remove(&member).ok_or_else(|| super::apply::not_found("member", member))?;
        } else {
            return Err(conflict("only members that have left, or of a cluster that is being deleted, are forgotten"));
        }
        if let (Lifecycle::Deleting { operation }, true) = (self.lifecycle, self.is_gone()) {
            outcome.event("cluster_deleted", format!("cluster {} deleted", self.spec.name));
            outcome.end = Some((operation, None));
        }
        Ok(())
    }
}

impl Record {
    /// Some cluster has members that are coming or going, or remembers ones that have left.
    pub fn has_members_moving(&self) -> bool {
        self.clusters.values().any(|cluster| {
            !cluster.departed.is_empty() || cluster.members.values().any(|member| !member.standing.is_settled())
        })
    }

    /// Some cluster is a fork or has a member that is being replaced, or some node takes no members.
    pub fn has_moves_or_forks(&self) -> bool {
        self.clusters.values().any(|cluster| cluster.moving.is_some() || cluster.forked.is_some())
            || self.nodes.values().any(|node| !node.service.is_open())
    }

    /// A node goes, and with it what members that have left, or whose cluster is being deleted, have there.
    pub(super) fn forget_left_on(&mut self, at: WallTime, node: NodeId) {
        let mut ended = Vec::new();
        let mut events = Vec::new();
        for cluster in self.clusters.values_mut() {
            let here = |cluster: &ClusterRecord| {
                let departed = cluster.departed.values().map(|departed| &departed.member);
                let deleted = cluster.members.values().filter(|_| cluster.lifecycle != Lifecycle::Active);
                departed.chain(deleted).find(|member| member.node == node).map(|member| member.id)
            };
            while let Some(member) = here(cluster) {
                let mut outcome = Outcome::default();
                if cluster.note_removed(member, &mut outcome).is_err() {
                    break;
                }
                cluster.revision += 1;
                ended.extend(outcome.end.take());
                events.extend(outcome.into_events().map(|(kind, message)| (cluster.id, kind, message)));
            }
        }
        self.clusters.retain(|_, cluster| !cluster.is_gone());
        for (operation, failure) in ended {
            debug_assert!(self.operations.get(&operation).is_none_or(|held| {
                held.kind == OperationKind::DeleteCluster && held.state == OperationState::Running
            }));
            self.end_operation(at, operation, failure);
        }
        for (cluster, kind, message) in events {
            self.note(at, kind, message, Some(cluster), None);
        }
    }
}

#[cfg(test)]
mod tests;
