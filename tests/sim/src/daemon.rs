//! The shell around `pgstead-agent`: it looks at the member, asks what comes next, carries it out in parts between which
//! anything may happen, and reports. The real daemon does the same on real processes.

use crate::faults::FaultKind;
use crate::machine::{Daemon, Mode, SyncNames, Told, Work};
use crate::wal::What;
use crate::world::{CLUSTER, Event, World, member_id};
use pgstead_agent::Action;
use pgstead_types::record::{ClusterRecord, SyncSet};
use pgstead_types::report::{ClientAccess, LeaseSeen, MemberReport, NodeReport, PostgresSeen, PromiseAnswer, Working};
use pgstead_types::{Epoch, Incarnation, Step};
use std::collections::BTreeSet;
use std::time::Duration;

pub const HEARTBEAT: Duration = Duration::from_millis(500);
/// A failed step is tried again after this.
const RETRY: Duration = Duration::from_millis(300);
/// A clean stop that takes longer becomes a fence.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(3);

/// What a part of an action leads to.
pub(crate) enum Part {
    /// The next part after a while.
    Next(Duration),
    /// This part again.
    Again(Duration),
    Done,
    Failed(String),
}

impl World {
    pub fn start_daemon(&mut self, n: usize) {
        self.serial += 1;
        let session = self.serial;
        let machine = &mut self.machines[n];
        if machine.daemon.is_some() || !machine.powered {
            return;
        }
        machine.daemon = Some(Daemon {
            session,
            sequence: 0,
            reports_to: None,
            last_sent: None,
            probe_due: false,
            work: None,
            failed: None,
            controller: None,
            held: None,
            asked_at: None,
            refusals: Default::default(),
            asked_to_refuse: None,
            refusing: None,
            findings: BTreeSet::new(),
        });
        // How much of it has passed while the daemon was away, nobody knows: it counts anew.
        let own = self.own(n);
        let noted = self.machines[n].disk.notes.refusing.map(|(epoch, time)| (epoch, own + time));
        if let Some(daemon) = self.machines[n].daemon.as_mut() {
            daemon.refusing = noted;
        }
        self.raft.start(n);
        self.after_own(n, HEARTBEAT, Event::Heartbeat { node: n, session });
        self.touch(n);
    }

    /// The daemon dies; guard and Postgres go on.
    pub fn kill_daemon(&mut self, n: usize) {
        let Some(daemon) = self.machines[n].daemon.take() else { return };
        if daemon.work.is_some() {
            self.count_fault(FaultKind::StepCutShort);
        }
        self.raft.kill(n);
        if let Some(to) = daemon.reports_to {
            self.after(Duration::from_millis(1), Event::ConnectionClosed { to, from: n, session: daemon.session });
        }
    }

    /// Something about the member or the record changed: its daemon will see it in a moment.
    pub fn touch(&mut self, n: usize) {
        let soon = self.rng.ms(1, 15);
        if let Some(daemon) = self.machines[n].daemon.as_mut().filter(|daemon| !daemon.probe_due) {
            daemon.probe_due = true;
            let session = daemon.session;
            self.after(soon, Event::Probe { node: n, session });
        }
    }

