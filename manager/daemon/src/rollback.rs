//! Clusters that go back to a snapshot: a fork is made, and takes the cluster's place. What is recorded is whose place it takes;
//! whoever is the controller has it do so.

use crate::backend::NodeBackend;
use crate::forking::Becomes;
use pgstead_api::backend::{Accepted, ForkAsked, ForkOf, Rejected, RollBackAsked};
use pgstead_core::{CLOSED_MAX, PlaceStep, take_place};
use pgstead_types::record::{ClusterChange, ClusterRecord, Command, Record};
use pgstead_types::{ClusterId, Finding, OperationId, Tick, WallTime};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use uuid::Uuid;

/// Between two looks at what is being made, which takes seconds at least.
const LOOK: Duration = Duration::from_millis(250);
/// And while clients wait for the exchange.
const SOON: Duration = Duration::from_millis(25);
/// A snapshot that goes so soon may be gone before its node knows what it is needed for.
const EXPIRES_SOON: Duration = Duration::from_secs(60);
/// Names that are tried for a cluster that nobody has named.
const NAMES_MAX: usize = 1000;
/// Of a cluster's name, so that what is added to it fits.
const NAME_KEPT: usize = 26;

/// What clusters wait for that are to take others' places. Only the controller knows.
#[derive(Clone, Debug, Default)]
pub struct Places {
    waits: Arc<Mutex<BTreeMap<ClusterId, Waits>>>,
}

#[derive(Clone, Debug)]
struct Waits {
    finding: Finding,
    /// Since when the other one has taken no clients, as far as this node has seen.
    closed: Option<Tick>,
}

impl Places {
    /// What is kept aside, and what keeps clusters from taking others' places.
    pub fn findings(&self, record: &Record) -> Vec<Finding> {
        let kept = record.clusters.values().filter_map(|cluster| {
            let to = record.clusters.get(&cluster.aside?.to)?;
            let (name, by) = (&cluster.spec.name, &to.spec.name);
            let text = match record.taker_of(cluster.id) {
                Some(_) => format!("{name} takes no clients: {by} takes its place"),
                None if to.aside.is_some() => format!(
                    "{name} is kept aside and takes no clients: {by} has taken its place, and is kept aside itself. \
                     `pgstead cluster delete {name}` removes it"
                ),
                None => format!(
                    "{name} is kept aside and takes no clients: {by} has taken its place. `pgstead cluster rollback {by} --undo` exchanges \
                     them again, `pgstead cluster delete {name}` removes it"
                ),
            };
            Some(Finding::info("kept_aside", text).on_cluster(cluster.id))
        });
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        kept.chain(waits.values().map(|waits| waits.finding.clone())).collect()
    }

    fn set(&self, waits: BTreeMap<ClusterId, Waits>) {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = waits;
    }

    fn closed_since(&self, taker: ClusterId) -> Option<Tick> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner).get(&taker).and_then(|waits| waits.closed)
    }
}

impl NodeBackend {
    pub(crate) async fn begin_rollback(&self, cluster: ClusterId, asked: RollBackAsked) -> Result<Accepted, Rejected> {
        let (record, held) = (self.consensus.record(), self.cluster(cluster)?);
        let name = &held.spec.name;
        let operation = OperationId::from_uuid(Uuid::now_v7());
        match asked {
            RollBackAsked::To { node, snapshot, keep_as } => {
                // Its node may be about to remove it.
                let soon = WallTime::now().plus(EXPIRES_SOON);
                if let Some(expires) = snapshot.expires.filter(|expires| *expires < soon) {
                    return Err(Rejected::Conflict {
                        why: format!("that snapshot goes at {expires}, too soon to go back to it; choose another one"),
                    });
                }
                let fork = ForkAsked {
                    name: free_name(&record, name, "rollback")?,
                    members: held.spec.members,
                    of: ForkOf::Snapshot(node, snapshot),
                    keeps_passwords: true,
                };
                let kept_as = keep_as.map_or_else(|| free_name(&record, name, "kept"), Ok)?;
                self.make_fork(cluster, fork, Becomes::Source { operation, kept_as }).await?;
                Ok(Accepted { operation, cluster })
            }
            RollBackAsked::Undo { keep_as } => {
                let Some(aside) = record.kept_aside_by(cluster) else {
                    return Err(Rejected::Conflict {
                        why: format!(
                            "nothing is kept aside that {name} has taken the place of; there is nothing to undo"
                        ),
                    });
                };
                let kept_as = keep_as.map_or_else(|| free_name(&record, name, "undone"), Ok)?;
                self.change(aside.id, None, ClusterChange::TakeBackPlace { operation, kept_as }).await?;
                Ok(Accepted { operation, cluster: aside.id })
            }
        }
    }

