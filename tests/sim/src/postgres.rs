//! The modelled Postgres: flushes that take time, WAL senders and receivers, replay that lags, promotions that take
//! the next free timeline, and processes that outlive their postmaster until the guard has ended them.

use crate::faults::FaultKind;
use crate::machine::{Mode, Receiver, Run, Sender, SyncNames, Told};
use crate::wal::{LogRecord, What};
use crate::world::{Event, Inner, World};
use pgstead_types::record::SyncSet;
use pgstead_types::report::{CleanStop, ClientAccess, Upstream};
use pgstead_types::{Epoch, Incarnation, Lsn, Position, Timeline};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// What passes between a sender and a receiver.
#[derive(Clone, Debug)]
pub enum Message {
    Connect {
        incarnation: Incarnation,
        epoch: Epoch,
        at: Position,
        have: usize,
    },
    Accepted,
    Refused,
    Log {
        from: usize,
        records: Vec<LogRecord>,
    },
    /// The receiver's word on what it has synced.
    Flushed {
        flushed: Lsn,
        replayed: Lsn,
    },
    KeepAlive,
    Closed,
}

/// `wal_retrieve_retry_interval`.
const RETRY_MS: u64 = 50;
/// For `wal_receiver_timeout` and `wal_sender_timeout`, longer than the first and shorter than the second.
const TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_millis(500);

impl World {
    fn inner(&mut self, delay: Duration, node: usize, what: Inner) {
        if let Some(run) = self.machines[node].run.as_ref().map(|run| run.id) {
            self.after(delay, Event::Postgres { node, run, what });
        }
    }

    /// In order within a connection and direction, as TCP is.
    fn send(&mut self, from: usize, to: usize, connection: u64, message: Message) {
        let far = self.far_ms.get(&(from, to)).copied().unwrap_or(0);
        let way = self.rng.ms(far, far + 3);
        let earliest = self.arrivals.get(&(connection, to)).copied().unwrap_or_default();
        let time = (self.now + way).max(earliest);
        self.arrivals.insert((connection, to), time);
        self.at(time, Event::Wire { from, to, connection, message });
    }

    /// A member's Postgres is started as a standby. There is no other way to start it.
    pub fn start_postgres(&mut self, n: usize, access: ClientAccess, alone: bool) -> bool {
        self.serial += 1;
        let id = self.serial;
        let machine = &mut self.machines[n];
        let Some(data) = machine.disk.data.as_mut().filter(|data| data.complete) else { return false };
        if machine.run.is_some() {
            return true;
        }
        if machine.full {
            return false;
        }
        // Burned numbers beyond the log's own timeline belong to promotions that did not happen.
        let own = data.wal.timeline(data.wal.len());
        let goes_for = own.max(data.told);
        data.history_files.retain(|n| *n <= goes_for);
        // Postgres syncs the whole folder before it recovers.
        data.flushed = data.wal.len();
        data.clean = None;
        machine.run = Some(Run {
            id,
            postmaster: true,
            hung: false,
            held: Vec::new(),
            mode: Mode::Recovering,
            access,
            read_only: false,
            stopping: false,
            promoting: false,
            flushing: None,
            lease: None,
            upstream: None,
            wanted: Told::default(),
            seen: Told::default(),
            pending: false,
            certificate: false,
            receiver: None,
            replayed: 0,
            recovered: false,
            goes_for,
            relaying: None,
            serving: None,
            target_timeline: None,
            sync: if alone { SyncNames::Alone } else { SyncNames::Nobody },
            sync_before: Vec::new(),
            admitted: BTreeSet::new(),
            slots: BTreeSet::new(),
            senders: BTreeMap::new(),
            waits: VecDeque::new(),
        });
        let start = self.rng.ms(20, 150);
        self.inner(start, n, Inner::Consistent);
        self.inner(KEEP_ALIVE, n, Inner::KeepAlive);
        true
    }

    /// The postmaster dies; its children do not know yet. The guard sees it and ends them.
    pub fn kill_postmaster(&mut self, n: usize) {
        let Some(run) = self.machines[n].run.as_mut() else { return };
        if !run.postmaster {
            return;
        }
        run.postmaster = false;
        let guard = if self.rng.chance(20) { self.rng.ms(500, 2500) } else { self.rng.ms(1, 40) };
        self.inner(guard, n, Inner::Fenced);
        self.touch(n);
    }