    pub(crate) fn member_report(&self, n: usize, cluster: &ClusterRecord) -> MemberReport {
        let machine = &self.machines[n];
        let notes = &machine.disk.notes;
        let working = machine.daemon.as_ref().and_then(|daemon| {
            let running = daemon.work.as_ref().map(|work| Working {
                step: work.action.step(),
                elapsed_ms: self.now.since(work.began).as_millis() as u64,
                attempt: work.attempt,
                percent: None,
                error: None,
            });
            running.or_else(|| daemon.failed.as_ref().map(|(working, _)| working.clone()))
        });
        MemberReport {
            cluster: cluster.id,
            member: member_id(n),
            // A step that an older record has ordered may yet change what is seen here.
            revision: (machine.daemon.as_ref().and_then(|daemon| daemon.work.as_ref()))
                .map_or(cluster.revision, |work| work.revision.min(cluster.revision)),
            volume_present: machine.disk.volume,
            volume_size: None,
            data: machine.data_seen(),
            promised: notes.promised,
            answer: notes.answer,
            fetched: notes.fetch.filter(|fetch| fetch.done).map(|fetch| fetch.epoch),
            postgres: machine.postgres_seen(self.own(n)),
            restarts: notes.restarts,
            checkpointed: notes.checkpointed,
            set_by: notes.set_by,
            // How much is left is not told, so that a report is not news by that alone.
            lease: machine
                .run
                .as_ref()
                .and_then(|run| run.lease)
                .filter(|end| *end > self.own(n))
                .map(|_| LeaseSeen { remaining_ms: 1 }),
            refusing: self.refusing(n),
            working,
            oldest_log: machine.data().map(|data| data.wal.lsn(data.removed)),
            slots: None,
            session: self.session(n).unwrap_or_default(),
            kept: machine.disk.kept.clone(),
            troubles: machine.troubles(),
            findings: Vec::new(),
        }
    }

    pub fn on_heartbeat(&mut self, n: usize, session: u64) {
        if self.session(n) == Some(session) {
            if let Some(daemon) = self.machines[n].daemon.as_mut() {
                daemon.last_sent = None;
            }
            self.tend_lease(n);
            self.look(n);
            self.after_own(n, HEARTBEAT, Event::Heartbeat { node: n, session });
        }
    }

    pub fn on_probe(&mut self, n: usize, session: u64) {
        if self.session(n) == Some(session) {
            if let Some(daemon) = self.machines[n].daemon.as_mut() {
                daemon.probe_due = false;
            }
            self.look(n);
        }
    }

    /// One look: decide from it, and report it.
    fn look(&mut self, n: usize) {
        let record = self.record_of(n);
        self.end_refusal(n);
        if n < self.members {
            self.keep_lease(n);
        }
        let held = record.clusters.get(&CLUSTER).filter(|cluster| cluster.held(member_id(n)).is_some());
        let seen = held.map(|cluster| {
            let seen = self.member_report(n, cluster);
            let next = pgstead_agent::decide(cluster, member_id(n), &seen);
            (seen, next)
        });
        let mut members = Vec::new();
        if let Some((mut seen, next)) = seen {
            let findings: BTreeSet<String> = next.findings.iter().map(|finding| finding.code.clone()).collect();
            let known = self.machines[n].daemon.as_ref().map(|daemon| daemon.findings.clone()).unwrap_or_default();
            for finding in next.findings.iter().filter(|finding| !known.contains(&finding.code)) {
                self.say(format!("{:<9} {finding}", World::member_name(n)));
            }
            if let Some(daemon) = self.machines[n].daemon.as_mut() {
                daemon.findings = findings;
            }
            seen.findings = next.findings;
            let revision = record.clusters.get(&CLUSTER).map_or(0, |cluster| cluster.revision);
            self.begin(n, revision, next.action);
            members.push(seen);
        }
        self.report(n, record.revision, members);
    }

    /// Starts an action if none is under way, or instead of a long one that is not wanted any more.
    fn begin(&mut self, n: usize, revision: u64, action: Option<Action>) {
        self.serial += 1;
        let (serial, now) = (self.serial, self.now);
        let Some(daemon) = self.machines[n].daemon.as_mut() else { return };
        if let Some(work) = &daemon.work {
            if !work.action.is_interruptible() || action.as_ref() == Some(&work.action) {
                return;
            }
            daemon.work = None;
        }
        let Some(action) = action else { return };
        let attempt = match &daemon.failed {
            Some((working, _)) if working.step == action.step() => working.attempt + 1,
            _ => 1,
        };
        if let Some((working, until)) = &daemon.failed
            && working.step == action.step()
            && now < *until
        {
            let (session, until) = (daemon.session, *until);
            self.at(until, Event::Probe { node: n, session });
            return;
        }
        let session = daemon.session;
        let step = action.step();
        daemon.work = Some(Work { revision, serial, action, step: 0, attempt, began: now, source: None });
        self.count(crate::tally::of_step(step));
        self.say(format!("{:<9} {step}", World::member_name(n)));
        let delay = self.rng.ms(1, 8);
        self.after(delay, Event::Act { node: n, session, serial });
    }

