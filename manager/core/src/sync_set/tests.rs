//! What the set becomes by what is seen of the leader and its standbys, and when a change of it is settled.

use super::{SetMemory, View};
use crate::decide::Plan;
use crate::observed::testing::*;
use pgstead_types::record::{ClusterChange, EpochReason, SetChange, SyncSet};
use pgstead_types::report::{MemberReport, SenderSeen};
use pgstead_types::spec::Durability;
use pgstead_types::{Epoch, Lsn, Trouble};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

fn set_to(names: &[&str], needed: u8) -> Option<ClusterChange> {
    Some(ClusterChange::SetSyncSet { epoch: Epoch(1), set: set(names, needed) })
}
/// Its WAL sender is gone.
fn away(world: World, name: &str) -> World {
    world.with_primary(|primary| primary.senders.retain(|sender| sender.incarnation != Some(life(name, 1))))
}
fn available(world: World) -> World {
    world.recorded(|record| record.spec.durability = Durability::Available)
}
fn changing(world: World, recorded: SyncSet, target: SyncSet) -> World {
    world.recorded(|record| {
        record.configs[0].sync_set = recorded;
        record.configs[0].target = Some(SetChange { set: target, revision: record.revision });
    })
}
fn loaded(world: World, set: SyncSet) -> World {
    world.with_primary(|primary| primary.sync_set = Some(set))
}

/// The leader has seen one more change of the record, and carried it out.
fn by_the_next_record(report: &mut MemberReport) {
    report.revision += 1;
    report.set_by.as_mut().unwrap().revision = report.revision;
}

#[test]
fn a_settled_set_is_left_alone() {
    let mut world = world().leader("a").standby("b", lag(0)).standby("c", lag(0));
    assert_eq!(world.decide().change, None);
    world = world.later(LONG);
    assert_eq!(world.decide().change, None);
}

#[test]
fn a_standby_that_is_away_for_long_leaves_while_another_streams() {
    let mut world = away(world().leader("a").standby("b", lag(0)).standby("c", lag(0)), "c");
    let plan = world.decide();
    assert_eq!((plan.change, plan.wake_at.is_some()), (None, true));
    world = world.later(LONG);
    assert_eq!(world.decide().change, set_to(&["b"], 1));
}

#[test]
fn strict_never_needs_fewer() {
    let mut world = away(away(world().leader("a").standby("b", lag(0)).standby("c", lag(0)), "b"), "c");
    assert_eq!(world.decide().change, None);
    world = world.later(LONG);
    assert_eq!(world.decide().change, None);
}

#[test]
fn available_needs_only_those_who_are_here_after_a_while() {
    let mut world = available(away(world().leader("a").standby("b", lag(0)), "b"));
    assert_eq!(world.decide().change, None, "it may be back in a moment");
    world = world.later(Duration::from_secs(10));
    assert_eq!(world.decide().change, set_to(&[], 0));
}

#[test]
fn available_keeps_as_many_as_stream() {
    let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0));
    let mut world = available(away(world, "c")).recorded(|record| {
        record.spec.sync_replicas = Some(2);
        record.configs[0].sync_set.needed = 2;
    });
    world.decide();
    world = world.later(Duration::from_secs(10));
    assert_eq!(world.decide().change, set_to(&["b"], 1));
}

#[test]
fn a_leader_alone_is_degraded_and_asks_for_a_standby_again_when_one_has_caught_up() {
    let alone = |world: World| available(world).recorded(|record| record.configs[0].sync_set = SyncSet::default());
    let mut nobody = alone(away(world().leader("a").standby("b", lag(0)), "b"));
    assert_eq!(nobody.decide().change, None);
    assert!(nobody.findings().contains(&"degraded".to_string()));
    let mut back = alone(world().leader("a").standby("b", lag(0)));
    assert_eq!(back.decide().change, set_to(&["b"], 1));
}

#[test]
fn a_change_is_settled_only_when_the_senders_go_by_it_and_enough_have_what_came_before() {
    let world = world().leader("a").standby("b", lag(50)).standby("c", lag(0));
    let mut world = changing(world, set(&["b", "c"], 1), set(&["b", "c"], 2))
        .recorded(|record| record.spec.sync_replicas = Some(2));
    world = loaded(world, set(&["b", "c"], 1));
    assert_eq!(world.decide().change, None, "the senders go by the old number");
    world = loaded(world, set(&["b", "c"], 2));
    assert_eq!(world.decide().change, None, "b lacks the last 50 bytes");
    // The leader has written more since; b has what there was when the senders were first seen to go by the new set.
    world = world.with_primary(|primary| {
        primary.flushed = Lsn(END + 500);
        primary.senders.iter_mut().for_each(|sender| sender.flushed = Some(Lsn(END)));
    });
    let settled = ClusterChange::SettleSyncSet { epoch: Epoch(1), set: set(&["b", "c"], 2) };
    assert_eq!(world.decide().change, Some(settled));
}

