//! Clusters that take others' places: what applies, what is refused, and who takes clients.

use super::super::tests::{APP, change, confirmed, fork_of};
use super::super::{Applied, ClusterChange, ClusterRecord, Command, MemberRecord, OperationState};
use super::*;
use crate::ids::MemberId;
use crate::spec::ClusterSpec;

const NEW: ClusterId = ClusterId::from_u128(2);
const OPERATION: OperationId = OperationId::from_u128(60);

fn asked(kept_as: &str) -> TakesPlace {
    TakesPlace { operation: OPERATION, of: APP, kept_as: kept_as.into() }
}
fn roll_back(record: &mut Record, takes_place: TakesPlace) -> Result<Applied, Refusal> {
    let (mut cluster, forked) = fork_of(record);
    like(record, APP, &mut cluster);
    record.apply(&Command::RollBackCluster { at: WallTime(9), cluster: Box::new(cluster), forked, takes_place })
}
/// What a cluster asks for, under the name of what is to take its place, with the member that it has already first.
fn like(record: &Record, of: ClusterId, new: &mut NewCluster) {
    let held = &record.clusters[&of];
    new.spec = ClusterSpec { name: "app-rollback".into(), snapshots: SnapshotSchedule::Off, ..held.spec.clone() };
    new.secrets = held.secrets.clone();
    let first = new.members[0].clone();
    let others = held.members.values().filter(|member| member.node != first.node);
    let others = others.zip(20..).map(|(member, n)| MemberRecord { id: MemberId::from_u128(n), ..member.clone() });
    new.members = std::iter::once(first.clone()).chain(others).collect();
    for (member, n) in new.members.iter_mut().zip(1..) {
        member.name = format!("app-rollback-{n}");
    }
}
fn change_of(record: &mut Record, cluster: ClusterId, change: ClusterChange) -> Result<Applied, Refusal> {
    let revision = record.clusters[&cluster].revision;
    record.apply(&Command::ChangeCluster { at: WallTime(9), cluster, revision, change })
}
fn take(record: &mut Record, cluster: ClusterId, of: ClusterId) -> Result<Applied, Refusal> {
    let revision = |id: ClusterId| record.clusters[&id].revision;
    let (revision, of_revision) = (revision(cluster), revision(of));
    record.apply(&Command::TakePlace { at: WallTime(9), cluster, revision, of_revision })
}
fn begun() -> Record {
    let mut record = confirmed();
    let app = record.clusters.get_mut(&APP).unwrap();
    app.spec.snapshots = "every 1h keep 2h".parse().unwrap();
    app.creating = None;
    roll_back(&mut record, asked("app-kept")).unwrap();
    record
}
fn done() -> Record {
    let mut record = begun();
    change(&mut record, ClusterChange::SetAside { to: NEW }).unwrap();
    take(&mut record, NEW, APP).unwrap();
    record
}
fn known_by(cluster: &ClusterRecord) -> (&str, u16, u16, u16, &str) {
    let first = cluster.members.values().next().unwrap();
    let ports = cluster.ports;
    (&cluster.spec.name, ports.read_write, ports.read_only, ports.postgres, &first.name)
}
fn state(record: &Record) -> &OperationState {
    &record.operations[&OPERATION].state
}

#[test]
fn the_one_that_takes_the_place_gets_what_clients_know() {
    let mut record = begun();
    assert!(record.has_takers() && record.has_places_taken());
    assert!(take(&mut record, NEW, APP).unwrap_err().to_string().contains("not set aside"));
    change(&mut record, ClusterChange::SetAside { to: NEW }).unwrap();
    let aside = record.clusters[&APP].aside.unwrap();
    assert_eq!((aside.to, aside.revision), (NEW, record.clusters[&APP].revision));
    take(&mut record, NEW, APP).unwrap();
    let (old, new) = (&record.clusters[&APP], &record.clusters[&NEW]);
    assert_eq!(known_by(new), ("app", 6001, 6002, 6010, "app-1"));
    assert_eq!(known_by(old), ("app-kept", 6011, 6012, 6000, "app-kept-1"));
    assert!(old.aside.is_some() && new.aside.is_none() && new.takes_place.is_none());
    assert_eq!(
        (new.spec.snapshots.to_string(), old.spec.snapshots),
        ("every 1h keep 2h".into(), SnapshotSchedule::Off)
    );
    assert!(matches!(state(&record), OperationState::Succeeded { .. }));
    assert!(record.has_places_taken() && !record.has_takers());
    assert_eq!(record.kept_aside_by(NEW).map(|kept| kept.id), Some(APP));
}

