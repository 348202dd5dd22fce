//! The course of faults of one round, drawn from the seed.

use super::{Fault, Phase};
use crate::world::{Event, World};
use pgstead_types::spec::{Cascade, Durability};
use pgstead_types::{Step, Tick};
use std::time::Duration;

/// What a round can bring: a fault with its end, or a few together. The number is how often, relative to the others.
#[derive(Clone, Copy)]
enum Draw {
    Daemon,
    DaemonAndOldRecord,
    DaemonInStep,
    Node,
    Postmaster,
    Guard,
    Hang,
    Freeze,
    Direction,
    CutOff,
    Flap,
    Replication,
    SlowDisk,
    FullDisk,
    Clocks,
    Reports,
    Raft,
    /// For as long as a lease lasts, or a few.
    Quorum,
    Data,
    /// A page of one member turns bad.
    Corruption,
    /// A standby is away, and the log that it lacks goes.
    Log,
    ControllerInPhase,
    /// The leader and a standby at the same instant: what they alone had acknowledged must be waited for.
    LeaderAndStandby,
    /// The next leader dies on its way, too.
    LeaderThenNext,
    /// As before, and a standby is away: the next leader's set is small.
    LeaderThenNextWhileOneIsAway,
    /// A standby's log is written and not synced when it promises, and then its power goes.
    PromiseThenPower,
    Switchover,
    Restart,
    Spec,
}

const WEIGHTS: &[(u64, Draw)] = &[
    (4, Draw::Daemon),
    (4, Draw::DaemonAndOldRecord),
    (6, Draw::DaemonInStep),
    (9, Draw::Node),
    (8, Draw::Postmaster),
    (4, Draw::Guard),
    (5, Draw::Hang),
    (7, Draw::Freeze),
    (5, Draw::Direction),
    (5, Draw::CutOff),
    (4, Draw::Flap),
    (8, Draw::Replication),
    (5, Draw::SlowDisk),
    (5, Draw::FullDisk),
    (5, Draw::Clocks),
    (4, Draw::Reports),
    (4, Draw::Raft),
    (5, Draw::Quorum),
    (6, Draw::Data),
    (5, Draw::Corruption),
    (5, Draw::Log),
    (5, Draw::ControllerInPhase),
    (9, Draw::LeaderAndStandby),
    (7, Draw::LeaderThenNext),
    (7, Draw::LeaderThenNextWhileOneIsAway),
    (5, Draw::PromiseThenPower),
    (6, Draw::Switchover),
    (4, Draw::Restart),
    (12, Draw::Spec),
];

/// When it begins and ends.
#[derive(Clone, Copy)]
struct Span {
    at: Tick,
    until: Tick,
}

impl World {
    /// One to three draws within a few seconds, each with its end.
    pub fn draw_faults(&mut self, settled: bool) {
        let count = if self.rng.chance(40) { 1 } else { 2 + self.rng.below(2) };
        // A settled cluster may have a corrupted leader, where only a person has another one lead.
        let mut data = settled && self.members > 1 && !self.has_corrupted();
        let mut log = false;
        for _ in 0..count {
            let draw = self.draw();
            match draw {
                // More than k copies are never taken away: one, and only where everyone has everything.
                // Nor is the log beside it, where the next one would have to be copied from corrupted data.
                Draw::Corruption if log => self.draw_fault(Draw::Postmaster),
                Draw::Log if self.has_corrupted() => self.draw_fault(Draw::Postmaster),
                Draw::Data | Draw::Corruption if !data => self.draw_fault(Draw::Postmaster),
                Draw::Data => {
                    data = false;
                    let whose = self.rng.below(self.members as u64) as usize;
                    self.inflict(Fault::LoseData(whose));
                }
                // It counts as one taken away: it is never copied from.
                Draw::Corruption => {
                    data = false;
                    let whose = self.rng.below(self.members as u64) as usize;
                    self.inflict(Fault::Corrupt(whose));
                }
                other => {
                    log |= matches!(other, Draw::Log);
                    self.draw_fault(other);
                }
            }
        }
        if self.members == 3 && self.later.chance(20) {
            self.draw_unfit_holder();
        }
        if self.members == 3 && self.later.chance(10) {
            self.draw_long_old_log();
        }
        if self.members > 1 && self.later.chance(8) {
            self.draw_leaders_in_a_row();
        }
        if self.later.chance(12) {
            self.draw_full_pools();
        }
        if self.later.chance(10) {
            self.draw_rollback();
        }
    }

