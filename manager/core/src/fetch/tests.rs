//! The one that holds most is not well: who fetches, and how long that is waited for.

use crate::decide::Plan;
use crate::observed::testing::*;
use pgstead_types::record::{ClusterChange, EpochReason, LogFetch};
use pgstead_types::{Epoch, Incarnation, Trouble};

/// A is gone; B, which holds most, has a full disk; C and D lack 200 bytes and 300.
fn lost() -> World {
    let world = world().leader("a").standby("b", lag(0)).standby("c", lag(200)).standby("d", lag(300));
    world
        .electing(EpochReason::NodeLost, None)
        .gone("a")
        .promised("b", 2, at(2, END))
        .promised("c", 2, at(2, END - 200))
        .promised("d", 2, at(2, END - 300))
        .report("b", |report| report.troubles.push(Trouble::Unwritable { why: "no space left".into() }))
}
/// With D away B is needed: one of the three may have acknowledged alone.
fn needed() -> World {
    lost().gone("d")
}
fn order(from: &str, to: &str) -> LogFetch {
    LogFetch { epoch: Epoch(2), from: life(from, 1), to: life(to, 1), upto: at(2, END) }
}
fn chosen(plan: &Plan) -> Option<Incarnation> {
    match plan.change {
        Some(ClusterChange::Choose { leader, .. }) => Some(leader),
        _ => None,
    }
}
/// C has dropped its answer and fetches.
fn fetching() -> World {
    let mut world = needed().recorded(|record| record.configs[0].sync_set = set(&["b"], 1));
    world.decide_and_apply().expect("the record takes it");
    let mut world = world.report("c", |report| report.answer = None);
    // It is here, so it is waited for a moment in any case.
    world.decide();
    let moment = world.policy.promise_patience;
    world.later(moment)
}

#[test]
fn who_lacks_least_and_is_well_fetches_and_leads() {
    let mut world = lost().recorded(|record| record.configs[0].sync_set.members = set(&["b"], 1).members);
    let change = world.decide_and_apply().expect("the record takes it");
    assert_eq!(change, Some(ClusterChange::FetchLog { fetch: order("b", "c") }));
    // Its old answer is there still, and does not count any more.
    assert_eq!(world.findings(), ["log_fetching"]);
    let mut further = world.recorded(|record| record.configs[0].sync_set.members = set(&["c"], 1).members);
    assert_eq!(further.findings(), ["log_fetching"], "though it would be enough");
    world = further.recorded(|record| record.configs[0].sync_set.members = set(&["b"], 1).members);
    world = world.promised("c", 2, at(2, END)).report("c", |report| report.fetched = Some(Epoch(2)));
    assert_eq!(chosen(&world.decide()), Some(life("c", 1)));
}

#[test]
fn nobody_fetches_where_the_others_are_enough_without_the_one_that_is_not_well() {
    // Two acknowledgements of three: any two of them have all of it.
    let mut world = lost().recorded(|record| record.configs[0].sync_set.needed = 2);
    assert_eq!(chosen(&world.decide()), Some(life("c", 1)));
}

#[test]
fn one_that_fetches_is_waited_for_while_it_is_here_and_not_for_ever() {
    let mut world = fetching();
    assert_eq!(world.findings(), ["log_fetching"]);
    let deadline = world.policy.fetch_deadline;
    let mut late = fetching().later(deadline);
    late.decide();
    let moment = late.policy.promise_patience;
    assert_eq!(chosen(&late.later(moment).decide()), Some(life("b", 1)), "it took too long");
    assert_eq!(chosen(&fetching().gone("c").decide()), Some(life("b", 1)), "it is gone");
    // It starts again with what it has got.
    world = world.report("c", |report| report.fetched = Some(Epoch(2)));
    assert_eq!(world.findings(), ["log_fetching"]);
    assert_eq!(chosen(&world.promised("c", 2, at(2, END - 100)).decide()), Some(life("b", 1)), "it did not get it");
}

#[test]
fn pages_that_are_broken_do_not_break_the_log() {
    let broken = |world: World| world.report("b", |report| report.troubles = vec![Trouble::Corrupted { failures: 1 }]);
    let mut world = broken(needed().recorded(|record| record.configs[0].sync_set = set(&["b"], 1)));
    assert_eq!(world.decide().change, Some(ClusterChange::FetchLog { fetch: order("b", "c") }));
    world = broken(fetching()).promised("c", 2, at(2, END - 100)).report("c", |report| report.fetched = Some(Epoch(2)));
    assert_eq!(world.findings(), ["data_corruption", "log_not_fetched"], "without it nobody is elected, as before");
    let again = world.policy.fetch_again;
    let change = world.later(again).decide().change;
    let begins = ClusterChange::BeginEpoch { epoch: Epoch(3), reason: EpochReason::NodeLost, preferred: None };
    assert_eq!(change, Some(begins), "it is tried again in another one");
}

#[test]
fn what_an_asynchronous_leader_acknowledged_is_fetched_from_one_that_is_passed_over() {
    let mut world = needed().asynchronous();
    world.memory = Default::default();
    let lease = world.policy.lease.lease;
    let mut world = world.granted("a", lease * 3).later(lease * 3);
    let mut seen = Vec::new();
    for _ in 0..3 {
        let Some(change) = world.decide_and_apply().expect("the record takes it") else { break };
        seen.push(change);
    }
    assert_eq!(seen, [ClusterChange::FetchLog { fetch: order("b", "c") }]);
    // Another one that is well and has less does not end that.
    world.record.configs[0].sync_set.members.clear();
    let mut world = world.returned("d").promised("d", 2, at(2, END - 100));
    assert_eq!(world.findings().last().map(String::as_str), Some("log_fetching"));
}

#[test]
fn another_timeline_is_not_fetched() {
    let mut world = needed().promised("c", 2, at(1, FORK - 10));
    let plan = world.recorded(|record| record.configs[0].sync_set = set(&["b"], 1)).decide();
    assert_eq!(chosen(&plan), Some(life("b", 1)));
    world = needed();
    assert!(chosen(&world.decide()).is_none());
}
