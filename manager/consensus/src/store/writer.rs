//! The one way to the disk: writes in the order in which they were asked for, each answered after its sync.
//!
//! The daemon has a thread for it, which takes all waiting writes into one transaction (group commit), so that no
//! task of the runtime waits for a disk. The simulation has no threads and writes at once, in the caller.

use super::StoreError;
use super::disk::{Disk, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Called once, with whether the write is on the disk. It must not block.
pub(crate) type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Writes taken into one transaction at most. It bounds the memory of a transaction, not the throughput.
const BATCH_MAX: usize = 256;

/// Who carries the writes out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    /// A thread of its own with group commit. For the daemon.
    WriterThread,
    /// The caller, before it goes on. For runtimes without threads and media without delay.
    Inline,
}

enum Job {
    Write(Write, Done),
    /// Gives the file back once everything before it is written.
    Close(Done),
}

pub(crate) struct Writer {
    path: Path,
    place: String,
    /// The first failure. After it nothing is written any more: what a failed sync has left on the disk is unknown.
    failure: Arc<Mutex<Option<StoreError>>>,
}

enum Path {
    Thread(Mutex<Sender<Job>>),
    Inline(Mutex<Option<Disk>>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each critical section here leaves its value whole, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Writer {
    pub fn start(disk: Disk, flush: Flush) -> Result<Self, StoreError> {
        let place = disk.place().to_string();
        let failure = Arc::default();
        let path = match flush {
            Flush::Inline => Path::Inline(Mutex::new(Some(disk))),
            Flush::WriterThread => {
                let (jobs, queue) = channel();
                let failure = Arc::clone(&failure);
                std::thread::Builder::new()
                    .name("raft-disk".into())
                    .spawn(move || run(disk, &queue, &failure))
                    .map_err(|error| StoreError::io("start the writer of", &place, error))?;
                Path::Thread(Mutex::new(jobs))
            }
        };
        Ok(Self { path, place, failure })
    }

    /// The failure that stopped writing, if any.
    pub fn failure(&self) -> Option<StoreError> {
        lock(&self.failure).clone()
    }

    /// Stops writing for a reason that is not the disk's.
    pub fn refuse(&self, why: StoreError) -> StoreError {
        lock(&self.failure).get_or_insert(why).clone()
    }

    /// After everything that was submitted before it. The answer goes to `done`.
    pub fn submit(&self, write: Write, done: impl FnOnce(Result<(), StoreError>) + Send + 'static) {
        self.send(Job::Write(write, Box::new(done)));
    }

    /// Writes what is waiting and gives the file back, so that it can be opened again.
    pub fn close(&self, done: impl FnOnce(Result<(), StoreError>) + Send + 'static) {
        self.send(Job::Close(Box::new(done)));
    }

    fn send(&self, job: Job) {
        match &self.path {
            Path::Thread(jobs) => {
                if let Err(rejected) = lock(jobs).send(job) {
                    let closed = StoreError::Closed { place: self.place.clone() };
                    match rejected.0 {
                        Job::Write(_, done) => done(Err(self.failure().unwrap_or(closed))),
                        Job::Close(done) => done(Ok(())), // It is.
                    }
                }
            }
            Path::Inline(disk) => {
                // The answer is given outside the lock: it may lead to the next write.
                let mut disk = lock(disk);
                let (done, result) = match job {
                    Job::Close(done) => {
                        drop(disk.take());
                        (done, Ok(()))
                    }
                    Job::Write(write, done) => match disk.as_ref() {
                        None => (done, Err(StoreError::Closed { place: self.place.clone() })),
                        Some(disk) => (done, write_or_remember(disk, &[write], &self.failure)),
                    },
                };
                drop(disk);
                done(result);
            }
        }
    }
}

fn write_or_remember<'a>(
    disk: &Disk,
    batch: impl IntoIterator<Item = &'a Write>,
    failure: &Mutex<Option<StoreError>>,
) -> Result<(), StoreError> {
    if let Some(failed) = lock(failure).clone() {
        return Err(failed);
    }
    disk.write(batch).inspect_err(|error| {
        lock(failure).get_or_insert(error.clone());
    })
}

fn run(disk: Disk, queue: &Receiver<Job>, failure: &Mutex<Option<StoreError>>) {
    while let Ok(first) = queue.recv() {
        let mut close = None;
        let (mut writes, mut dones) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Write(write, done) => {
                    writes.push(write);
                    dones.push(done);
                }
                Job::Close(done) => {
                    close = Some(done);
                    break;
                }
            }
            next = if writes.len() < BATCH_MAX { queue.try_recv().ok() } else { None };
        }
        if !writes.is_empty() {
            let result = write_or_remember(&disk, &writes, failure);
            for done in dones {
                done(result.clone()); // Nobody hears yes before the sync has returned.
            }
        }
        if let Some(done) = close {
            drop(disk);
            done(Ok(()));
            return;
        }
    }
}
