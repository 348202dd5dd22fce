//! A test or a few per situation. What is asserted is the plan.

use super::*;
use crate::observed::testing::*;
use pgstead_types::record::{EpochReason, SetChange, SyncSet};
use pgstead_types::report::{CleanStop, ClientAccess, PostgresSeen, SenderSeen, StandbySeen, Upstream};
use pgstead_types::spec::Durability;
use pgstead_types::{Epoch, Incarnation, Lsn, Timeline};
use std::collections::BTreeSet;
use std::time::Duration;

fn three() -> World {
    world().leader("a").standby("b", lag(0)).standby("c", lag(0))
}
fn two() -> World {
    world().leader("a").standby("b", lag(0))
}
fn begins(plan: &Plan) -> Option<EpochReason> {
    match plan.change {
        Some(ClusterChange::BeginEpoch { reason, .. }) => Some(reason),
        _ => None,
    }
}
/// The leader, its set and who is rebuilt.
fn choice(plan: &Plan) -> (Incarnation, BTreeSet<Incarnation>, usize) {
    match &plan.change {
        Some(ClusterChange::Choose { leader, sync_set, rebuild, .. }) => {
            (*leader, sync_set.members.clone(), rebuild.len())
        }
        other => panic!("expected a choice, found {other:?}"),
    }
}

// --- nothing to do

#[test]
fn a_settled_world_needs_nothing_however_often_it_is_asked() {
    let mut world = three();
    let first = world.decide();
    assert_eq!(first, Plan::default());
    assert_eq!(world.decide(), first);
}

#[test]
fn the_same_question_has_the_same_answer() {
    let mut world = three().down("a", None);
    assert_eq!(world.decide(), world.decide());
}

// --- is the leader lost?

#[test]
fn the_guards_word_that_postgres_ended_needs_no_witness() {
    assert_eq!(begins(&three().down("a", None).decide()), Some(EpochReason::PostgresEnded));
}

#[test]
fn a_closed_connection_needs_a_standby_that_hears_nothing() {
    assert_eq!(three().gone("a").findings(), ["daemon_unreachable"]);
    assert_eq!(begins(&three().gone("a").deaf("b").deaf("c").decide()), Some(EpochReason::NodeLost));
}

#[test]
fn silence_needs_its_time_and_a_witness() {
    let silent = |ms| three().deaf("b").deaf("c").silent("a", Duration::from_millis(ms)).decide();
    assert_eq!(begins(&silent(1500)), None);
    assert_eq!(begins(&silent(1700)), Some(EpochReason::NodeSilent));
    assert_eq!(begins(&three().silent("a", Duration::from_secs(9)).decide()), None);
}

#[test]
fn a_new_controller_believes_nothing_of_nodes_that_it_has_not_heard() {
    let mut world = three();
    world.observed.nodes.clear();
    world.observed.since = world.observed.now;
    let plan = world.decide();
    assert!(plan.change.is_none() && plan.wake_at.is_some());
}

#[test]
fn nobody_left_to_ask_is_no_proof() {
    assert_eq!(three().gone("a").gone("b").gone("c").findings(), ["no_witness"]);
}

#[test]
fn a_leader_that_its_standbys_cannot_hear_is_replaced_after_a_while() {
    let mut world = three().deaf("b").deaf("c");
    assert_eq!(world.findings()[0], "cut_from_standbys");
    let mut world = world.later(Duration::from_secs(6));
    assert_eq!(begins(&world.decide()), Some(EpochReason::CutFromStandbys));
}

#[test]
fn a_leader_whom_nobody_can_follow_is_not_replaced_though_nobody_reaches_it() {
    // It acknowledges alone by the record, and its Postgres asks for both already: only its own promise elects.
    let mut world = three().deaf("b").deaf("c").recorded(|record| {
        record.configs[0].sync_set = SyncSet::default();
        record.configs[0].target = Some(SetChange { set: set(&["b", "c"], 1), revision: record.revision });
    });
    world.decide();
    assert_eq!(begins(&world.later(Duration::from_secs(6)).decide()), None);
}