    /// The guard dies, and the kernel ends its children at its word: all of them, in a moment.
    pub fn kill_guard(&mut self, n: usize) {
        let Some(run) = self.machines[n].run.as_mut() else { return };
        run.postmaster = false;
        let gone = self.rng.ms(1, 6);
        self.inner(gone, n, Inner::Fenced);
    }

    /// A write to the log failed: the server ends itself.
    fn panic(&mut self, n: usize) {
        if let Some(data) = self.machines[n].disk.data.as_mut() {
            data.wal.truncate(data.flushed);
        }
        self.say(format!("{:<9} PANIC: could not write to its log: no space left", World::member_name(n)));
        self.kill_postmaster(n);
    }

    /// What a hung Postgres would do waits; only its end does not.
    pub(crate) fn hold_if_hung(&mut self, event: Event) -> Option<Event> {
        let node = match &event {
            // Senders go on beside backends that hang, and so does the guard.
            Event::Postgres { what: Inner::Fenced | Inner::LeaseOver | Inner::KeepAlive, .. } => return Some(event),
            Event::Postgres { node, .. } => *node,
            Event::Wire { to, .. } | Event::ToPostgres { to, .. } => *to,
            _ => return Some(event),
        };
        match self.machines[node].run.as_mut().filter(|run| run.hung) {
            Some(run) => {
                run.held.push(event);
                None
            }
            None => Some(event),
        }
    }
    pub(crate) fn resume_postgres(&mut self, n: usize) {
        let Some(run) = self.machines[n].run.as_mut().filter(|run| run.hung) else { return };
        run.hung = false;
        for event in std::mem::take(&mut run.held) {
            self.at(self.now, event);
        }
        self.touch(n);
    }

    /// No process is left. What was written stays in the kernel's cache, what was not even written does not.
    pub fn end_processes(&mut self, n: usize) {
        self.break_waits(n);
        let Some(run) = self.machines[n].run.take() else { return };
        if let Some(receiver) = &run.receiver
            && let Some(upstream) = self.member_at(receiver.upstream)
        {
            self.send(n, upstream, receiver.connection, Message::Closed);
        }
        for (connection, sender) in &run.senders {
            self.send(n, sender.to, *connection, Message::Closed);
        }
        let loss = self.rng.below(4) as usize;
        if let Some(data) = self.machines[n].disk.data.as_mut() {
            let kept = data.wal.len().saturating_sub(loss);
            if data.clean.is_none() {
                data.lose_after(kept);
            }
        }
        self.touch(n);
    }

    /// The power goes: nobody hears of it, and only what was synced stays.
    pub fn lose_power(&mut self, n: usize) {
        self.machines[n].run = None;
        let Some(data) = self.machines[n].disk.data.as_mut() else { return };
        let lost = data.flushed < data.wal.len();
        data.lose_after(0);
        if lost {
            self.count_fault(FaultKind::UnsyncedLogLost);
        }
    }

    pub(crate) fn member_at(&self, upstream: Upstream) -> Option<usize> {
        (0..self.members).find(|n| crate::world::member_id(*n) == upstream.source())
    }

    /// Starts a flush of what is written, if none is under way.
    pub(crate) fn flush(&mut self, n: usize) {
        let machine = &self.machines[n];
        let (slow, full) = (machine.slow.max(machine.slow_volume), machine.full);
        let took = self.rng.ms(1, 4) * slow;
        let Some((run, data)) = self.machines[n].live() else { return };
        if full && data.flushed < data.wal.len() {
            return self.panic(n);
        }
        if run.flushing.is_none() && data.flushed < data.wal.len() {
            let upto = data.wal.len();
            run.flushing = Some(upto);
            self.inner(took, n, Inner::Flushed { upto });
        }
    }

