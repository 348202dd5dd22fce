//! The log and the vote as openraft asks for them. The entries that are live are in memory (the snapshot policy bounds
//! them), so that reading never waits for the disk and an entry is readable before its sync.

use super::disk::{Contents, Write};
use super::envelope::StoredEntry;
use super::writer::Writer;
use super::{AddressBook, StoreError};
use crate::type_config::{Entry, LogId, Payload, TypeConfig, Vote};
use openraft::async_runtime::{Oneshot, OneshotSender};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{AsyncRuntime, OptionalSend};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Default)]
struct Live {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
}

pub(crate) struct LogStore<R> {
    live: Arc<Mutex<Live>>,
    writer: Arc<Writer>,
    addresses: AddressBook,
    runtime: PhantomData<fn() -> R>,
}

pub(crate) struct LogReader {
    live: Arc<Mutex<Live>>,
}

fn lock(live: &Mutex<Live>) -> MutexGuard<'_, Live> {
    live.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<R: AsyncRuntime> LogStore<R> {
    pub fn new(contents: Contents, writer: Arc<Writer>, addresses: AddressBook) -> Result<Self, StoreError> {
        let entries: BTreeMap<u64, Entry> =
            contents.entries.into_iter().map(|(index, stored)| (index, Entry::from(stored))).collect();
        for entry in entries.values() {
            StoreError::check(entry)?;
            if let Payload::Membership(membership) = &entry.payload {
                addresses.note_all(membership);
            }
        }
        let live = Live {
            vote: contents.ballot.map(Into::into),
            committed: contents.committed.map(Into::into),
            purged: contents.purged.map(Into::into),
            entries,
        };
        Ok(Self { live: Arc::new(Mutex::new(live)), writer, addresses, runtime: PhantomData })
    }

    async fn write_and_wait(&self, write: Write) -> io::Result<()> {
        let (answer, written) = R::Oneshot::channel();
        self.writer.submit(write, move |result| drop(answer.send(result)));
        match written.await {
            Ok(result) => Ok(result?),
            Err(_) => Err(io::Error::other("the writer of the consensus store ended without an answer")),
        }
    }

    /// Ordered before all later writes, so it need not be waited for: what is written after it implies it, and
    /// losing it to a power cut brings back only entries that are obsolete or already in the snapshot.
    fn write_behind(&self, write: Write) -> io::Result<()> {
        self.writer.submit(write, |_| {}); // The writer remembers a failure; the next write that matters reports it.
        self.writer.failure().map_or(Ok(()), |failed| Err(failed.into()))
    }
}

impl<R: AsyncRuntime> RaftLogReader<TypeConfig<R>> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        Ok(lock(&self.live).entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(lock(&self.live).vote)
    }
}

impl<R: AsyncRuntime> RaftLogStorage<TypeConfig<R>> for LogStore<R> {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig<R>>, io::Error> {
        let live = lock(&self.live);
        let last = live.entries.last_key_value().map(|(_, entry)| entry.log_id);
        Ok(LogState { last_purged_log_id: live.purged, last_log_id: last.or(live.purged) })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        LogReader { live: self.live.clone() }
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        // On the disk before anyone hears of it: a forgotten vote could be given twice in one term.
        self.write_and_wait(Write::Ballot((*vote).into())).await?;
        lock(&self.live).vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        lock(&self.live).committed = committed;
        match committed {
            // Only how far a restart replays at once; the leader tells the rest. Never ahead of the log on the disk,
            // because the entries were submitted before it.
            Some(at) => self.write_behind(Write::Committed(at.into())),
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(lock(&self.live).committed)
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<TypeConfig<R>>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        for entry in &entries {
            StoreError::check(entry).map_err(|unknown| self.writer.refuse(unknown))?;
            if let Payload::Membership(membership) = &entry.payload {
                self.addresses.note_all(membership);
            }
        }
        let stored = entries.iter().map(StoredEntry::from).collect();
        lock(&self.live).entries.extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
        self.writer.submit(Write::Append(stored), move |result| flushed.io_completed(result.map_err(Into::into)));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |last| last.index + 1);
        lock(&self.live).entries.split_off(&from);
        self.write_behind(Write::TruncateFrom(from))
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        {
            let mut live = lock(&self.live);
            live.entries = live.entries.split_off(&(upto.index + 1));
            live.purged = Some(upto);
        }
        // After the snapshot that holds these entries: that one was answered before openraft purges.
        self.write_behind(Write::Purge(upto.into()))
    }
}
