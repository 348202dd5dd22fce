//! Whose acknowledgement counts, and the arithmetic by which that may change under a leader that goes on working.
//!
//! Two things go by a sync set: an election, by the recorded one, and Postgres' WAL senders, each by the one that it has
//! loaded. Between a change of the record and the last sender's reload they differ. All is well as long as everyone who
//! can elect meets everyone who can acknowledge: with `q` promises of the recorded set `S_r` and `k_p` acknowledgements
//! of a loaded set `S_p`, as long as `q + k_p > |S_r ∪ S_p|`.

use super::cluster::{ClusterRecord, EpochReason, Leadership};
use super::{MemberRecord, Outcome, Refusal, conflict};
use crate::ids::Incarnation;
use crate::position::Epoch;
use crate::spec::Durability;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Standbys whose acknowledgement counts, and how many of them are needed. The leader is not counted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SyncSet {
    /// `S`; `n` is its length. Empty only where nobody else is needed.
    pub members: BTreeSet<Incarnation>,
    /// `k`. With 0 the leader acknowledges alone, and only its own promise says what it acknowledged.
    pub needed: u8,
}

impl SyncSet {
    /// `n - k + 1`: so many promises that no commit can be acknowledged without one of the promisers. More than `n`
    /// (and so never reached) only for a set that could acknowledge with nobody.
    pub fn promises_needed(&self) -> usize {
        (self.members.len() + 1).saturating_sub(usize::from(self.needed))
    }

    /// Whether an election by this set finds every commit that is acknowledged by `loaded`.
    pub fn covers(&self, loaded: &SyncSet) -> bool {
        let union = self.members.union(&loaded.members).count();
        // With 0 the election hears the leader itself, whose log has everything.
        self.needed == 0 || self.promises_needed() + usize::from(loaded.needed) > union
    }

    /// What an election must go by from before Postgres hears of `next` until nobody goes by `self` any more. It covers
    /// both, and whatever `self` covers of the same or fewer members: so a change may be replaced by another at any time.
    pub fn widened(&self, next: &SyncSet) -> SyncSet {
        let members = self.members.union(&next.members).copied().collect();
        SyncSet { members, needed: self.needed.min(next.needed) }
    }
}

/// A change of the set that is under way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetChange {
    /// What Postgres is to go by.
    pub set: SyncSet,
    /// The cluster's revision with which it was recorded. What was observed by an older record may be of an older change
    /// to the same set, with another one in between.
    pub revision: u64,
}

impl ClusterRecord {
    /// Whether the set can change under the leader that there is. A leader that acknowledges alone under a lease, now or by
    /// the spec, has nobody to count: between the two kinds there is an epoch.
    pub fn changes_in_place(&self) -> bool {
        !self.spec.is_asynchronous() && self.config().is_some_and(|config| !config.asynchronous)
    }

    /// The first half of a change: the record is such that both the old and the new set are safe. Where it is the new set
    /// already (a member is added, or fewer are needed), that is all of it.
    pub(super) fn set_sync_set(&mut self, epoch: Epoch, set: &SyncSet, outcome: &mut Outcome) -> Result<(), Refusal> {
        let leader = self.in_epoch(epoch)?;
        if matches!(self.leadership, Leadership::Chosen { .. }) {
            return Err(conflict("the sync set changes only once the leader was promoted"));
        }
        if !self.changes_in_place() {
            return Err(conflict("the sync set of an asynchronous cluster changes only with its epoch"));
        }
        let known: BTreeSet<Incarnation> =
            self.members.values().filter(|member| member.id != leader).map(MemberRecord::current).collect();
        if let Some(stranger) = set.members.iter().find(|life| !known.contains(life)) {
            return Err(conflict(format!("{stranger} is not a present incarnation of a standby")));
        }
        if set.members.len() < usize::from(set.needed) {
            return Err(conflict("the sync set is smaller than the acknowledgements that it must give"));
        }
        let Some(config) = self.configs.last() else { return Err(conflict("no configuration")) };
        let may_be_alone = self.spec.needed() == 0 || self.spec.durability == Durability::Available;
        if set.needed < config.sync_set.needed && set.needed < self.spec.needed() && !may_be_alone {
            return Err(conflict(format!("durability strict keeps {} acknowledgements", self.spec.needed())));
        }
        if config.loaded() == set {
            return Err(conflict("the sync set is that already"));
        }
        // The one that this change makes.
        let revision = self.revision + 1;
        let before = config.sync_set.clone();
        let recorded = before.widened(set);
        let done = recorded == *set;
        let fewer = set.needed < before.needed && set.needed < self.spec.needed();
        if fewer {
            outcome.event("durability_degraded", self.degraded_text(set));
        }
        let degrades = fewer && self.spec.durability == Durability::Available;
        let joined: Vec<String> =
            set.members.difference(&before.members).map(|life| self.member_name(life.member)).collect();
        if !joined.is_empty() {
            outcome.event("sync_set_grew", format!("{} counts in the sync set", joined.join(", ")));
        } else if done && set.needed < before.needed && set.needed >= self.spec.needed() {
            outcome.event("sync_set_changed", format!("a commit needs {} of {}", set.needed, self.names_of(set)));
        }
        if let Some(config) = self.configs.last_mut() {
            config.degraded = (config.degraded || degrades) && recorded.needed < self.spec.needed();
            config.sync_set = recorded;
            config.target = (!done).then(|| SetChange { set: set.clone(), revision });
        }
        Ok(())
    }

