//! Whether a copy of a logical slot lacks nothing, by what was seen of it, of the leader's slot, and of what the leader keeps. No
//! input or output: `slots_tended` looks, `copied` keeps the note.
//!
//! A slot needs rows of the catalogs that its leader may remove as soon as nobody there needs them any more, and Postgres 15 says
//! nothing when they are gone. So a copy counts only once it was seen that they are kept for it, and what was seen under one leader
//! says nothing under another (`docs/decisions/0028-logical-slots-are-copied-before-17.md`).

use pgstead_types::report::Upstream;
use pgstead_types::{Incarnation, Lsn};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is known of the logical slots that a member had when it began to follow somebody, and of those that were written since.
/// Without this note it has followed nobody since it led, and its slots are good. Others are people's, made on a standby.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Note {
    pub life: Incarnation,
    /// Under whom the copies were judged. A leader has another view of what may go.
    pub of: Option<Upstream>,
    /// The stream by which the leader has heard what to keep. Between two of them it may have kept nothing.
    #[serde(default)]
    pub stream: Option<String>,
    pub copies: BTreeMap<String, Judged>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Judged {
    /// A consumer misses nothing that goes on here, from `passes` on.
    pub ready: bool,
    /// From when this member led, and the leader was not seen to have it.
    #[serde(default)]
    pub left: bool,
    /// From here on it needs no rows that may be gone: 0 where none are, or what the leader's slot had confirmed when rows were
    /// first seen to be kept for the copy.
    pub passes: Option<Lsn>,
    /// Its log was read to here, on this member.
    #[serde(default)]
    pub read: Option<Lsn>,
}

/// A logical slot, here or on the leader.
#[derive(Clone, Debug, Deserialize)]
pub struct Slot {
    pub name: String,
    /// All that tells whether two slots of a name are the same. The first is its database.
    pub what: (Option<String>, Option<String>, bool),
    pub confirmed: Lsn,
    pub restart: Lsn,
    pub catalog_xmin: u32,
    pub lost: bool,
}

/// What the leader said of itself in one answer, and of its logical slots after that.
#[derive(Clone, Debug, Default)]
pub struct Leader {
    /// None of its slots is a copy that may lack something.
    pub settled: bool,
    pub version: u32,
    /// The oldest transaction whose rows it keeps for this member.
    pub held: Option<u32>,
    /// `None` while nothing streams.
    pub stream: Option<String>,
    /// Where the last rewriting of a catalog began of which it keeps what decoding needs. Only members that had a slot by then have
    /// kept that.
    pub rewritten: Option<Lsn>,
    pub slots: BTreeMap<String, Slot>,
}

impl Leader {
    /// Its slot that a copy is one of.
    pub fn slot_of(&self, copy: &Slot) -> Option<&Slot> {
        self.slots.get(&copy.name).filter(|theirs| theirs.what == copy.what)
    }
}

/// The logical slots there, a JSON text each.
pub fn logical_slots(major: u16) -> String {
    let lost = if major >= 16 { "wal_status = 'lost' OR coalesce(conflicting, false)" } else { "wal_status = 'lost'" };
    format!(
        "SELECT json_build_object('name', slot_name, 'what', json_build_array(database, plugin, two_phase), \
           'confirmed', coalesce(confirmed_flush_lsn, '0/0')::text, 'restart', coalesce(restart_lsn, '0/0')::text, \
           'catalog_xmin', coalesce(catalog_xmin::text::bigint, 0), 'lost', coalesce({lost}, false)) \
         FROM pg_replication_slots WHERE slot_type = 'logical' AND NOT temporary"
    )
}

/// By the names of the files: `map-<database>-<table>-<high>_<low>-<xid>-<xid>`. One that cannot be understood is of now.
pub fn last_rewriting(files: &[String]) -> Option<Lsn> {
    let began = |name: &String| {
        let at = name.strip_prefix("map-").and_then(|rest| rest.split('-').nth(2));
        at.and_then(|at| at.replace('_', "/").parse().ok()).unwrap_or(Lsn(u64::MAX))
    };
    files.iter().map(began).max()
}

