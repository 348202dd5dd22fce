//! From standby to primary, on the timeline that the record gave, and the note by which a restarted daemon knows in
//! which epoch that was.

use super::applied::{Admitted, Shape, SyncNames};
use super::clients::Senders;
use super::probe::timeline_of_file;
use super::{Instance, InstanceError, on_disk, timelines};
use crate::files::{self, Survives};
use crate::proc::ProcessId;
use pgstead_types::record::SyncSet;
use pgstead_types::report::ClientAccess;
use pgstead_types::{Epoch, Incarnation, Lsn, Tick, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// To replay what is left and leave recovery. WAL that was received and not replayed yet can take a while.
const PROMOTE_TIME_MAX: Duration = Duration::from_secs(120);

/// A promotion as the record orders it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Promotion {
    pub epoch: Epoch,
    /// `T_e`.
    pub timeline: Timeline,
    /// The postmaster that was promoted. Another one has nothing to do with this note.
    postmaster: ProcessId,
    /// `None` until it was seen to have happened.
    pub outcome: Option<Promoted>,
}

/// A promotion that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Promoted {
    pub timeline: Timeline,
    /// The timeline that it left.
    pub parent: Timeline,
    /// Where it left it.
    pub fork_lsn: Lsn,
    /// Read after the end of recovery: at or beyond the end-of-recovery record.
    pub end_of_recovery: Lsn,
}

/// [`Promotion`] in its file.
#[derive(Serialize, Deserialize)]
struct Note {
    epoch: Epoch,
    timeline: Timeline,
    postmaster: ProcessId,
    outcome: Option<Promoted>,
}

impl Instance {
    fn promotion_file(&self) -> PathBuf {
        self.config().run_file("promotion.json")
    }

    /// Everything that must be true before a promotion: clients are kept out and gone, the epoch's standbys may stream and
    /// have slots, the recorded set is what a commit waits for, and the timeline numbers up to `timeline` are taken.
    pub async fn prepare_promotion(
        &self,
        epoch: Epoch,
        timeline: Timeline,
        sync_set: &SyncSet,
        admitted: &BTreeSet<Incarnation>,
    ) -> Result<(), InstanceError> {
        let _changing = self.changing.lock().await;
        let config = self.config();
        if !self.is_in_recovery().await? {
            return Err(InstanceError::NotAStandby);
        }
        if let Some(upstream) = self.applied().upstream() {
            return Err(InstanceError::NotCut { epoch: upstream.epoch });
        }
        let shape = Shape {
            read_only: false,
            access: ClientAccess::Holding,
            sync_names: SyncNames::Set(sync_set.clone()),
            admitted: Some(Admitted { epoch, incarnations: admitted.clone() }),
            upstream: None,
        };
        // Before anything names them: consumers wait for the slots of the set, and Postgres refuses names of slots that are not
        // there. Whom no slot can be made for does not stream, and others may.
        let slots = self.slots_text(admitted);
        if !slots.is_empty() {
            let made = self.ask_kept("make the slots", &slots).await.map(drop).map_err(InstanceError::from);
            made.or_else(InstanceError::without_slots)?;
        }
        let (sql, generation) = self.load_shape(shape).await?;
        self.end_clients(&sql).await?;
        // Postgres goes on sending to whoever streams from it, across its own promotion. Only those follow who have been told
        // to in this epoch; the logins of all others have just been ended.
        self.end_senders(&sql, Senders::AllBut(&Admitted { epoch, incarnations: admitted.clone() })).await?;
        self.note_seen(generation)?;
        let log = super::position::observe_log(&sql).await?;
        self.keep(sql).await;
        let position = super::position::position_of(&log, &config.pg_wal())
            .map_err(InstanceError::file("read", &config.pg_wal()))?
            .ok_or(InstanceError::StillReplaying)?;
        let own = position.timeline;
        let pg_wal = config.pg_wal();
        let existing = timelines::histories(&pg_wal).map_err(InstanceError::file("read", &pg_wal))?;
        if own >= timeline || existing.last().is_some_and(|newest| *newest >= timeline) {
            return Err(InstanceError::TimelineTooSmall {
                asked: timeline,
                own: existing.last().copied().unwrap_or(own).max(own),
            });
        }
        // Every number below, not only those above its own: a standby that comes from an older timeline asks this member
        // for each history file on the way, and copied data lacks the old ones.
        on_disk("burn timelines in", &pg_wal.clone(), move || {
            let missing = |number: &Timeline| !existing.contains(number);
            let (beyond, before): (Vec<_>, Vec<_>) =
                (2..timeline.0).map(Timeline).filter(missing).partition(|number| *number > own);
            for (numbers, parent) in [(before, Timeline(1)), (beyond, own)] {
                let paths: Vec<_> =
                    numbers.iter().map(|number| pg_wal.join(timelines::history_name(*number))).collect();
                files::place_alike(&paths, timelines::burned_history(parent).as_bytes(), config.owner())?;
            }
            Ok(())
        })
        .await
    }