    pub fn on_act(&mut self, n: usize, session: u64, serial: u64) {
        let Some(daemon) = self.machines[n].daemon.as_mut().filter(|daemon| daemon.session == session) else { return };
        let Some(work) = daemon.work.take_if(|work| work.serial == serial) else { return };
        let mut work = work;
        let part = self.carry_out(n, &mut work);
        let step = if matches!(work.action, Action::Promote { .. }) && work.step > 0 {
            Step::Promote
        } else {
            work.action.step()
        };
        if self.spring_step_trap(n, step) {
            return;
        }
        let now = self.now;
        let Some(daemon) = self.machines[n].daemon.as_mut() else { return };
        match part {
            Part::Next(delay) => {
                work.step += 1;
                daemon.work = Some(work);
                self.after(delay, Event::Act { node: n, session, serial });
            }
            Part::Again(delay) => {
                daemon.work = Some(work);
                self.after(delay, Event::Act { node: n, session, serial });
            }
            Part::Done => {
                daemon.failed = None;
                self.touch(n);
            }
            Part::Failed(why) => {
                let step = work.action.step();
                let working = Working {
                    step,
                    elapsed_ms: now.since(work.began).as_millis() as u64,
                    attempt: work.attempt,
                    percent: None,
                    error: Some(why.clone()),
                };
                daemon.failed = Some((working, now + RETRY));
                self.count(format!("failed: {step}"));
                self.say(format!("{:<9} {step} failed: {why}", World::member_name(n)));
                self.after(RETRY, Event::Probe { node: n, session });
            }
        }
    }