    pub fn on_postgres(&mut self, n: usize, id: u64, what: Inner) {
        if self.machines[n].run.as_ref().is_none_or(|run| run.id != id) {
            return;
        }
        match what {
            Inner::Consistent => {
                if let Some(run) = self.machines[n].run.as_mut() {
                    run.mode = Mode::Standby;
                }
                let rest = if self.rng.chance(30) { self.rng.ms(200, 1500) } else { self.rng.ms(1, 60) };
                self.inner(rest, n, Inner::Recovered);
                self.touch(n);
            }
            Inner::Recovered => {
                if let Some((run, data)) = self.machines[n].live() {
                    run.recovered = true;
                    run.replayed = data.wal.len();
                }
                self.touch(n);
            }
            Inner::StartReceiver => self.start_receiver(n),
            Inner::EndReceiver { connection } => {
                let current = self.machines[n].run.as_ref().and_then(|run| run.receiver.as_ref());
                if current.is_some_and(|receiver| receiver.connection == connection) {
                    self.end_receiver(n);
                }
            }
            Inner::Flushed { upto } => self.on_flushed(n, upto),
            Inner::Replay => {
                if let Some((run, data)) = self.machines[n].live() {
                    run.replayed = data.flushed;
                }
            }
            Inner::KeepAlive => self.keep_alive(n),
            Inner::PromotionBegins => self.begin_promotion(n),
            Inner::PromotionEnds => self.end_promotion(n),
            Inner::StopTick => self.go_on_stopping(n),
            Inner::Fenced => self.end_processes(n),
            Inner::LeaseOver => self.on_lease_over(n),
        }
    }

    // --- standby

    /// Written by its node.
    pub(crate) fn begin_to_follow(&mut self, n: usize, upstream: Upstream) {
        if let Some(run) = self.machines[n].run.as_mut() {
            run.certificate = true;
            run.tell(Told { upstream: Some(upstream), relays: None });
        }
    }

    /// Loaded, and seen to be.
    pub(crate) fn follow(&mut self, n: usize, upstream: Upstream) {
        if let Some(run) = self.machines[n].run.as_mut() {
            run.upstream = Some(upstream);
            run.slots.clear();
            run.note_told();
        }
        let delay = self.rng.ms(1, RETRY_MS);
        self.inner(delay, n, Inner::StartReceiver);
    }

    fn start_receiver(&mut self, n: usize) {
        self.serial += 1;
        let connection = self.serial;
        let now = self.own(n);
        let Some((run, data)) = self.machines[n].live() else { return };
        let Some(upstream) = run.upstream else { return };
        if !run.certificate
            || run.receiver.is_some()
            || !run.recovered
            || run.mode != Mode::Standby
            || !run.postmaster
            || run.stopping
        {
            return;
        }
        run.receiver = Some(Receiver { connection, upstream, streaming: false, heard: now, started: now });
        let message = Message::Connect {
            incarnation: data.incarnation,
            epoch: upstream.epoch,
            at: data.wal.position(data.flushed),
            have: data.flushed,
        };
        // What was written and not synced by an older receiver is asked for again.
        data.wal.truncate(data.flushed);
        run.flushing = None;
        if let Some(to) = self.member_at(upstream) {
            self.send(n, to, connection, message);
        }
        self.touch(n);
    }

    fn end_receiver(&mut self, n: usize) {
        let Some(run) = self.machines[n].run.as_mut() else { return };
        let Some(receiver) = run.receiver.take() else { return };
        let again = run.upstream.is_some();
        if let Some(to) = self.member_at(receiver.upstream) {
            self.send(n, to, receiver.connection, Message::Closed);
        }
        if again {
            let delay = self.rng.ms(20, RETRY_MS);
            self.inner(delay, n, Inner::StartReceiver);
        }
        self.touch(n);
    }

    /// SIGTERM to the receiver. Until it is gone it goes on receiving and acknowledging.
    pub(crate) fn terminate_receiver(&mut self, n: usize) {
        let Some(receiver) = self.machines[n].run.as_ref().and_then(|run| run.receiver.as_ref()) else { return };
        let connection = receiver.connection;
        let delay = self.rng.ms(1, 150);
        self.inner(delay, n, Inner::EndReceiver { connection });
    }