    fn has_corrupted(&self) -> bool {
        self.machines.iter().any(|machine| machine.data().is_some_and(|data| data.corrupted))
    }

    /// One standby alone gets what the leader writes last; then the leader goes, and that standby's disk is full.
    fn draw_unfit_holder(&mut self) {
        let leader = self.leader().unwrap_or(0);
        let holder = (leader + 1 + self.later.below(2) as usize) % 3;
        let behind = 3 - leader - holder;
        let at = self.now + self.later.ms(500, 3000);
        let early = self.later.ms(50, 2500);
        let cut = Span {
            at: Tick::from_millis(at.as_millis().saturating_sub(early.as_millis() as u64)).max(self.now),
            until: at,
        };
        self.both(cut, Fault::CutPostgres(leader, behind), Fault::JoinPostgres(leader, behind));
        let gone = Span { at, until: at + self.later.ms(2000, 20_000) };
        self.both(gone, Fault::KillNode { node: leader, heard: true }, Fault::StartNode(leader));
        let full = Span { at, until: at + self.later.ms(3000, 20_000) };
        self.both(full, Fault::FillDisk(holder), Fault::FreeDisk(holder));
        // And the one that gives, or the one that takes, dies on the way.
        if self.later.chance(30) {
            let node = if self.later.chance(50) { holder } else { behind };
            let (soon, back) = (self.later.ms(50, 1500), self.later.ms(100, 3000));
            self.at(at + soon, Event::Fault(Fault::KillDaemon(node)));
            self.at(at + soon + back, Event::Fault(Fault::StartDaemon(node)));
        }
    }

    /// The leader dies with much log that nobody else has, another one leads and has it acknowledged what clients write,
    /// and dies as the first comes back: of those that are left then, the older log is the longer one.
    fn draw_long_old_log(&mut self) {
        let first = self.leader().unwrap_or(0);
        let at = self.now + self.later.ms(500, 3000);
        let soon = self.later.ms(1, 12);
        self.at(at, Event::Fault(Fault::WriteBulk(first)));
        let back = at + self.later.ms(1200, 4000);
        self.both(
            Span { at: at + soon, until: back },
            Fault::KillNode { node: first, heard: true },
            Fault::StartNode(first),
        );
        let next = back + self.later.ms(0, 300);
        self.at(next, Event::Fault(Fault::KillWhoLeads));
    }

    /// One leader after another ends before its epoch is confirmed: a standby is away for replication, so that none is soon.
    fn draw_leaders_in_a_row(&mut self) {
        let first = self.leader().unwrap_or(0);
        let away = self.later.below(self.members as u64) as usize;
        let at = self.now + self.later.ms(500, 3000);
        let until = at + self.later.ms(2000, 9000);
        for other in (0..self.members).filter(|other| *other != away) {
            self.both(Span { at, until }, Fault::CutPostgres(away, other), Fault::JoinPostgres(away, other));
        }
        let back = at + self.later.ms(300, 4000);
        self.both(Span { at, until: back }, Fault::KillNode { node: first, heard: true }, Fault::StartNode(first));
        let mut next = at;
        for _ in 0..2 + self.later.below(2) {
            self.at(next, Event::Fault(Fault::KillLeaderIn(Phase::Promoted)));
            next = next + self.later.ms(400, 3000);
        }
    }

    /// Pools fill one after the other, some to the brim; the last ones may leave nobody to lead with room.
    fn draw_full_pools(&mut self) {
        let all = self.members as u64;
        let (first, count) = (self.later.below(all), 1 + self.later.below(all));
        let mut at = self.now + self.later.ms(100, 2000);
        let until = at + self.later.ms(3000, 15_000);
        for node in (first..first + count).map(|n| (n % all) as usize) {
            self.both(Span { at, until }, Fault::FillPool { node, brimming: false }, Fault::FreePool(node));
            if self.later.chance(40) {
                let soon = at + self.later.ms(100, 2000);
                self.at(soon.min(until), Event::Fault(Fault::FillPool { node, brimming: true }));
                self.at(until, Event::Fault(Fault::FreePool(node)));
            }
            at = (at + self.later.ms(0, 3000)).min(until);
        }
    }

