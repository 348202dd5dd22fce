//! Clients that write numbered rows to whichever member takes them, and note which ones were acknowledged to them.
//! They ask every member in turn, gateway or not: only `pg_hba` and the sync set stand between them and a wrong primary.

use crate::machine::{Mode, SyncNames, Wait};
use crate::wal::What;
use crate::world::{Event, World};
use pgstead_types::Lsn;
use std::collections::BTreeSet;
use std::time::Duration;

pub struct Client {
    /// The machine that it runs on, and is cut off with; clients outside reach everything that runs.
    pub home: Option<usize>,
    pub target: usize,
    pub waiting: Option<u64>,
    pub acknowledged: BTreeSet<u64>,
    /// It writes while this is positive.
    pub to_write: u64,
}

pub enum Turn {
    Write,
    /// No answer to this row came.
    GiveUp(u64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Committed,
    Refused,
    /// The connection ended before the outcome was known.
    Broken,
}

const PATIENCE: Duration = Duration::from_millis(1500);

impl World {
    pub fn add_client(&mut self, home: Option<usize>, to_write: u64) {
        let client = self.clients.len();
        let target = home.unwrap_or(0).min(self.members - 1);
        self.clients.push(Client { home, target, waiting: None, acknowledged: BTreeSet::new(), to_write });
        self.after(Duration::from_millis(1), Event::Client { client, what: Turn::Write });
    }
    /// But for those that a recorded change of leader has left behind.
    pub fn acknowledged_rows(&self) -> impl Iterator<Item = u64> + '_ {
        let all = self.clients.iter().flat_map(|client| client.acknowledged.iter().copied());
        all.filter(|row| !self.given_up.contains(row))
    }

    fn client_reaches(&self, client: usize, member: usize) -> bool {
        self.clients[client].home.is_none_or(|home| self.reaches(home, member) && self.reaches(member, home))
    }

    pub fn on_client(&mut self, client: usize, turn: Turn) {
        match turn {
            Turn::Write => {
                if self.clients[client].to_write == 0 || self.clients[client].waiting.is_some() {
                    return;
                }
                self.row += 1;
                let row = self.row;
                let to = self.clients[client].target;
                self.clients[client].waiting = Some(row);
                let way = self.rng.ms(0, 3);
                if self.client_reaches(client, to) {
                    self.after(way, Event::ToPostgres { client, to, row });
                }
                self.after(PATIENCE, Event::Client { client, what: Turn::GiveUp(row) });
            }
            Turn::GiveUp(row) => {
                if self.clients[client].waiting == Some(row) {
                    self.try_next(client);
                }
            }
        }
    }

    fn try_next(&mut self, client: usize) {
        let members = self.members;
        let held = &mut self.clients[client];
        held.waiting = None;
        held.target = (held.target + 1) % members;
        let pause = self.rng.ms(10, 60);
        self.after(pause, Event::Client { client, what: Turn::Write });
    }

    pub fn on_answer(&mut self, client: usize, from: usize, row: u64, answer: Answer) {
        if self.clients[client].waiting != Some(row) || !self.client_reaches(client, from) {
            return;
        }
        if answer != Answer::Committed {
            return self.try_next(client);
        }
        let held = &mut self.clients[client];
        held.waiting = None;
        held.acknowledged.insert(row);
        held.to_write = held.to_write.saturating_sub(1);
        let pause = self.rng.ms(5, 80);
        self.after(pause, Event::Client { client, what: Turn::Write });
    }

    pub(crate) fn answer(&mut self, from: usize, client: usize, row: u64, answer: Answer) {
        let way = self.rng.ms(0, 3);
        self.after(way, Event::ToClient { client, from, row, answer });
    }

    /// A row arrives at a member.
    pub fn on_write(&mut self, client: usize, to: usize, row: u64) {
        if !self.machines[to].powered {
            return; // Nobody answers; the client gives up by itself.
        }
        let Some((run, data)) = self.machines[to].live() else {
            return self.answer(to, client, row, Answer::Refused);
        };
        let timeline = match run.mode {
            Mode::Primary { timeline, .. } if run.takes_writes() => timeline,
            _ => return self.answer(to, client, row, Answer::Refused),
        };
        let end = data.wal.write(timeline, What::Row(row));
        run.waits.push_back(Wait { client, row, end });
        self.flush(to);
    }

    /// Log of a transaction that never commits, where a primary takes clients.
    pub(crate) fn write_bulk(&mut self, n: usize) {
        let Some((run, data)) = self.machines[n].live() else { return };
        let Mode::Primary { timeline, .. } = run.mode else { return };
        if run.takes_writes() {
            data.wal.write(timeline, What::Bulk);
            self.flush(n);
        }
    }

    /// Ends the waits that have what they wait for. Counted per WAL sender, as Postgres does.
    pub(crate) fn release(&mut self, n: usize) {
        let Some((run, data)) = self.machines[n].live() else { return };
        let flushed = data.flushed_lsn();
        let enough = |names: &SyncNames, end: Lsn| match names {
            SyncNames::Nobody => false,
            SyncNames::Alone => true,
            SyncNames::Set(set) => {
                let have = run.senders.values().filter(|sender| {
                    sender.streaming
                        && set.members.contains(&sender.incarnation)
                        && sender.flushed.is_some_and(|at| at >= end)
                });
                have.count() >= usize::from(set.needed)
            }
        };
        let names = run.may_go_by();
        let is_done = |wait: &Wait| wait.end <= flushed && enough(&names, wait.end);
        let (done, left) = std::mem::take(&mut run.waits).into_iter().partition(is_done);
        run.waits = left;
        let _: &std::collections::VecDeque<Wait> = &done;
        let serving = run.serving;
        for wait in done {
            let newest = self.leader().filter(|leader| *leader != n).and_then(|leader| self.machines[leader].data());
            let held = newest.is_some_and(|data| data.wal.rows(data.flushed).any(|row| row == wait.row));
            self.checks.acknowledging(n, serving, wait.row, held, &self.record);
            self.answer(n, wait.client, wait.row, Answer::Committed);
        }
    }

    /// Sessions end without an answer.
    pub(crate) fn break_waits(&mut self, n: usize) {
        let waits = match self.machines[n].run.as_mut() {
            Some(run) => std::mem::take(&mut run.waits),
            None => return,
        };
        for wait in waits {
            self.answer(n, wait.client, wait.row, Answer::Broken);
        }
    }
}
