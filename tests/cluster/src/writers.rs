//! Clients that write and note what was acknowledged and when, and the check that all of it is there afterwards.

use crate::client::{Target, TargetError};
use anyhow::Context;
use pgstead_types::Tick;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_postgres::{Client, Statement};

const TABLE: &str =
    "create table if not exists written (id bigint primary key, client int, at timestamptz default now())";
const INSERT: &str = "insert into written (id, client) values ($1, $2)";
/// A client gives up on a statement after this, as an application would, and connects anew.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Errors kept for the report; a long outage repeats itself.
const ERRORS_MAX: usize = 100;

/// How hard to write.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub clients: usize,
    pub per_second: u32,
    /// Wait after a failure.
    pub retry: Duration,
}

impl Default for Load {
    fn default() -> Self {
        Self { clients: 4, per_second: 100, retry: Duration::from_millis(20) }
    }
}

/// One write that the server has confirmed.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledged {
    pub id: i64,
    pub client: usize,
    pub at: Tick,
}

#[derive(Default)]
struct Notes {
    acknowledged: Vec<Acknowledged>,
    errors: Vec<(Tick, String)>,
    failures: usize,
}

/// Running clients.
pub struct Writers {
    notes: Arc<Mutex<Notes>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
    begun: Tick,
}

impl Writers {
    /// Makes the table and begins. Client `n` begins with the `n`th host, so that every gateway has some.
    pub async fn start(target: &Target, load: Load) -> anyhow::Result<Self> {
        Self::start_at(target, load, 1).await
    }

    /// Ids count up from `first_id`, which lets one table serve several rounds.
    pub async fn start_at(target: &Target, load: Load, first_id: i64) -> anyhow::Result<Self> {
        let made = target.in_a_session(async |client| client.batch_execute(TABLE).await);
        made.await.context("the writers' table cannot be made")?;
        let writers = Self { notes: Arc::default(), stop: Arc::default(), tasks: Vec::new(), begun: Tick::now() };
        let next = Arc::new(AtomicI64::new(first_id));
        let tasks = (0..load.clients).map(|number| {
            let client = One {
                target: target.beginning_with(number),
                number,
                load,
                next: next.clone(),
                notes: writers.notes.clone(),
                stop: writers.stop.clone(),
            };
            tokio::spawn(client.run())
        });
        let tasks = tasks.collect();
        Ok(Self { tasks, ..writers })
    }

    fn with<T>(&self, look: impl FnOnce(&Notes) -> T) -> T {
        look(&self.notes.lock().expect("nothing panics while it holds the notes"))
    }
    pub fn acknowledged(&self) -> usize {
        self.with(|notes| notes.acknowledged.len())
    }
    /// Acknowledged after `since`.
    pub fn acknowledged_since(&self, since: Tick) -> usize {
        self.with(|notes| notes.acknowledged.iter().rev().take_while(|ack| ack.at > since).count())
    }
    /// When `client` was last acknowledged anything.
    pub fn last_of(&self, client: usize) -> Option<Tick> {
        self.with(|notes| notes.acknowledged.iter().rev().find(|ack| ack.client == client).map(|ack| ack.at))
    }
    pub fn last_error(&self) -> Option<String> {
        self.with(|notes| notes.errors.last().map(|(_, why)| why.clone()))
    }

    /// The longest time so far in which nobody was acknowledged anything, of those that ended after `since`.
    pub fn longest_gap(&self, since: Tick) -> Gap {
        self.with(|notes| gap(notes.acknowledged.iter().map(|ack| ack.at), since, Tick::now()))
    }

    /// Waits until each client has been acknowledged something after `since`.
    pub async fn all_write_again(&self, since: Tick, deadline: Duration) -> anyhow::Result<()> {
        let waiting = async || {
            let clients = 0..self.tasks.len();
            let late: Vec<usize> =
                clients.filter(|client| self.last_of(*client).is_none_or(|last| last <= since)).collect();
            if late.is_empty() {
                return Ok(());
            }
            let why = self.last_error().unwrap_or_else(|| "no error".to_string());
            Err(format!("clients {late:?} have written nothing since; the last error: {why}"))
        };
        crate::wait::until(deadline, waiting)
            .await
            .map_err(|(passed, seen)| anyhow::anyhow!("after {passed:?} not all clients write again: {seen}"))
    }

    /// Lets every client end its statement, and tells what they noted.
    pub async fn stop(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let _ = task.await;
        }
        let notes = std::mem::take(&mut *self.notes.lock().expect("the clients have ended"));
        Written {
            begun: self.begun,
            ended: Tick::now(),
            acknowledged: notes.acknowledged,
            errors: notes.errors,
            failures: notes.failures,
        }
    }
}

struct One {
    target: Target,
    number: usize,
    load: Load,
    next: Arc<AtomicI64>,
    notes: Arc<Mutex<Notes>>,
    stop: Arc<AtomicBool>,
}