/// Whether a transaction id is not newer than another one. They go round.
fn not_newer(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() <= 0
}

/// What one look says of a copy. The leader's slots, `theirs` among them, were read after what it keeps, and `copy` after both.
pub fn judge(before: Judged, copy: &Slot, theirs: &Slot, leader: &Leader) -> Judged {
    let held = leader.held.filter(|_| leader.settled);
    let kept = held.is_some_and(|held| not_newer(held, copy.catalog_xmin)) && copy.catalog_xmin != 0;
    if !kept || copy.lost || theirs.lost {
        return Judged { read: before.read, ..Judged::default() };
    }
    // The leader's slot has kept them all the time.
    let nothing_gone = not_newer(theirs.catalog_xmin, copy.catalog_xmin);
    let passes = if nothing_gone { Lsn(0) } else { before.passes.unwrap_or(theirs.confirmed) };
    let was_read = before.read.is_some_and(|to| copy.confirmed <= to);
    // What is rewritten while a slot is here is kept here.
    let mapped = !before.ready && leader.rewritten.is_some_and(|began| began >= copy.restart);
    let judged = Judged { ready: false, left: false, passes: Some(passes), read: before.read };
    // One that is ahead would skip what the leader's has yet to send.
    let ready = was_read && !mapped && judged.has_passed(copy.confirmed) && copy.confirmed <= theirs.confirmed;
    Judged { ready, ..judged }
}

impl Judged {
    /// A position is on disk only from the next checkpoint on, so after a crash the slot may be behind where it was judged.
    pub fn is_good_at(&self, confirmed: Lsn) -> bool {
        self.ready && self.has_passed(confirmed)
    }
    fn has_passed(&self, confirmed: Lsn) -> bool {
        self.passes.is_some_and(|passes| confirmed >= passes)
    }
    fn forget(&mut self) {
        (self.ready, self.passes) = (false, None);
    }
    /// A copy whose slot the leader does not have. On 16 one that is left may be the last of its kind; 15 has none that a promotion
    /// would not drop.
    pub fn goes_without_the_leaders(&self, major: u16) -> bool {
        !self.left || major < 16
    }
}