    fn carry_out(&mut self, n: usize, work: &mut Work) -> Part {
        let quick = self.rng.ms(1, 10);
        let action = work.action.clone();
        if self.machines[n].run.as_ref().is_some_and(|run| run.hung) && needs_answers(&action) {
            return Part::Failed("Postgres does not answer".into());
        }
        match action {
            Action::CreateVolume => {
                self.machines[n].disk.volume = true;
                Part::Done
            }
            Action::InitDatabase { incarnation } => self.init_database(n, work.step, incarnation),
            Action::AdoptData { .. } => Part::Failed("there is one cluster here, and no snapshots".into()),
            Action::DiscardPartial => {
                let disk = &mut self.machines[n].disk;
                if disk.data.as_ref().is_some_and(|data| !data.complete) {
                    disk.data = disk.aside.take();
                }
                Part::Done
            }
            Action::Clone { incarnation, from, epoch } => self.clone_data(n, work, incarnation, from, epoch),
            Action::Rewind { incarnation, from, epoch } => self.rewind(n, work, incarnation, from, epoch),
            Action::StartStandby { access, alone, restarts } => match work.step {
                0 if self.start_postgres(n, access, alone) => {
                    self.machines[n].disk.notes.restarts = restarts;
                    Part::Next(quick)
                }
                0 if self.machines[n].full => Part::Failed("no space is left on the device".into()),
                0 => Part::Failed("there is no data to start with".into()),
                _ => match self.machines[n].run.as_ref().map(|run| run.mode) {
                    None => Part::Failed("Postgres ended while it started".into()),
                    Some(Mode::Recovering) => Part::Again(Duration::from_millis(10)),
                    Some(_) => Part::Done,
                },
            },
            Action::SavePromise { epoch } => match work.step {
                0 => Part::Next(quick * self.machines[n].slow),
                _ => {
                    let notes = &mut self.machines[n].disk.notes;
                    if epoch > notes.promised {
                        notes.promised = epoch;
                        notes.answer = None;
                    }
                    Part::Done
                }
            },
            Action::CutUpstream => self.cut_upstream(n, work.step),
            Action::FetchLog { epoch, from, upto } => self.fetch_log(n, work, epoch, from, upto),
            Action::AnswerPromise { epoch } => self.answer_promise(n, work.step, epoch),
            Action::Fence => match work.step {
                0 => Part::Next(quick * 3),
                _ => {
                    self.end_processes(n);
                    Part::Done
                }
            },
            Action::Promote { epoch, timeline, sync_set, admitted } => match work.step {
                0 => {
                    let machine = &self.machines[n];
                    let standby = machine.run.as_ref().is_some_and(|run| run.mode == Mode::Standby && run.recovered);
                    if machine.disk.notes.promised != epoch || !standby {
                        return Part::Failed("it is not a standby that has promised this epoch".into());
                    }
                    self.prepare_promotion(n, epoch, timeline, &sync_set, &admitted);
                    Part::Next(quick * 4)
                }
                1 => {
                    self.count(crate::tally::of_step(Step::Promote));
                    self.promote(n);
                    Part::Next(quick)
                }
                _ => match self.machines[n].run.as_ref().map(|run| (run.mode, run.postmaster)) {
                    Some((Mode::Primary { timeline: made, .. }, _)) if made == timeline.0 => Part::Done,
                    Some((Mode::Primary { timeline: made, .. }, _)) => {
                        self.end_processes(n);
                        Part::Failed(format!("it made timeline {made} instead of {timeline} and was stopped"))
                    }
                    Some((_, true)) => Part::Again(Duration::from_millis(10)),
                    _ => Part::Failed("Postgres ended while it was promoted".into()),
                },
            },
            Action::OpenClients => {
                if let Some(run) = self.machines[n].run.as_mut() {
                    run.access = ClientAccess::Open;
                }
                Part::Done
            }
            Action::UpdateSyncSet { by, epoch, sync_set, admitted } => {
                let notes = &mut self.machines[n].disk.notes;
                if work.step == 0 && notes.set_by > Some(by) {
                    return Part::Failed("a sync set was loaded by a newer record before".into());
                }
                notes.set_by = notes.set_by.max(Some(by));
                self.update_sync_set(n, work.step, epoch, &sync_set, &admitted)
            }
            Action::Follow { of } => {
                let notes = &self.machines[n].disk.notes;
                if of.epoch < notes.promised {
                    return Part::Failed(format!("epoch {} is promised", notes.promised));
                }
                if work.step == 0 {
                    self.begin_to_follow(n, of);
                    return Part::Next(quick);
                }
                self.follow(n, of);
                Part::Done
            }
            Action::Relay { epoch, admitted } => match self.relay(n, work.step, epoch, &admitted) {
                Ok(()) if work.step == 0 => Part::Next(quick),
                Ok(()) => Part::Done,
                Err(why) => Part::Failed(why),
            },
            Action::HoldClients { by } => {
                let notes = &mut self.machines[n].disk.notes;
                notes.set_by = notes.set_by.max(by);
                self.hold_clients(n);
                Part::Done
            }
            Action::LimitWrites { read_only } => {
                if let Some(run) = self.machines[n].run.as_mut() {
                    run.read_only = read_only;
                }
                // Those that write are ended, and so are those that wait for an acknowledgement.
                if read_only {
                    self.break_waits(n);
                }
                Part::Done
            }
            Action::Checkpoint { operation } => match work.step {
                0 => Part::Next(quick * 20),
                _ => {
                    if let Some((run, data)) = self.machines[n].live()
                        && let Some(timeline) = run.timeline()
                    {
                        data.wal.write(timeline, What::Checkpoint);
                        self.flush(n);
                    }
                    self.machines[n].disk.notes.checkpointed = Some(operation);
                    Part::Done
                }
            },
            Action::StopCleanly { .. } => match work.step {
                0 => {
                    let machine = &mut self.machines[n];
                    machine.forgets = machine.live().is_some_and(|(run, data)| {
                        let idle = run.mode == Mode::Standby && run.upstream.is_none() && run.receiver.is_none();
                        idle && run.recovered && data.expects().is_some()
                    });
                    self.stop_cleanly(n);
                    Part::Next(quick)
                }
                _ if self.machines[n].run.is_none() => {
                    let machine = &mut self.machines[n];
                    if let Some(data) = machine.disk.data.as_mut().filter(|_| machine.forgets) {
                        data.told = 0;
                    }
                    Part::Done
                }
                _ if self.now.since(work.began) > STOP_LIMIT => {
                    self.end_processes(n);
                    Part::Again(quick)
                }
                _ => Part::Again(Duration::from_millis(20)),
            },
            Action::RemoveVolume => {
                let disk = &mut self.machines[n].disk;
                disk.volume = false;
                disk.data = None;
                disk.aside = None;
                disk.kept.clear();
                disk.notes = Default::default();
                Part::Done
            }
        }
    }

