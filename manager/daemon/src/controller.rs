//! The controller's shell, on whichever node leads Raft: takes in reports, decides about the clusters that they touch,
//! records, looks again. A slow proposal for one cluster never delays a decision about another, and a lost quorum is a
//! state that it waits out.

use crate::granting::{Asked, Granting, Round};
use crate::server::Closed;
use crate::succession::Ended;
use pgstead_consensus::{Consensus, ProposeError, TokioRuntime};
use pgstead_core::{Connection, Memory, Observed, Place, Plan, Policy, decide};
use pgstead_types::lease::LeaseGrant;
use pgstead_types::record::{ClusterRecord, Command, Record};
use pgstead_types::report::NodeReport;
use pgstead_types::{ClusterId, Finding, NodeId, Tick, WallTime};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// A tick of our own that comes so much too late means that this process did not run: its evidence of others' silence
/// is worth nothing.
const STALL: Duration = Duration::from_millis(400);
/// Between two looks when nothing happens. Silence is noticed by this clock, so it is well below the suspicion time.
const TICK: Duration = Duration::from_millis(250);
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// A node's report, as it came in.
#[derive(Debug)]
pub struct Arrived {
    pub report: NodeReport,
    pub at: Tick,
    /// The connection that carried it; 0 for the controller's own node.
    pub connection: u64,
    /// Where the lease goes that the report asks for.
    pub grant: Option<oneshot::Sender<LeaseGrant>>,
}

/// For whoever hands reports to the controller.
#[derive(Clone)]
pub struct ControllerHandle {
    reports: mpsc::Sender<Arrived>,
    view: Arc<Mutex<Option<View>>>,
}

/// What the API shows of the controller's knowledge; there only while this node is the controller.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub observed: Observed,
    pub findings: BTreeMap<ClusterId, Vec<Finding>>,
}

impl ControllerHandle {
    pub fn arrived(&self, report: Arrived) {
        // A full queue means that the controller is behind; the next report says everything again.
        let _ = self.reports.try_send(report);
    }
    pub fn view(&self) -> Option<View> {
        self.view.lock().expect("nothing panics while it holds the view").clone()
    }
}

struct Controller {
    consensus: Consensus<TokioRuntime>,
    policy: Policy,
    view: Arc<Mutex<Option<View>>>,
    observed: Observed,
    /// What this node has seen of others' ends before it became the controller.
    ended: Ended,
    /// Which connection each node's reports come on.
    connections: BTreeMap<NodeId, u64>,
    memories: BTreeMap<ClusterId, Memory>,
    wake: BTreeMap<ClusterId, Tick>,
    findings: BTreeMap<ClusterId, Vec<Finding>>,
    /// Clusters to decide about.
    dirty: BTreeSet<ClusterId>,
    /// Clusters with a proposal under way.
    proposing: BTreeSet<ClusterId>,
    proposed: mpsc::UnboundedSender<ClusterId>,
    /// Revisions of the clusters as last decided on.
    decided: BTreeMap<ClusterId, u64>,
    granting: Granting,
}

/// Starts the controller's task; it acts whenever this node leads.
pub fn start(
    consensus: Consensus<TokioRuntime>,
    policy: Policy,
    closed: mpsc::UnboundedReceiver<Closed>,
    ended: Ended,
    stop: watch::Receiver<bool>,
) -> ControllerHandle {
    // Bounded: a report per node and heartbeat, with room for bursts of a thousand nodes.
    let (reports, arrivals) = mpsc::channel(4096);
    let view = Arc::new(Mutex::new(None));
    let (proposed, finished) = mpsc::unbounded_channel();
    let (granting, rounds) = Granting::new();
    let controller = Controller {
        consensus,
        policy,
        view: view.clone(),
        observed: Observed::default(),
        ended,
        connections: BTreeMap::new(),
        memories: BTreeMap::new(),
        wake: BTreeMap::new(),
        findings: BTreeMap::new(),
        dirty: BTreeSet::new(),
        proposing: BTreeSet::new(),
        proposed,
        decided: BTreeMap::new(),
        granting,
    };
    tokio::spawn(controller.run(arrivals, closed, finished, rounds, stop));
    ControllerHandle { reports, view }
}

