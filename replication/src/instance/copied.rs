//! The note of the logical slots that came from a leader, or are left from when this member led, before Postgres 17, which keeps
//! them itself: what is on disk of it, and what a member does by it that leads. `slot_copy` makes copies, `slots_tended` moves them
//! along, `slot_judged` says which of them are good.

use super::slot_judged::{Note, logical_slots};
use super::slot_state::SlotState;
use super::slots::LOOK_TIME_MAX;
use super::slots_tended::slots_in;
use super::{Instance, InstanceConfig, InstanceError, on_disk};
use crate::files::{self, Survives};
use pgstead_types::Tick;
use pgstead_types::report::Upstream;
use pgstead_types::slots::{SlotKind, SlotSeen};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;
use std::{fs, io};
use tokio_postgres::SimpleQueryMessage;

/// Consumers wait for it, and the next step. What takes longer is done at a later look.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(1);

/// By their folders: `None` for what is no whole logical slot.
pub(super) fn slots_on_disk(config: &InstanceConfig) -> io::Result<BTreeMap<String, Option<SlotState>>> {
    let mut slots = BTreeMap::new();
    for entry in fs::read_dir(config.data_dir.join("pg_replslot"))? {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(str::to_string) else { continue };
        if !super::slot_state::is_slot_name(&name) {
            continue;
        }
        let state = match entry.file_type()?.is_dir() {
            true => files::read_plain(&entry.path().join("state")).ok(),
            false => None,
        };
        let state = state.and_then(|state| SlotState::parse(&state)).filter(|state| state.name == name);
        slots.insert(name, state);
    }
    Ok(slots)
}

/// All logical slots that there are, with nothing known of them.
fn found(config: &InstanceConfig) -> io::Result<Note> {
    let logical = slots_on_disk(config)?.into_iter().filter(|(_, state)| state.is_some());
    Ok(Note::found(config.incarnation, logical.map(|(name, _)| name)))
}

impl Instance {
    fn copies_note(&self) -> PathBuf {
        self.config().beside_data("slot-copies")
    }

    /// `None`: its logical slots are its own. What cannot be understood, or is of other data, vouches for none of them.
    pub(super) fn known_copies(&self) -> Result<Option<Note>, InstanceError> {
        let config = self.config();
        match files::read_json::<Note>(&self.copies_note()) {
            Ok(None) => Ok(None),
            Ok(Some(note)) if note.life == config.incarnation => Ok(Some(note)),
            _ => found(&config).map(Some).map_err(InstanceError::file("look at the slots in", &config.data_dir)),
        }
    }

    /// The same where there is no note, and before one is made: its slots are from when it led.
    pub(super) fn copies_from_now_on(&self, of: Upstream) -> Result<Note, InstanceError> {
        let config = self.config();
        let known = match self.known_copies()? {
            Some(known) => known,
            None => found(&config).map_err(InstanceError::file("look at the slots in", &config.data_dir))?,
        };
        Ok(known.under(of))
    }

    /// Whether there may be slots here that lack something: it has followed somebody, and not settled since.
    pub(super) fn may_have_copies(&self) -> bool {
        self.copies_note().try_exists().unwrap_or(true)
    }

    async fn note_copies(&self, note: Note) -> Result<(), InstanceError> {
        let (path, owner) = (self.copies_note(), self.config().owner());
        let write = move |path: PathBuf| files::replace_json(&path, &note, owner, Survives::PowerLoss);
        on_disk("write", &path.clone(), move || write(path)).await
    }

    /// From here on what the leader removes is removed here as well: unless this very upstream was followed before, no slot is known
    /// to have all that it needs. Slots that are made from here on are people's.
    pub(super) async fn note_follows(&self, of: Upstream) -> Result<(), InstanceError> {
        if !self.applied().copies_logical_slots(self.config().major) {
            return Ok(());
        }
        let _noting = self.copies.lock().await;
        self.note_under(of).await.map(drop)
    }

    /// The caller has locked the note.
    async fn note_under(&self, of: Upstream) -> Result<Note, InstanceError> {
        let next = self.copies_from_now_on(of)?;
        if self.known_copies()?.as_ref() != Some(&next) {
            self.note_copies(next.clone()).await?;
        }
        Ok(next)
    }

    /// What is known of them, for as long as it follows `of`.
    pub(super) async fn copies_under(&self, of: Upstream) -> Result<Option<Note>, InstanceError> {
        let follows = || self.applied().upstream() == Some(of);
        if !self.applied().copies_logical_slots(self.config().major) || !follows() {
            return Ok(None);
        }
        let _noting = self.copies.lock().await;
        // One that was found running may have been told by a daemon that kept no such note.
        if follows() { self.note_under(of).await.map(Some) } else { Ok(None) }
    }

