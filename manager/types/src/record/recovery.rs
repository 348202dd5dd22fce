//! What changes in the record when it goes on from one survivor's copy.

use super::apply::{Outcome, conflict, not_found};
use super::cluster::{ClusterRecord, EpochReason, Leadership, Lifecycle, MemberRecord};
use super::{Record, Refusal};
use crate::ids::{Incarnation, MemberId, NodeId, RecoveryId};
use crate::position::{Epoch, Timeline};
use crate::report::MemberReport;
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The entries that are lost may have opened epochs, given timelines, and given members new incarnations. So many numbers of
/// each are skipped, more of them than anyone loses, that none is ever given twice.
const NUMBERS_SKIPPED: u32 = 1000;

/// A cluster's record went on from one survivor's copy: configurations, promotions and lives of data that were recorded last
/// may be unknown to it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Recovered {
    pub recovery: RecoveryId,
    /// The epoch that it opened. Whoever is chosen in it or later was chosen with everything that is left.
    pub epoch: Epoch,
    /// The nodes that a person has given up. Nobody waits for the members there.
    pub lost: BTreeSet<NodeId>,
    /// Lives of data on those nodes, as far as they were known. They are not the cluster's any more.
    pub retired: BTreeSet<Incarnation>,
    /// An epoch was confirmed since, so every configuration that counts is known again.
    pub ended: bool,
}

impl Record {
    /// Whatever comes back from a lost node is not the cluster's any more, and nobody is believed to lead: an election among
    /// those who are left says who does.
    pub(super) fn recover_quorum(
        &mut self,
        at: WallTime,
        recovery: RecoveryId,
        node: NodeId,
        by: &str,
        lost: &BTreeSet<NodeId>,
    ) {
        let name = |id: &NodeId| self.nodes.get(id).map_or_else(|| id.to_string(), |node| node.name.clone());
        let names: Vec<String> = lost.iter().map(name).collect();
        let message = format!(
            "{by} recovered the record on node {} at revision {} (recovery {recovery}); lost for good: {}",
            name(&node),
            self.revision,
            names.join(", ")
        );
        self.note(at, "quorum_recovered", message, None, Some(node));
        let mut notes = Vec::new();
        for cluster in self.clusters.values_mut() {
            let mut outcome = Outcome::default();
            cluster.recover(recovery, lost, &mut outcome);
            cluster.revision += 1;
            notes.extend(outcome.into_events().map(|(kind, message)| (cluster.id, kind, message)));
        }
        for (cluster, kind, message) in notes {
            self.note(at, kind, message, Some(cluster), None);
        }
    }
}

impl ClusterRecord {
    fn recover(&mut self, recovery: RecoveryId, lost: &BTreeSet<NodeId>, outcome: &mut Outcome) {
        let mut retired = BTreeSet::new();
        for member in self.members.values_mut().filter(|member| lost.contains(&member.node)) {
            retired.insert(member.current());
            member.incarnation += NUMBERS_SKIPPED;
            let message = format!("the data of {} was on a lost node and is not the cluster's any more", member.name);
            outcome.event("data_retired", message);
        }
        // Its leaving may be an entry that was never agreed on, and its data the newest that is left.
        retired.extend(self.departed.values().map(|departed| departed.member.current()));
        let mut recovered = Recovered { recovery, epoch: self.epoch, lost: lost.clone(), retired, ended: false };
        if let Some(former) = self.recovered.take() {
            recovered.retired.extend(former.retired);
            if !former.ended {
                recovered.lost.extend(former.lost);
            }
        }
        if self.lifecycle == Lifecycle::Active {
            let preferred = self.leader().filter(|leader| !lost.contains(&leader.node)).map(|leader| leader.id);
            self.epoch = Epoch(self.epoch.0 + u64::from(NUMBERS_SKIPPED));
            self.last_timeline = Timeline(self.last_timeline.0 + NUMBERS_SKIPPED);
            self.leadership = Leadership::Electing { reason: EpochReason::RecordBehind, preferred };
            recovered.epoch = self.epoch;
            let message =
                format!("epoch {} began: the record was recovered, and who leads is elected anew", self.epoch);
            outcome.event("epoch_began", message);
        }
        self.recovered = Some(recovered);
    }

    /// Since its record was recovered no epoch has been confirmed.
    pub fn recovering(&self) -> Option<&Recovered> {
        self.recovered.as_ref().filter(|recovered| !recovered.ended)
    }

    /// The number of a member's next life of data. Where lives may exist that the record does not know, beyond all of them.
    pub fn next_incarnation(&self, member: &MemberRecord) -> u32 {
        member.incarnation + if self.recovered.is_some() { NUMBERS_SKIPPED } else { 1 }
    }

    /// Whether data of this life was declared lost, by a forced failover or with its node. What it holds nobody else may have.
    pub fn is_given_up(&self, life: Incarnation) -> bool {
        // A life that the record never knew is given up with the last one that it did know.
        let unknown = if self.recovered.is_some() { NUMBERS_SKIPPED } else { 1 };
        let covers = |given_up: &Incarnation| {
            given_up.member == life.member && (given_up.number..given_up.number + unknown).contains(&life.number)
        };
        let of_recovery = self.recovered.iter().flat_map(|recovered| &recovered.retired);
        self.forced.iter().flat_map(|forced| &forced.retired).chain(of_recovery).any(covers)
    }

    /// Whether there is data on the member's volume that was given up: the only copy, maybe, of what was acknowledged.
    pub fn holds_given_up(&self, seen: &MemberReport) -> bool {
        !seen.kept.is_empty() || seen.incarnation().is_some_and(|life| self.is_given_up(life))
    }

    /// Whether any life of data of this member was given up.
    pub fn has_given_up_data_of(&self, member: MemberId) -> bool {
        let of_recovery = self.recovered.iter().flat_map(|recovered| &recovered.retired);
        self.forced.iter().flat_map(|forced| &forced.retired).chain(of_recovery).any(|life| life.member == member)
    }

    /// Takes over the number of a life of data that was given in entries which are lost.
    pub(super) fn adopt(&mut self, member: MemberId, incarnation: u32, outcome: &mut Outcome) -> Result<(), Refusal> {
        let open = matches!(self.leadership, Leadership::Electing { .. });
        let Some(lost) = self.recovering().filter(|_| open).map(|recovered| recovered.lost.clone()) else {
            return Err(conflict("lives of data are adopted only in the election after the record was recovered"));
        };
        let held = self.members.get_mut(&member).ok_or_else(|| not_found("member", member))?;
        if lost.contains(&held.node) {
            return Err(conflict(format!("the node of {} was given up as lost", held.name)));
        }
        if incarnation <= held.incarnation {
            return Err(conflict(format!("{} is at incarnation {}", held.name, held.incarnation)));
        }
        held.incarnation = incarnation;
        let message = format!("{} holds incarnation {incarnation}, which the recovered record did not know", held.name);
        outcome.event("incarnation_adopted", message);
        Ok(())
    }

    /// A confirmed epoch has everything that is left.
    pub(super) fn end_recovery(&mut self) {
        if let Some(recovered) = &mut self.recovered {
            recovered.ended = true;
        }
    }
}
