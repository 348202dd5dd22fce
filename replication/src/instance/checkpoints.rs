//! Checkpoints that somebody waits for, written beside everything else: on a large Postgres one takes minutes, and its node
//! has to look at it meanwhile.

use super::probe::timeline_of_file;
use super::sql::Sql;
use super::{Instance, InstanceConfig, InstanceError};
use pgstead_types::{OperationId, Timeline};
use std::time::Duration;
use tokio::task::JoinHandle;

/// The caller's patience is the only bound that makes sense beyond this.
const TIME_MAX: Duration = Duration::from_secs(600);

/// What they are for. Those for something else are not waited for any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// For the checkpointer to have read this generation of the configuration.
    Generation(u64),
    Switchover(OperationId),
    /// The first one of a timeline, after a promotion.
    Promotion,
    /// Whoever asks waits.
    Asked,
}

/// Under way, until somebody has heard how they ended. The task ends with the handle.
pub(super) struct Checkpoints {
    purpose: Purpose,
    task: JoinHandle<Result<(), InstanceError>>,
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Instance {
    /// So many checkpoints, one after the other, begun by the first call for this purpose. Whether they are written: after
    /// `patience` the answer is no, and they go on.
    pub(super) async fn checkpoints(
        &self,
        purpose: Purpose,
        count: u8,
        patience: Duration,
    ) -> Result<bool, InstanceError> {
        let mut under_way = self.checkpointing.lock().await;
        if under_way.as_ref().is_none_or(|held| held.purpose != purpose) {
            let config = self.config();
            let write = async move {
                let sql = Sql::connect(&config).await?;
                for _ in 0..count {
                    sql.values_within("write a checkpoint", "CHECKPOINT", TIME_MAX).await?;
                }
                Ok(())
            };
            *under_way = Some(Checkpoints { purpose, task: tokio::spawn(write) });
        }
        let Some(held) = under_way.as_mut() else { return Ok(false) };
        let Ok(ended) = tokio::time::timeout(patience, &mut held.task).await else { return Ok(false) };
        *under_way = None;
        // It ends otherwise only with the runtime.
        ended.unwrap_or(Err(InstanceError::NotRunning)).map(|()| true)
    }

    /// Whether some for this purpose are under way, or have ended and nobody has heard of it.
    pub(super) async fn checkpoints_for(&self, purpose: Purpose) -> bool {
        self.checkpointing.lock().await.as_ref().is_some_and(|held| held.purpose == purpose)
    }

    /// Has the first checkpoint of a leader's timeline written now, where Postgres would take minutes over it; returns at once,
    /// and nobody hears of the end but the log. Until it is written a leader that is lost cannot be rewound: before Postgres 16
    /// `pg_rewind` goes by the timeline of its last checkpoint, and finds its log to end there.
    pub(super) async fn checkpoint_timeline(&self) {
        let mut under_way = self.checkpointing.lock().await;
        if under_way.as_ref().is_some_and(|held| held.purpose != Purpose::Promotion || !held.task.is_finished()) {
            return; // Somebody waits for one already.
        }
        let config = self.config();
        let task = async move {
            let written = first_of_its_timeline(&config).await;
            if let Err(error) = &written {
                tracing::warn!(%error, "no checkpoint was written after the promotion; Postgres writes one by itself in minutes");
            }
            written
        };
        *under_way = Some(Checkpoints { purpose: Purpose::Promotion, task: tokio::spawn(task) });
    }

    /// Writes a checkpoint.
    pub async fn checkpoint(&self) -> Result<(), InstanceError> {
        self.checkpoints(Purpose::Asked, 1, TIME_MAX).await.map(drop)
    }

    /// Writes the checkpoint before a switchover; [`InstanceError::Checkpointing`] when that takes longer than `patience`:
    /// asked again, it is waited for again.
    pub async fn checkpoint_for(&self, switchover: OperationId, patience: Duration) -> Result<(), InstanceError> {
        match self.checkpoints(Purpose::Switchover(switchover), 1, patience).await? {
            true => Ok(()),
            false => Err(InstanceError::Checkpointing),
        }
    }
}

async fn first_of_its_timeline(config: &InstanceConfig) -> Result<(), InstanceError> {
    let sql = Sql::connect(config).await?;
    let text = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_insert_lsn()) END; \
                SELECT timeline_id FROM pg_control_checkpoint()";
    let values = sql.values("look at the timeline of the last checkpoint", text).await?;
    let own = values.first().cloned().flatten().as_deref().and_then(timeline_of_file);
    let written = values.get(1).cloned().flatten().and_then(|text| text.parse().ok()).map(Timeline);
    match own.is_some_and(|own| written.is_some_and(|written| written < own)) {
        true => sql.values_within("write a checkpoint", "CHECKPOINT", TIME_MAX).await.map(drop),
        false => Ok(()),
    }
}