#[test]
fn a_receiver_that_is_still_connecting_hears_nothing() {
    let connecting = |world: World, name: &str| {
        world.on_standby(name, |standby| {
            standby.receiver = Some(pgstead_types::report::ReceiverSeen { streaming: false, silent_ms: 0 });
        })
    };
    let mut world = connecting(connecting(three(), "b"), "c");
    assert_eq!(world.findings()[0], "cut_from_standbys");
}

#[test]
fn who_is_cut_off_is_counted_in_the_set_that_postgres_has_loaded() {
    // The third is recorded and not loaded: the two that Postgres counts are deaf, and nothing is acknowledged.
    let world = three().standby("d", lag(0)).deaf("b").deaf("c");
    let mut world = world.with_primary(|primary| primary.sync_set = Some(set(&["b", "c"], 1)));
    assert_eq!(world.findings()[0], "cut_from_standbys");
    let mut world = world.with_primary(|primary| primary.sync_set = Some(set(&["b", "c", "d"], 1)));
    assert!(!world.findings().contains(&"cut_from_standbys".to_string()));
}

#[test]
fn one_standby_that_hears_the_leader_keeps_it() {
    let mut world = three().deaf("b").later(Duration::from_secs(6));
    assert_eq!(begins(&world.decide()), None);
}

// --- electing

#[test]
fn no_epoch_is_opened_without_a_prospect() {
    assert_eq!(begins(&three().gone("a").deaf("b").gone("c").decide()), None);
    assert!(three().gone("a").deaf("b").gone("c").findings().contains(&"promise_missing".to_string()));
}

#[test]
fn holds_when_one_promise_is_missing() {
    let mut world = three().electing(EpochReason::NodeLost, None).gone("a").gone("c").promised("b", 2, at(2, END));
    assert_eq!(world.findings(), ["promise_missing"]);
}

#[test]
fn promotes_the_member_with_most_wal() {
    let mut world = three().electing(EpochReason::NodeLost, None).gone("a").promised("b", 2, at(2, END - 10)).promised(
        "c",
        2,
        at(2, END),
    );
    let (leader, set, rebuilt) = choice(&world.decide());
    assert_eq!((leader, set, rebuilt), (life("c", 1), [life("b", 1)].into(), 0));
}

#[test]
fn a_newer_timeline_outranks_a_longer_log() {
    let mut world = three()
        .electing(EpochReason::NodeLost, None)
        .gone("a")
        .promised("b", 2, at(1, END + 500))
        .promised("c", 2, at(2, END));
    assert_eq!(choice(&world.decide()).0, life("c", 1));
}

#[test]
fn an_answer_of_another_epoch_or_incarnation_is_no_promise() {
    let older = three().electing(EpochReason::NodeLost, None).gone("a").promised("b", 1, at(2, END));
    assert!(older.promised("c", 2, at(2, END)).decide().change.is_none());
    let mut world = three().electing(EpochReason::NodeLost, None).gone("a").promised("b", 2, at(2, END));
    world = world.promised("c", 2, at(2, END)).recorded(|record| {
        record.members.get_mut(&member("c")).unwrap().incarnation = 2;
    });
    assert!(world.decide().change.is_none());
}

#[test]
fn the_old_leader_alone_is_enough_and_waits_for_the_others_in_its_set() {
    let mut world =
        three().electing(EpochReason::PostgresEnded, None).gone("b").gone("c").promised("a", 2, at(2, END + 50));
    let (leader, set, rebuilt) = choice(&world.decide());
    assert_eq!((leader, set, rebuilt), (life("a", 1), [life("b", 1), life("c", 1)].into(), 0));
}

#[test]
fn the_old_leader_is_passed_over_where_the_others_are_enough() {
    let mut world = three()
        .electing(EpochReason::PostgresEnded, None)
        .promised("a", 2, at(2, END + 50))
        .promised("b", 2, at(2, END))
        .promised("c", 2, at(2, END));
    let (leader, set, _) = choice(&world.decide());
    assert_ne!(leader, life("a", 1));
    assert!(!set.contains(&life("a", 1)), "its log may reach beyond the chosen one's");
}

