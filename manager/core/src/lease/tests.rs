//! What an asynchronous cluster waits for before another leads, and what it says that this may have cost.

use crate::decide::Plan;
use crate::observed::testing::*;
use pgstead_types::record::ClusterChange;
use pgstead_types::record::{EpochReason, PossibleLoss};
use pgstead_types::report::{ClientAccess, PostgresSeen, RefusalSeen, StandbySeen};
use pgstead_types::spec::Durability;
use pgstead_types::{Epoch, Incarnation, Tick};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn three() -> World {
    world().leader("a").standby("b", lag(0)).standby("c", lag(200)).asynchronous()
}
/// Epoch 2 is open, B and C have promised, and A was granted a lease three seconds ago.
fn silent_leader() -> World {
    three()
        .granted("a", 3 * SECOND)
        .silent("a", 3 * SECOND)
        .electing(EpochReason::NodeSilent, None)
        .promised("b", 2, at(2, END))
        .promised("c", 2, at(2, END - 200))
}
fn chosen(plan: &Plan) -> Option<(Incarnation, Option<PossibleLoss>)> {
    match &plan.change {
        Some(ClusterChange::Choose { leader, possible_loss, sync_set, .. }) => {
            assert!(sync_set.members.is_empty() && sync_set.needed == 0);
            Some((*leader, *possible_loss))
        }
        _ => None,
    }
}

#[test]
fn a_silent_leader_is_replaced_when_its_lease_is_over_and_not_before() {
    let mut world = silent_leader();
    let plan = world.decide();
    assert_eq!((plan.settled(), plan.findings[0].code.as_str()), (true, "lease_runs"));
    // Ten seconds of lease and two of margin, from three seconds ago.
    let over = Tick::from_millis(100_000 + 9_000);
    assert_eq!(plan.wake_at, Some(over));
    // What is granted to the node after the epoch was seen open is not for this cluster, and moves nothing.
    let mut world = world.granted("a", Duration::ZERO);
    world.observed.now = Tick::from_millis(over.as_millis() - 1);
    for seen in world.observed.nodes.values_mut() {
        seen.heard = world.observed.now;
    }
    let mut world = world.silent("a", 9 * SECOND);
    assert!(world.decide().settled());
    world.observed.now = over;
    assert_eq!(chosen(&world.decide()), Some((life("b", 1), Some(PossibleLoss { bytes: None }))));
}

#[test]
fn a_new_controller_waits_a_whole_lease_for_what_others_have_granted() {
    let mut world = silent_leader();
    world.observed.leases.clear();
    world.observed.elected = Tick::from_millis(99_000);
    assert_eq!(world.decide().wake_at, Some(Tick::from_millis(99_000 + 12_000)));
}

/// A led from timeline 2 on, and its lease is over.
fn without_a() -> World {
    three().granted("a", 13 * SECOND).silent("a", 13 * SECOND).electing(EpochReason::NodeSilent, None)
}

#[test]
fn a_log_that_left_the_history_before_the_old_leader_led_is_chosen_last_and_only_after_a_while() {
    // B's log is long, and on the timeline that A left when it began to lead.
    let mut world = without_a().silent("c", 13 * SECOND).promised("b", 2, at(1, END + 5000));
    let plan = world.decide();
    assert_eq!((chosen(&plan), plan.findings[0].code.as_str()), (None, "promise_missing"));
    assert!(
        plan.findings[0].message.contains("Bring back a or c, which may have it; in 60 s b leads"),
        "{}",
        plan.findings[0].message
    );
    let patience = world.policy.astray_patience;
    assert_eq!(plan.wake_at, Some(world.observed.now + patience));
    let mut waited = world.later(patience).silent("a", 13 * SECOND).silent("c", 13 * SECOND);
    assert_eq!(chosen(&waited.decide()), Some((life("b", 1), Some(PossibleLoss { bytes: None }))));
    // C may lag behind, but what it has is A's.
    let mut world = without_a().promised("b", 2, at(1, END + 5000)).promised("c", 2, at(2, END - 200));
    assert_eq!(chosen(&world.decide()).map(|(life, _)| life), Some(life("c", 1)));
}