#[test]
fn it_is_taken_back_the_same_way() {
    let mut record = done();
    let back = |kept_as: &str| ClusterChange::TakeBackPlace { operation: OPERATION, kept_as: kept_as.into() };
    assert!(change_of(&mut record, NEW, back("app-undone")).unwrap_err().to_string().contains("not kept aside"));
    assert!(change(&mut record, back("app")).unwrap_err().to_string().contains("exists already"));
    change(&mut record, back("app-undone")).unwrap();
    assert!(change(&mut record, back("app-again")).is_err(), "it is under way");
    assert!(record.clusters[&APP].aside.is_some(), "it takes no clients until it has its place");
    change_of(&mut record, NEW, ClusterChange::SetAside { to: APP }).unwrap();
    take(&mut record, APP, NEW).unwrap();
    let (old, new) = (&record.clusters[&APP], &record.clusters[&NEW]);
    assert_eq!((known_by(old).0, known_by(old).1, known_by(old).4), ("app", 6001, "app-1"));
    assert_eq!((known_by(new).0, known_by(new).1, known_by(new).4), ("app-undone", 6011, "app-undone-1"));
    assert!(old.aside.is_none() && new.aside.is_some_and(|aside| aside.to == APP));
}

#[test]
fn nothing_else_happens_to_a_cluster_whose_place_is_about_to_be_taken() {
    let whole = begun();
    let refused = |alter: &dyn Fn(&mut Record) -> Result<Applied, Refusal>| {
        let mut record = whole.clone();
        let why = alter(&mut record).unwrap_err().to_string();
        assert_eq!(record, whole, "a refusal changes nothing");
        why
    };
    let operation = OperationId::from_u128(61);
    assert!(refused(&|record| change(record, ClusterChange::RequestDelete { operation })).contains("--cancel"));
    let spec = Box::new(ClusterSpec { members: 3, ..whole.clusters[&APP].spec.clone() });
    let update = ClusterChange::UpdateSpec { operation, spec, consumer_password: None };
    assert!(refused(&|record| change(record, update.clone())).contains("about to take the place"));
    assert!(refused(&|record| roll_back(record, asked("app-other"))).contains("already"));
    assert!(refused(&|record| change(record, ClusterChange::SetAside { to: APP })).contains("does not take"));
    let of_new = TakesPlace { of: NEW, ..asked("app-other") };
    assert!(refused(&|record| roll_back(record, of_new.clone())).contains("that cluster's data"));
}

#[test]
fn bad_requests_for_a_rollback_are_refused() {
    let whole = confirmed();
    let refused = |takes_place: TakesPlace| {
        let mut record = whole.clone();
        let why = roll_back(&mut record, takes_place).unwrap_err().to_string();
        assert_eq!(record, whole, "a refusal changes nothing");
        why
    };
    assert!(refused(asked("app")).contains("exists already"));
    assert!(refused(asked("Not A Name")).contains("cluster name"));
    assert!(refused(asked("app-rollback")).contains("one name"));
    assert!(refused(TakesPlace { of: ClusterId::from_u128(9), ..asked("kept") }).contains("no cluster"));
}

#[test]
fn what_is_given_up_lets_clients_in_again() {
    let mut record = begun();
    change(&mut record, ClusterChange::SetAside { to: NEW }).unwrap();
    let mut deleted = record.clone();
    let cancel = |operation| ClusterChange::CancelPlace { operation, why: "why".into() };
    assert!(change_of(&mut record, NEW, cancel(OperationId::from_u128(5))).is_err());
    change_of(&mut record, NEW, cancel(OPERATION)).unwrap();
    assert!(matches!(state(&record), OperationState::Failed { .. }));
    assert!(record.clusters[&APP].aside.is_none() && !record.has_takers());
    assert!(change(&mut record, ClusterChange::SetAside { to: NEW }).is_err(), "too late");

    let operation = OperationId::from_u128(62);
    change_of(&mut deleted, NEW, ClusterChange::RequestDelete { operation }).unwrap();
    assert!(matches!(state(&deleted), OperationState::Failed { .. }));
    assert!(deleted.clusters[&APP].aside.is_none() && !deleted.has_takers());
}

