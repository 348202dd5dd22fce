//! Members that are here and not well: who leads, who is made anew, and what waits.

use crate::decide::Plan;
use crate::observed::testing::*;
use pgstead_types::record::{ClusterChange, EpochReason};
use pgstead_types::report::{PostgresSeen, ReceiverSeen};
use pgstead_types::spec::OnLeaderCrash;
use pgstead_types::{Epoch, Lsn, Trouble};
use std::time::Duration;

fn three() -> World {
    world().leader("a").standby("b", lag(0)).standby("c", lag(0))
}
fn corrupted() -> Trouble {
    Trouble::Corrupted { failures: 1 }
}
fn full() -> Trouble {
    Trouble::Unwritable { why: "no space left".into() }
}
fn begins(plan: &Plan) -> Option<EpochReason> {
    match plan.change {
        Some(ClusterChange::BeginEpoch { reason, .. }) => Some(reason),
        _ => None,
    }
}
fn chosen(plan: &Plan) -> Option<pgstead_types::MemberId> {
    match &plan.change {
        Some(ClusterChange::Choose { leader, .. }) => Some(leader.member),
        _ => None,
    }
}
impl World {
    fn ails(self, name: &str, trouble: Trouble) -> Self {
        self.report(name, |report| report.troubles.push(trouble))
    }
    /// It is no longer in the set, and does not stream.
    fn out(self, name: &'static str) -> Self {
        self.deaf(name)
            .with_primary(|primary| primary.senders.retain(|sender| sender.incarnation != Some(life(name, 1))))
            .recorded(|record| {
                record.configs[0].sync_set.members.remove(&life(name, 1));
            })
    }
}

#[test]
fn a_standby_whose_log_the_leader_has_removed_is_made_anew() {
    let mut world = three().out("c").report("a", |report| report.oldest_log = Some(Lsn(END + 1)));
    let change = world.decide().change;
    assert!(matches!(change, Some(ClusterChange::Rebuild { incarnation: 2, .. })), "{change:?}");
}

#[test]
fn a_standby_whose_log_is_there_still_is_left_alone() {
    let mut world = three().out("c").report("a", |report| report.oldest_log = Some(Lsn(END)));
    assert_eq!(world.decide().change, None);
}

#[test]
fn one_that_streams_needs_no_older_log() {
    let mut world = three().report("a", |report| report.oldest_log = Some(Lsn(END + 1)));
    assert_eq!(world.decide().change, None);
}

#[test]
fn a_member_of_the_set_without_its_log_leaves_the_set_first() {
    let mut world = three().deaf("c").report("a", |report| report.oldest_log = Some(Lsn(END + 1)));
    let leaves = ClusterChange::SetSyncSet { epoch: Epoch(1), set: set(&["b"], 1) };
    assert_eq!(world.decide().change, Some(leaves));
}

#[test]
fn a_member_that_is_no_better_after_a_copy_waits_ever_longer_for_the_next() {
    let refused = || Trouble::StreamRefused { why: "requested WAL segment has already been removed".into() };
    let mut world = three().out("c").ails("c", refused());
    assert!(matches!(world.decide().change, Some(ClusterChange::Rebuild { incarnation: 2, .. })));
    world =
        world.recorded(|record| record.members.get_mut(&member("c")).unwrap().incarnation = 2).report("c", |report| {
            if let pgstead_types::report::DataSeen::Present(identity) = &mut report.data {
                identity.incarnation.number = 2;
            }
        });
    let plan = world.decide();
    assert_eq!(plan.change, None);
    assert!(plan.findings.iter().any(|finding| finding.code == "rebuilt_in_vain"));
    assert_eq!(plan.wake_at, Some(world.observed.now + world.policy.rebuild_pause));
    let pause = world.policy.rebuild_pause;
    assert!(matches!(world.later(pause).decide().change, Some(ClusterChange::Rebuild { incarnation: 3, .. })));
}

