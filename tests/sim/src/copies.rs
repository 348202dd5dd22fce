//! How a member comes by its data: made, copied from the leader, or rewound to a prefix of its history.

use crate::daemon::Part;
use crate::faults::FaultKind;
use crate::machine::{Data, Work};
use crate::wal::Wal;
use crate::world::{World, member_id};
use pgstead_types::{Epoch, Incarnation, MemberId};

/// So much of the log goes along with a copy.
const COPIED_LOG: usize = 20;

impl World {
    pub(crate) fn init_database(&mut self, n: usize, step: usize, incarnation: Incarnation) -> Part {
        let took = self.rng.ms(100, 400);
        let disk = &mut self.machines[n].disk;
        let partial = Data { complete: step > 0, wal: Wal::made(), flushed: 1, ..Data::begun(incarnation) };
        if disk.data.as_ref().is_some_and(|data| data.complete) {
            return Part::Done;
        }
        disk.data = Some(partial);
        if step == 0 {
            return Part::Next(took);
        }
        disk.notes.held = Some(incarnation);
        Part::Done
    }

    /// The leader of `epoch` as a source, if it runs as its primary, lets this member in, and is the one from before.
    fn source(
        &self,
        n: usize,
        work: &mut Work,
        incarnation: Incarnation,
        from: MemberId,
        epoch: Epoch,
    ) -> Option<usize> {
        let leader = (0..self.members).find(|m| member_id(*m) == from)?;
        if !self.reaches(n, leader) || !self.reaches(leader, n) || self.machines[leader].frozen {
            return None;
        }
        let run = self.machines[leader].run.as_ref()?;
        // Copies are verified; a corrupted one is none.
        let sound = self.machines[leader].data().is_some_and(|data| !data.corrupted);
        let serves = sound && run.postmaster && run.is_primary() && !run.stopping && run.serving == Some(epoch);
        let same = work.source.is_none_or(|id| id == run.id);
        work.source = Some(run.id);
        (serves && same && run.admitted.contains(&incarnation)).then_some(leader)
    }

    pub(crate) fn clone_data(
        &mut self,
        n: usize,
        work: &mut Work,
        incarnation: Incarnation,
        from: MemberId,
        epoch: Epoch,
    ) -> Part {
        let took = self.rng.ms(200, 2000);
        let Some(leader) = self.source(n, work, incarnation, from, epoch) else {
            return Part::Failed("the leader cannot be copied from now".into());
        };
        if self.machines[n].full {
            return Part::Failed("no space is left on the device".into());
        }
        if work.step == 0 {
            let given_up = |life| self.cluster().is_some_and(|cluster| cluster.is_given_up(life));
            let held = self.machines[n].data().map(|data| data.incarnation).filter(|life| given_up(*life));
            let disk = &mut self.machines[n].disk;
            disk.kept.extend(held.map(|life| life.number));
            if let Some(data) = disk.data.take().filter(|data| data.complete) {
                disk.aside = Some(data);
            }
            disk.data = Some(Data::begun(incarnation));
            return Part::Next(took);
        }
        self.become_copy(n, leader, incarnation);
        Part::Done
    }

    fn become_copy(&mut self, n: usize, leader: usize, incarnation: Incarnation) {
        let Some(source) = self.machines[leader].data().cloned() else { return };
        let copy = Data {
            complete: true,
            wal: source.wal.first(source.flushed),
            flushed: source.flushed,
            history_files: source.history_files,
            // A copy brings the log from its own checkpoint on, and no older one.
            removed: source.flushed.saturating_sub(COPIED_LOG).max(source.removed),
            ..Data::begun(incarnation)
        };
        let disk = &mut self.machines[n].disk;
        disk.data = Some(copy);
        disk.aside = None;
        disk.notes.held = Some(incarnation);
    }

    pub(crate) fn rewind(
        &mut self,
        n: usize,
        work: &mut Work,
        incarnation: Incarnation,
        from: MemberId,
        epoch: Epoch,
    ) -> Part {
        let (took, luck) = (self.rng.ms(100, 800), self.rng.below(100));
        let Some(leader) = self.source(n, work, incarnation, from, epoch) else {
            return Part::Failed("the leader cannot be rewound from now".into());
        };
        match work.step {
            0 if self.machines[n].full => Part::Failed("no space is left on the device".into()),
            0 if luck < 20 => {
                self.count_fault(FaultKind::RewindFails);
                Part::Failed("pg_rewind could not find the common checkpoint".into())
            }
            // A member that is to be rewound lies beyond the fork, by the record.
            0 if luck < 50 => {
                self.count_fault(FaultKind::RewindSaysNotRequired);
                Part::Failed("pg_rewind says that no rewind is required, and the record says that one is".into())
            }
            0 => Part::Next(took),
            1 => {
                // From here until the end the folder is neither the one nor the other.
                if let Some(data) = self.machines[n].disk.data.as_mut() {
                    data.complete = false;
                }
                Part::Next(took)
            }
            _ => {
                self.become_copy(n, leader, incarnation);
                Part::Done
            }
        }
    }
}
