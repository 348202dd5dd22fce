//! A cluster takes another one's place: the name, the gateways' ports, the schedule of snapshots. That is how a cluster goes back to a
//! snapshot: a fork of it takes its place, and what it was is kept aside, whole, and takes no clients.
//!
//! Three changes, in this order. The fork is recorded with whose place it takes; once it is what its spec says, the other one is set
//! aside, so that its leader lets no client in; only when that leader is seen to do so, the two exchange what clients know them by.
//! The name by which the other one is to be kept is nobody else's from the beginning.

use super::apply::{conflict, not_found};
use super::cluster::{ClusterRecord, Forked, Lifecycle};
use super::{ClusterChange, NewCluster, OperationKind, Outcome, Record, Refusal};
use crate::ids::{ClusterId, OperationId};
use crate::schedule::SnapshotSchedule;
use crate::spec::{ClusterSpec, check_name};
use crate::time::WallTime;
use serde::{Deserialize, Serialize};

/// Whose place a cluster is to take.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TakesPlace {
    pub operation: OperationId,
    pub of: ClusterId,
    /// What the other one is called from then on.
    pub kept_as: String,
}

/// A cluster that takes no clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Aside {
    /// Who takes its place, or has taken it.
    pub to: ClusterId,
    /// The cluster's revision with which that began.
    pub revision: u64,
}

impl Record {
    /// Some cluster is to take another one's place, or is kept aside by one that has.
    pub fn has_places_taken(&self) -> bool {
        self.clusters.values().any(|cluster| cluster.takes_place.is_some() || cluster.aside.is_some())
            || self.operations.values().any(|operation| operation.kind == OperationKind::RollBackCluster)
    }

    /// Some cluster is to take another one's place.
    pub fn has_takers(&self) -> bool {
        self.clusters.values().any(|cluster| cluster.takes_place.is_some())
    }

    /// The cluster that is to take this one's place.
    pub fn taker_of(&self, cluster: ClusterId) -> Option<(&ClusterRecord, &TakesPlace)> {
        let takes = |held: &TakesPlace| held.of == cluster;
        self.clusters.values().find_map(|held| Some((held, held.takes_place.as_ref().filter(|place| takes(place))?)))
    }

    /// Some cluster has that name, or is to be kept aside by it.
    pub fn has_name(&self, name: &str) -> bool {
        let is_kept_as = |held: &ClusterRecord| held.takes_place.as_ref().is_some_and(|place| place.kept_as == name);
        self.clusters.values().any(|held| held.spec.name == name || is_kept_as(held))
    }

    /// What is kept aside of this cluster, the newest of it.
    pub fn kept_aside_by(&self, cluster: ClusterId) -> Option<&ClusterRecord> {
        // Ids are UUIDs v7, so the last is the newest.
        let kept = |held: &&ClusterRecord| held.aside.is_some_and(|aside| aside.to == cluster);
        self.clusters.values().rev().filter(|held| held.lifecycle == Lifecycle::Active).find(kept)
    }

    pub(super) fn begin_rollback(
        &mut self,
        at: WallTime,
        new: &NewCluster,
        forked: &Forked,
        takes_place: &TakesPlace,
    ) -> Result<(), Refusal> {
        let of = self.clusters.get(&takes_place.of).ok_or_else(|| not_found("cluster", takes_place.of))?;
        let source = self.clusters.get(&forked.cluster).and_then(|source| source.aside);
        if forked.cluster != of.id && source.is_none_or(|aside| aside.to != of.id) {
            return Err(conflict(
                "what takes a cluster's place is made from that cluster's data, or of what it took the place of",
            ));
        }
        self.check_place_is_free(of)?;
        let copied = ClusterSpec { name: of.spec.name.clone(), snapshots: of.spec.snapshots, ..new.spec.clone() };
        let copied = ClusterSpec { settings: of.spec.settings.clone(), ..copied };
        if copied != of.spec || new.secrets != of.secrets {
            return Err(conflict(format!("cluster {} was changed meanwhile; ask again", of.spec.name)));
        }
        self.check_kept_as(&takes_place.kept_as)?;
        if takes_place.kept_as == new.spec.name {
            return Err(conflict("both clusters would have one name"));
        }
        let name = of.spec.name.clone();
        self.create_cluster(at, new, Some(forked))?;
        if let Some(made) = self.clusters.get_mut(&new.id) {
            made.takes_place = Some(takes_place.clone());
        }
        self.start_operation(at, takes_place.operation, OperationKind::RollBackCluster, takes_place.of, &name);
        let message = format!("cluster {name} goes back to what it was at {}, as {}", forked.taken, new.spec.name);
        self.note(at, "rollback_requested", message, Some(takes_place.of), None);
        Ok(())
    }

