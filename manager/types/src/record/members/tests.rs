//! Members that are added, marked and removed: what applies, what is refused.

use super::super::tests::{APP, begin, change, choice, confirmed, first_life, member, node};
use super::super::{Applied, ClusterChange, Command, NodeRecord, NodeService, SyncSet};
use super::*;
use crate::ids::{Incarnation, OperationId, VolumeId};
use crate::position::Epoch;
use crate::record::EpochReason;
use crate::spec::{ClusterSpec, Durability};

fn new(n: u128) -> MemberRecord {
    MemberRecord {
        id: member(n),
        name: format!("app-{n}"),
        node: NodeId::from_u128(n),
        volume: VolumeId::from_u128(n),
        incarnation: 1,
        restarts: 0,
        standing: Standing::Joining,
    }
}
fn five_nodes() -> Record {
    let mut record = confirmed();
    for n in 4..=5 {
        record.nodes.insert(NodeId::from_u128(n), node(n));
    }
    let operation = record.clusters[&APP].creating.unwrap();
    record.apply(&Command::EndOperation { at: WallTime(0), operation, failure: None }).unwrap();
    record
}
fn ask(record: &mut Record, members: u8, added: &[u128]) -> Result<Applied, Refusal> {
    let spec = Box::new(ClusterSpec { members, ..record.clusters[&APP].spec.clone() });
    let operation = OperationId::from_u128(50 + u128::from(record.clusters[&APP].revision));
    let added = added.iter().map(|n| new(*n)).collect();
    change(record, ClusterChange::ChangeMembers { operation, spec, added, consumer_password: None })
}
fn mark(record: &mut Record, n: u128) -> Result<Applied, Refusal> {
    change(record, ClusterChange::MarkLeaving { member: member(n), instead_of: None })
}
fn remove(record: &mut Record, n: u128) -> Result<Applied, Refusal> {
    change(record, ClusterChange::RemoveMember { member: member(n) })
}
/// Member 1 leads, and nobody else counts but these.
fn counted(record: &mut Record, counted: &[u128]) {
    let cluster = record.clusters.get_mut(&APP).unwrap();
    let set = SyncSet { members: counted.iter().map(|n| first_life(*n)).collect(), needed: 1.min(counted.len() as u8) };
    cluster.configs[0].sync_set = set;
}
fn names(record: &Record) -> Vec<&str> {
    record.clusters[&APP].members.values().map(|member| member.name.as_str()).collect()
}
fn kinds(record: &Record) -> Vec<&str> {
    record.events.iter().map(|event| event.kind.as_str()).collect()
}

#[test]
fn new_members_are_recorded_with_the_spec_that_asks_for_them() {
    let mut record = five_nodes();
    ask(&mut record, 5, &[4, 5]).unwrap();
    let cluster = &record.clusters[&APP];
    assert_eq!(names(&record), ["app-1", "app-2", "app-3", "app-4", "app-5"]);
    assert_eq!(cluster.members[&member(5)].standing, Standing::Joining);
    assert!(!cluster.configs[0].sync_set.members.contains(&first_life(5)), "it counts once it has caught up");
    let operation = cluster.updating.unwrap();
    record.apply(&Command::EndOperation { at: WallTime(0), operation, failure: None }).unwrap();
    assert_eq!(record.clusters[&APP].members[&member(5)].standing, Standing::Settled);
}

#[test]
fn what_is_placed_wrongly_is_refused_whole() {
    let with = |change: fn(&mut MemberRecord)| {
        let mut record = five_nodes();
        let mut added = new(4);
        change(&mut added);
        let spec = Box::new(ClusterSpec { members: 4, ..record.clusters[&APP].spec.clone() });
        let update = ClusterChange::ChangeMembers {
            operation: OperationId::from_u128(9),
            spec,
            added: vec![added],
            consumer_password: None,
        };
        let before = record.clusters[&APP].clone();
        let refused = super::super::tests::change(&mut record, update).is_err();
        assert_eq!(refused, record.clusters[&APP] == before);
        refused
    };
    assert!(!with(|_| {}));
    assert!(with(|new| new.node = NodeId::from_u128(3)), "that node has a member");
    assert!(with(|new| new.node = NodeId::from_u128(77)), "nobody knows that node");
    assert!(with(|new| new.name = "app-2".into()));
    assert!(with(|new| new.volume = VolumeId::from_u128(2)));
    assert!(with(|new| new.incarnation = 2));
    let mut record = five_nodes();
    assert!(ask(&mut record, 5, &[4]).is_err(), "two are missing");
    assert!(ask(&mut record, 2, &[4]).is_err());
}

