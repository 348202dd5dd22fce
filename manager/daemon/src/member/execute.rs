//! Executes one action on the real instance. Each is idempotent; what is half done when the daemon dies is seen by the
//! next look and done again.

use super::given_up;
use super::killpoint::{self, When};
use super::notes::{Keeping, NotedSnapshot, Notes};
use super::setup::{self, SetupError};
use super::supervise::NodeContext;
use crate::report::Reports;
use pgstead_agent::Action;
use pgstead_replication::guard::StopMode;
use pgstead_replication::instance::{Bootstrap, CloneProgress, Divergence, Isolation, SafetyCopy, StartAs};
use pgstead_replication::{Instance, InstanceError};
use pgstead_types::record::{ClusterRecord, Lifecycle, MemberRecord};
use pgstead_types::report::{DataSeen, PostgresSeen, PromiseAnswer, Upstream};
use pgstead_types::{Bytes, Epoch, Lsn, MemberId, Position, SnapshotId, Step, VolumeId};
use pgstead_volumes::{Creation, Forking, NewVolume, Owner, Removal, Removed, ToFill, VolumeError, VolumeTags};
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use uuid::Uuid;

/// A clean stop sends the whole log to every standby that answers; one that takes longer is cut short.
const STOP_TIME: Duration = Duration::from_secs(8);

/// A checkpoint takes as long as there are dirty pages; after this the member is looked at, and it is waited for again.
const CHECKPOINT_PATIENCE: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    #[error(transparent)]
    Instance(#[from] InstanceError),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("{0}")]
    VolumeRefused(pgstead_volumes::Refusal),
    #[error(
        "there is no snapshot {0} on this node any more, of which the cluster was to be made; delete the cluster, and fork again"
    )]
    NoSnapshot(SnapshotId),
    #[error(
        "cluster {0} is being made of a snapshot of it, and is waited for; delete that cluster if it does not come to be"
    )]
    ForkUnderWay(String),
    #[error("the node cannot keep its notes of the member; is the disk of data_dir full?")]
    Notes(#[source] io::Error),
    #[error("what is kept in {path} cannot be read, and so is not removed")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("cannot set the old data folder {path} aside")]
    SetAside { path: PathBuf, source: io::Error },
    #[error(
        "no other standby has what the leader has, so its old data is kept before it is rewound, and there is no room for that: \
         {needed} are needed and {free} are free; make room on this disk"
    )]
    NoRoomBesideOne { needed: Bytes, free: Bytes },
    #[error("the log on disk is still being read; there is no answer yet")]
    NoPosition,
    #[error("a sync set was loaded by a newer record than this node knows; it loads none until it has caught up")]
    StaleSet,
    #[error("the promise was made for a newer epoch meanwhile")]
    StalePromise,
    #[error("stopped: the cluster has begun another epoch")]
    Overtaken,
    #[error("the volume is not what it was when its removal was decided; it is looked at again first")]
    AnotherVolume,
}

impl ExecuteError {
    /// Nothing went wrong: it goes on, and is to be asked for again.
    pub fn goes_on(&self) -> bool {
        matches!(self, ExecuteError::Instance(InstanceError::Checkpointing))
    }
}

pub struct Executor<'a> {
    pub context: &'a NodeContext,
    pub instance: &'a Instance,
    pub notes: &'a mut Notes,
    pub reports: &'a Reports,
    pub cluster: &'a ClusterRecord,
    pub member: MemberId,
}