    /// With luck the leader's daemon comes back with a record from before, once another cluster has the place.
    fn draw_rollback(&mut self) {
        let (at, kept) = (self.now + self.later.ms(0, 3000), self.later.ms(0, 12_000));
        self.both(Span { at, until: at + kept }, Fault::RollBack, Fault::KeepAsItIs);
        if self.later.chance(60) {
            let node = self.later.below(self.members as u64) as usize;
            let killed = at + self.later.ms(100, 1500);
            let shown = Span { at: killed + self.later.ms(50, 500), until: at + kept.max(Duration::from_secs(3)) };
            let back = 1 + self.later.below(4) as usize;
            self.at(killed, Event::Fault(Fault::KillDaemon(node)));
            self.both(shown, Fault::RecentRecord { node, back }, Fault::NewRecord(node));
            self.at(shown.at, Event::Fault(Fault::StartDaemon(node)));
        }
    }

    fn draw(&mut self) -> Draw {
        let mut at = self.rng.below(WEIGHTS.iter().map(|(weight, _)| weight).sum());
        for (weight, draw) in WEIGHTS {
            match at.checked_sub(*weight) {
                Some(rest) => at = rest,
                None => return *draw,
            }
        }
        Draw::Postmaster
    }

    fn both(&mut self, span: Span, fault: Fault, end: Fault) {
        self.at(span.at, Event::Fault(fault));
        self.at(span.until, Event::Fault(end));
    }