#[test]
fn members_change_only_under_a_confirmed_leader_with_nothing_else_to_do() {
    let mut record = five_nodes();
    change(&mut record, ClusterChange::RequestRestart { operation: OperationId::from_u128(8) }).unwrap();
    assert!(ask(&mut record, 2, &[]).unwrap_err().to_string().contains("restart"));
    let mut record = five_nodes();
    change(&mut record, begin(2)).unwrap();
    assert!(ask(&mut record, 5, &[4, 5]).unwrap_err().to_string().contains("leader"));
    let mut record = five_nodes();
    let spec = Box::new(ClusterSpec { sync_replicas: Some(2), members: 2, ..record.clusters[&APP].spec.clone() });
    let update = ClusterChange::ChangeMembers {
        operation: OperationId::from_u128(9),
        spec,
        added: vec![],
        consumer_password: None,
    };
    assert!(change(&mut record, update).unwrap_err().to_string().contains("sync_replicas"));
}

#[test]
fn a_member_leaves_marked_uncounted_and_never_as_the_leader() {
    let mut record = five_nodes();
    assert!(mark(&mut record, 3).is_err(), "nobody is to leave");
    ask(&mut record, 2, &[]).unwrap();
    assert!(remove(&mut record, 3).is_err(), "it is not marked");
    assert!(mark(&mut record, 1).is_err(), "it leads");
    mark(&mut record, 3).unwrap();
    assert!(mark(&mut record, 2).is_err(), "one is enough");
    assert!(remove(&mut record, 3).unwrap_err().to_string().contains("counts"));
    counted(&mut record, &[2]);
    remove(&mut record, 3).unwrap();
    assert_eq!(names(&record), ["app-1", "app-2"]);
    let departed = record.clusters[&APP].departed[&member(3)].clone();
    assert_eq!((departed.member.volume, departed.revision), (VolumeId::from_u128(3), record.clusters[&APP].revision));
    assert!(ask(&mut record, 3, &[3]).is_err(), "its node has not removed the volume");
    assert_eq!(departed.released, None, "that is said while its node is here");
    let release = |session| ClusterChange::ReleaseData { member: member(3), session };
    change(&mut record, release(5)).unwrap();
    assert!(change(&mut record, release(5)).is_err(), "once is enough");
    change(&mut record, release(6)).unwrap();
    assert_eq!(record.clusters[&APP].departed[&member(3)].released, Some(6));
    // Another leader may have less.
    let mut later = record.clone();
    let begin = ClusterChange::BeginEpoch { epoch: Epoch(2), reason: EpochReason::NodeLost, preferred: None };
    change(&mut later, begin).unwrap();
    assert_eq!(later.clusters[&APP].departed[&member(3)].released, None);
    change(&mut record, ClusterChange::NoteRemoved { member: member(3) }).unwrap();
    assert!(change(&mut record, ClusterChange::NoteRemoved { member: member(2) }).is_err(), "that is a member");
    assert!(kinds(&record).ends_with(&["member_leaving", "member_removed", "member_data_removed"]));
}

