//! The redb file: what is in it, how it is opened, and one transaction per batch of writes.
//!
//! Nothing here knows of Raft's rules; the order of writes is the caller's. A write that returned is on the disk.

use super::StoreError;
use super::envelope::{Ballot, LogPosition, StoredEntry, StoredSnapshot};
use pgstead_types::{DeploymentId, NodeId, RecoveryId};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const SNAPSHOT: TableDefinition<&str, &[u8]> = TableDefinition::new("snapshot");

const IDENTITY: &str = "identity";
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const CURRENT: &str = "current";

/// Of the file's layout; entries have versions of their own.
const LAYOUT: u32 = 1;
/// The live log and snapshot are in memory anyway; redb's default of 1 GiB would be for nothing.
const CACHE_BYTES: usize = 8 << 20;

/// Where the store is.
pub enum StoreAt {
    /// A file, made with mode 0600 if it is not there: the record holds keys and passwords.
    File(PathBuf),
    /// Anything that can be read, written and synced, with a name for messages.
    Backend { name: String, backend: Box<dyn StorageBackend> },
}

impl fmt::Display for StoreAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreAt::File(path) => path.display().fmt(f),
            StoreAt::Backend { name, .. } => name.fmt(f),
        }
    }
}

/// Whose file it is. Written once, before anything else.
#[derive(Serialize, Deserialize)]
struct Identity {
    layout: u32,
    node: NodeId,
    deployment: DeploymentId,
    /// Set when most voters were lost and the group was made anew from one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recovery: Option<RecoveryId>,
}

/// What was found in the file.
#[derive(Default)]
pub(crate) struct Contents {
    pub ballot: Option<Ballot>,
    pub committed: Option<LogPosition>,
    pub purged: Option<LogPosition>,
    pub entries: BTreeMap<u64, StoredEntry>,
    pub snapshot: Option<StoredSnapshot>,
}

/// One change of the file.
pub(crate) enum Write {
    Ballot(Ballot),
    Committed(LogPosition),
    Append(Vec<StoredEntry>),
    /// Everything from this index on goes.
    TruncateFrom(u64),
    /// Everything up to here, this one included, goes.
    Purge(LogPosition),
    Snapshot(StoredSnapshot),
    /// The store is of this recovery from now on.
    Recovery(RecoveryId),
}

pub(crate) struct Disk {
    database: Database,
    place: String,
    identity: Identity,
}