    fn cut_upstream(&mut self, n: usize, step: usize) -> Part {
        let quick = self.rng.ms(1, 20);
        let slow = self.machines[n].slow > 1;
        let Some(run) = self.machines[n].run.as_mut() else { return Part::Done };
        match step {
            0 => {
                run.certificate = false;
                run.tell(Told::default());
                Part::Next(quick)
            }
            1 => {
                run.upstream = None; // Reloaded; the receiver does not care, and no more do the senders.
                if run.relaying.take().is_some() {
                    run.admitted.clear();
                }
                Part::Next(quick)
            }
            2 => {
                self.end_senders(n, |_| false);
                self.terminate_receiver(n);
                Part::Next(quick)
            }
            _ if run.receiver.is_some() => {
                // It flushes what it has before it ends.
                if slow && self.rng.chance(20) {
                    self.count_fault(FaultKind::StepCutShort);
                    return Part::Failed("the receiver does not end".into());
                }
                Part::Again(Duration::from_millis(5))
            }
            _ => {
                run.note_told();
                Part::Done
            }
        }
    }

    fn answer_promise(&mut self, n: usize, step: usize, epoch: Epoch) -> Part {
        let quick = self.rng.ms(1, 10);
        let PostgresSeen::Standby(standby) = self.machines[n].postgres_seen(self.own(n)) else {
            return Part::Failed("Postgres is not a standby now".into());
        };
        let notes = &mut self.machines[n].disk.notes;
        let (Some(position), None, None) = (standby.position, standby.upstream, standby.receiver) else {
            return Part::Failed("its receiver is not gone, or its position is not known".into());
        };
        if notes.promised != epoch {
            return Part::Failed(format!("epoch {} is promised", notes.promised));
        }
        if step == 0 {
            return Part::Next(quick);
        }
        let Some(incarnation) = self.machines[n].data().map(|data| data.incarnation) else {
            return Part::Failed("there is no data".into());
        };
        self.machines[n].disk.notes.answer = Some(PromiseAnswer { epoch, incarnation, position });
        self.machines[n].answered = self.machines[n].answered.max(epoch);
        self.spring_promise_trap(n);
        Part::Done
    }

