//! The record as openraft builds it: committed entries applied in memory, and snapshots of the whole on the disk.
//!
//! After a start it is empty; openraft installs the last snapshot and applies the committed log behind it.

use super::disk::Write;
use super::envelope::StoredSnapshot;
use super::writer::Writer;
use super::{AddressBook, StoreError};
use crate::type_config::{Change, EffectiveMembership, LogId, Payload, Snapshot, SnapshotMeta, TypeConfig};
use futures::{Stream, TryStreamExt};
use openraft::async_runtime::watch::{Watch, WatchSender};
use openraft::async_runtime::{Oneshot, OneshotSender};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{AsyncRuntime, OptionalSend};
use pgstead_types::record::{Applied, Record};
use std::io;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Published<R> = <<R as AsyncRuntime>::Watch as Watch>::Sender<Arc<Record>>;
pub(crate) type RecordWatch<R> = <<R as AsyncRuntime>::Watch as Watch>::Receiver<Arc<Record>>;

/// Which snapshots there are.
#[derive(Default)]
struct Snapshots {
    /// The last one on the disk.
    saved: Option<Snapshot>,
    /// The last one on its way there.
    submitted: Option<LogId>,
}

pub(crate) struct StateMachine<R: AsyncRuntime> {
    record: Arc<Record>,
    applied: Option<LogId>,
    membership: EffectiveMembership,
    snapshots: Arc<Mutex<Snapshots>>,
    writer: Arc<Writer>,
    addresses: AddressBook,
    /// A runtime's sender need not be shareable between threads; openraft asks that of its state machine.
    published: Mutex<Published<R>>,
}

impl<R: AsyncRuntime> StateMachine<R> {
    pub fn new(snapshot: Option<Snapshot>, writer: Arc<Writer>, addresses: AddressBook) -> Self {
        let (published, _) = R::Watch::channel(Arc::new(Record::default()));
        Self {
            record: Arc::default(),
            applied: None,
            membership: EffectiveMembership::default(),
            snapshots: Arc::new(Mutex::new(Snapshots { submitted: last_of(&snapshot), saved: snapshot })),
            writer,
            addresses,
            published: Mutex::new(published),
        }
    }

    pub fn watch_record(&self) -> RecordWatch<R> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).subscribe()
    }

    fn publish(&self) {
        let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        published.send(self.record.clone()).ok(); // Nobody may be watching.
    }
}

impl<R: AsyncRuntime> RaftStateMachine<TypeConfig<R>> for StateMachine<R> {
    type SnapshotData = Arc<Record>;
    type SnapshotBuilder = SnapshotBuilder<R>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, EffectiveMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig<R>>, io::Error>> + Unpin + OptionalSend,
    {
        let mut answers = Vec::new();
        while let Some((entry, responder)) = entries.try_next().await? {
            let answer = match &entry.payload {
                Payload::Blank => Ok(Applied { revision: self.record.revision }),
                Payload::Membership(membership) => {
                    self.addresses.note_all(membership);
                    self.membership = EffectiveMembership::new(Some(entry.log_id), membership.clone());
                    Ok(Applied { revision: self.record.revision })
                }
                // Copies the record if others look at it, once per batch.
                Payload::Normal(Change::Known(command)) => Arc::make_mut(&mut self.record).apply(command),
                Payload::Normal(Change::Unknown(_)) => {
                    StoreError::check(&entry).map_err(|unknown| self.writer.refuse(unknown))?;
                    continue;
                }
            };
            self.applied = Some(entry.log_id);
            answers.extend(responder.map(|responder| (responder, answer)));
        }
        // Published before it is answered, so that a proposer finds its own change in the record.
        self.publish();
        for (responder, answer) in answers {
            responder.send(answer);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        SnapshotBuilder {
            snapshot: Snapshot { meta, snapshot: self.record.clone() },
            snapshots: self.snapshots.clone(),
            writer: self.writer.clone(),
            runtime: PhantomData,
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, record: Arc<Record>) -> Result<(), io::Error> {
        let snapshot = Snapshot { meta: meta.clone(), snapshot: record };
        save::<R>(&self.writer, &self.snapshots, &snapshot).await?;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.addresses.note_all(self.membership.membership());
        self.record = snapshot.snapshot;
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(lock(&self.snapshots).saved.clone())
    }
}

/// A view of the record at one position, to be put on the disk.
pub(crate) struct SnapshotBuilder<R> {
    snapshot: Snapshot,
    snapshots: Arc<Mutex<Snapshots>>,
    writer: Arc<Writer>,
    runtime: PhantomData<fn() -> R>,
}

impl<R: AsyncRuntime> RaftSnapshotBuilder<TypeConfig<R>> for SnapshotBuilder<R> {
    type SnapshotData = Arc<Record>;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        save::<R>(&self.writer, &self.snapshots, &self.snapshot).await?;
        Ok(self.snapshot.clone())
    }
}

/// On the disk before it counts: the log that it replaces is purged afterwards.
async fn save<R: AsyncRuntime>(writer: &Writer, all: &Mutex<Snapshots>, snapshot: &Snapshot) -> Result<(), io::Error> {
    let (answer, written) = R::Oneshot::channel();
    {
        let mut all = lock(all);
        // One that was built while a newer one arrived must not replace it, nor one be written again at a start. What
        // was submitted is written before anything that is submitted from here on, a purge for one.
        if all.submitted >= snapshot.meta.last_log_id {
            return Ok(());
        }
        all.submitted = snapshot.meta.last_log_id;
        writer.submit(Write::Snapshot(StoredSnapshot::from(snapshot)), move |result| drop(answer.send(result)));
    }
    match written.await {
        Ok(result) => result?,
        Err(_) => return Err(io::Error::other("the writer of the consensus store ended without an answer")),
    }
    let mut all = lock(all);
    if last_of(&all.saved) < snapshot.meta.last_log_id {
        all.saved = Some(snapshot.clone());
    }
    Ok(())
}

fn last_of(snapshot: &Option<Snapshot>) -> Option<LogId> {
    snapshot.as_ref().and_then(|snapshot| snapshot.meta.last_log_id)
}

fn lock(all: &Mutex<Snapshots>) -> MutexGuard<'_, Snapshots> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}
