//! Copies of the leader's logical slots, written while this member's Postgres is down: before 17 none can be made on a standby that
//! runs. `slots_tended` says what becomes of them.

use super::control::ControlData;
use super::copied::slots_on_disk;
use super::slot_judged::Note;
use super::slot_state::{STATE_BYTES_MAX, SlotState};
use super::slots_tended::SETTLED;
use super::{Instance, InstanceConfig, InstanceError, UpstreamSource, consumers, on_disk, timelines};
use crate::files::{self, Survives};
use pgstead_types::Lsn;
use pgstead_types::slots::can_copy_slots;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;
use std::{fs, io};
use tokio_postgres::SimpleQueryMessage;

/// A leader that does not answer must not hold a start up.
const COPY_TIME_MAX: Duration = Duration::from_secs(2);
/// A state of decoding has a few bytes for each transaction that was open.
const SNAPSHOT_BYTES_MAX: usize = 16 << 20;

/// A slot as the leader has it on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Offered {
    state: Vec<u8>,
    slot: SlotState,
    /// Where decoding goes on from, with what was known there. None where nothing was open.
    snapshot: Option<Vec<u8>>,
}

/// What is in `pg_replslot` and `pg_wal` here.
#[derive(Debug, Default)]
struct Here {
    /// Logical slots that came from a leader or are left from when this member led, and are not known to be good.
    replaceable: BTreeSet<String>,
    others: BTreeSet<String>,
    /// For further slots.
    places: usize,
    oldest_log: Option<Lsn>,
}

/// Those to be written, and why the others are not.
fn choose(offered: Vec<Offered>, here: &Here) -> (Vec<Offered>, BTreeMap<String, &'static str>) {
    let (mut chosen, mut left) = (Vec::new(), BTreeMap::new());
    let mut places = here.places;
    for offer in offered {
        let name = &offer.slot.name;
        let new = !here.replaceable.contains(name);
        let why = if here.others.contains(name) {
            "there is a slot of this name already"
        } else if here.oldest_log.is_none_or(|oldest| offer.slot.restart < oldest) {
            "it needs log that is not here any more"
        } else if new && places == 0 {
            "there is no place for another slot"
        } else {
            places -= usize::from(new);
            chosen.push(offer);
            continue;
        };
        left.insert(name.clone(), why);
    }
    (chosen, left)
}

impl Here {
    fn look(config: &InstanceConfig, segment_bytes: u64, note: &Note) -> io::Result<Self> {
        let mut here =
            Self { oldest_log: timelines::oldest_segment(&config.pg_wal(), segment_bytes)?, ..Self::default() };
        for (name, logical) in slots_on_disk(config)? {
            if logical.is_some_and(|slot| note.is_doubtful(&name, slot.confirmed)) {
                here.replaceable.insert(name);
            } else if !consumers::is_place(&name) {
                here.others.insert(name);
            }
        }
        let taken = here.replaceable.len() + here.others.len();
        here.places = super::config::slots_max(config).saturating_sub(taken + consumers::PLACES as usize);
        Ok(here)
    }
}

/// Postgres sees the folder whole or not at all: it removes what is called `.tmp` at its start.
fn write(config: &InstanceConfig, offer: &Offered) -> io::Result<()> {
    let (data, owner) = (&config.data_dir, config.owner());
    if let Some(snapshot) = &offer.snapshot {
        let path = data.join("pg_logical/snapshots").join(snapshot_name(offer.slot.restart));
        files::ensure(&path, snapshot, owner, Survives::PowerLoss)?;
    }
    let folder = data.join("pg_replslot").join(&offer.slot.name);
    if is_folder(&folder) {
        return files::replace(&folder.join("state"), &offer.state, owner, Survives::PowerLoss);
    }
    let fresh = folder.with_extension("tmp");
    if is_folder(&fresh) {
        fs::remove_dir_all(&fresh)?;
    }
    files::ensure_folder(&fresh, owner)?;
    files::replace(&fresh.join("state"), &offer.state, owner, Survives::PowerLoss)?;
    fs::rename(&fresh, &folder)?;
    files::sync_parent(&folder)
}

/// A link to one is none.
fn is_folder(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// As Postgres calls it.
fn snapshot_name(at: Lsn) -> String {
    format!("{}.snap", at.to_string().replace('/', "-"))
}

/// `\x` and digits, as Postgres writes bytes.
fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if digits.len() % 2 == 0 { digits.chunks(2).map(pair).collect() } else { None }
}

impl Instance {
    /// Writes the leader's logical slots to a member that is about to be started for them. What is there and known to be good stays.
    /// Those that were written.
    pub async fn copy_slots(&self, source: &UpstreamSource) -> Result<Vec<String>, InstanceError> {
        let config = self.config();
        if config.major >= 17 {
            return Ok(Vec::new());
        }
        let identity = self.present_data().await?;
        if identity.incarnation != config.incarnation {
            return Err(InstanceError::OtherIncarnation { found: identity.incarnation, expected: config.incarnation });
        }
        self.must_be_down().await?;
        let control: ControlData = self.control_data().await?;
        // Postgres does not start over such a slot otherwise.
        if !(config.logical_replication || control.logical || self.applied().logical) {
            return Ok(Vec::new());
        }
        can_copy(self.version().await?)?;
        let doing = "read the leader's logical slots";
        let too_slow = |_| InstanceError::SqlTooSlow { doing, waited: COPY_TIME_MAX };
        let offered = tokio::time::timeout(COPY_TIME_MAX, self.offered(source)).await.map_err(too_slow)??;
        let note = self.copies_from_now_on(source.of)?;
        let looked = config.clone();
        let here = on_disk("look at the slots in", &config.data_dir, move || {
            Here::look(&looked, control.segment_bytes, &note)
        });
        let (chosen, left) = choose(offered, &here.await?);
        for (slot, why) in left {
            tracing::info!(member = %config.incarnation, slot, why, "the leader's slot is not copied");
        }
        let names: Vec<String> = chosen.iter().map(|offer| offer.slot.name.clone()).collect();
        if names.is_empty() {
            return Ok(names);
        }
        self.note_made(source.of, &names).await?;
        let written = config.clone();
        let write_all = move || chosen.iter().try_for_each(|offer| write(&written, offer));
        on_disk("write copies of slots in", &config.data_dir, write_all).await?;
        Ok(names)
    }