#[test]
fn all_who_have_promised_are_all_that_is_waited_for() {
    let mut world = without_a()
        .silent("a", Duration::ZERO)
        .promised("a", 2, at(1, END + 1))
        .promised("b", 2, at(1, END + 5000))
        .promised("c", 2, at(1, END + 7));
    assert!(chosen(&world.decide()).is_some(), "nobody else could come back");
}

#[test]
fn the_loss_is_measured_from_the_last_report() {
    let mut world = three().granted("a", SECOND);
    world.decide();
    let mut world = world.with_primary(|primary| primary.flushed.0 += 300).granted("a", SECOND);
    world.decide();
    let mut world = world
        .electing(EpochReason::NodeSilent, None)
        .promised("b", 2, at(2, END))
        .promised("c", 2, at(2, END - 200))
        .silent("a", 3 * SECOND);
    world.decide();
    let mut world = world.later(13 * SECOND).silent("a", 13 * SECOND);
    assert_eq!(chosen(&world.decide()), Some((life("b", 1), Some(PossibleLoss { bytes: Some(300) }))));
}

#[test]
fn the_guards_word_ends_the_wait() {
    let gone = |report: &mut pgstead_types::report::MemberReport| {
        report.promised = Epoch(2);
        report.postgres = PostgresSeen::Down { clean: None };
    };
    // Its node has fallen silent again since it said so, and cannot promise.
    let mut world = silent_leader().report("a", gone);
    assert_eq!(chosen(&world.decide()).map(|(leader, _)| leader), Some(life("b", 1)));
    // Of an older epoch that word may be older than the primary.
    let mut world = silent_leader().report("a", |report| report.postgres = PostgresSeen::Down { clean: None });
    assert_eq!(world.findings(), ["lease_runs"]);
    // Processes that nobody has seen end are no word at all, nor is one that takes no connections.
    for postgres in [PostgresSeen::Unresponsive { why: String::new() }, PostgresSeen::Starting] {
        let mut world = silent_leader().report("a", |report| {
            report.promised = Epoch(2);
            report.postgres = postgres;
        });
        assert_eq!(world.findings(), ["lease_runs"]);
    }
}

#[test]
fn a_leader_that_was_down_is_out_while_it_starts_again() {
    let down = |report: &mut pgstead_types::report::MemberReport| {
        report.promised = Epoch(2);
        report.postgres = PostgresSeen::Down { clean: None };
    };
    let mut world = three().granted("a", SECOND).electing(EpochReason::PostgresEnded, None).report("a", down);
    assert_eq!(world.findings(), ["promises_arriving"]);
    let world = world.report("a", |report| report.postgres = PostgresSeen::Starting);
    let mut world = world.promised("b", 2, at(2, END)).promised("c", 2, at(2, END - 200)).later(SECOND);
    assert_eq!(world.findings(), ["promises_arriving"], "its own promise is worth a moment");
    let mut world = world.later(2 * SECOND);
    assert_eq!(chosen(&world.decide()).map(|(leader, _)| leader), Some(life("b", 1)));
}

#[test]
fn a_leader_that_is_back_is_awaited_and_loses_nothing() {
    let down = |report: &mut pgstead_types::report::MemberReport| {
        report.promised = Epoch(2);
        report.postgres = PostgresSeen::Down { clean: None };
    };
    let world = three().electing(EpochReason::PostgresEnded, None).promised("b", 2, at(2, END - 50));
    let mut world = world.promised("c", 2, at(2, END - 200)).report("a", down);
    let plan = world.decide();
    assert_eq!((plan.settled(), plan.findings[0].code.as_str()), (true, "promises_arriving"));
    // It stands as a standby now and says where its log ends: farther than anyone's.
    let mut world = world.promised("a", 2, at(2, END + 70));
    assert_eq!(chosen(&world.decide()), Some((life("a", 1), None)));
    // With as much on another, that one is taken, and nothing is lost either.
    let mut world = world.promised("a", 2, at(2, END - 50));
    assert_eq!(chosen(&world.decide()), Some((life("b", 1), None)));
}

#[test]
fn a_leader_that_is_away_is_not_awaited_once_it_is_out() {
    let mut world = silent_leader().later(13 * SECOND).silent("a", 16 * SECOND);
    world.observed.elected = Tick::from_millis(0);
    world.decide();
    let mut world = world.later(13 * SECOND).silent("a", 30 * SECOND);
    assert!(chosen(&world.decide()).is_some());
}

