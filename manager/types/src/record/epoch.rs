//! How one epoch comes to be: begun, its leader chosen once, promoted, confirmed.

use super::apply::{Outcome, Refusal, conflict, not_found};
use super::cluster::{ClusterRecord, EpochConfig, EpochReason, HistoryEntry, Leadership, Lifecycle};
use super::members::Standing;
use crate::ids::{Incarnation, MemberId};
use crate::position::{Epoch, Timeline};
use std::collections::BTreeSet;

impl ClusterRecord {
    pub(super) fn begin_epoch(
        &mut self,
        epoch: Epoch,
        reason: EpochReason,
        preferred: Option<MemberId>,
        outcome: &mut Outcome,
    ) -> Result<(), Refusal> {
        // Only a record that lacks what its members have seen skips numbers.
        let may_skip = matches!(reason, EpochReason::Forced | EpochReason::RecordBehind);
        if epoch != self.epoch.next() && !(may_skip && epoch > self.epoch) {
            return Err(Refusal::StaleEpoch { asked: epoch, found: self.epoch });
        }
        if self.lifecycle != Lifecycle::Active {
            return Err(conflict("the cluster is being deleted"));
        }
        self.epoch = epoch;
        self.leadership = Leadership::Electing { reason, preferred };
        self.fetch = None;
        self.withdraw_releases();
        if let (EpochReason::Restart, Some(restart)) = (reason, &mut self.restart) {
            restart.leader_restarted_in = Some(epoch);
        }
        outcome.event("epoch_began", format!("epoch {epoch} began: {}", describe(reason)));
        Ok(())
    }

    pub(super) fn choose(
        &mut self,
        config: EpochConfig,
        rebuild: &[MemberId],
        outcome: &mut Outcome,
    ) -> Result<(), Refusal> {
        if config.epoch != self.epoch {
            return Err(Refusal::StaleEpoch { asked: config.epoch, found: self.epoch });
        }
        let forced = matches!(self.leadership, Leadership::Electing { reason: EpochReason::Forced, .. });
        if !matches!(self.leadership, Leadership::Electing { .. }) {
            return Err(conflict("the leader of this epoch is chosen already; another choice needs another epoch"));
        }
        if config.timeline <= self.last_timeline {
            return Err(conflict(format!("timeline {} was given before", config.timeline)));
        }
        let leader = config.leader;
        if self.members.get(&leader.member).map(super::MemberRecord::current) != Some(leader) {
            return Err(conflict("the chosen leader is not a present incarnation of a member"));
        }
        if config.sync_set.members.iter().any(|standby| standby.member == leader.member) {
            return Err(conflict("a leader cannot be in its own sync set"));
        }
        let mut retired = BTreeSet::new();
        for member in rebuild {
            let held = self.members.get(member).ok_or_else(|| not_found("member", member))?;
            let next = self.next_incarnation(held);
            retired.insert(held.current());
            if let Some(held) = self.members.get_mut(member) {
                held.incarnation = next;
            }
        }
        // Alone only by a person's word: a forced failover, and from then on until enough standbys have come back; or a spec of
        // one member, while the others are leaving.
        let may_be_alone =
            forced || self.spec.needed() == 0 || self.configs.last().is_some_and(|config| config.sync_set.needed == 0);
        let known: BTreeSet<Incarnation> = self.members.values().map(super::MemberRecord::current).collect();
        if let Some(stranger) = config.sync_set.members.iter().find(|standby| !known.contains(standby)) {
            return Err(conflict(format!("{stranger} is not a present incarnation of a member")));
        }
        if config.sync_set.members.len() < usize::from(config.sync_set.needed)
            || (config.sync_set.needed == 0 && self.members.len() > 1 && !may_be_alone && !config.asynchronous)
            || (config.asynchronous && !config.sync_set.members.is_empty())
        {
            return Err(conflict("the sync set is smaller than the acknowledgements that it must give"));
        }
        self.note_unnoted_promotion(config.start.timeline);
        self.last_timeline = config.timeline;
        // Only it could lead: another one leaves.
        if let Some(held) = self.members.get_mut(&leader.member).filter(|held| held.standing == Standing::Leaving) {
            held.standing = Standing::Settled;
        }
        self.leadership = Leadership::Chosen { leader: leader.member };
        self.fetch = None;
        let message = format!(
            "{} chosen at {}, to make timeline {}",
            self.member_name(leader.member),
            config.start,
            config.timeline
        );
        if let Some(loss) = config.possible_loss {
            let name = self.member_name(leader.member);
            outcome.event("may_have_lost", format!("{name} was chosen without {loss}"));
        }
        self.configs.push(config);
        outcome.event("leader_chosen", message);
        if forced {
            self.note_retired(self.epoch, retired, outcome);
        }
        Ok(())
    }

