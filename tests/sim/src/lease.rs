//! Leases in the model: asked for with a node's heartbeat, granted after a real quorum round, counted by a guard on its
//! node's own clock; and refusals, asked from member to member when no controller answers.

use crate::machine::Held;
use crate::world::{CLUSTER, Event, Inner, World, member_id, node_id};
use pgstead_agent::lease::{leads_under_lease, may_forget_lease, may_refuse, refusals_needed, renews_lease};
use pgstead_types::Tick;
use pgstead_types::lease::{LeaseGrant, RefusalRequest};
use pgstead_types::record::Record;
use pgstead_types::report::RefusalSeen;
use std::sync::Arc;
use std::time::Duration;

/// A node's question with a report, and where its answer goes.
#[derive(Clone, Copy)]
pub struct Asked {
    from: usize,
    session: u64,
    /// By the asker's own clock.
    sent: Tick,
}

pub enum Message {
    Ask(Asked),
    Granted { asked: Asked, grant: LeaseGrant },
    Refuse { asked: Asked, request: Box<RefusalRequest> },
    Refuses { asked: Asked, member: usize },
}

/// What a controller does about leases.
#[derive(Default)]
pub struct Granting {
    waiting: Vec<Asked>,
    round: Option<(u64, Vec<Asked>)>,
}

impl World {
    /// The record by which a node's agent goes.
    pub(crate) fn record_of(&self, n: usize) -> Arc<Record> {
        self.shown.get(&n).cloned().unwrap_or_else(|| self.raft.record(n))
    }

    fn carry(&mut self, from: usize, to: usize, message: Message) {
        if self.rng.chance(self.report_loss) || !self.reaches(from, to) {
            return;
        }
        let way = self.rng.ms(0, 3 + self.report_late_ms);
        self.after(way, Event::Lease { from, to, message });
    }

    pub(crate) fn on_lease_message(&mut self, from: usize, to: usize, message: Message) {
        if !self.machines[to].powered || !self.reaches(from, to) || self.machines[to].daemon.is_none() {
            return;
        }
        match message {
            Message::Ask(asked) => {
                let controller = self.machines[to].daemon.as_mut().and_then(|daemon| daemon.controller.as_mut());
                if let Some(controller) = controller {
                    controller.granting.waiting.push(asked);
                    self.begin_round(to);
                }
            }
            Message::Granted { asked, grant } => {
                if self.session(to) != Some(asked.session) {
                    return;
                }
                let held = Held { end: asked.sent + Duration::from_millis(grant.lease_ms), revision: grant.revision };
                if let Some(daemon) = self.machines[to].daemon.as_mut()
                    && daemon.held.is_none_or(|now| now.end < held.end)
                {
                    daemon.held = Some(held);
                }
                self.keep_lease(to);
            }
            Message::Refuse { asked, request } => self.on_asked_to_refuse(to, asked, &request),
            Message::Refuses { asked, member } => {
                if self.session(to) != Some(asked.session) {
                    return;
                }
                let until = asked.sent + self.policy.lease.refusal();
                if let Some(daemon) = self.machines[to].daemon.as_mut() {
                    daemon.refusals.insert(member_id(member), until);
                }
                self.go_on_by_refusals(to);
            }
        }
    }

    // --- the controller

    fn begin_round(&mut self, n: usize) {
        let Some(controller) = self.machines[n].daemon.as_mut().and_then(|daemon| daemon.controller.as_mut()) else {
            return;
        };
        if controller.granting.round.is_some() || controller.granting.waiting.is_empty() {
            return;
        }
        let asked = std::mem::take(&mut controller.granting.waiting);
        self.serial += 1;
        let ticket = self.serial;
        controller.granting.round = Some((ticket, asked));
        self.raft.confirm(n, ticket);
    }