#[test]
fn of_two_members_the_one_that_is_away_stays_as_it_is() {
    let mut world = two().electing(EpochReason::NodeLost, None).gone("a").promised("b", 2, at(2, END));
    assert_eq!(choice(&world.decide()), (life("b", 1), [life("a", 1)].into(), 0));
}

#[test]
fn a_promiser_outside_the_chosen_ones_history_is_made_anew_where_it_is_needed() {
    let mut world = two().electing(EpochReason::PostgresEnded, Some("b")).promised("a", 2, at(1, FORK + 50)).promised(
        "b",
        2,
        at(2, END),
    );
    assert_eq!(choice(&world.decide()), (life("b", 1), [life("a", 2)].into(), 1));
}

#[test]
fn a_member_whose_data_is_gone_is_made_anew_where_it_is_needed() {
    let mut world = two().electing(EpochReason::SyncSetChange, Some("a")).lost_data("b").promised("a", 2, at(2, END));
    assert_eq!(choice(&world.decide()), (life("a", 1), [life("b", 2)].into(), 1));
}

#[test]
fn the_preferred_one_is_taken_only_where_it_holds_as_much() {
    let electing = |c| {
        three()
            .electing(EpochReason::Switchover, Some("c"))
            .promised("a", 2, at(2, END))
            .promised("b", 2, at(2, END))
            .promised("c", 2, c)
            .decide()
    };
    assert_eq!(choice(&electing(at(2, END))).0, life("c", 1));
    assert_eq!(choice(&electing(at(2, END - 1))).0, life("b", 1));
}

#[test]
fn a_standby_that_is_about_to_answer_is_waited_for_and_not_for_long() {
    let mut world = world()
        .leader("a")
        .standby("b", lag(0))
        .standby("c", lag(0))
        .electing(EpochReason::Switchover, None)
        .promised("a", 2, at(2, END));
    let plan = world.decide();
    assert!(plan.change.is_none() && plan.wake_at.is_some());
    assert!(world.later(Duration::from_millis(200)).decide().change.is_some());
}

// --- chosen and promoted

fn b_chosen() -> World {
    three().gone("a").promised("b", 2, at(2, END)).promised("c", 2, at(2, END)).chosen("b", set(&["c"], 1))
}

#[test]
fn a_promotion_is_recorded_when_it_is_seen() {
    let plan = b_chosen().promotes("b").decide();
    let Some(ClusterChange::NotePromotion { epoch, timeline, parent, fork_lsn, .. }) = plan.change else {
        panic!("{plan:?}")
    };
    assert_eq!((epoch, timeline, parent, fork_lsn), (Epoch(2), Timeline(3), Timeline(2), Lsn(END)));
}

#[test]
fn a_primary_of_another_timeline_is_not_the_promotion() {
    let world = b_chosen().promotes("b").with_primary(|primary| primary.timeline = Timeline(4));
    assert!(!matches!({ world }.decide().change, Some(ClusterChange::NotePromotion { .. })));
}

#[test]
fn a_chosen_leader_that_is_gone_is_not_replaced_without_enough_promises() {
    let mut world = b_chosen().gone("b");
    assert_eq!(begins(&world.decide()), None);
    assert!(world.findings().contains(&"promise_missing".to_string()));
}

#[test]
fn a_spent_timeline_calls_for_another_epoch() {
    assert_eq!(begins(&b_chosen().promised("b", 2, at(3, END + 100)).decide()), Some(EpochReason::PromotionFailed));
}

#[test]
fn a_first_leader_may_have_spent_its_timeline_too() {
    let mut world = world().leader("a").chosen("a", set(&[], 0)).promised("a", 2, at(3, END)).recorded(|record| {
        record.history.clear();
        record.system_identifier = None;
    });
    assert_eq!(begins(&world.decide()), Some(EpochReason::PromotionFailed));
}

fn b_promoted(flushed: u64) -> World {
    b_chosen().promotes("b").noted("b").with_primary(|primary| {
        primary.senders.push(SenderSeen {
            name: life("c", 1).to_string(),
            incarnation: Some(life("c", 1)),
            streaming: true,
            flushed: Some(Lsn(flushed)),
            replayed: None,
        });
    })
}