    /// Slots that did not change while they and what decoding of them goes on from were read.
    async fn offered(&self, source: &UpstreamSource) -> Result<Vec<Offered>, InstanceError> {
        let doing = "read the leader's logical slots";
        let leader = self.try_connect_to_source(source).await?;
        let state = format!("SELECT current_setting('server_version_num'), {SETTLED}::text");
        let answer = leader.simple_query(&state).await.map_err(InstanceError::sql(doing))?;
        let said = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((row.get(0)?.parse().ok()?, row.get(1)? == "true")),
            _ => None,
        });
        can_copy(said.map(|(version, _)| version))?;
        if said.is_none_or(|(_, settled)| !settled) {
            return Err(InstanceError::SlotsNotSettled);
        }
        let there = "FROM pg_replication_slots WHERE slot_type = 'logical' AND NOT temporary AND plugin IS NOT NULL \
             AND restart_lsn IS NOT NULL AND wal_status IS DISTINCT FROM 'lost' AND NOT pg_is_in_recovery()";
        let text = format!(
            "SELECT pg_read_binary_file('pg_replslot/' || slot_name || '/state', 0, {STATE_BYTES_MAX}, true), restart_lsn, \
               pg_read_binary_file('pg_logical/snapshots/' || replace(restart_lsn::text, '/', '-') || '.snap', 0, \
                 {SNAPSHOT_BYTES_MAX}, true) {there} ORDER BY slot_name; \
             SELECT slot_name, restart_lsn {there}"
        );
        let mut rows = Vec::new();
        for message in leader.simple_query(&text).await.map_err(InstanceError::sql(doing))? {
            if let SimpleQueryMessage::Row(row) = message {
                rows.push((0..row.len()).map(|at| row.get(at).map(str::to_string)).collect::<Vec<_>>());
            }
        }
        Ok(unchanged(&rows))
    }
}

fn can_copy(version: Option<u32>) -> Result<(), InstanceError> {
    can_copy_slots(version.unwrap_or_default()).map_err(|needed| InstanceError::MinorTooOld { needed })
}

/// By both answers: what was read, and where the slots are afterwards. While a slot is where it was, so is what it needs.
fn unchanged(rows: &[Vec<Option<String>>]) -> Vec<Offered> {
    let text = |row: &[Option<String>], at: usize| row.get(at).cloned().flatten();
    let after: BTreeMap<String, String> =
        rows.iter().filter(|row| row.len() == 2).filter_map(|row| Some((text(row, 0)?, text(row, 1)?))).collect();
    let offer = |row: &Vec<Option<String>>| {
        let state = bytes_of(&text(row, 0)?)?;
        let slot = SlotState::parse(&state)?;
        let snapshot = match text(row, 2) {
            Some(read) => Some(bytes_of(&read).filter(|bytes| bytes.len() < SNAPSHOT_BYTES_MAX)?),
            None => None,
        };
        let before = text(row, 1)?;
        let same = before.parse().ok() == Some(slot.restart) && after.get(&slot.name) == Some(&before);
        same.then_some(Offered { state, slot, snapshot })
    };
    rows.iter().filter(|row| row.len() == 3).filter_map(offer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(name: &str, restart: u64) -> Offered {
        let slot = SlotState { name: name.to_string(), restart: Lsn(restart), confirmed: Lsn(restart) };
        Offered { state: Vec::new(), slot, snapshot: None }
    }

    #[test]
    fn a_slot_is_copied_where_there_is_its_log_and_a_place_and_nothing_of_that_name_that_is_good() {
        let set = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>();
        let here = Here { replaceable: set(&["old"]), others: set(&["mine"]), places: 1, oldest_log: Some(Lsn(100)) };
        let offered =
            ["mine", "early", "old", "one", "two"].map(|name| offer(name, if name == "early" { 99 } else { 100 }));
        let (chosen, left) = choose(offered.into(), &here);
        let chosen: Vec<_> = chosen.iter().map(|offer| offer.slot.name.as_str()).collect();
        assert_eq!(chosen, ["old", "one"]);
        assert_eq!(left.into_keys().collect::<Vec<_>>(), ["early", "mine", "two"]);
    }

    #[test]
    fn bytes_are_read_as_postgres_writes_them() {
        assert_eq!(bytes_of("\\x00ff10"), Some(vec![0, 255, 16]));
        assert_eq!(bytes_of("\\x"), Some(vec![]));
        for text in ["00ff", "\\x0", "\\xzz"] {
            assert_eq!(bytes_of(text), None, "{text}");
        }
        assert_eq!(snapshot_name(Lsn(0x1_0150_07C8)), "1-15007C8.snap");
    }
}
