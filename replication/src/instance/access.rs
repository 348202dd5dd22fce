//! What a running leader is told: who may connect, who replicates, what a commit waits for.

use super::applied::{Admitted, Shape, SyncNames};
use super::checkpoints::Purpose;
use super::clients::Senders;
use super::sql::Sql;
use super::{Instance, InstanceError};
use pgstead_types::record::SyncSet;
use pgstead_types::report::ClientAccess;
use pgstead_types::{Epoch, Incarnation, Tick};
use std::collections::BTreeSet;
use std::time::Duration;

/// For a caller that waits to the end, between two looks.
const CHECKPOINTS_PATIENCE: Duration = Duration::from_secs(60);
/// For WAL senders to take note of a changed set.
const SENDERS_TIME_MAX: Duration = Duration::from_secs(10);

impl Instance {
    /// Lets clients in. Consumers only where no slot is left of which nobody knows whether it misses something; nobody else waits
    /// for that.
    pub async fn open_clients(&self) -> Result<(), InstanceError> {
        let wait = {
            let _changing = self.changing.lock().await;
            let wait = self.hold_consumers().await?;
            let shape = Shape { access: ClientAccess::Open, ..self.wanted() };
            let (sql, generation) = self.load_shape(shape).await?;
            self.keep(sql).await;
            self.note_access_seen(generation)?;
            wait
        };
        self.checkpoint_timeline().await;
        if wait && let Err(error) = self.settle_waiting_consumers().await {
            tracing::warn!(%error, "consumers of logical slots are kept out for now");
        }
        Ok(())
    }

    /// Keeps new clients out and ends the ones that are in.
    pub async fn hold_clients(&self) -> Result<(), InstanceError> {
        let _changing = self.changing.lock().await;
        let shape = Shape { access: ClientAccess::Holding, ..self.wanted() };
        let (sql, generation) = self.load_shape(shape).await?;
        self.end_clients(&sql).await?;
        self.note_access_seen(generation)
    }

    /// Has transactions begin as read-only, and ends those that write; or lets them write again. Sessions go on, and read. One that
    /// says that it writes is let, until its next write meets [`Instance::hold_clients`].
    pub async fn limit_writes(&self, read_only: bool) -> Result<(), InstanceError> {
        let _changing = self.changing.lock().await;
        let shape = Shape { read_only, ..self.wanted() };
        let (sql, generation) = self.load_shape(shape).await?;
        if read_only {
            self.end_writers(&sql).await?;
        }
        self.note_access_seen(generation)
    }

    /// Makes the leader's sync set, slots and replication identities those of the record. `epoch` is the leader's.
    pub async fn update_sync_set(
        &self,
        epoch: Epoch,
        sync_set: &SyncSet,
        admitted: &BTreeSet<Incarnation>,
    ) -> Result<(), InstanceError> {
        loop {
            match self.update_sync_set_within(epoch, sync_set, admitted, CHECKPOINTS_PATIENCE).await {
                Err(InstanceError::Checkpointing) => {}
                other => return other,
            }
        }
    }

    /// [`Instance::update_sync_set`]. Where commits did not wait before, it takes two checkpoints, minutes on a large
    /// Postgres: after `patience` the answer is [`InstanceError::Checkpointing`], and the set is not in effect then. Asked
    /// again for the same, it goes on waiting.
    pub async fn update_sync_set_within(
        &self,
        epoch: Epoch,
        sync_set: &SyncSet,
        admitted: &BTreeSet<Incarnation>,
        patience: Duration,
    ) -> Result<(), InstanceError> {
        let _changing = self.changing.lock().await;
        let sql = Sql::connect(&self.config()).await?;
        if sql.is_in_recovery().await? {
            return Err(InstanceError::NotAPrimary);
        }
        let admitted = Admitted { epoch, incarnations: admitted.clone() };
        let shape =
            Shape { sync_names: SyncNames::Set(sync_set.clone()), admitted: Some(admitted.clone()), ..self.wanted() };
        let applied = self.applied();
        if applied.seen.as_ref() == Some(&shape) && applied.wanted == shape && !applied.senders_pending {
            // Only slots are not as they should be: nobody has to dial in again for that.
            return self.settle_slots(&sql, applied.generation, &admitted.incarnations).await;
        }
        let under_way = self.checkpoints_for(Purpose::Generation(applied.generation)).await;
        let generation = if under_way && applied.wanted == shape {
            // All but the checkpoints is done, for this very file.
            applied.generation
        } else {
            let (generation, waits_anew) = self.load_sync_set(&sql, sync_set, &admitted, shape).await?;
            if !waits_anew {
                return self.settle_slots(&sql, generation, &admitted.incarnations).await;
            }
            generation
        };
        // Whether commits wait at all is for the checkpointer to say to the backends, when it has seen the reload. It looks
        // before each checkpoint; the one that it may be writing by the first request began before.
        if !self.checkpoints(Purpose::Generation(generation), 2, patience).await? {
            return Err(InstanceError::Checkpointing);
        }
        self.settle_slots(&sql, generation, &admitted.incarnations).await
    }

    /// The set is in effect, whatever becomes of slots: where users' have taken every place, those who have none wait.
    async fn settle_slots(
        &self,
        sql: &Sql,
        generation: u64,
        wanted: &BTreeSet<Incarnation>,
    ) -> Result<(), InstanceError> {
        self.drop_slots(sql, wanted).await?;
        self.note_set_seen(generation)?;
        self.ensure_slots(sql, wanted).await
    }