#[test]
fn confirms_when_the_end_of_recovery_is_on_k_disks() {
    assert!(b_promoted(END + 99).decide().change.is_none());
    assert_eq!(b_promoted(END + 100).decide().change, Some(ClusterChange::Confirm { epoch: Epoch(2) }));
}

#[test]
fn two_senders_of_one_name_are_one_acknowledgement() {
    let mut world = b_promoted(END + 100).recorded(|record| record.configs[1].sync_set = set(&["a", "c"], 2));
    world = world.with_primary(|primary| primary.senders.push(primary.senders[0].clone()));
    assert!(world.decide().change.is_none());
}

#[test]
fn a_set_that_can_never_confirm_is_replaced() {
    let diverged = b_promoted(0).promised("c", 2, at(2, END + 50));
    assert_eq!(begins(&{ diverged }.decide()), Some(EpochReason::SyncSetChange));
}

#[test]
fn a_set_that_stays_away_gives_way_to_others_that_are_here() {
    // a's node was lost and is back, a standby by now; c, the only one of the new set, went before it confirmed.
    let standby = StandbySeen {
        upstream: None,
        receiver: None,
        replayed: Lsn(END),
        position: Some(at(2, END)),
        expects: None,
        relays_to: Default::default(),
        slots: Default::default(),
        unfinished: None,
        access: ClientAccess::Open,
    };
    let mut world = three()
        .report("a", |report| report.postgres = PostgresSeen::Standby(standby))
        .promised("b", 2, at(2, END))
        .promised("c", 2, at(2, END))
        .chosen("b", set(&["c"], 1))
        .promotes("b")
        .noted("b")
        .gone("c");
    assert_eq!(begins(&world.decide()), None);
    assert!(world.findings().contains(&"sync_set_away".to_string()));
    assert_eq!(begins(&world.later(Duration::from_secs(6)).decide()), Some(EpochReason::SyncSetChange));
}

#[test]
fn a_set_that_stays_away_is_waited_for_while_nobody_could_take_its_place() {
    let mut world = b_promoted(0).gone("c");
    assert_eq!(begins(&world.decide()), None);
    assert_eq!(begins(&world.later(Duration::from_secs(60)).decide()), None);
}

/// c was told to stream from b, which was promoted, and cannot reach it.
fn b_cut_off() -> World {
    let told = Upstream::of(member("b"), Epoch(2));
    let deaf = move |standby: &mut StandbySeen| standby.upstream = Some(told);
    b_chosen().promotes("b").noted("b").on_standby("c", deaf)
}

#[test]
fn a_leader_that_its_standbys_cannot_reach_is_replaced_before_it_is_confirmed_too() {
    let seconds = Duration::from_secs;
    // a is back, and with it enough to elect without b.
    let back = || b_cut_off().returned("a").promised("a", 2, at(2, END));
    let mut world = back();
    assert_eq!((begins(&world.decide()), world.findings()), (None, vec!["awaiting_confirmation".to_string()]));
    assert_eq!(begins(&world.later(seconds(6)).decide()), Some(EpochReason::CutFromStandbys));
    // Without a, only b itself could be elected once more.
    let mut world = b_cut_off();
    world.decide();
    assert_eq!(begins(&world.later(seconds(6)).decide()), None);
    // Of two whose way is cut in both directions, each has led: another change is no better.
    let mut pair = two().gone("a").promised("b", 2, at(2, END)).chosen("b", set(&["a"], 1)).promotes("b").noted("b");
    pair = pair.returned("a").promised("a", 2, at(2, END));
    pair = pair.on_standby("a", |standby| standby.upstream = Some(Upstream::of(member("b"), Epoch(2))));
    pair.decide();
    assert_eq!(begins(&pair.later(seconds(6)).decide()), None);
}

