//! What the instance's configuration says, kept in one file of the run folder so that a restarted daemon knows it.
//!
//! Two shapes are kept: the wanted one, written before the files are, and the one last seen in effect. Where they differ
//! a change was cut short, and whatever is the worse of the two is reported.

use super::InstanceConfig;
use crate::files::{self, Survives};
use pgstead_types::record::SyncSet;
use pgstead_types::report::{ClientAccess, Unfinished, Upstream};
use pgstead_types::{Epoch, Incarnation};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// `synchronous_standby_names` in its three forms.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncNames {
    /// A standby that does not exist: nothing is ever acknowledged.
    #[default]
    Nobody,
    /// The recorded set. Empty only for a cluster of one.
    Set(SyncSet),
}

/// Everything in the configuration that changes in a member's life.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shape {
    pub access: ClientAccess,
    pub sync_names: SyncNames,
    /// Who may replicate from here, and under which epoch. `None`: nobody, as on every standby that feeds no other.
    pub admitted: Option<Admitted>,
    pub upstream: Option<Follow>,
    /// Transactions are read-only unless they say otherwise.
    #[serde(default)]
    pub read_only: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Admitted {
    pub epoch: Epoch,
    pub incarnations: BTreeSet<Incarnation>,
}

/// Whom to stream from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Follow {
    pub of: Upstream,
    pub host: String,
    pub port: u16,
}

impl Shape {
    /// What Postgres is started with: nobody to follow, nobody admitted, nothing acknowledged.
    pub fn at_start(access: ClientAccess) -> Self {
        Self { access, sync_names: SyncNames::Nobody, admitted: None, upstream: None, read_only: false }
    }
    /// The same member as a standby without an upstream, whatever it was prepared for: nobody is admitted, and nothing is
    /// acknowledged unless it was started as the only member.
    pub fn as_standby(&self) -> Self {
        let alone = matches!(&self.sync_names, SyncNames::Set(set) if set.members.is_empty());
        let sync_names = if alone { self.sync_names.clone() } else { SyncNames::Nobody };
        Self { sync_names, ..Self::at_start(self.access) }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Applied {
    /// Written into the configuration, so that a backend can be asked which one it was born with.
    pub generation: u64,
    pub wanted: Shape,
    /// The shape last seen in effect; `None` when that is not known.
    pub seen: Option<Shape>,
    /// The sync set or who is admitted was changed, and not every WAL sender was seen to go by it. Stays through whatever
    /// else is changed meanwhile, also where what is wanted becomes what was seen before.
    #[serde(default)]
    pub senders_pending: bool,
    /// By the control file at the last start: settings that a standby must not be below.
    #[serde(default)]
    pub floors: BTreeMap<String, u64>,
    /// Whether the Postgres that was started last has `wal_level = logical`, whatever is asked for since. What rests on it ends an
    /// early Postgres 17 that was started without. Once so, for ever so: with a logical slot left Postgres starts only with it.
    #[serde(default)]
    pub logical: bool,
    /// What Postgres is known to have loaded; `None` while that is not known.
    #[serde(default)]
    pub presented: Option<Presented>,
    /// Slots of which nobody knows whether they miss something could not be dropped yet: consumers are kept out.
    #[serde(default)]
    pub consumers_wait: bool,
    /// Standbys were told, by the last file that was written, that no such slot is here.
    #[serde(default)]
    pub slots_settled: bool,
}

/// What is not the shape's and reaches Postgres by the same files. The key goes with its certificate.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Presented {
    ca_pem: String,
    cert_pem: String,
    settings: BTreeMap<String, String>,
    #[serde(default)]
    logical_replication: bool,
}

impl Presented {
    pub fn of(config: &InstanceConfig) -> Self {
        Self {
            ca_pem: config.tls.ca_pem.clone(),
            cert_pem: config.tls.cert_pem.clone(),
            settings: config.settings.clone(),
            logical_replication: config.logical_replication,
        }
    }
}

impl Applied {
    pub fn load(config: &InstanceConfig) -> Self {
        // Unreadable is unknown: what is running, if anything, is then taken for the worst until a step sees its own.
        let loaded = files::read_json(&config.run_file("applied.json")).ok().flatten();
        loaded.unwrap_or(Self {
            generation: 0,
            wanted: Shape::at_start(ClientAccess::Open),
            seen: None,
            senders_pending: true,
            floors: BTreeMap::new(),
            logical: false,
            presented: None,
            consumers_wait: false,
            slots_settled: false,
        })
    }
    /// As it is before anything was written.
    #[cfg(test)]
    fn fresh(wanted: &Shape, seen: Option<&Shape>) -> Self {
        let (wanted, seen) = (wanted.clone(), seen.cloned());
        let floors = BTreeMap::new();
        Self {
            generation: 1,
            wanted,
            seen,
            senders_pending: false,
            floors,
            logical: false,
            presented: None,
            consumers_wait: false,
            slots_settled: false,
        }
    }
    pub fn save(&self, config: &InstanceConfig) -> io::Result<()> {
        files::replace_json(&config.run_file("applied.json"), self, config.owner(), Survives::Processes)
    }

