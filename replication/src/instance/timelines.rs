//! Timelines as `pg_wal` shows them: history files, and which timeline the WAL on disk belongs to.

use pgstead_types::{Lsn, Timeline};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;
use std::{fs, io};

/// In the last column of a history file that only keeps a number from being used.
const BURNED: &str = "burned by pgstead";

/// What a timeline's history file says of its beginning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fork {
    pub parent: Timeline,
    pub at: Lsn,
    /// Not a timeline: its number was given by the record to a promotion that happened elsewhere or nowhere.
    pub burned: bool,
}

pub fn history_name(timeline: Timeline) -> String {
    format!("{:08X}.history", timeline.0)
}

/// The content that burns a number for a member on `own`.
pub fn burned_history(own: Timeline) -> String {
    format!("{own}\t0/0\t{BURNED}\n")
}

fn parse_history(text: &str) -> Option<Fork> {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty() && !line.starts_with('#'))?;
    let mut columns = line.splitn(3, '\t');
    let parent = Timeline(columns.next()?.trim().parse().ok()?);
    let at = columns.next()?.trim().parse().ok()?;
    Some(Fork { parent, at, burned: columns.next().is_some_and(|reason| reason.contains(BURNED)) })
}

/// `Ok(None)` when there is no history file for it, or one that cannot be understood.
pub fn read_fork(pg_wal: &Path, timeline: Timeline) -> io::Result<Option<Fork>> {
    match fs::read_to_string(pg_wal.join(history_name(timeline))) {
        Ok(text) => Ok(parse_history(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The timelines with a history file, burned ones included.
pub fn histories(pg_wal: &Path) -> io::Result<BTreeSet<Timeline>> {
    names(pg_wal, |name| name.strip_suffix(".history").filter(|number| number.len() == 8))
}

/// The timelines with a WAL segment.
fn with_segments(pg_wal: &Path) -> io::Result<BTreeSet<Timeline>> {
    names(pg_wal, digits_of_segment)
}

/// What Postgres calls the segment with this number, counted from the beginning of the log.
pub fn segment_name(timeline: Timeline, number: u64, segment_bytes: u64) -> String {
    let per_name = (1 << 32) / segment_bytes;
    format!("{:08X}{:08X}{:08X}", timeline.0, number / per_name, number % per_name)
}

/// The numbers of the segments from the one that holds `from` to the one that ends with `upto`; none where nothing lies between.
pub fn segment_numbers(from: Lsn, upto: Lsn, segment_bytes: u64) -> RangeInclusive<u64> {
    from.0 / segment_bytes..=upto.0.saturating_sub(1) / segment_bytes
}

/// Of a whole segment, not of a `.partial` one.
pub fn is_segment_name(name: &str) -> bool {
    name.len() == 24 && digits_of_segment(name).is_some()
}

/// The eight digits of the timeline in a segment's name.
fn digits_of_segment(name: &str) -> Option<&str> {
    let digits = name.strip_suffix(".partial").unwrap_or(name);
    (digits.len() == 24 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())).then(|| &digits[..8])
}

fn timeline_of_segment(name: &str) -> Option<Timeline> {
    u32::from_str_radix(digits_of_segment(name)?, 16).ok().map(Timeline)
}

/// Which one a whole segment is, counted from the beginning of the log, on whatever timeline.
pub fn number_of_segment(name: &str, segment_bytes: u64) -> Option<u64> {
    let per_name = (1 << 32) / segment_bytes;
    if !is_segment_name(name) {
        return None;
    }
    let high = u64::from_str_radix(&name[8..16], 16).ok()?;
    Some(high * per_name + u64::from_str_radix(&name[16..], 16).ok()?)
}

/// Where the oldest whole segment begins. The names beyond the log's end, which Postgres keeps for later, are no matter.
pub fn oldest_segment(pg_wal: &Path, segment_bytes: u64) -> io::Result<Option<Lsn>> {
    let mut oldest = None;
    for entry in fs::read_dir(pg_wal)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| number_of_segment(name, segment_bytes));
        oldest = oldest.into_iter().chain(number).min();
    }
    Ok(oldest.map(|number: u64| Lsn(number * segment_bytes)))
}

fn names(pg_wal: &Path, number: impl Fn(&str) -> Option<&str>) -> io::Result<BTreeSet<Timeline>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(pg_wal)? {
        let name = entry?.file_name();
        let timeline = name.to_str().and_then(&number).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        found.extend(timeline.map(Timeline));
    }
    Ok(found)
}

/// The timeline that the last record before `end` belongs to: the greatest that has WAL here and began before `end`. A
/// timeline whose history file came ahead of its WAL, or that is burned, has none of it.
pub fn timeline_at(pg_wal: &Path, end: Lsn) -> io::Result<Timeline> {
    for timeline in with_segments(pg_wal)?.into_iter().rev() {
        if timeline == Timeline(1) {
            return Ok(timeline);
        }
        match read_fork(pg_wal, timeline)? {
            Some(fork) if fork.burned || fork.at >= end => {}
            // Copied data has the WAL of its timeline and may lack older history; without its own it cannot have come
            // to be, so a missing file means that it began long before.
            Some(_) | None => return Ok(timeline),
        }
    }
    Ok(Timeline(1))
}

/// The newest timeline beyond `own` that has a true history file: one whose log has not come.
pub fn expected_after(pg_wal: &Path, own: Timeline) -> io::Result<Option<Timeline>> {
    for timeline in histories(pg_wal)?.into_iter().rev().take_while(|timeline| *timeline > own) {
        if !read_fork(pg_wal, timeline)?.is_some_and(|fork| fork.burned) {
            return Ok(Some(timeline));
        }
    }
    Ok(None)
}

