//! Who leaves, and when.

use crate::observed::Connection;
use crate::observed::testing::*;
use pgstead_types::Trouble;
use pgstead_types::record::{ClusterChange, Departed, EpochReason, Moving, Standing, SyncSet};
use pgstead_types::report::{DataSeen, MemberReport, PostgresSeen};
use pgstead_types::spec::Durability;
use pgstead_types::{Epoch, OperationId};
use std::time::Duration;

/// `a` leads `b` to `d`, and so many are asked for.
fn asked(members: u8) -> World {
    let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0)).standby("d", lag(0));
    world.recorded(|record| {
        record.spec.members = members;
        record.spec.sync_replicas = None;
    })
}
fn leaving(world: World, name: &str) -> World {
    world.recorded(|record| record.members.get_mut(&member(name)).unwrap().standing = Standing::Leaving)
}
/// Recorded and loaded.
fn counted(world: World, names: &[&str]) -> World {
    let set = set(names, 1);
    world.recorded(|record| record.configs[0].sync_set = set.clone()).with_primary(|primary| {
        primary.sync_set = Some(set.clone());
    })
}
fn streams_not(world: World, name: &str) -> World {
    world.with_primary(|primary| primary.senders.retain(|sender| sender.incarnation != Some(life(name, 1))))
}
fn corrupted(report: &mut MemberReport) {
    report.troubles.push(Trouble::Corrupted { failures: 1 });
}
fn full(report: &mut MemberReport) {
    report.troubles.push(Trouble::Unwritable { why: "full".into() });
}
/// The leader goes by what was just recorded, and says so.
fn loaded(world: World, set: SyncSet) -> World {
    let revision = world.record.revision;
    let world = world.with_primary(|primary| primary.sync_set = Some(set.clone()));
    world.report("a", |report| {
        report.revision = revision;
        report.set_by.as_mut().unwrap().revision = revision;
    })
}
fn marks(name: &str) -> Option<ClusterChange> {
    Some(ClusterChange::MarkLeaving { member: member(name), instead_of: None })
}
fn removes(name: &str) -> Option<ClusterChange> {
    Some(ClusterChange::RemoveMember { member: member(name) })
}
fn set_to(names: &[&str]) -> Option<ClusterChange> {
    Some(ClusterChange::SetSyncSet { epoch: Epoch(1), set: set(names, 1) })
}

#[test]
fn the_last_numbered_leaves_and_before_it_whoever_is_of_less_use() {
    assert_eq!(asked(4).decide().change, None);
    assert_eq!(asked(3).decide().change, marks("d"));
    assert_eq!(asked(3).gone("b").decide().change, marks("b"));
    assert_eq!(asked(3).report("c", full).decide().change, marks("c"));
    // Rather not the one with data that a person may still want.
    let keeps = |report: &mut MemberReport| _ = report.kept.insert(1);
    assert_eq!(asked(3).report("d", keeps).decide().change, marks("c"));
    assert_eq!(asked(3).report("b", keeps).gone("b").decide().change, marks("b"));
    // Nor anybody in a moment in which it is not known who is here.
    let mut unsure = asked(3);
    let at = unsure.observed.now;
    unsure.observed.nodes.values_mut().nth(1).unwrap().connection = Connection::Closed { at };
    let plan = unsure.decide();
    assert_eq!((plan.change, plan.wake_at), (None, Some(at + unsure.policy.disconnect_grace)));
}

#[test]
fn nobody_leaves_before_the_leader_has_been_seen_well_for_a_while_in_one_session_of_its_daemon() {
    let restarted = |mut world: World| {
        world.decide();
        for name in ["a", "b", "c", "d"] {
            world = world.report(name, |report| report.session = 2);
        }
        world
    };
    let mut world = restarted(asked(3).recorded(|record| record.spec.members = 4));
    world = world.recorded(|record| record.spec.members = 3);
    let plan = world.decide();
    assert_eq!((plan.change, plan.wake_at), (None, Some(world.observed.now + world.policy.shrink_after)));
    let while_ = world.policy.shrink_after;
    assert_eq!(world.later(while_).decide().change, marks("d"));
    // Nor does anybody count for less.
    let mut world = restarted(leaving(counted(asked(3), &["b", "c", "d"]), "d"));
    assert_eq!(world.decide().change, None);
    assert_eq!(world.later(while_).decide().change, set_to(&["b", "c"]));
}

