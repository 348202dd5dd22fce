//! What has changed between two thin volumes of a pool, by the pool's own metadata: no block of theirs is read. `thin_delta` of the
//! thin-provisioning-tools compares them and says so in XML, a line per range.

use crate::client::{Lvm, LvmError};
use crate::metadata::{find, metadata_device};
use crate::names::LvPath;
use crate::program::Run;
use crate::volume::{Kind, LogicalVolume};
use pgstead_types::Bytes;
use std::ops::ControlFlow;
use std::time::Duration;

/// Far more than a line of it has.
const LINE_BYTES_MAX: u64 = 1024;
const SECTOR: u64 = 512;

/// Blocks of the later volume, one after the other, that are not as in the earlier one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChangedRange {
    pub from: Bytes,
    pub length: Bytes,
    pub change: Change,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// There is other data.
    Written,
    /// It was given back, and reads as zeros.
    Discarded,
}

impl Lvm {
    /// Tells `each` of every range that `later` has otherwise than `earlier`, in their order. What it was told is only right, and
    /// complete, if this ends well. Meanwhile a state of the pool's metadata is held, one at a time of a pool: what is deleted gives no room back. A
    /// dropped future leaves it to go on to its end; only a process that is killed leaves the metadata held.
    pub async fn changed_ranges(
        &self,
        earlier: &LogicalVolume,
        later: &LogicalVolume,
        deadline: Duration,
        each: impl FnMut(ChangedRange) + Send + 'static,
    ) -> Result<(), LvmError> {
        let (pool, ids) = pair(earlier, later)?;
        if self.holds_metadata(&pool).await? {
            return Err(LvmError::AlreadyHeld { pool });
        }
        let lvm = self.clone();
        let compared = tokio::spawn(async move {
            lvm.hold_metadata(&pool).await?;
            let compared = compare(&pool, ids, deadline, each).await;
            // What went wrong first says more.
            let released = lvm.release_metadata(&pool).await;
            compared.and(released)
        });
        compared.await.map_err(LvmError::Stopped)?
    }
}

/// Their pool, and their numbers in it.
fn pair(earlier: &LogicalVolume, later: &LogicalVolume) -> Result<(LvPath, [u64; 2]), LvmError> {
    match (&earlier.kind, &later.kind) {
        (Kind::Thin { pool, thin_id: left, .. }, Kind::Thin { pool: other, thin_id: right, .. })
            if pool == other && earlier.group == later.group =>
        {
            Ok((LvPath { group: later.group.clone(), name: pool.clone() }, [*left, *right]))
        }
        _ => Err(LvmError::NotComparable { earlier: earlier.path(), later: later.path() }),
    }
}

async fn compare(
    pool: &LvPath,
    [left, right]: [u64; 2],
    deadline: Duration,
    mut each: impl FnMut(ChangedRange) + Send,
) -> Result<(), LvmError> {
    // The device comes first: what follows the option without its number must not be taken for one.
    let run = Run::new(find("thin_delta", "thin-provisioning-tools")?)
        .arg(metadata_device(pool).to_string_lossy())
        .arg("--metadata-snap")
        .args(["--thin1", &left.to_string(), "--thin2", &right.to_string()])
        .deadline(deadline);
    let mut reader = Reader::new([left, right]);
    let mut bad = None;
    let read = run.each_line(LINE_BYTES_MAX, |line| {
        if bad.is_none()
            && let ControlFlow::Break(why) = reader.read(line, &mut each)
        {
            bad = Some(why);
        }
    });
    read.await?;
    match bad.or_else(|| (!reader.is_done()).then(|| "it ends too early".to_string())) {
        None => Ok(()),
        Some(why) => Err(LvmError::BadDelta { why }),
    }
}

/// Reads `thin_delta`'s XML line by line, and holds no more than where it is.
struct Reader {
    ids: [u64; 2],
    at: At,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Beginning,
    /// In the superblock, whose blocks have so many bytes.
    Superblock(u64),
    /// In the comparison: the next range begins at this block or after it.
    Diff {
        block: u64,
        next: u64,
    },
    AfterDiff,
    Done,
}

impl Reader {
    fn new(ids: [u64; 2]) -> Self {
        Self { ids, at: At::Beginning }
    }

    fn is_done(&self) -> bool {
        self.at == At::Done
    }

