//! The arithmetic of elections: whose promises are enough.
//!
//! For the last confirmed configuration, and for every later one that was chosen and not confirmed, an election needs
//! either the promise of that configuration's leader (its own log holds all that it ever acknowledged) or so many of its
//! sync set that no commit could have been acknowledged without one of them.
//!
//! The promise of a configuration's leader speaks for all earlier ones too: when it was chosen, enough had promised that
//! nothing could be acknowledged in them any more, and its log held everything that had been. Without this, members that
//! are made anew for its set could no longer promise for the earlier ones, and a chosen leader that merely restarts
//! would wait for them for ever.

use pgstead_types::record::{EpochConfig, SyncSet};
use pgstead_types::{Epoch, Incarnation};
use std::collections::BTreeSet;

/// What an election still lacks, for one configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing {
    pub epoch: Epoch,
    pub leader: Incarnation,
    /// Members of its set that have not promised.
    pub absent: BTreeSet<Incarnation>,
    /// How many of those would be enough.
    pub more: usize,
}

/// Whether `promised` satisfies every configuration; else what the first unsatisfied one lacks. No configuration at all
/// is never satisfied: it would elect without having asked anyone.
pub fn electable(configs: &[EpochConfig], promised: &BTreeSet<Incarnation>) -> Result<(), Option<Missing>> {
    electable_but(configs, promised, &BTreeSet::new())
}

/// The same, without asking the asynchronous configurations of the epochs in `over`: their leaders acknowledge nothing any
/// more, and nobody else ever did.
pub(crate) fn electable_but(
    configs: &[EpochConfig],
    promised: &BTreeSet<Incarnation>,
    over: &BTreeSet<Epoch>,
) -> Result<(), Option<Missing>> {
    let mut missing = None;
    // The latest first: its leader's promise ends the question.
    for (earlier, config) in configs.iter().enumerate().rev() {
        if promised.contains(&config.leader) {
            break;
        }
        if config.asynchronous && config.sync_set.members.is_empty() && over.contains(&config.epoch) {
            continue;
        }
        if earlier > 0 && is_leader_alone(config) {
            continue;
        }
        let heard = config.sync_set.members.intersection(promised).count();
        let needed = promises_needed(&config.sync_set);
        if heard < needed {
            let absent = config.sync_set.members.difference(promised).copied().collect();
            // The oldest is named: it is the one that holds what was acknowledged.
            missing = Some(Missing { epoch: config.epoch, leader: config.leader, absent, more: needed - heard });
        }
    }
    match missing {
        Some(missing) => Err(Some(missing)),
        // Somebody must be there to be chosen, whoever need not be asked.
        None if configs.is_empty() || promised.is_empty() => Err(None),
        None => Ok(()),
    }
}

/// Nobody but its leader could speak for such a configuration. Where it follows another one it was never confirmed, and never
/// will be, for an epoch is open: no client was let in and nothing was acknowledged in it. So it need not be asked. One that
/// was confirmed, and may have acknowledged alone, is the first.
fn is_leader_alone(config: &EpochConfig) -> bool {
    config.sync_set.needed == 0 && !config.asynchronous
}

