//! Copies of the leader's logical slots before Postgres 17, which keeps them itself: what is known of them, how they are moved
//! along, and which of them a consumer may go on with. `slot_copy` makes them.
//!
//! A slot needs rows of the catalogs that its leader may remove as soon as nobody there needs them any more, and Postgres 15 says
//! nothing when they are gone. So a copy counts only once it was seen that they are kept for it, and what was seen under one leader
//! says nothing under another (`docs/decisions/0028-logical-slots-are-copied-before-17.md`).

use super::slots::LOOK_TIME_MAX;
use super::sql::Sql;
use super::{Instance, InstanceConfig, InstanceError, UpstreamSource, on_disk};
use crate::files::{self, Survives};
use pgstead_types::report::Upstream;
use pgstead_types::slots::{SlotKind, SlotSeen};
use pgstead_types::{Incarnation, Lsn, Tick};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;
use tokio_postgres::SimpleQueryMessage;

/// For one slot to be moved along: it is read from where its oldest open transaction began. Nobody waits for it.
const ADVANCE_TIME_MAX: Duration = Duration::from_secs(10);

/// What is known of the logical slots of a member that has followed somebody since it led. Without this note they are its own, and
/// good. Beside the data, and on disk before anything rests on it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Note {
    life: Incarnation,
    /// Under whom the copies were judged. A leader has another view of what may go.
    of: Option<Upstream>,
    pub copies: BTreeMap<String, Judged>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Judged {
    /// A consumer misses nothing that goes on here.
    pub ready: bool,
    /// What the leader's slot had confirmed when rows were first seen to be kept for the copy: beyond it the copy needs none that
    /// may have gone before.
    passes: Option<Lsn>,
}

/// A logical slot, here or on the leader.
#[derive(Clone, Debug, Deserialize)]
struct Slot {
    name: String,
    /// All that tells whether two slots of a name are the same.
    what: (Option<String>, Option<String>, bool),
    confirmed: Lsn,
    catalog_xmin: u32,
    lost: bool,
}

/// The logical slots there, a JSON text each.
fn logical_slots(major: u16) -> String {
    let lost = if major >= 16 { "wal_status = 'lost' OR coalesce(conflicting, false)" } else { "wal_status = 'lost'" };
    format!(
        "SELECT json_build_object('name', slot_name, 'what', json_build_array(database, plugin, two_phase), \
           'confirmed', coalesce(confirmed_flush_lsn, '0/0')::text, 'catalog_xmin', coalesce(catalog_xmin::text::bigint, 0), \
           'lost', coalesce({lost}, false)) \
         FROM pg_replication_slots WHERE slot_type = 'logical' AND NOT temporary"
    )
}

/// Whether a transaction id is not newer than another one. They go round.
fn not_newer(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() <= 0
}

/// What one look says of a copy. `leaders` was read after `held`, the oldest transaction whose rows the leader keeps for this member,
/// and `copy` after both. `read`: its log was read to where it is, here.
fn judge(before: Judged, copy: &Slot, leaders: &Slot, held: Option<u32>, read: bool) -> Judged {
    let kept = held.is_some_and(|held| not_newer(held, copy.catalog_xmin)) && copy.catalog_xmin != 0;
    if !kept || copy.lost || leaders.lost || !(read || before.ready) {
        return Judged::default();
    }
    let passes = before.passes.unwrap_or(leaders.confirmed);
    let nothing_gone = not_newer(leaders.catalog_xmin, copy.catalog_xmin) || copy.confirmed >= passes;
    // One that is ahead would skip what the leader's has yet to send.
    let ready = (before.ready || nothing_gone) && copy.confirmed <= leaders.confirmed;
    Judged { ready, passes: Some(passes) }
}