#[test]
fn the_mark_moves_to_one_that_was_to_stay() {
    let mut record = five_nodes();
    ask(&mut record, 2, &[]).unwrap();
    mark(&mut record, 3).unwrap();
    let moved = |record: &mut Record, to: u128, from: u128| {
        let change = ClusterChange::MarkLeaving { member: member(to), instead_of: Some(member(from)) };
        super::super::tests::change(record, change)
    };
    assert!(moved(&mut record, 1, 3).is_err() && record.clusters[&APP].is_leaving(member(3)), "that one leads");
    assert!(moved(&mut record, 3, 2).is_err(), "that one is to stay");
    moved(&mut record, 2, 3).unwrap();
    assert!(record.clusters[&APP].is_leaving(member(2)) && !record.clusters[&APP].is_leaving(member(3)));
    assert!(kinds(&record).ends_with(&["member_stays", "member_leaving"]));
}

#[test]
fn the_number_of_members_changes_by_a_change_of_its_own() {
    let mut record = five_nodes();
    let operation = OperationId::from_u128(9);
    let spec = Box::new(ClusterSpec { members: 2, ..record.clusters[&APP].spec.clone() });
    assert!(change(&mut record, ClusterChange::UpdateSpec { operation, spec, consumer_password: None }).is_err());
    let spec = Box::new(ClusterSpec { durability: Durability::Available, ..record.clusters[&APP].spec.clone() });
    change(&mut record, ClusterChange::UpdateSpec { operation, spec, consumer_password: None }).unwrap();
}

#[test]
fn a_cluster_one_of_whose_first_members_never_comes_can_be_made_smaller() {
    let mut record = confirmed();
    assert!(record.clusters[&APP].creating.is_some());
    ask(&mut record, 2, &[]).unwrap();
    let restart = ClusterChange::RequestRestart { operation: OperationId::from_u128(8) };
    assert!(change(&mut record, restart).unwrap_err().to_string().contains("leaving"));
}

#[test]
fn one_that_is_chosen_stays_and_one_that_is_asked_for_again_too() {
    let mut record = five_nodes();
    ask(&mut record, 2, &[]).unwrap();
    mark(&mut record, 3).unwrap();
    change(&mut record, begin(2)).unwrap();
    assert!(remove(&mut record, 3).is_err(), "an election is open");
    change(&mut record, choice(2, 3, &[2], 3)).unwrap();
    assert!(!record.clusters[&APP].is_leaving(member(3)));
    let mut record = five_nodes();
    ask(&mut record, 2, &[]).unwrap();
    mark(&mut record, 3).unwrap();
    ask(&mut record, 3, &[]).unwrap();
    assert!(!record.clusters[&APP].is_leaving(member(3)));
    assert!(kinds(&record).contains(&"member_stays"));
}

#[test]
fn a_leader_that_is_to_be_alone_may_be_chosen_before_the_others_are_gone() {
    let mut record = five_nodes();
    ask(&mut record, 1, &[]).unwrap();
    change(&mut record, begin(2)).unwrap();
    let ClusterChange::Choose { epoch, leader, timeline, start, .. } = choice(2, 1, &[], 3) else { unreachable!() };
    let (sync_set, rebuild) = (SyncSet::default(), Vec::new());
    let alone = ClusterChange::Choose { epoch, leader, timeline, start, sync_set, rebuild, possible_loss: None };
    change(&mut record, alone).unwrap();
}

#[test]
fn the_last_one_of_an_asynchronous_cluster_is_excused_by_no_lease() {
    let mut record = five_nodes();
    counted(&mut record, &[]);
    let cluster = record.clusters.get_mut(&APP).unwrap();
    cluster.spec.durability = Durability::Asynchronous;
    cluster.configs[0].asynchronous = true;
    ask(&mut record, 1, &[]).unwrap();
    for n in [2, 3] {
        mark(&mut record, n).unwrap();
        assert!(record.clusters[&APP].configs[0].asynchronous);
        remove(&mut record, n).unwrap();
    }
    assert!(!record.clusters[&APP].configs[0].asynchronous);
    assert_eq!(record.clusters[&APP].epoch, Epoch(1));
}

