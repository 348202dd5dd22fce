//! Why a step on an instance did not succeed.

use crate::guard::GuardError;
use crate::run::RunError;
use pgstead_types::{Bytes, Epoch, Incarnation, Lsn, Timeline};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_postgres::error::SqlState;

#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    #[error(
        "the run folder {run_dir} has {length} bytes; expected at most {}, for the sockets in it",
        super::RUN_DIR_BYTES_MAX
    )]
    RunDirTooLong { run_dir: PathBuf, length: usize },
    #[error("there is no {program} in {bin_dir}; expected the programs of Postgres {major} there")]
    NoProgram { program: &'static str, bin_dir: PathBuf, major: u16 },
    #[error("{program} is {found}; expected Postgres {major}")]
    WrongMajor { program: PathBuf, found: String, major: u16 },
    #[error("cannot {doing} {path}")]
    File {
        doing: &'static str,
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error(transparent)]
    Program(#[from] RunError),
    #[error(transparent)]
    Guard(#[from] GuardError),
    #[error("cannot {doing} in Postgres")]
    Sql {
        doing: &'static str,
        #[source]
        error: tokio_postgres::Error,
    },
    #[error("Postgres did not {doing} within {waited:?}")]
    SqlTooSlow { doing: &'static str, waited: Duration },
    #[error("cannot {doing}: Postgres answered what was not expected: {answer}")]
    SqlAnswer { doing: &'static str, answer: String },
    #[error("Postgres does not run")]
    NotRunning,
    #[error("Postgres still runs; expected it stopped")]
    StillRunning,
    #[error("Postgres is not a standby")]
    NotAStandby,
    #[error("Postgres is not a primary")]
    NotAPrimary,
    #[error("the leader may have copies of logical slots that lack something, and has not dropped them yet")]
    SlotsNotSettled,
    #[error("logical slots can be copied from Postgres {needed} on, on the leader and here")]
    MinorTooOld { needed: String },
    #[error("a checkpoint is being written; it goes on")]
    Checkpointing,
    #[error("there is no data folder at {data_dir}")]
    NoData { data_dir: PathBuf },
    #[error("the data folder {data_dir} is unfinished: its {what} was cut short; discard it first")]
    PartialData { data_dir: PathBuf, what: String },
    #[error("the data folder is not this member's: {why}; it is left alone")]
    ForeignData { why: String },
    #[error("the data of incarnation {incarnation} was complete and is gone; it comes back only under another number")]
    LostData { incarnation: Incarnation },
    #[error("a copy of it needs {needed}, and {free} can be used for that; make room there")]
    NoRoom { needed: Bytes, free: Bytes },
    #[error("a part of it lies outside of its volume, by {link}; expected a data folder without tablespaces and links")]
    Elsewhere { link: PathBuf },
    #[error(
        "log that the copy needs was removed while it was made (segment {segment}); expected all of it to stay, take it again"
    )]
    LogGone { segment: u64 },
    #[error("there is a data folder at {data_dir} already; it is left alone")]
    DataExists { data_dir: PathBuf },
    #[error("the data is incarnation {found}, expected {expected}")]
    OtherIncarnation { found: Incarnation, expected: Incarnation },
    #[error("Postgres ended while starting; its log says: {log}")]
    EndedAtStart { log: String },
    #[error("the configuration was not seen in effect within {waited:?}: {what}")]
    NotInEffect { what: String, waited: Duration },
    #[error("a WAL receiver (pid {pid}) did not end within {waited:?}")]
    ReceiverStays { pid: i32, waited: Duration },
    #[error("Postgres did not stop within {waited:?}")]
    DidNotStop { waited: Duration },
    #[error("Postgres did not leave recovery within {waited:?}; it was fenced")]
    DidNotPromote { waited: Duration },
    #[error("the promotion led to timeline {found}, expected {expected}; Postgres was fenced")]
    WrongTimeline { found: Timeline, expected: Timeline },
    #[error("the promotion failed ({why}) and fencing failed too")]
    FenceFailed {
        why: String,
        #[source]
        error: Box<InstanceError>,
    },
    #[error("timeline {asked} cannot be reached from timeline {own}; expected a greater one")]
    TimelineTooSmall { asked: Timeline, own: Timeline },
    #[error("the stream of epoch {epoch} is not cut; a promotion comes after the promise")]
    NotCut { epoch: Epoch },
    #[error("this standby does not stream from the leader of epoch {epoch}, so it has nothing to pass on")]
    NothingToRelay { epoch: Epoch },
    #[error("this Postgres is not prepared for a promotion in epoch {epoch}")]
    NotPrepared { epoch: Epoch },
    #[error("the position is not known yet: Postgres is still replaying")]
    StillReplaying,
    #[error("the upstream is on timeline {found} after a checkpoint, expected {expected}")]
    SourceElsewhere { found: Timeline, expected: Timeline },
    #[error("pg_rewind says that nothing is to be done, but the data lies beyond {fork} where the histories part")]
    RewindDisbelieved { fork: Lsn },
    #[error(
        "the leader no longer has its log from {from}, where the histories were last one ({segment} is gone); a copy is \
         what remains"
    )]
    RewindLacksWal { from: Lsn, segment: String },
    #[error("segment {segment} of a log is refused: {why}")]
    OtherLog { segment: String, why: String },
    #[error("a certificate or key is not usable: {why}")]
    BadCertificate { why: String },
}

impl InstanceError {
    /// For `or_else`: all that is wrong is that no slot can be made, since there are as many as there can be. That must keep nobody
    /// from leading.
    pub(crate) fn without_slots(self) -> Result<(), Self> {
        match &self {
            Self::Sql { error, .. } if error.code() == Some(&SqlState::CONFIGURATION_LIMIT_EXCEEDED) => {
                tracing::error!(%error, "no place is left for a member's replication slot; drop one that nobody needs");
                Ok(())
            }
            _ => Err(self),
        }
    }
    /// For `map_err` on file operations.
    pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |error| Self::File { doing, path, error }
    }
    /// For `map_err` on statements.
    pub(crate) fn sql(doing: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |error| Self::Sql { doing, error }
    }
}