    fn draw_fault(&mut self, draw: Draw) {
        let begin = self.rng.ms(0, 3000);
        let lasts = if self.rng.chance(50) { self.rng.ms(100, 3000) } else { self.rng.ms(2000, 15_000) };
        let span = Span { at: self.now + begin, until: self.now + begin + lasts };
        let nodes = self.machines.len() as u64;
        let any = self.rng.below(nodes) as usize;
        let leader = self.leader().unwrap_or(0);
        // The leader is where it hurts.
        let node = if self.rng.chance(55) { leader } else { any };
        let other = (node + 1 + self.rng.below(nodes - 1) as usize) % self.machines.len();
        let standby = (leader + 1 + self.rng.below(self.members.max(2) as u64 - 1) as usize) % self.members;
        let member = node % self.members;
        match draw {
            Draw::Daemon => self.both(span, Fault::KillDaemon(node), Fault::StartDaemon(node)),
            Draw::DaemonAndOldRecord => {
                self.both(span, Fault::KillDaemon(node), Fault::StartDaemon(node));
                let caught_up = self.rng.ms(50, 3000);
                let shown = Span { at: span.until, until: span.until + caught_up };
                let old = match self.rng.chance(50) {
                    true => Fault::OldRecord(node),
                    false => Fault::RecentRecord { node, back: 1 + self.rng.below(8) as usize },
                };
                self.both(shown, old, Fault::NewRecord(node));
            }
            Draw::DaemonInStep => {
                let step = Step::ALL[self.rng.below(Step::ALL.len() as u64) as usize];
                let power = self.rng.chance(30);
                self.at(self.now, Event::Fault(Fault::KillInStep { step, power }));
                // Something that makes for steps.
                match self.rng.below(4) {
                    0 => self.at(span.at, Event::Fault(Fault::KillPostmaster(member))),
                    1 => self.at(span.at, Event::Fault(Fault::Switchover(standby))),
                    2 => self.at(span.at, Event::Fault(Fault::Restart)),
                    _ => self.both(span, Fault::KillNode { node: leader, heard: true }, Fault::StartNode(leader)),
                }
            }
            Draw::Node => {
                let heard = self.rng.chance(60);
                self.both(span, Fault::KillNode { node, heard }, Fault::StartNode(node));
            }
            Draw::Log => {
                let heard = self.rng.chance(60);
                self.both(span, Fault::KillNode { node: standby, heard }, Fault::StartNode(standby));
                self.at(span.until, Event::Fault(Fault::RemoveLog(leader)));
            }
            Draw::Postmaster | Draw::Data | Draw::Corruption => {
                self.at(span.at, Event::Fault(Fault::KillPostmaster(node)))
            }
            Draw::Guard => self.at(span.at, Event::Fault(Fault::KillGuard(member))),
            Draw::Hang => {
                // The longer ones outlast the controller's patience with it.
                let more = if span.until.since(span.at) > Duration::from_secs(3) {
                    Duration::from_secs(12)
                } else {
                    Duration::ZERO
                };
                let span = Span { until: span.until + more, ..span };
                self.both(span, Fault::HangPostgres(member), Fault::ResumePostgres(member));
            }
            Draw::Freeze => self.both(span, Fault::Freeze(node), Fault::Thaw(node)),
            Draw::Direction => {
                self.both(span, Fault::Cut(node, other), Fault::Join(node, other));
                if self.rng.chance(60) {
                    self.both(span, Fault::Cut(other, node), Fault::Join(other, node));
                }
            }
            Draw::CutOff => self.both(span, Fault::CutOff(node), Fault::JoinNode(node)),
            Draw::Flap => {
                let more = 2 + self.rng.below(5) as u8;
                self.at(span.at, Event::Fault(Fault::Flap { between: (node, other), more }));
                if self.rng.chance(40) && other != leader {
                    self.at(span.at, Event::Fault(Fault::Flap { between: (leader, other), more }));
                }
            }
            Draw::Replication => {
                // The leader mostly, and for longer than it is left alone with that.
                let from = if self.rng.chance(85) { leader } else { node };
                let until = if self.rng.chance(80) { span.at + self.rng.ms(7000, 16_000) } else { span.until };
                for other in (0..self.members).filter(|other| *other != from) {
                    let span = Span { until, ..span };
                    self.both(span, Fault::CutPostgres(from, other), Fault::JoinPostgres(from, other));
                }
            }
            Draw::SlowDisk => {
                self.both(span, Fault::SlowDisk(node), Fault::NormalDisk(node));
                // A standby that lags when its leader goes.
                if self.rng.chance(50) && self.members > 1 {
                    self.both(span, Fault::SlowDisk(standby), Fault::NormalDisk(standby));
                    let within = self.rng.below(lasts.as_millis() as u64);
                    let lost = span.at + Duration::from_millis(within);
                    self.at(lost, Event::Fault(Fault::KillPostmaster(leader)));
                }
            }
            Draw::FullDisk => self.both(span, Fault::FillDisk(member), Fault::FreeDisk(member)),
            Draw::Clocks => {
                for node in 0..self.machines.len() {
                    if self.rng.chance(50) {
                        let per_mille = 600 + self.rng.below(1000) as u32;
                        self.both(span, Fault::DriftClock { node, per_mille }, Fault::TrueClock(node));
                    }
                }
                self.at(span.at, Event::Fault(Fault::DriftClock { node, per_mille: 700 }));
                self.at(span.until, Event::Fault(Fault::TrueClock(node)));
            }
            Draw::Reports => self.both(span, Fault::BadReports, Fault::GoodReports),
            Draw::Raft => self.both(span, Fault::BadRaft, Fault::GoodRaft),
            Draw::Quorum => {
                let until = span.at + self.rng.ms(3000, 40_000);
                self.both(Span { until, ..span }, Fault::LoseQuorum, Fault::RegainQuorum);
                // And what that finds.
                if self.rng.chance(30) {
                    self.at(span.until, Event::Fault(Fault::KillPostmaster(leader)));
                }
            }
            Draw::ControllerInPhase => {
                let phase = Phase::ALL[self.rng.below(4) as usize];
                self.at(span.at, Event::Fault(Fault::KillControllerIn(phase)));
                self.at(span.at, Event::Fault(Fault::KillPostmaster(leader)));
            }
            Draw::LeaderAndStandby => {
                let (heard, back) = (self.rng.chance(60), self.rng.ms(1000, 15_000));
                self.both(span, Fault::KillNode { node: leader, heard }, Fault::StartNode(leader));
                if self.members > 1 {
                    self.at(span.at, Event::Fault(Fault::KillDaemon(standby)));
                    self.at(span.at, Event::Fault(Fault::KillPostmaster(standby)));
                    self.at(span.at + back, Event::Fault(Fault::StartDaemon(standby)));
                }
            }
            Draw::LeaderThenNext => {
                let phase = Phase::ALL[1 + self.rng.below(3) as usize];
                self.both(span, Fault::KillNode { node: leader, heard: true }, Fault::StartNode(leader));
                self.at(span.at, Event::Fault(Fault::KillLeaderIn(phase)));
            }
            Draw::LeaderThenNextWhileOneIsAway => {
                let phase = Phase::ALL[1 + self.rng.below(3) as usize];
                self.both(span, Fault::KillNode { node: leader, heard: true }, Fault::StartNode(leader));
                self.at(span.at, Event::Fault(Fault::KillLeaderIn(phase)));
                // Away for replication only: it promises, and has not what the next leader has.
                if self.members > 1 {
                    for other in (0..self.members).filter(|other| *other != standby) {
                        let early = self.rng.below(400);
                        let away = Span { at: self.now + begin.saturating_sub(Duration::from_millis(early)), ..span };
                        self.both(away, Fault::CutPostgres(standby, other), Fault::JoinPostgres(standby, other));
                    }
                }
            }
            Draw::PromiseThenPower => {
                for standby in (0..self.members).filter(|n| *n != leader) {
                    if self.rng.chance(60) {
                        self.both(span, Fault::SlowVolume(standby), Fault::NormalDisk(standby));
                    }
                }
                let later = self.rng.ms(20, 400);
                self.at(span.at + later, Event::Fault(Fault::LosePowerAtPromise));
                self.at(span.at + later, Event::Fault(Fault::KillNode { node: leader, heard: true }));
                self.at(span.until + later, Event::Fault(Fault::StartNode(leader)));
            }
            Draw::Switchover if self.members > 1 => {
                let to = self.rng.below(self.members as u64) as usize;
                self.at(span.at, Event::Fault(Fault::Switchover(to)));
            }
            Draw::Spec if self.members > 1 => {
                // Some follow each other faster than a change is carried out.
                let mut at = span.at;
                for _ in 0..if self.rng.chance(50) { 1 } else { 2 + self.rng.below(3) } {
                    let needed = 1 + self.rng.below(self.members as u64 - 1) as u8;
                    // Where a course may become asynchronous, its clocks are held to what a lease allows for.
                    let durability = match self.rng.below(10) {
                        0..=2 if self.asynchronous => Durability::Asynchronous,
                        0..=4 => Durability::Strict,
                        _ => Durability::Available,
                    };
                    self.at(at, Event::Fault(Fault::ChangeSpec { needed, durability }));
                    at = at + self.rng.ms(1, 400);
                }
                // Only where the course is about that: others stay as they were.
                if self.cluster().is_some_and(|cluster| cluster.spec.cascade == Cascade::Zone) {
                    let again = self.rng.ms(10, 5000);
                    self.at(at, Event::Fault(Fault::ChangeCascade(Cascade::None)));
                    self.at(at + again, Event::Fault(Fault::ChangeCascade(Cascade::Zone)));
                }
                match self.rng.below(4) {
                    0 => self.at(at, Event::Fault(Fault::KillPostmaster(leader))),
                    1 => self.both(span, Fault::BadReports, Fault::GoodReports),
                    _ => {}
                }
                // Whoever carries it out may die on the way.
                if self.rng.chance(50) {
                    let (soon, back) = (self.rng.ms(1, 300), self.rng.ms(100, 5000));
                    let node = if self.rng.chance(50) { leader } else { self.rng.below(self.members as u64) as usize };
                    self.at(span.at + soon, Event::Fault(Fault::KillDaemon(node)));
                    let started = span.at + soon + back;
                    self.at(started, Event::Fault(Fault::StartDaemon(node)));
                    if self.rng.chance(50) {
                        let (old, caught_up) = (1 + self.rng.below(6) as usize, self.rng.ms(50, 3000));
                        self.at(started, Event::Fault(Fault::RecentRecord { node, back: old }));
                        self.at(started + caught_up, Event::Fault(Fault::NewRecord(node)));
                    }
                }
            }
            Draw::Switchover | Draw::Restart | Draw::Spec => self.at(span.at, Event::Fault(Fault::Restart)),
        }
    }
}
