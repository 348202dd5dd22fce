//! What a node must not forget of a member, on its own disk and outside every volume: the promise above all.

use super::false_sender::FalseSender;
use crate::files;
use crate::lease::NotedRefusal;
use pgstead_types::report::{PromiseAnswer, SetBy};
use pgstead_types::{Bytes, Epoch, Incarnation, MemberId, OperationId, Position, SnapshotId};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Noted {
    /// The member streams only from the leader of this epoch or a newer one.
    #[serde(default)]
    pub promised: Epoch,
    #[serde(default)]
    pub answer: Option<PromiseAnswer>,
    /// The last incarnation whose data was complete here. If the data is gone, it was lost.
    #[serde(default)]
    pub complete: Option<Incarnation>,
    /// The restart that Postgres was last started for.
    #[serde(default)]
    pub restarts: u32,
    /// The record by which a sync set was loaded last.
    #[serde(default)]
    pub set_by: Option<SetBy>,
    #[serde(default)]
    pub checkpointed: Option<OperationId>,
    /// The incarnation in whose data pages with wrong checksums were found, and how many reads found them.
    #[serde(default)]
    pub corrupted: Option<(Incarnation, u64)>,
    /// A word given to a leader, which holds in full after a restart.
    #[serde(default)]
    pub refusing: Option<NotedRefusal>,
    /// What was kept of the data before it was last rewound.
    #[serde(default)]
    pub kept: Option<NotedSnapshot>,
    /// The log that it was last to fetch from another promiser.
    #[serde(default)]
    pub fetch: Option<NotedFetch>,
    /// While it led.
    #[serde(default)]
    pub false_sender: Option<FalseSender>,
    /// How much log a slot may keep, by the room that was measured last.
    #[serde(default)]
    pub slot_share: Option<Bytes>,
}

/// A fetch of log, from before the first change of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NotedFetch {
    pub epoch: Epoch,
    /// Where the member's own log ended, by the answer that was dropped.
    pub own: Position,
    /// Fetched, or given up.
    pub done: bool,
}

/// A snapshot of a member's volume before its data is rewritten.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NotedSnapshot {
    /// Of the data that is in it.
    pub incarnation: Incarnation,
    pub id: SnapshotId,
    pub state: Keeping,
}

/// Once it is known whether there is a snapshot, the data may no longer be what it was, and no other one is taken of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keeping {
    Begun,
    Taken,
    Refused,
}

/// The notes of one member; every change is on disk before it counts.
pub struct Notes {
    path: PathBuf,
    held: Noted,
}

impl Notes {
    pub fn open(dir: &Path, member: MemberId) -> io::Result<Self> {
        let path = dir.join(format!("{member}.json"));
        let held = files::read_json(&path)?.unwrap_or_default();
        Ok(Self { path, held })
    }
    pub fn get(&self) -> &Noted {
        &self.held
    }
    /// Changes the notes, durably, before it returns. On an error they are as before.
    pub fn change(&mut self, change: impl FnOnce(&mut Noted)) -> io::Result<()> {
        let mut next = self.held.clone();
        change(&mut next);
        if next != self.held {
            files::write_json(&self.path, &next)?;
            self.held = next;
        }
        Ok(())
    }
    /// The member is gone from the record.
    pub fn remove(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let member = MemberId::from_u128(1);
        let mut notes = Notes::open(dir.path(), member).unwrap();
        notes.change(|noted| noted.promised = Epoch(7)).unwrap();
        assert_eq!(Notes::open(dir.path(), member).unwrap().get().promised, Epoch(7));
    }

    #[test]
    fn a_promise_that_cannot_be_written_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut notes = Notes::open(&dir.path().join("gone"), MemberId::from_u128(1)).unwrap();
        assert!(notes.change(|noted| noted.promised = Epoch(7)).is_err());
        assert_eq!(notes.get().promised, Epoch(0));
    }
}