#[test]
fn a_copy_counts_once_it_has_been_seen_well_for_a_while_in_one_session_of_its_daemon() {
    let two = || leaving(leaving(asked(2), "c"), "d").asynchronous();
    assert_eq!(two().decide().change, removes("c"));
    let mut world = two();
    world.decide();
    let mut world = world.report("b", |report| report.session = 2);
    let plan = world.decide();
    let while_ = world.policy.shrink_after;
    assert_eq!((plan.change, plan.wake_at), (None, Some(world.observed.now + while_)));
    assert_eq!(world.later(while_).decide().change, removes("c"));
}

#[test]
fn a_leaving_member_leaves_the_set_once_enough_others_stream_and_joins_it_no_more() {
    assert_eq!(leaving(asked(3), "d").decide().change, set_to(&["b", "c"]));
    let alone = streams_not(streams_not(leaving(asked(3), "d"), "b"), "c");
    let mut alone = counted(alone, &["d"]);
    let plan = alone.decide();
    assert_eq!(plan.change, None, "nobody else acknowledges");
    assert!(plan.findings.iter().any(|finding| finding.code == "member_leaving"));
    let mut out = counted(leaving(asked(3), "d"), &["b", "c"]);
    assert_eq!(out.decide().change, removes("d"));
    // Commits do not go on with fewer while it acknowledges.
    let mut available = alone.recorded(|record| record.spec.durability = Durability::Available);
    available.decide();
    assert_eq!(available.later(Duration::from_secs(60)).decide().change, None);
}

#[test]
fn it_is_removed_only_while_those_that_stay_have_it_all() {
    let behind = counted(leaving(asked(3), "d"), &["b", "c"]).with_primary(|primary| {
        primary.senders.iter_mut().for_each(|sender| sender.streaming = sender.incarnation == Some(life("d", 1)));
    });
    assert_eq!({ behind }.decide().change, None);
    let asynchronous = || leaving(asked(3), "d").asynchronous();
    assert_eq!(asynchronous().decide().change, removes("d"));
    let nobody = asynchronous().with_primary(|primary| primary.senders.clear());
    assert_eq!({ nobody }.decide().change, None);
    // What was asked for before comes first.
    let switching = counted(leaving(asked(3), "d"), &["b", "c"]).switchover("a", "b", false);
    assert_ne!({ switching }.decide().change, removes("d"));
}

#[test]
fn a_cluster_comes_down_to_one() {
    let mut world = asked(1);
    let mut changes = Vec::new();
    for _ in 0..20 {
        match world.decide_and_apply().unwrap() {
            Some(ClusterChange::SetSyncSet { set, .. }) => {
                changes.push(format!("set of {}", set.members.len()));
                world = loaded(world, set);
            }
            Some(ClusterChange::SettleSyncSet { .. }) => changes.push("settled".into()),
            Some(ClusterChange::MarkLeaving { .. }) => changes.push("marked".into()),
            Some(ClusterChange::RemoveMember { member }) => {
                changes.push("removed".into());
                // Its node ends its Postgres.
                let reports = world.observed.nodes.values_mut().flat_map(|seen| &mut seen.report.members);
                let left = reports.filter(|report| report.member == member);
                left.for_each(|report| report.postgres = PostgresSeen::Down { clean: None });
            }
            Some(ClusterChange::ReleaseData { .. }) => changes.push("released".into()),
            Some(other) => panic!("{other:?}"),
            None => break,
        }
    }
    let (marked, removed, released) = (["marked"; 3], ["removed"; 3], ["released"; 3]);
    assert_eq!(changes, [&["set of 0", "settled"][..], &marked, &removed, &released].concat());
    assert_eq!((world.record.members.len(), world.record.departed.len()), (1, 3));
}

