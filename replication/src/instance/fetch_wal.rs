//! The log that a rewound data folder still lacks.
//!
//! `pg_rewind` copies the leader's log first and then demands it up to where the leader was at the end. Under load that is
//! more than was copied. A Postgres started without an upstream, as every one is, would wait for the rest for ever.
//!
//! It also removes the folder's own log, and counts on the leader for all since the last common checkpoint. A leader that
//! has recycled that, or was itself copied later, has it no more; then only a copy helps.

use super::sql::STATEMENT_TIME_MAX;
use super::{Instance, InstanceError, on_disk, timelines};
use crate::files::{self, Survives};
use crate::run::Run;
use pgstead_types::{Lsn, Tick, Timeline};
use std::path::Path;
use std::time::Duration;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

/// Read from the leader at once: a backend holds it in memory, hex and all.
const PIECE_BYTES: u64 = 1 << 20;
/// For the leader to flush what it has inserted. Its WAL writer does so every 200 ms.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(30);

/// What a data folder needs before it is consistent, from its control file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Needed {
    upto: Lsn,
    timeline: Timeline,
    segment_bytes: u64,
}

impl Needed {
    /// From what `pg_controldata` prints.
    fn parse(text: &str) -> Option<Self> {
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        Some(Self {
            upto: field("Minimum recovery ending location")?.parse().ok()?,
            timeline: Timeline(field("Min recovery ending loc's timeline")?.parse().ok()?),
            segment_bytes: field("Bytes per WAL segment")?.parse().ok().filter(|bytes| *bytes > 0)?,
        })
    }

    fn name(&self, timeline: Timeline, segment: u64) -> String {
        timelines::segment_name(timeline, segment, self.segment_bytes)
    }

    fn numbers(&self, from: Lsn) -> std::ops::RangeInclusive<u64> {
        timelines::segment_numbers(from, self.upto, self.segment_bytes)
    }

    /// Names of the segments from the one that holds `from`, all of the last timeline.
    fn segments(&self, from: Lsn) -> Vec<String> {
        self.numbers(from).map(|segment| self.name(self.timeline, segment)).collect()
    }

    /// Names of the segments as recovery looks for them: each on the newest timeline that has begun in or before it, since a
    /// promotion takes the beginning of its segment along. `history` is the last timeline's file.
    fn read_by_recovery(&self, from: Lsn, history: &str) -> Vec<String> {
        let ends = history.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((Timeline(words.next()?.parse().ok()?), words.next()?.parse::<Lsn>().ok()?))
        });
        let mut timelines: Vec<(Timeline, Lsn)> = Vec::new();
        let mut begin = Lsn(0);
        for (timeline, end) in ends {
            timelines.push((timeline, begin));
            begin = end;
        }
        timelines.push((self.timeline, begin));
        let newest = |segment: u64| {
            let begun = timelines.iter().rev().find(|(_, begin)| begin.0 / self.segment_bytes <= segment);
            begun.map_or(self.timeline, |(timeline, _)| *timeline)
        };
        self.numbers(from).map(|segment| self.name(newest(segment), segment)).collect()
    }
}

impl Instance {
    /// Where the leader's log on disk ends now.
    pub(super) async fn flushed_on(&self, source: &Client) -> Result<Lsn, InstanceError> {
        let doing = "read where the leader's log ends";
        let row = ask(source, doing, "SELECT pg_current_wal_flush_lsn()::text", &[]).await?;
        let answer: String = row.try_get(0).map_err(InstanceError::sql(doing))?;
        answer.parse().map_err(|_| InstanceError::SqlAnswer { doing, answer })
    }