    /// A quorum round has ended.
    pub(crate) fn on_confirmed(&mut self, ticket: u64, confirmed: bool) {
        let of = |machine: &crate::machine::Machine| {
            let controller = machine.daemon.as_ref()?.controller.as_ref()?;
            controller.granting.round.as_ref().filter(|(held, _)| *held == ticket).map(|_| ())
        };
        let Some(n) = self.machines.iter().position(|machine| of(machine).is_some()) else { return };
        if self.machines[n].frozen {
            // It hears of it when it wakes, and by then somebody else may have been elected.
            return self.after(Duration::from_millis(20), Event::Confirmed { ticket, confirmed });
        }
        let (now, lease, term) = (self.own(n), self.policy.lease, self.raft.leads(n));
        let revision = self.raft.record(n).revision;
        let Some(controller) = self.machines[n].daemon.as_mut().and_then(|daemon| daemon.controller.as_mut()) else {
            return;
        };
        let Some((_, asked)) = controller.granting.round.take() else { return };
        if confirmed && term == Some(controller.term) {
            let grant = LeaseGrant { lease_ms: lease.lease.as_millis() as u64, revision };
            for asked in &asked {
                controller.observed.grant(node_id(asked.from), now, lease);
            }
            self.count("leases granted");
            for asked in asked {
                self.carry(n, asked.from, Message::Granted { asked, grant });
            }
        }
        self.begin_round(n);
    }

    // --- a leader's node

    /// With each heartbeat: asks for a lease when it is time, and sees to the one that is held.
    pub(crate) fn tend_lease(&mut self, n: usize) {
        if n >= self.members {
            return;
        }
        let record = self.record_of(n);
        let counted = self.machines[n].run.as_ref().is_some_and(|run| run.lease.is_some());
        let asks = record.clusters.get(&CLUSTER).is_some_and(|cluster| renews_lease(cluster, member_id(n), counted));
        let (now, renew) = (self.own(n), self.policy.lease.renew_after());
        let to = self.raft.leader_known_to(n);
        let Some(daemon) = self.machines[n].daemon.as_mut() else { return };
        let due = daemon.asked_at.is_none_or(|at| now.since(at) >= renew);
        if let (true, Some(to), true) = (asks, to, due) {
            daemon.asked_at = Some(now);
            let asked = Asked { from: n, session: daemon.session, sent: now };
            self.carry(n, to, Message::Ask(asked));
        }
        self.keep_lease(n);
        self.go_on_by_refusals(n);
    }

    /// The guard is given what the node was granted, once the node has seen the record that it was granted for.
    pub(crate) fn keep_lease(&mut self, n: usize) {
        let record = self.record_of(n);
        let Some(cluster) = record.clusters.get(&CLUSTER) else { return };
        let now = self.own(n);
        let held = self.machines[n].daemon.as_ref().and_then(|daemon| daemon.held);
        if leads_under_lease(cluster, member_id(n)).is_none() {
            let may_forget = may_forget_lease(cluster, &self.member_report(n, cluster));
            if let Some(run) =
                self.machines[n].run.as_mut().filter(|run| (run.is_primary() || !run.promoting) && may_forget)
            {
                run.lease = None;
                return;
            }
            let counted = self.machines[n].run.as_ref().is_some_and(|run| run.lease.is_some());
            if !renews_lease(cluster, member_id(n), counted) {
                return;
            }
        }
        if let Some(held) = held.filter(|held| held.revision <= record.revision && held.end > now) {
            self.count_lease(n, held.end);
        }
    }

    fn count_lease(&mut self, n: usize, end: Tick) {
        let now = self.own(n);
        let Some(run) = self.machines[n].run.as_mut().filter(|run| run.postmaster) else { return };
        if run.lease.is_some_and(|held| held >= end) {
            return;
        }
        run.lease = Some(end);
        let id = run.id;
        let left = self.machines[n].clock.lasts(end.since(now));
        self.after(left, Event::Postgres { node: n, run: id, what: Inner::LeaseOver });
        self.touch(n);
    }