#[test]
fn a_copy_made_under_an_earlier_leader_is_no_reason_to_wait() {
    let refused = || Trouble::StreamRefused { why: "requested WAL segment has already been removed".into() };
    let mut world = three().out("c").ails("c", refused()).recorded(|record| record.history.push(led_by("a", 1)));
    let (now, held) = (world.observed.now, world.record.members[&member("c")].clone());
    let before = pgstead_types::record::MemberRecord { incarnation: 0, ..held };
    super::note_rebuild(&world.record, &world.policy, &mut world.memory, &before, now);
    assert_eq!(world.decide().change, None);
    // More epochs of the same leader change nothing of that.
    world.record.history.push(led_by("a", 2));
    assert_eq!(world.decide().change, None);
    world.record.history.extend([led_by("b", 3), led_by("a", 4)]);
    assert!(matches!(world.decide().change, Some(ClusterChange::Rebuild { incarnation: 2, .. })));
    // Nor does the count go on under a new one.
    let later = pgstead_types::record::MemberRecord { incarnation: 1, ..before };
    super::note_rebuild(&world.record, &world.policy, &mut world.memory, &later, now);
    assert_eq!(world.memory.rebuilds[&member("c")].times, 1);
}

fn led_by(leader: &str, epoch: u64) -> pgstead_types::record::HistoryEntry {
    pgstead_types::record::HistoryEntry {
        epoch: Epoch(epoch),
        timeline: pgstead_types::Timeline(epoch as u32 + 1),
        parent: pgstead_types::Timeline(epoch as u32),
        fork_lsn: Lsn(END),
        end_of_recovery: Lsn(END),
        leader: member(leader),
        possible_loss: None,
    }
}

#[test]
fn a_corrupted_leader_gives_way_and_a_corrupted_standby_is_made_anew() {
    assert_eq!(begins(&three().ails("a", corrupted()).decide()), Some(EpochReason::DataCorruption));
    let change = three().out("c").ails("c", corrupted()).decide().change;
    assert!(matches!(change, Some(ClusterChange::Rebuild { .. })), "{change:?}");
}

#[test]
fn while_clients_are_held_nobody_who_is_needed_waits_for_the_pause() {
    let refused = Trouble::StreamRefused { why: "requested WAL segment has already been removed".into() };
    let promised = |name: &str, world: World| world.promised(name, 2, at(2, END));
    let world = promised("c", promised("b", three())).ails("c", refused).chosen("b", set(&["c"], 1));
    let mut world = world.promotes("b").noted("b").gone("a");
    let (now, held) = (world.observed.now, world.record.members[&member("c")].clone());
    // The life before was made anew a moment ago.
    let before = pgstead_types::record::MemberRecord { incarnation: 0, ..held };
    super::note_rebuild(&world.record, &world.policy, &mut world.memory, &before, now);
    assert_eq!(begins(&world.decide()), Some(EpochReason::SyncSetChange));
}

#[test]
fn a_member_whose_recovery_is_stuck_and_that_is_needed_is_made_anew_with_the_choice() {
    let stuck = Trouble::RecoveryStuck { why: "it reads nothing".into() };
    let world = world().leader("a").standby("b", lag(0)).electing(EpochReason::SyncSetChange, Some("a"));
    let world = world.report("b", |report| report.postgres = PostgresSeen::Starting).ails("b", stuck);
    match world.promised("a", 2, at(2, END)).decide().change {
        Some(ClusterChange::Choose { sync_set, rebuild, .. }) => {
            assert_eq!((sync_set.members, rebuild), ([life("b", 2)].into(), vec![member("b")]));
        }
        other => panic!("expected a choice, found {other:?}"),
    }
}

#[test]
fn a_leader_on_a_full_pool_gives_way_to_one_with_room_and_loses_nothing_for_it() {
    let on_full = || Trouble::PoolFull { brimming: false };
    assert_eq!(begins(&three().ails("a", on_full()).decide()), Some(EpochReason::StorageFailed));
    // Of those who promise, one with room.
    let world = three().ails("a", on_full()).ails("b", on_full()).electing(EpochReason::StorageFailed, None);
    let world = world.promised("a", 2, at(2, END)).promised("b", 2, at(2, END));
    assert_eq!(chosen(&world.promised("c", 2, at(2, END)).decide()), Some(member("c")));
    // It works still: with no room anywhere it stays, and so it does where a change of leader could lose something.
    let nowhere = three().ails("a", on_full()).ails("b", on_full()).ails("c", on_full());
    assert_eq!(begins(&{ nowhere }.decide()), None);
    let asynchronous = |record: &mut pgstead_types::record::ClusterRecord| {
        record.spec.durability = pgstead_types::spec::Durability::Asynchronous;
        for config in &mut record.configs {
            config.asynchronous = true;
            config.sync_set = Default::default();
        }
    };
    assert_eq!(begins(&three().recorded(asynchronous).ails("a", on_full()).decide()), None);
}

