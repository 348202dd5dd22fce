//! Ending the stream of an older epoch, for certain: the work behind a promise.

use super::clients::Senders;
use super::sql::NoConnection;
use super::{Instance, InstanceError};
use crate::proc::{self, ProcessId};
use pgstead_types::Tick;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::time::Duration;

/// For a WAL receiver, or the worker that copies slots, to end after SIGTERM. It flushes what it has first; a stuck disk is what takes long.
const RECEIVER_TIME_MAX: Duration = Duration::from_secs(10);

/// In a process' title: `postgres: <cluster_name>: walreceiver streaming 0/3000148`. The name is an incarnation, so that nobody
/// else's title has it.
const RECEIVER: &str = "walreceiver";
const SLOT_WORKER: &str = "slotsync worker";

/// The steps of [`Instance::cut_upstream`]. The hook is called with each of them once it is done, so that a test can look at,
/// or hold up, everything in between.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum CutStep {
    /// The client certificates of every epoch are gone: no new connection can be made.
    CertificatesRemoved,
    /// The configuration names no upstream, and the postmaster was told.
    ConfigurationLoaded,
    /// No WAL receiver is left, and nobody copies slots.
    ReceiverEnded,
    /// A backend that was born since sees no upstream, and still no WAL receiver is there.
    Verified,
}

/// Called when a step is done; the next one begins when its future ends.
pub type CutHook<'a> = &'a (dyn Fn(CutStep) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync);

impl CutStep {
    pub const ALL: [CutStep; 4] =
        [CutStep::CertificatesRemoved, CutStep::ConfigurationLoaded, CutStep::ReceiverEnded, CutStep::Verified];
}

impl Instance {
    /// Ends streaming: when this returns, nothing that is acknowledged from here on was flushed on this member, and its
    /// position only moves by replay. On a stopped Postgres it sees to it that the next start streams from nobody.
    pub async fn cut_upstream(&self) -> Result<(), InstanceError> {
        self.cut_upstream_watched(&|_| Box::pin(async {})).await
    }

    /// [`Instance::cut_upstream`] with something in between its steps.
    pub async fn cut_upstream_watched(&self, hook: CutHook<'_>) -> Result<(), InstanceError> {
        let _changing = self.changing.lock().await;
        // The order is what makes it certain. A receiver that connects from here on has no certificate and is refused by
        // the leader; one that has connected is a process by now, and is ended below.
        self.remove_upstream_certificates(None)?;
        hook(CutStep::CertificatesRemoved).await;

        let relayed = self.applied().may_admit();
        let shape = self.wanted().as_standby();
        let applied = self.write_shape(shape, false).await?;
        let running = match self.guard_status().await? {
            Some(status) => !status.tree_empty,
            None => !self.processes_there()?.is_empty(),
        };
        if !running {
            return self.note_seen(applied.generation);
        }
        self.signal_reload().await?;
        let accepting = match self.wait_in_effect(applied.generation).await {
            Ok(sql) if !sql.is_in_recovery().await? => return Err(InstanceError::NotAStandby),
            Ok(sql) => Some(sql),
            // Before consistency nobody can ask it, and the processes still tell whether a receiver is there.
            Err(NoConnection::NotYet) => None,
            Err(why @ (NoConnection::Refused | NoConnection::Other(_))) => return Err(why.into()),
        };
        hook(CutStep::ConfigurationLoaded).await;

        // The setting alone leaves a receiver streaming and acknowledging for as long as replay is busy elsewhere.
        self.end_receivers().await?;
        hook(CutStep::ReceiverEnded).await;

        if let Some(sql) = accepting {
            let effective = sql.value("read the effective upstream", "SHOW primary_conninfo").await?;
            if effective.as_deref().is_some_and(|conninfo| !conninfo.is_empty()) {
                let what = "a backend that was born since still sees an upstream".to_string();
                return Err(InstanceError::NotInEffect { what, waited: Duration::ZERO });
            }
            // One that the startup process began on its old configuration was refused; it must be gone all the same.
            self.end_receivers().await?;
            if relayed {
                // Nobody is admitted any more, but by a login that began before. Whoever still streamed from here would get the
                // log of the next upstream, or of a promotion, in an epoch that it has not promised.
                self.end_logins(&sql).await?;
                self.end_senders(&sql, Senders::Members).await?;
            }
            self.keep(sql).await;
        }
        self.note_seen(applied.generation)?;
        hook(CutStep::Verified).await;
        Ok(())
    }

    /// SIGTERM to every WAL receiver until none is there, and to the worker that copies logical slots: a promotion would wait for
    /// it, and in the middle of a query to a dead leader it looks at nothing else.
    async fn end_receivers(&self) -> Result<(), InstanceError> {
        let begun = Tick::now();
        while let Some(receiver) = self.process_of(&[RECEIVER, SLOT_WORKER]).await? {
            let waited = Tick::now().since(begun);
            let left = RECEIVER_TIME_MAX.saturating_sub(waited);
            let failed = |error| InstanceError::File {
                doing: "end the WAL receiver of",
                path: self.config().data_dir.clone(),
                error,
            };
            // Opened before it is told to end, so that its end cannot be missed.
            let Some(fd) = receiver.open().map_err(failed)? else { continue };
            receiver.signal(Signal::TERM).map_err(failed)?;
            if !ended_within(fd, left).await? {
                return Err(InstanceError::ReceiverStays { pid: receiver.pid, waited: Tick::now().since(begun) });
            }
        }
        Ok(())
    }

    /// The WAL receiver, by the processes themselves rather than by what Postgres' shared memory says of it.
    pub async fn receiver_process(&self) -> Result<Option<ProcessId>, InstanceError> {
        self.process_of(&[RECEIVER]).await
    }

    /// The worker that copies the leader's logical slots.
    pub async fn slot_worker_process(&self) -> Result<Option<ProcessId>, InstanceError> {
        self.process_of(&[SLOT_WORKER]).await
    }

    async fn process_of(&self, kinds: &[&str]) -> Result<Option<ProcessId>, InstanceError> {
        let Some(status) = self.guard_status().await? else { return Ok(None) };
        let Some(postmaster) = status.postmaster else { return Ok(None) };
        let data_dir = &self.config().data_dir;
        let children =
            proc::children_of(postmaster.pid).map_err(InstanceError::file("look for processes in", data_dir))?;
        let is_one = |stat: &proc::Stat| {
            let title = proc::command_line(stat.pid).into_iter().next().unwrap_or_default();
            let what = title.splitn(3, ": ").nth(2).unwrap_or_default();
            stat.state != 'Z' && kinds.iter().any(|kind| what.starts_with(kind))
        };
        Ok(children.into_iter().find(is_one).map(|stat| stat.id()))
    }

    /// The pid of the WAL receiver, for a pidfd; `None` when there is none.
    pub async fn receiver_pid(&self) -> Option<i32> {
        self.receiver_process().await.ok().flatten().map(|process| process.pid)
    }
}

/// Waits for the process of a pidfd to end; false when it did not in time.
async fn ended_within(fd: OwnedFd, time: Duration) -> Result<bool, InstanceError> {
    super::on_disk("wait for a process of", std::path::Path::new("/proc"), move || {
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        let time = Timespec::try_from(time).map_err(std::io::Error::other)?;
        match poll(&mut fds, Some(&time)) {
            Ok(ready) => Ok(ready > 0),
            // Looked at again by the caller.
            Err(rustix::io::Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    })
    .await
}
