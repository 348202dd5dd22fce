//! What this node says of its members, and its way to the controller: at once on a change, briefly every heartbeat.

use crate::controller::{Arrived, ControllerHandle};
use crate::gateway_process::GatewayHealth;
use crate::granting;
use crate::lease::{Held, Leases};
use crate::peers::{Lane, PeerAddress, Peers};
use crate::round_trips::RoundTrips;
use crate::storage::Pools;
use pgstead_agent::lease::renews_lease;
use pgstead_consensus::{Consensus, TokioRuntime};
use pgstead_types::lease::LeaseGrant;
use pgstead_types::record::Record;
use pgstead_types::report::{MemberReport, NodeReport, PostgresSeen};
use pgstead_types::{MemberId, NodeId, Tick};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// One report that hangs and the next attempt come well before the silence that makes a node suspect.
const SEND_TIMEOUT: Duration = Duration::from_millis(700);
/// After a report that could not be delivered.
const RETRY: Duration = Duration::from_millis(100);

/// The latest report of each member. Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub struct Reports {
    members: Arc<Mutex<BTreeMap<MemberId, MemberReport>>>,
    changed: Arc<Notify>,
    /// Wakes a member's task for another look.
    looks: Arc<Mutex<BTreeMap<MemberId, Arc<Notify>>>>,
}

impl Reports {
    /// Replaces a member's report; wakes the sender when it says something new.
    pub fn put(&self, report: MemberReport) {
        let mut members = self.members.lock().expect("nothing panics while it holds the reports");
        let news = members.get(&report.member).is_none_or(|held| timeless(held) != timeless(&report));
        members.insert(report.member, report);
        if news {
            self.changed.notify_one();
        }
    }
    /// Progress of the step in flight.
    pub fn progress(&self, member: MemberId, percent: u8) {
        let mut members = self.members.lock().expect("nothing panics while it holds the reports");
        if let Some(working) = members.get_mut(&member).and_then(|report| report.working.as_mut()) {
            working.percent = Some(percent);
        }
    }
    /// The latest of a member.
    pub fn get(&self, member: MemberId) -> Option<MemberReport> {
        self.members.lock().expect("nothing panics while it holds the reports").get(&member).cloned()
    }
    /// Something about the member changed beside its task.
    pub fn look_again(&self, member: MemberId) {
        self.look_of(member).notify_one();
    }
    pub fn look_of(&self, member: MemberId) -> Arc<Notify> {
        self.looks.lock().expect("nothing panics while it holds the looks").entry(member).or_default().clone()
    }
    pub fn remove(&self, member: MemberId) {
        self.members.lock().expect("nothing panics while it holds the reports").remove(&member);
        self.changed.notify_one();
    }
    fn all(&self) -> Vec<MemberReport> {
        self.members.lock().expect("nothing panics while it holds the reports").values().cloned().collect()
    }
}

/// The report without what only time changes.
fn timeless(report: &MemberReport) -> MemberReport {
    let mut report = report.clone();
    if let PostgresSeen::Standby(standby) = &mut report.postgres
        && let Some(receiver) = &mut standby.receiver
    {
        receiver.silent_ms = 0;
    }
    if let Some(working) = &mut report.working {
        working.elapsed_ms = 0;
    }
    // It only ever grows, and matters to those who are away: the next heartbeat is early enough.
    report.oldest_log = None;
    report.slots = None;
    if let Some(lease) = &mut report.lease {
        lease.remaining_ms = 0;
    }
    if let Some(refusing) = &mut report.refusing {
        refusing.remaining_ms = 0;
    }
    report
}

/// The last look at the storage that a controller was told of: it may be large, and is not told again.
#[derive(Default)]
struct Told {
    /// In its term: the same node begins anew with each.
    controller: Option<(NodeId, u64)>,
    look: u64,
    /// Reports since then.
    since: u32,
}

/// A controller may have forgotten it all the same.
const TELL_AGAIN: u32 = 10;

impl Told {
    fn look_for(&mut self, controller: (NodeId, u64)) -> u64 {
        self.since += 1;
        if self.controller == Some(controller) && self.since < TELL_AGAIN { self.look } else { 0 }
    }
    fn told(&mut self, controller: (NodeId, u64), look: u64, said: bool) {
        if said {
            *self = Self { controller: Some(controller), look, since: 0 };
        }
    }
}