    /// Breaks at a line that cannot be.
    fn read(&mut self, line: &str, each: &mut impl FnMut(ChangedRange)) -> ControlFlow<String> {
        match self.next(line.trim(), each) {
            Some(at) => {
                self.at = at;
                ControlFlow::Continue(())
            }
            None => ControlFlow::Break(format!("{:?} after {:?}", line.chars().take(200).collect::<String>(), self.at)),
        }
    }

    fn next(&self, line: &str, each: &mut impl FnMut(ChangedRange)) -> Option<At> {
        let name = line.trim_start_matches('<').split([' ', '>', '/']).next().unwrap_or_default();
        match self.at {
            at if line.is_empty() => Some(at),
            At::Beginning if name == "superblock" => {
                let block = attribute(line, "data_block_size")?.checked_mul(SECTOR)?;
                (block > 0).then_some(At::Superblock(block))
            }
            At::Superblock(block) if name == "diff" => {
                let ids = [attribute(line, "left")?, attribute(line, "right")?];
                (ids == self.ids).then_some(At::Diff { block, next: 0 })
            }
            At::Diff { .. } if line == "</diff>" => Some(At::AfterDiff),
            At::Diff { block, next } => {
                let change = match name {
                    "same" => None,
                    "different" | "right_only" => Some(Change::Written),
                    "left_only" => Some(Change::Discarded),
                    _ => return None,
                };
                let (begin, length) = (attribute(line, "begin")?, attribute(line, "length")?);
                let end = begin.checked_add(length).filter(|_| begin >= next && length > 0)?;
                end.checked_mul(block)?;
                if let Some(change) = change {
                    each(ChangedRange { from: Bytes(begin * block), length: Bytes(length * block), change });
                }
                Some(At::Diff { block, next: end })
            }
            At::AfterDiff if line == "</superblock>" => Some(At::Done),
            At::Beginning | At::Superblock(_) | At::AfterDiff | At::Done => None,
        }
    }
}

/// A number among `name="17"` of a tag.
fn attribute(line: &str, name: &str) -> Option<u64> {
    let (_, rest) = line.split_once(&format!(" {name}=\""))?;
    let (number, _) = rest.split_once('"')?;
    number.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, ids: [u64; 2]) -> Result<Vec<ChangedRange>, String> {
        let (mut reader, mut found) = (Reader::new(ids), Vec::new());
        for line in text.lines() {
            if let ControlFlow::Break(why) = reader.read(line, &mut |range| found.push(range)) {
                return Err(why);
            }
        }
        if reader.is_done() { Ok(found) } else { Err("it ends too early".to_string()) }
    }

    /// By thin_delta 0.9.0.
    const RECORDED: &str = include_str!("../tests/reports/2.03.16/thin-delta.xml");

    #[test]
    fn ranges_are_told_in_bytes_and_by_what_happened_to_them() {
        const BLOCK: u64 = 64 << 10;
        let found = read(RECORDED, [2, 4]).unwrap();
        let found: Vec<_> = found.iter().map(|range| (range.from.0, range.length.0, range.change)).collect();
        let expected = [
            (10 * BLOCK, BLOCK, Change::Written),
            (20 * BLOCK, 4 * BLOCK, Change::Discarded),
            (63 * BLOCK, BLOCK, Change::Written),
            (64 * BLOCK, 2 * BLOCK, Change::Written),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_cut_short_or_not_what_was_asked_for_is_an_error() {
        for end in 0..RECORDED.trim_end().len() {
            assert!(read(&RECORDED[..end], [2, 4]).is_err(), "it is cut after {end} bytes");
        }
        assert!(read(RECORDED, [2, 3]).is_err(), "it is of other volumes");
        for (from, to) in [
            ("begin=\"10\"", "begin=\"9\""),
            ("length=\"4\"", "length=\"0\""),
            ("length=\"2\"", "length=\"18446744073709551615\""),
            ("begin=\"64\"", "begin=\"281474976710656\""),
            ("<right_only", "<neither"),
            ("data_block_size=\"128\"", "data_block_size=\"0\""),
            ("</superblock>", "</superblock>\n<more/>"),
        ] {
            let text = RECORDED.replace(from, to);
            assert!(text != RECORDED && read(&text, [2, 4]).is_err(), "{to}");
        }
    }
}