    fn update_sync_set(
        &mut self,
        n: usize,
        step: usize,
        epoch: Epoch,
        set: &SyncSet,
        admitted: &BTreeSet<Incarnation>,
    ) -> Part {
        // Each WAL sender reads the names by itself, and some are slow to.
        let loading = if self.rng.chance(10) { self.rng.ms(300, 3000) } else { self.rng.ms(1, 60) };
        let Some(run) = self.machines[n].run.as_mut().filter(|run| run.is_primary() && run.serving == Some(epoch))
        else {
            return Part::Failed("it is not the primary of that epoch".into());
        };
        if step > 0 {
            run.sync_before.clear();
            self.release(n); // Whoever waited may have enough by the new names.
            return Part::Done;
        }
        let names =
            if set.members.is_empty() && set.needed == 0 { SyncNames::Alone } else { SyncNames::Set(set.clone()) };
        if run.sync != names {
            let older = std::mem::replace(&mut run.sync, names);
            run.sync_before.push(older);
        }
        run.admitted = admitted.clone();
        run.slots = admitted.clone();
        let strangers: Vec<(u64, usize)> = run
            .senders
            .iter()
            .filter(|(_, sender)| !admitted.contains(&sender.incarnation))
            .map(|(connection, sender)| (*connection, sender.to))
            .collect();
        for (connection, to) in strangers {
            if let Some(run) = self.machines[n].run.as_mut() {
                run.senders.remove(&connection);
            }
            let message = crate::postgres::Message::Closed;
            self.after(Duration::from_millis(1), Event::Wire { from: n, to, connection, message });
        }
        Part::Next(loading)
    }

    /// Sends a report to the node that leads the consensus, as far as this node knows, if it says anything new.
    fn report(&mut self, n: usize, revision: u64, members: Vec<MemberReport>) {
        let leader = self.raft.leader_known_to(n);
        let id = self.machines[n].id;
        let Some(daemon) = self.machines[n].daemon.as_mut() else { return };
        let before = daemon.reports_to;
        if before != leader {
            daemon.reports_to = leader;
            daemon.last_sent = None;
        }
        let session = daemon.session;
        let mut report = NodeReport {
            node: id,
            session,
            sequence: daemon.sequence,
            revision,
            members,
            findings: Vec::new(),
            storage: None,
            round_trip_us: None,
        };
        let news = daemon.last_sent.as_ref() != Some(&report);
        if news && leader.is_some() {
            daemon.last_sent = Some(report.clone());
            daemon.sequence += 1;
            report.sequence = daemon.sequence;
            // Compared without the number of the report itself.
            if let Some(last) = daemon.last_sent.as_mut() {
                last.sequence = daemon.sequence;
            }
        }
        if let (Some(to), true) = (before, before != leader) {
            self.after(Duration::from_millis(1), Event::ConnectionClosed { to, from: n, session });
        }
        let (Some(to), true) = (leader, news) else { return };
        if self.rng.chance(self.report_loss) || !self.reaches(n, to) {
            return;
        }
        let copies = if self.rng.chance(self.report_loss) { 2 } else { 1 };
        for _ in 0..copies {
            let way = self.rng.ms(0, 3 + self.report_late_ms);
            self.after(way, Event::Report { to, from: n, report: Box::new(report.clone()) });
        }
    }
}

/// Whether a step talks to the running Postgres. Signals and files do not.
fn needs_answers(action: &Action) -> bool {
    match action {
        Action::CutUpstream
        | Action::AnswerPromise { .. }
        | Action::Promote { .. }
        | Action::OpenClients
        | Action::UpdateSyncSet { .. }
        | Action::Follow { .. }
        | Action::Relay { .. }
        | Action::HoldClients { .. }
        | Action::LimitWrites { .. }
        | Action::Checkpoint { .. } => true,
        Action::CreateVolume
        | Action::InitDatabase { .. }
        | Action::AdoptData { .. }
        | Action::DiscardPartial
        | Action::Clone { .. }
        | Action::Rewind { .. }
        | Action::StartStandby { .. }
        | Action::SavePromise { .. }
        | Action::FetchLog { .. }
        | Action::Fence
        | Action::StopCleanly { .. }
        | Action::RemoveVolume => false,
    }
}