#[test]
fn the_epoch_is_opened_without_the_leader() {
    let mut world = three().silent("a", 3 * SECOND).deaf("b").deaf("c");
    assert!(matches!(world.decide().change, Some(ClusterChange::BeginEpoch { reason: EpochReason::NodeSilent, .. })));
    // But not where everyone who is here has given its word to refuse.
    let refuse = |report: &mut pgstead_types::report::MemberReport| {
        report.refusing = Some(RefusalSeen { epoch: Epoch(1), remaining_ms: 900 });
    };
    let mut world = world.report("b", refuse).report("c", refuse);
    let plan = world.decide();
    assert!(plan.settled());
    assert!(plan.findings.iter().any(|finding| finding.code == "refusing_elections"), "{:?}", plan.findings);
}

#[test]
fn standbys_of_an_asynchronous_leader_never_count() {
    assert_eq!(three().decide(), Plan::default());
}

#[test]
fn a_cluster_that_merely_went_down_to_nobody_is_not_electable_by_time() {
    let mut world = silent_leader();
    world.record.configs[0].asynchronous = false;
    let mut world = world.later(60 * SECOND).silent("a", 60 * SECOND);
    assert_eq!(world.findings(), ["promise_missing"]);
}

#[test]
fn the_other_rule_begins_with_a_planned_epoch_of_the_same_leader() {
    let mut world = world().leader("a").standby("b", lag(0)).standby("c", lag(0));
    world.record.spec.sync_replicas = None;
    world.record.spec.durability = Durability::Asynchronous;
    let change = world.decide().change;
    assert!(
        matches!(&change, Some(ClusterChange::BeginEpoch { reason: EpochReason::SyncSetChange, preferred, .. })
            if *preferred == Some(member("a"))),
        "{change:?}"
    );
    // And back.
    let mut world = three();
    world.record.spec.durability = Durability::Strict;
    assert!(matches!(
        world.decide().change,
        Some(ClusterChange::BeginEpoch { reason: EpochReason::SyncSetChange, .. })
    ));
}

#[test]
fn what_a_change_of_leader_may_have_lost_stays_to_be_seen() {
    let mut world = three();
    world.record.history[0].possible_loss = Some(PossibleLoss { bytes: Some(300) });
    assert_eq!(world.findings(), ["may_have_lost"]);
}

#[test]
fn an_unconfirmed_leader_has_acknowledged_nothing_to_wait_for() {
    let mut world = three().granted("a", 60 * SECOND).granted("b", SECOND).chosen("b", set(&[], 0));
    world.record.configs[1].asynchronous = true;
    world.record.epoch = Epoch(3);
    world.record.leadership =
        pgstead_types::record::Leadership::Electing { reason: EpochReason::PromotionFailed, preferred: None };
    let mut world = world.silent("a", 60 * SECOND).silent("b", 3 * SECOND).report("c", |report| {
        let position = at(2, END - 200);
        report.promised = Epoch(3);
        report.answer =
            Some(pgstead_types::report::PromiseAnswer { epoch: Epoch(3), incarnation: life("c", 1), position });
        report.postgres = PostgresSeen::Standby(StandbySeen {
            upstream: None,
            receiver: None,
            replayed: position.lsn,
            position: Some(position),
            access: ClientAccess::Holding,
            expects: None,
            relays_to: Default::default(),
            slots: Default::default(),
            unfinished: None,
        });
    });
    assert_eq!(chosen(&world.decide()).map(|(leader, _)| leader), Some(life("c", 1)));
}

#[test]
fn commits_wait_for_standbys_only_when_so_many_are_here() {
    let asked = || {
        three().recorded(|record| {
            record.spec.durability = Durability::Strict;
            record.spec.sync_replicas = Some(2);
        })
    };
    let mut all = asked();
    assert!(matches!(all.decide().change, Some(ClusterChange::BeginEpoch { .. })));
    let mut one_away = asked().with_primary(|primary| drop(primary.senders.pop()));
    assert_eq!((one_away.decide().change, one_away.findings().last().unwrap().as_str()), (None, "short_of_copies"));
    let mut behind = asked().with_primary(|primary| primary.flushed.0 += 10 << 20);
    assert_eq!(behind.decide().change, None);
}
