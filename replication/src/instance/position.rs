//! How far the WAL on a standby's disk reaches: what a promise is answered with.
//!
//! `pg_last_wal_receive_lsn` is the end of what this postmaster's receivers have flushed. It is NULL when none ran since
//! the start, and begins at the start of a segment when one did, so it can lie before what is on disk. Replay tells
//! the end only when it has got there: then the startup process waits for more. So the greater of the two is the
//! position, and where that is the replayed one, the startup process must be seen waiting.

use super::sql::Sql;
use super::{Instance, InstanceError, timelines};
use pgstead_types::{Lsn, Position, Timeline};
use serde::Deserialize;
use std::io;
use std::path::Path;

/// The startup process has found no more valid WAL on disk and waits: without an upstream, or for its receiver.
/// Pauses and delays of replay have other names.
const AT_THE_END: [&str; 2] = ["RecoveryRetrieveRetryInterval", "RecoveryWalStream"];

/// What a standby says of its log. The wait is read first and the positions after it: once replay is at the end it stays
/// there, unless a receiver brings more, which the received position then counts.
#[derive(Clone, Debug, Deserialize)]
pub struct LogSeen {
    pub startup_wait: Option<String>,
    pub received: Option<Lsn>,
    pub replayed: Option<Lsn>,
}

/// Two statements for [`Sql::values`]: the wait, and the positions as JSON.
pub const STATEMENTS: &str = "SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup'; \
     SELECT json_build_object('received', pg_last_wal_receive_lsn(), 'replayed', pg_last_wal_replay_lsn())";

/// The end of the WAL on disk; `None` while replay has not reached it and no receiver tells.
pub fn calc_end_of_wal(seen: &LogSeen) -> Option<Lsn> {
    let at_the_end = seen.startup_wait.as_deref().is_some_and(|wait| AT_THE_END.contains(&wait));
    match (seen.received, seen.replayed) {
        // Flushed beyond all that was replayed: WAL arrives in order, so nothing lies behind it.
        (Some(received), Some(replayed)) if received >= replayed => Some(received),
        (Some(_) | None, Some(replayed)) if at_the_end => Some(replayed),
        (Some(_) | None, Some(_) | None) => None,
    }
}

pub fn position_of(seen: &LogSeen, pg_wal: &Path) -> io::Result<Option<Position>> {
    let Some(lsn) = calc_end_of_wal(seen) else { return Ok(None) };
    let timeline: Timeline = timelines::timeline_at(pg_wal, lsn)?;
    Ok(Some(Position { timeline, lsn }))
}

const OBSERVING: &str = "ask for the position of the log";

pub async fn observe_log(sql: &Sql) -> Result<LogSeen, InstanceError> {
    log_seen(sql.values(OBSERVING, STATEMENTS).await?)
}

fn log_seen(mut values: Vec<Option<String>>) -> Result<LogSeen, InstanceError> {
    let positions = values.pop().flatten().unwrap_or_default();
    let mut seen: LogSeen = serde_json::from_str(&positions)
        .map_err(|error| InstanceError::SqlAnswer { doing: OBSERVING, answer: format!("{positions}: {error}") })?;
    seen.startup_wait = values.pop().flatten();
    Ok(seen)
}

impl Instance {
    /// The end of the WAL on this standby's disk, on the timeline that it belongs to. As an answer to a promise it counts only
    /// after [`Instance::cut_upstream`]. `None` while it is not known yet: ask again.
    pub async fn position(&self) -> Result<Option<Position>, InstanceError> {
        if !self.is_in_recovery().await? {
            return Err(InstanceError::NotAStandby);
        }
        let seen = log_seen(self.ask_kept(OBSERVING, STATEMENTS).await?)?;
        let pg_wal = self.config().pg_wal();
        position_of(&seen, &pg_wal).map_err(InstanceError::file("read", &pg_wal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(wait: &str, received: Option<u64>, replayed: u64) -> LogSeen {
        LogSeen { startup_wait: Some(wait.to_string()), received: received.map(Lsn), replayed: Some(Lsn(replayed)) }
    }

    #[test]
    fn what_was_received_counts_though_replay_is_behind() {
        assert_eq!(calc_end_of_wal(&seen("RecoveryApplyDelay", Some(900), 100)), Some(Lsn(900)));
    }

    #[test]
    fn after_a_restart_replay_counts_once_it_is_at_the_end() {
        assert_eq!(calc_end_of_wal(&seen("RecoveryRetrieveRetryInterval", None, 500)), Some(Lsn(500)));
        assert_eq!(calc_end_of_wal(&seen("RecoveryPause", None, 500)), None, "paused is not the end");
        assert_eq!(
            calc_end_of_wal(&LogSeen { startup_wait: None, ..seen("", None, 500) }),
            None,
            "busy is not the end"
        );
    }

    #[test]
    fn a_receiver_that_began_at_its_segment_hides_nothing() {
        assert_eq!(calc_end_of_wal(&seen("RecoveryRetrieveRetryInterval", Some(256), 500)), Some(Lsn(500)));
        assert_eq!(calc_end_of_wal(&seen("WALRead", Some(256), 500)), None);
    }
}