#[test]
fn what_has_left_goes_with_its_node_and_a_deleted_cluster_waits_for_it() {
    let mut record = five_nodes();
    ask(&mut record, 2, &[]).unwrap();
    mark(&mut record, 3).unwrap();
    counted(&mut record, &[2]);
    remove(&mut record, 3).unwrap();
    assert_eq!(record.held_on(NodeId::from_u128(3)).count(), 1);
    assert_eq!(record.clusters_on(NodeId::from_u128(3)).count(), 0);
    let mut deleted = record.clone();
    change(&mut deleted, ClusterChange::RequestDelete { operation: OperationId::from_u128(70) }).unwrap();
    for n in [1, 2] {
        change(&mut deleted, ClusterChange::NoteRemoved { member: member(n) }).unwrap();
    }
    assert!(deleted.clusters.contains_key(&APP), "a volume of it is left");
    deleted.apply(&Command::RemoveNode { at: WallTime(0), node: NodeId::from_u128(3) }).unwrap();
    assert!(!deleted.clusters.contains_key(&APP));
    assert!(matches!(deleted.operations[&OperationId::from_u128(70)].state, OperationState::Succeeded { .. }));
    record.apply(&Command::RemoveNode { at: WallTime(0), node: NodeId::from_u128(3) }).unwrap();
    assert!(record.clusters[&APP].departed.is_empty());
}

#[test]
fn a_node_that_is_lost_for_good_does_not_keep_a_cluster_from_being_deleted() {
    let mut record = five_nodes();
    let removal = |n| Command::RemoveNode { at: WallTime(0), node: NodeId::from_u128(n) };
    assert!(record.apply(&removal(2)).unwrap_err().to_string().contains("holds a member"));
    let operation = OperationId::from_u128(70);
    change(&mut record, ClusterChange::RequestDelete { operation }).unwrap();
    record.apply(&removal(2)).unwrap();
    assert!(!record.clusters[&APP].members.contains_key(&member(2)));
    for n in [1, 3] {
        change(&mut record, ClusterChange::NoteRemoved { member: member(n) }).unwrap();
    }
    assert!(!record.clusters.contains_key(&APP));
    assert!(matches!(record.operations[&operation].state, OperationState::Succeeded { .. }));
}

#[test]
fn a_recovered_record_keeps_what_departed_members_have() {
    let mut record = five_nodes();
    ask(&mut record, 2, &[]).unwrap();
    mark(&mut record, 3).unwrap();
    counted(&mut record, &[2]);
    remove(&mut record, 3).unwrap();
    change(&mut record, ClusterChange::ReleaseData { member: member(3), session: 5 }).unwrap();
    assert!(!record.clusters[&APP].is_given_up(first_life(3)));
    // The others may never have agreed on any of this, and have gone on with it, also in its next life.
    let (at, recovery, by) = (WallTime(0), crate::ids::RecoveryId::from_u128(1), "ann".to_string());
    let lost = [1, 2].map(NodeId::from_u128).into();
    record.apply(&Command::RecoverQuorum { at, recovery, node: NodeId::from_u128(4), by, lost }).unwrap();
    let cluster = &record.clusters[&APP];
    let next = Incarnation { number: 2, ..first_life(3) };
    assert!(cluster.is_given_up(first_life(3)) && cluster.is_given_up(next));
}

fn move_to(record: &mut Record, from: u128, to: u128) -> Result<Applied, Refusal> {
    let operation = OperationId::from_u128(70);
    change(record, ClusterChange::MoveMember { operation, member: member(from), added: new(to) })
}
fn state(record: &Record) -> &OperationState {
    &record.operations[&OperationId::from_u128(70)].state
}