    fn on_flushed(&mut self, n: usize, upto: usize) {
        let Some((run, data)) = self.machines[n].live() else { return };
        if run.flushing != Some(upto) {
            return;
        }
        run.flushing = None;
        data.flushed = data.flushed.max(upto.min(data.wal.len()));
        let (flushed, replayed) = (data.flushed_lsn(), data.wal.lsn(run.replayed));
        let receiver = run.receiver.as_ref().filter(|receiver| receiver.streaming);
        let receiver = receiver.map(|receiver| (receiver.connection, receiver.upstream));
        if run.is_primary() {
            self.release(n);
            self.stream(n);
        } else if let Some((connection, upstream)) = receiver {
            if let Some(to) = self.member_at(upstream) {
                self.send(n, to, connection, Message::Flushed { flushed, replayed });
            }
            let lag = self.rng.ms(1, 40);
            self.inner(lag, n, Inner::Replay);
            // What is on its own disk it passes on.
            self.stream(n);
        }
        self.flush(n);
    }

    // --- primary

    /// Sends what is synced and was not sent.
    pub(crate) fn stream(&mut self, n: usize) {
        let Some((run, data)) = self.machines[n].live() else { return };
        let mut out = Vec::new();
        for (connection, sender) in &mut run.senders {
            if sender.sent < data.flushed {
                let records = data.wal.records()[sender.sent..data.flushed].to_vec();
                out.push((sender.to, *connection, Message::Log { from: sender.sent, records }));
                sender.sent = data.flushed;
            }
        }
        for (to, connection, message) in out {
            self.send(n, to, connection, message);
        }
    }

    pub fn on_wire(&mut self, from: usize, to: usize, connection: u64, message: Message) {
        if !self.machines[to].powered {
            return;
        }
        if !self.reaches(from, to) || self.cut_postgres.contains(&(from, to)) {
            self.stalled.push((from, to, connection, message));
            return;
        }
        match message {
            Message::Connect { incarnation, epoch, at, have } => {
                let accepted = self.accept(from, to, connection, incarnation, epoch, at, have);
                self.send(to, from, connection, if accepted { Message::Accepted } else { Message::Refused });
                if accepted {
                    self.stream(to);
                    self.touch(to);
                }
            }
            Message::Flushed { flushed, replayed } => self.on_word(to, connection, flushed, replayed),
            Message::Closed => {
                let Some(run) = self.machines[to].run.as_mut() else { return };
                if run.senders.remove(&connection).is_some() {
                    self.touch(to);
                } else if run.receiver.as_ref().is_some_and(|receiver| receiver.connection == connection) {
                    self.end_receiver(to);
                }
            }
            other => self.on_received(to, connection, other),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "they are the fields of one message")]
    fn accept(
        &mut self,
        from: usize,
        n: usize,
        connection: u64,
        incarnation: Incarnation,
        epoch: Epoch,
        at: Position,
        have: usize,
    ) -> bool {
        let now = self.own(n);
        let Some((run, data)) = self.machines[n].live() else { return false };
        let known = run.admitted.contains(&incarnation) && run.slots.contains(&incarnation);
        let busy = run.senders.values().any(|sender| sender.incarnation == incarnation);
        let serves = match run.mode {
            Mode::Primary { .. } => run.serving == Some(epoch),
            Mode::Standby => run.relaying == Some(epoch) && run.recovered,
            Mode::Recovering => false,
        };
        if !run.postmaster || !serves || run.stopping || !known || busy {
            return false;
        }
        // A standby that is behind the one that asks says so.
        if !run.is_primary() && have > data.flushed {
            return false;
        }
        // Requested log has already been removed.
        if have < data.removed || !data.wal.admits(at) {
            return false;
        }
        // Before it asks for any log, the standby takes the histories that it lacks, and goes for the newest from then on,
        // if that comes from what it goes for already. It asks for the log of whatever it goes for.
        let leads = data.wal.timelines();
        let (Some(newest), Some((standby, theirs))) = (leads.last().copied(), self.machines[from].live()) else {
            return false;
        };
        // A receiver that has ended meanwhile takes nothing.
        if standby.receiver.as_ref().is_none_or(|receiver| receiver.connection != connection) {
            return false;
        }
        if !leads.contains(&standby.goes_for) {
            return false;
        }
        standby.goes_for = newest;
        theirs.told = newest;
        theirs.history_files.insert(newest);
        let theirs = self.machines[from].disk.data.as_ref().map(|data| data.wal.clone()).unwrap_or_default();
        let Some((run, data)) = self.machines[n].live() else { return false };
        if !data.wal.begins_with(&theirs, have) {
            self.checks.break_rule(format!(
                "app-{} streams from app-{} with a log that is not a prefix of it, and Postgres cannot see that",
                from + 1,
                n + 1
            ));
        }
        let sender = Sender {
            to: from,
            epoch,
            incarnation,
            streaming: false,
            sent: have,
            flushed: None,
            replayed: None,
            heard: now,
        };
        run.senders.insert(connection, sender);
        true
    }

