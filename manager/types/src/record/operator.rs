//! What people have asked of a cluster beyond its spec: a switchover for later, the last one that was done, and changes of
//! leader that they have forced.

use super::apply::{Outcome, conflict, not_found};
use super::cluster::{ClusterRecord, EpochReason, Leadership};
use super::{OperationKind, Refusal};
use crate::ids::{Incarnation, MemberId, OperationId};
use crate::position::{Bytes, Epoch, Position};
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Planned changes of leader that are not under way.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Planned {
    #[serde(default)]
    pub scheduled: Option<ScheduledSwitchover>,
    /// The last planned change that went as asked; what undoing goes back on.
    #[serde(default)]
    pub last: Option<PastSwitchover>,
}

/// A switchover that begins by itself at some time of day. The time decides when, and never whether it is safe.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ScheduledSwitchover {
    pub operation: OperationId,
    /// The closest standby at that time if absent.
    pub to: Option<MemberId>,
    pub not_before: WallTime,
    /// From here on it is too late, and said to be missed.
    pub not_after: WallTime,
}

/// A switchover that was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PastSwitchover {
    pub from: MemberId,
    pub to: MemberId,
    /// The epoch that it made.
    pub epoch: Epoch,
}

/// A change of leader that a person has forced. Kept for as long as the cluster is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ForcedEpoch {
    pub epoch: Epoch,
    pub at: WallTime,
    pub operation: OperationId,
    /// Who asked, as they said.
    pub by: String,
    /// Whom they asked for.
    pub to: MemberId,
    pub loss: ForcedLoss,
    /// Lives of data that were declared lost by the choice; empty while it is not made, or when enough promised after all.
    #[serde(default)]
    pub retired: BTreeSet<Incarnation>,
    /// The epoch is confirmed, or another one took its place.
    #[serde(default)]
    pub ended: bool,
}

/// What may be lost by a forced change, as far as it was known when it was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ForcedLoss {
    /// Members that do not answer, and whose disks may hold what was acknowledged.
    pub missing: BTreeSet<MemberId>,
    /// How far any log of the cluster was ever seen to reach.
    pub known_end: Option<Position>,
    /// How far the log of the member that was asked for reaches.
    pub best: Option<Position>,
    /// Bytes of log between the two, where both are known and on one timeline.
    pub bytes: Option<Bytes>,
}

/// More than anyone needs to say who they are.
pub const ASKED_BY_MAX: usize = 100;

impl ClusterRecord {
    pub(super) fn schedule_switchover(
        &mut self,
        scheduled: &ScheduledSwitchover,
        outcome: &mut Outcome,
    ) -> Result<(), Refusal> {
        self.check_active()?;
        if self.planned.scheduled.is_some() {
            return Err(conflict("a switchover is scheduled already; cancel that one first"));
        }
        if let Some(to) = scheduled.to.filter(|to| !self.members.contains_key(to)) {
            return Err(not_found("member", to));
        }
        if let Some(to) = scheduled.to.filter(|to| self.is_leaving(*to)) {
            return Err(conflict(format!("{} is leaving the cluster; choose another one", self.member_name(to))));
        }
        if self.members_surplus() > 0 {
            return Err(conflict("members are leaving the cluster; schedule the switchover when that is done"));
        }
        if scheduled.not_before >= scheduled.not_after {
            return Err(conflict("the time for the switchover ends before it begins"));
        }
        let whom = scheduled.to.map_or_else(|| "the closest standby".to_string(), |to| self.member_name(to));
        let message = format!("switchover to {whom} scheduled for {} to {}", scheduled.not_before, scheduled.not_after);
        outcome.event("switchover_scheduled", message);
        outcome.start = Some((scheduled.operation, OperationKind::Switchover));
        self.planned.scheduled = Some(scheduled.clone());
        Ok(())
    }

    /// Takes a scheduled switchover out unbegun.
    pub(super) fn drop_scheduled(
        &mut self,
        operation: OperationId,
        kind: &'static str,
        why: &str,
        outcome: &mut Outcome,
    ) -> Result<(), Refusal> {
        match self.planned.scheduled.take() {
            Some(held) if held.operation == operation => {
                outcome.event(kind, format!("the scheduled switchover was not done: {why}"));
                outcome.end = Some((operation, Some(why.to_string())));
                Ok(())
            }
            _ => Err(conflict("no such switchover is scheduled (any more)")),
        }
    }

