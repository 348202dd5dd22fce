//! Checkpoints that somebody waits for, written beside everything else: on a large Postgres one takes minutes, and its node
//! has to look at it meanwhile.

use super::sql::Sql;
use super::{Instance, InstanceError};
use pgstead_types::OperationId;
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
