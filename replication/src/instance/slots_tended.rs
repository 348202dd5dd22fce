//! Copies of logical slots on a standby: moved along to where the leader's are, dropped with them, and judged at each look. Before
//! Postgres 17 nobody else does. `slot_judged` says when one is good, `copied` keeps the note of it.

use super::copied::first_columns;
use super::slot_judged::{Judged, Leader, Note, Slot, judge, last_rewriting, logical_slots};
use super::slots::LOOK_TIME_MAX;
use super::sql::Sql;
use super::{Instance, InstanceError, UpstreamSource};
use pgstead_types::report::Upstream;
use pgstead_types::slots::can_copy_slots;
use pgstead_types::{Lsn, Tick};
use serde::Deserialize;
use std::sync::PoisonError;
use std::time::Duration;

/// For a slot to be moved one step along: it is read from where its oldest open transaction began. Nobody waits for it.
const ADVANCE_TIME_MAX: Duration = Duration::from_secs(60);
/// So many steps as fit in this at one look: other slots wait for their turn.
const STEPS_TIME: Duration = Duration::from_secs(10);
/// What is read is lost where a step is cut short.
const STEP_BYTES: u64 = 128 << 20;
/// Reading is a core's work, and may be in vain.
const PAUSE_MAX: Duration = Duration::from_secs(60);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// How often a slot is moved along.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    failures: u32,
    not_before: Tick,
}

/// A quarter of a core at most; after failures less and less.
fn calc_pause(failures: u32, took: Duration) -> Duration {
    let pause = match failures.checked_sub(1) {
        None => took * 3,
        Some(again) => PAUSE_AFTER_FAILURE * 2_u32.saturating_pow(again.min(6)),
    };
    pause.min(PAUSE_MAX)
}

/// Whom the leader keeps what for, in one answer.
#[derive(Deserialize)]
struct Said {
    primary: bool,
    settled: bool,
    version: u32,
    held: Option<u32>,
    stream: Option<String>,
    rewritings: Vec<String>,
}

impl Instance {
    /// Moves the copies on this standby to where the leader's slots are, drops those that the leader has no more, and notes which of
    /// them a consumer could go on with. It may take long; nobody is to wait for it.
    pub async fn tend_copies(&self, source: &UpstreamSource) -> Result<(), InstanceError> {
        let Some(mut note) = self.copies_under(source.of).await? else { return Ok(()) };
        if note.copies.is_empty() {
            return Ok(());
        }
        let config = self.config();
        let sql = Sql::connect(&config).await?;
        if source.of.relay.is_some() {
            return self.drop_all(&sql, source.of, note, &Leader::default()).await;
        }
        let version = sql.value("ask for its version", "SHOW server_version_num").await?;
        let leader = self.ask_leader(source).await?;
        let versions = [version.and_then(|text| text.parse().ok()).unwrap_or_default(), leader.version];
        if versions.iter().any(|version| can_copy_slots(*version).is_err()) {
            return self.drop_all(&sql, source.of, note, &leader).await;
        }
        if !leader.settled {
            note.forget();
            return self.note_judged(source.of, note).await;
        }
        note.note_stream(leader.stream.as_deref());
        for slot in noted_slots(&sql, config.major, &note).await? {
            let before = note.copies.entry(slot.name.clone()).or_default();
            match leader.slot_of(&slot) {
                Some(theirs) if !slot.lost => {
                    let read = self.move_along(&slot, theirs.confirmed, before.read).await;
                    before.read = before.read.max(read);
                }
                Some(_) => {}
                None if before.goes_without_the_leaders(config.major) => drop_slot(&sql, &slot.name).await?,
                None => {}
            }
        }
        let there = noted_slots(&sql, config.major, &note).await?;
        let judged = |slot: &Slot| {
            let before = note.copies.get(&slot.name).copied().unwrap_or_default();
            // Where the leader has none it is left, or in use just now and dropped the next time.
            let unknown = Judged { left: before.left, ..Judged::default() };
            let judged = leader.slot_of(slot).map_or(unknown, |theirs| judge(before, slot, theirs, &leader));
            if judged.ready != before.ready {
                tracing::info!(slot = %slot.name, ready = judged.ready, confirmed = %slot.confirmed,
                    "what is known of a copied slot has changed");
            }
            (slot.name.clone(), judged)
        };
        note.copies = there.iter().map(judged).collect();
        self.note_judged(source.of, note).await
    }