impl Controller {
    async fn run(
        mut self,
        mut arrivals: mpsc::Receiver<Arrived>,
        mut closed: mpsc::UnboundedReceiver<Closed>,
        mut finished: mpsc::UnboundedReceiver<ClusterId>,
        mut rounds: mpsc::UnboundedReceiver<Round>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut record = self.consensus.watch_record();
        let mut leadership = self.consensus.watch_leadership();
        // The term in which this node is the controller. Another one may have been in between.
        let mut leading: Option<u64> = None;
        loop {
            let now = Tick::now();
            // A cluster with a proposal under way is looked at when that has ended.
            let due = self.wake.iter().filter(|(cluster, _)| !self.proposing.contains(*cluster)).map(|(_, at)| *at);
            let next = due.min().map_or(TICK, |at| at.since(now)).min(TICK);
            let asked = now + next;
            tokio::select! {
                biased;
                () = crate::server::stopped(&mut stop) => return,
                changed = leadership.changed() => if changed.is_err() { return },
                Some(closed) = closed.recv() => {
                    // What that connection brought before it closed comes first.
                    while let Ok(arrived) = arrivals.try_recv() {
                        self.on_report(arrived);
                    }
                    self.on_closed(closed);
                }
                Some(cluster) = finished.recv() => {
                    self.proposing.remove(&cluster);
                    self.dirty.insert(cluster);
                }
                changed = record.changed() => if changed.is_err() { return },
                Some(arrived) = arrivals.recv() => self.on_report(arrived),
                Some(round) = rounds.recv() => self.on_round(round, leading),
                () = tokio::time::sleep(next) => {}
            }
            // Whatever else is waiting belongs to the same look at the world.
            while let Ok(arrived) = arrivals.try_recv() {
                self.on_report(arrived);
            }
            let leadership = self.consensus.leadership();
            let term = leadership.am_leader.then_some(leadership.term);
            let now = Tick::now();
            if term.is_some() && leading != term {
                self.begin(now);
            } else if term.is_none() && leading.is_some() {
                self.end();
            } else if now.since(asked) > STALL {
                tracing::warn!(late_ms = now.since(asked).as_millis() as u64, "this process did not run for a while");
                self.observed.since = now;
            }
            leading = term;
            if let Some(term) = leading {
                self.look(now);
                self.granting.begin(&self.consensus, term);
            }
        }
    }

    /// Every node is unknown now, which is neither healthy nor dead.
    fn begin(&mut self, now: Tick) {
        tracing::info!(node = %self.consensus.node(), "this node is the controller now");
        let ended = self.ended.lately(now);
        self.observed = Observed { now, wall: WallTime::now(), since: now, elected: now, ended, ..Observed::default() };
        self.granting.forget();
        self.connections.clear();
        self.memories.clear();
        self.wake.clear();
        self.findings.clear();
        self.decided.clear();
        self.dirty = self.consensus.record().clusters.keys().copied().collect();
    }

    fn end(&mut self) {
        tracing::info!(node = %self.consensus.node(), "this node is not the controller any more");
        *self.view.lock().expect("nothing panics while it holds the view") = None;
    }

    /// A quorum has confirmed, after these reports arrived, that this node leads. Each grant is noted before it is answered,
    /// and names the record that it is for, in one go with the look at that record.
    fn on_round(&mut self, round: Round, leading: Option<u64>) {
        self.granting.on_ended();
        let still = self.consensus.leadership();
        if !round.confirmed || leading != Some(round.term) || !still.am_leader || still.term != round.term {
            return;
        }
        let now = Tick::now();
        let record = self.consensus.record();
        let lease = crate::lease::times(&record);
        let grant = LeaseGrant {
            lease_ms: u64::try_from(lease.lease.as_millis()).unwrap_or(u64::MAX),
            revision: record.revision,
        };
        for Asked { node, answer } in round.asked {
            self.observed.grant(node, now, lease);
            // Whoever has gone meanwhile does not know of it; that is on the safe side.
            let _ = answer.send(grant);
        }
    }

    fn on_report(&mut self, arrived: Arrived) {
        let Arrived { report, at, connection, grant } = arrived;
        let node = report.node;
        if let Some(answer) = grant {
            self.granting.ask(Asked { node, answer });
        }
        let before = self.observed.nodes.get(&node).cloned();
        if !self.observed.hear(report, at) {
            return;
        }
        self.connections.insert(node, connection);
        let Some(now) = self.observed.nodes.get(&node) else { return };
        let held = |member| before.as_ref()?.report.members.iter().find(|other| other.member == member);
        let changed = now.report.members.iter().filter(|member| held(member.member) != Some(member));
        self.dirty.extend(changed.map(|member| member.cluster));
        if before.is_none_or(|before| before.connection != Connection::Open) {
            let record = self.consensus.record();
            self.dirty.extend(record.clusters_on(node).map(|(cluster, _)| cluster.id));
        }
    }