#[test]
fn a_report_that_was_made_by_an_older_record_settles_nothing() {
    // {b} was asked for once before, and loaded and reported. Then {b, c} was, and now {b} again: by this report c may
    // still count, or count in a moment.
    let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0)).lost_data("c");
    let mut world = loaded(changing(world, set(&["b", "c"], 1), set(&["b"], 1)), set(&["b"], 1));
    let settled = ClusterChange::SettleSyncSet { epoch: Epoch(1), set: set(&["b"], 1) };
    world = world.recorded(|record| record.configs[0].target.as_mut().unwrap().revision += 1);
    assert_eq!(world.decide().change, None);
    assert!(world.findings().contains(&"sync_set_changing".to_string()));
    // It knows of the change, and would carry out the one before if its daemon were restarted with an older record.
    world = world.report("a", |report| report.revision += 1);
    assert_eq!(world.decide().change, None);
    world = world.report("a", |report| report.set_by.as_mut().unwrap().revision += 1);
    assert_eq!(world.decide().change, Some(settled));
}

#[test]
fn what_the_leader_had_written_counts_from_a_report_of_this_very_change() {
    let world = world().leader("a").standby("b", lag(0)).standby("c", lag(50));
    let two = |world: World| world.recorded(|record| record.spec.sync_replicas = Some(2));
    let mut world = two(changing(world, set(&["b", "c"], 1), set(&["b", "c"], 2)));
    world = loaded(world, set(&["b", "c"], 2));
    assert_eq!(world.decide().change, None, "c lacks what b alone may have acknowledged");
    // The change is replaced by another and asked for again: nothing that was seen of the first one counts.
    world = world.recorded(|record| record.configs[0].target.as_mut().unwrap().revision += 2);
    world = world.report("a", by_the_next_record).with_primary(|primary| {
        primary.senders.iter_mut().for_each(|sender| sender.flushed = Some(primary.flushed));
    });
    assert_eq!(world.decide().change, None);
    world = world.report("a", by_the_next_record);
    assert!(matches!(world.decide().change, Some(ClusterChange::SettleSyncSet { .. })));
}

#[test]
fn nothing_changes_in_place_where_the_leader_acknowledges_alone_under_a_lease() {
    let asked = |world: World| world.recorded(|record| record.spec.durability = Durability::Asynchronous);
    let begins = |mut world: World| matches!(world.decide().change, Some(ClusterChange::BeginEpoch { .. }));
    let three = || world().leader("a").standby("b", lag(0)).standby("c", lag(0));
    // Asked for, and not yet so.
    let mut away = asked(away(three(), "c")).later(LONG);
    assert!(!matches!(away.decide().change, Some(ClusterChange::SetSyncSet { .. })));
    assert!(begins(asked(three())));
    // It is so, and asked to be otherwise.
    let back = three().recorded(|record| {
        record.configs[0].asynchronous = true;
        record.configs[0].sync_set = SyncSet::default();
    });
    assert!(begins(back));
}

#[test]
fn more_are_asked_for_only_when_so_many_stream() {
    let two = |world: World| world.recorded(|record| record.spec.sync_replicas = Some(2));
    let mut one_away = two(away(world().leader("a").standby("b", lag(0)).standby("c", lag(0)), "c"));
    assert_eq!(one_away.decide().change, None);
    let mut both = two(world().leader("a").standby("b", lag(0)).standby("c", lag(0)));
    assert_eq!(both.decide().change, set_to(&["b", "c"], 2));
}

#[test]
fn fewer_are_asked_for_at_once() {
    let mut world = world().leader("a").standby("b", lag(0)).standby("c", lag(0));
    world = world.recorded(|record| record.configs[0].sync_set.needed = 2);
    assert_eq!(world.decide().change, set_to(&["b", "c"], 1));
}

#[test]
fn a_member_of_the_set_that_lost_its_data_leaves_in_place_while_another_streams() {
    let mut world = away(world().leader("a").standby("b", lag(0)).standby("c", lag(0)).lost_data("c"), "c");
    assert_eq!(world.decide().change, set_to(&["b"], 1));
}