    /// Promotes. Returns at once with the same answer when this very promotion has happened; fences Postgres when it lands
    /// anywhere but on `timeline`.
    pub async fn promote(&self, epoch: Epoch, timeline: Timeline) -> Result<Promoted, InstanceError> {
        let _changing = self.changing.lock().await;
        let postmaster =
            self.guard_status().await?.and_then(|status| status.postmaster).ok_or(InstanceError::NotRunning)?;
        if self.is_in_recovery().await? {
            let applied = self.applied();
            let prepared = applied.seen.as_ref() == Some(&applied.wanted)
                && applied.access() == ClientAccess::Holding
                && applied.wanted.admitted.as_ref().is_some_and(|admitted| admitted.epoch == epoch);
            if !prepared {
                return Err(InstanceError::NotPrepared { epoch });
            }
            // Before it can happen: whoever finds this postmaster out of recovery then knows in which epoch that was.
            self.save_promotion(&Promotion { epoch, timeline, postmaster, outcome: None })?;
            self.ask_kept("promote", "SELECT pg_promote(wait => false)").await?;
        }
        let begun = Tick::now();
        while self.is_in_recovery().await? {
            let waited = Tick::now().since(begun);
            if waited > PROMOTE_TIME_MAX {
                return self.fence_because(InstanceError::DidNotPromote { waited }).await;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let doing = "ask for the timeline after a promotion";
        let text = "SELECT pg_walfile_name(pg_current_wal_insert_lsn()); SELECT pg_current_wal_flush_lsn()";
        let values = self.ask_kept(doing, text).await?;
        let (Some(found), Some(flushed)) = (
            values.first().cloned().flatten().as_deref().and_then(timeline_of_file),
            values.get(1).cloned().flatten().and_then(|text| text.parse::<Lsn>().ok()),
        ) else {
            return Err(InstanceError::SqlAnswer { doing, answer: format!("{values:?}") });
        };
        if found != timeline {
            return self.fence_because(InstanceError::WrongTimeline { found, expected: timeline }).await;
        }
        match self.promotion_of(postmaster, timeline, flushed)? {
            Some(Promotion { epoch: noted, outcome: Some(outcome), .. }) if noted == epoch => Ok(outcome),
            _ => Err(InstanceError::NotPrepared { epoch }),
        }
    }

    async fn fence_because(&self, why: InstanceError) -> Result<Promoted, InstanceError> {
        match self.fence().await {
            Ok(()) => Err(why),
            Err(error) => Err(InstanceError::FenceFailed { why: why.to_string(), error: Box::new(error) }),
        }
    }

    fn save_promotion(&self, promotion: &Promotion) -> Result<(), InstanceError> {
        let Promotion { epoch, timeline, postmaster, outcome } = *promotion;
        let path = self.promotion_file();
        // Worth nothing after a power cut: no postmaster survives that.
        files::replace_json(
            &path,
            &Note { epoch, timeline, postmaster, outcome },
            self.config().owner(),
            Survives::Processes,
        )
        .map_err(InstanceError::file("write", &path))
    }

    pub(super) fn forget_promotion(&self) -> Result<(), InstanceError> {
        let path = self.promotion_file();
        files::remove(&path).map(drop).map_err(InstanceError::file("remove", &path))
    }

    /// The note on this very postmaster, which is out of recovery on `timeline`; completed where the daemon was killed before
    /// it could. `flushed` was read after the end of recovery.
    pub(super) fn promotion_of(
        &self,
        postmaster: ProcessId,
        timeline: Timeline,
        flushed: Lsn,
    ) -> Result<Option<Promotion>, InstanceError> {
        let path = self.promotion_file();
        let note: Option<Note> = files::read_json(&path).map_err(InstanceError::file("read", &path))?;
        let Some(note) = note.filter(|note| note.postmaster == postmaster && note.timeline == timeline) else {
            return Ok(None);
        };
        let Note { epoch, timeline, postmaster, outcome } = note;
        let mut promotion = Promotion { epoch, timeline, postmaster, outcome };
        if outcome.is_none() {
            let pg_wal = self.config().pg_wal();
            let fork = timelines::read_fork(&pg_wal, timeline).map_err(InstanceError::file("read", &pg_wal))?;
            let Some(fork) = fork else { return Ok(None) };
            let (parent, fork_lsn) = (fork.parent, fork.at);
            promotion.outcome = Some(Promoted { timeline, parent, fork_lsn, end_of_recovery: flushed });
            self.save_promotion(&promotion)?;
        }
        Ok(Some(promotion))
    }
}