#[test]
fn nobody_is_made_anew_from_a_corrupted_leader() {
    // b is away, so that c cannot take over; c has diverged or lost its log, and is the last good copy.
    let refused = || Trouble::StreamRefused { why: "requested WAL segment has already been removed".into() };
    for in_set in [true, false] {
        let world = three().gone("b").ails("a", corrupted()).ails("c", refused());
        let mut world = if in_set { world.deaf("c") } else { world.out("c") };
        let plan = world.decide();
        assert_eq!(plan.change, None, "in the set: {in_set}");
        assert!(plan.findings.iter().any(|finding| finding.code == "no_good_source"), "{:?}", plan.findings);
    }
}

#[test]
fn a_new_member_is_not_copied_from_a_corrupted_leader_and_a_person_of_an_asynchronous_cluster_hears_what_helps() {
    let asynchronous = |record: &mut pgstead_types::record::ClusterRecord| {
        record.spec.durability = pgstead_types::spec::Durability::Asynchronous;
        for config in &mut record.configs {
            config.asynchronous = true;
            config.sync_set = Default::default();
        }
    };
    let world = three().recorded(asynchronous).ails("a", corrupted());
    let mut world =
        world.out("c").report("c", |report| report.data = pgstead_types::report::DataSeen::Absent).deaf("c");
    let plan = world.decide();
    assert_eq!(plan.change, None);
    for code in ["no_good_source", "data_corruption"] {
        let found = plan.findings.iter().find(|finding| finding.code == code).expect(code);
        assert!(found.message.contains("pgstead cluster switchover app"), "{}", found.message);
    }
}

#[test]
fn a_corrupted_leader_goes_on_where_nobody_can_take_over() {
    let mut world = three().ails("a", corrupted()).gone("b");
    let plan = world.decide();
    assert_eq!(plan.change, None);
    assert!(plan.findings.iter().any(|finding| finding.code == "data_corruption"));
}

#[test]
fn a_full_disk_on_every_member_changes_no_leader() {
    assert_eq!(three().ails("a", full()).ails("b", full()).decide().change, None);
    assert_eq!(begins(&three().ails("a", full()).decide()), Some(EpochReason::StorageFailed));
}

#[test]
fn the_corrupted_are_never_elected_where_others_are_enough() {
    let electing = || three().electing(EpochReason::NodeLost, None).gone("a");
    let longest = at(2, END + 50);
    // Both are needed for a quorum, so the longer log may hold what was acknowledged: nobody is elected without it.
    let mut world = electing().promised("b", 2, longest).ails("b", corrupted()).promised("c", 2, at(2, END));
    let change = world.decide_and_apply().expect("the record takes it");
    assert!(matches!(change, Some(ClusterChange::FetchLog { .. })), "{change:?}");
    let mut world = world.report("c", |report| report.fetched = Some(Epoch(2)));
    let codes = ["data_corruption", "log_not_fetched"].map(String::from).to_vec();
    assert_eq!((world.decide().change, world.findings()), (None, codes));
    // Of equals the one that is well.
    let mut world = electing().promised("b", 2, longest).promised("c", 2, longest).ails("c", corrupted());
    assert_eq!(chosen(&world.decide()), Some(member("b")));
    // The leader's own promise makes the other one unnecessary.
    let mut world = three().electing(EpochReason::DataCorruption, None).ails("b", corrupted());
    world = world.promised("a", 2, at(2, END)).promised("b", 2, at(2, END)).promised("c", 2, at(2, END));
    assert_ne!(chosen(&world.decide()), Some(member("b")));
}

#[test]
fn a_corrupted_promiser_is_not_in_the_new_set() {
    let mut world = three().electing(EpochReason::NodeLost, None).ails("c", corrupted());
    for name in ["a", "b", "c"] {
        world = world.promised(name, 2, at(2, END));
    }
    match world.decide().change {
        Some(ClusterChange::Choose { leader, sync_set, rebuild, .. }) => {
            assert!(leader.member != member("c") && sync_set.members.iter().all(|life| life.member != member("c")));
            assert!(rebuild.is_empty(), "it is made anew once the epoch is confirmed");
        }
        other => panic!("expected a choice, found {other:?}"),
    }
}