    /// The second half: every WAL sender goes by the new set, and so many of it as it asks for have on disk whatever was
    /// acknowledged before.
    pub(super) fn settle_sync_set(
        &mut self,
        epoch: Epoch,
        set: &SyncSet,
        outcome: &mut Outcome,
    ) -> Result<(), Refusal> {
        self.in_epoch(epoch)?;
        let Some(config) = self.configs.last_mut() else { return Err(conflict("no configuration")) };
        if config.target.as_ref().map(|change| &change.set) != Some(set) {
            return Err(conflict("the sync set is not being changed to that"));
        }
        let before = std::mem::replace(&mut config.sync_set, set.clone());
        config.target = None;
        config.degraded &= set.needed < self.spec.needed();
        let left: Vec<String> = before
            .members
            .difference(&set.members)
            .filter(|life| !set.members.iter().any(|kept| kept.member == life.member))
            .map(|life| self.member_name(life.member))
            .collect();
        if !left.is_empty() {
            outcome.event("sync_set_shrank", format!("{} no longer counts in the sync set", left.join(", ")));
        }
        if set.needed > before.needed {
            let text = format!("a commit needs {} of {}", set.needed, self.names_of(set));
            // Not where more were asked for than before.
            let restored = set.needed >= self.spec.needed() && self.updating.is_none();
            outcome.event(if restored { "durability_restored" } else { "sync_set_changed" }, text);
        }
        Ok(())
    }

    /// Of a leader that is chosen with this set: whether it goes on with fewer for the same reason as the one before.
    pub(super) fn stays_degraded(&self, set: &SyncSet) -> bool {
        let forced = matches!(self.leadership, Leadership::Electing { reason: EpochReason::Forced, .. });
        let before = self.configs.last().is_some_and(|config| config.degraded);
        before && !forced && set.needed < self.spec.needed()
    }

    /// The spec asks for another number: what is enough now is not degraded any more.
    pub(super) fn judge_degraded(&mut self) {
        let wanted = self.spec.needed();
        for config in &mut self.configs {
            config.degraded &= config.sync_set.needed < wanted;
        }
    }

    fn names_of(&self, set: &SyncSet) -> String {
        let names: Vec<String> = set.members.iter().map(|life| self.member_name(life.member)).collect();
        names.join(", ")
    }

    fn degraded_text(&self, set: &SyncSet) -> String {
        match set.needed {
            0 => "commits are acknowledged by the leader alone: no standby is there to have them too".to_string(),
            needed => format!(
                "commits are acknowledged with {needed} of {}, instead of {} standbys",
                self.names_of(set),
                self.spec.needed()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MemberId;

    /// Members 0 to 3 by bits.
    fn subsets() -> impl Iterator<Item = BTreeSet<Incarnation>> {
        (0u32..16).map(|bits| {
            let named = (0..4).filter(|n| bits & (1 << n) != 0);
            named.map(|n| Incarnation { member: MemberId::from_u128(n), number: 1 }).collect()
        })
    }
    fn sets() -> Vec<SyncSet> {
        let all = subsets().flat_map(|members| {
            (0..=members.len() as u8).map(move |needed| SyncSet { members: members.clone(), needed })
        });
        all.collect()
    }
    /// Whether some election by `recorded` without its leader misses some acknowledgement by `loaded`.
    fn misses(recorded: &SyncSet, loaded: &SyncSet) -> bool {
        if recorded.needed == 0 {
            return false; // Nobody elects but the leader itself.
        }
        let electors = || {
            subsets().filter(|those| those.is_subset(&recorded.members) && those.len() >= recorded.promises_needed())
        };
        let ackers =
            subsets().filter(|those| those.is_subset(&loaded.members) && those.len() >= usize::from(loaded.needed));
        ackers.into_iter().any(|ackers| electors().any(|electors| electors.is_disjoint(&ackers)))
    }

    #[test]
    fn the_invariant_says_exactly_whether_an_election_can_miss_a_commit() {
        for recorded in sets() {
            for loaded in sets() {
                assert_eq!(recorded.covers(&loaded), !misses(&recorded, &loaded), "{recorded:?} {loaded:?}");
            }
        }
    }

    #[test]
    fn a_widened_set_covers_the_old_and_the_new_one() {
        for old in sets() {
            for new in sets() {
                let recorded = old.widened(&new);
                assert!(recorded.covers(&old) && recorded.covers(&new), "{old:?} {new:?}");
            }
        }
    }

    #[test]
    fn a_change_that_is_replaced_by_another_covers_all_three() {
        for old in sets() {
            for between in sets() {
                for new in sets() {
                    let recorded = old.widened(&between).widened(&new);
                    for loaded in [&old, &between, &new] {
                        assert!(recorded.covers(loaded), "{old:?} {between:?} {new:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn adding_a_member_and_needing_fewer_are_done_with_the_record_alone() {
        let set = |members: &[u128], needed| SyncSet {
            members: members.iter().map(|n| Incarnation { member: MemberId::from_u128(*n), number: 1 }).collect(),
            needed,
        };
        let old = set(&[1, 2], 2);
        for new in [set(&[1, 2, 3], 2), set(&[1, 2], 1), set(&[1, 2, 3], 1)] {
            assert_eq!(old.widened(&new), new);
        }
        for new in [set(&[1], 1), set(&[1, 3], 2), set(&[1, 2, 3], 3)] {
            assert_ne!(old.widened(&new), new);
        }
    }
}