    fn on_closed(&mut self, closed: Closed) {
        if self.connections.get(&closed.node) != Some(&closed.connection) {
            // An older one; the node reports on another by now.
            return;
        }
        let at = Tick::now();
        let session = self.observed.nodes.get(&closed.node).map(|seen| seen.report.session);
        if session.is_some_and(|session| self.observed.closed(closed.node, session, at)) {
            tracing::info!(node = %closed.node, "a node closed its connection");
            let record = self.consensus.record();
            for (cluster, _) in record.clusters_on(closed.node) {
                self.dirty.insert(cluster.id);
                self.wake.insert(cluster.id, at + self.policy.disconnect_grace);
            }
        }
    }

    /// One snapshot, one decision per touched cluster, then record and act.
    fn look(&mut self, now: Tick) {
        self.observed.now = now;
        self.observed.wall = WallTime::now();
        let record = self.consensus.record();
        self.observed.revision = record.revision;
        self.observed.places = record
            .nodes
            .iter()
            .map(|(id, node)| (*id, Place { region: node.region.clone(), zone: node.zone.clone() }))
            .collect();
        self.policy.lease = crate::lease::times(&record);
        for cluster in record.clusters.values() {
            let due = self.wake.get(&cluster.id).is_some_and(|at| *at <= now);
            if due || self.decided.get(&cluster.id) != Some(&cluster.revision) {
                self.dirty.insert(cluster.id);
            }
        }
        self.note_silence(now, &record);
        for id in std::mem::take(&mut self.dirty) {
            if self.proposing.contains(&id) {
                continue;
            }
            match record.clusters.get(&id) {
                Some(cluster) => self.decide(cluster),
                None => self.forget(id),
            }
        }
        let view = View { observed: self.observed.clone(), findings: self.findings.clone() };
        *self.view.lock().expect("nothing panics while it holds the view") = Some(view);
    }

    /// A node that has become silent makes no event; its clusters are looked at when its silence becomes suspicious.
    fn note_silence(&mut self, now: Tick, record: &Record) {
        for node in record.nodes.keys() {
            let heard = self.observed.nodes.get(node).map_or(self.observed.since, |seen| seen.heard);
            let silent = now.since(heard);
            // Unknown nodes become suspicious earlier than silent ones, so look from that time on.
            if silent >= self.policy.first_report.min(self.policy.suspicion) {
                self.dirty.extend(record.clusters_on(*node).map(|(cluster, _)| cluster.id));
            }
        }
    }

    fn forget(&mut self, id: ClusterId) {
        self.memories.remove(&id);
        self.wake.remove(&id);
        self.findings.remove(&id);
        self.decided.remove(&id);
    }

    fn decide(&mut self, cluster: &ClusterRecord) {
        let memory = self.memories.entry(cluster.id).or_default();
        let Plan { change, ended, findings, wake_at } = decide(cluster, &self.observed, &self.policy, memory);
        self.decided.insert(cluster.id, cluster.revision);
        match wake_at {
            Some(at) => self.wake.insert(cluster.id, at),
            None => self.wake.remove(&cluster.id),
        };
        self.log_new(cluster, &findings);
        self.findings.insert(cluster.id, findings);
        let at = WallTime::now();
        let command = match (change, ended) {
            (Some(change), _) => Command::ChangeCluster { at, cluster: cluster.id, revision: cluster.revision, change },
            (None, Some((operation, failure))) => Command::EndOperation { at, operation, failure },
            (None, None) => return,
        };
        self.proposing.insert(cluster.id);
        let (consensus, proposed, id) = (self.consensus.clone(), self.proposed.clone(), cluster.id);
        let name = cluster.spec.name.clone();
        tokio::spawn(async move {
            match consensus.propose(command, PROPOSE_TIMEOUT).await {
                Ok(Ok(_)) => {}
                Ok(Err(refusal)) => tracing::info!(cluster = %name, %refusal, "a change was refused; deciding anew"),
                Err(why @ ProposeError::NotLeader { .. }) => tracing::info!(cluster = %name, %why, "not recorded"),
                Err(why) => {
                    // A lost quorum is a state, not the end of the loop. Wait before asking again.
                    tracing::warn!(cluster = %name, %why, "not recorded");
                    tokio::time::sleep(TICK).await;
                }
            }
            let _ = proposed.send(id);
        });
    }

    /// Findings are logged when they appear, not each time they are found again.
    fn log_new(&self, cluster: &ClusterRecord, findings: &[Finding]) {
        let known = self.findings.get(&cluster.id).map_or(&[][..], Vec::as_slice);
        for finding in findings.iter().filter(|finding| known.iter().all(|held| held.code != finding.code)) {
            tracing::info!(cluster = %cluster.spec.name, finding = %finding.code, "{}", finding.message);
        }
    }
}