/// Removes the histories of all timelines beyond `own`, and their segments, which hold nothing but what `own` has as well: an
/// upstream sends a segment from its beginning. Without its history, one would pass for the log's timeline. Returns
/// whose histories were removed.
pub fn remove_after(pg_wal: &Path, own: Timeline) -> io::Result<Vec<Timeline>> {
    for entry in fs::read_dir(pg_wal)? {
        let entry = entry?;
        if entry.file_name().to_str().and_then(timeline_of_segment).is_some_and(|timeline| timeline > own) {
            fs::remove_file(entry.path())?;
        }
    }
    let mut removed = Vec::new();
    for timeline in histories(pg_wal)?.into_iter().rev().take_while(|timeline| *timeline > own) {
        fs::remove_file(pg_wal.join(history_name(timeline)))?;
        removed.push(timeline);
    }
    fs::File::open(pg_wal)?.sync_all()?;
    Ok(removed)
}

/// Removes burned numbers beyond the newest true timeline. They are left by a promotion that did not happen, or came from
/// an upstream whose own history file did not arrive any more; Postgres would take the last of them for its target.
/// Returns what was removed.
pub fn remove_leading_burned(pg_wal: &Path) -> io::Result<Vec<Timeline>> {
    let mut removed = Vec::new();
    for timeline in histories(pg_wal)?.into_iter().rev() {
        if !read_fork(pg_wal, timeline)?.is_some_and(|fork| fork.burned) {
            break;
        }
        fs::remove_file(pg_wal.join(history_name(timeline)))?;
        removed.push(timeline);
    }
    fs::File::open(pg_wal)?.sync_all()?;
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: &str = "000000000000000A";

    fn pg_wal(segments: &[u32], histories: &[(u32, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for timeline in segments {
            fs::write(dir.path().join(format!("{timeline:08X}{SEGMENT}")), "").unwrap();
        }
        for (timeline, text) in histories {
            fs::write(dir.path().join(history_name(Timeline(*timeline))), text).unwrap();
        }
        dir
    }

    #[test]
    fn a_timeline_counts_from_the_first_byte_after_its_fork() {
        let dir = pg_wal(&[1, 5], &[(5, "1\t0/A000100\tno recovery target specified\n")]);
        assert_eq!(timeline_at(dir.path(), Lsn(0xA00_0100)).unwrap(), Timeline(1));
        assert_eq!(timeline_at(dir.path(), Lsn(0xA00_0101)).unwrap(), Timeline(5));
    }

    #[test]
    fn the_oldest_segment_counts_on_whatever_timeline() {
        let dir = pg_wal(&[1, 5], &[(5, "1\t0/A000100\tno recovery target specified\n")]);
        fs::write(dir.path().join("000000050000000100000002"), "").unwrap();
        assert_eq!(oldest_segment(dir.path(), 16 << 20).unwrap(), Some(Lsn(0xA00_0000)));
        assert_eq!(oldest_segment(pg_wal(&[], &[]).path(), 16 << 20).unwrap(), None);
    }

    #[test]
    fn a_history_file_without_wal_is_no_timeline_here() {
        let burned = burned_history(Timeline(1));
        let dir = pg_wal(&[1], &[(2, &burned), (5, "1\t0/100\treason\n")]);
        assert_eq!(timeline_at(dir.path(), Lsn(0xA00_0100)).unwrap(), Timeline(1));
    }

    #[test]
    fn a_history_that_came_without_its_log_is_expected_and_can_be_removed() {
        let burned = burned_history(Timeline(1));
        let fork = "1\t0/100\treason\n";
        let dir = pg_wal(&[1, 4], &[(2, &burned), (3, &burned), (4, fork), (5, &burned)]);
        assert_eq!(timeline_at(dir.path(), Lsn(0x100)).unwrap(), Timeline(1), "it was sent what came before the fork");
        assert_eq!(expected_after(dir.path(), Timeline(1)).unwrap(), Some(Timeline(4)));
        assert_eq!(expected_after(dir.path(), Timeline(4)).unwrap(), None);
        assert_eq!(remove_after(dir.path(), Timeline(1)).unwrap(), [5, 4, 3, 2].map(Timeline));
        assert_eq!(expected_after(dir.path(), Timeline(1)).unwrap(), None);
        assert_eq!(timeline_at(dir.path(), Lsn(0x100)).unwrap(), Timeline(1));
    }

    #[test]
    fn burned_numbers_go_unless_a_true_timeline_stands_above_them() {
        let burned = burned_history(Timeline(1));
        let left_over = pg_wal(&[1], &[(2, &burned), (3, &burned)]);
        assert_eq!(remove_leading_burned(left_over.path()).unwrap(), [Timeline(3), Timeline(2)]);
        let promoted = pg_wal(&[1, 4], &[(2, &burned), (3, &burned), (4, "1\t0/100\treason\n"), (5, &burned)]);
        assert_eq!(remove_leading_burned(promoted.path()).unwrap(), [Timeline(5)]);
        assert_eq!(histories(promoted.path()).unwrap(), [2, 3, 4].map(Timeline).into());
    }

    #[test]
    fn the_last_line_of_a_history_is_where_it_began() {
        let text = "1\t0/3000000\tfirst\n\n3\t0/5000000\tsecond\n";
        let fork = Fork { parent: Timeline(3), at: Lsn(0x500_0000), burned: false };
        assert_eq!(parse_history(text), Some(fork));
    }
}