impl Disk {
    pub fn open(at: StoreAt, node: NodeId, deployment: DeploymentId) -> Result<(Self, Contents), StoreError> {
        let place = at.to_string();
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let opened = match at {
            StoreAt::File(path) => {
                builder.create_file(open_private(&path).map_err(|e| StoreError::io("open", &place, e))?)
            }
            StoreAt::Backend { backend, .. } => builder.create_with_backend(Delegate(backend)),
        };
        let database = opened.map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { place: place.clone() },
            other => StoreError::io("open", &place, other),
        })?;
        let identity = Identity { layout: LAYOUT, node, deployment, recovery: None };
        let mut disk = Self { database, place, identity };
        disk.identity.recovery = disk.check_identity(node, deployment)?;
        let contents = disk.load()?;
        Ok((disk, contents))
    }

    pub fn place(&self) -> &str {
        &self.place
    }

    pub fn node(&self) -> NodeId {
        self.identity.node
    }
    pub fn recovery(&self) -> Option<RecoveryId> {
        self.identity.recovery
    }

    /// Makes this the store of a recovered group, together with `batch`.
    pub fn recover(&mut self, recovery: RecoveryId, batch: impl IntoIterator<Item = Write>) -> Result<(), StoreError> {
        let batch: Vec<Write> = batch.into_iter().chain([Write::Recovery(recovery)]).collect();
        self.write(&batch)?;
        self.identity.recovery = Some(recovery);
        Ok(())
    }

    /// The recovery that the store is of.
    fn check_identity(&self, node: NodeId, deployment: DeploymentId) -> Result<Option<RecoveryId>, StoreError> {
        let found = self.reading(|disk| {
            let transaction = disk.database.begin_read()?;
            match transaction.open_table(META) {
                Ok(meta) => Ok(meta.get(IDENTITY)?.map(|row| row.value().to_vec())),
                Err(redb::TableError::TableDoesNotExist(_)) => Ok(None), // Made just now.
                Err(error) => Err(error.into()),
            }
        })?;
        let Some(found) = found else {
            return self.writing(|disk| {
                let transaction = disk.begin()?;
                transaction.open_table(META)?.insert(IDENTITY, &*json(&disk.identity))?;
                transaction.open_table(LOG)?;
                transaction.open_table(SNAPSHOT)?;
                transaction.commit()?;
                Ok(None)
            });
        };
        let found: Identity = self.parse("identity", &found)?;
        let place = self.place.clone();
        if found.layout > LAYOUT {
            return Err(StoreError::NewerLayout { place, found: found.layout, known: LAYOUT });
        }
        if found.deployment != deployment {
            return Err(StoreError::OtherDeployment { place, found: found.deployment, expected: deployment });
        }
        if found.node != node {
            return Err(StoreError::OtherNode { place, found: found.node, expected: node });
        }
        Ok(found.recovery)
    }

    fn load(&self) -> Result<Contents, StoreError> {
        let mut rows = BTreeMap::new();
        let mut log = Vec::new();
        let mut snapshot = None;
        self.reading(|disk| {
            let transaction = disk.database.begin_read()?;
            let meta = transaction.open_table(META)?;
            for name in [VOTE, COMMITTED, PURGED] {
                if let Some(row) = meta.get(name)? {
                    rows.insert(name, row.value().to_vec());
                }
            }
            for row in transaction.open_table(LOG)?.iter()? {
                let (index, row) = row?;
                log.push((index.value(), row.value().to_vec()));
            }
            snapshot = transaction.open_table(SNAPSHOT)?.get(CURRENT)?.map(|row| row.value().to_vec());
            Ok(())
        })?;
        let mut contents = Contents {
            ballot: rows.get(VOTE).map(|row| self.parse("vote", row)).transpose()?,
            committed: rows.get(COMMITTED).map(|row| self.parse("committed position", row)).transpose()?,
            purged: rows.get(PURGED).map(|row| self.parse("purged position", row)).transpose()?,
            snapshot: snapshot.map(|row| self.parse("snapshot", &row)).transpose()?,
            entries: BTreeMap::new(),
        };
        for (index, row) in log {
            let entry: StoredEntry = self.parse(&format!("log entry {index}"), &row)?;
            let previous =
                contents.entries.last_key_value().map(|(last, _)| *last).or(contents.purged.map(|at| at.index));
            if entry.at.index != index || previous.is_some_and(|previous| previous + 1 != index) {
                return Err(self.damaged("log", format!("entry {index} follows {previous:?} and says {:?}", entry.at)));
            }
            contents.entries.insert(index, entry);
        }
        Ok(contents)
    }

    /// All of `batch` or none of it, on the disk when this returns.
    pub fn write<'a>(&self, batch: impl IntoIterator<Item = &'a Write>) -> Result<(), StoreError> {
        self.writing(|disk| {
            let transaction = disk.begin()?;
            {
                let mut meta = transaction.open_table(META)?;
                let mut log = transaction.open_table(LOG)?;
                for write in batch {
                    match write {
                        Write::Ballot(ballot) => drop(meta.insert(VOTE, &*json(ballot))?),
                        Write::Committed(at) => drop(meta.insert(COMMITTED, &*json(at))?),
                        Write::Append(entries) => {
                            for entry in entries {
                                log.insert(entry.at.index, &*json(entry))?;
                            }
                        }
                        Write::TruncateFrom(index) => log.retain_in(*index.., |_, _| false)?,
                        Write::Purge(upto) => {
                            log.retain_in(..=upto.index, |_, _| false)?;
                            meta.insert(PURGED, &*json(upto))?;
                        }
                        Write::Recovery(recovery) => {
                            let Identity { layout, node, deployment, .. } = self.identity;
                            let identity = Identity { layout, node, deployment, recovery: Some(*recovery) };
                            meta.insert(IDENTITY, &*json(&identity))?;
                        }
                        Write::Snapshot(snapshot) => {
                            transaction.open_table(SNAPSHOT)?.insert(CURRENT, &*json(snapshot))?;
                        }
                    }
                }
            }
            Ok(transaction.commit()?)
        })
    }

    fn begin(&self) -> Result<redb::WriteTransaction, redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?; // Commit returns after the sync.
        Ok(transaction)
    }

    fn reading<T>(&self, read: impl FnOnce(&Self) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        read(self).map_err(|error| StoreError::io("read", &self.place, error))
    }
    fn writing<T>(&self, write: impl FnOnce(&Self) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        write(self).map_err(|error| StoreError::io("write", &self.place, error))
    }
    fn parse<T: DeserializeOwned>(&self, what: &str, row: &[u8]) -> Result<T, StoreError> {
        serde_json::from_slice(row).map_err(|error| self.damaged(what, error.to_string()))
    }
    fn damaged(&self, what: &str, why: String) -> StoreError {
        StoreError::Damaged { place: self.place.clone(), what: what.to_string(), why }
    }
}

fn json(of: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(of).expect("our types have string keys and serializers that cannot fail")
}

/// Opens or makes the file, readable by its owner alone, and its name safe against a power cut.
fn open_private(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?; // One copied here by hand may be wider.
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        File::open(folder)?.sync_all()?;
    }
    Ok(file)
}

/// redb takes a backend by its type only.
#[derive(Debug)]
struct Delegate(Box<dyn StorageBackend>);

impl StorageBackend for Delegate {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}