    /// What of a change hangs on another cluster.
    pub(super) fn check_places(&self, cluster: &ClusterRecord, change: &ClusterChange) -> Result<(), Refusal> {
        let name = &cluster.spec.name;
        match change {
            ClusterChange::SetAside { to } => match self.taker_of(cluster.id) {
                Some((taker, _)) if taker.id == *to => Ok(()),
                _ => Err(conflict(format!("cluster {to} does not take the place of {name}"))),
            },
            ClusterChange::TakeBackPlace { kept_as, .. } => {
                let Some(aside) = cluster.aside else {
                    return Err(conflict(format!("cluster {name} is not kept aside")));
                };
                let to = self.clusters.get(&aside.to).ok_or_else(|| not_found("cluster", aside.to))?;
                to.check_active()?;
                self.check_place_is_free(to)?;
                self.check_kept_as(kept_as)
            }
            // Whatever takes its place was made by its spec as it was.
            ClusterChange::UpdateSpec { .. }
            | ClusterChange::ChangeMembers { .. }
            | ClusterChange::RequestDelete { .. } => match self.taker_of(cluster.id) {
                Some((taker, _)) => Err(conflict(format!(
                    "cluster {} is about to take the place of {name}; wait for that, or take it back (`pgstead cluster rollback {name} --cancel`)",
                    taker.spec.name
                ))),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn check_place_is_free(&self, of: &ClusterRecord) -> Result<(), Refusal> {
        of.check_active()?;
        let name = &of.spec.name;
        if let Some((taker, _)) = self.taker_of(of.id) {
            return Err(conflict(format!("cluster {} is about to take the place of {name} already", taker.spec.name)));
        }
        if of.aside.is_some() {
            return Err(conflict(format!("cluster {name} is kept aside; its place is taken already")));
        }
        match &of.takes_place {
            Some(_) => Err(conflict(format!("cluster {name} is about to take another one's place"))),
            None => Ok(()),
        }
    }

    fn check_kept_as(&self, name: &str) -> Result<(), Refusal> {
        check_name("cluster name", name).map_err(|error| conflict(error.to_string()))?;
        match self.has_name(name) {
            true => Err(Refusal::Exists { what: "cluster".into(), name: name.to_string() }),
            false => Ok(()),
        }
    }

    /// The one that is aside gives all that clients know it by.
    pub(super) fn take_place(
        &mut self,
        at: WallTime,
        cluster: ClusterId,
        revision: u64,
        of_revision: u64,
    ) -> Result<(), Refusal> {
        let stale = |held: &ClusterRecord, expected: u64| match held.revision == expected {
            true => Ok(()),
            false => Err(Refusal::StaleRevision { expected, found: held.revision }),
        };
        let mut new = self.clusters.get(&cluster).cloned().ok_or_else(|| not_found("cluster", cluster))?;
        stale(&new, revision)?;
        new.check_active()?;
        let Some(place) = new.takes_place.take() else {
            return Err(conflict(format!("cluster {} takes nobody's place", new.spec.name)));
        };
        let mut old = self.clusters.get(&place.of).cloned().ok_or_else(|| not_found("cluster", place.of))?;
        stale(&old, of_revision)?;
        if old.aside.is_none_or(|aside| aside.to != new.id) {
            return Err(conflict(format!("cluster {} is not set aside yet", old.spec.name)));
        }
        let name = old.spec.name.clone();
        old.rename(&place.kept_as);
        new.rename(&name);
        std::mem::swap(&mut old.ports.read_write, &mut new.ports.read_write);
        std::mem::swap(&mut old.ports.read_only, &mut new.ports.read_only);
        new.spec.snapshots = std::mem::replace(&mut old.spec.snapshots, SnapshotSchedule::Off);
        new.aside = None;
        old.revision += 1;
        new.revision += 1;
        let message = format!("cluster {name} is another one now; what it was is kept as {}", place.kept_as);
        for held in [old, new] {
            self.clusters.insert(held.id, held);
        }
        self.end_operation(at, place.operation, None);
        self.note(at, "place_taken", message, Some(cluster), None);
        Ok(())
    }

    /// After a change of a cluster: what was aside for it and is not any longer takes clients again, under the name that it has.
    pub(super) fn reopen_those_aside(&mut self, at: WallTime, change: &ClusterChange, before: &ClusterRecord) {
        let only = match change {
            ClusterChange::RequestDelete { .. } => None,
            ClusterChange::CancelPlace { .. } => Some(before.takes_place.as_ref().map(|place| place.of)),
            _ => return,
        };
        let mut reopened = Vec::new();
        for held in self.clusters.values_mut().filter(|held| held.lifecycle == Lifecycle::Active) {
            let meant = only.is_none_or(|only| only == Some(held.id));
            let Some(aside) = held.aside.filter(|aside| meant && aside.to == before.id) else { continue };
            held.revision += 1;
            // What is kept aside itself has no place to leave: whoever has it has taken this one's as well.
            match (&before.aside, only) {
                (Some(next), None) => held.aside = Some(Aside { to: next.to, ..aside }),
                _ => {
                    held.aside = None;
                    reopened.push((held.id, held.spec.name.clone()));
                }
            }
        }
        for (id, name) in reopened {
            self.note(at, "cluster_reopened", format!("cluster {name} takes clients again"), Some(id), None);
        }
    }
}

impl ClusterRecord {
    pub(super) fn set_aside(&mut self, to: ClusterId, outcome: &mut Outcome) -> Result<(), Refusal> {
        self.check_active()?;
        if self.aside.is_some() {
            return Err(conflict(format!("cluster {} is set aside already", self.spec.name)));
        }
        self.aside = Some(Aside { to, revision: self.revision + 1 });
        outcome.event("cluster_set_aside", format!("cluster {} takes no clients", self.spec.name));
        Ok(())
    }

    pub(super) fn take_back_place(
        &mut self,
        operation: OperationId,
        kept_as: &str,
        outcome: &mut Outcome,
    ) -> Result<(), Refusal> {
        self.check_active()?;
        let Some(aside) = self.aside.filter(|_| self.takes_place.is_none()) else {
            return Err(conflict(format!("cluster {} is about to take its place back already", self.spec.name)));
        };
        self.takes_place = Some(TakesPlace { operation, of: aside.to, kept_as: kept_as.to_string() });
        outcome.start = Some((operation, OperationKind::RollBackCluster));
        outcome.event("rollback_requested", format!("cluster {} is to take its place back", self.spec.name));
        Ok(())
    }

    pub(super) fn cancel_place(
        &mut self,
        operation: OperationId,
        why: &str,
        outcome: &mut Outcome,
    ) -> Result<(), Refusal> {
        match self.takes_place.take_if(|place| place.operation == operation) {
            Some(place) => {
                outcome.end = Some((place.operation, Some(why.to_string())));
                outcome.event("rollback_ended", format!("cluster {} takes nobody's place: {why}", self.spec.name));
                Ok(())
            }
            None => Err(conflict("that is over; look again and decide anew")),
        }
    }

    fn rename(&mut self, to: &str) {
        let from = std::mem::replace(&mut self.spec.name, to.to_string());
        for member in self.members.values_mut().chain(self.departed.values_mut().map(|departed| &mut departed.member)) {
            if let Some(number) = member.name.strip_prefix(&from).and_then(|rest| rest.strip_prefix('-')) {
                member.name = format!("{to}-{number}");
            }
        }
    }
}

#[cfg(test)]
mod tests;
