//! Log that another member holds, segment by segment, for a Postgres that is stopped.
//!
//! On one timeline two logs agree as far as both go, so a longer one takes the place of a shorter one: each segment is either
//! the old or the new whole, in order, and a part of them is a shorter prefix of the same log.

use super::{Instance, InstanceError, on_disk, timelines};
use crate::files::{self, Survives, open_plain};
use pgstead_types::{Bytes, Lsn, Position};
use std::io::{self, Read};
use std::path::Path;

/// Left free beside what is fetched: the first checkpoint writes too.
const ROOM_LEFT: u64 = 64 << 20;

/// A segment of the log by its name, `000000030000000100000002`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    pub name: String,
    begin: Lsn,
    bytes: u64,
}

/// The fields of a segment's first page header that tell whose it is, in the byte order of this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct FirstPage {
    begin: Lsn,
    system: u64,
    segment_bytes: u32,
}

impl FirstPage {
    /// `XLogLongPageHeaderData`: magic and flags, the timeline at 4, the page's address at 8, the system identifier at 24, the
    /// size of segments at 32.
    fn read(bytes: &[u8]) -> Option<Self> {
        let long = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let segment_bytes = u32::from_ne_bytes(bytes.get(32..36)?.try_into().ok()?);
        Some(Self { begin: Lsn(long(8)?), system: long(24)?, segment_bytes })
    }
}

impl Instance {
    /// The segments from the one that `own` lies in to the one that ends with `upto`, all of `upto`'s timeline.
    pub async fn segments_between(&self, own: Lsn, upto: Position) -> Result<Vec<Segment>, InstanceError> {
        let bytes = self.control_data().await?.segment_bytes;
        Ok(timelines::segment_numbers(own, upto.lsn, bytes)
            .map(|number| Segment {
                name: timelines::segment_name(upto.timeline, number, bytes),
                begin: Lsn(number * bytes),
                bytes,
            })
            .collect())
    }

    /// A segment as it is on this disk, for another member.
    pub async fn read_segment(&self, name: &str) -> Result<Vec<u8>, InstanceError> {
        if !timelines::is_segment_name(name) {
            let why = "that is no name of a segment; expected 24 hexadecimal digits".to_string();
            return Err(InstanceError::OtherLog { segment: format!("{name:?}"), why });
        }
        let path = self.config().pg_wal().join(name);
        on_disk("read", &path.clone(), move || {
            let mut bytes = Vec::new();
            // A link that Postgres' user has put there is not followed by a daemon that may be root.
            open_plain(&path)?.take(1 << 30).read_to_end(&mut bytes)?;
            Ok(bytes)
        })
        .await
    }

    /// An error where there is no room for so many segments.
    pub async fn has_room_for(&self, segments: &[Segment]) -> Result<(), InstanceError> {
        let pg_wal = self.config().pg_wal();
        let needed = segments.iter().map(|segment| segment.bytes).sum::<u64>().saturating_add(ROOM_LEFT);
        on_disk("keep the fetched log in", &pg_wal.clone(), move || {
            let free = files::free_for_postgres(&pg_wal)?;
            let why = || format!("{free} are free and {} are needed; make room on this disk", Bytes(needed));
            if free.0 < needed { Err(io::Error::other(why())) } else { Ok(()) }
        })
        .await
    }

    /// Puts a fetched segment in its place, durably. What is there of it up to `own`, the end of this member's log, must be the
    /// same. Postgres is stopped.
    pub async fn take_segment(&self, segment: &Segment, bytes: Vec<u8>, own: Lsn) -> Result<(), InstanceError> {
        if self.guard_status().await?.is_some_and(|status| !status.tree_empty) || !self.processes_there()?.is_empty() {
            return Err(InstanceError::StillRunning);
        }
        let config = self.config();
        let system = self.control_data().await?.system_identifier;
        let first = FirstPage::read(&bytes);
        let expected = FirstPage {
            begin: segment.begin,
            system: system.parse().unwrap_or_default(),
            segment_bytes: u32::try_from(segment.bytes).unwrap_or_default(),
        };
        if bytes.len() as u64 != segment.bytes || first != Some(expected) {
            let why = format!("{} bytes, {first:?}; expected {} bytes, {expected:?}", bytes.len(), segment.bytes);
            return Err(InstanceError::OtherLog { segment: segment.name.clone(), why });
        }
        let path = config.pg_wal().join(&segment.name);
        let held = own.0.saturating_sub(segment.begin.0).min(segment.bytes) as usize;
        let owner = config.owner();
        let same = on_disk("write", &path.clone(), move || {
            if held > 0 && !begins_with(&path, &bytes[..held])? {
                return Ok(false);
            }
            files::replace(&path, &bytes, owner, Survives::PowerLoss).map(|()| true)
        })
        .await?;
        if same {
            return Ok(());
        }
        let why = format!("up to {own} it is not what is here");
        Err(InstanceError::OtherLog { segment: segment.name.clone(), why })
    }
}

fn begins_with(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let mut held = vec![0; bytes.len()];
    match open_plain(path)?.read_exact(&mut held) {
        Ok(()) => Ok(held == bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_page_says_whose_it_is() {
        let mut bytes = vec![0u8; 64];
        bytes[8..16].copy_from_slice(&0x0300_0000u64.to_ne_bytes());
        bytes[24..32].copy_from_slice(&7u64.to_ne_bytes());
        bytes[32..36].copy_from_slice(&(16u32 << 20).to_ne_bytes());
        let expected = FirstPage { begin: Lsn(0x0300_0000), system: 7, segment_bytes: 16 << 20 };
        assert_eq!(FirstPage::read(&bytes), Some(expected));
        assert_eq!(FirstPage::read(&bytes[..35]), None);
    }
}