impl Note {
    /// No slot of it is known to be good.
    fn nothing(life: Incarnation, of: Option<Upstream>) -> Self {
        Self { life, of, copies: BTreeMap::new() }
    }
    /// The same for a member that follows `of`: unchanged where it did.
    fn under(self, life: Incarnation, of: Upstream) -> Self {
        match (self.life == life, self.of == Some(of)) {
            (true, true) => self,
            (true, false) => {
                let copies = self.copies.into_keys().map(|name| (name, Judged::default())).collect();
                Self { life, of: Some(of), copies }
            }
            // Other data, which brought no slots along.
            (false, _) => Self::nothing(life, Some(of)),
        }
    }
    /// Those that nothing is to be done about while it follows `of`.
    pub fn ready_under(&self, life: Incarnation, of: Upstream) -> BTreeSet<String> {
        if self.of == Some(of) { self.ready(life) } else { BTreeSet::new() }
    }
    pub fn ready(&self, life: Incarnation) -> BTreeSet<String> {
        let ready = self.copies.iter().filter(|(_, judged)| judged.ready && self.life == life);
        ready.map(|(name, _)| name.clone()).collect()
    }
}

impl Instance {
    fn copies_note(&self) -> PathBuf {
        self.config().beside_data("slot-copies")
    }

    /// `None`: its logical slots are its own. What cannot be understood vouches for none of them.
    pub(super) fn known_copies(&self) -> Option<Note> {
        let read = files::read_json(&self.copies_note());
        read.unwrap_or_else(|_| Some(Note::nothing(self.config().incarnation, None)))
    }

    async fn note_copies(&self, note: Note) -> Result<(), InstanceError> {
        let (path, owner) = (self.copies_note(), self.config().owner());
        let write = move |path: PathBuf| files::replace_json(&path, &note, owner, Survives::PowerLoss);
        on_disk("write", &path.clone(), move || write(path)).await
    }

    /// From here on what the leader removes is removed here as well: unless this very upstream was followed before, no slot is known
    /// to have all that it needs.
    pub(super) async fn note_follows(&self, of: Upstream) -> Result<(), InstanceError> {
        if !self.applied().copies_logical_slots(self.config().major) {
            return Ok(());
        }
        let _noting = self.copies.lock().await;
        self.note_under(of).await
    }

    /// The caller has locked the note.
    async fn note_under(&self, of: Upstream) -> Result<(), InstanceError> {
        let (config, known) = (self.config(), self.known_copies());
        let next =
            known.clone().unwrap_or_else(|| Note::nothing(config.incarnation, None)).under(config.incarnation, of);
        if known.as_ref() == Some(&next) { Ok(()) } else { self.note_copies(next).await }
    }

    /// Notes slots that are about to be written: nothing is known of them.
    pub(super) async fn note_made(&self, of: Upstream, names: &[String]) -> Result<(), InstanceError> {
        let life = self.config().incarnation;
        let _noting = self.copies.lock().await;
        let mut note = self.known_copies().unwrap_or_else(|| Note::nothing(life, None)).under(life, of);
        note.copies.extend(names.iter().map(|name| (name.clone(), Judged::default())));
        self.note_copies(note).await
    }