    /// The chosen one's log ends on the timeline of a promotion that happened and was never noted, because its leader
    /// ended first. It is part of the history from now on; its configuration will be forgotten.
    fn note_unnoted_promotion(&mut self, timeline: Timeline) {
        if self.history.iter().any(|entry| entry.timeline == timeline) {
            return;
        }
        let Some(config) = self.configs.iter().find(|config| config.timeline == timeline) else { return };
        self.history.push(HistoryEntry {
            epoch: config.epoch,
            timeline,
            parent: config.start.timeline.max(Timeline(1)),
            fork_lsn: config.start.lsn,
            end_of_recovery: config.start.lsn,
            leader: config.leader.member,
            possible_loss: config.possible_loss,
        });
    }

    /// The chosen one runs on its timeline, by its node's word.
    pub(super) fn note_promotion(
        &mut self,
        entry: HistoryEntry,
        system_identifier: &str,
        outcome: &mut Outcome,
    ) -> Result<(), Refusal> {
        let HistoryEntry { epoch, timeline, fork_lsn, leader, .. } = entry;
        if !matches!(self.leadership, Leadership::Chosen { .. }) {
            return Err(conflict("the promotion of this epoch is recorded already"));
        }
        if self.config().is_none_or(|config| config.timeline != timeline) {
            return Err(conflict(format!("timeline {timeline} is not the one that epoch {epoch} was given")));
        }
        match &self.system_identifier {
            None => self.system_identifier = Some(system_identifier.to_string()),
            Some(known) if known == system_identifier => {}
            Some(known) => {
                return Err(conflict(format!(
                    "the promoted member's system identifier is {system_identifier}, the cluster's is {known}"
                )));
            }
        }
        self.history.push(entry);
        self.leadership = Leadership::Promoted { leader };
        let name = self.member_name(leader);
        outcome.event("leader_promoted", format!("{name} promoted to timeline {timeline} at {fork_lsn}"));
        Ok(())
    }

    pub(super) fn confirm(&mut self, epoch: Epoch, outcome: &mut Outcome) -> Result<(), Refusal> {
        let leader = self.in_epoch(epoch)?;
        if !matches!(self.leadership, Leadership::Promoted { .. }) {
            return Err(conflict("only a promoted and unconfirmed epoch can be confirmed"));
        }
        self.leadership = Leadership::Confirmed { leader };
        // What came before is contained in this one: an election need not ask it any more.
        let keep = self.configs.len() - 1;
        self.configs.drain(..keep);
        self.end_forced(leader, outcome);
        self.end_recovery();
        let name = self.member_name(leader);
        outcome.event("leader_confirmed", format!("{name} leads in epoch {epoch}"));
        Ok(())
    }

    /// The leader of `epoch`, if that is the present one and it has a leader.
    pub(super) fn in_epoch(&self, epoch: Epoch) -> Result<MemberId, Refusal> {
        match self.leadership.leader() {
            Some(leader) if epoch == self.epoch => Ok(leader),
            Some(_) => Err(Refusal::StaleEpoch { asked: epoch, found: self.epoch }),
            None => Err(conflict("the epoch has no leader yet")),
        }
    }
}

fn describe(reason: EpochReason) -> &'static str {
    match reason {
        EpochReason::Created => "the cluster is new",
        EpochReason::PostgresEnded => "the leader's Postgres ended",
        EpochReason::NodeLost => "the leader's node closed its connections and no standby hears from its Postgres",
        EpochReason::NodeSilent => "the leader's node is silent and no standby hears from its Postgres",
        EpochReason::CutFromStandbys => "too few standbys can reach the leader",
        EpochReason::PostgresHung => "the leader's Postgres answers nobody",
        EpochReason::StorageFailed => "the leader's storage takes no writes",
        EpochReason::DataCorruption => "pages of the leader have wrong checksums",
        EpochReason::SyncSetChange => "the sync set changes in a way that needs an epoch",
        EpochReason::PromotionFailed => "the chosen leader could not be promoted",
        EpochReason::Switchover => "a switchover was asked for",
        EpochReason::Restart => "a restart was asked for",
        EpochReason::Forced => "a failover was forced",
        EpochReason::RecordBehind => "the record was recovered and its members may know newer epochs",
    }
}
