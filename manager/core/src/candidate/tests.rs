//! Whatever an election decides, the record takes: a choice that is refused would be decided again for ever.

use crate::observed::testing::*;
use pgstead_types::record::{ClusterChange, EpochReason, Leadership};

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