    /// Moves the copies on this standby to where the leader's slots are, drops those that the leader has no more, and notes which of
    /// them a consumer could go on with. A slot of its own from when it led is a copy as soon as the leader has one like it. It may
    /// take long; nobody is to wait for it.
    pub async fn tend_copies(&self, source: &UpstreamSource) -> Result<(), InstanceError> {
        let config = self.config();
        let follows = || self.applied().upstream() == Some(source.of);
        if !self.applied().copies_logical_slots(config.major) || !follows() {
            return Ok(());
        }
        {
            // One that was found running may have been told by a daemon that kept no such note.
            let _noting = self.copies.lock().await;
            if !follows() {
                return Ok(());
            }
            self.note_under(source.of).await?;
        }
        let listed = logical_slots(config.major);
        let here = slots_in(self.ask_soon("look at the copied slots", &listed).await?)?;
        let known = self.known_copies().filter(|note| note.life == config.incarnation && note.of == Some(source.of));
        let Some(mut note) = known else { return Ok(()) };
        if here.is_empty() && note.copies.is_empty() {
            return Ok(());
        }
        let sql = Sql::connect(&config).await?;
        if source.of.relay.is_some() {
            // Nobody moves them along: they would keep log and rows for nothing.
            for slot in here.iter().filter(|slot| note.copies.contains_key(&slot.name)) {
                drop_slot(&sql, &slot.name).await?;
            }
            note.copies.clear();
            return self.note_judged(source.of, note).await;
        }
        let (held, leaders) = self.ask_leader(source).await?;
        let mut read = BTreeSet::new();
        for slot in &here {
            let before = note.copies.get(&slot.name).copied();
            match leaders.get(&slot.name) {
                Some(theirs) if theirs.what == slot.what => {
                    let moves = theirs.confirmed > slot.confirmed;
                    let needed = moves || !before.is_some_and(|before| before.ready);
                    if needed && !slot.lost && advance(&config, slot, theirs.confirmed).await {
                        read.insert(slot.name.clone());
                    }
                }
                Some(_) => drop_slot(&sql, &slot.name).await?,
                // Its own, and maybe the last of its kind, unless it came from there.
                None if before.is_some() => drop_slot(&sql, &slot.name).await?,
                None => {}
            }
        }
        let here = slots_in(sql.values("look at the copied slots", &listed).await?)?;
        let mut copies = BTreeMap::new();
        for slot in &here {
            let before = note.copies.get(&slot.name).copied();
            let Some(theirs) = leaders.get(&slot.name).filter(|theirs| theirs.what == slot.what) else {
                // In use just now; it is dropped the next time.
                copies.extend(before.map(|_| (slot.name.clone(), Judged::default())));
                continue;
            };
            let before = before.unwrap_or_default();
            let judged = judge(before, slot, theirs, held, read.contains(&slot.name));
            if judged.ready != before.ready {
                tracing::info!(slot = %slot.name, ready = judged.ready, confirmed = %slot.confirmed, leader = %theirs.confirmed,
                    "what is known of a copied slot has changed");
            }
            copies.insert(slot.name.clone(), judged);
        }
        note.copies = copies;
        self.note_judged(source.of, note).await
    }

    /// Unless it follows another one by now.
    async fn note_judged(&self, of: Upstream, note: Note) -> Result<(), InstanceError> {
        let _noting = self.copies.lock().await;
        let same = |held: &Note| held.life == note.life && held.of == Some(of);
        let held = self.known_copies().filter(same);
        if held.is_none_or(|held| held == note) { Ok(()) } else { self.note_copies(note).await }
    }

