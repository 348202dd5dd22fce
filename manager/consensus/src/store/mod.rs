//! The store of one node: its vote, its log and the record, in one redb database.
//!
//! The log and the record live in memory and are read from there; the disk holds the vote, the log, how far it was
//! committed, and the last snapshot, from which openraft rebuilds the record at a start. `disk` is the file, `writer`
//! the order of writes, `envelope` the stored forms, `log` and `state_machine` what openraft asks for.

pub(crate) mod disk;
pub(crate) mod envelope;
pub(crate) mod log;
pub(crate) mod state_machine;
pub(crate) mod writer;

pub use disk::StoreAt;
pub use writer::Flush;

use crate::type_config::{Change, Entry, Payload, RaftAddress, RaftMembership};
use log::LogStore;
use openraft::AsyncRuntime;
use pgstead_types::{DeploymentId, NodeId, RecoveryId};
use state_machine::StateMachine;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use writer::Writer;

/// Why the store cannot be used. After any of them the node is no voter until it is started again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "cannot {action} the consensus store {place}; this node no longer votes. Free space or repair the disk, then \
         restart the daemon: everything that was acknowledged is in the file"
    )]
    Io {
        action: String,
        place: String,
        #[source]
        source: Arc<redb::Error>,
    },
    #[error("the consensus store {place} is in use by another process; stop that daemon first")]
    InUse { place: String },
    #[error(
        "the consensus store {place} belongs to node {found}, and this is node {expected}; give this node its own data \
         directory, or correct its node id"
    )]
    OtherNode { place: String, found: NodeId, expected: NodeId },
    #[error(
        "the consensus store {place} belongs to deployment {found}, and this node is of {expected}; give it an empty \
         data directory to join with"
    )]
    OtherDeployment { place: String, found: DeploymentId, expected: DeploymentId },
    #[error(
        "the consensus store {place} has layout {found} and this build knows up to {known}; run the version of pgstead \
         that wrote it, or a later one"
    )]
    NewerLayout { place: String, found: u32, known: u32 },
    #[error(
        "the {what} in the consensus store {place} cannot be read ({why}); keep the file, and let this node join again \
         under a new id"
    )]
    Damaged { place: String, what: String, why: String },
    #[error(
        "log entry {index} is of kind {kind:?} version {version}, which this build of pgstead cannot read ({why}); \
         this node no longer votes, rather than skip it. Install the version that the other nodes run"
    )]
    UnknownEntry { index: u64, kind: String, version: u32, why: String },
    #[error(
        "the snapshot of the record cannot be used: {why}; this node no longer votes. Install the version of pgstead \
         that the other nodes run"
    )]
    UnknownSnapshot { why: String },
    #[error("the consensus store {place} is closed")]
    Closed { place: String },
}

impl StoreError {
    pub(crate) fn io(action: &str, place: &str, source: impl Into<redb::Error>) -> Self {
        Self::Io { action: action.to_string(), place: place.to_string(), source: Arc::new(source.into()) }
    }
    /// An entry that this build cannot read is refused by name.
    pub(crate) fn check(entry: &Entry) -> Result<(), Self> {
        match &entry.payload {
            Payload::Normal(Change::Unknown(unknown)) => Err(Self::UnknownEntry {
                index: entry.log_id.index,
                kind: unknown.kind.clone(),
                version: unknown.version,
                why: unknown.why.clone(),
            }),
            _ => Ok(()),
        }
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        io::Error::other(error)
    }
}

/// The error and its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Where each node is, by the latest membership that this node has seen. Connections look here at each call, because
/// openraft keeps a connection when only an address changes.
#[derive(Clone, Default)]
pub(crate) struct AddressBook(Arc<Mutex<BTreeMap<NodeId, RaftAddress>>>);

impl AddressBook {
    pub fn get(&self, node: NodeId) -> Option<RaftAddress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }
    pub fn note(&self, node: NodeId, address: &RaftAddress) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node, address.clone());
    }
    pub fn note_all(&self, membership: &RaftMembership) {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.extend(membership.nodes().map(|(node, address)| (*node, address.clone())));
    }
}

/// The parts that openraft is started with.
pub(crate) struct Store<R: AsyncRuntime> {
    pub log: LogStore<R>,
    pub state_machine: StateMachine<R>,
    pub writer: Arc<Writer>,
    pub addresses: AddressBook,
    pub recovery: Option<RecoveryId>,
}

impl<R: AsyncRuntime> Store<R> {
    pub fn open(at: StoreAt, flush: Flush, node: NodeId, deployment: DeploymentId) -> Result<Self, StoreError> {
        let (disk, mut contents) = disk::Disk::open(at, node, deployment)?;
        let snapshot = contents
            .snapshot
            .take()
            .map(|stored| stored.into_raft().map_err(|why| StoreError::UnknownSnapshot { why }))
            .transpose()?;
        let addresses = AddressBook::default();
        let recovery = disk.recovery();
        let writer = Arc::new(Writer::start(disk, flush)?);
        let log = LogStore::new(contents, writer.clone(), addresses.clone())?;
        let state_machine = StateMachine::new(snapshot, writer.clone(), addresses.clone());
        Ok(Self { log, state_machine, writer, addresses, recovery })
    }
}

#[cfg(test)]
mod tests;
