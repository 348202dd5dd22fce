//! What goes wrong, and the ends of it. A course of faults is drawn from the seed; `calm` ends all of them.

use crate::world::{Event, World, member_id};
use pgstead_types::record::{ClusterChange, Leadership};

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
    Freeze(usize),
    Thaw(usize),
    /// One direction.
    Cut(usize, usize),
    Join(usize, usize),
    /// Replication between two is cut both ways, and their daemons still talk.
    CutPostgres(usize, usize),
    JoinPostgres(usize, usize),
    /// The node's agent is shown a record that was true a while ago, as after a restart that replays the log.
    OldRecord(usize),
    NewRecord(usize),
    SlowDisk(usize),
    NormalDisk(usize),
    LoseData(usize),
    BadReports,
    GoodReports,
    /// The controller's daemon dies as soon as the record says that phase.
    KillControllerIn(Phase),
    /// The node of the chosen leader dies as soon as the record says that phase.
    KillLeaderIn(Phase),
    Switchover(usize),
    Restart,
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
    fn name(self) -> &'static str {
        match self {
            Fault::KillDaemon(_) => "daemon killed",
            Fault::StartDaemon(_) => "daemon started",
            Fault::KillNode { heard: true, .. } => "node killed",
            Fault::KillNode { heard: false, .. } => "node without power",
            Fault::StartNode(_) => "node started",
            Fault::KillPostmaster(_) => "postmaster killed",
            Fault::Freeze(_) => "node frozen",
            Fault::Thaw(_) => "node thawed",
            Fault::Cut(..) => "direction cut",
            Fault::Join(..) => "direction joined",
            Fault::CutPostgres(..) => "replication cut",
            Fault::JoinPostgres(..) => "replication joined",
            Fault::OldRecord(_) => "older record shown",
            Fault::NewRecord(_) => "newest record shown",
            Fault::SlowDisk(_) => "disk slow",
            Fault::NormalDisk(_) => "disk normal",
            Fault::LoseData(_) => "data lost",
            Fault::BadReports => "reports lost, doubled and late",
            Fault::GoodReports => "reports good",
            Fault::KillControllerIn(_) => "controller to be killed in a phase",
            Fault::KillLeaderIn(_) => "leader's node to be killed in a phase",
            Fault::Switchover(_) => "switchover asked for",
            Fault::Restart => "restart asked for",
        }
    }
    fn is_end(self) -> bool {
        matches!(
            self,
            Fault::StartDaemon(_)
                | Fault::StartNode(_)
                | Fault::Thaw(_)
                | Fault::Join(..)
                | Fault::JoinPostgres(..)
                | Fault::NewRecord(_)
                | Fault::NormalDisk(_)
                | Fault::GoodReports
        )
    }
}

