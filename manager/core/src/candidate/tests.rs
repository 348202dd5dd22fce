//! Whatever an election decides, the record takes: a choice that is refused would be decided again for ever.

use crate::observed::testing::*;
use pgstead_types::record::{ClusterChange, EpochReason, Leadership, SyncSet};
use pgstead_types::spec::Durability;

/// How a member looks to the election.
#[derive(Clone, Copy, Debug)]
enum Look {
    Promised,
    Diverged,
    Away,
    Lost,
}
const LOOKS: [Look; 4] = [Look::Promised, Look::Diverged, Look::Away, Look::Lost];

fn look(world: World, name: &str, look: Look) -> World {
    match look {
        Look::Promised => world.promised(name, 2, at(2, END)),
        Look::Diverged => world.promised(name, 2, at(1, FORK + 50)),
        Look::Away => world.gone(name),
        Look::Lost => world.lost_data(name),
    }
}

#[test]
fn what_is_chosen_applies_however_few_are_here_and_whatever_was_forced_before() {
    let mut chosen = 0;
    for spec in 1..=3u8 {
        for held in 0..=spec {
            for looks in 0..LOOKS.len().pow(3) {
                let mut world = world().leader("a").standby("b", lag(0)).standby("c", lag(0)).standby("d", lag(0));
                world = world.recorded(|record| {
                    record.spec.sync_replicas = Some(spec);
                    record.configs[0].sync_set.needed = held;
                    if held == 0 {
                        record.configs[0].sync_set.members.clear();
                    }
                });
                world = world.electing(EpochReason::SyncSetChange, Some("a")).promised("a", 2, at(2, END));
                let mut rest = looks;
                for name in ["b", "c", "d"] {
                    world = look(world, name, LOOKS[rest % LOOKS.len()]);
                    rest /= LOOKS.len();
                }
                let what = format!("spec {spec}, held {held}, looks {looks}");
                let change = world.decide_and_apply().unwrap_or_else(|why| panic!("{what}: {why}"));
                assert!(matches!(change, Some(ClusterChange::Choose { .. })), "{what}: {change:?}");
                assert!(matches!(world.record.leadership, Leadership::Chosen { .. }), "{what}");
                let set = &world.record.configs[1].sync_set;
                assert!(set.needed >= held.min(spec), "{what}: fewer than a person has accepted");
                assert!(set.members.len() >= usize::from(set.needed), "{what}");
                chosen += 1;
            }
        }
    }
    assert_eq!(chosen, (2 + 3 + 4) * 64);
}

#[test]
fn after_a_forced_failover_the_set_is_filled_up_with_those_who_are_away() {
    let mut world = world().leader("a").standby("b", lag(0)).standby("c", lag(0)).standby("d", lag(0));
    world = world.recorded(|record| {
        record.spec.sync_replicas = Some(2);
        record.configs[0].sync_set = set(&["b"], 1);
    });
    world = world.electing(EpochReason::PostgresEnded, None).promised("a", 2, at(2, END)).gone("b").gone("c").gone("d");
    world.decide_and_apply().expect("the record takes it");
    let config = &world.record.configs[1];
    assert_eq!((config.sync_set.needed, config.sync_set.members.len()), (1, 3));
}

#[test]
fn after_one_that_was_left_alone_those_who_promise_count_at_once() {
    let alone = |degraded: bool| {
        let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0));
        world
            .recorded(|record| {
                record.spec.sync_replicas = Some(2);
                record.spec.durability = Durability::Available;
                record.configs[0].sync_set = SyncSet::default();
                record.configs[0].degraded = degraded;
            })
            .electing(EpochReason::PostgresEnded, None)
            .promised("a", 2, at(2, END))
            .gone("c")
    };
    let set_of = |mut world: World| {
        world.decide_and_apply().expect("the record takes it");
        let config = world.record.configs[1].clone();
        (config.sync_set, config.degraded)
    };
    // b lacks the last commits, and is here to have the next ones.
    assert_eq!(set_of(alone(true).promised("b", 2, at(2, END - 50))), (set(&["b"], 1), true));
    assert_eq!(set_of(alone(false).promised("b", 2, at(2, END - 50))), (set(&["b"], 1), false));
    // Nobody else is here.
    assert_eq!(set_of(alone(true).gone("b")), (SyncSet::default(), true));
    // Commits must not go on with fewer any more: they wait for those who are away. What a person has accepted stays.
    let strict = |world: World| world.recorded(|record| record.spec.durability = Durability::Strict);
    assert_eq!(set_of(strict(alone(true)).gone("b")), (set(&["b", "c"], 2), false));
    assert_eq!(set_of(strict(alone(false)).gone("b")), (SyncSet::default(), false));
}