    pub(crate) async fn take_back_rollback(&self, cluster: ClusterId) -> Result<Accepted, Rejected> {
        let (record, held) = (self.consensus.record(), self.cluster(cluster)?);
        let Some((taker, place)) = record.taker_of(cluster) else {
            let name = &held.spec.name;
            let undo = match record.kept_aside_by(cluster) {
                Some(_) => format!("; the last one is done, and `pgstead cluster rollback {name} --undo` undoes it"),
                None => String::new(),
            };
            return Err(Rejected::Conflict { why: format!("no rollback of {name} is under way{undo}") });
        };
        let operation = place.operation;
        self.change(taker.id, None, give_up(taker, operation, "it was cancelled".to_string())).await?;
        Ok(Accepted { operation, cluster })
    }

    /// Has clusters take the places that they are to take, as long as this node is the controller, until `stop`.
    pub async fn take_places(self, mut stop: watch::Receiver<bool>) {
        let mut record = self.consensus.watch_record();
        loop {
            let wait = self.take_each_place().await;
            tokio::select! {
                () = crate::server::stopped(&mut stop) => return,
                changed = record.wait_until(|record| record.has_takers()), if wait.is_none() => if changed.is_err() { return },
                () = tokio::time::sleep(wait.unwrap_or(LOOK)), if wait.is_some() => {}
            }
        }
    }

    /// When to look again; `None`: once one is to take another one's place.
    async fn take_each_place(&self) -> Option<Duration> {
        let record = self.consensus.record();
        let mut waits = BTreeMap::new();
        if !record.has_takers() {
            self.places.set(waits);
            return None;
        }
        let mut wait = LOOK;
        if let Some(view) = self.controller.view() {
            for cluster in record.clusters.keys() {
                let closed =
                    is_between(&record, *cluster).then(|| self.places.closed_since(*cluster).unwrap_or_else(Tick::now));
                if closed.is_some() {
                    wait = SOON;
                }
                let proposed = match take_place(&record, *cluster, &view.observed, &self.policy) {
                    None => continue,
                    Some(PlaceStep::Wait(finding)) => {
                        let late = closed.is_some_and(|closed| Tick::now().since(closed) >= CLOSED_MAX);
                        let why = finding.message.clone();
                        waits.insert(*cluster, Waits { finding, closed });
                        // Clients are served again rather than made to wait for what may never come.
                        let Some(held) = record.clusters.get(cluster).filter(|_| late) else { continue };
                        let Some(place) = &held.takes_place else { continue };
                        tracing::warn!(%cluster, why, "a rollback is given up");
                        let change = give_up(held, place.operation, format!("it took too long: {why}"));
                        let (cluster, revision) = (*cluster, held.revision);
                        Command::ChangeCluster { at: WallTime::now(), cluster, revision, change }
                    }
                    Some(PlaceStep::Change { cluster, revision, change }) => {
                        Command::ChangeCluster { at: WallTime::now(), cluster, revision, change }
                    }
                    Some(PlaceStep::Take { cluster, revision, of_revision }) => {
                        Command::TakePlace { at: WallTime::now(), cluster, revision, of_revision }
                    }
                };
                // Decided anew, whatever became of it.
                wait = SOON;
                if let Err(why) = self.propose(proposed).await {
                    tracing::warn!(%cluster, ?why, "a cluster cannot take another one's place yet");
                    wait = LOOK;
                    let text = format!("a cluster is to take another one's place, which could not be recorded: {why}");
                    let finding = Finding::info("place_not_taken_yet", text).on_cluster(*cluster);
                    waits.insert(*cluster, Waits { finding, closed });
                }
            }
        }
        self.places.set(waits);
        Some(wait)
    }
}

/// The other one takes no clients any more.
fn is_between(record: &Record, taker: ClusterId) -> bool {
    let of = |held: &ClusterRecord| held.takes_place.as_ref().map(|place| place.of);
    let of = record.clusters.get(&taker).and_then(of).and_then(|of| record.clusters.get(&of));
    of.is_some_and(|of| of.aside.is_some_and(|aside| aside.to == taker))
}

/// What was made for a rollback goes, in the one change that lets the other one's clients in; what is kept aside stays that.
fn give_up(taker: &ClusterRecord, operation: OperationId, why: String) -> ClusterChange {
    match taker.aside {
        Some(_) => ClusterChange::CancelPlace { operation, why },
        None => ClusterChange::RequestDelete { operation: OperationId::from_uuid(Uuid::now_v7()) },
    }
}

fn free_name(record: &Record, of: &str, what: &str) -> Result<String, Rejected> {
    let of: String = of.chars().take(NAME_KEPT).collect();
    let of = of.trim_end_matches('-');
    let numbered = (2..NAMES_MAX).map(|n| format!("{of}-{what}-{n}"));
    let free = std::iter::once(format!("{of}-{what}")).chain(numbered).find(|name| !record.has_name(name));
    free.ok_or_else(|| Rejected::Conflict {
        why: format!("all names such as {of}-{what} are taken; delete some clusters"),
    })
}
