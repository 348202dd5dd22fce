//! Starting and stopping. Every start is a standby start, without an upstream: a primary exists only by promotion in a
//! recorded epoch (`docs/decisions/0004-every-start-is-a-standby-start.md`).

use super::applied::{Shape, SyncNames};
use super::sql::{NoConnection, Sql};
use super::{Instance, InstanceError, on_disk, timelines};
use crate::files::{self, Survives};
use crate::guard::{GuardError, GuardPaths, StopMode};
use crate::run::tail_of;
use pgstead_types::record::SyncSet;
use pgstead_types::report::ClientAccess;
use pgstead_types::{Tick, Timeline};
use std::sync::PoisonError;
use std::time::Duration;

/// How long a start is watched before it is left to the probe. Long recoveries are normal; wrong settings end a postmaster
/// within a second.
const WATCHED: Duration = Duration::from_secs(5);
/// A start is asked so often whatever its file says.
const ASK_ANYWAY: Duration = Duration::from_secs(1);
/// For the last process to be gone after SIGKILL. Only a process stuck in the kernel, on a dead disk, takes longer.
const FENCE_TIME_MAX: Duration = Duration::from_secs(30);

/// How a member is started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StartAs {
    /// Open lets clients read.
    pub access: ClientAccess,
    /// The recorded sync set is known to be empty: a cluster of one member.
    pub alone: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Started {
    /// It ran already and was left as it is.
    Already,
    /// It accepts connections.
    Accepting,
    /// It is still in recovery and goes on.
    Recovering,
}

impl Instance {
    /// What the postmaster writes into the eighth line of its file for `pg_ctl`. To be asked by connections again and again
    /// would cost a recovering Postgres a process each time.
    async fn takes_connections(&self) -> bool {
        let path = self.config().data_dir.join("postmaster.pid");
        let text = on_disk("read", &path.clone(), move || std::fs::read_to_string(path)).await.unwrap_or_default();
        text.lines().nth(7).is_some_and(|status| ["ready", "standby"].contains(&status.trim()))
    }