impl One {
    async fn run(self) {
        let mut session: Option<(Client, Statement)> = None;
        let mut pace = tokio::time::interval(Duration::from_secs(1) / self.load.per_second.max(1));
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.stop.load(Ordering::Relaxed) {
            pace.tick().await;
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let result = tokio::time::timeout(STATEMENT_TIMEOUT, self.write(&mut session, id)).await;
            let failure = match result {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(TargetError::Timeout(STATEMENT_TIMEOUT).to_string()),
            };
            // Before the notes are locked, so that waiting for the lock is not part of it.
            let at = Tick::now();
            let failed = {
                let mut notes = self.notes.lock().expect("nothing panics while it holds the notes");
                match &failure {
                    None => notes.acknowledged.push(Acknowledged { id, client: self.number, at }),
                    Some(why) => {
                        notes.failures += 1;
                        if notes.errors.len() < ERRORS_MAX {
                            notes.errors.push((at, why.clone()));
                        }
                    }
                }
                failure.is_some()
            };
            if failed {
                session = None;
                tokio::time::sleep(self.load.retry).await;
                pace.reset_immediately();
            }
        }
    }

    async fn write(&self, session: &mut Option<(Client, Statement)>, id: i64) -> Result<(), TargetError> {
        let (client, insert) = match session {
            Some(session) => session,
            None => {
                let client = self.target.connect().await?;
                let insert = client.prepare(INSERT).await?;
                session.insert((client, insert))
            }
        };
        client.execute(&*insert, &[&id, &(self.number as i32)]).await?;
        Ok(())
    }
}

/// What the clients have noted.
#[derive(Clone, Debug)]
pub struct Written {
    pub begun: Tick,
    pub ended: Tick,
    pub acknowledged: Vec<Acknowledged>,
    /// The first of them.
    pub errors: Vec<(Tick, String)>,
    pub failures: usize,
}

/// A time without an acknowledged write.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Gap {
    pub length: Duration,
    pub from: Tick,
}

impl Written {
    /// The longest time in which nobody was acknowledged anything, of those that ended after `since`.
    pub fn longest_gap(&self, since: Tick) -> Gap {
        gap(self.acknowledged.iter().map(|ack| ack.at), since, self.ended)
    }

    /// The same for the client that was hit hardest.
    pub fn longest_gap_of_a_client(&self, since: Tick) -> Gap {
        let clients: BTreeSet<usize> = self.acknowledged.iter().map(|ack| ack.client).collect();
        let of = |client| {
            let own = self.acknowledged.iter().filter(move |ack| ack.client == client);
            gap(own.map(|ack| ack.at), since, self.ended)
        };
        clients.into_iter().map(of).max().unwrap_or(Gap { length: self.ended.since(since), from: since })
    }
}

fn gap(times: impl Iterator<Item = Tick>, since: Tick, ended: Tick) -> Gap {
    let mut times: Vec<Tick> = times.collect();
    times.sort_unstable();
    // Nobody was acknowledged anything from the last one to the end, either.
    times.push(ended);
    let pairs = times.windows(2).filter(|pair| pair[1] > since);
    let gaps = pairs.map(|pair| Gap { length: pair[1].since(pair[0]), from: pair[0] });
    gaps.max().unwrap_or(Gap { length: ended.since(since), from: since })
}

/// What the check has found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checked {
    pub acknowledged: usize,
    /// Acknowledged and not there.
    pub lost: Vec<i64>,
}

/// Reads everything back from the leader and compares.
pub async fn check(target: &Target, acknowledged: &[Acknowledged]) -> anyhow::Result<Checked> {
    let read = target.in_a_session(async |client| client.query("select id from written", &[]).await);
    let rows = read.await.context("the check cannot read")?;
    let there: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    let lost = acknowledged.iter().map(|ack| ack.id).filter(|id| !there.contains(id)).collect();
    Ok(Checked { acknowledged: acknowledged.len(), lost })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(acks: &[(usize, u64)], ended: u64) -> Written {
        let ack =
            |(client, ms): &(usize, u64)| Acknowledged { id: *ms as i64, client: *client, at: Tick::from_millis(*ms) };
        Written {
            begun: Tick::default(),
            ended: Tick::from_millis(ended),
            acknowledged: acks.iter().map(ack).collect(),
            errors: Vec::new(),
            failures: 0,
        }
    }

    #[test]
    fn a_gap_ends_with_whoever_is_acknowledged_first() {
        let both = written(&[(0, 10), (1, 20), (1, 320), (0, 820), (1, 830)], 840);
        assert_eq!(both.longest_gap(Tick::default()).length, Duration::from_millis(500));
        assert_eq!(both.longest_gap_of_a_client(Tick::default()).length, Duration::from_millis(810));
    }

    #[test]
    fn a_gap_that_never_ended_counts() {
        assert_eq!(written(&[(0, 10), (0, 20)], 5020).longest_gap(Tick::default()).length, Duration::from_secs(5));
    }

    #[test]
    fn a_gap_before_the_fault_does_not_count() {
        let early = written(&[(0, 10), (0, 910), (0, 920), (0, 980)], 990);
        assert_eq!(early.longest_gap(Tick::from_millis(915)).length, Duration::from_millis(60));
    }
}