    fn on_word(&mut self, n: usize, connection: u64, flushed: Lsn, replayed: Lsn) {
        let now = self.own(n);
        let Some((run, data)) = self.machines[n].live() else { return };
        let Some(sender) = run.senders.get_mut(&connection) else { return };
        let news = match run.mode {
            Mode::Primary { end_of_recovery, .. } => {
                !sender.streaming || sender.flushed.is_none_or(|at| at < end_of_recovery)
            }
            Mode::Recovering | Mode::Standby => false,
        };
        sender.heard = now;
        sender.flushed = Some(sender.flushed.map_or(flushed, |at| at.max(flushed)));
        sender.replayed = Some(replayed);
        // In Postgres' sense: everything has been sent, not flushed.
        sender.streaming |= sender.sent >= data.flushed;
        if news {
            self.touch(n);
        }
        if self.machines[n].run.as_ref().is_some_and(crate::machine::Run::is_primary) {
            self.release(n);
        }
    }

    fn on_received(&mut self, n: usize, connection: u64, message: Message) {
        let now = self.own(n);
        let Some((run, data)) = self.machines[n].live() else { return };
        let Some(receiver) = run.receiver.as_mut().filter(|receiver| receiver.connection == connection) else {
            return;
        };
        receiver.heard = now;
        let upstream = receiver.upstream;
        let word = Message::Flushed { flushed: data.flushed_lsn(), replayed: data.wal.lsn(run.replayed) };
        match message {
            Message::Accepted => {
                receiver.streaming = true;
                self.touch(n);
            }
            Message::Refused => {
                self.end_receiver(n);
                return;
            }
            Message::Log { from, records } => {
                if from != data.wal.len() {
                    // A gap: no receiver writes beyond it.
                    self.end_receiver(n);
                    return;
                }
                data.history_files.extend(records.iter().map(|record| record.timeline));
                data.wal.extend(&records);
                self.flush(n);
                return;
            }
            _ => {}
        }
        if let Some(to) = self.member_at(upstream) {
            self.send(n, to, connection, word);
        }
    }

    fn keep_alive(&mut self, n: usize) {
        let now = self.own(n);
        let Some(run) = self.machines[n].run.as_mut() else { return };
        let hung = run.hung;
        let late: Vec<u64> = run
            .senders
            .iter()
            .filter(|(_, sender)| now.since(sender.heard) > TIMEOUT && !run.hung)
            .map(|(connection, _)| *connection)
            .collect();
        for connection in &late {
            run.senders.remove(connection);
        }
        let alive: Vec<(usize, u64)> = run.senders.iter().map(|(c, sender)| (sender.to, *c)).collect();
        let silent = run.receiver.as_ref().is_some_and(|receiver| {
            let limit = if receiver.streaming { TIMEOUT } else { CONNECT_TIMEOUT };
            now.since(if receiver.streaming { receiver.heard } else { receiver.started }) > limit
        });
        for (to, connection) in alive {
            self.send(n, to, connection, Message::KeepAlive);
        }
        if silent && !hung {
            self.end_receiver(n);
        }
        if !late.is_empty() {
            self.touch(n);
        }
        self.inner(self.machines[n].clock.lasts(KEEP_ALIVE), n, Inner::KeepAlive);
    }

    // --- promotion and stop