#[test]
fn a_change_that_cannot_be_settled_gives_way_to_another() {
    // The set was to become {b} alone; b is gone now, c is here, and commits are not to wait.
    let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0));
    let mut world = changing(available(away(world, "b")), set(&["b", "c"], 1), set(&["b"], 1));
    assert_eq!(world.decide().change, set_to(&["b", "c"], 1), "whoever streams counts");
}

#[test]
fn the_wait_before_commits_go_on_with_fewer_is_seen_all_the_while() {
    let waiting = || available(away(world().leader("a").standby("b", lag(0)), "b"));
    let short = Duration::from_secs(6);
    // The leader falls silent, and whether b was there meanwhile nobody knows.
    let mut world = waiting();
    world.decide();
    let mut world = world.later(short).gone("a");
    world.decide();
    let mut world = world.returned("a").later(short);
    assert_eq!(world.decide().change, None);
    world = world.later(short);
    assert_eq!(world.decide().change, None);
    world = world.later(short);
    assert_eq!(world.decide().change, set_to(&[], 0));
    // The controller's own clockwork has stalled.
    let mut world = waiting();
    world.decide();
    world = world.later(2 * short);
    world.observed.since = world.observed.now;
    assert_eq!(world.decide().change, None);
    world = world.later(short);
    assert_eq!(world.decide().change, None);
    world = world.later(short);
    assert_eq!(world.decide().change, set_to(&[], 0));
}

#[test]
fn a_leader_is_left_alone_only_under_a_lease_and_with_storage_that_is_well() {
    let due = |world: World| {
        let mut world = available(away(away(world, "b"), "c"));
        world.decide();
        world.later(Duration::from_secs(10))
    };
    let three = || world().leader("a").standby("b", lag(0)).standby("c", lag(0));
    assert_eq!(due(three()).decide().change, set_to(&[], 0));
    assert_eq!(due(three().report("a", |report| report.lease = None)).decide().change, None);
    // Nobody else could be elected then, so the leader stays and nothing is asked of it.
    let full = |report: &mut MemberReport| {
        report.troubles.push(Trouble::Unwritable { why: "full".into() });
    };
    assert_eq!(due(three().report("a", full).gone("b").gone("c")).decide().change, None);
}

#[test]
fn before_commits_go_on_with_fewer_another_leads_where_one_can() {
    let four = || {
        let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0)).standby("d", lag(0));
        let world = world.recorded(|record| {
            record.spec.sync_replicas = Some(2);
            record.configs[0].sync_set.needed = 2;
        });
        loaded(available(world), set(&["b", "c", "d"], 2))
    };
    // b is here and cannot reach the leader, c is away: not enough are deaf to say that nothing can be acknowledged, but
    // it is so, and b and d can elect.
    let mut world = away(away(four().deaf("b").gone("c"), "b"), "c");
    assert_eq!(world.decide().change, None);
    let mut world = world.later(Duration::from_secs(10));
    let change = world.decide().change;
    assert!(
        matches!(change, Some(ClusterChange::BeginEpoch { reason: EpochReason::CutFromStandbys, .. })),
        "{change:?}"
    );
    // With d gone as well nobody else could lead; and one that replays what it has is not cut off.
    let mut world = away(away(away(four().deaf("b").gone("c").gone("d"), "b"), "c"), "d");
    world.decide();
    assert_eq!(world.later(Duration::from_secs(10)).decide().change, set_to(&[], 0));
    let replaying = four().deaf("b").gone("c").on_standby("b", |standby| {
        standby.position = Some(at(2, 10 << 20));
        standby.replayed = Lsn(END);
    });
    let mut world = away(away(replaying, "b"), "c");
    world.decide();
    assert_eq!(world.later(Duration::from_secs(10)).decide().change, set_to(&["d"], 1));
}

