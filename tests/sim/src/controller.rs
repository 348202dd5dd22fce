//! The shell around `pgstead-core`: on the node that leads the consensus it keeps what it hears, decides once per
//! change, and proposes. One proposal at a time: the next decision is made on its outcome.

use crate::lease::Granting;
use crate::raft::Outcome;
use crate::world::{CLUSTER, Event, World, node_id};
use pgstead_core::{Memory, Observed};
use pgstead_types::record::{ClusterChange, Command};
use pgstead_types::report::NodeReport;
use pgstead_types::{Tick, WallTime};
use std::collections::BTreeSet;

pub struct Controller {
    pub term: u64,
    pub observed: Observed,
    memory: Memory,
    in_flight: Option<u64>,
    woken_at: Option<Tick>,
    findings: BTreeSet<String>,
    pub granting: Granting,
}

impl World {
    /// Begins or ends this node's being the controller.
    pub fn look_at_leadership(&mut self, n: usize) {
        let term = self.raft.leads(n);
        let now = self.own(n);
        let Some(daemon) = self.machines[n].daemon.as_mut() else { return };
        let held = daemon.controller.as_ref().map(|controller| controller.term);
        if held == term {
            if term.is_some() {
                self.decide(n);
            }
            return;
        }
        daemon.controller = term.map(|term| Controller {
            term,
            observed: Observed { now, since: now, elected: now, ..Observed::default() },
            memory: Memory::default(),
            in_flight: None,
            woken_at: None,
            findings: BTreeSet::new(),
            granting: Granting::default(),
        });
        if term.is_some() {
            self.count("controllers");
            self.say(format!("{:<9} is the controller", self.machines[n].name));
            self.decide(n);
        }
    }

    pub fn on_report(&mut self, n: usize, from: usize, report: NodeReport) {
        let now = self.own(n);
        if !self.machines[n].powered || !self.reaches(from, n) {
            return;
        }
        let Some(controller) = self.machines[n].daemon.as_mut().and_then(|daemon| daemon.controller.as_mut()) else {
            return;
        };
        if controller.observed.hear(report, now) {
            self.decide(n);
        }
    }

    pub fn on_connection_closed(&mut self, n: usize, from: usize, session: u64) {
        let now = self.own(n);
        if !self.reaches(from, n) {
            return; // It hears nothing of it.
        }
        let Some(controller) = self.machines[n].daemon.as_mut().and_then(|daemon| daemon.controller.as_mut()) else {
            return;
        };
        if controller.observed.closed(node_id(from), session, now) {
            self.decide(n);
        }
    }

    pub fn decide(&mut self, n: usize) {
        let record = self.raft.record(n);
        let (now, policy) = (self.own(n), self.policy);
        let Some(cluster) = record.clusters.get(&CLUSTER) else { return };
        let Some(daemon) = self.machines[n].daemon.as_mut() else { return };
        let session = daemon.session;
        let Some(controller) = daemon.controller.as_mut() else { return };
        if controller.in_flight.is_some() {
            return;
        }
        controller.observed.now = now;
        controller.observed.wall = WallTime(now.as_millis() as i64);
        controller.observed.revision = record.revision;
        controller.observed.places = crate::cascade::places(&record);
        let plan = pgstead_core::decide(cluster, &controller.observed, &policy, &mut controller.memory);
        let rolls_back = crate::rollback::next(&record, &controller.observed, &policy, now);
        let codes: BTreeSet<String> = plan.findings.iter().map(|finding| finding.code.clone()).collect();
        let before = std::mem::replace(&mut controller.findings, codes.clone());
        let wake = plan.wake_at.filter(|at| controller.woken_at != Some(*at));
        if wake.is_some() {
            controller.woken_at = wake;
        }
        for finding in plan.findings.iter().filter(|finding| !before.contains(&finding.code)) {
            self.say(format!("finding   {finding}"));
        }
        self.findings = plan.findings.iter().map(|finding| finding.to_string()).collect();
        let at = WallTime(now.as_millis() as i64);
        let command = match (plan.change, plan.ended) {
            (Some(change), _) => {
                Some(Command::ChangeCluster { at, cluster: CLUSTER, revision: cluster.revision, change })
            }
            (None, Some((operation, failure))) => Some(Command::EndOperation { at, operation, failure }),
            (None, None) => rolls_back,
        };
        if let Some(at) = wake {
            self.after_own(n, at.since(now), Event::Decide { node: n, session });
        }
        if let Some(command) = command {
            self.serial += 1;
            let ticket = self.serial;
            if let Some(controller) = self.machines[n].daemon.as_mut().and_then(|daemon| daemon.controller.as_mut()) {
                controller.in_flight = Some(ticket);
            }
            self.tickets.insert(ticket, (n, session));
            self.raft.propose(n, ticket, command);
        }
    }

    pub fn on_outcome(&mut self, ticket: u64, _: Outcome) {
        let Some((n, session)) = self.tickets.remove(&ticket) else { return };
        if n == usize::MAX || self.session(n) != Some(session) {
            return;
        }
        let Some(controller) = self.machines[n].daemon.as_mut().and_then(|daemon| daemon.controller.as_mut()) else {
            return;
        };
        if controller.in_flight == Some(ticket) {
            controller.in_flight = None;
            if self.machines[n].frozen {
                self.after(std::time::Duration::from_millis(1), Event::Decide { node: n, session });
            } else {
                self.decide(n);
            }
        }
    }

    /// A person's request, made to whichever node leads.
    pub fn request(&mut self, change: ClusterChange) -> bool {
        let Some(n) = (0..self.machines.len()).find(|n| !self.machines[*n].frozen && self.raft.leads(*n).is_some())
        else {
            return false;
        };
        let Some(revision) = self.raft.record(n).clusters.get(&CLUSTER).map(|cluster| cluster.revision) else {
            return false;
        };
        self.serial += 1;
        self.tickets.insert(self.serial, (usize::MAX, 0));
        let at = WallTime(self.now.as_millis() as i64);
        self.raft.propose(n, self.serial, Command::ChangeCluster { at, cluster: CLUSTER, revision, change });
        true
    }

    pub fn next_operation(&mut self) -> pgstead_types::OperationId {
        self.operation += 1;
        pgstead_types::OperationId::from_u128(self.operation)
    }
    /// The node that leads the consensus by its own belief.
    pub fn controller(&self) -> Option<usize> {
        (0..self.machines.len())
            .find(|n| self.machines[*n].daemon.as_ref().is_some_and(|daemon| daemon.controller.is_some()))
    }
    /// Whether deciding again on the present world would change nothing.
    pub fn plan_is_empty(&mut self) -> Option<bool> {
        let n = self.controller()?;
        let record = self.raft.record(n);
        let cluster = record.clusters.get(&CLUSTER)?;
        let (now, policy) = (self.own(n), self.policy);
        let controller = self.machines[n].daemon.as_mut()?.controller.as_mut()?;
        controller.observed.now = now;
        controller.observed.wall = WallTime(now.as_millis() as i64);
        controller.observed.revision = record.revision;
        controller.observed.places = crate::cascade::places(&record);
        let plan = pgstead_core::decide(cluster, &controller.observed, &policy, &mut controller.memory);
        Some(plan.change.is_none() && plan.ended.is_none() && controller.in_flight.is_none())
    }
}