impl Note {
    /// Of slots of which nothing is known but that they are there.
    pub fn found(life: Incarnation, names: impl IntoIterator<Item = String>) -> Self {
        let left = Judged { left: true, ..Judged::default() };
        Self { life, of: None, stream: None, copies: names.into_iter().map(|name| (name, left)).collect() }
    }
    /// The same for a member that follows `of`: unchanged where it did.
    pub fn under(self, of: Upstream) -> Self {
        if self.of == Some(of) {
            return self;
        }
        let unknown = |judged: Judged| Judged { left: judged.left, ..Judged::default() };
        let copies = self.copies.into_iter().map(|(name, judged)| (name, unknown(judged))).collect();
        Self { life: self.life, of: Some(of), stream: None, copies }
    }
    /// What rested on another stream than the present one must be seen anew. What was read was.
    pub fn note_stream(&mut self, stream: Option<&str>) {
        if stream.is_none() || self.stream.as_deref() == stream {
            return;
        }
        self.stream = stream.map(str::to_string);
        self.copies.values_mut().for_each(Judged::forget);
    }
    pub fn forget(&mut self) {
        self.copies.values_mut().for_each(Judged::forget);
    }
    /// What would be silently lacking in a slot of this name and position. Those that are not noted are people's.
    pub fn is_doubtful(&self, name: &str, confirmed: Lsn) -> bool {
        self.copies.get(name).is_some_and(|judged| !judged.is_good_at(confirmed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_types::{Epoch, MemberId};

    fn slot(confirmed: u64, catalog_xmin: u32) -> Slot {
        let what = (Some("app".to_string()), Some("pgoutput".to_string()), false);
        let (name, confirmed) = ("warehouse".to_string(), Lsn(confirmed));
        Slot { name, what, confirmed, restart: Lsn(50), catalog_xmin, lost: false }
    }

    fn leader(held: Option<u32>) -> Leader {
        Leader { settled: true, version: 150_018, held, ..Leader::default() }
    }

    /// Its log was read to where it is.
    fn read(before: Judged, copy: &Slot, theirs: &Slot, held: Option<u32>) -> Judged {
        judge(Judged { read: Some(copy.confirmed), ..before }, copy, theirs, &leader(held))
    }

    fn first(copy: &Slot, theirs: &Slot, held: Option<u32>) -> Judged {
        read(Judged::default(), copy, theirs, held)
    }

    #[test]
    fn a_copy_is_ready_once_the_leader_was_seen_to_keep_all_that_it_needs() {
        let (copy, theirs) = (slot(100, 7), slot(100, 7));
        assert!(first(&copy, &theirs, Some(7)).ready);
        assert!(first(&copy, &theirs, Some(6)).ready, "for another copy it keeps more");
        assert!(!first(&copy, &theirs, None).ready, "its feedback has not come");
        assert!(!first(&copy, &theirs, Some(8)).ready, "it never goes back for a copy that came later");
        assert!(!judge(Judged::default(), &copy, &theirs, &leader(Some(7))).ready, "its log may not be here");
        assert!(!first(&slot(100, 0), &theirs, Some(7)).ready);
    }

    #[test]
    fn a_leader_that_may_have_copies_of_its_own_that_lack_something_vouches_for_none() {
        let (copy, before) = (slot(100, 7), Judged { read: Some(Lsn(100)), ..Judged::default() });
        let unsettled = Leader { settled: false, ..leader(Some(7)) };
        assert_eq!(judge(before, &copy, &copy, &unsettled), before);
    }

    #[test]
    fn a_copy_that_came_after_rows_were_removed_must_pass_where_the_leader_was_then() {
        let late = first(&slot(100, 7), &slot(200, 9), Some(7));
        assert!(!late.ready);
        let next = read(late, &slot(199, 7), &slot(300, 12), Some(7));
        assert!(!next.ready);
        assert!(read(next, &slot(200, 7), &slot(300, 12), Some(7)).ready);
        // What kept the rows was away meanwhile: from the beginning.
        let away = read(next, &slot(199, 7), &slot(300, 12), None);
        assert!(!read(away, &slot(200, 7), &slot(300, 12), Some(7)).ready);
    }

    #[test]
    fn a_copy_that_is_back_behind_where_it_was_judged_is_not_ready() {
        let late = first(&slot(100, 7), &slot(200, 9), Some(7));
        let ready = read(late, &slot(200, 7), &slot(300, 12), Some(7));
        assert!(ready.ready && ready.is_good_at(Lsn(200)) && !ready.is_good_at(Lsn(199)));
        assert!(!judge(ready, &slot(199, 7), &slot(300, 12), &leader(Some(7))).ready);
        // Where nothing was gone it may be anywhere.
        let whole = first(&slot(200, 7), &slot(300, 7), Some(7));
        assert!(whole.is_good_at(Lsn(100)));
        assert!(judge(whole, &slot(100, 7), &slot(300, 9), &leader(Some(7))).ready);
    }

    #[test]
    fn a_slot_that_is_ahead_of_the_leaders_is_never_ready() {
        let ready = first(&slot(100, 7), &slot(100, 7), Some(7));
        assert!(!read(ready, &slot(101, 7), &slot(100, 7), Some(7)).ready);
        assert!(read(ready, &slot(101, 7), &slot(101, 9), Some(7)).ready, "the leader's has come by");
    }

    #[test]
    fn a_copy_that_was_ready_is_not_once_its_log_or_rows_are_gone() {
        let ready = first(&slot(100, 7), &slot(100, 7), Some(7));
        let stays = |held, copy: &Slot| judge(ready, copy, &slot(500, 40), &leader(held)).ready;
        assert!(stays(Some(7), &slot(100, 7)), "it stays while rows are kept");
        assert!(!stays(Some(8), &slot(100, 7)));
        assert!(!stays(Some(7), &Slot { lost: true, ..slot(100, 7) }));
        assert!(!stays(Some(7), &slot(101, 7)), "somebody has moved it, and its log may not be here");
    }

    #[test]
    fn a_copy_that_came_after_a_catalog_was_rewritten_waits_until_it_needs_nothing_of_that() {
        let of = |at| Leader { rewritten: Some(Lsn(at)), ..leader(Some(7)) };
        let (copy, before) = (slot(100, 7), Judged { read: Some(Lsn(100)), ..Judged::default() });
        assert!(!judge(before, &copy, &copy, &of(50)).ready);
        let ready = judge(before, &copy, &copy, &of(49));
        assert!(ready.ready);
        assert!(judge(ready, &copy, &copy, &of(90)).ready, "it was here by then");
        let files = ["map-4-4eb-1_A0-300-301", "map-0-4ee-0_FFFFFFFF-2-3"].map(str::to_string);
        assert_eq!(last_rewriting(&files), Some(Lsn(0x1_0000_00A0)));
        assert_eq!((last_rewriting(&[]), last_rewriting(&["odd".to_string()])), (None, Some(Lsn(u64::MAX))));
    }

    #[test]
    fn transaction_ids_go_round() {
        assert!(not_newer(u32::MAX, 5) && !not_newer(5, u32::MAX) && not_newer(5, 5));
    }

    fn note(judged: Judged) -> Note {
        let life = Incarnation { member: MemberId::from_u128(2), number: 1 };
        let of = Some(Upstream::of(MemberId::from_u128(1), Epoch(1)));
        let copies = [("warehouse".to_string(), judged)].into();
        Note { life, of, stream: Some("12 1".to_string()), copies }
    }

    const READY: Judged = Judged { ready: true, left: false, passes: Some(Lsn(0)), read: Some(Lsn(100)) };

    #[test]
    fn what_was_judged_under_one_leader_says_nothing_under_another() {
        let note = note(READY);
        let doubtful = |note: &Note| note.is_doubtful("warehouse", Lsn(100));
        let of = |epoch| Upstream::of(MemberId::from_u128(1), Epoch(epoch));
        assert!(!doubtful(&note));
        assert_eq!(note.clone().under(of(1)), note);
        let next = note.clone().under(of(2));
        assert!(doubtful(&next) && next.stream.is_none());
        let fed = Upstream { relay: Some(MemberId::from_u128(3)), ..of(1) };
        assert!(doubtful(&note.under(fed)));
    }

    #[test]
    fn what_another_stream_kept_must_be_seen_anew() {
        let mut note = note(READY);
        note.note_stream(None);
        note.note_stream(Some("12 1"));
        assert_eq!(note.copies["warehouse"], READY);
        note.note_stream(Some("13 1"));
        let before = note.copies["warehouse"];
        assert_eq!(before, Judged { ready: false, passes: None, ..READY });
        // The leader's slot needs rows that are as old, or it has come by since.
        assert!(judge(before, &slot(100, 7), &slot(200, 7), &leader(Some(7))).ready);
        assert!(!judge(before, &slot(100, 7), &slot(200, 9), &leader(Some(7))).ready);
        assert!(judge(before, &slot(100, 7), &slot(100, 9), &leader(Some(7))).ready);
    }

    #[test]
    fn a_slot_that_was_not_there_when_it_began_to_follow_is_peoples() {
        let note = Note::found(note(READY).life, ["warehouse".to_string()]);
        assert!(note.is_doubtful("warehouse", Lsn(100)) && !note.is_doubtful("mine", Lsn(100)));
        let left = note.copies["warehouse"];
        assert!(left.goes_without_the_leaders(15) && !left.goes_without_the_leaders(16));
        assert!(READY.goes_without_the_leaders(16));
        let seen = judge(left, &slot(100, 7), &slot(100, 7), &leader(Some(7)));
        assert!(seen.goes_without_the_leaders(16), "a copy since the leader was seen to have it");
    }
}