#[test]
fn an_unconfirmed_leader_is_left_alone_only_where_nobody_else_could_lead() {
    let seconds = Duration::from_secs;
    let available = |world: World| world.recorded(|record| record.spec.durability = Durability::Available);
    let alone = Some(ClusterChange::SetSyncSet { epoch: Epoch(2), set: set(&[], 0) });
    let mut world = available(b_cut_off());
    world.decide();
    let mut world = world.later(seconds(6));
    assert_eq!(world.decide().change, None);
    let mut world = world.later(seconds(3));
    assert_eq!(world.decide().change, alone);
    assert_eq!({ world }.report("b", |report| report.lease = None).decide().change, None);
    // Evidence that was interrupted is none.
    let mut world = available(b_cut_off());
    world.decide();
    let mut world = world.later(seconds(6)).gone("b");
    world.decide();
    let mut world = world.returned("b").later(seconds(3));
    assert_eq!(world.decide().change, None);
    assert_eq!(world.later(seconds(9)).decide().change, alone);
}

#[test]
fn an_epoch_that_cannot_be_confirmed_gives_way_to_one_that_waits_for_nobody() {
    let asked = |record: &mut ClusterRecord| {
        record.spec.durability = Durability::Asynchronous;
        record.spec.sync_replicas = None;
    };
    let mut world = b_promoted(0).gone("c").recorded(asked);
    assert_eq!(begins(&world.decide()), Some(EpochReason::SyncSetChange));
}

#[test]
fn broken_and_away_members_of_a_set_are_counted_together() {
    // One of the new set is away, the other has left the history: neither confirms, though each alone would do.
    let diverged = StandbySeen {
        upstream: None,
        receiver: None,
        replayed: Lsn(END),
        position: Some(at(2, END + 50)),
        expects: None,
        relays_to: Default::default(),
        slots: Default::default(),
        unfinished: None,
        access: ClientAccess::Open,
    };
    let world = three().report("a", |report| report.postgres = PostgresSeen::Standby(diverged));
    let world = world.promised("b", 2, at(2, END)).promised("c", 2, at(2, END)).gone("c");
    let mut world = world.chosen("b", set(&["a", "c"], 1)).promotes("b").noted("b");
    assert_eq!(begins(&world.decide()), None, "the one that is away may be back in a moment");
    assert!(world.findings().contains(&"sync_set_away".to_string()));
    let mut world = world.later(Duration::from_secs(6));
    world.decide_and_apply().expect("the record takes it");
    assert_eq!(world.record.epoch, Epoch(3));
    // The leader's own promise elects it, and the set names another life of the one that is here.
    let mut world = world.promised("b", 3, at(3, END + 100)).promised("a", 3, at(2, END + 50)).gone("c");
    world.decide_and_apply().expect("the record takes it");
    assert_eq!(world.record.configs.last().unwrap().sync_set.members, [life("a", 2), life("c", 1)].into());
}

// --- confirmed: tending members

#[test]
fn a_member_that_has_caught_up_counts_from_then_on() {
    let mut world = three().recorded(|record| record.configs[0].sync_set = set(&["b"], 1));
    let added = ClusterChange::SetSyncSet { epoch: Epoch(1), set: set(&["b", "c"], 1) };
    assert_eq!(world.decide().change, Some(added));
    let far = three().recorded(|record| record.configs[0].sync_set = set(&["b"], 1));
    let mut far = far.with_primary(|primary| primary.flushed = Lsn(END + (2 << 20)));
    assert_eq!(far.findings(), ["catching_up"]);
}

#[test]
fn a_diverged_member_outside_the_set_is_made_anew() {
    let world = three().recorded(|record| record.configs[0].sync_set = set(&["b"], 1));
    let plan = { world }.promised("c", 1, at(1, FORK + 50)).decide();
    assert!(matches!(plan.change, Some(ClusterChange::Rebuild { incarnation: 2, .. })), "{plan:?}");
}

#[test]
fn a_member_of_the_set_leaves_it_before_it_forgets() {
    // In place where another streams, by an epoch where nobody else could acknowledge.
    let leaves = ClusterChange::SetSyncSet { epoch: Epoch(1), set: set(&["b"], 1) };
    assert_eq!(three().lost_data("c").decide().change, Some(leaves));
    assert_eq!(begins(&two().lost_data("b").decide()), Some(EpochReason::SyncSetChange));
}