    /// The guard's timer.
    pub(crate) fn on_lease_over(&mut self, n: usize) {
        let now = self.own(n);
        let Some(run) = self.machines[n].run.as_ref() else { return };
        let (id, Some(end)) = (run.id, run.lease) else { return };
        if now < end {
            // Renewed, or the clock has become slower.
            let left = self.machines[n].clock.lasts(end.since(now)).max(Duration::from_millis(1));
            return self.after(left, Event::Postgres { node: n, run: id, what: Inner::LeaseOver });
        }
        self.count("guards that ended a lease");
        self.say(format!("{:<9} its lease is over: the guard ends Postgres", World::member_name(n)));
        self.end_processes(n);
    }

    /// A machine that was frozen past the end: its guard is taken to be the first that wakes.
    pub(crate) fn end_what_outlived_its_lease(&mut self, n: usize) {
        let now = self.own(n);
        if self.machines[n].run.as_ref().and_then(|run| run.lease).is_some_and(|end| now >= end) {
            self.on_lease_over(n);
        }
    }

    /// No controller answers: whoever could elect another is asked not to.
    fn go_on_by_refusals(&mut self, n: usize) {
        let record = self.record_of(n);
        let (Some(cluster), now, lease) = (record.clusters.get(&CLUSTER), self.own(n), self.policy.lease) else {
            return;
        };
        let Some(end) = self.machines[n].run.as_ref().and_then(|run| run.lease) else { return };
        if end.since(now) > lease.running_out() || self.machines[n].daemon.is_none() {
            return;
        }
        let Some(needed) = refusals_needed(cluster, &self.member_report(n, cluster)) else { return };
        let Some(daemon) = self.machines[n].daemon.as_mut() else { return };
        if let Some(until) = needed.extended(&daemon.refusals).filter(|until| *until > end) {
            self.count("leaders that went on by refusals");
            self.count_lease(n, until);
            return;
        }
        if daemon.asked_to_refuse.is_some_and(|at| now.since(at) < lease.refusal() / 6) {
            return;
        }
        daemon.asked_to_refuse = Some(now);
        let asked = Asked { from: n, session: daemon.session, sent: now };
        for other in (0..self.members).filter(|other| needed.ask.contains(&member_id(*other))) {
            let request = Box::new(needed.request(cluster, member_id(other), lease));
            self.carry(n, other, Message::Refuse { asked, request });
        }
    }

    // --- a member that is asked

    fn on_asked_to_refuse(&mut self, n: usize, asked: Asked, request: &RefusalRequest) {
        let record = self.record_of(n);
        let Some(cluster) = record.clusters.get(&CLUSTER) else { return };
        if self.machines[n].daemon.as_ref().is_none_or(|daemon| daemon.work.is_some()) {
            return; // Busy with a step, or not there.
        }
        if may_refuse(Some(cluster), &self.member_report(n, cluster), request).is_err() {
            return;
        }
        let lease = self.policy.lease;
        let time = Duration::from_millis(request.for_ms).min(lease.refusal()) + lease.refusal_margin();
        let until = self.own(n) + time;
        self.machines[n].disk.notes.refusing = Some((request.epoch, time));
        if let Some(daemon) = self.machines[n].daemon.as_mut() {
            daemon.refusing = Some((request.epoch, until));
        }
        self.count("refusals");
        self.carry(n, asked.from, Message::Refuses { asked, member: n });
        let session = self.session(n).unwrap_or_default();
        self.after_own(n, time, Event::Probe { node: n, session });
        self.touch(n);
    }

    pub(crate) fn refusing(&self, n: usize) -> Option<RefusalSeen> {
        let (epoch, until) = self.machines[n].daemon.as_ref()?.refusing?;
        // How long is not told, so that a report is not news by that alone.
        (self.own(n) < until).then_some(RefusalSeen { epoch, remaining_ms: 1 })
    }

    /// A word that is over is forgotten, on disk as well.
    pub(crate) fn end_refusal(&mut self, n: usize) {
        if self.refusing(n).is_none()
            && let Some(daemon) = self.machines[n].daemon.as_mut()
            && daemon.refusing.take().is_some()
        {
            self.machines[n].disk.notes.refusing = None;
        }
    }
}
