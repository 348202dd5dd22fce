//! One promiser takes log that only another one holds, over the way between their daemons.

use crate::daemon::{Part, STOP_LIMIT};
use crate::machine::{NotedFetch, Work};
use crate::world::{CLUSTER, World, member_id};
use pgstead_types::{Epoch, MemberId, Position};
use std::time::Duration;

impl World {
    pub(crate) fn fetch_log(&mut self, n: usize, work: &Work, epoch: Epoch, from: MemberId, upto: Position) -> Part {
        let (quick, took) = (self.later.ms(1, 10), self.later.ms(5, 600));
        match work.step {
            0 => {
                let notes = &mut self.machines[n].disk.notes;
                if notes.promised != epoch {
                    return Part::Failed(format!("epoch {} is promised", notes.promised));
                }
                let begun = notes.fetch.filter(|fetch| fetch.epoch == epoch).map(|fetch| fetch.own);
                let answered = notes.answer.filter(|answer| answer.epoch == epoch).map(|answer| answer.position);
                let Some(own) = begun.or(answered).filter(|own| own.timeline == upto.timeline) else {
                    notes.fetch = Some(NotedFetch { epoch, own: Position::default(), done: true });
                    return Part::Done;
                };
                notes.fetch = Some(NotedFetch { epoch, own, done: false });
                notes.answer = None;
                self.stop_cleanly(n);
                Part::Next(quick)
            }
            1 if self.machines[n].run.is_none() => Part::Next(took),
            1 if self.now.since(work.began) > STOP_LIMIT => {
                self.end_processes(n);
                Part::Again(quick)
            }
            1 => Part::Again(Duration::from_millis(20)),
            _ => {
                if self.take_log(n, epoch, from, upto) {
                    self.count("log fetched from another promiser");
                }
                if let Some(fetch) = &mut self.machines[n].disk.notes.fetch {
                    fetch.done = true;
                }
                Part::Done
            }
        }
    }

    /// Whether anything came. A connection that breaks in the midst leaves a part.
    fn take_log(&mut self, n: usize, epoch: Epoch, from: MemberId, upto: Position) -> bool {
        let broken = self.later.chance(15);
        let Some(holder) = (0..self.members).find(|m| member_id(*m) == from) else { return false };
        let orders = |world: &World, m: usize| {
            let record = world.record_of(m);
            record.clusters.get(&CLUSTER).and_then(|cluster| cluster.fetch()).is_some_and(|fetch| fetch.epoch == epoch)
        };
        let gives = self.machines[holder].daemon.is_some() && !self.machines[holder].frozen && orders(self, holder);
        // An election that has ended here ends the fetch.
        if !gives || !orders(self, n) || !self.reaches(n, holder) || !self.reaches(holder, n) || self.machines[n].full {
            return false;
        }
        let Some(source) = self.machines[holder].data().cloned() else { return false };
        let Some(data) = self.machines[n].disk.data.as_mut() else { return false };
        data.wal.truncate(data.flushed);
        if source.removed > data.flushed {
            return false;
        }
        if !source.wal.begins_with(&data.wal, data.flushed) {
            self.checks.break_rule(format!("app-{} fetches log that does not continue its own", n + 1));
            return false;
        }
        let upto = (0..=source.flushed).rfind(|count| source.wal.lsn(*count) <= upto.lsn).unwrap_or(0);
        let upto = if broken { data.flushed + upto.saturating_sub(data.flushed) / 2 } else { upto };
        let Some(more) = source.wal.records().get(data.flushed..upto).filter(|more| !more.is_empty()) else {
            return false;
        };
        data.wal.extend(more);
        data.flushed = data.wal.len();
        true
    }
}
