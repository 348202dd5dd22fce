//! Clients that append to lists and read them, and note everything for the check of the whole history.

use crate::client::{Target, TargetError};
use crate::history::{Append, History, Look, Outcome, Stamp};
use anyhow::Context;
use pgstead_types::Tick;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_postgres::{Client, Row, Statement};

/// Few enough that clients meet on a list, many enough that lists stay short.
const KEYS: i32 = 24;
const WHO: &str = "host(inet_server_addr()), substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)";
/// A client gives up on a statement after this and connects anew.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(8);
/// After a failure.
const RETRY: Duration = Duration::from_millis(30);
/// Every so many operations one only reads.
const READ_EVERY: u64 = 4;
const PER_SECOND: u32 = 20;

/// Values and clients are numbered across all groups of a test.
static NEXT_VALUE: AtomicI64 = AtomicI64::new(1);
static NEXT_CLIENT: AtomicUsize = AtomicUsize::new(0);

/// Where a client connects.
pub type Via = Target;

/// A group of running clients.
pub struct Appends {
    notes: Arc<Mutex<Notes>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Notes {
    history: History,
    /// When each client was last acknowledged an append.
    last: BTreeMap<usize, Tick>,
    tried: usize,
    last_error: Option<String>,
}

impl Appends {
    /// Makes the lists, empty.
    pub async fn prepare(target: &Target) -> anyhow::Result<()> {
        let text = format!(
            "create table if not exists lists (key int primary key, list bigint[] not null default '{{}}');\
             insert into lists (key) select n from generate_series(0, {}) n on conflict do nothing",
            KEYS - 1
        );
        let made = target.in_a_session(async |client| client.batch_execute(&text).await);
        made.await.context("the lists cannot be made")
    }

    /// The lists as they are.
    pub async fn lists(target: &Target) -> anyhow::Result<BTreeMap<i32, Vec<i64>>> {
        let read = target.in_a_session(async |client| client.query("select key, list from lists", &[]).await);
        let rows = read.await.context("the check cannot read")?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// One client for each.
    pub fn start(targets: impl IntoIterator<Item = Via>) -> Self {
        let (notes, stop) = (Arc::<Mutex<Notes>>::default(), Arc::<AtomicBool>::default());
        let tasks = targets.into_iter().map(|target| {
            let number = NEXT_CLIENT.fetch_add(1, Ordering::Relaxed);
            notes.lock().expect("nobody else has it yet").last.insert(number, Tick::default());
            let client = One { target, number, notes: notes.clone(), stop: stop.clone() };
            tokio::spawn(client.run())
        });
        Self { tasks: tasks.collect(), notes, stop }
    }

    fn with<T>(&self, look: impl FnOnce(&Notes) -> T) -> T {
        look(&self.notes.lock().expect("nothing panics while it holds the notes"))
    }
    /// Operations that were begun so far, those included that did not get as far as a connection.
    pub fn tried(&self) -> usize {
        self.with(|notes| notes.tried)
    }

    /// Waits until each client has been acknowledged something after `since`.
    pub async fn all_append_again(&self, since: Tick, deadline: Duration) -> anyhow::Result<()> {
        let waiting = async || {
            self.with(|notes| {
                let late: Vec<_> = notes.last.iter().filter(|(_, last)| **last <= since).map(|(one, _)| one).collect();
                if late.is_empty() {
                    return Ok(());
                }
                Err(format!("clients {late:?} have appended nothing since; the last error: {:?}", notes.last_error))
            })
        };
        crate::wait::until(deadline, waiting)
            .await
            .map_err(|(passed, seen)| anyhow::anyhow!("after {passed:?} not all clients append again: {seen}"))
    }

    /// Lets every client end what it does, and tells what they noted.
    pub async fn stop(self) -> History {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let _ = task.await;
        }
        std::mem::take(&mut self.notes.lock().expect("the clients have ended").history)
    }
}

struct Session {
    client: Client,
    append: Statement,
    read: Statement,
}

struct One {
    target: Target,
    number: usize,
    notes: Arc<Mutex<Notes>>,
    stop: Arc<AtomicBool>,
}

impl One {
    async fn run(self) {
        let mut session = None;
        let mut pace = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut turn = self.number as u64;
        while !self.stop.load(Ordering::Relaxed) {
            pace.tick().await;
            turn += 1;
            // Each client goes through the keys by another stride, so that any two of them meet.
            let key = (turn.wrapping_mul(2 * self.number as u64 + 1) % KEYS.unsigned_abs() as u64) as i32;
            self.note(|notes| notes.tried += 1);
            let work = async {
                if turn.is_multiple_of(READ_EVERY) {
                    self.read(&mut session, key).await
                } else {
                    self.append(&mut session, key).await
                }
            };
            let failed = match tokio::time::timeout(STATEMENT_TIMEOUT, work).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(TargetError::Timeout(STATEMENT_TIMEOUT).to_string()),
            };
            if let Some(why) = failed {
                session = None;
                self.note(|notes| notes.last_error = Some(why));
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    fn note(&self, change: impl FnOnce(&mut Notes)) {
        change(&mut self.notes.lock().expect("nothing panics while it holds the notes"));
    }

    async fn open<'a>(&self, session: &'a mut Option<Session>) -> Result<&'a Session, TargetError> {
        if session.is_none() {
            let client = self.target.connect().await?;
            let append = format!("update lists set list = list || $2::bigint where key = $1 returning list, {WHO}");
            let append = client.prepare(&append).await?;
            let read = client.prepare(&format!("select list, {WHO} from lists where key = $1")).await?;
            *session = Some(Session { client, append, read });
        }
        Ok(session.as_ref().expect("opened above"))
    }

    async fn append(&self, session: &mut Option<Session>, key: i32) -> Result<(), TargetError> {
        let session = self.open(session).await?;
        let (value, begun) = (NEXT_VALUE.fetch_add(1, Ordering::Relaxed), Tick::now());
        // Noted before it is sent: whatever happens to this task then, the append is known to have been tried.
        let mut place = 0;
        self.note(|notes| {
            place = notes.history.appends.len();
            notes.history.appends.push(Append { key, value, client: self.number, begun, outcome: Outcome::Unknown });
        });
        let row = session.client.query_one(&session.append, &[&key, &value]).await?;
        let at = Tick::now();
        let (list, stamp) = answer(&row);
        self.note(|notes| {
            notes.history.appends[place].outcome = Outcome::Acknowledged { at, stamp, list };
            notes.last.insert(self.number, at);
        });
        Ok(())
    }

    async fn read(&self, session: &mut Option<Session>, key: i32) -> Result<(), TargetError> {
        let session = self.open(session).await?;
        let begun = Tick::now();
        let row = session.client.query_one(&session.read, &[&key]).await?;
        let (list, stamp) = answer(&row);
        self.note(|notes| notes.history.looks.push(Look { key, client: self.number, begun, stamp, list }));
        Ok(())
    }
}

fn answer(row: &Row) -> (Vec<i64>, Stamp) {
    let timeline: &str = row.get(2);
    let timeline = u32::from_str_radix(timeline, 16).expect("names of WAL files begin with a timeline");
    (row.get(0), Stamp { timeline, member: row.get(1) })
}