#[test]
fn what_is_kept_aside_serves_again_when_the_one_in_its_place_is_deleted() {
    let mut record = done();
    let operation = OperationId::from_u128(62);
    change_of(&mut record, NEW, ClusterChange::RequestDelete { operation }).unwrap();
    let kept = &record.clusters[&APP];
    assert!(kept.aside.is_none() && kept.spec.name == "app-kept");
}

#[test]
fn a_second_rollback_goes_back_to_a_snapshot_of_what_is_kept_aside() {
    let mut record = done();
    let (mut cluster, forked) = fork_of(&record);
    assert_eq!(forked.cluster, APP);
    cluster.id = ClusterId::from_u128(3);
    cluster.operation = OperationId::from_u128(70);
    like(&record, NEW, &mut cluster);
    cluster.ports = crate::record::ClusterPorts { postgres: 6020, read_write: 6021, read_only: 6022 };
    let takes_place = TakesPlace { operation: OperationId::from_u128(71), of: NEW, kept_as: "app-kept-2".into() };
    let command = Command::RollBackCluster { at: WallTime(9), cluster: Box::new(cluster), forked, takes_place };
    record.apply(&command).unwrap();
    let third = ClusterId::from_u128(3);
    change_of(&mut record, NEW, ClusterChange::SetAside { to: third }).unwrap();
    take(&mut record, third, NEW).unwrap();
    assert_eq!(known_by(&record.clusters[&third]).0, "app");
    // What is given up by the newest is the one before, and no other.
    // The first of the three has nobody whose place it could take.
    let back = ClusterChange::TakeBackPlace { operation: OPERATION, kept_as: "app-undone".into() };
    assert!(change(&mut record, back.clone()).unwrap_err().to_string().contains("is kept aside"));
    let mut middle = record.clone();
    change_of(&mut record, NEW, back).unwrap();
    let operation = OPERATION;
    change_of(&mut record, NEW, ClusterChange::CancelPlace { operation, why: "why".into() }).unwrap();
    assert!(record.clusters[&NEW].aside.is_some() && record.clusters[&APP].aside.is_some());
    // Without the one between them it is the last one that has taken the first one's place.
    let operation = OperationId::from_u128(72);
    change_of(&mut middle, NEW, ClusterChange::RequestDelete { operation }).unwrap();
    assert_eq!(middle.clusters[&APP].aside.map(|aside| aside.to), Some(third));
    assert_eq!(middle.kept_aside_by(third).map(|kept| kept.id), Some(APP), "the other one is being deleted");
}

#[test]
fn nobody_else_gets_the_name_by_which_it_is_to_be_kept() {
    let mut record = begun();
    let (mut cluster, forked) = fork_of(&record);
    cluster.id = ClusterId::from_u128(3);
    cluster.spec.name = "app-kept".into();
    cluster.ports = crate::record::ClusterPorts { postgres: 6020, read_write: 6021, read_only: 6022 };
    let refused = record.apply(&Command::ForkCluster { at: WallTime(9), cluster: Box::new(cluster), forked });
    assert!(refused.unwrap_err().to_string().contains("exists already"));
}

#[test]
fn a_cluster_that_was_changed_since_it_was_copied_is_asked_for_again() {
    for alter in [
        |app: &mut ClusterRecord| app.secrets.consumer_password = Some(crate::secret::Secret::new("another")),
        |app: &mut ClusterRecord| app.spec.sync_replicas = Some(2),
    ] {
        let mut record = confirmed();
        let (mut cluster, forked) = fork_of(&record);
        like(&record, APP, &mut cluster);
        alter(record.clusters.get_mut(&APP).unwrap());
        let takes_place = asked("app-kept");
        let refused = record.apply(&Command::RollBackCluster {
            at: WallTime(9),
            cluster: Box::new(cluster),
            forked,
            takes_place,
        });
        assert!(refused.unwrap_err().to_string().contains("changed meanwhile"));
    }
}
