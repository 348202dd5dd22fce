//! Faults that wait for their moment: a phase of the record, a step of a daemon, the answer to a promise.

use super::{Fault, FaultKind, Phase};
use crate::world::{Event, World};
use pgstead_types::{Epoch, Step};

#[derive(Default)]
pub struct Traps {
    /// The controller is killed when the record next says this.
    pub controller: Option<Phase>,
    /// The leader's node is killed when the record says this in a later epoch than that.
    pub leader: Option<(Phase, Option<Epoch>)>,
    /// Who next takes this step dies inside it; its node's power goes with `true`.
    pub step: Option<(Step, bool)>,
    /// Who next answers a promise loses its power.
    pub promise: bool,
    /// One was spared already.
    pub let_off: bool,
}

impl World {
    /// The record has changed.
    pub fn spring_traps(&mut self) {
        if let (Some((wanted, after)), Some(cluster)) = (self.traps.leader, self.cluster())
            && Phase::of(&cluster.leadership) == wanted
            && Some(cluster.epoch) > after
            && let Some(node) = self.leader()
        {
            self.traps.leader = None;
            self.count_fault(FaultKind::LeaderKilledInPhase);
            self.inflict(Fault::KillNode { node, heard: true });
            let back = self.rng.ms(500, 15_000);
            self.after(back, Event::Fault(Fault::StartNode(node)));
        }
        let phase = self.cluster().map(|cluster| Phase::of(&cluster.leadership));
        if self.traps.controller.is_some() && self.traps.controller == phase {
            self.traps.controller = None;
            if let Some(n) = self.controller() {
                self.count_fault(FaultKind::ControllerKilledInPhase);
                self.inflict(Fault::KillDaemon(n));
                let back = self.rng.ms(500, 6000);
                self.after(back, Event::Fault(Fault::StartDaemon(n)));
            }
        }
    }

    /// A part of `step` has been done at `n`; whether its daemon died by that.
    pub(crate) fn spring_step_trap(&mut self, n: usize, step: Step) -> bool {
        let Some((_, power)) = self.traps.step.filter(|(wanted, _)| *wanted == step) else { return false };
        self.traps.step = None;
        self.count_fault(FaultKind::DaemonKilledInStep);
        let back = self.rng.ms(100, 4000);
        let (fault, end) = if power {
            (Fault::KillNode { node: n, heard: false }, Fault::StartNode(n))
        } else {
            (Fault::KillDaemon(n), Fault::StartDaemon(n))
        };
        self.inflict(fault);
        self.after(back, Event::Fault(end));
        true
    }

    /// `n` has answered a promise. The power goes after the report that says so, and comes back before anyone gives it up.
    /// One that has nothing to lose by it is let off, once.
    pub(crate) fn spring_promise_trap(&mut self, n: usize) {
        let has_unsynced = self.machines[n].data().is_some_and(|data| data.flushed < data.wal.len());
        if self.traps.promise && !has_unsynced && !std::mem::replace(&mut self.traps.let_off, true) {
            return;
        }
        self.traps.let_off = false;
        if std::mem::take(&mut self.traps.promise) {
            self.count_fault(FaultKind::PowerLostAtPromise);
            let (gone, back) = (self.rng.ms(15, 60), self.rng.ms(100, 1200));
            self.after(gone, Event::Fault(Fault::KillNode { node: n, heard: false }));
            self.after(gone + back, Event::Fault(Fault::StartNode(n)));
        }
    }
}
