//! When a cluster takes another one's place: never before that one is seen to take no clients.

use super::*;
use crate::observed::testing::{World, lag, member, world};
use pgstead_types::record::TakesPlace;
use pgstead_types::{Epoch, OperationId};

const OLD: ClusterId = ClusterId::from_u128(1);
const NEW: ClusterId = ClusterId::from_u128(2);

fn old() -> World {
    world().leader("a").standby("b", lag(0))
}
fn new() -> World {
    world().leader("d").standby("e", lag(0)).recorded(|record| {
        record.id = NEW;
        record.spec.name = "app-rollback".into();
        record.takes_place =
            Some(TakesPlace { operation: OperationId::from_u128(60), of: OLD, kept_as: "app-kept".into() });
    })
}
/// By a record that has it.
fn aside(world: World) -> World {
    world.recorded(|record| {
        record.revision += 1;
        record.aside = Some(Aside { to: NEW, revision: record.revision });
    })
}
fn holds(world: World) -> World {
    let revision = world.record.revision;
    let world = world.on_standby("b", |standby| standby.access = ClientAccess::Holding);
    world
        .with_primary(|primary| primary.access = ClientAccess::Holding)
        .report("b", |report| report.revision = revision)
        .report("a", |report| {
            report.revision = revision;
            report.set_by = Some(SetBy { epoch: Epoch(1), revision });
        })
}
fn next(old: &World, new: &World) -> Option<PlaceStep> {
    let mut record = Record::default();
    let mut observed = old.observed.clone();
    for world in [old, new] {
        record.clusters.insert(world.record.id, world.record.clone());
        for seen in world.observed.nodes.values() {
            let mut seen = seen.clone();
            for report in &mut seen.report.members {
                report.cluster = world.record.id;
            }
            observed.nodes.insert(seen.report.node, seen);
        }
    }
    take_place(&record, NEW, &observed, &old.policy)
}
fn waits(old: &World, new: &World) -> String {
    match next(old, new) {
        Some(PlaceStep::Wait(finding)) => finding.message,
        other => panic!("it does not wait: {other:?}"),
    }
}

#[test]
fn it_goes_step_by_step() {
    let set_aside = ClusterChange::SetAside { to: NEW };
    assert_eq!(next(&old(), &new()), Some(PlaceStep::Change { cluster: OLD, revision: 10, change: set_aside }));
    assert!(waits(&aside(old()), &new()).contains("has not said yet"));
    let taken = PlaceStep::Take { cluster: NEW, revision: 10, of_revision: 11 };
    assert_eq!(next(&holds(aside(old())), &new()), Some(taken));
    // Nobody is set aside who could not say that it takes no clients.
    assert!(waits(&old().gone("a"), &new()).contains("no leader that is seen"));
    let nobody = new().recorded(|record| record.takes_place = None);
    assert_eq!(next(&old(), &nobody), None);
}

#[test]
fn it_waits_until_it_is_all_that_its_spec_says() {
    let made = |change: &dyn Fn(&mut ClusterRecord)| new().recorded(|record| change(record));
    assert!(waits(&old(), &made(&|record| record.creating = Some(OperationId::from_u128(1)))).contains("not all"));
    assert!(
        waits(&old(), &made(&|record| record.leadership = Leadership::Promoted { leader: member("d") }))
            .contains("no leader")
    );
    assert!(waits(&old(), &new().gone("d")).contains("no leader that is seen"));
    let two = |record: &mut ClusterRecord| record.spec.sync_replicas = Some(2);
    assert!(waits(&old(), &made(&two)).contains("2 by the spec"));
    let streams_none = new().with_primary(|primary| primary.senders.clear());
    assert!(streams_none.record.spec.needed() > 0, "the test is about standbys that count");
    assert!(waits(&old(), &streams_none).contains("0 of the 1"));
    let holding = new().with_primary(|primary| primary.access = ClientAccess::Holding);
    assert!(waits(&old(), &holding).contains("does not let clients in"));
    // One that takes its place back lets nobody in before it has it.
    let back = holding.recorded(|record| record.aside = Some(Aside { to: OLD, revision: 9 }));
    assert!(matches!(next(&old(), &back), Some(PlaceStep::Change { cluster: OLD, .. })));
}

#[test]
fn it_waits_for_a_leader_that_is_not_heard_or_may_still_open() {
    let ready = || holds(aside(old()));
    assert!(waits(&ready().gone("a"), &new()).contains("has not said yet"));
    let open = ready().with_primary(|primary| primary.access = ClientAccess::Open);
    assert!(waits(&open, &new()).contains("has not said yet"));
    // Held for another reason, as a full pool is: an older record would let clients in again.
    let not_noted = ready().report("a", |report| report.set_by = Some(SetBy { epoch: Epoch(1), revision: 10 }));
    assert!(waits(&not_noted, &new()).contains("has not said yet"));
    let older = ready().report("a", |report| report.revision = 10);
    assert!(waits(&older, &new()).contains("has not said yet"));
    let of_older_epoch = ready().with_primary(|primary| primary.epoch = Some(Epoch(0)));
    assert!(waits(&of_older_epoch, &new()).contains("has not said yet"));
    let read_from = ready().on_standby("b", |standby| standby.access = ClientAccess::Open);
    assert!(waits(&read_from, &new()).contains("b has not said yet"));
    assert!(matches!(next(&read_from.gone("b"), &new()), Some(PlaceStep::Take { .. })), "nobody waits for who is gone");
    let electing = ready().recorded(|record| record.leadership = Leadership::Chosen { leader: member("b") });
    assert!(waits(&electing, &new()).contains("no confirmed leader"));
}

#[test]
fn it_ends_when_there_is_nobody_whose_place_to_take() {
    let gone = new().recorded(|record| record.takes_place.as_mut().unwrap().of = ClusterId::from_u128(9));
    let Some(PlaceStep::Change { cluster, change: ClusterChange::CancelPlace { .. }, .. }) = next(&old(), &gone) else {
        panic!("it goes on");
    };
    assert_eq!(cluster, NEW);
}