#[test]
fn a_member_moves_while_both_are_members_and_the_old_one_leaves_like_any_other() {
    let mut record = five_nodes();
    assert!(move_to(&mut record, 1, 4).unwrap_err().to_string().contains("leads"));
    assert!(move_to(&mut record, 3, 2).is_err(), "that node has a member");
    assert!(move_to(&mut record, 9, 4).is_err(), "nobody");
    move_to(&mut record, 3, 4).unwrap();
    assert_eq!(names(&record), ["app-1", "app-2", "app-3", "app-4"]);
    assert!(move_to(&mut record, 2, 5).is_err(), "one at a time");
    let mut cordoned = five_nodes();
    cordoned.nodes.get_mut(&NodeId::from_u128(4)).unwrap().service = NodeService::Cordoned;
    assert!(move_to(&mut cordoned, 3, 4).is_err(), "its node takes none");
    assert!(ask(&mut record, 5, &[5]).unwrap_err().to_string().contains("moved"));
    counted(&mut record, &[2, 4]);
    mark(&mut record, 3).unwrap();
    let cancel = ClusterChange::CancelMove { operation: OperationId::from_u128(70), why: "no".into() };
    let mut back = record.clone();
    change(&mut back, cancel.clone()).unwrap();
    let cluster = &back.clusters[&APP];
    assert!(cluster.is_leaving(member(4)) && !cluster.is_leaving(member(3)), "it counts, and goes all the same");
    remove(&mut record, 3).unwrap();
    assert!(change(&mut record, cancel).is_err(), "it has left");
    assert_eq!(*state(&record), OperationState::Running);
    let end = Command::EndOperation { at: WallTime(0), operation: OperationId::from_u128(70), failure: None };
    record.apply(&end).unwrap();
    let cluster = &record.clusters[&APP];
    assert_eq!((cluster.moving, cluster.members[&member(4)].standing), (None, Standing::Settled));
}

#[test]
fn a_move_is_over_when_it_is_taken_back_or_when_somebody_else_leaves_in_its_place() {
    let mut record = five_nodes();
    move_to(&mut record, 3, 4).unwrap();
    let cancel = |id| ClusterChange::CancelMove { operation: OperationId::from_u128(id), why: "no".into() };
    assert!(change(&mut record, cancel(71)).is_err());
    change(&mut record, cancel(70)).unwrap();
    let cluster = &record.clusters[&APP];
    assert!(cluster.is_leaving(member(4)) && !cluster.is_leaving(member(3)) && cluster.moving.is_none());
    assert!(matches!(state(&record), OperationState::Failed { why, .. } if why == "no"));
    // The one that moves is needed after all.
    let mut record = five_nodes();
    move_to(&mut record, 3, 4).unwrap();
    mark(&mut record, 3).unwrap();
    let instead = ClusterChange::MarkLeaving { member: member(2), instead_of: Some(member(3)) };
    change(&mut record, instead).unwrap();
    assert!(matches!(state(&record), OperationState::Failed { why, .. } if why.contains("app-2")));
    let cluster = &record.clusters[&APP];
    assert_eq!((cluster.moving, cluster.members[&member(4)].standing), (None, Standing::Settled));
    // And with the cluster it ends.
    let mut record = five_nodes();
    move_to(&mut record, 3, 4).unwrap();
    change(&mut record, ClusterChange::RequestDelete { operation: OperationId::from_u128(80) }).unwrap();
    assert!(matches!(state(&record), OperationState::Failed { .. }));
}

#[test]
fn what_a_person_says_of_a_node_outlives_what_the_node_says_of_itself() {
    let mut record = five_nodes();
    let id = NodeId::from_u128(4);
    let set = |service| Command::SetNodeService { at: WallTime(0), node: id, service };
    record.apply(&set(NodeService::Draining)).unwrap();
    let revision = record.revision;
    record.apply(&set(NodeService::Draining)).unwrap();
    record.apply(&Command::UpdateNode { at: WallTime(0), node: node(4) }).unwrap();
    assert_eq!(record.revision, revision, "nothing is new");
    let moved = NodeRecord { host: "elsewhere".into(), ..node(4) };
    record.apply(&Command::UpdateNode { at: WallTime(0), node: moved }).unwrap();
    assert_eq!((record.nodes[&id].service, record.nodes[&id].host.as_str()), (NodeService::Draining, "elsewhere"));
    let unknown = Command::SetNodeService { at: WallTime(0), node: NodeId::from_u128(9), service: NodeService::Open };
    assert!(record.apply(&unknown).is_err());
}