    /// From which transaction on the leader keeps rows of its catalogs for this member, and then its logical slots.
    async fn ask_leader(
        &self,
        source: &UpstreamSource,
    ) -> Result<(Option<u32>, BTreeMap<String, Slot>), InstanceError> {
        let config = self.config();
        let doing = "ask the leader for its logical slots";
        // One after the other: by when the slots are looked at, that is kept.
        let text = format!(
            "SELECT (NOT pg_is_in_recovery())::text; \
             SELECT coalesce((SELECT catalog_xmin::text FROM pg_replication_slots WHERE slot_name = '{}'), ''); {}",
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
        if rows.next().flatten().as_deref() != Some("true") {
            return Err(InstanceError::NotAPrimary);
        }
        let held = rows.next().flatten().and_then(|xid| xid.parse().ok());
        let slots = slots_in(rows.collect())?;
        Ok((held, slots.into_iter().map(|slot| (slot.name.clone(), slot)).collect()))
    }

    /// On a member that leads: copies that are not known to be good are dropped, so that their consumers are told to begin anew. The
    /// others are its own from then on.
    pub(super) async fn settle_copies(&self) -> Result<(), InstanceError> {
        let config = self.config();
        if !self.applied().copies_logical_slots(config.major) || self.is_in_recovery().await? {
            return Ok(());
        }
        let _noting = self.copies.lock().await;
        let Some(note) = self.known_copies() else { return Ok(()) };
        let ready = note.ready(config.incarnation);
        let doing = "drop copies of slots that are not complete";
        let begun = Tick::now();
        let mut told = BTreeSet::new();
        loop {
            let listed = "SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'logical' AND NOT temporary";
            let names: BTreeSet<String> = self.ask_soon(doing, listed).await?.into_iter().flatten().collect();
            let doubtful: Vec<&String> = names.difference(&ready).collect();
            if doubtful.is_empty() {
                break;
            }
            let waited = Tick::now().since(begun);
            if waited > LOOK_TIME_MAX {
                return Err(InstanceError::NotInEffect { what: format!("{doubtful:?} are still there"), waited });
            }
            for name in doubtful {
                if told.insert(name.clone()) {
                    tracing::warn!(slot = %name, "its copy was not complete when this member was promoted, and is dropped: its consumer must begin anew");
                }
                // One that moves it along may not have ended yet.
                let text = format!(
                    "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{name}' AND active; \
                     SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{name}' AND NOT active"
                );
                self.ask_soon(doing, &text).await?;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let path = self.copies_note();
        on_disk("remove", &path.clone(), move || files::remove(&path).and_then(|_| files::sync_parent(&path))).await
    }

    /// Lets consumers in that had to wait for it.
    pub async fn settle_waiting_consumers(&self) -> Result<(), InstanceError> {
        if !self.applied().consumers_wait {
            return Ok(());
        }
        {
            let _changing = self.changing.lock().await;
            self.settle_copies().await?;
            self.applied.lock().unwrap_or_else(std::sync::PoisonError::into_inner).consumers_wait = false;
        }
        self.reload().await
    }

    /// On a standby: which of its slots are copies, and which of those are not complete.
    pub(super) fn tell_copies(&self, slots: &mut [SlotSeen]) {
        let config = self.config();
        let copies = self.applied().copies_logical_slots(config.major);
        let Some(note) = self.known_copies().filter(|note| copies && note.life == config.incarnation) else { return };
        for slot in slots.iter_mut().filter(|slot| slot.kind == SlotKind::Logical) {
            if let Some(judged) = note.copies.get(&slot.name) {
                slot.synced = true;
                slot.temporary |= !judged.ready;
            }
        }
    }
}

pub(super) fn first_columns(messages: Vec<SimpleQueryMessage>) -> Vec<Option<String>> {
    let first = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_string)),
        _ => None,
    };
    messages.into_iter().filter_map(first).collect()
}

fn slots_in(rows: Vec<Option<String>>) -> Result<Vec<Slot>, InstanceError> {
    let doing = "look at the logical slots";
    let slot = |text: String| {
        serde_json::from_str(&text)
            .map_err(|error| InstanceError::SqlAnswer { doing, answer: format!("{text}: {error}") })
    };
    rows.into_iter().flatten().map(slot).collect()
}

/// As far as the leader's slot is and the log was replayed here. Whether its log was read to there: not where it is beyond both, or
/// its log is not there.
async fn advance(config: &InstanceConfig, slot: &Slot, confirmed: Lsn) -> bool {
    let doing = "move a copied slot along";
    let name = &slot.name;
    let text = format!(
        "SET statement_timeout = {}; \
         SELECT (pg_replication_slot_advance(slot_name, target)).end_lsn FROM pg_replication_slots, \
           (SELECT least('{confirmed}'::pg_lsn, pg_last_wal_replay_lsn()) AS target) AS reached \
         WHERE slot_name = '{name}' AND NOT active AND target >= confirmed_flush_lsn",
        ADVANCE_TIME_MAX.as_millis()
    );
    let moving = async {
        // Before 17 only from its own database.
        let sql = Sql::try_connect_to(config, slot.what.0.as_deref().unwrap_or("postgres")).await?;
        sql.values_within(doing, &text, ADVANCE_TIME_MAX + LOOK_TIME_MAX).await
    };
    match moving.await {
        Ok(moved) => !moved.is_empty(),
        Err(error) => {
            tracing::debug!(%error, slot = %name, "a copied slot cannot be moved along now");
            false
        }
    }
}

