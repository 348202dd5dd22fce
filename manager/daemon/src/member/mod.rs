//! One task per member of this node: observe, decide, do one step, look again. Everything that it knows it either sees or
//! keeps in its notes on disk, so that a daemon killed at any point goes on where it was.

mod execute;
mod false_sender;
mod fetch_log;
mod given_up;
mod growth;
mod killpoint;
mod notes;
mod observe;
mod pace;
mod setup;
mod slots;
mod supervise;
mod troubles;
mod watch_pid;

pub use fetch_log::LogRequest;
pub use notes::Notes;
pub use supervise::{NodeContext, supervise};

use crate::io_limits::{Limiter, Wanted};
use crate::lease::{self, Ask, Refusing};
use crate::report::Reports;
use execute::Executor;
use observe::Observer;
use pace::{Pace, RETRY_LONGEST};
use pgstead_agent::{Action, Next, decide};
use pgstead_replication::{GuardEvent, Instance};
use pgstead_types::lease::RefusalAnswer;
use pgstead_types::record::{ClusterRecord, Lifecycle};
use pgstead_types::report::{DataSeen, MemberReport, PostgresSeen, RefusalSeen, Working};
use pgstead_types::{ClusterId, MemberId, Step, Tick};
use pgstead_volumes::{Left, VolumeError};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, watch};

/// Between two looks while something is on its way: short against a failover, long against a probe's cost.
const BUSY_PROBE: Duration = Duration::from_millis(20);
pub struct MemberTask {
    cluster: ClusterId,
    member: MemberId,
    context: Arc<NodeContext>,
    instance: Arc<Instance>,
    /// Where the member's volume is, once it is there.
    volume: Option<PathBuf>,
    /// Why nobody can say now whether it is there, and what is in it.
    unseen: Option<String>,
    notes: Notes,
    observer: Observer,
    reports: Reports,
    pace: Pace,
    /// A reload that failed is tried again after this.
    reload_after: Option<Tick>,
    watch: troubles::Watch,
    slots: slots::SlotWatch,
    growth: growth::Growth,
    limiter: Limiter,
    /// Leaders that ask this member to obey no election for a while.
    asks: mpsc::Receiver<Ask>,
    /// Its word to one of them.
    refusing: Option<Refusing>,
}

