//! Looks at an instance that answer what one probe does not: what its log is good for, what its upstream says of it, whether
//! recovery gets on, whether its pages and its storage are sound. Each is cheap; how often is the caller's decision.

use super::sql::Sql;
use super::{Instance, InstanceError, on_disk, timelines};
use crate::files::{self, Survives};
use crate::guard::GuardPaths;
use crate::proc;
use pgstead_types::{Bytes, Lsn};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Of the server log, so much of the end is looked at. A receiver that is refused writes a few hundred bytes every 100 ms.
const LOG_TAIL_BYTES: u64 = 16 * 1024;
/// A refusal must have come so often in a row: one alone may be the last word of a leader that is gone.
const REFUSALS_MIN: usize = 3;
/// Below this Postgres cannot make a segment of its log, and its end is near.
const FREE_MIN: Bytes = Bytes(48 << 20);

/// What upstreams say when a standby's log cannot be continued from them. A missing slot is not among them: that is made.
const REFUSALS: [&str; 6] = [
    "has already been removed",
    "is ahead of the WAL flush position of this server",
    "is not in this server's history",
    "forked off current database system timeline",
    "is not a child of this",
    "contains invalid starting point",
];
/// A stream that has begun makes earlier refusals history.
const STARTED: &str = "started streaming WAL from primary";

/// How recovery goes; the same value after a long time means that it does not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecoveryMark {
    /// The startup process' title, which names the segment that it is at.
    pub title: String,
    /// MiB that it has read.
    pub read_mib: u64,
}

impl Instance {
    /// Where the oldest segment in `pg_wal` begins, on whatever timeline.
    pub async fn oldest_log(&self) -> Option<Lsn> {
        let segment_bytes = self.control_data().await.ok()?.segment_bytes;
        timelines::oldest_segment(&self.config().pg_wal(), segment_bytes).ok().flatten()
    }

    /// How long the server log is now.
    pub async fn log_length(&self) -> u64 {
        let log = GuardPaths::under(&self.config().run_dir).server_log;
        on_disk("look at", &log.clone(), move || Ok(log.metadata()?.len())).await.unwrap_or(0)
    }

    /// The last reason for which the upstream refused to stream to this standby, if it has done so again and again since the
    /// server log was `from` long.
    pub async fn stream_refusal(&self, from: u64) -> Option<String> {
        let log = GuardPaths::under(&self.config().run_dir).server_log;
        let text = on_disk("read", &log.clone(), move || tail(&log, from)).await.ok()?;
        refusal_in(&text)
    }

    /// Where recovery is, for a Postgres that does not accept connections yet. `None` when there is no such process.
    pub async fn recovery_mark(&self) -> Option<RecoveryMark> {
        let postmaster = self.guard_status().await.ok()??.postmaster?;
        let children = proc::children_of(postmaster.pid).ok()?;
        let title = |pid: i32| proc::command_line(pid).into_iter().next().filter(|title| title.contains(": startup"));
        let (pid, title) = children.into_iter().find_map(|stat| title(stat.pid).map(|title| (stat.pid, title)))?;
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")?.trim().parse::<u64>().ok());
        Some(RecoveryMark { title, read_mib: read.unwrap_or(0) >> 20 })
    }

    /// Reads that found a wrong checksum since Postgres counts, in all databases.
    pub async fn checksum_failures(&self) -> Result<u64, InstanceError> {
        let doing = "count the pages with wrong checksums";
        let sql = Sql::connect(&self.config()).await?;
        let count = sql.value(doing, "SELECT coalesce(sum(checksum_failures), 0) FROM pg_stat_database").await?;
        let answer = count.unwrap_or_default();
        answer.parse().map_err(|_| InstanceError::SqlAnswer { doing, answer })
    }

    /// Writes and syncs a little beside the data, on the same file system. An error says why Postgres cannot write there
    /// either, or soon cannot: root, as the daemon may be, is left room that Postgres does not get. What is free for Postgres.
    pub async fn check_storage(&self) -> Result<Bytes, InstanceError> {
        let config = self.config();
        let probe = config.beside_data("probe");
        on_disk("write to the storage of", &probe.clone(), move || {
            files::replace(&probe, &[0; 4096], config.owner(), Survives::PowerLoss)?;
            let free = files::free_for_postgres(probe.parent().unwrap_or(Path::new("/")))?;
            if free < FREE_MIN { Err(io::Error::other(format!("only {free} are free"))) } else { Ok(free) }
        })
        .await
    }
}

fn tail(path: &Path, from: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    // A log that is shorter than it was has begun anew.
    let from = if from <= length { from } else { 0 };
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(LOG_TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Each start of a stream that a refusal follows was none.
fn refusal_in(log: &str) -> Option<String> {
    let is_refusal = |line: &&str| REFUSALS.iter().any(|refusal| line.contains(refusal));
    let told: Vec<&str> = log.lines().filter(|line| is_refusal(line) || line.contains(STARTED)).collect();
    let last = told.last().filter(|line| is_refusal(line))?;
    if told.iter().filter(|line| is_refusal(line)).count() < REFUSALS_MIN {
        return None;
    }
    Some(last.split_once("ERROR:").map_or(*last, |(_, why)| why).trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMOVED: &str = "2026 [7] FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment 000000010000000000000003 has already been removed\n";
    const BEGUN: &str = "2026 [7] LOG:  started streaming WAL from primary at 0/3000000 on timeline 1\n";

    #[test]
    fn a_refusal_counts_once_it_has_come_again_and_again() {
        assert_eq!(refusal_in(REMOVED), None);
        let why = "requested WAL segment 000000010000000000000003 has already been removed";
        assert_eq!(refusal_in(&REMOVED.repeat(3)).as_deref(), Some(why));
        // Some say that they have started, and are refused then.
        assert_eq!(refusal_in(&format!("{BEGUN}{REMOVED}").repeat(3)).as_deref(), Some(why));
    }

    #[test]
    fn what_an_earlier_upstream_has_refused_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        std::fs::write(&log, REMOVED.repeat(3)).unwrap();
        let before = std::fs::metadata(&log).unwrap().len();
        let refusal = |from| refusal_in(&tail(&log, from).unwrap());
        assert!(refusal(0).is_some());
        assert_eq!(refusal(before), None);
        std::fs::write(&log, REMOVED.repeat(6)).unwrap();
        assert!(refusal(before).is_some(), "this one refuses as well");
        std::fs::write(&log, REMOVED.repeat(3)).unwrap();
        assert!(refusal(before * 2).is_some(), "it has begun anew");
    }

    #[test]
    fn a_stream_that_has_begun_makes_refusals_history() {
        assert_eq!(refusal_in(&format!("{}{BEGUN}", REMOVED.repeat(3))), None);
        assert_eq!(refusal_in("could not connect to the primary server: Connection refused\n"), None);
    }
}