async fn drop_slot(sql: &Sql, name: &str) -> Result<(), InstanceError> {
    let text = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
         WHERE slot_name = '{name}' AND slot_type = 'logical' AND NOT active"
    );
    sql.values("drop a copied slot", &text).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_types::{Epoch, MemberId};

    fn slot(confirmed: u64, catalog_xmin: u32) -> Slot {
        let what = (Some("app".to_string()), Some("pgoutput".to_string()), false);
        Slot { name: "warehouse".to_string(), what, confirmed: Lsn(confirmed), catalog_xmin, lost: false }
    }

    fn first(copy: &Slot, leaders: &Slot, held: Option<u32>) -> Judged {
        judge(Judged::default(), copy, leaders, held, true)
    }

    #[test]
    fn a_copy_is_ready_once_the_leader_was_seen_to_keep_all_that_it_needs() {
        let (copy, leaders) = (slot(100, 7), slot(100, 7));
        assert!(first(&copy, &leaders, Some(7)).ready);
        assert!(first(&copy, &leaders, Some(6)).ready, "for another copy it keeps more");
        assert!(!first(&copy, &leaders, None).ready, "its feedback has not come");
        assert!(!first(&copy, &leaders, Some(8)).ready, "it never goes back for a copy that came later");
        assert!(!judge(Judged::default(), &copy, &leaders, Some(7), false).ready, "its log may not be here");
        assert!(!first(&slot(100, 0), &leaders, Some(7)).ready);
    }

    #[test]
    fn a_copy_that_came_after_rows_were_removed_must_pass_where_the_leader_was_then() {
        let late = first(&slot(100, 7), &slot(200, 9), Some(7));
        assert!(!late.ready);
        let next = judge(late, &slot(199, 7), &slot(300, 12), Some(7), true);
        assert!(!next.ready);
        assert!(judge(next, &slot(200, 7), &slot(300, 12), Some(7), true).ready);
        // What kept the rows was away meanwhile: from the beginning.
        let away = judge(next, &slot(199, 7), &slot(300, 12), None, true);
        assert!(!judge(away, &slot(200, 7), &slot(300, 12), Some(7), true).ready);
    }

    #[test]
    fn a_slot_that_is_ahead_of_the_leaders_is_never_ready() {
        let ready = first(&slot(100, 7), &slot(100, 7), Some(7));
        assert!(!judge(ready, &slot(101, 7), &slot(100, 7), Some(7), true).ready);
        assert!(judge(ready, &slot(101, 7), &slot(101, 9), Some(7), true).ready, "the leader's has come by");
    }

    #[test]
    fn a_copy_that_was_ready_is_not_once_its_log_or_rows_are_gone() {
        let ready = first(&slot(100, 7), &slot(100, 7), Some(7));
        assert!(judge(ready, &slot(100, 7), &slot(500, 40), Some(7), false).ready, "it stays while rows are kept");
        assert!(!judge(ready, &slot(100, 7), &slot(500, 40), Some(8), false).ready);
        assert!(!judge(ready, &Slot { lost: true, ..slot(100, 7) }, &slot(500, 40), Some(7), false).ready);
    }

    #[test]
    fn transaction_ids_go_round() {
        assert!(not_newer(u32::MAX, 5) && !not_newer(5, u32::MAX) && not_newer(5, 5));
    }

    #[test]
    fn what_was_judged_under_one_leader_says_nothing_under_another() {
        let life = Incarnation { member: MemberId::from_u128(2), number: 1 };
        let of = |epoch| Upstream::of(MemberId::from_u128(1), Epoch(epoch));
        let ready = Judged { ready: true, passes: Some(Lsn(1)) };
        let note = Note { life, of: Some(of(1)), copies: [("warehouse".to_string(), ready)].into() };
        assert_eq!(note.ready(life).len(), 1);
        assert_eq!(note.clone().under(life, of(1)), note);
        let next = note.clone().under(life, of(2));
        assert!(next.ready(life).is_empty() && next.copies.contains_key("warehouse"));
        let fed = Upstream { relay: Some(MemberId::from_u128(3)), ..of(1) };
        assert!(note.clone().under(life, fed).ready(life).is_empty());
        let anew = Incarnation { number: 2, ..life };
        assert!(note.ready(anew).is_empty() && note.under(anew, of(1)).copies.is_empty());
    }
}