    /// Nobody can move them along: they would keep log and rows for nothing.
    async fn drop_all(&self, sql: &Sql, of: Upstream, mut note: Note, leader: &Leader) -> Result<(), InstanceError> {
        let major = self.config().major;
        for (name, judged) in &note.copies {
            if judged.goes_without_the_leaders(major) || leader.slots.contains_key(name) {
                drop_slot(sql, name).await?;
            }
        }
        let there = noted_slots(sql, major, &note).await?;
        note.forget();
        note.copies.retain(|name, _| there.iter().any(|slot| slot.name == *name));
        self.note_judged(of, note).await
    }

    async fn ask_leader(&self, source: &UpstreamSource) -> Result<Leader, InstanceError> {
        let config = self.config();
        let doing = "ask the leader for its logical slots";
        // One after the other: by when the slots are looked at, that is kept.
        let text = format!(
            "SELECT json_build_object('primary', NOT pg_is_in_recovery(), 'settled', {SETTLED}, \
               'version', current_setting('server_version_num')::int, 'held', catalog_xmin::text::bigint, \
               'stream', active_pid || ' ' || extract(epoch FROM pg_postmaster_start_time()), \
               'rewritings', (SELECT coalesce(json_agg(name), '[]') FROM pg_ls_dir('pg_logical/mappings', true, false) AS name)) \
             FROM (VALUES (1)) AS one LEFT JOIN pg_replication_slots ON slot_name = '{}'; {}",
            config.incarnation,
            logical_slots(config.major)
        );
        let asking = async {
            let leader = self.try_connect_to_source(source).await?;
            leader.simple_query(&text).await.map_err(InstanceError::sql(doing))
        };
        let too_slow = |_| InstanceError::SqlTooSlow { doing, waited: LOOK_TIME_MAX * 4 };
        let messages = tokio::time::timeout(LOOK_TIME_MAX * 4, asking).await.map_err(too_slow)??;
        let mut rows = first_columns(messages).into_iter();
        let said = rows.next().flatten().unwrap_or_default();
        let said: Said = serde_json::from_str(&said)
            .map_err(|error| InstanceError::SqlAnswer { doing, answer: format!("{said}: {error}") })?;
        if !said.primary {
            return Err(InstanceError::NotAPrimary);
        }
        let slots = slots_in(rows.collect())?;
        Ok(Leader {
            settled: said.settled,
            version: said.version,
            held: said.held,
            stream: said.stream,
            rewritten: last_rewriting(&said.rewritings),
            slots: slots.into_iter().map(|slot| (slot.name.clone(), slot)).collect(),
        })
    }

    /// As far as the leader's slot is and the log was replayed here, in steps. To where its log was read: not where it is beyond
    /// both, or its log is not there. What was read to `read` and need not move is not read again.
    async fn move_along(&self, slot: &Slot, upto: Lsn, read: Option<Lsn>) -> Option<Lsn> {
        let begun = Tick::now();
        let was_read = read.is_some_and(|read| slot.confirmed <= read);
        let pace = self.paces.lock().unwrap_or_else(PoisonError::into_inner).get(&slot.name).copied();
        if (was_read && upto <= slot.confirmed) || pace.is_some_and(|pace| begun < pace.not_before) {
            return None;
        }
        let mut reached = was_read.then_some(slot.confirmed);
        let moved = self.advance(slot, upto, begun, &mut reached).await;
        let failures = match &moved {
            Ok(()) => 0,
            Err(error) => {
                tracing::debug!(%error, slot = %slot.name, "a copied slot cannot be moved along now");
                pace.map_or(0, |pace| pace.failures).saturating_add(1)
            }
        };
        let now = Tick::now();
        let pace = Pace { failures, not_before: now + calc_pause(failures, now.since(begun)) };
        self.paces.lock().unwrap_or_else(PoisonError::into_inner).insert(slot.name.clone(), pace);
        reached
    }