    pub(super) fn begin_scheduled(
        &mut self,
        operation: OperationId,
        to: MemberId,
        outcome: &mut Outcome,
    ) -> Result<(), Refusal> {
        self.check_idle()?;
        match self.planned.scheduled.take() {
            Some(held) if held.operation == operation && held.to.is_none_or(|asked| asked == to) => {
                self.begin_switchover(operation, to, false, outcome)
            }
            _ => Err(conflict("no such switchover is scheduled (any more)")),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one change")]
    pub(super) fn force_epoch(
        &mut self,
        at: WallTime,
        epoch: Epoch,
        operation: OperationId,
        to: MemberId,
        by: &str,
        loss: &ForcedLoss,
        outcome: &mut Outcome,
    ) -> Result<(), Refusal> {
        if !self.members.contains_key(&to) {
            return Err(not_found("member", to));
        }
        if by.len() > ASKED_BY_MAX {
            return Err(conflict(format!("who asks is said in at most {ASKED_BY_MAX} bytes")));
        }
        self.begin_epoch(epoch, EpochReason::Forced, Some(to), outcome)?;
        let missing: Vec<String> = loss.missing.iter().map(|member| self.member_name(*member)).collect();
        let gap = match (loss.bytes, loss.known_end) {
            (Some(bytes), _) => format!("{bytes} of log at least"),
            (None, Some(end)) => format!("how much is not known; a log was seen to reach {end}"),
            (None, None) => "how much is not known".to_string(),
        };
        let message = format!(
            "{by} forced {} to lead in epoch {epoch} and accepted the loss of what only {} may have ({gap})",
            self.member_name(to),
            missing.join(", ")
        );
        outcome.event("failover_forced", message);
        outcome.start = Some((operation, OperationKind::ForcedFailover));
        if let Some(former) = self.forced.last_mut().filter(|former| !former.ended) {
            former.ended = true;
            outcome.also_end.push((former.operation, Some("another forced failover took its place".to_string())));
        }
        self.forced.push(ForcedEpoch {
            epoch,
            at,
            operation,
            by: by.to_string(),
            to,
            loss: loss.clone(),
            retired: BTreeSet::new(),
            ended: false,
        });
        Ok(())
    }

    /// The election of a forced epoch has chosen: which lives of data are lost with it.
    pub(super) fn note_retired(&mut self, epoch: Epoch, retired: BTreeSet<Incarnation>, outcome: &mut Outcome) {
        let names: Vec<String> = retired.iter().map(|life| self.member_name(life.member)).collect();
        if let Some(forced) = self.forced.last_mut().filter(|forced| forced.epoch == epoch) {
            forced.retired = retired;
            if !names.is_empty() {
                let message =
                    format!("epoch {epoch} was forced: the data of {} is not the cluster's any more", names.join(", "));
                outcome.event("data_retired", message);
            }
        }
    }

    /// A confirmed epoch ends what was forced.
    pub(super) fn end_forced(&mut self, leader: MemberId, outcome: &mut Outcome) {
        let name = self.member_name(leader);
        if let Some(forced) = self.forced.last_mut().filter(|forced| !forced.ended) {
            forced.ended = true;
            let failure = (forced.to != leader).then(|| format!("{name} leads instead: its log reaches further"));
            outcome.also_end.push((forced.operation, failure));
        }
    }

    /// The cluster goes, and with it whatever was asked of it.
    pub(super) fn end_asked(&mut self, why: &str, outcome: &mut Outcome) {
        if let Some(scheduled) = self.planned.scheduled.take() {
            outcome.also_end.push((scheduled.operation, Some(why.to_string())));
        }
        if let Some(moving) = self.moving.take() {
            outcome.also_end.push((moving.operation, Some(why.to_string())));
        }
        if let Some(place) = self.takes_place.take() {
            outcome.also_end.push((place.operation, Some(why.to_string())));
        }
        if let Some(forced) = self.forced.last_mut().filter(|forced| !forced.ended) {
            forced.ended = true;
            outcome.also_end.push((forced.operation, Some(why.to_string())));
        }
    }

    pub(super) fn note_switchover_done(&mut self, from: MemberId, to: MemberId) {
        if matches!(self.leadership, Leadership::Confirmed { leader } if leader == to) {
            self.planned.last = Some(PastSwitchover { from, to, epoch: self.epoch });
        }
    }
}