#[test]
fn commits_that_went_on_with_fewer_wait_again_once_the_spec_is_strict() {
    let degraded = |world: World| {
        let mut world = available(away(world, "b"));
        world.decide();
        let mut world = world.later(Duration::from_secs(10));
        world.decide_and_apply().expect("the record takes it");
        assert!(world.record.configs[0].degraded);
        world
    };
    let strict = |world: World| world.recorded(|record| record.spec.durability = Durability::Strict);
    let mut world = strict(degraded(world().leader("a").standby("b", lag(0))));
    assert_eq!(world.decide_and_apply().expect("the record takes it"), set_to(&["b"], 1));
    let config = &world.record.configs[0];
    assert_eq!((config.loaded(), config.sync_set.needed, config.degraded), (&set(&["b"], 1), 0, true));
    assert_eq!(world.decide().change, None, "it stays so until b is back");
    // It is: with what was acknowledged without it on its disk, nothing is degraded any more.
    let back = away(world, "b").with_primary(|primary| {
        primary.sync_set = Some(set(&["b"], 1));
        primary.senders.push(SenderSeen {
            name: life("b", 1).to_string(),
            incarnation: Some(life("b", 1)),
            streaming: true,
            flushed: Some(Lsn(END)),
            replayed: None,
        });
    });
    let revision = back.record.revision;
    let mut back = back.report("a", |report| {
        report.revision = revision;
        report.set_by.as_mut().unwrap().revision = revision;
    });
    let settled = ClusterChange::SettleSyncSet { epoch: Epoch(1), set: set(&["b"], 1) };
    assert_eq!(back.decide_and_apply().expect("the record takes it"), Some(settled));
    assert!(!back.record.configs[0].degraded);
    // What a person has left alone goes on alone, and so does what is still to be raised.
    let alone = |world: World| world.recorded(|record| record.configs[0].sync_set = SyncSet::default());
    let mut world = alone(away(crate::observed::testing::world().leader("a").standby("b", lag(0)), "b"));
    assert_eq!(world.decide().change, None);
}

#[test]
fn strict_waits_for_a_standby_that_must_be_made_anew_as_well() {
    let broken = away(world().leader("a").standby("b", lag(0)), "b")
        .report("b", |report| report.troubles = vec![Trouble::RecoveryStuck { why: "x".into() }]);
    // Made anew in vain a moment ago, so that it is not made anew again yet; commits do not go on without it for that.
    let mut world = broken.recorded(|record| {
        record.configs[0].sync_set = SyncSet::default();
        record.configs[0].degraded = true;
        record.spec.durability = Durability::Strict;
    });
    let view = |world: &World| {
        let config = world.record.config().unwrap();
        let primary = world.observed.nodes.values().find_map(|node| node.report.members[0].as_primary()).unwrap();
        let leader = member("a");
        let view = View::new(&world.record, &world.observed, &world.policy, primary, config, leader, true);
        view.goal(&mut SetMemory::default(), world.observed.now, &world.policy, &mut Plan::default())
    };
    assert_eq!(view(&world), set(&["b"], 1));
    world = world.report("b", |report| report.troubles.clear());
    assert_eq!(view(&world), set(&["b"], 1));
}

#[test]
fn one_that_is_away_for_long_is_not_taken_back_while_enough_others_stream() {
    let world = away(world().leader("a").standby("b", lag(0)).standby("c", lag(0)), "c");
    let mut world =
        loaded(changing(world, SyncSet::default(), set(&["b"], 1)), SyncSet::default()).recorded(|record| {
            record.configs[0].degraded = true;
            record.spec.durability = Durability::Strict;
        });
    assert_eq!(world.decide().change, None, "b streams and is enough");
}

#[test]
fn while_a_broken_standby_still_acknowledges_commits_get_longer_before_they_go_on_without() {
    let world = available(away(world().leader("a").standby("b", lag(0)).standby("c", lag(0)), "c"));
    let mut world = world.report("b", |report| report.troubles = vec![Trouble::RecoveryStuck { why: "x".into() }]);
    let degrades = |world: &mut World| matches!(world.decide().change, Some(ClusterChange::SetSyncSet { set, .. }) if set.needed == 0);
    assert!(!degrades(&mut world));
    let (short, long) = (world.policy.degrade_after, world.policy.shrink_after);
    let mut world = world.later(short);
    assert!(!degrades(&mut world), "no commit waits, and c may be back in a moment");
    let mut world = world.later(long);
    assert!(degrades(&mut world));
}

#[test]
fn a_change_that_a_restart_waits_for_is_seen_to_its_end_though_nobody_is_to_count_soon() {
    let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0));
    let world = loaded(changing(world, set(&["b", "c"], 1), set(&["b", "c"], 2)), set(&["b", "c"], 2));
    let world = world.restart(&["a"], None).recorded(|record| {
        record.spec.sync_replicas = None;
        record.spec.durability = Durability::Asynchronous;
    });
    let mut world = world.report("a", by_the_next_record).report("a", |report| report.revision += 1);
    world.decide();
    let settled = ClusterChange::SettleSyncSet { epoch: Epoch(1), set: set(&["b", "c"], 2) };
    assert_eq!(world.decide().change, Some(settled));
}