#[test]
fn one_that_leaves_is_chosen_only_where_nobody_else_could_be() {
    let electing = || leaving(asked(3), "b").electing(EpochReason::NodeLost, None).gone("a");
    let chosen = |mut world: World| match world.decide().change {
        Some(ClusterChange::Choose { leader, .. }) => Some(leader.member),
        _ => None,
    };
    let all = ["b", "c", "d"];
    let promised = |world: World| all.into_iter().fold(world, |world, name| world.promised(name, 2, at(2, END)));
    assert_ne!(chosen(promised(electing())), Some(member("b")));
    // It holds more than those that stay, and these are not enough without it.
    let further = promised(electing()).promised("b", 2, at(2, END + 50));
    assert_eq!(chosen(further), Some(member("b")));
}

#[test]
fn a_departed_member_is_forgotten_when_its_node_says_so_by_a_record_that_knows_it() {
    let departed = |world: World, name: &str| {
        world.recorded(|record| {
            let held = record.members.remove(&member(name)).unwrap();
            record
                .departed
                .insert(member(name), Departed { member: held, revision: record.revision, released: Some(1) });
        })
    };
    let mut world = departed(counted(asked(3), &["b", "c"]), "d");
    assert_eq!(world.decide().change, None);
    assert!(world.findings().contains(&"removing".to_string()));
    let gone = |revision: u64| {
        move |report: &mut MemberReport| {
            (report.volume_present, report.revision) = (false, revision);
            report.postgres = PostgresSeen::Down { clean: None };
        }
    };
    let revision = world.record.revision;
    assert_eq!(departed(counted(asked(3), &["b", "c"]), "d").report("d", gone(revision - 1)).decide().change, None);
    let forgets = Some(ClusterChange::NoteRemoved { member: member("d") });
    assert_eq!(departed(counted(asked(3), &["b", "c"]), "d").report("d", gone(revision)).decide().change, forgets);
    // Its processes may write it again.
    let runs = |report: &mut MemberReport| (report.volume_present, report.revision) = (false, revision);
    assert_eq!(departed(counted(asked(3), &["b", "c"]), "d").report("d", runs).decide().change, None);
    let keeps = |report: &mut MemberReport| _ = report.kept.insert(1);
    let mut kept = departed(counted(asked(3), &["b", "c"]), "d").report("d", keeps);
    assert!(kept.findings().contains(&"removal_waits".to_string()));
    let mut away = departed(counted(asked(3), &["b", "c"]), "d").gone("d");
    assert_eq!((away.decide().change, away.findings().contains(&"removal_waits".to_string())), (None, true));
}

#[test]
fn what_a_departed_member_has_goes_only_while_a_well_leader_and_others_have_it_all() {
    let departed = || {
        counted(asked(3), &["b", "c"])
            .recorded(|record| {
                let held = record.members.remove(&member("d")).unwrap();
                record
                    .departed
                    .insert(member("d"), Departed { member: held, revision: record.revision, released: None });
            })
            .down("d", None)
    };
    let releases = Some(ClusterChange::ReleaseData { member: member("d"), session: 1 });
    assert_eq!(departed().decide().change, releases);
    // Once for each start of its daemon: what was said to an older one may not be true any more.
    let said =
        |to: u64| departed().recorded(move |record| record.departed.get_mut(&member("d")).unwrap().released = Some(to));
    assert_eq!((said(7).decide().change, said(1).decide().change), (releases.clone(), None));
    // Nor where it could not go at once: it may be the last copy by the time that it can.
    let foreign = |report: &mut MemberReport| report.data = DataSeen::Foreign { why: "unreadable".into() };
    assert_eq!(departed().report("d", foreign).decide().change, None);
    assert_eq!(departed().report("d", |report| _ = report.kept.insert(1)).decide().change, None);
    // It may be the last copy by the time it returns.
    let mut away = departed().gone("d");
    assert_eq!((away.decide().change, away.findings().contains(&"removal_waits".to_string())), (None, true));
    assert_ne!(departed().report("a", full).decide().change, releases);
    assert_ne!(departed().gone("a").decide().change, releases);
    assert_ne!({ streams_not(streams_not(departed(), "b"), "c") }.decide().change, releases);
    assert_ne!(departed().gone("b").gone("c").decide().change, releases);
}