#[test]
fn a_standby_that_is_away_is_told_and_nothing_is_done() {
    let away = three().gone("c").with_primary(|primary| primary.senders.truncate(1));
    assert_eq!({ away }.findings(), ["not_streaming"]);
}

#[test]
fn two_senders_of_one_name_are_a_finding() {
    let doubled = three().with_primary(|primary| primary.senders.push(primary.senders[0].clone()));
    assert_eq!({ doubled }.findings(), ["doubled_sender"]);
}

// --- switchover

#[test]
fn a_switchover_waits_for_the_checkpoint_and_then_drains() {
    let mut world = three().switchover("a", "c", false);
    assert_eq!(world.findings(), ["switchover_waits"]);
    let mut world = world.report("a", |report| report.checkpointed = Some(OPERATION));
    assert_eq!(world.decide().change, Some(ClusterChange::DrainLeader));
}

#[test]
fn a_switchover_elects_when_the_targets_log_reaches_beyond_the_shutdown_checkpoint() {
    let clean = |lsn| Some(CleanStop { timeline: Timeline(2), checkpoint: Lsn(lsn) });
    let mut early = three().switchover("a", "c", true).down("a", clean(END));
    assert_eq!(early.findings(), ["switchover_drains"]);
    let mut ready = three().switchover("a", "c", true).down("a", clean(END - 10));
    assert_eq!(begins(&ready.decide()), Some(EpochReason::Switchover));
}

#[test]
fn a_switchover_is_over_when_its_epoch_is_and_clients_are_let_in() {
    let confirmed = |leader: &str, access: ClientAccess| {
        let world = b_promoted(END + 100).switchover("a", leader, true);
        let world = world.recorded(|record| {
            record.leadership = Leadership::Confirmed { leader: member("b") };
            record.configs.remove(0);
        });
        world.with_primary(|primary| primary.access = access)
    };
    let ended = |mut world: World| match world.decide().change {
        Some(ClusterChange::EndSwitchover { failure }) => Some(failure),
        None => None,
        other => panic!("{other:?}"),
    };
    assert_eq!(ended(confirmed("b", ClientAccess::Open)), Some(None));
    assert!(matches!(ended(confirmed("c", ClientAccess::Holding)), Some(Some(_))), "it went elsewhere: that is known");
    // Whoever asked may connect to the new leader as soon as it is said to be over.
    let mut opens = confirmed("b", ClientAccess::Holding);
    assert!(opens.findings().contains(&"switchover_opens".to_string()));
    assert_eq!(ended(opens.later(Policy::default().open_patience)), Some(None), "it leads, whatever keeps clients out");
}

#[test]
fn a_new_leader_that_is_lost_before_it_lets_clients_in_is_replaced_in_spite_of_its_switchover() {
    let world = b_promoted(END + 100).switchover("a", "b", true).recorded(|record| {
        record.leadership = Leadership::Confirmed { leader: member("b") };
        record.configs.remove(0);
    });
    let mut world = world.down("b", None);
    assert_eq!(begins(&world.decide()), Some(EpochReason::PostgresEnded));
}

#[test]
fn a_standby_that_is_about_to_answer_leads_rather_than_the_one_that_has_just_failed() {
    let enough = || three().electing(EpochReason::PostgresEnded, None).promised("a", 2, at(2, END));
    let patience = Policy::default().promise_patience;
    let mut waits = enough();
    assert_eq!(waits.findings(), ["promises_arriving"]);
    let mut waits = waits.later(patience);
    assert_eq!(waits.decide().change, None, "b and c are here and have only to answer");
    let mut alone = waits.later(Policy::default().preferred_patience);
    assert!(
        matches!(alone.decide().change, Some(ClusterChange::Choose { leader, .. }) if leader.member == member("a"))
    );
}

#[test]
fn a_switchover_that_left_its_leader_where_it_was_has_failed() {
    let world = three().switchover("a", "c", true).recorded(|record| {
        record.epoch = Epoch(2);
        record.configs[0].epoch = Epoch(2);
    });
    let plan = { world }.with_primary(|primary| primary.epoch = Some(Epoch(2))).decide();
    assert!(matches!(plan.change, Some(ClusterChange::EndSwitchover { failure: Some(_) })), "{plan:?}");
}