fn promises_needed(set: &SyncSet) -> usize {
    // A set that acknowledges with nobody (a cluster of one) can only be elected by its leader itself.
    if set.needed == 0 { usize::MAX } else { set.promises_needed() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_types::{MemberId, Position, Timeline};

    fn life(n: u128) -> Incarnation {
        Incarnation { member: MemberId::from_u128(n), number: 1 }
    }
    fn lives(all: &[u128]) -> BTreeSet<Incarnation> {
        all.iter().map(|n| life(*n)).collect()
    }
    fn config(epoch: u64, leader: u128, set: &[u128], needed: u8) -> EpochConfig {
        EpochConfig {
            epoch: Epoch(epoch),
            leader: life(leader),
            timeline: Timeline(epoch as u32 + 1),
            start: Position::default(),
            sync_set: SyncSet { members: lives(set), needed },
            asynchronous: false,
            possible_loss: None,
            degraded: false,
            target: None,
        }
    }
    fn alone(epoch: u64, leader: u128) -> EpochConfig {
        EpochConfig { asynchronous: true, ..config(epoch, leader, &[], 0) }
    }

    #[test]
    fn two_standbys_and_one_acknowledgement_need_both_promises() {
        let configs = [config(1, 1, &[2, 3], 1)];
        assert!(electable(&configs, &lives(&[2])).is_err());
        assert!(electable(&configs, &lives(&[2, 3])).is_ok());
    }

    #[test]
    fn the_leaders_own_promise_is_enough() {
        assert!(electable(&[config(1, 1, &[2, 3], 1)], &lives(&[1])).is_ok());
    }

    #[test]
    fn an_unconfirmed_epoch_does_not_excuse_the_one_before() {
        // A commit of 1 acknowledged by 2 alone; 2 was elected with set {3} and died before 3 had it.
        let configs = [config(1, 1, &[2, 3], 1), config(2, 2, &[3], 1)];
        let missing = electable(&configs, &lives(&[3])).unwrap_err().unwrap();
        assert_eq!((missing.epoch, missing.more), (Epoch(1), 1));
        assert!(electable(&configs, &lives(&[1, 3])).is_ok());
    }

    #[test]
    fn a_later_leaders_promise_speaks_for_the_earlier_configurations() {
        // 2 was elected by 2 and 3, with 1 to be made anew for its set; it restarts before anything is confirmed.
        let reborn = Incarnation { member: MemberId::from_u128(1), number: 2 };
        let mut second = config(2, 2, &[], 1);
        second.sync_set.members.insert(reborn);
        let configs = [config(1, 1, &[2, 3], 1), second];
        assert!(electable(&configs, &lives(&[2])).is_ok());
        assert!(electable(&configs, &lives(&[3])).is_err());
    }

    #[test]
    fn an_earlier_leaders_promise_does_not_speak_for_a_later_configuration() {
        let configs = [config(1, 1, &[2, 3], 1), config(2, 2, &[3], 1)];
        assert!(electable(&configs, &lives(&[1])).is_err());
    }

    #[test]
    fn another_incarnation_does_not_count() {
        let reborn = Incarnation { member: MemberId::from_u128(2), number: 2 };
        let promised = [reborn, life(3)].into_iter().collect();
        assert!(electable(&[config(1, 1, &[2, 3], 1)], &promised).is_err());
    }

    #[test]
    fn a_member_alone_is_elected_only_by_itself() {
        let configs = [config(1, 1, &[], 0)];
        assert!(electable(&configs, &lives(&[])).is_err());
        assert!(electable(&configs, &lives(&[1])).is_ok());
    }

    #[test]
    fn a_leader_alone_that_was_never_confirmed_has_acknowledged_nothing() {
        // 2 was chosen after 1, came down to nobody, and died before that was confirmed.
        let configs = [config(1, 1, &[2], 1), config(2, 2, &[], 0)];
        assert!(electable(&configs, &lives(&[1])).is_ok());
        assert!(electable(&configs, &lives(&[2])).is_ok(), "its own promise still speaks for everything before");
        assert_eq!(electable(&configs, &lives(&[3])).unwrap_err().unwrap().epoch, Epoch(1));
        // The same one confirmed is the first, and may have acknowledged alone.
        assert!(electable(&configs[1..], &lives(&[1, 3])).is_err());
        assert_eq!(electable(&configs[1..], &lives(&[])).unwrap_err().unwrap().epoch, Epoch(2));
        // Nobody is nobody, whoever need not be asked.
        let configs = [alone(1, 1), config(2, 2, &[], 0)];
        assert_eq!(electable_but(&configs, &lives(&[]), &[Epoch(1)].into()), Err(None));
        assert!(electable_but(&configs, &lives(&[3]), &[Epoch(1)].into()).is_ok());
    }

    #[test]
    fn an_asynchronous_leader_is_asked_until_it_is_out() {
        let configs = [alone(1, 1)];
        assert!(electable(&configs, &lives(&[2, 3])).is_err());
        assert!(electable(&configs, &lives(&[1])).is_ok());
        let over = [Epoch(1)].into();
        assert!(electable_but(&configs, &lives(&[2]), &over).is_ok());
        assert!(electable_but(&configs, &lives(&[]), &over).is_err());
    }

    #[test]
    fn a_lease_that_is_over_excuses_no_synchronous_configuration() {
        let configs = [config(1, 1, &[2, 3], 1), alone(2, 2)];
        let over = [Epoch(1), Epoch(2)].into();
        assert!(electable_but(&configs, &lives(&[3]), &over).is_err());
        assert!(electable_but(&configs, &lives(&[2]), &over).is_ok(), "the later leader speaks for the earlier one");
        // A set that has come down to nobody is no asynchronous configuration.
        assert!(electable_but(&[config(1, 1, &[2, 3], 0)], &lives(&[2, 3]), &[Epoch(1)].into()).is_err());
    }

    #[test]
    fn any_electing_quorum_meets_any_acknowledging_one() {
        for n in 1..=6usize {
            for k in 1..=n {
                let set: Vec<u128> = (2..2 + n as u128).collect();
                let configs = [config(1, 1, &set, k as u8)];
                for bits in 0u32..(1 << n) {
                    let promised: BTreeSet<_> =
                        set.iter().enumerate().filter(|(i, _)| bits & (1 << i) != 0).map(|(_, m)| life(*m)).collect();
                    let others = n - promised.len();
                    let could_acknowledge_without_them = others >= k;
                    assert_eq!(electable(&configs, &promised).is_ok(), !could_acknowledge_without_them, "n={n} k={k}");
                }
            }
        }
    }
}