pub struct Reporter {
    pub consensus: Consensus<TokioRuntime>,
    pub controller: ControllerHandle,
    pub peers: Peers,
    pub reports: Reports,
    pub gateway: GatewayHealth,
    pub storage: Pools,
    pub heartbeat: Duration,
    /// Random per start of the daemon.
    pub session: u64,
    pub leases: Leases,
}

impl Reporter {
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut leadership = self.consensus.watch_leadership();
        let mut sequence = 0;
        let (mut told, mut trips) = (Told::default(), RoundTrips::default());
        loop {
            sequence += 1;
            let delivered = self.send(sequence, &mut told, &mut trips).await;
            let wait = if delivered { self.heartbeat } else { RETRY };
            tokio::select! {
                () = crate::server::stopped(&mut stop) => return,
                () = self.reports.changed.notified() => {}
                () = self.storage.news().notified() => {}
                changed = leadership.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn send(&self, sequence: u64, told: &mut Told, trips: &mut RoundTrips) -> bool {
        let leadership = self.consensus.leadership();
        let Some(leader) = leadership.leader else { return false };
        let controller = (leader, leadership.term);
        let record = self.consensus.record();
        let (look, storage) = self.storage.seen_since(told.look_for(controller));
        let says = storage.is_some();
        let is_own = leader == self.consensus.node();
        let report = NodeReport {
            node: self.consensus.node(),
            session: self.session,
            sequence,
            revision: record.revision,
            members: self.reports.all(),
            findings: self.gateway.findings().into_iter().chain(self.storage.findings()).collect(),
            storage,
            round_trip_us: if is_own { Some(0) } else { trips.shortest_us(leader) },
        };
        let sent = Tick::now();
        let asks = asks_for_lease(&record, &report) && self.leases.is_due(sent, crate::lease::times(&record));
        if is_own {
            let arrived = Arrived { report, at: sent, connection: 0, grant: None };
            if asks {
                let (controller, leases) = (self.controller.clone(), self.leases.clone());
                let grant = async move { granting::of_own_node(&controller, arrived).await };
                tokio::spawn(async move { take(&leases, sent, grant.await) });
            } else {
                self.controller.arrived(arrived);
            }
            told.told(controller, look, says);
            return true;
        }
        let Some(node) = record.nodes.get(&leader) else { return false };
        let to = PeerAddress { node: leader, host: node.host.clone(), port: node.port };
        let body = match serde_json::to_vec(&report) {
            Ok(body) => body,
            Err(error) => {
                tracing::error!(%error, "a report cannot be written");
                return false;
            }
        };
        if asks {
            // A grant waits for a quorum; the next report does not wait for the grant.
            let (peers, leases, reports) = (self.peers.clone(), self.leases.clone(), self.reports.clone());
            tokio::spawn(async move {
                let limit = granting::GRANT_TIME_MAX + SEND_TIMEOUT;
                let answer = peers.post_json(&to, Lane::Report, "/internal/report?lease=true", body, limit).await;
                let answer = answer.ok().filter(|answer| answer.status().is_success());
                if answer.is_none() {
                    tokio::time::sleep(RETRY).await;
                    reports.changed.notify_one();
                }
                take(&leases, sent, answer.and_then(|answer| serde_json::from_slice(answer.body()).ok()));
            });
            return true;
        }
        match self.peers.post_json(&to, Lane::Report, "/internal/report", body, SEND_TIMEOUT).await {
            Ok(answer) => {
                let delivered = answer.status().is_success();
                if delivered {
                    // Those that ask for a lease wait for a quorum, and are not measured.
                    trips.note(leader, Tick::now().since(sent));
                    told.told(controller, look, says);
                }
                delivered
            }
            Err(error) => {
                tracing::debug!(%error, "the controller could not be told");
                false
            }
        }
    }
}

/// Only nodes that lead something need a lease.
fn asks_for_lease(record: &Record, report: &NodeReport) -> bool {
    let counted = |member| report.members.iter().any(|seen| seen.member == member && seen.lease.is_some());
    record.clusters_on(report.node).any(|(cluster, member)| renews_lease(cluster, member.id, counted(member.id)))
}

/// Counted from when the report was sent.
fn take(leases: &Leases, sent: Tick, grant: Option<LeaseGrant>) {
    match grant {
        Some(grant) => {
            let end = sent + Duration::from_millis(grant.lease_ms);
            leases.granted(Held { end, revision: grant.revision });
        }
        None => leases.was_not_granted(),
    }
}
