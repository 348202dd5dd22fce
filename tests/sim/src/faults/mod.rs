//! What goes wrong, and the ends of it. `draw` makes a course of faults from the seed; `traps` are those that wait for
//! their moment; `calm` ends all of them.

mod draw;
mod traps;

pub use traps::Traps;

use crate::clock::TRUE_RATE;
use crate::machine::PoolLevel;
use crate::world::{Event, World, member_id};
use pgstead_types::Step;
use pgstead_types::record::{ClusterChange, Leadership};
use pgstead_types::spec::{Cascade, Durability};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// Faults as they are counted. Each of them must happen in a run of some length.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum FaultKind {
            $($(#[$doc])* $name,)+
        }
        impl FaultKind {
            pub const ALL: &'static [FaultKind] = &[$(FaultKind::$name,)+];
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(FaultKind::$name => $text,)+
                }
            }
        }
    };
}

kinds! {
    DaemonKilled = "daemon killed",
    /// The daemon dies while a step is under way, wherever it is.
    StepCutShort = "step cut short",
    DaemonKilledInStep = "daemon killed inside a chosen step",
    NodeKilled = "node killed",
    NodeWithoutPower = "node without power",
    /// Log that was written and not synced went with the power.
    UnsyncedLogLost = "unsynced log lost",
    PowerLostAtPromise = "power lost right after a promise was answered",
    PostmasterKilled = "postmaster killed",
    GuardKilled = "guard killed",
    PostgresHung = "postgres hung",
    NodeFrozen = "node frozen",
    DirectionCut = "direction cut",
    NodeCutOff = "node cut off",
    PartitionFlaps = "partition flaps",
    ReplicationCut = "replication cut",
    OlderRecordShown = "older record shown",
    DiskSlow = "disk slow",
    DiskFull = "disk full",
    PoolFull = "pool full, or brimming",
    ClockWrong = "clock slow or fast",
    DataLost = "data lost",
    LogRemoved = "old log removed",
    DataCorrupted = "data corrupted",
    ReportsBad = "reports lost, doubled and late",
    RaftBad = "raft messages lost, doubled and late",
    QuorumLost = "quorum of the consensus lost",
    ControllerKilledInPhase = "controller killed in a phase",
    LeaderKilledInPhase = "leader's node killed in a phase",
    RewindFails = "rewind fails",
    RewindSaysNotRequired = "rewind wrongly says not required",
    SwitchoverRequested = "switchover asked for",
    RestartRequested = "restart asked for",
    SpecChanged = "spec changed",
    /// Its leader's log is long then, and nobody was told of anything in it.
    BulkWritten = "much written by one transaction that does not commit",
    CascadeChanged = "standbys are to be fed by others, or no longer",
    RolledBack = "cluster to go back to a snapshot",
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    KillDaemon(usize),
    StartDaemon(usize),
    /// Every process of the node ends; its disk stays. `heard`: connections close, as those of killed processes do.
    KillNode {
        node: usize,
        heard: bool,
    },
    StartNode(usize),
    KillPostmaster(usize),
    /// A transaction writes much at the primary there, and does not commit.
    WriteBulk(usize),
    /// The node of whoever leads now is killed, and comes back.
    KillWhoLeads,
    /// Its Postgres dies with it, by the signal of the parent's death.
    KillGuard(usize),
    /// Its processes are there, take connections, and do nothing.
    HangPostgres(usize),
    ResumePostgres(usize),
    Freeze(usize),
    Thaw(usize),
    /// One direction.
    Cut(usize, usize),
    Join(usize, usize),
    /// Every direction to and from a node.
    CutOff(usize),
    JoinNode(usize),
    /// Cut both ways and joined again, so many times more.
    Flap {
        between: (usize, usize),
        more: u8,
    },
    /// Replication between two is cut both ways, and their daemons still talk.
    CutPostgres(usize, usize),
    JoinPostgres(usize, usize),
    /// The node's agent is shown a record that was true a while ago, as after a restart that replays the log.
    OldRecord(usize),
    /// One that is so many changes old, mostly of the same epoch.
    RecentRecord {
        node: usize,
        back: usize,
    },
    NewRecord(usize),
    SlowDisk(usize),
    SlowVolume(usize),
    NormalDisk(usize),
    /// Nothing more can be written to the volume; Postgres ends where it must write.
    FillDisk(usize),
    FreeDisk(usize),
    /// The pool below the volume has little room left, or hardly any.
    FillPool {
        node: usize,
        brimming: bool,
    },
    FreePool(usize),
    /// The node's own clock goes on by so many thousandths of the time.
    DriftClock {
        node: usize,
        per_mille: u32,
    },
    TrueClock(usize),
    LoseData(usize),
    /// The member removes all of its log that nobody streams from it just now.
    RemoveLog(usize),
    /// A page of the member's data turns bad.
    Corrupt(usize),
    BadReports,
    GoodReports,
    BadRaft,
    GoodRaft,
    /// The consensus hears nothing, and everything else does.
    LoseQuorum,
    RegainQuorum,
    /// The daemon that next takes this step dies inside it; `power`: its node's power goes.
    KillInStep {
        step: Step,
        power: bool,
    },
    /// The next standby that answers a promise loses its power as soon as the answer can have been heard.
    LosePowerAtPromise,
    /// The controller's daemon dies as soon as the record says that phase.
    KillControllerIn(Phase),
    /// The node of the chosen leader dies as soon as the record says that phase.
    KillLeaderIn(Phase),
    Switchover(usize),
    Restart,
    /// Another cluster is to take this one's place.
    RollBack,
    /// It is not, or no longer.
    KeepAsItIs,
    /// Another `k`, and what happens when so many are not there.
    ChangeCascade(Cascade),
    ChangeSpec {
        needed: u8,
        durability: Durability,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Electing,
    Chosen,
    Promoted,
    Confirmed,
}

impl Phase {
    pub const ALL: [Phase; 4] = [Phase::Electing, Phase::Chosen, Phase::Promoted, Phase::Confirmed];
    pub fn of(leadership: &Leadership) -> Self {
        match leadership {
            Leadership::Electing { .. } => Phase::Electing,
            Leadership::Chosen { .. } => Phase::Chosen,
            Leadership::Promoted { .. } => Phase::Promoted,
            Leadership::Confirmed { .. } => Phase::Confirmed,
        }
    }
}

impl Fault {
    /// What it counts as when it begins; nothing for the end of another one, and for one that waits for its moment.
    fn kind(self) -> Option<FaultKind> {
        Some(match self {
            Fault::KillDaemon(_) => FaultKind::DaemonKilled,
            Fault::KillNode { heard: true, .. } => FaultKind::NodeKilled,
            Fault::KillNode { heard: false, .. } => FaultKind::NodeWithoutPower,
            Fault::KillPostmaster(_) => FaultKind::PostmasterKilled,
            Fault::KillGuard(_) => FaultKind::GuardKilled,
            Fault::WriteBulk(_) => FaultKind::BulkWritten,
            Fault::HangPostgres(_) => FaultKind::PostgresHung,
            Fault::Freeze(_) => FaultKind::NodeFrozen,
            Fault::Cut(..) => FaultKind::DirectionCut,
            Fault::CutOff(_) => FaultKind::NodeCutOff,
            Fault::Flap { .. } => FaultKind::PartitionFlaps,
            Fault::CutPostgres(..) => FaultKind::ReplicationCut,
            Fault::OldRecord(_) | Fault::RecentRecord { .. } => FaultKind::OlderRecordShown,
            Fault::SlowDisk(_) | Fault::SlowVolume(_) => FaultKind::DiskSlow,
            Fault::FillDisk(_) => FaultKind::DiskFull,
            Fault::FillPool { .. } => FaultKind::PoolFull,
            Fault::DriftClock { .. } => FaultKind::ClockWrong,
            Fault::LoseData(_) => FaultKind::DataLost,
            Fault::RemoveLog(_) => FaultKind::LogRemoved,
            Fault::Corrupt(_) => FaultKind::DataCorrupted,
            Fault::BadReports => FaultKind::ReportsBad,
            Fault::BadRaft => FaultKind::RaftBad,
            Fault::LoseQuorum => FaultKind::QuorumLost,
            Fault::Switchover(_) => FaultKind::SwitchoverRequested,
            Fault::Restart => FaultKind::RestartRequested,
            Fault::RollBack => FaultKind::RolledBack,
            Fault::ChangeCascade(_) => FaultKind::CascadeChanged,
            Fault::ChangeSpec { .. } => FaultKind::SpecChanged,
            Fault::StartDaemon(_)
            | Fault::StartNode(_)
            | Fault::ResumePostgres(_)
            | Fault::Thaw(_)
            | Fault::Join(..)
            | Fault::JoinNode(_)
            | Fault::JoinPostgres(..)
            | Fault::NewRecord(_)
            | Fault::NormalDisk(_)
            | Fault::FreeDisk(_)
            | Fault::FreePool(_)
            | Fault::TrueClock(_)
            | Fault::GoodReports
            | Fault::GoodRaft
            | Fault::RegainQuorum
            | Fault::KeepAsItIs
            | Fault::KillControllerIn(_)
            | Fault::KillLeaderIn(_)
            | Fault::KillWhoLeads
            | Fault::KillInStep { .. }
            | Fault::LosePowerAtPromise => return None,
        })
    }

    /// As the transcript tells it.
    fn told(self) -> String {
        let name = |n: usize| format!("n{}", n + 1);
        let what = match self {
            Fault::StartDaemon(_) => "daemon started",
            Fault::StartNode(_) => "node started",
            Fault::ResumePostgres(_) => "postgres goes on",
            Fault::Thaw(_) => "node thawed",
            Fault::Join(..) => "direction joined",
            Fault::JoinNode(_) => "node joined",
            Fault::JoinPostgres(..) => "replication joined",
            Fault::NewRecord(_) => "newest record shown",
            Fault::NormalDisk(_) => "disk normal",
            Fault::FreeDisk(_) => "disk has space",
            Fault::FreePool(_) => "pool has room",
            Fault::FillPool { brimming: false, .. } => "pool full",
            Fault::FillPool { brimming: true, .. } => "pool brimming",
            Fault::TrueClock(_) => "clock true",
            Fault::GoodReports => "reports good",
            Fault::GoodRaft => "raft messages good",
            Fault::RegainQuorum => "quorum of the consensus back",
            Fault::KeepAsItIs => "cluster to stay as it is",
            Fault::KillControllerIn(_) => "controller to be killed in a phase",
            Fault::KillLeaderIn(_) => "leader's node to be killed in a phase",
            Fault::KillWhoLeads => "whoever leads now is killed",
            Fault::KillInStep { power: false, .. } => "daemon to be killed inside",
            Fault::KillInStep { power: true, .. } => "node to lose its power inside",
            Fault::LosePowerAtPromise => "power to be lost at a promise",
            other => other.kind().map_or("?", FaultKind::as_str),
        };
        let whom = match self {
            Fault::KillDaemon(n)
            | Fault::StartDaemon(n)
            | Fault::KillNode { node: n, .. }
            | Fault::StartNode(n)
            | Fault::KillPostmaster(n)
            | Fault::WriteBulk(n)
            | Fault::KillGuard(n)
            | Fault::HangPostgres(n)
            | Fault::ResumePostgres(n)
            | Fault::Freeze(n)
            | Fault::Thaw(n)
            | Fault::CutOff(n)
            | Fault::JoinNode(n)
            | Fault::OldRecord(n)
            | Fault::NewRecord(n)
            | Fault::SlowDisk(n)
            | Fault::SlowVolume(n)
            | Fault::NormalDisk(n)
            | Fault::FillDisk(n)
            | Fault::FreeDisk(n)
            | Fault::FillPool { node: n, .. }
            | Fault::FreePool(n)
            | Fault::TrueClock(n)
            | Fault::RemoveLog(n)
            | Fault::Corrupt(n)
            | Fault::LoseData(n) => name(n),
            Fault::RecentRecord { node, back } => format!("{}, {back} changes old", name(node)),
            Fault::DriftClock { node, per_mille } => format!("{} by {per_mille} of 1000", name(node)),
            Fault::Cut(a, b)
            | Fault::Join(a, b)
            | Fault::Flap { between: (a, b), .. }
            | Fault::CutPostgres(a, b)
            | Fault::JoinPostgres(a, b) => format!("{} to {}", name(a), name(b)),
            Fault::KillControllerIn(phase) | Fault::KillLeaderIn(phase) => format!("{phase:?}"),
            Fault::KillInStep { step, .. } => step.to_string(),
            Fault::Switchover(n) => World::member_name(n),
            Fault::ChangeCascade(cascade) => format!("cascade {cascade}"),
            Fault::ChangeSpec { needed, durability } => format!("k = {needed}, {durability}"),
            Fault::BadReports
            | Fault::GoodReports
            | Fault::BadRaft
            | Fault::GoodRaft
            | Fault::LoseQuorum
            | Fault::RegainQuorum
            | Fault::LosePowerAtPromise
            | Fault::KillWhoLeads
            | Fault::RollBack
            | Fault::KeepAsItIs
            | Fault::Restart => String::new(),
        };
        format!("fault     {what} {whom}").trim_end().to_string()
    }
}

impl World {
    pub fn inflict(&mut self, fault: Fault) {
        if let Some(kind) = fault.kind() {
            self.count_fault(kind);
        }
        self.say(fault.told());
        match fault {
            Fault::KillDaemon(n) => self.kill_daemon(n),
            Fault::StartDaemon(n) => self.start_daemon(n),
            Fault::KillNode { node, heard } => {
                if heard {
                    self.kill_daemon(node);
                    self.end_processes(node);
                } else {
                    self.machines[node].daemon = None;
                    self.raft.kill(node);
                }
                self.lose_power(node);
                self.thaw(node);
                self.machines[node].powered = false;
            }
            Fault::StartNode(n) => {
                self.machines[n].powered = true;
                self.start_daemon(n);
            }
            Fault::KillPostmaster(n) => self.kill_postmaster(n),
            Fault::WriteBulk(n) => self.write_bulk(n),
            Fault::KillWhoLeads => {
                if let Some(node) = self.leader() {
                    self.inflict(Fault::KillNode { node, heard: true });
                    let back = self.later.ms(2000, 15_000);
                    self.after(back, Event::Fault(Fault::StartNode(node)));
                }
            }
            Fault::KillGuard(n) => self.kill_guard(n),
            Fault::HangPostgres(n) => {
                if let Some(run) = self.machines[n].run.as_mut() {
                    run.hung = true;
                }
                self.touch(n);
            }
            Fault::ResumePostgres(n) => self.resume_postgres(n),
            Fault::Freeze(n) => {
                if self.machines[n].powered {
                    self.machines[n].frozen = true;
                    self.raft.freeze(n);
                }
            }
            Fault::Thaw(n) => self.thaw(n),
            Fault::Cut(a, b) => {
                self.cut.insert((a, b));
                self.raft.cut(a, b);
            }
            Fault::Join(a, b) => {
                self.cut.remove(&(a, b));
                self.raft.join(a, b);
                self.resend_stalled();
            }
            Fault::CutOff(n) => {
                for other in (0..self.machines.len()).filter(|other| *other != n) {
                    for (a, b) in [(n, other), (other, n)] {
                        self.cut.insert((a, b));
                        self.raft.cut(a, b);
                    }
                }
            }
            Fault::JoinNode(n) => {
                for (a, b) in self.cut.clone().into_iter().filter(|(a, b)| *a == n || *b == n) {
                    self.cut.remove(&(a, b));
                    self.raft.join(a, b);
                }
                self.resend_stalled();
            }
            Fault::Flap { between: (a, b), more } => {
                for (from, to) in [(a, b), (b, a)] {
                    self.cut.insert((from, to));
                    self.raft.cut(from, to);
                }
                let (cut, whole) = (self.rng.ms(50, 2500), self.rng.ms(50, 1500));
                self.after(cut, Event::Fault(Fault::Join(a, b)));
                self.after(cut, Event::Fault(Fault::Join(b, a)));
                if let Some(more) = more.checked_sub(1) {
                    self.after(cut + whole, Event::Fault(Fault::Flap { between: (a, b), more }));
                }
            }
            Fault::RollBack => self.roll_back(),
            Fault::KeepAsItIs => {
                self.keep_as_it_is();
            }
            Fault::SlowDisk(n) => self.machines[n].slow = 40,
            Fault::SlowVolume(n) => self.machines[n].slow_volume = 120,
            Fault::NormalDisk(n) => {
                let machine = &mut self.machines[n];
                (machine.slow, machine.slow_volume) = (1, 1);
            }
            Fault::FillDisk(n) => self.machines[n].full = true,
            Fault::FillPool { node, brimming } => {
                self.machines[node].pool = if brimming { PoolLevel::Brimming } else { PoolLevel::Full };
                self.touch(node);
            }
            Fault::FreePool(n) => {
                self.machines[n].pool = PoolLevel::Fine;
                self.touch(n);
            }
            Fault::FreeDisk(n) => {
                self.machines[n].full = false;
                self.touch(n);
            }
            Fault::DriftClock { node, per_mille } => {
                // Where time is what keeps two leaders apart, clocks are as wrong as the margins allow.
                let per_mille = if self.asynchronous { 950 + per_mille % 100 } else { per_mille };
                let now = self.now;
                self.machines[node].clock.set_rate(now, per_mille);
            }
            Fault::TrueClock(n) => {
                let now = self.now;
                self.machines[n].clock.set_rate(now, TRUE_RATE);
            }
            Fault::LoseData(n) => {
                self.checks.copies_vary = true;
                self.break_waits(n);
                self.end_processes(n);
                let disk = &mut self.machines[n].disk;
                disk.volume = false;
                disk.data = None;
                disk.aside = None;
                self.touch(n);
            }
            Fault::RemoveLog(n) => {
                if let Some(data) = self.machines[n].disk.data.as_mut().filter(|data| data.complete) {
                    data.removed = data.flushed;
                }
                self.touch(n);
            }
            Fault::Corrupt(n) => {
                self.checks.copies_vary = true;
                if let Some(data) = self.machines[n].disk.data.as_mut().filter(|data| data.complete) {
                    data.corrupted = true;
                }
                self.touch(n);
            }
            Fault::CutPostgres(a, b) => {
                self.cut_postgres.extend([(a, b), (b, a)]);
            }
            Fault::JoinPostgres(a, b) => {
                self.cut_postgres.remove(&(a, b));
                self.cut_postgres.remove(&(b, a));
                self.resend_stalled();
            }
            Fault::OldRecord(n) => {
                // The newest one of an older epoch is the one that tempts most.
                let epoch = |record: &pgstead_types::record::Record| {
                    record.clusters.get(&crate::world::CLUSTER).map(|cluster| cluster.epoch)
                };
                let now = epoch(&self.record);
                if let Some(old) = self.past.iter().rev().find(|old| epoch(old) < now).cloned() {
                    self.shown.insert(n, old);
                }
                self.touch(n);
            }
            Fault::RecentRecord { node, back } => {
                if let Some(old) = self.past.iter().rev().nth(back).cloned() {
                    self.shown.insert(node, old);
                }
                self.touch(node);
            }
            Fault::NewRecord(n) => {
                self.shown.remove(&n);
                self.touch(n);
            }
            Fault::BadReports => (self.report_loss, self.report_late_ms) = (30, 400),
            Fault::GoodReports => (self.report_loss, self.report_late_ms) = (0, 0),
            Fault::BadRaft => self.raft.set_weather(20, 60),
            Fault::GoodRaft => self.raft.set_weather(0, 0),
            Fault::LoseQuorum => self.raft.silence(true),
            Fault::RegainQuorum => self.raft.silence(false),
            Fault::KillControllerIn(phase) => self.traps.controller = Some(phase),
            Fault::KillLeaderIn(phase) => self.traps.leader = Some((phase, self.cluster().map(|c| c.epoch))),
            Fault::KillInStep { step, power } => self.traps.step = Some((step, power)),
            Fault::LosePowerAtPromise => self.traps.promise = true,
            Fault::Switchover(to) => {
                let operation = self.next_operation();
                self.request(ClusterChange::RequestSwitchover { operation, to: member_id(to) });
            }
            Fault::Restart => {
                let operation = self.next_operation();
                self.request(ClusterChange::RequestRestart { operation });
            }
            Fault::ChangeCascade(cascade) => {
                let operation = self.next_operation();
                if let Some(mut spec) = self.cluster().map(|cluster| cluster.spec.clone()) {
                    spec.cascade = cascade;
                    self.request(ClusterChange::UpdateSpec {
                        operation,
                        spec: Box::new(spec),
                        consumer_password: None,
                    });
                }
            }
            Fault::ChangeSpec { needed, durability } => {
                let operation = self.next_operation();
                if let Some(mut spec) = self.cluster().map(|cluster| cluster.spec.clone()) {
                    spec.sync_replicas = (durability != Durability::Asynchronous).then_some(needed);
                    spec.durability = durability;
                    self.request(ClusterChange::UpdateSpec {
                        operation,
                        spec: Box::new(spec),
                        consumer_password: None,
                    });
                }
            }
        }
    }

    /// What a cut has held up arrives after all, as TCP repeats it.
    pub(crate) fn resend_stalled(&mut self) {
        for (from, to, connection, message) in std::mem::take(&mut self.stalled) {
            if self.reaches(from, to) && !self.cut_postgres.contains(&(from, to)) {
                // Before anything of that connection that is on its way still.
                self.at(self.now, Event::Wire { from, to, connection, message });
            } else {
                self.stalled.push((from, to, connection, message));
            }
        }
    }

    /// Every fault ends.
    pub fn calm(&mut self) {
        self.say("calm      every fault ends");
        self.traps = Traps::default();
        self.forget_faults();
        self.cut_postgres.clear();
        self.shown.clear();
        self.inflict_quietly(Fault::GoodReports);
        self.inflict_quietly(Fault::GoodRaft);
        self.inflict_quietly(Fault::RegainQuorum);
        for (a, b) in self.cut.clone() {
            self.inflict_quietly(Fault::Join(a, b));
        }
        self.resend_stalled();
        for n in 0..self.machines.len() {
            self.inflict_quietly(Fault::NormalDisk(n));
            self.inflict_quietly(Fault::FreeDisk(n));
            self.inflict_quietly(Fault::FreePool(n));
            self.inflict_quietly(Fault::TrueClock(n));
            self.inflict_quietly(Fault::ResumePostgres(n));
            self.thaw(n);
            self.machines[n].powered = true;
            self.start_daemon(n);
        }
    }
    fn inflict_quietly(&mut self, fault: Fault) {
        let length = self.transcript.len();
        self.inflict(fault);
        self.transcript.truncate(length);
    }
}
