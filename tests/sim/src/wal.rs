//! A write-ahead log: records with their end positions and timelines. Two logs agree exactly as far as their records do.

use pgstead_types::{Lsn, Position, Timeline};

/// One record. The first begins where the one before ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogRecord {
    pub end: u64,
    pub timeline: u32,
    pub what: What,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// What `initdb` writes.
    Made,
    /// A client's numbered row, committed.
    Row(u64),
    /// Much, by a transaction that is never committed.
    Bulk,
    EndOfRecovery,
    Checkpoint,
    ShutdownCheckpoint,
}

const BEGIN: u64 = 0x100_0000;
const BYTES: u64 = 0x80;
const BULK_BYTES: u64 = 0x10_0000;

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wal {
    records: Vec<LogRecord>,
}

impl Wal {
    pub fn made() -> Self {
        Self { records: vec![LogRecord { end: BEGIN + BYTES, timeline: 1, what: What::Made }] }
    }
    pub fn len(&self) -> usize {
        self.records.len()
    }
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
    pub fn records(&self) -> &[LogRecord] {
        &self.records
    }
    /// The end of the first `count` records.
    pub fn lsn(&self, count: usize) -> Lsn {
        Lsn(count.checked_sub(1).and_then(|n| self.records.get(n)).map_or(BEGIN, |record| record.end))
    }
    pub fn timeline(&self, count: usize) -> u32 {
        count.checked_sub(1).and_then(|n| self.records.get(n)).map_or(1, |record| record.timeline)
    }
    pub fn position(&self, count: usize) -> Position {
        Position { timeline: Timeline(self.timeline(count)), lsn: self.lsn(count) }
    }
    /// Adds a record and gives its end.
    pub fn write(&mut self, timeline: u32, what: What) -> Lsn {
        let bytes = if what == What::Bulk { BULK_BYTES } else { BYTES };
        let end = self.lsn(self.len()).0 + bytes;
        self.records.push(LogRecord { end, timeline, what });
        Lsn(end)
    }
    pub fn extend(&mut self, more: &[LogRecord]) {
        self.records.extend_from_slice(more);
    }
    pub fn truncate(&mut self, count: usize) {
        self.records.truncate(count);
    }
    pub fn first(&self, count: usize) -> Self {
        Self { records: self.records[..count.min(self.len())].to_vec() }
    }
    /// Whether the first `count` records are this log's too.
    pub fn begins_with(&self, other: &Wal, count: usize) -> bool {
        count <= self.len() && self.records[..count] == other.records[..count]
    }
    /// What Postgres itself checks when a standby asks to stream: its timeline is in this log's history and it is not
    /// past the point where that timeline was left. It does not compare contents.
    pub fn admits(&self, at: Position) -> bool {
        let last = self.records.iter().rposition(|record| record.timeline == at.timeline.0);
        let is_current = self.timeline(self.len()) == at.timeline.0;
        last.is_some_and(|n| is_current || at.lsn.0 <= self.records[n].end)
    }
    pub fn rows(&self, count: usize) -> impl Iterator<Item = u64> + '_ {
        self.records[..count.min(self.len())].iter().filter_map(|record| match record.what {
            What::Row(row) => Some(row),
            _ => None,
        })
    }
    /// Every timeline in it, oldest first.
    pub fn timelines(&self) -> Vec<u32> {
        let mut all: Vec<u32> = self.records.iter().map(|record| record.timeline).collect();
        all.dedup();
        all
    }
}
