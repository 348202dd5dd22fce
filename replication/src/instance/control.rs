//! The control file, as `pg_controldata` shows it.

use super::{Instance, InstanceConfig, InstanceError};
use crate::run::Run;
use pgstead_types::report::CleanStop;
use pgstead_types::{Lsn, Timeline};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlData {
    pub system_identifier: String,
    /// Such as `in production`, `shut down`, `in archive recovery`.
    pub state: String,
    pub checkpoint: Lsn,
    pub timeline: Timeline,
    pub segment_bytes: u64,
    /// Of the position that a standby's recovery has reached and must reach again; 0 where there is none.
    pub recovered_timeline: Timeline,
    /// What a standby's settings must reach, as the last primary of this history had them.
    pub floors: BTreeMap<String, u64>,
    /// Its `wal_level` was `logical`.
    pub logical: bool,
}

/// Settings that a standby refuses to start with below the primary's, and what `pg_controldata` calls them.
const FLOORS: [(&str, &str); 5] = [
    ("max_connections", "max_connections setting"),
    ("max_worker_processes", "max_worker_processes setting"),
    ("max_wal_senders", "max_wal_senders setting"),
    ("max_prepared_transactions", "max_prepared_xacts setting"),
    ("max_locks_per_transaction", "max_locks_per_xact setting"),
];

/// The last answer, good for as long as the file stays the same: a stopped Postgres is looked at often.
#[derive(Default)]
pub struct ControlCache(Mutex<Option<(SystemTime, ControlData)>>);

impl ControlData {
    pub async fn read(config: &InstanceConfig) -> Result<Self, InstanceError> {
        let args = [config.data_dir.to_string_lossy().into_owned()];
        let run = Run::new(&config.program("pg_controldata"), args).run_as(config.owner());
        let output = run.deadline(Duration::from_secs(10)).output().await?;
        Self::parse(&output.stdout)
            .ok_or(InstanceError::ForeignData { why: "its control file is not readable".to_string() })
    }

    fn parse(text: &str) -> Option<Self> {
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        Some(Self {
            system_identifier: field("Database system identifier")?.to_string(),
            state: field("Database cluster state")?.to_string(),
            checkpoint: field("Latest checkpoint location")?.parse().ok()?,
            timeline: Timeline(field("Latest checkpoint's TimeLineID")?.parse().ok()?),
            segment_bytes: field("Bytes per WAL segment")?.parse().ok().filter(|bytes| *bytes > 0)?,
            recovered_timeline: Timeline(field("Min recovery ending loc's timeline")?.parse().ok()?),
            floors: FLOORS
                .iter()
                .map(|(name, called)| Some((name.to_string(), field(called)?.parse().ok()?)))
                .collect::<Option<_>>()?,
            logical: field("wal_level setting") == Some("logical"),
        })
    }

    /// Shut down as a primary. A standby's clean stop leaves `shut down in recovery`, which says nothing of its position.
    pub fn clean_stop(&self) -> Option<CleanStop> {
        (self.state == "shut down").then_some(CleanStop { timeline: self.timeline, checkpoint: self.checkpoint })
    }
}

impl Instance {
    pub(super) async fn control_data(&self) -> Result<ControlData, InstanceError> {
        let config = self.config();
        let path = config.data_dir.join("global/pg_control");
        let changed =
            std::fs::metadata(&path).and_then(|file| file.modified()).map_err(InstanceError::file("read", &path))?;
        let cached = self.control.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, data)) = cached.filter(|(at, _)| *at == changed) {
            return Ok(data);
        }
        let data = ControlData::read(&config).await?;
        *self.control.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((changed, data.clone()));
        Ok(data)
    }

    /// How a Postgres that is down was shut down; `None` unless it was a primary and its stop was clean.
    pub async fn clean_stop(&self) -> Option<CleanStop> {
        self.control_data().await.ok().and_then(|data| data.clean_stop())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_pg_controldata_prints() {
        let text = "pg_control version number:            1300\n\
                    Database system identifier:           7312345678901234567\n\
                    Database cluster state:               shut down\n\
                    Latest checkpoint location:           0/1700028\n\
                    Latest checkpoint's TimeLineID:       3\n\
                    Latest checkpoint's PrevTimeLineID:   1\n\
                    Bytes per WAL segment:                16777216\n\
                    Minimum recovery ending location:     0/1700090\n\
                    Min recovery ending loc's timeline:   2\n\
                    wal_level setting:                    logical\n\
                    max_connections setting:              100\n\
                    max_worker_processes setting:         8\n\
                    max_wal_senders setting:              20\n\
                    max_prepared_xacts setting:           0\n\
                    max_locks_per_xact setting:           64\n";
        let data = ControlData::parse(text).unwrap();
        assert_eq!(data.timeline, Timeline(3));
        assert_eq!(data.recovered_timeline, Timeline(2));
        assert_eq!(data.floors["max_wal_senders"], 20);
        assert!(data.logical);
        assert_eq!(data.clean_stop().unwrap().checkpoint, Lsn(0x170_0028));
        let running = ControlData { state: "in production".to_string(), ..data };
        assert_eq!(running.clean_stop(), None);
    }
}