    /// Starts Postgres as a standby that streams from nobody, admits nobody and acknowledges nothing.
    pub async fn start_standby(&self, start: StartAs) -> Result<Started, InstanceError> {
        let _changing = self.changing.lock().await;
        let config = self.config();
        let guard = self.ensure_guard().await?;
        if guard.status().await?.postmaster.is_some() {
            return Ok(Started::Already);
        }
        let identity = self.present_data().await?;
        if identity.incarnation != config.incarnation {
            let found = identity.incarnation;
            return Err(InstanceError::OtherIncarnation { found, expected: config.incarnation });
        }
        self.must_be_down().await?;
        self.end_strays().await?;
        self.forget_promotion()?;
        self.remove_upstream_certificates(None)?;
        let settings = config.clone();
        let burned = on_disk("prepare a start in", &config.data_dir, move || {
            let data = |name: &str| settings.data_dir.join(name);
            files::replace(&data("standby.signal"), b"", settings.owner(), Survives::PowerLoss)?;
            // The guard says that no process is left, so whatever pid the file names is someone else's by now.
            for left_over in ["postmaster.pid", "recovery.signal", "promote"] {
                files::remove(&data(left_over))?;
            }
            let socket = format!(".s.PGSQL.{}", settings.port);
            for left_over in [format!("{socket}.lock"), socket] {
                files::remove(&settings.run_file(&left_over))?;
            }
            timelines::remove_leading_burned(&settings.pg_wal())
        })
        .await?;
        if !burned.is_empty() {
            tracing::info!(?burned, "removed the burned timelines of a promotion that did not happen");
        }
        let mut shape = Shape::at_start(start.access);
        if start.alone {
            shape.sync_names = SyncNames::Set(SyncSet::default());
        }
        let control = self.control_data().await?;
        {
            let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
            applied.floors = control.floors;
            applied.logical |= config.logical_replication || control.logical;
        }
        let applied = self.write_shape(shape, true).await?;
        let conf = format!("config_file={}", self.conf_path().display());
        let args = ["-D", &config.data_dir.to_string_lossy(), "-c", &conf].map(str::to_string).to_vec();
        let postmaster = guard.start(config.program("postgres"), args).await?;
        // Started from these very files.
        self.note_seen(applied.generation)?;
        self.note_presented(applied.generation)?;
        let begun = Tick::now();
        let mut ask_anyway = ASK_ANYWAY;
        loop {
            let waited = Tick::now().since(begun);
            // The file may be on a disk that is full.
            if waited >= ask_anyway || self.takes_connections().await {
                ask_anyway = waited + ASK_ANYWAY;
                match Sql::try_connect(&config).await {
                    Ok(sql) => {
                        self.keep(sql).await;
                        return Ok(Started::Accepting);
                    }
                    Err(NoConnection::NotYet | NoConnection::Refused | NoConnection::Other(_)) => {}
                }
            }
            if guard.status().await?.postmaster != Some(postmaster) {
                return Err(InstanceError::EndedAtStart {
                    log: tail_of(&GuardPaths::under(&config.run_dir).server_log),
                });
            }
            if Tick::now().since(begun) > WATCHED {
                return Ok(Started::Recovering);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops Postgres: `Fast` writes a shutdown checkpoint and sends the whole log. Returns once no process is left. Nothing
    /// happens when none is there. A stop that takes too long goes on; [`Instance::fence`] ends it.
    pub async fn stop(&self, mode: StopMode, deadline: Duration) -> Result<(), InstanceError> {
        self.close_kept().await;
        let Some(guard) = self.guard_if_any().await else { return self.must_be_down().await };
        let begun = Tick::now();
        let mut events = self.guard_events();
        match guard.stop(mode).await {
            // There is no postmaster, or none any more.
            Ok(()) | Err(GuardError::Refused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        loop {
            if guard.status().await?.tree_empty {
                return Ok(());
            }
            let waited = Tick::now().since(begun);
            if waited > deadline {
                return Err(InstanceError::DidNotStop { waited });
            }
            // Woken by the guard's events; looks again anyway, as its connection may have been lost and made anew.
            let _ = tokio::time::timeout(Duration::from_millis(50), events.recv()).await;
        }
    }

    /// Postgres is down and has the log up to timeline `own`: the histories of later ones go, so that the next start follows
    /// whoever leads then. Nothing happens unless the control file says that a standby ended there, cleanly or not, and on none of them.
    pub async fn forget_timelines_after(&self, own: Timeline) -> Result<(), InstanceError> {
        self.must_be_down().await?;
        let control = self.control_data().await?;
        let recovering = ["shut down in recovery", "in archive recovery"].contains(&control.state.as_str());
        if !recovering || control.timeline.max(control.recovered_timeline) > own {
            return Ok(());
        }
        let pg_wal = self.config().pg_wal();
        let removed =
            on_disk("remove histories in", &pg_wal.clone(), move || timelines::remove_after(&pg_wal, own)).await?;
        if !removed.is_empty() {
            tracing::info!(?removed, "removed the histories of timelines of which there is no log");
        }
        Ok(())
    }

    /// SIGKILL to every process until none is left. Starts a guard to do it where there is none.
    pub async fn fence(&self) -> Result<(), InstanceError> {
        self.close_kept().await;
        if self.guard_if_any().await.is_none() && self.processes_there()?.is_empty() {
            return Ok(());
        }
        match self.ensure_guard().await?.fence(FENCE_TIME_MAX).await {
            // It died since it was last heard of, so another one ends what it has left.
            Err(GuardError::Lost) => Ok(self.ensure_guard().await?.fence(FENCE_TIME_MAX).await?),
            done => Ok(done?),
        }
    }

    /// Ends the guard of a member that is down and leaves for good.
    pub async fn release_guard(&self) -> Result<(), InstanceError> {
        if let Some(guard) = self.guard_if_any().await {
            guard.quit().await?;
        }
        *self.guard.lock().await = None;
        Ok(())
    }
}