    /// Has every WAL sender go by the set. The generation of the configuration that says so, and whether commits wait by it
    /// that may not have waited before.
    async fn load_sync_set(
        &self,
        sql: &Sql,
        sync_set: &SyncSet,
        admitted: &Admitted,
        shape: Shape,
    ) -> Result<(u64, bool), InstanceError> {
        // Slots first: whoever is admitted finds its own.
        self.ensure_slots(sql, &admitted.incarnations).await.or_else(InstanceError::without_slots)?;
        // Known only when the last change of it was seen through: one that was cut short may have reached some senders.
        let applied = self.applied();
        let before = applied.seen.map(|seen| seen.sync_names).filter(|_| !applied.senders_pending);
        let (sql, generation) = self.load_shape(shape).await?;
        self.end_senders(&sql, Senders::AllBut(admitted)).await?;
        // Each WAL sender reads its configuration by itself, and with the old number it would release commits too early.
        // Nothing shows which number it goes by, so all dial in again when more acknowledgements are needed than before.
        let before_needed = match &before {
            Some(SyncNames::Set(set)) => Some(set.needed),
            Some(SyncNames::Nobody) => Some(u8::MAX),
            None => None,
        };
        if before_needed.is_none_or(|before| before < sync_set.needed) {
            self.end_senders(&sql, Senders::All).await?;
        }
        let left = match &before {
            Some(SyncNames::Set(before)) => before.members.difference(&sync_set.members).copied().collect(),
            Some(SyncNames::Nobody) | None => BTreeSet::new(),
        };
        self.senders_know(&sql, sync_set, &left).await?;
        Ok((generation, sync_set.needed > 0 && before_needed.is_none_or(|before| before == 0)))
    }

    /// Waits until every WAL sender counts as synchronous exactly when the set names it. One whose standby has not said yet
    /// how far it is shows no priority, whatever it has loaded; if it is one of those who have `left` the set, that is
    /// waited for, a moment after it has connected.
    async fn senders_know(
        &self,
        sql: &Sql,
        sync_set: &SyncSet,
        left: &BTreeSet<Incarnation>,
    ) -> Result<(), InstanceError> {
        let (listed, left) = (one_of("application_name", &sync_set.members), one_of("application_name", left));
        let text = format!(
            "SELECT count(*) FROM pg_stat_replication WHERE state IN ('startup', 'catchup', 'streaming', 'stopping') \
             AND CASE WHEN flush_lsn IS NULL THEN {left} ELSE (sync_priority > 0) <> ({listed}) END"
        );
        let begun = Tick::now();
        loop {
            let unaware = sql.value("ask what the WAL senders know", &text).await?;
            if unaware.as_deref() == Some("0") {
                return Ok(());
            }
            let waited = Tick::now().since(begun);
            if waited > SENDERS_TIME_MAX {
                let what = format!("{} WAL senders go by the old sync set", unaware.unwrap_or_default());
                return Err(InstanceError::NotInEffect { what, waited });
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    /// A physical slot per incarnation, which keeps WAL from its making on. Works on a standby as well.
    pub(super) async fn ensure_slots(&self, sql: &Sql, wanted: &BTreeSet<Incarnation>) -> Result<(), InstanceError> {
        let text = self.slots_text(wanted);
        if text.is_empty() { Ok(()) } else { sql.values("make the slots", &text).await.map(drop) }
    }

    /// The statements for it; none of them twice does more.
    pub(super) fn slots_text(&self, wanted: &BTreeSet<Incarnation>) -> String {
        let mine = self.config().incarnation;
        let statements: Vec<String> = wanted
            .iter()
            .filter(|one| **one != mine)
            .map(|incarnation| {
                let place = super::consumers::leave_place_for(&incarnation.to_string());
                // One that has lost its log to the budget streams no more, whatever else of the log is left: it is made anew,
                // and whether its standby can go on is told by the log that is there.
                format!(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                     WHERE slot_name = '{incarnation}' AND wal_status = 'lost' AND NOT active; {place}; \
                     SELECT pg_create_physical_replication_slot('{incarnation}', true) \
                     WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{incarnation}')"
                )
            })
            .collect();
        statements.join("; ")
    }

    /// Drops the slots of incarnations that are not wanted; what else there is belongs to someone else.
    pub(super) async fn drop_slots(&self, sql: &Sql, wanted: &BTreeSet<Incarnation>) -> Result<(), InstanceError> {
        let list = "SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT active";
        for name in sql.values("list the slots", list).await?.into_iter().flatten() {
            if name.parse::<Incarnation>().is_ok_and(|incarnation| !wanted.contains(&incarnation)) {
                // It may have become active since; it is dropped the next time then.
                let text = format!(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                     WHERE slot_name = '{name}' AND NOT active"
                );
                sql.value("drop a slot", &text).await?;
            }
        }
        Ok(())
    }
}

/// A condition: the column names one of these.
pub(super) fn one_of(column: &str, incarnations: &BTreeSet<Incarnation>) -> String {
    if incarnations.is_empty() {
        return "false".to_string();
    }
    let names: Vec<String> = incarnations.iter().map(|one| format!("'{one}'")).collect();
    format!("{column} IN ({})", names.join(", "))
}