    /// Logical slots that are made for it survive a failover: Postgres copies them to standbys from 17 on.
    pub fn keeps_logical_slots(&self, major: u16) -> bool {
        self.logical && major >= 17
    }
    /// Before that pgstead copies them; see `copied`.
    pub fn copies_logical_slots(&self, major: u16) -> bool {
        self.logical && major < 17
    }

    /// Before a file is written. Consumers wait only where it may lead: a standby is followed by nobody whose slots it has.
    pub fn note_slots(&mut self, major: u16, may_have_copies: bool) {
        let follows = self.wanted.upstream.is_some();
        self.consumers_wait &= !follows;
        self.slots_settled = self.copies_logical_slots(major) && !follows && !self.consumers_wait && !may_have_copies;
    }

    fn settled(&self) -> bool {
        self.seen.as_ref() == Some(&self.wanted)
    }
    /// Takes note of what is to be written.
    pub fn want(&mut self, wanted: Shape) {
        let for_senders = |shape: &Shape| (shape.sync_names.clone(), shape.admitted.clone());
        let before = for_senders(&self.wanted);
        self.senders_pending |= for_senders(&wanted) != before || self.seen.as_ref().map(for_senders) != Some(before);
        self.wanted = wanted;
    }
    /// All of it was seen in effect.
    pub fn note_seen(&mut self) {
        self.seen = Some(self.wanted.clone());
        self.senders_pending = false;
    }
    /// The sync set and who is admitted were seen in effect. Whether clients of other rules are gone nobody has looked.
    pub fn note_set_seen(&mut self) {
        let before = self.seen.as_ref();
        let access = before.map_or(ClientAccess::Open, |seen| seen.access);
        let read_only = before.map_or(!self.wanted.read_only, |seen| seen.read_only);
        self.note_seen();
        self.seen = Some(Shape { access, read_only, ..self.wanted.clone() });
    }
    /// Who may connect was seen in effect. WAL senders were not asked.
    pub fn note_access_seen(&mut self) {
        let (access, read_only) = (self.wanted.access, self.wanted.read_only);
        self.seen = Some(match (&self.seen, self.senders_pending) {
            // Nobody has looked whether its receiver is gone.
            (Some(seen), false) if self.wanted.upstream.is_none() => {
                Shape { upstream: seen.upstream.clone(), ..self.wanted.clone() }
            }
            (_, false) => self.wanted.clone(),
            (Some(seen), true) => Shape { access, read_only, ..seen.clone() },
            (None, true) => Shape { read_only, upstream: self.wanted.upstream.clone(), ..Shape::at_start(access) },
        });
    }
    /// Holding only when that was seen.
    pub fn access(&self) -> ClientAccess {
        if self.settled() && self.wanted.access == ClientAccess::Holding {
            ClientAccess::Holding
        } else {
            match &self.seen {
                Some(seen) if seen.access == self.wanted.access => seen.access,
                _ => ClientAccess::Open,
            }
        }
    }
    /// What is wanted once that was seen, and the contrary before.
    pub fn read_only(&self) -> bool {
        let wanted = self.wanted.read_only;
        let is_seen = self.seen.as_ref().is_some_and(|seen| seen.read_only == wanted);
        if is_seen { wanted } else { !wanted }
    }
    /// The set, once every WAL sender has seen it.
    pub fn sync_set(&self) -> Option<&SyncSet> {
        if self.senders_pending {
            return None;
        }
        match (&self.wanted.sync_names, &self.seen.as_ref()?.sync_names) {
            (SyncNames::Set(wanted), SyncNames::Set(seen)) if wanted == seen => Some(wanted),
            _ => None,
        }
    }
    /// Those who are certainly admitted under `epoch`.
    pub fn admitted(&self, epoch: Option<Epoch>) -> BTreeSet<Incarnation> {
        match (&self.wanted.admitted, self.seen.as_ref().and_then(|seen| seen.admitted.as_ref())) {
            (Some(wanted), Some(seen)) if wanted.epoch == seen.epoch && Some(wanted.epoch) == epoch => {
                wanted.incarnations.intersection(&seen.incarnations).copied().collect()
            }
            _ => BTreeSet::new(),
        }
    }
    /// Whom a standby feeds or may still be feeding: nobody only when that was seen.
    pub fn relays_to(&self) -> BTreeSet<Incarnation> {
        let shapes = [Some(&self.wanted), self.seen.as_ref()];
        // Prepared for a promotion it follows nobody, and admits whoever is to follow it.
        let relaying = shapes.into_iter().flatten().filter(|shape| shape.upstream.is_some());
        relaying
            .filter_map(|shape| shape.admitted.as_ref())
            .flat_map(|held| held.incarnations.iter().copied())
            .collect()
    }
    /// Whether somebody may replicate from here.
    pub fn may_admit(&self) -> bool {
        self.wanted.admitted.is_some() || self.seen.as_ref().is_none_or(|seen| seen.admitted.is_some())
    }
    /// What was begun and not seen to end.
    pub fn unfinished(&self) -> Option<Unfinished> {
        let seen = self.seen.as_ref();
        let upstream = |shape: &Shape| shape.upstream.as_ref().map(|follow| follow.of);
        match (upstream(&self.wanted), seen.and_then(upstream)) {
            (wanted, Some(seen)) if wanted != Some(seen) => Some(Unfinished::Cut),
            (Some(_), None) => Some(Unfinished::Follow),
            (Some(_), Some(_)) => {
                let same = seen.is_some_and(|seen| seen.admitted == self.wanted.admitted);
                (!same || self.senders_pending).then_some(Unfinished::Relay)
            }
            (None, _) => None,
        }
    }
    /// Whom it may be streaming from: nobody only when that was seen.
    pub fn upstream(&self) -> Option<Upstream> {
        let seen = self.seen.as_ref().and_then(|seen| seen.upstream.as_ref());
        self.wanted.upstream.as_ref().or(seen).map(|follow| follow.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_types::MemberId;

    fn following() -> Shape {
        let of = Upstream::of(MemberId::from_u128(1), Epoch(1));
        let upstream = Some(Follow { of, host: "a".to_string(), port: 1 });
        Shape { upstream, ..Shape::at_start(ClientAccess::Holding) }
    }

    #[test]
    fn a_change_cut_short_is_reported_as_the_worse_of_the_two() {
        let open = Shape::at_start(ClientAccess::Open);
        let holding = Shape::at_start(ClientAccess::Holding);
        for (wanted, seen) in [(&open, Some(&holding)), (&holding, Some(&open)), (&holding, None)] {
            let applied = Applied::fresh(wanted, seen);
            assert_eq!(applied.access(), ClientAccess::Open, "{wanted:?} {seen:?}");
        }
        let settled = Applied::fresh(&holding, Some(&holding));
        assert_eq!(settled.access(), ClientAccess::Holding);
        let mut cutting = Applied::fresh(&holding, Some(&following()));
        assert!(cutting.upstream().is_some(), "an upstream is gone only when that was seen");
        cutting.note_access_seen();
        assert!(cutting.upstream().is_some(), "who may connect says nothing of a receiver");
    }

    #[test]
    fn what_was_begun_and_not_seen_to_end_is_told() {
        let nobody = Shape::at_start(ClientAccess::Holding);
        let cut = Applied::fresh(&nobody, Some(&following()));
        assert_eq!((cut.unfinished(), cut.upstream().is_some()), (Some(Unfinished::Cut), true));
        for before in [None, Some(&nobody)] {
            let begun = Applied::fresh(&following(), before);
            assert_eq!((begun.unfinished(), begun.upstream().is_some()), (Some(Unfinished::Follow), true));
        }
        let admitted = |n| {
            let life = Incarnation { member: MemberId::from_u128(n), number: 1 };
            Shape { admitted: Some(Admitted { epoch: Epoch(1), incarnations: [life].into() }), ..following() }
        };
        for (wanted, seen) in [(&admitted(3), &following()), (&following(), &admitted(3)), (&admitted(3), &admitted(4))]
        {
            assert_eq!(Applied::fresh(wanted, Some(seen)).unfinished(), Some(Unfinished::Relay));
        }
        // There and back: which of the two Postgres has loaded, nobody has seen.
        let mut back = Applied::fresh(&admitted(3), Some(&admitted(3)));
        back.want(following());
        back.want(admitted(3));
        assert_eq!((back.unfinished(), back.relays_to().len()), (Some(Unfinished::Relay), 1));
        back.note_seen();
        assert_eq!(back.unfinished(), None);
        for settled in [&nobody, &following()] {
            assert_eq!(Applied::fresh(settled, Some(settled)).unfinished(), None);
        }
        assert_eq!(Applied::fresh(&nobody, None).unfinished(), None);
    }

    #[test]
    fn a_relay_feeds_whom_it_did_until_that_was_seen_to_end() {
        let life = Incarnation { member: MemberId::from_u128(3), number: 1 };
        let admitted = Some(Admitted { epoch: Epoch(1), incarnations: [life].into() });
        let relaying = Shape { admitted: admitted.clone(), ..following() };
        let mut applied = Applied::fresh(&relaying, Some(&relaying));
        assert_eq!(applied.relays_to(), [life].into());
        applied.want(applied.wanted.as_standby());
        assert_eq!(applied.relays_to(), [life].into(), "its senders may be left");
        applied.note_seen();
        assert!(applied.relays_to().is_empty() && applied.upstream().is_none());
        let prepared = Shape { admitted, ..Shape::at_start(ClientAccess::Holding) };
        assert!(Applied::fresh(&prepared, Some(&prepared)).relays_to().is_empty());
    }

    #[test]
    fn slots_are_settled_only_where_none_can_be_a_copy_and_nobody_waits() {
        let leads = Shape::at_start(ClientAccess::Open);
        let settled = |wanted: &Shape, consumers_wait, may_have_copies| {
            let mut applied = Applied { logical: true, consumers_wait, ..Applied::fresh(wanted, None) };
            applied.note_slots(15, may_have_copies);
            (applied.slots_settled, applied.consumers_wait)
        };
        assert_eq!(settled(&leads, false, false), (true, false));
        assert_eq!(settled(&leads, false, true), (false, false));
        assert_eq!(settled(&leads, true, false), (false, true));
        assert_eq!(settled(&following(), true, false), (false, false), "a standby keeps no consumers out");
        let mut newer = Applied { logical: true, ..Applied::fresh(&leads, None) };
        newer.note_slots(17, false);
        assert!(!newer.slots_settled);
    }

    #[test]
    fn a_sync_set_counts_only_once_it_was_seen() {
        let set = SyncSet { members: [Incarnation { member: MemberId::from_u128(2), number: 1 }].into(), needed: 1 };
        let wanted = Shape { sync_names: SyncNames::Set(set.clone()), ..Shape::at_start(ClientAccess::Holding) };
        let mut applied = Applied::fresh(&wanted, Some(&Shape::at_start(ClientAccess::Holding)));
        assert_eq!(applied.sync_set(), None);
        applied.seen = Some(wanted);
        assert_eq!(applied.sync_set(), Some(&set));
    }

    #[test]
    fn a_sync_set_that_was_seen_before_a_change_was_cut_short_must_be_seen_again() {
        let life = |n| Incarnation { member: MemberId::from_u128(n), number: 1 };
        let shape = |members: &[u128]| {
            let set = SyncSet { members: members.iter().map(|n| life(*n)).collect(), needed: 1 };
            Shape { sync_names: SyncNames::Set(set), ..Shape::at_start(ClientAccess::Open) }
        };
        let (both, one) = (shape(&[2, 3]), shape(&[2]));
        let mut applied = Applied::fresh(&one, Some(&one));
        assert!(applied.sync_set().is_some());
        applied.want(both);
        applied.want(one.clone());
        assert_eq!(applied.sync_set(), None, "some senders may go by both");
        // Holding clients in between says nothing of senders.
        applied.want(Shape { access: ClientAccess::Holding, ..one.clone() });
        applied.note_access_seen();
        assert_eq!((applied.sync_set(), applied.access()), (None, ClientAccess::Holding));
        applied.want(one);
        applied.note_seen();
        assert!(applied.sync_set().is_some());
    }
}
