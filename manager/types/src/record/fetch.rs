//! Log that one promiser fetches from another before a leader is chosen: the one that holds most of it should not lead.

use super::cluster::{ClusterRecord, Leadership};
use super::{Outcome, Refusal, conflict};
use crate::ids::Incarnation;
use crate::position::{Epoch, Position};
use serde::{Deserialize, Serialize};

/// An order that stands while the election of `epoch` is open. One is given per epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogFetch {
    pub epoch: Epoch,
    /// Holds most of the log, and is not well.
    pub from: Incarnation,
    pub to: Incarnation,
    /// Where the log of `from` ends, by its answer. `to` is on the same timeline.
    pub upto: Position,
}

impl ClusterRecord {
    /// The fetch that is ordered in the open election.
    pub fn fetch(&self) -> Option<&LogFetch> {
        let electing = matches!(self.leadership, Leadership::Electing { .. });
        self.fetch.as_ref().filter(|fetch| electing && fetch.epoch == self.epoch)
    }

    pub(super) fn order_fetch(&mut self, fetch: LogFetch, outcome: &mut Outcome) -> Result<(), Refusal> {
        if fetch.epoch != self.epoch {
            return Err(Refusal::StaleEpoch { asked: fetch.epoch, found: self.epoch });
        }
        if !matches!(self.leadership, Leadership::Electing { .. }) {
            return Err(conflict("log is fetched only while an election is open"));
        }
        if self.fetch().is_some() {
            return Err(conflict("log was fetched in this epoch already"));
        }
        let is_current =
            |life: Incarnation| self.members.get(&life.member).is_some_and(|member| member.current() == life);
        if let Some(stranger) = [fetch.from, fetch.to].into_iter().find(|life| !is_current(*life)) {
            return Err(conflict(format!("{stranger} is not a present incarnation of a member")));
        }
        if fetch.from.member == fetch.to.member {
            return Err(conflict("nobody fetches log from itself"));
        }
        let (to, from) = (self.member_name(fetch.to.member), self.member_name(fetch.from.member));
        let text = format!("{to} fetches the log up to {} from {from}, which is not well", fetch.upto);
        outcome.event("log_fetch", text);
        self.fetch = Some(fetch);
        Ok(())
    }
}