// --- restart

#[test]
fn a_restart_takes_standbys_one_at_a_time_and_the_leader_last() {
    let next = ClusterChange::RestartMember { member: Some(member("b")) };
    assert_eq!(three().restart(&["a", "b", "c"], None).decide().change, Some(next));
    let waits = three().restart(&["a", "b", "c"], Some("b")).recorded(|record| {
        record.members.get_mut(&member("b")).unwrap().restarts = 1;
    });
    assert_eq!({ waits }.findings(), ["restart_waits"]);
    let plan = three().restart(&["a"], None).decide();
    assert!(matches!(plan.change, Some(ClusterChange::RestartLeader { .. })), "{plan:?}");
    let ends = ClusterChange::EndRestart { failure: None };
    assert_eq!(three().restart(&[], None).decide().change, Some(ends));
}

#[test]
fn the_leader_does_not_go_down_for_one_that_only_it_could_elect() {
    // Nobody counts yet: the set is being changed.
    let changing = |world: World| {
        world.with_primary(|primary| primary.sync_set = Some(SyncSet::default())).recorded(|record| {
            let target = SetChange { set: set(&["b"], 1), revision: record.revision };
            record.configs[0].sync_set = SyncSet::default();
            record.configs[0].target = Some(target);
        })
    };
    let mut restarts = changing(two().restart(&["a"], None));
    assert!(restarts.findings().contains(&"restart_waits".to_string()));
    assert!(!matches!(restarts.decide().change, Some(ClusterChange::RestartLeader { .. })));
    let switched = changing(two().switchover("a", "b", false));
    let mut switched = switched.report("a", |report| report.checkpointed = Some(OPERATION));
    assert!(switched.findings().contains(&"switchover_waits".to_string()));
}

#[test]
fn a_single_member_restarts_by_an_epoch_of_its_own() {
    let mut world = world().leader("a").restart(&["a"], None);
    assert_eq!(begins(&world.decide()), Some(EpochReason::Restart));
    let mut world = world.recorded(|record| {
        record.restart.as_mut().unwrap().leader_restarted_in = Some(Epoch(1));
    });
    assert_eq!(world.decide().change, Some(ClusterChange::EndRestart { failure: None }));
}

// --- creation and deletion

#[test]
fn a_creation_has_ended_when_everyone_streams() {
    let created = three().recorded(|record| record.creating = Some(OPERATION)).decide();
    assert_eq!(created.ended, Some((OPERATION, None)));
}

#[test]
fn a_deleted_clusters_members_leave_as_their_volumes_go() {
    let deleting = || three().recorded(|record| record.lifecycle = Lifecycle::Deleting { operation: OPERATION });
    assert!(deleting().decide().change.is_none());
    let mut gone = deleting().down("b", None).report("b", |report| report.volume_present = false);
    assert_eq!(gone.decide().change, Some(ClusterChange::NoteRemoved { member: member("b") }));
    assert!(deleting().gone("b").findings().contains(&"removal_waits".to_string()));
}

// --- what is heard

#[test]
fn a_late_report_of_an_earlier_one_or_an_earlier_session_is_dropped() {
    let mut world = three();
    let node = *world.observed.nodes.keys().next().unwrap();
    let mut report = world.observed.nodes[&node].report.clone();
    let now = world.observed.now;
    assert!(!world.observed.hear(report.clone(), now), "the same one again");
    (report.session, report.sequence) = (2, 1);
    assert!(world.observed.hear(report.clone(), now), "a restarted daemon");
    (report.session, report.sequence) = (1, 99);
    assert!(!world.observed.hear(report.clone(), now), "from before its restart");
    assert!(!world.observed.closed(node, 1, now) && world.observed.closed(node, 2, now));
    assert!(!world.observed.closed(node, 2, now), "only once");
    assert!(matches!(world.observed.nodes[&node].report.members[0].postgres, PostgresSeen::Primary(_)));
}