    /// Fetches the log from `from`, which the folder has all of, up to what it needs to be consistent by itself.
    pub(super) async fn fetch_needed_wal(&self, source: &Client, from: Lsn) -> Result<(), InstanceError> {
        let config = self.config();
        let needed = self.needed().await?;
        let begun = Tick::now();
        // Nothing beyond its end on disk may be taken for the leader's history.
        while self.flushed_on(source).await? < needed.upto {
            let waited = Tick::now().since(begun);
            if waited > FLUSH_TIME_MAX {
                return Err(InstanceError::SqlTooSlow { doing: "flush its log on the leader", waited });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for name in needed.segments(from) {
            let path = config.pg_wal().join(&name);
            let bytes = segment(source, &name, needed.segment_bytes).await?;
            let owner = config.owner();
            on_disk("write", &path.clone(), move || files::replace(&path, &bytes, owner, Survives::PowerLoss)).await?;
        }
        Ok(())
    }
}

impl Instance {
    async fn needed(&self) -> Result<Needed, InstanceError> {
        let config = self.config();
        let args = [config.data_dir.to_string_lossy().into_owned()];
        let run = Run::new(&config.program("pg_controldata"), args).run_as(config.owner());
        let output = run.deadline(Duration::from_secs(10)).output().await?;
        let unreadable = || InstanceError::ForeignData { why: "its control file is not readable".to_string() };
        Needed::parse(&output.stdout).ok_or_else(unreadable)
    }

    /// Whether each segment that recovery will read is there, from the checkpoint at which it begins.
    pub(super) async fn has_needed_wal(&self) -> Result<(), InstanceError> {
        let config = self.config();
        let needed = self.needed().await?;
        let read = |path: &Path| std::fs::read_to_string(path).map_err(InstanceError::file("read", path));
        let (label, history) = (
            read(&config.data_dir.join("backup_label"))?,
            read(&config.pg_wal().join(timelines::history_name(needed.timeline)))?,
        );
        let answer = || InstanceError::SqlAnswer { doing: "read backup_label", answer: label.clone() };
        let from = first_needed(&label).ok_or_else(answer)?;
        match needed.read_by_recovery(from, &history).into_iter().find(|name| !config.pg_wal().join(name).exists()) {
            Some(segment) => Err(InstanceError::RewindLacksWal { from, segment }),
            None => Ok(()),
        }
    }
}

/// `START WAL LOCATION: 0/2000028 (file 000000010000000000000002)`
fn first_needed(backup_label: &str) -> Option<Lsn> {
    let rest = backup_label.lines().find_map(|line| line.strip_prefix("START WAL LOCATION: "))?;
    rest.split(' ').next()?.parse().ok()
}

async fn segment(source: &Client, name: &str, segment_bytes: u64) -> Result<Vec<u8>, InstanceError> {
    let doing = "read a segment of the leader's log";
    let path = format!("pg_wal/{name}");
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < segment_bytes {
        let (offset, length) = (bytes.len() as i64, PIECE_BYTES.min(segment_bytes) as i64);
        let row =
            ask(source, doing, "SELECT pg_read_binary_file($1, $2, $3, false)", &[&path, &offset, &length]).await?;
        let piece: Vec<u8> = row.try_get(0).map_err(InstanceError::sql(doing))?;
        if piece.is_empty() {
            let answer = format!("{path} ends at {offset} of {segment_bytes} bytes");
            return Err(InstanceError::SqlAnswer { doing, answer });
        }
        bytes.extend(piece);
    }
    Ok(bytes)
}

async fn ask(
    client: &Client,
    doing: &'static str,
    text: &str,
    with: &[&(dyn ToSql + Sync)],
) -> Result<tokio_postgres::Row, InstanceError> {
    tokio::time::timeout(STATEMENT_TIME_MAX, client.query_one(text, with))
        .await
        .map_err(|_| InstanceError::SqlTooSlow { doing, waited: STATEMENT_TIME_MAX })?
        .map_err(InstanceError::sql(doing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_reads_each_segment_on_the_newest_timeline_that_has_begun_in_it() {
        let needed = Needed { upto: Lsn(0x0500_0010), timeline: Timeline(8), segment_bytes: 16 << 20 };
        let history = "1\t0/1B64450\tno recovery target specified\n\n2\t0/40296A0\tx\n7\t0/50000A0\tx\n";
        assert_eq!(
            needed.read_by_recovery(Lsn(0x0100_0028), history),
            [
                "000000020000000000000001",
                "000000020000000000000002",
                "000000020000000000000003",
                "000000070000000000000004",
                "000000080000000000000005"
            ]
        );
    }

    #[test]
    fn recovery_begins_where_the_label_says() {
        let label = "START WAL LOCATION: 1/2000028 (file 000000010000000100000002)\nCHECKPOINT LOCATION: 1/2000060\n";
        assert_eq!(first_needed(label), Some(Lsn(0x1_0200_0028)));
        assert_eq!(first_needed("CHECKPOINT LOCATION: 1/2000060\n"), None);
    }

    #[test]
    fn the_segments_from_what_is_there_to_what_is_needed() {
        let text = "Minimum recovery ending location:     1/2000010\n\
                    Min recovery ending loc's timeline:   3\n\
                    Bytes per WAL segment:                16777216\n";
        let needed = Needed::parse(text).unwrap();
        assert_eq!(needed.segments(Lsn(0x1_0200_0000)), ["000000030000000100000002"]);
        assert_eq!(
            needed.segments(Lsn(0xffff_fff0)),
            [
                "0000000300000000000000FF",
                "000000030000000100000000",
                "000000030000000100000001",
                "000000030000000100000002"
            ]
        );
        // Up to the end of a segment is all of it and nothing of the next.
        assert_eq!(
            Needed { upto: Lsn(0x0200_0000), ..needed }.segments(Lsn(0x0100_0000)),
            ["000000030000000000000001"]
        );
        assert!(Needed { upto: Lsn(0), ..needed }.segments(Lsn(0x0100_0000)).is_empty());
    }
}