    async fn advance(
        &self,
        slot: &Slot,
        upto: Lsn,
        begun: Tick,
        reached: &mut Option<Lsn>,
    ) -> Result<(), InstanceError> {
        // Before 17 only from its own database.
        let sql = Sql::try_connect_to(&self.config(), slot.what.0.as_deref().unwrap_or("postgres")).await?;
        let doing = "move a copied slot along";
        while reached.is_none_or(|reached| reached < upto) && Tick::now().since(begun) < STEPS_TIME {
            let text = step(&slot.name, upto, reached.is_some());
            let answer = sql.values_within(doing, &text, ADVANCE_TIME_MAX + LOOK_TIME_MAX).await?;
            let Some(end) = answer.into_iter().next().flatten() else { break };
            let end = end.parse().map_err(|_| InstanceError::SqlAnswer { doing, answer: end })?;
            if reached.replace(end) == Some(end) {
                break;
            }
        }
        Ok(())
    }
}

/// Whether a leader has none left of the copies that it may have had and that may lack something.
pub const SETTLED: &str = "coalesce(current_setting('pgstead.slots_settled', true) = 'on', false)";

/// No row where it cannot be moved. `was_read`: its log was, to where it is.
fn step(name: &str, upto: Lsn, was_read: bool) -> String {
    let from = if was_read { ">" } else { ">=" };
    format!(
        "SET statement_timeout = {}; \
         SELECT (pg_replication_slot_advance(slot_name, target)).end_lsn FROM pg_replication_slots, \
           LATERAL (SELECT least(confirmed_flush_lsn + {STEP_BYTES}, '{upto}'::pg_lsn, pg_last_wal_replay_lsn()) AS target) AS reached \
         WHERE slot_name = '{name}' AND NOT active AND pg_is_in_recovery() AND target {from} confirmed_flush_lsn",
        ADVANCE_TIME_MAX.as_millis()
    )
}

async fn noted_slots(sql: &Sql, major: u16, note: &Note) -> Result<Vec<Slot>, InstanceError> {
    let mut slots = slots_in(sql.values("look at the copied slots", &logical_slots(major)).await?)?;
    slots.retain(|slot| note.copies.contains_key(&slot.name));
    Ok(slots)
}

pub(super) fn slots_in(rows: Vec<Option<String>>) -> Result<Vec<Slot>, InstanceError> {
    let doing = "look at the logical slots";
    let slot = |text: String| {
        serde_json::from_str(&text)
            .map_err(|error| InstanceError::SqlAnswer { doing, answer: format!("{text}: {error}") })
    };
    rows.into_iter().flatten().map(slot).collect()
}

/// On a standby alone: once it leads they may be good.
async fn drop_slot(sql: &Sql, name: &str) -> Result<(), InstanceError> {
    let text = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
         WHERE slot_name = '{name}' AND slot_type = 'logical' AND NOT active AND pg_is_in_recovery()"
    );
    sql.values("drop a copied slot", &text).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_is_slow_or_fails_is_moved_along_less_often() {
        let second = Duration::from_secs(1);
        let pauses = [1, 2, 3, 6, 7, 1000].map(|failures| calc_pause(failures, second).as_secs());
        assert_eq!(pauses, [1, 2, 4, 32, 60, 60]);
        assert_eq!(calc_pause(0, second), second * 3);
        assert_eq!(calc_pause(0, second * 40), PAUSE_MAX);
    }

    #[test]
    fn what_was_read_is_not_read_again_and_nothing_is_touched_on_a_primary() {
        let text = step("warehouse", Lsn(100), true);
        assert!(text.contains("target > confirmed_flush_lsn") && text.contains("AND pg_is_in_recovery()"), "{text}");
        assert!(step("warehouse", Lsn(100), false).contains("target >= confirmed_flush_lsn"));
    }
}
