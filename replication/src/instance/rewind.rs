//! Making a diverged data folder a prefix of the leader's history again.

use super::basebackup::{CloneProgress, percent_in};
use super::{Instance, InstanceError, StartAs, UpstreamSource};
use crate::guard::StopMode;
use crate::run::Run;
use pgstead_types::report::{ClientAccess, DataIdentity};
use pgstead_types::{Incarnation, Lsn, Tick, Timeline};
use std::time::Duration;

/// A rewind copies little; one that takes this long is not worth waiting for, and a copy is the way out.
const REWIND_TIME_MAX: Duration = Duration::from_secs(1800);
/// For the checkpoint on the source.
const SOURCE_TIME_MAX: Duration = Duration::from_secs(300);

/// What the record knows of where the histories part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Divergence {
    /// The leader's timeline, `T_e`.
    pub timeline: Timeline,
    /// Where the leader's history leaves this member's, if this member's data is known to lie beyond that.
    pub fork: Option<Lsn>,
}

impl Instance {
    /// Rewinds the data of an earlier incarnation to the leader's history, as the incarnation of the configuration. Postgres
    /// must be down; where it was not shut down cleanly it is started once, alone, and stopped. After an error the data
    /// may be unfinished, and is marked so then: a copy is what remains.
    pub async fn rewind_from(
        &self,
        source: &UpstreamSource,
        divergence: Divergence,
        progress: CloneProgress<'_>,
    ) -> Result<DataIdentity, InstanceError> {
        let config = self.config();
        let identity = self.present_data().await?;
        if identity.incarnation == config.incarnation {
            return Ok(identity);
        }
        self.must_be_down().await?;
        self.end_strays().await?;
        self.shut_down_cleanly(identity.incarnation).await?;
        let leader = self.connect_to_source(source).await?;
        self.checkpoint_on(&leader, divergence.timeline).await?;
        let copied_from = self.flushed_on(&leader).await?;
        self.mark_partial("rewind").await?;
        self.write_upstream_certificates(source)?;
        let args = [
            "--target-pgdata",
            &config.data_dir.to_string_lossy(),
            "--source-server",
            &source.follow().rewind_conninfo(&config),
            "--config-file",
            &self.conf_path().to_string_lossy(),
            "--no-ensure-shutdown",
            "--progress",
        ]
        .map(str::to_string);
        let said_none = std::sync::atomic::AtomicBool::new(false);
        let on_line = |line: &str| {
            said_none.fetch_or(line.contains("no rewind required"), std::sync::atomic::Ordering::Relaxed);
            if let Some(percent) = percent_in(line) {
                progress(percent);
            }
        };
        let run = Run::new(&config.program("pg_rewind"), args).run_as(config.owner());
        let rewound = run.on_line(&on_line).deadline(REWIND_TIME_MAX).output().await;
        self.remove_upstream_certificates(None)?;
        let output = rewound?;
        let none = said_none.into_inner() || output.stdout.contains("no rewind required");
        if let Some(fork) = divergence.fork.filter(|_| none) {
            return Err(InstanceError::RewindDisbelieved { fork });
        }
        if !none {
            self.fetch_needed_wal(&leader, copied_from).await?;
            self.has_needed_wal().await?;
        }
        self.mark_complete().await
    }

    /// `pg_rewind` would otherwise run crash recovery itself, as a primary, which writes more of the wrong history and which a
    /// standby's data refuses.
    async fn shut_down_cleanly(&self, present: Incarnation) -> Result<(), InstanceError> {
        let state = self.control_data().await?.state;
        if state == "shut down" || state == "shut down in recovery" {
            return Ok(());
        }
        let wanted = self.config();
        let mut as_it_is = (*wanted).clone();
        as_it_is.incarnation = present;
        self.set_config(as_it_is);
        let stopped = async {
            self.start_standby(StartAs { access: ClientAccess::Holding, alone: false }).await?;
            let begun = Tick::now();
            while super::sql::Sql::try_connect(&self.config()).await.is_err() {
                let waited = Tick::now().since(begun);
                if waited > SOURCE_TIME_MAX || self.guard_status().await?.is_none_or(|now| now.postmaster.is_none()) {
                    return Err(InstanceError::StillReplaying);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            self.stop(StopMode::Fast, Duration::from_secs(60)).await
        }
        .await;
        self.set_config((*wanted).clone());
        if stopped.is_err() {
            self.fence().await?;
        }
        stopped
    }

    /// Right after a promotion the leader's control file still shows the old timeline, and `pg_rewind`, which compares
    /// those, finds nothing to do.
    async fn checkpoint_on(&self, client: &tokio_postgres::Client, expected: Timeline) -> Result<(), InstanceError> {
        let doing = "write a checkpoint on the leader";
        tokio::time::timeout(SOURCE_TIME_MAX, client.simple_query("CHECKPOINT"))
            .await
            .map_err(|_| InstanceError::SqlTooSlow { doing, waited: SOURCE_TIME_MAX })?
            .map_err(InstanceError::sql(doing))?;
        let doing = "read the leader's control file";
        let rows = tokio::time::timeout(
            super::sql::STATEMENT_TIME_MAX,
            client.query_one("SELECT timeline_id FROM pg_control_checkpoint()", &[]),
        )
        .await
        .map_err(|_| InstanceError::SqlTooSlow { doing, waited: super::sql::STATEMENT_TIME_MAX })?
        .map_err(InstanceError::sql(doing))?;
        let found = Timeline(rows.try_get::<_, i32>(0).map_err(InstanceError::sql(doing))?.cast_unsigned());
        if found == expected { Ok(()) } else { Err(InstanceError::SourceElsewhere { found, expected }) }
    }
}