#[test]
fn the_operation_ends_when_every_new_member_streams() {
    let joining = |name: &str| {
        let world = asked(4).recorded(|record| {
            record.updating = Some(OPERATION);
            record.spec.sync_replicas = None;
        });
        world.recorded(|record| record.members.get_mut(&member(name)).unwrap().standing = Standing::Joining)
    };
    assert_eq!(joining("d").decide().ended, Some((OPERATION, None)));
    let copying = joining("d").with_primary(|primary| {
        primary.senders.retain(|sender| sender.incarnation != Some(life("d", 1)));
    });
    assert_eq!({ copying }.decide().ended, None);
}

#[test]
fn nobody_leaves_a_leader_that_is_not_well() {
    for unwell in [corrupted, full] {
        let pair = || world().leader("a").standby("b", lag(0)).recorded(|record| record.spec.members = 1);
        let mut marked = leaving(pair().asynchronous(), "b").report("a", unwell);
        assert_eq!(marked.decide().change, None);
        assert!(marked.findings().contains(&"member_leaving".to_string()));
        assert_eq!(pair().asynchronous().report("a", unwell).decide().change, None);
        // Nor does it go on without those who may have to be elected.
        let spec = |world: World| world.recorded(|record| record.spec.sync_replicas = None);
        let mut away = spec(counted(streams_not(pair(), "b"), &["b"])).report("a", unwell).gone("b");
        away.decide();
        assert_eq!(away.later(Duration::from_secs(60)).decide().change, None);
    }
}

#[test]
fn data_that_cannot_be_read_is_not_well() {
    let unreadable = |report: &mut MemberReport| report.data = DataSeen::Foreign { why: "EIO".into() };
    let pair = || world().leader("a").standby("b", lag(0)).recorded(|record| record.spec.members = 1);
    assert_eq!(pair().asynchronous().report("a", unreadable).decide().change, None);
    assert_eq!(leaving(pair().asynchronous(), "b").report("a", unreadable).decide().change, None);
    // Nor is a standby a copy by it.
    let three =
        world().leader("a").standby("b", lag(0)).standby("c", lag(0)).recorded(|record| record.spec.members = 2);
    let three = leaving(three.asynchronous(), "b").report("c", unreadable);
    assert_eq!({ three }.decide().change, None);
}

#[test]
fn one_that_was_leaving_counts_again_under_a_leader_that_is_not_well_and_takes_over_from_it() {
    let three = world().leader("a").standby("b", lag(0)).standby("c", lag(0)).recorded(|record| {
        record.spec.members = 2;
        record.spec.sync_replicas = None;
    });
    let mut world = leaving(counted(streams_not(three, "b"), &["b"]), "c").gone("b").report("a", corrupted);
    assert_eq!(world.decide().change, set_to(&["b", "c"]));
    for _ in 0..8 {
        match world.decide_and_apply().unwrap() {
            Some(ClusterChange::SetSyncSet { set, .. }) => world = loaded(world, set),
            Some(ClusterChange::SettleSyncSet { .. }) => {}
            Some(ClusterChange::BeginEpoch { reason, .. }) => return assert_eq!(reason, EpochReason::DataCorruption),
            None => world = { world }.later(Duration::from_secs(30)),
            other => panic!("{other:?}"),
        }
    }
    panic!("the leader goes on: {:?}", world.findings());
}

#[test]
fn a_sound_member_leaves_only_where_as_many_sound_ones_stay() {
    let three = || leaving(world().leader("a").standby("b", lag(0)).standby("c", lag(0)), "b");
    let asked = |world: World| {
        world.recorded(|record| {
            record.spec.members = 2;
            record.spec.sync_replicas = None;
        })
    };
    assert_eq!(asked(three()).decide().change, set_to(&["c"]));
    // Broken data leaves first, whatever the order.
    assert_eq!(asked(three()).report("c", corrupted).decide().change, set_to(&["b"]));
    // The leader has it all, and b; what is left of c is no copy.
    assert_eq!(asked(three()).asynchronous().decide().change, removes("b"));
    assert_eq!(asked(three()).asynchronous().report("c", full).decide().change, None);
}