    /// Notes slots that are about to be written: nothing is known of them.
    pub(super) async fn note_made(&self, of: Upstream, names: &[String]) -> Result<(), InstanceError> {
        let _noting = self.copies.lock().await;
        let mut note = self.copies_from_now_on(of)?;
        note.copies.extend(names.iter().map(|name| (name.clone(), Default::default())));
        self.note_copies(note).await
    }

    /// Unless it follows another one by now.
    pub(super) async fn note_judged(&self, of: Upstream, note: Note) -> Result<(), InstanceError> {
        let _noting = self.copies.lock().await;
        let held = self.known_copies()?.filter(|held| held.life == note.life && held.of == Some(of));
        if held.is_none_or(|held| held == note) { Ok(()) } else { self.note_copies(note).await }
    }

    /// On a member that leads: copies that are not known to be good are dropped, so that their consumers are told to begin anew. The
    /// others are its own from then on.
    async fn settle_copies(&self) -> Result<(), InstanceError> {
        let _noting = self.copies.lock().await;
        let begun = Tick::now();
        let too_slow = |_| InstanceError::NotInEffect {
            what: "copies of slots that may lack something are still there".to_string(),
            waited: Tick::now().since(begun),
        };
        if let Some(note) = self.known_copies()? {
            tokio::time::timeout(SETTLE_TIME_MAX, self.drop_doubtful(&note)).await.map_err(too_slow)??;
        }
        let path = self.copies_note();
        on_disk("remove", &path.clone(), move || files::remove(&path).and_then(|_| files::sync_parent(&path))).await
    }

    /// Until none is there.
    async fn drop_doubtful(&self, note: &Note) -> Result<(), InstanceError> {
        let doing = "drop copies of slots that are not complete";
        let listed = logical_slots(self.config().major);
        let mut told = BTreeSet::new();
        loop {
            let there = slots_in(self.ask_soon(doing, &listed).await?)?;
            let doubtful: Vec<String> = there
                .into_iter()
                .filter(|slot| note.is_doubtful(&slot.name, slot.confirmed))
                .map(|slot| slot.name)
                .collect();
            if doubtful.is_empty() {
                return Ok(());
            }
            for name in doubtful.iter().filter(|name| told.insert((*name).clone())) {
                tracing::warn!(slot = %name, "its copy was not complete when this member was promoted, and is dropped: its consumer must begin anew");
            }
            let names = doubtful.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
            // One that moves it along may not have ended yet.
            let text = format!(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name IN ({names}) AND active; \
                 SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name IN ({names}) AND NOT active"
            );
            self.ask_soon(doing, &text).await?;
            tokio::time::sleep(LOOK_TIME_MAX / 100).await;
        }
    }

    /// Has consumers wait where it leads and has slots that may lack something; whether it has.
    pub(super) async fn hold_consumers(&self) -> Result<bool, InstanceError> {
        let copies = self.applied().copies_logical_slots(self.config().major) && self.may_have_copies();
        let wait = copies && !self.is_in_recovery().await?;
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).consumers_wait = wait;
        Ok(wait)
    }

    /// Lets consumers in that had to wait for it, and has standbys told that the slots here are good.
    pub async fn settle_waiting_consumers(&self) -> Result<(), InstanceError> {
        let applied = self.applied();
        let settled = applied.slots_settled && !applied.consumers_wait;
        if settled || !applied.copies_logical_slots(self.config().major) {
            return Ok(());
        }
        {
            let _changing = self.changing.lock().await;
            if self.is_in_recovery().await? {
                return Ok(());
            }
            self.settle_copies().await?;
            self.applied.lock().unwrap_or_else(PoisonError::into_inner).consumers_wait = false;
        }
        let told = self.reload().await;
        if told.is_err() {
            // What Postgres has loaded nobody knows: it is told again, by another daemon as well.
            let config = self.config();
            let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
            applied.consumers_wait = true;
            applied.save(&config).map_err(InstanceError::file("write", &config.run_file("applied.json")))?;
        }
        told
    }

    /// On a standby: which of its slots are copies, and which of those are not complete.
    pub(super) fn tell_copies(&self, slots: &mut [SlotSeen]) {
        if !self.applied().copies_logical_slots(self.config().major) {
            return;
        }
        let Ok(Some(note)) = self.known_copies() else { return };
        for slot in slots.iter_mut().filter(|slot| slot.kind == SlotKind::Logical) {
            if let Some(judged) = note.copies.get(&slot.name).filter(|judged| !judged.left) {
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