#[test]
fn a_leader_that_answers_nobody_is_replaced_though_its_senders_go_on() {
    let hung = |report: &mut pgstead_types::report::MemberReport| {
        report.postgres = PostgresSeen::Unresponsive { why: "no answer within 3s".into() };
    };
    let mut world = three().report("a", hung);
    let plan = world.decide();
    assert_eq!(plan.change, None);
    assert_eq!(plan.findings[0].code, "leader_unresponsive");
    let patience = world.policy.hung_patience;
    assert_eq!(begins(&world.later(patience).decide()), Some(EpochReason::PostgresHung));
}

#[test]
fn a_hung_leader_whom_nobody_could_follow_is_looked_at_when_there_is_news_and_not_all_the_time() {
    let hung = |report: &mut pgstead_types::report::MemberReport| {
        report.postgres = PostgresSeen::Unresponsive { why: "no answer within 3s".into() };
    };
    let mut world = three().report("a", hung).gone("b").gone("c");
    world.decide();
    let patience = world.policy.hung_patience;
    let mut world = world.later(patience * 2);
    let plan = world.decide();
    assert_eq!(plan.change, None);
    assert!(plan.wake_at.is_none_or(|at| at > world.observed.now), "{:?} at {:?}", plan.wake_at, world.observed.now);
}

#[test]
fn an_idle_receivers_silence_is_no_witness() {
    // The longest that an idle stream is silent, and the age of the report that says so.
    let mut world = two_idle().silent("b", Duration::from_millis(500)).gone("a");
    assert_eq!(world.decide().change, None);
    assert_eq!(world.findings(), ["daemon_unreachable"]);
}
fn two_idle() -> World {
    let silent = Some(ReceiverSeen { streaming: true, silent_ms: 950 });
    world().leader("a").standby("b", lag(0)).on_standby("b", |standby| standby.receiver = silent)
}

#[test]
fn leaders_lost_again_and_again_are_said_and_slow_the_changes_that_can_wait() {
    let mut world = three().ails("a", corrupted());
    for number in 0..world.policy.lost_max {
        let now = world.observed.now;
        world.memory.lost.push((pgstead_types::Epoch(number as u64), member("a"), now));
    }
    world.record.epoch = pgstead_types::Epoch(9);
    world.record.configs[0].epoch = pgstead_types::Epoch(9);
    world = world.with_primary(|primary| primary.epoch = Some(pgstead_types::Epoch(9)));
    let plan = world.decide();
    assert_eq!(plan.change, None);
    assert!(plan.findings.iter().any(|finding| finding.code == "leaders_lost_repeatedly"));
    let brake = world.policy.brake;
    assert_eq!(begins(&world.later(brake).decide()), Some(EpochReason::DataCorruption));
}

#[test]
fn a_crashed_leader_is_preferred_where_the_spec_says_so_and_not_for_ever() {
    let preferred = |world: &mut World| match world.decide().change {
        Some(ClusterChange::BeginEpoch { preferred, .. }) => preferred,
        other => panic!("expected an election, found {other:?}"),
    };
    assert_eq!(preferred(&mut three().down("a", None)), None);
    let mut world = three().down("a", None).recorded(|record| record.spec.on_leader_crash = OnLeaderCrash::Restart);
    assert_eq!(preferred(&mut world), Some(member("a")));
    let now = world.observed.now;
    world.memory.lost = (0..2).map(|_| (pgstead_types::Epoch(0), member("a"), now)).collect();
    assert_eq!(preferred(&mut world), None);
}

#[test]
fn promotions_that_fail_one_after_the_other_wait_longer_each_time() {
    let set_of_c = set(&["c"], 1);
    let mut world = three().chosen("b", set_of_c).promised("b", 2, at(3, END + 100)).promised("c", 2, at(2, END));
    assert_eq!(begins(&world.decide()), Some(EpochReason::PromotionFailed));
    let now = world.observed.now;
    world.memory.failed.insert(pgstead_types::Epoch(1), now);
    let plan = world.decide();
    assert_eq!(plan.change, None);
    assert!(plan.findings.iter().any(|finding| finding.code == "promotions_fail"));
    assert_eq!(begins(&world.later(Duration::from_secs(1)).decide()), Some(EpochReason::PromotionFailed));
}