#[test]
fn the_mark_moves_when_one_that_was_to_stay_is_lost() {
    let world = || {
        let three = world().leader("a").standby("b", lag(0)).standby("c", lag(0));
        leaving(counted(streams_not(three, "b"), &["c"]), "c").recorded(|record| {
            record.spec.members = 2;
            record.spec.sync_replicas = None;
        })
    };
    let mut lost = world().gone("b");
    let (plan, began) = (lost.decide(), lost.observed.now);
    let shrink_after = lost.policy.shrink_after;
    assert_eq!((plan.change, plan.wake_at), (None, Some(began + shrink_after)));
    let mut lost = lost.later(shrink_after);
    let moved = ClusterChange::MarkLeaving { member: member("b"), instead_of: Some(member("c")) };
    assert_eq!(lost.decide_and_apply().unwrap(), Some(moved));
    assert!(lost.record.is_leaving(member("b")) && !lost.record.is_leaving(member("c")));
    assert_eq!(lost.decide().change, removes("b"));
    // One that came back in between is waited for anew.
    let mut back = world().gone("b");
    back.decide();
    let mut back = back.returned("b").later(shrink_after);
    assert_eq!(back.decide().change, None);
    // And neither of two that are both lost is better.
    let mut both = world().gone("b").report("c", full);
    both.decide();
    assert_eq!(both.later(shrink_after).decide().change, None);
}

/// `a` leads `b` and `c`, and `c` is to be replaced by `d`.
fn moving() -> World {
    moving_of(Moving { operation: OperationId::from_u128(9), member: member("c"), to: member("d") })
}
fn moving_of(moving: Moving) -> World {
    asked(3).recorded(|record| {
        record.moving = Some(moving);
        record.members.get_mut(&member("d")).unwrap().standing = Standing::Joining;
    })
}

#[test]
fn the_old_member_leaves_once_the_new_one_counts() {
    let mut waits = streams_not(counted(moving(), &["b", "c"]), "d");
    let plan = waits.decide();
    assert_eq!(plan.change, None);
    assert!(plan.findings.iter().any(|finding| finding.code == "member_moving"));
    let add = ClusterChange::AddToSyncSet { epoch: Epoch(1), incarnation: life("d", 1) };
    let added = counted(moving(), &["b", "c"]).decide().change;
    assert!(added == Some(add) || added == set_to(&["b", "c", "d"]), "{added:?}");
    assert_eq!(counted(moving(), &["b", "c", "d"]).decide().change, marks("c"));
    assert_eq!(leaving(counted(moving(), &["b", "c", "d"]), "c").decide().change, set_to(&["b", "d"]));
    assert_eq!(leaving(counted(moving(), &["b", "d"]), "c").decide().change, removes("c"));
    // It was well for a moment, and is lost: the old one is needed.
    let mut lost = leaving(counted(moving(), &["b", "d"]), "c").gone("d");
    assert_eq!(lost.decide().change, None);
    let while_ = lost.policy.shrink_after;
    let stays = ClusterChange::MarkLeaving { member: member("d"), instead_of: Some(member("c")) };
    assert_eq!(lost.later(while_).decide().change, Some(stays));
    let mut done = counted(moving(), &["b", "d"]).recorded(|record| _ = record.members.remove(&member("c")));
    assert_eq!(done.decide().ended, Some((OperationId::from_u128(9), None)));
}

#[test]
fn a_move_ends_as_its_old_member_comes_to_lead_and_goes_on_as_its_new_one_does() {
    let of = |from: &str, to: &str| {
        let moving = Moving { operation: OperationId::from_u128(9), member: member(from), to: member(to) };
        counted(moving_of(moving), &["b", "c", "d"])
    };
    let change = of("a", "d").decide().change;
    assert!(matches!(change, Some(ClusterChange::CancelMove { .. })), "{change:?}");
    assert_eq!(of("c", "a").decide().change, marks("c"));
}

#[test]
fn a_move_is_given_up_when_the_new_member_is_lost_before_it_counts() {
    let mut world = streams_not(counted(moving(), &["b", "c"]), "d").gone("d");
    assert_eq!(world.decide().change, None);
    let while_ = world.policy.shrink_after;
    let change = world.later(while_).decide().change;
    assert!(matches!(change, Some(ClusterChange::CancelMove { .. })), "{change:?}");
}