impl World {
    pub fn inflict(&mut self, fault: Fault) {
        if !fault.is_end() {
            self.count(format!("fault: {}", fault.name()));
        }
        let name = |n: usize| format!("n{}", n + 1);
        let whom = match fault {
            Fault::KillDaemon(n)
            | Fault::StartDaemon(n)
            | Fault::KillNode { node: n, .. }
            | Fault::StartNode(n)
            | Fault::KillPostmaster(n)
            | Fault::Freeze(n)
            | Fault::Thaw(n)
            | Fault::OldRecord(n)
            | Fault::NewRecord(n)
            | Fault::SlowDisk(n)
            | Fault::NormalDisk(n)
            | Fault::LoseData(n) => name(n),
            Fault::Cut(a, b) | Fault::Join(a, b) | Fault::CutPostgres(a, b) | Fault::JoinPostgres(a, b) => {
                format!("{} to {}", name(a), name(b))
            }
            Fault::KillControllerIn(phase) | Fault::KillLeaderIn(phase) => format!("{phase:?}"),
            Fault::Switchover(n) => World::member_name(n),
            Fault::BadReports | Fault::GoodReports | Fault::Restart => String::new(),
        };
        self.say(format!("fault     {} {whom}", fault.name()).trim_end());
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
            Fault::SlowDisk(n) => self.machines[n].slow = 40,
            Fault::NormalDisk(n) => self.machines[n].slow = 1,
            Fault::LoseData(n) => {
                self.break_waits(n);
                self.end_processes(n);
                let disk = &mut self.machines[n].disk;
                disk.volume = false;
                disk.data = None;
                disk.aside = None;
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
            Fault::NewRecord(n) => {
                self.shown.remove(&n);
                self.touch(n);
            }
            Fault::BadReports => (self.report_loss, self.report_late_ms) = (30, 400),
            Fault::GoodReports => (self.report_loss, self.report_late_ms) = (0, 0),
            Fault::KillControllerIn(phase) => self.checks.trap = Some(phase),
            Fault::KillLeaderIn(phase) => self.checks.leader_trap = Some((phase, self.cluster().map(|c| c.epoch))),
            Fault::Switchover(to) => {
                let operation = self.next_operation();
                self.request(ClusterChange::RequestSwitchover { operation, to: member_id(to) });
            }
            Fault::Restart => {
                let operation = self.next_operation();
                self.request(ClusterChange::RequestRestart { operation });
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
        self.checks.trap = None;
        self.checks.leader_trap = None;
        self.forget_faults();
        self.cut_postgres.clear();
        self.shown.clear();
        self.inflict_quietly(Fault::GoodReports);
        for (a, b) in self.cut.clone() {
            self.inflict_quietly(Fault::Join(a, b));
        }
        self.resend_stalled();
        for n in 0..self.machines.len() {
            self.inflict_quietly(Fault::NormalDisk(n));
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

    /// One to three faults within a few seconds, each with its end.
    pub fn draw_faults(&mut self, settled: bool) {
        let count = if self.rng.chance(40) { 1 } else { 2 + self.rng.below(2) };
        let mut lost = false;
        for _ in 0..count {
            let begin = self.rng.ms(0, 3000);
            let lasts = if self.rng.chance(50) { self.rng.ms(100, 3000) } else { self.rng.ms(2000, 15_000) };
            let nodes = self.machines.len() as u64;
            let any = self.rng.below(nodes) as usize;
            let leader = self.leader().unwrap_or(0);
            // The leader is where it hurts.
            let node = if self.rng.chance(55) { leader } else { any };
            let other = (node + 1 + self.rng.below(nodes - 1) as usize) % self.machines.len();
            let (at, until) = (self.now + begin, self.now + begin + lasts);
            let both = |world: &mut World, fault: Fault, end: Fault| {
                world.at(at, Event::Fault(fault));
                world.at(until, Event::Fault(end));
            };
            match self.rng.below(20) {
                0 => both(self, Fault::KillDaemon(node), Fault::StartDaemon(node)),
                1 => {
                    both(self, Fault::KillDaemon(node), Fault::StartDaemon(node));
                    self.at(until, Event::Fault(Fault::OldRecord(node)));
                    let caught_up = self.rng.ms(50, 3000);
                    self.at(until + caught_up, Event::Fault(Fault::NewRecord(node)));
                }
                2 | 3 => {
                    let heard = self.rng.chance(60);
                    both(self, Fault::KillNode { node, heard }, Fault::StartNode(node));
                }
                4 | 5 => self.at(at, Event::Fault(Fault::KillPostmaster(node))),
                6 | 7 => both(self, Fault::Freeze(node), Fault::Thaw(node)),
                8 => {
                    both(self, Fault::Cut(node, other), Fault::Join(node, other));
                    if self.rng.chance(60) {
                        both(self, Fault::Cut(other, node), Fault::Join(other, node));
                    }
                }
                9 => {
                    for other in (0..self.machines.len()).filter(|other| *other != node) {
                        both(self, Fault::Cut(node, other), Fault::Join(node, other));
                        both(self, Fault::Cut(other, node), Fault::Join(other, node));
                    }
                }
                10 => both(self, Fault::SlowDisk(node), Fault::NormalDisk(node)),
                // More than k copies are never taken away: one, and only where everyone has everything.
                11 if settled && !lost && self.members > 1 => {
                    lost = true;
                    let whose = self.rng.below(self.members as u64) as usize;
                    self.inflict(Fault::LoseData(whose));
                }
                // Two at the same instant: what they alone had acknowledged must be waited for.
                16 | 17 if self.members > 2 => {
                    let standby = (leader + 1 + self.rng.below(self.members as u64 - 1) as usize) % self.members;
                    let (heard, back) = (self.rng.chance(60), self.rng.ms(1000, 15_000));
                    both(self, Fault::KillNode { node: leader, heard }, Fault::StartNode(leader));
                    self.at(at, Event::Fault(Fault::KillDaemon(standby)));
                    self.at(at, Event::Fault(Fault::KillPostmaster(standby)));
                    self.at(at + back, Event::Fault(Fault::StartDaemon(standby)));
                }
                // The next leader dies on its way, too.
                18 | 19 if self.members > 2 => {
                    let phase = Phase::ALL[1 + self.rng.below(3) as usize];
                    both(self, Fault::KillNode { node: leader, heard: true }, Fault::StartNode(leader));
                    self.at(at, Event::Fault(Fault::KillLeaderIn(phase)));
                }
                12 => both(self, Fault::BadReports, Fault::GoodReports),
                13 => {
                    for other in (0..self.members).filter(|other| *other != node) {
                        both(self, Fault::CutPostgres(node, other), Fault::JoinPostgres(node, other));
                    }
                }
                14 => {
                    let phase = Phase::ALL[self.rng.below(4) as usize];
                    self.at(at, Event::Fault(Fault::KillControllerIn(phase)));
                    self.at(at, Event::Fault(Fault::KillPostmaster(leader)));
                }
                _ if self.members > 1 && self.rng.chance(70) => {
                    let to = self.rng.below(self.members as u64) as usize;
                    self.at(at, Event::Fault(Fault::Switchover(to)));
                }
                _ => self.at(at, Event::Fault(Fault::Restart)),
            }
        }
    }
}