impl Executor<'_> {
    pub async fn execute(&mut self, action: &Action) -> Result<(), ExecuteError> {
        let step = action.step();
        self.pass(When::Before, step);
        self.run(action).await?;
        let last = if matches!(action, Action::Promote { .. }) { Step::Promote } else { step };
        self.pass(When::After, last);
        Ok(())
    }

    fn pass(&self, when: When, step: Step) {
        killpoint::pass(when, step, &self.context.layout.members());
    }

    async fn run(&mut self, action: &Action) -> Result<(), ExecuteError> {
        match action {
            Action::CreateVolume => self.create_volume().await,
            Action::InitDatabase { .. } => {
                let spec = &self.cluster.spec;
                let bootstrap = Bootstrap {
                    database: spec.database.clone(),
                    owner: spec.owner.clone(),
                    owner_password: self.cluster.secrets.owner_password.clone(),
                };
                self.instance.init_database(&bootstrap).await?;
                Ok(())
            }
            Action::AdoptData { .. } => self.adopt_data().await,
            Action::DiscardPartial => {
                self.instance.discard_partial().await?;
                Ok(())
            }
            Action::Clone { from, epoch, .. } => self.clone_data(*from, *epoch).await,
            Action::Rewind { from, epoch, .. } => self.rewind(*from, *epoch).await,
            Action::StartStandby { access, alone, restarts } => {
                self.copy_slots().await;
                self.instance.start_standby(StartAs { access: *access, alone: *alone }).await?;
                self.note(|noted| noted.restarts = *restarts)
            }
            Action::SavePromise { epoch } => self.note(|noted| {
                // An older request never takes a newer promise back.
                if noted.promised < *epoch {
                    noted.promised = *epoch;
                    noted.answer = None;
                }
            }),
            Action::CutUpstream => Ok(self.instance.cut_upstream().await?),
            Action::AnswerPromise { epoch } => self.answer(*epoch).await,
            Action::FetchLog { epoch, from, upto } => self.fetch_log(*epoch, *from, *upto).await,
            Action::Fence => Ok(self.instance.fence().await?),
            Action::Promote { epoch, timeline, sync_set, admitted } => {
                self.instance.prepare_promotion(*epoch, *timeline, sync_set, admitted).await?;
                self.pass(When::After, Step::PreparePromotion);
                self.pass(When::Before, Step::Promote);
                self.instance.promote(*epoch, *timeline).await?;
                Ok(())
            }
            Action::OpenClients => {
                if self.cluster.leadership.leader() == Some(self.member) {
                    self.isolate().await?;
                }
                Ok(self.instance.open_clients().await?)
            }
            Action::UpdateSyncSet { by, epoch, sync_set, admitted } => {
                let by = Some(*by);
                self.note(|noted| noted.set_by = noted.set_by.max(by))?;
                if self.notes.get().set_by > by {
                    return Err(ExecuteError::StaleSet);
                }
                // Before anybody is admitted that could copy it.
                self.isolate().await?;
                Ok(self.instance.update_sync_set_within(*epoch, sync_set, admitted, CHECKPOINT_PATIENCE).await?)
            }
            Action::Follow { of } => {
                let source = self.source(*of)?;
                Ok(self.instance.follow(&source).await?)
            }
            Action::Relay { epoch, admitted } => Ok(self.instance.relay(*epoch, admitted).await?),
            Action::HoldClients { by } => {
                self.note(|noted| noted.set_by = noted.set_by.max(*by))?;
                Ok(self.instance.hold_clients().await?)
            }
            Action::LimitWrites { read_only } => {
                if *read_only {
                    tracing::warn!(cluster = %self.cluster.spec.name, member = %self.member, "takes no writes: its pool has little room left");
                }
                Ok(self.instance.limit_writes(*read_only).await?)
            }
            Action::Checkpoint { operation } => {
                self.instance.checkpoint_for(*operation, CHECKPOINT_PATIENCE).await?;
                let operation = *operation;
                self.note(|noted| noted.checkpointed = Some(operation))
            }
            Action::StopCleanly { .. } => self.stop_cleanly().await,
            Action::RemoveVolume => self.remove_volume().await,
        }
    }

    pub(super) fn note(&mut self, change: impl FnOnce(&mut super::notes::Noted)) -> Result<(), ExecuteError> {
        self.notes.change(change).map_err(ExecuteError::Notes)
    }

    fn record(&self) -> Result<&MemberRecord, SetupError> {
        self.cluster.held(self.member).ok_or_else(|| SetupError::Unknown(format!("member {}", self.member)))
    }

    fn tags(&self) -> VolumeTags {
        VolumeTags { deployment: self.context.deployment, cluster: self.cluster.id, member: self.member }
    }

    fn source(&self, of: Upstream) -> Result<pgstead_replication::instance::UpstreamSource, SetupError> {
        let record = self.context.consensus.record();
        setup::upstream(&record, self.cluster, self.record()?, of)
    }

    /// Before Postgres 17 the leader's logical slots can be copied only to a member that is down. It starts without where that fails.
    async fn copy_slots(&self) {
        let cluster = self.cluster;
        let asked = self.instance.config().logical_replication || self.instance.is_logical();
        let fed = cluster.relay_of(self.member).is_some();
        let leader = cluster.leadership.leader().filter(|leader| *leader != self.member && cluster.is_confirmed());
        let Some(leader) = leader.filter(|_| asked && !fed && cluster.postgres_major < 17) else { return };
        let copied = async {
            let source = self.source(Upstream::of(leader, cluster.epoch))?;
            Ok::<_, SetupError>(self.instance.copy_slots(&source).await?)
        };
        match copied.await {
            Ok(slots) if slots.is_empty() => {}
            Ok(slots) => {
                tracing::info!(cluster = %cluster.spec.name, member = %self.member, ?slots, "the leader's logical slots are copied");
            }
            Err(error) => {
                tracing::warn!(cluster = %cluster.spec.name, member = %self.member, %error, "starts without copies of the leader's logical slots");
            }
        }
    }

    async fn create_volume(&self) -> Result<(), ExecuteError> {
        let owner = self.context.run_as.unwrap_or_else(pgstead_replication::RunAs::myself);
        let new = NewVolume {
            id: self.record()?.volume,
            tags: self.tags(),
            size: self.cluster.spec.volume_size.map(|size| size.0),
            owner: Owner { uid: owner.uid, gid: owner.gid },
        };
        let forked = self.cluster.forked.as_ref().filter(|forked| forked.first == self.member);
        if let Some(forked) = forked.filter(|_| self.cluster.begins()) {
            return self.fork_volume(new, forked.snapshot).await;
        }
        let class = self.cluster.spec.storage_class.as_deref();
        let pool = self.context.storage.for_new(new.id, class).await?.map_err(ExecuteError::VolumeRefused)?;
        match pool.volumes.create(new).await? {
            Creation::Made(_) | Creation::AlreadyThere(_) => Ok(()),
            Creation::Refused(why) => Err(ExecuteError::VolumeRefused(why)),
        }
    }

    async fn fork_volume(&self, new: NewVolume, from: SnapshotId) -> Result<(), ExecuteError> {
        let (id, tags) = (new.id, new.tags);
        let pool = self.context.storage.for_fork(id, from).await?.ok_or(ExecuteError::NoSnapshot(from))?;
        let volumes = &pool.volumes;
        match volumes.fork(new, from).await? {
            Forking::Made(_) | Forking::AlreadyThere(_) => {}
            Forking::ToFill(ToFill { from, into }) => {
                let _turn = pool.copy_turn().await;
                let free = volumes.usage().await?.free;
                let progress = |percent: u8| self.reports.progress(self.member, percent);
                if let Err(error) = pgstead_replication::copy_folder(&from, &into, free, &progress).await {
                    // A part of a copy is of no use, and takes room from others.
                    volumes.remove(id, &tags, Removal::Hard).await?;
                    return Err(error.into());
                }
                volumes.finish_fork(id).await?;
            }
            Forking::NoSnapshot => return Err(ExecuteError::NoSnapshot(from)),
            Forking::Refused(why) => return Err(ExecuteError::VolumeRefused(why)),
        }
        // One that was taken for this alone has done its part. If it stays, its time ends by itself.
        pool.discard_used(from).await;
        Ok(())
    }

    async fn adopt_data(&self) -> Result<(), ExecuteError> {
        let forked = self.cluster.forked.as_ref();
        let forked = forked.ok_or_else(|| SetupError::Unknown("source of this cluster's data".to_string()))?;
        self.instance.adopt_data(forked.member).await?;
        Ok(())
    }

    /// A fork gets its own passwords, once.
    async fn isolate(&self) -> Result<(), ExecuteError> {
        let Some(forked) = &self.cluster.forked else { return Ok(()) };
        let isolation = Isolation {
            cluster: self.cluster.id,
            owner: self.cluster.spec.owner.clone(),
            owner_password: self.cluster.secrets.owner_password.clone(),
            keeps_passwords: forked.keeps_passwords,
        };
        if self.instance.isolate(&isolation).await? {
            tracing::info!(cluster = %self.cluster.spec.name, source = %forked.name, "a fork has passwords of its own");
        }
        Ok(())
    }

    async fn remove_volume(&mut self) -> Result<(), ExecuteError> {
        self.instance.release_guard().await?;
        let volume = self.record()?.volume;
        if self.cluster.lifecycle == Lifecycle::Active {
            self.check_nothing_kept(volume).await?;
        }
        // It takes its snapshots along.
        let record = self.context.consensus.record();
        let of_it = |fork: &&ClusterRecord| fork.forked.as_ref().is_some_and(|forked| forked.member == self.member);
        if let Some(fork) = record.clusters.values().find(|fork| fork.is_being_forked() && of_it(fork)) {
            return Err(ExecuteError::ForkUnderWay(fork.spec.name.clone()));
        }
        match self.context.storage.remove_volume(volume, &self.tags(), Removal::Hard).await? {
            Removed::Refused(why) => Err(ExecuteError::VolumeRefused(why)),
            Removed::NotThere | Removed::SetAside | Removed::Deleted => Ok(()),
        }
    }

    /// A file system that was mounted since the last look, say, has what that did not see.
    async fn check_nothing_kept(&self, volume: VolumeId) -> Result<(), ExecuteError> {
        let Some(volume) = self.context.storage.open(volume).await? else { return Ok(()) };
        let data_dir = self.instance.config().data_dir.clone();
        let kept = given_up::lives(&data_dir)
            .map_err(|source| ExecuteError::Unreadable { path: volume.path.clone(), source })?;
        let own = match self.instance.data_seen(self.cluster.system_identifier.as_deref()).await {
            DataSeen::Present(identity) => self.cluster.is_given_up(identity.incarnation),
            DataSeen::Foreign { .. } => true,
            DataSeen::Absent | DataSeen::Partial | DataSeen::Lost { .. } => false,
        };
        match given_up::looks_into(&volume.path, &data_dir) && kept.is_empty() && !own {
            true => Ok(()),
            false => Err(ExecuteError::AnotherVolume),
        }
    }

    async fn clone_data(&mut self, leader: MemberId, epoch: Epoch) -> Result<(), ExecuteError> {
        let source = self.source(Upstream::of(leader, epoch))?;
        let data_dir = self.instance.config().data_dir.clone();
        let previous = self.instance.kept_data();
        let set_aside = |source| ExecuteError::SetAside { path: data_dir.clone(), source };
        // Complete data of an older incarnation is kept until the copy is complete.
        let old = self.notes.get().complete.filter(|life| *life != self.instance.config().incarnation);
        if let Some(old) = old.filter(|old| self.cluster.is_given_up(*old) && data_dir.exists()) {
            tracing::warn!(member = %self.member, incarnation = %old, "data that was given up is kept beside the new copy");
            given_up::keep(&data_dir, old).map_err(set_aside)?;
        } else if old.is_some() && data_dir.exists() {
            let _ = std::fs::remove_dir_all(&previous);
            std::fs::rename(&data_dir, &previous).map_err(set_aside)?;
        }
        let progress = |percent: u8| self.reports.progress(self.member, percent);
        self.instance.copy_from(&source, &progress).await?;
        Ok(())
    }

    async fn rewind(&mut self, leader: MemberId, epoch: Epoch) -> Result<(), ExecuteError> {
        let source = self.source(Upstream::of(leader, epoch))?;
        let timeline = self.cluster.config().map(|config| config.timeline).unwrap_or_default();
        // A rewind is asked for only where the record says that the histories part, so "no rewind required" is never true.
        let recorded = self.cluster.promotion().map(|promotion| promotion.fork_lsn);
        let divergence = Divergence { timeline, fork: self.fork_from(timeline).or(recorded) };
        // A rewind works on the data itself; until the member streams again, what it was is kept.
        let kept = self.keep_snapshot().await?;
        if !kept {
            self.keep_copy(&|percent: u8| self.reports.progress(self.member, percent)).await?;
            // From here on the data is no longer what it was: no snapshot is taken of it.
            self.note_kept(Keeping::Refused)?;
        }
        let progress = |percent: u8| self.reports.progress(self.member, percent);
        self.instance.rewind_from(&source, divergence, &progress).await?;
        Ok(())
    }

    /// A snapshot of the volume, once for the data that is there. `false`: the storage takes none, or none now.
    async fn keep_snapshot(&mut self) -> Result<bool, ExecuteError> {
        let record = self.record()?;
        let (current, volume) = (record.current(), record.volume);
        // Rewound already, and perhaps not started since; or the data is nobody knows whose.
        let Some(old) = self.notes.get().complete.filter(|life| *life != current) else { return Ok(false) };
        let noted = self.notes.get().kept.filter(|kept| kept.incarnation == old);
        match noted.map(|kept| kept.state) {
            Some(Keeping::Taken) => return Ok(true),
            Some(Keeping::Refused) => return Ok(false),
            Some(Keeping::Begun) | None => {}
        }
        let id = noted.map_or_else(|| SnapshotId::from_uuid(Uuid::now_v7()), |kept| kept.id);
        let kept = NotedSnapshot { incarnation: old, id, state: Keeping::Begun };
        self.note(|notes| notes.kept = Some(kept))?;
        let taken = self.context.storage.keep_before_rewind(id, volume).await;
        if let Err(why) = &taken {
            let (cluster, why) = (&self.cluster.spec.name, super::chain(why));
            tracing::info!(%cluster, member = %self.member, %why, "no snapshot is taken before the rewind");
        }
        if taken.is_ok() {
            self.note_kept(Keeping::Taken)?;
        }
        Ok(taken.is_ok())
    }

    fn note_kept(&mut self, state: Keeping) -> Result<(), ExecuteError> {
        self.note(|notes| notes.kept = notes.kept.map(|kept| NotedSnapshot { state, ..kept }))
    }

    /// A copy beside the data, where there is room for one.
    async fn keep_copy(&self, progress: CloneProgress<'_>) -> Result<(), ExecuteError> {
        let (cluster, member) = (&self.cluster.spec.name, self.member);
        // A pool that cannot be looked at has no room for a copy; the rewind needs none.
        let free = match self.context.storage.home(self.record()?.volume) {
            Some(pool) => pool.volumes.usage().await.map_or(Bytes(0), |pool| pool.free),
            None => Bytes(0),
        };
        match self.instance.copy_aside(free, progress).await? {
            SafetyCopy::Made { bytes, shared } => {
                tracing::info!(%cluster, %member, bytes, shared, "a safety copy is made before the rewind");
            }
            SafetyCopy::AlreadyThere => {}
            // The leader's disk may be the only other one with what this member holds.
            SafetyCopy::NoRoom { needed, free } if self.leader_is_alone() => {
                return Err(ExecuteError::NoRoomBesideOne { needed: Bytes(needed), free: Bytes(free) });
            }
            SafetyCopy::NoRoom { needed, free } => {
                tracing::warn!(%cluster, %member, needed, free, "no room for a safety copy; rewinding without one");
            }
        }
        Ok(())
    }

    /// What was acknowledged before its epoch it may hold alone: it was confirmed with nobody else.
    fn leader_is_alone(&self) -> bool {
        self.cluster.config().is_some_and(|config| config.acknowledges_alone() && !config.asynchronous)
    }

    /// Where the leader's history leaves this member's, by the last position that this member answered with.
    fn fork_from(&self, leader: pgstead_types::Timeline) -> Option<Lsn> {
        let Position { timeline, lsn } = self.notes.get().answer?.position;
        let ancestry = self.cluster.ancestry(leader);
        ancestry.iter().find(|(number, shared)| *number == timeline && *shared < lsn).map(|(_, shared)| *shared)
    }

    /// The position is read after the receiver was seen gone; the answer is durable before it is told.
    async fn answer(&mut self, epoch: Epoch) -> Result<(), ExecuteError> {
        if self.notes.get().promised != epoch {
            return Err(ExecuteError::StalePromise);
        }
        if self.notes.get().answer.is_some_and(|answer| answer.epoch == epoch) {
            return Ok(());
        }
        let incarnation = self.record()?.current();
        let position = match self.instance.probe().await {
            PostgresSeen::Standby(standby) if standby.upstream.is_none() && standby.receiver.is_none() => {
                standby.position
            }
            _ => None,
        };
        let position = position.ok_or(ExecuteError::NoPosition)?;
        self.note(|noted| noted.answer = Some(PromiseAnswer { epoch, incarnation, position }))
    }

    async fn stop_cleanly(&mut self) -> Result<(), ExecuteError> {
        // Known only while it runs, and removed only once it does not.
        let own = match self.instance.probe().await {
            PostgresSeen::Standby(standby) if standby.upstream.is_none() && standby.receiver.is_none() => {
                standby.position.filter(|_| standby.expects.is_some())
            }
            _ => None,
        };
        self.stop().await?;
        match own {
            Some(own) => Ok(self.instance.forget_timelines_after(own.timeline).await?),
            None => Ok(()),
        }
    }

    pub(super) async fn stop(&mut self) -> Result<(), ExecuteError> {
        match self.instance.stop(StopMode::Fast, STOP_TIME).await {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::warn!(%error, member = %self.member, "a clean stop took too long; ending its processes");
                Ok(self.instance.fence().await?)
            }
        }
    }
}