impl MemberTask {
    /// Runs until the record knows the cluster no more, or `stop`.
    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut record = self.context.consensus.watch_record();
        let mut events = self.instance.guard_events();
        let look = self.reports.look_of(self.member);
        loop {
            let now = record.get();
            let Some(cluster) = now.clusters.get(&self.cluster).filter(|c| c.held(self.member).is_some()) else {
                self.reports.remove(self.member);
                self.context.instances.remove(self.member);
                return;
            };
            if let Err(error) = self.refresh(cluster).await {
                tracing::warn!(cluster = %cluster.spec.name, %error, "cannot bring the configuration up to date");
            }
            self.ensure_loaded(cluster).await;
            self.ensure_limited(cluster).await;
            let acted = tokio::select! {
                () = crate::server::stopped(&mut stop) => return,
                acted = self.step(cluster) => acted,
            };
            if acted {
                continue;
            }
            let refusing = self.refusing.map_or(Duration::MAX, |refusing| refusing.left(Tick::now()));
            let wait = self.wait_time(cluster).min(refusing);
            let revision = cluster.revision;
            let (id, receiver) = (self.cluster, self.observer.receiver_pid());
            tokio::select! {
                () = crate::server::stopped(&mut stop) => return,
                changed = record.wait_until(|next| next.clusters.get(&id).is_none_or(|c| c.revision != revision)) => {
                    if changed.is_err() {
                        return;
                    }
                }
                Some(ask) = self.asks.recv() => self.on_ask(cluster, ask).await,
                () = look.notified() => {}
                event = events.recv() => self.note_event(&cluster.spec.name, event),
                () = watch_pid::ended(receiver) => self.observer.receiver_ended(),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Settings and certificates that the running Postgres has not loaded yet. Beside the other steps: nothing waits for it.
    async fn ensure_loaded(&mut self, cluster: &ClusterRecord) {
        if self.reload_after.is_some_and(|after| Tick::now() < after) {
            return;
        }
        match setup::ensure_loaded(&self.context, &self.instance).await {
            Ok(false) => self.reload_after = None,
            Ok(true) => {
                self.reload_after = None;
                tracing::info!(cluster = %cluster.spec.name, member = %self.member, action = %Step::Reload, "done");
            }
            Err(error) => {
                self.reload_after = Some(Tick::now() + RETRY_LONGEST);
                let error = chain(&error);
                tracing::warn!(cluster = %cluster.spec.name, member = %self.member, action = %Step::Reload, %error, "failed");
            }
        }
    }

    /// What the Postgres may read and write. Before each step: one that is about to start finds its limits in force.
    async fn ensure_limited(&mut self, cluster: &ClusterRecord) {
        let guard = self.instance.guard_if_any().await.map(|guard| guard.process());
        let limits = cluster.spec.io_limits;
        self.limiter.look(Wanted { limits, volume: self.volume.clone(), guard }).await;
    }

    /// Finds the volume and brings the instance's configuration up to the record.
    async fn refresh(&mut self, cluster: &ClusterRecord) -> Result<(), setup::SetupError> {
        if self.volume.as_ref().is_none_or(|path| !path.is_dir())
            && let Some(member) = cluster.held(self.member)
        {
            let opening = tokio::time::timeout(supervise::OPEN_PATIENCE, self.context.storage.open(member.volume));
            let opened = opening.await.unwrap_or_else(|_| {
                let why = "its pool does not answer, or is busy with it".to_string();
                Err(VolumeError::Unusable { id: member.volume, why })
            });
            match opened {
                Ok(volume) => {
                    let (path, size) = volume.as_ref().map(|volume| (&*volume.path, volume.size)).unzip();
                    let limits = self.context.storage.limits_size(member.volume);
                    self.growth.opened(path, size.flatten().filter(|_| limits));
                    (self.volume, self.unseen) = (volume.map(|volume| volume.path), None);
                }
                Err(error) => {
                    self.unseen = Some(chain(&error));
                    return Err(error.into());
                }
            }
        } else {
            self.unseen = None;
        }
        let settings = self.slots.settings(cluster);
        setup::refresh(&self.context, &self.instance, cluster, self.member, self.volume.as_deref(), settings)
    }

    fn note_event(&mut self, cluster: &str, event: Result<GuardEvent, broadcast::error::RecvError>) {
        match event {
            Ok(GuardEvent::Exited { exit, tree_empty }) => {
                tracing::info!(cluster, ?exit, tree_empty, "the postmaster ended");
            }
            Ok(GuardEvent::LeaseOver { why }) => {
                tracing::warn!(cluster, %why, "the guard ends Postgres");
                // No crash: nothing is wrong with this Postgres.
                self.watch.note_ordered_end();
            }
            Ok(GuardEvent::GuardLost) => tracing::warn!(cluster, "the guard is gone, and its Postgres with it"),
            Ok(GuardEvent::Emptied) | Err(_) => {}
        }
    }

    /// Looks once and does at most one step. Whether it did one.
    async fn step(&mut self, cluster: &ClusterRecord) -> bool {
        let leaves = cluster.lifecycle != Lifecycle::Active || cluster.departed.contains_key(&self.member);
        let looks_inside = self.volume.as_deref().is_some_and(|volume| given_up::looks_into(volume, &self.data_dir()));
        let left = match &self.volume {
            None if leaves => self.left(cluster).await,
            None => Some(Left::Nothing),
            Some(_) => Some(Left::Whole),
        };
        let volume_present = left != Some(Left::Nothing);
        let mut seen = self.observer.observe(&self.instance, cluster, &mut self.notes, volume_present).await;
        false_sender::note(&self.instance, &mut self.notes, cluster.epoch);
        if leaves && !looks_inside && matches!(left, None | Some(Left::Whole)) {
            // Nobody has looked into it: nothing is removed before the next look has.
            seen.data = DataSeen::Foreign {
                why: "its volume cannot be read, or has only just appeared; is the pool's file system mounted?".into(),
            };
        }
        if let Some(why) = &self.unseen {
            // What cannot be read is not lost.
            seen.data = DataSeen::Foreign { why: format!("its volume cannot be used: {why}") };
        }
        seen.working = self.pace.working();
        seen.troubles = self.watch.look(&self.instance, &seen, &mut self.notes).await;
        let volume = cluster.held(self.member).map(|member| member.volume);
        seen.troubles.extend(volume.and_then(|volume| self.context.storage.trouble(volume, &seen.postgres)));
        // A volume may say that it has room which its pool does not.
        let in_pool = volume.and_then(|volume| self.context.storage.free(volume));
        let free = self.watch.free().map(|free| in_pool.map_or(free, |in_pool| free.min(in_pool)));
        seen.slots = self.slots.look(&self.context, &self.instance, cluster, &seen, free, &mut self.notes).await;
        seen.volume_size = self.growth.size();
        if let Some(member) = cluster.members.get(&self.member) {
            seen.findings.extend(
                self.growth
                    .finding(&cluster.spec, member)
                    .into_iter()
                    .chain(self.limiter.finding(cluster.spec.io_limits, &member.name))
                    .map(|finding| finding.on_cluster(self.cluster).on_member(self.member).on_node(member.node)),
            );
        }
        seen.refusing = self.refusing();
        let Next { action, findings } = decide(cluster, self.member, &seen);
        seen.findings.extend(findings);
        if let Some(member) = cluster.held(self.member) {
            let own = leaves && seen.incarnation().is_some_and(|life| cluster.is_given_up(life));
            let kept = given_up::finding(&self.data_dir(), &member.name, own);
            let doubtful = false_sender::finding(&self.notes, cluster, &member.name);
            let said = kept.into_iter().chain(doubtful);
            seen.findings.extend(said.map(|said| said.on_cluster(self.cluster).on_member(self.member)));
        }
        let Some(action) = action else {
            self.pace.rests();
            let gone = leaves && !seen.volume_present && matches!(seen.postgres, PostgresSeen::Down { .. });
            if gone && let Err(error) = self.forget_member() {
                tracing::warn!(%error, cluster = %cluster.spec.name, member = %self.member, "cannot remove what a member that is gone has left");
                // Told only when nothing is left: from then on nobody looks here.
                seen.volume_present = true;
            }
            self.discard_previous(cluster, &seen).await;
            self.reports.put(seen);
            return false;
        };
        if !self.pace.may_begin(action.step(), Tick::now()) {
            self.reports.put(seen);
            return false;
        }
        self.act(cluster, seen, action).await;
        true
    }

    /// The member's word that is still good. One that is over is forgotten on disk as well, so that no restart counts it anew.
    fn refusing(&mut self) -> Option<RefusalSeen> {
        let now = Tick::now();
        let refusing = self.refusing?;
        if !refusing.left(now).is_zero() {
            return Some(refusing.seen(now));
        }
        self.refusing = None;
        if let Err(error) = self.notes.change(|noted| noted.refusing = None) {
            tracing::warn!(%error, member = %self.member, "cannot note that a refusal is over");
        }
        None
    }

    /// Between two steps: nothing is under way that could make the answer untrue.
    async fn on_ask(&mut self, cluster: &ClusterRecord, ask: Ask) {
        let seen = self.observer.observe(&self.instance, cluster, &mut self.notes, self.volume.is_some()).await;
        let record = self.context.consensus.record();
        let answer = match pgstead_agent::lease::may_refuse(record.clusters.get(&self.cluster), &seen, &ask.request) {
            Err(why) => RefusalAnswer::DoesNot { why },
            Ok(()) => match Refusing::begin(&mut self.notes, &ask.request, lease::times(&record)) {
                Ok(refusing) => {
                    self.refusing = Some(refusing);
                    RefusalAnswer::Refuses
                }
                Err(error) => RefusalAnswer::DoesNot { why: format!("it cannot note it: {error}") },
            },
        };
        // A leader that has stopped waiting does not go on by it.
        let _ = ask.answer.send(answer);
    }

    /// Data that was kept for a copy or a rewind goes when the member streams in a confirmed epoch: all that was acknowledged is
    /// then on this disk and on others.
    async fn discard_previous(&self, cluster: &ClusterRecord, seen: &MemberReport) {
        let streams = seen.as_standby().is_some_and(|s| s.receiver.is_some_and(|receiver| receiver.streaming));
        let leads = cluster.leadership.leader() == Some(self.member);
        if let Some(member) = cluster.held(self.member) {
            let settled = cluster.is_confirmed() && (streams || leads);
            self.context.storage.note_settled(member.volume, settled);
        }
        if !cluster.is_confirmed() || !streams || !self.instance.kept_data().exists() {
            return;
        }
        if let Err(error) = self.instance.discard_kept_data().await {
            tracing::warn!(cluster = %cluster.spec.name, %error, "cannot remove data that was set aside");
        }
    }

    fn data_dir(&self) -> PathBuf {
        self.instance.config().data_dir.clone()
    }

    /// What the pool has of a volume that is to go and was not found. `None`: it cannot be read now.
    async fn left(&self, cluster: &ClusterRecord) -> Option<Left> {
        let volume = cluster.held(self.member)?.volume;
        let left = self.context.storage.left_of(volume).await;
        left.inspect_err(|error| {
            tracing::warn!(%error, cluster = %cluster.spec.name, member = %self.member, "cannot look whether its volume is gone");
        })
        .ok()
    }

    /// The volume of a deleted cluster, or of a member that has left, is gone, and it was the data: the rest is of no use to
    /// anyone. Before that is reported: from then on the record may no longer know the member, and a daemon started then would
    /// not look here.
    fn forget_member(&self) -> std::io::Result<()> {
        match std::fs::remove_dir_all(&self.instance.config().run_dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => self.notes.remove(),
        }
    }

    async fn act(&mut self, cluster: &ClusterRecord, mut seen: MemberReport, action: Action) {
        let step = action.step();
        let attempt = self.pace.attempt(step);
        match step {
            Step::StartStandby => self.watch.note_start(),
            Step::Fence | Step::StopCleanly => self.watch.note_ordered_end(),
            _ => {}
        }
        let begun = Tick::now();
        let down = matches!(seen.postgres, PostgresSeen::Down { .. });
        seen.working = Some(Working { step, elapsed_ms: 0, attempt, percent: None, error: None });
        self.reports.put(seen);
        tracing::debug!(cluster = %cluster.spec.name, member = %self.member, action = %step, attempt, "begins");
        let mut executor = Executor {
            context: &self.context,
            instance: &self.instance,
            notes: &mut self.notes,
            reports: &self.reports,
            cluster,
            member: self.member,
        };
        let interruptible = action.is_interruptible();
        let result = if interruptible {
            let mut record = self.context.consensus.watch_record();
            let (id, epoch, lifecycle) = (cluster.id, cluster.epoch, cluster.lifecycle);
            tokio::select! {
                result = executor.execute(&action) => result,
                // Another epoch: its leader may be another, and this copy may be of the wrong history.
                _ = record.wait_until(|next| {
                    let held = next.clusters.get(&id);
                    held.is_none_or(|held| held.epoch != epoch || held.lifecycle != lifecycle)
                }) => {
                    Err(execute::ExecuteError::Overtaken)
                }
            }
        } else {
            executor.execute(&action).await
        };
        let elapsed = Tick::now().since(begun);
        match result {
            Ok(()) => {
                tracing::info!(cluster = %cluster.spec.name, member = %self.member, epoch = %cluster.epoch, action = %step, elapsed_ms = elapsed.as_millis() as u64, "done");
                self.pace.succeeded(step);
            }
            Err(error) if error.goes_on() => self.pace.succeeded(step),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(cluster = %cluster.spec.name, member = %self.member, epoch = %cluster.epoch, action = %step, attempt, %error, "failed");
                self.pace.failed(step, error, Tick::now());
                // Its file system may have become read-only after an error: while nothing uses it, opening mounts it anew.
                if down {
                    self.volume = None;
                }
            }
        }
        self.observer.forget_probe();
    }

    fn wait_time(&self, cluster: &ClusterRecord) -> Duration {
        if let Some(wait) = self.pace.wait(Tick::now()) {
            return wait;
        }
        let busy = !cluster.is_confirmed() || cluster.switchover.is_some() || self.observer.is_unsettled();
        if busy { BUSY_PROBE } else { self.context.config.timing.probe() }
    }
}

/// An error with its causes, for one line of a log or a report.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// What is plainly at rest needs a look only now and then.
fn at_rest(seen: &MemberReport) -> bool {
    match &seen.postgres {
        PostgresSeen::Primary(_) => true,
        PostgresSeen::Standby(standby) => standby.receiver.is_some_and(|receiver| receiver.streaming),
        PostgresSeen::Down { .. } | PostgresSeen::Starting | PostgresSeen::Unresponsive { .. } => false,
    }
}