    /// Everything that must be in place before `pg_promote` is called.
    pub(crate) fn prepare_promotion(
        &mut self,
        n: usize,
        epoch: Epoch,
        timeline: Timeline,
        set: &SyncSet,
        admitted: &BTreeSet<Incarnation>,
    ) {
        let Some((run, data)) = self.machines[n].live() else { return };
        run.sync =
            if set.members.is_empty() && set.needed == 0 { SyncNames::Alone } else { SyncNames::Set(set.clone()) };
        run.access = ClientAccess::Holding;
        run.read_only = false;
        run.serving = Some(epoch);
        run.admitted = admitted.clone();
        run.slots = admitted.clone();
        run.target_timeline = Some(timeline.0);
        let own = data.wal.timeline(data.wal.len());
        data.history_files.extend(own + 1..timeline.0);
        run.relaying = None;
        self.end_senders(n, |sender| sender.epoch == epoch);
    }

    pub(crate) fn promote(&mut self, n: usize) {
        if let Some(run) = self.machines[n].run.as_mut()
            && !run.promoting
        {
            run.promoting = true;
            let delay = self.rng.ms(10, 150);
            self.inner(delay, n, Inner::PromotionBegins);
        }
    }

    /// Postgres takes the first number after its own that has no history file, and writes that file.
    fn begin_promotion(&mut self, n: usize) {
        let Some((run, data)) = self.machines[n].live() else { return };
        if !run.postmaster || run.mode != Mode::Standby {
            return;
        }
        let own = data.wal.timeline(data.wal.len());
        if run.goes_for != own {
            let goes_for = run.goes_for;
            self.checks.break_rule(format!(
                "app-{} is promoted with a log of timeline {own} while it goes for {goes_for}: its history would name that",
                n + 1
            ));
            return;
        }
        let mut timeline = own + 1;
        while data.history_files.contains(&timeline) {
            timeline += 1;
        }
        data.history_files.insert(timeline);
        run.target_timeline = Some(timeline);
        let delay = self.rng.ms(5, 80);
        self.inner(delay, n, Inner::PromotionEnds);
    }

    fn end_promotion(&mut self, n: usize) {
        if self.machines[n].full {
            return self.panic(n);
        }
        let Some((run, data)) = self.machines[n].live() else { return };
        let Some(timeline) = run.target_timeline.filter(|_| run.postmaster) else { return };
        data.wal.truncate(data.flushed);
        let fork = data.wal.lsn(data.wal.len());
        let end_of_recovery = data.wal.write(timeline, What::EndOfRecovery);
        data.flushed = data.wal.len();
        run.replayed = data.flushed;
        run.mode = Mode::Primary { timeline, fork, end_of_recovery };
        self.checks.promoted(n, timeline);
        self.touch(n);
    }

    pub(crate) fn stop_cleanly(&mut self, n: usize) {
        let Some(run) = self.machines[n].run.as_mut() else { return };
        if run.stopping {
            return;
        }
        run.stopping = true;
        if run.is_primary() && self.machines[n].full {
            return self.panic(n);
        }
        let Some((run, data)) = self.machines[n].live() else { return };
        if let Some(timeline) = run.timeline() {
            data.wal.write(timeline, What::ShutdownCheckpoint);
            data.flushed = data.wal.len();
            self.break_waits(n);
            self.stream(n);
        }
        let delay = self.rng.ms(5, 60);
        self.inner(delay, n, Inner::StopTick);
    }

    /// A primary ends when all senders have everything on the other side.
    fn go_on_stopping(&mut self, n: usize) {
        let Some((run, data)) = self.machines[n].live() else { return };
        let end = data.flushed_lsn();
        if run.is_primary() && run.senders.values().any(|sender| sender.flushed.is_none_or(|at| at < end)) {
            self.inner(Duration::from_millis(20), n, Inner::StopTick);
            return;
        }
        let timeline = Timeline(data.wal.timeline(data.flushed));
        // For a primary: where its shutdown checkpoint begins.
        data.wal.truncate(data.flushed);
        data.clean = Some(CleanStop { timeline, checkpoint: data.wal.lsn(data.flushed.saturating_sub(1)) });
        self.end_processes(n);
    }

    /// `pg_hba` is closed and the sessions that came through it are ended.
    pub(crate) fn hold_clients(&mut self, n: usize) {
        if let Some(run) = self.machines[n].run.as_mut() {
            run.access = ClientAccess::Holding;
        }
        self.break_waits(n);
    }
}
