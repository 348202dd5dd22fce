//! Transitions of the record: what applies, what is refused, and that a refusal changes nothing.

use super::*;
use crate::ids::{Incarnation, MemberId, RecoveryId, VolumeId};
use crate::position::{Epoch, Lsn, Position, Timeline};
use crate::spec::ClusterSpec;

pub(super) const APP: ClusterId = ClusterId::from_u128(100);

pub(super) fn member(n: u128) -> MemberId {
    MemberId::from_u128(n)
}
pub(super) fn first_life(n: u128) -> Incarnation {
    Incarnation { member: member(n), number: 1 }
}
pub(super) fn node(n: u128) -> NodeRecord {
    NodeRecord {
        id: NodeId::from_u128(n),
        name: format!("n{n}"),
        host: format!("127.0.{n}.1"),
        port: 7480,
        region: "local".into(),
        zone: format!("z{n}"),
        postgres_majors: vec![15],
        pools: vec!["default".into()],
        joined_at: WallTime(0),
    }
}
fn world() -> Record {
    let mut record = Record::default();
    for n in 1..=3 {
        record.nodes.insert(NodeId::from_u128(n), node(n));
    }
    let members = (1..=3).map(|n| MemberRecord {
        id: member(n),
        name: format!("app-{n}"),
        node: NodeId::from_u128(n),
        volume: VolumeId::from_u128(n),
        incarnation: 1,
        restarts: 0,
        standing: Default::default(),
    });
    let secrets = ClusterSecrets {
        ca_cert_pem: String::new(),
        ca_key_pem: Secret::default(),
        server_cert_pem: String::new(),
        server_key_pem: Secret::default(),
        server_hosts: Default::default(),
        owner_password: Secret::default(),
    };
    let new = NewCluster {
        id: APP,
        operation: OperationId::from_u128(1),
        spec: ClusterSpec::named("app"),
        postgres_major: 15,
        ports: ClusterPorts { postgres: 6000, read_write: 6001, read_only: 6002 },
        secrets,
        members: members.collect(),
    };
    record.apply(&Command::CreateCluster { at: WallTime(0), cluster: Box::new(new) }).unwrap();
    record
}
pub(super) fn change(record: &mut Record, change: ClusterChange) -> Result<Applied, Refusal> {
    let revision = record.clusters[&APP].revision;
    record.apply(&Command::ChangeCluster { at: WallTime(0), cluster: APP, revision, change })
}
fn promotion(epoch: u64, timeline: u32, parent: u32, fork: u64) -> ClusterChange {
    ClusterChange::NotePromotion {
        epoch: Epoch(epoch),
        timeline: Timeline(timeline),
        parent: Timeline(parent),
        fork_lsn: Lsn(fork),
        end_of_recovery: Lsn(fork + 100),
        system_identifier: "7".into(),
    }
}
pub(super) fn choice(epoch: u64, leader: u128, standbys: &[u128], timeline: u32) -> ClusterChange {
    ClusterChange::Choose {
        epoch: Epoch(epoch),
        leader: first_life(leader),
        timeline: Timeline(timeline),
        start: Position { timeline: Timeline(timeline - 1), lsn: Lsn(500) },
        sync_set: SyncSet { members: standbys.iter().map(|n| first_life(*n)).collect(), needed: 1 },
        rebuild: vec![],
        possible_loss: None,
    }
}
/// In epoch 1, under member 1.
pub(super) fn confirmed() -> Record {
    let mut record = world();
    change(&mut record, promotion(1, 2, 1, 300)).unwrap();
    change(&mut record, ClusterChange::Confirm { epoch: Epoch(1) }).unwrap();
    record
}
pub(super) fn begin(epoch: u64) -> ClusterChange {
    ClusterChange::BeginEpoch { epoch: Epoch(epoch), reason: EpochReason::PostgresEnded, preferred: None }
}

#[test]
fn a_new_cluster_has_its_first_leader_chosen_and_nothing_confirmed() {
    let record = world();
    let cluster = &record.clusters[&APP];
    assert_eq!(cluster.leadership, Leadership::Chosen { leader: member(1) });
    assert_eq!(cluster.config().unwrap().sync_set.promises_needed(), 2);
    assert!(!cluster.is_confirmed());
}

#[test]
fn a_decision_on_an_older_revision_is_refused() {
    let mut record = world();
    let before = record.clone();
    let stale = Command::ChangeCluster { at: WallTime(0), cluster: APP, revision: 0, change: begin(2) };
    assert_eq!(record.apply(&stale), Err(Refusal::StaleRevision { expected: 0, found: 1 }));
    assert_eq!(record, before);
}

#[test]
fn an_epoch_has_one_choice_and_no_timeline_is_given_twice() {
    let mut record = world();
    change(&mut record, begin(2)).unwrap();
    assert!(change(&mut record, choice(2, 2, &[3], 2)).is_err(), "timeline 2 was given in epoch 1");
    change(&mut record, choice(2, 2, &[3], 3)).unwrap();
    assert!(change(&mut record, choice(2, 3, &[2], 4)).is_err(), "a second choice in one epoch");
}

#[test]
fn only_a_confirmation_forgets_older_configurations() {
    let mut record = world();
    change(&mut record, promotion(1, 2, 1, 300)).unwrap();
    change(&mut record, ClusterChange::Confirm { epoch: Epoch(1) }).unwrap();
    change(&mut record, begin(2)).unwrap();
    change(&mut record, choice(2, 2, &[3], 3)).unwrap();
    change(&mut record, promotion(2, 3, 2, 500)).unwrap();
    assert_eq!(record.clusters[&APP].configs.len(), 2);
    change(&mut record, ClusterChange::Confirm { epoch: Epoch(2) }).unwrap();
    assert_eq!(record.clusters[&APP].configs.len(), 1);
    let cluster = &record.clusters[&APP];
    assert_eq!(cluster.ancestry(Timeline(3)), [(Timeline(1), Lsn(300)), (Timeline(2), Lsn(500))]);
    let at = |timeline, lsn| cluster.may_follow(Position { timeline: Timeline(timeline), lsn: Lsn(lsn) }).unwrap();
    assert!(at(2, 500) && at(1, 300) && at(3, 900));
    assert!(!at(2, 501) && !at(1, 301), "beyond the fork is a history of its own");
}

#[test]
fn a_log_that_ends_inside_the_record_where_the_chosen_ones_ended_has_not_diverged() {
    let mut record = world();
    change(&mut record, promotion(1, 2, 1, 300)).unwrap();
    change(&mut record, ClusterChange::Confirm { epoch: Epoch(1) }).unwrap();
    change(&mut record, begin(2)).unwrap();
    // Chosen at 500, in the middle of a record that began at 480.
    change(&mut record, choice(2, 2, &[3], 3)).unwrap();
    change(&mut record, promotion(2, 3, 2, 480)).unwrap();
    let cluster = &record.clusters[&APP];
    let may_follow = |lsn| cluster.may_follow(Position { timeline: Timeline(2), lsn: Lsn(lsn) }).unwrap();
    assert!(may_follow(480) && may_follow(500));
    assert!(!may_follow(501));
}

#[test]
fn a_member_of_the_sync_set_may_not_forget() {
    let mut record = world();
    change(&mut record, promotion(1, 2, 1, 300)).unwrap();
    change(&mut record, ClusterChange::Confirm { epoch: Epoch(1) }).unwrap();
    let rebuild = ClusterChange::Rebuild { member: member(2), incarnation: 2, why: "diverged".into() };
    assert!(matches!(change(&mut record, rebuild), Err(Refusal::Conflict { .. })));
}

#[test]
fn a_join_token_works_once_and_in_time() {
    let mut record = world();
    let token =
        JoinToken { id: TokenId::from_u128(1), secret_sha256: "00".into(), expires_at: WallTime(100), used_by: None };
    let id = token.id;
    record.apply(&Command::AddJoinToken { at: WallTime(0), token }).unwrap();
    let admit = |at, n| Command::AdmitNode { at: WallTime(at), token: id, node: node(n) };
    assert!(matches!(record.apply(&admit(100, 4)), Err(Refusal::BadToken { .. })));
    record.apply(&admit(99, 4)).unwrap();
    record.apply(&admit(101, 4)).expect("the same node asking again gets the same answer");
    assert!(matches!(record.apply(&admit(99, 5)), Err(Refusal::BadToken { .. })));
    assert!(!record.nodes.contains_key(&NodeId::from_u128(5)));
}

#[test]
fn the_record_goes_with_the_last_member_of_a_deleted_cluster() {
    let mut record = world();
    change(&mut record, ClusterChange::RequestDelete { operation: OperationId::from_u128(2) }).unwrap();
    for n in 1..=3 {
        change(&mut record, ClusterChange::NoteRemoved { member: member(n) }).unwrap();
    }
    assert!(record.clusters.is_empty());
    let ended = &record.operations[&OperationId::from_u128(2)];
    assert!(matches!(ended.state, OperationState::Succeeded { .. }));
}

#[test]
fn the_record_survives_its_stored_form_and_hides_its_secrets() {
    let mut record = world();
    record.clusters.get_mut(&APP).unwrap().secrets.owner_password = Secret::new("hunter2");
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    assert!(!format!("{record:?}").contains("hunter2"));
}

#[test]
fn a_scheduled_switchover_is_taken_out_once_and_its_operation_ends() {
    let mut record = confirmed();
    let scheduled = ScheduledSwitchover {
        operation: OperationId::from_u128(50),
        to: Some(member(2)),
        not_before: WallTime(1000),
        not_after: WallTime(2000),
    };
    let again = ScheduledSwitchover { operation: OperationId::from_u128(51), ..scheduled.clone() };
    change(&mut record, ClusterChange::ScheduleSwitchover { scheduled: scheduled.clone() }).unwrap();
    assert!(change(&mut record, ClusterChange::ScheduleSwitchover { scheduled: again }).is_err());
    let other = ClusterChange::BeginScheduledSwitchover { operation: scheduled.operation, to: member(3) };
    assert!(change(&mut record, other).is_err(), "another was asked for");
    change(&mut record, ClusterChange::CancelSwitchover { operation: scheduled.operation }).unwrap();
    assert!(change(&mut record, ClusterChange::CancelSwitchover { operation: scheduled.operation }).is_err());
    assert!(matches!(record.operations[&scheduled.operation].state, OperationState::Failed { .. }));
    change(&mut record, ClusterChange::ScheduleSwitchover { scheduled: scheduled.clone() }).unwrap();
    change(&mut record, ClusterChange::BeginScheduledSwitchover { operation: scheduled.operation, to: member(2) })
        .unwrap();
    let cluster = &record.clusters[&APP];
    assert!(cluster.switchover.is_some() && cluster.planned.scheduled.is_none());
}

#[test]
fn a_forced_epoch_is_kept_with_who_asked_and_what_was_declared_lost() {
    let mut record = confirmed();
    let loss = ForcedLoss { missing: [member(1), member(3)].into(), ..ForcedLoss::default() };
    let force = |epoch| ClusterChange::ForceEpoch {
        at: WallTime(7),
        epoch: Epoch(epoch),
        operation: OperationId::from_u128(60),
        to: member(2),
        by: "ann".into(),
        loss: loss.clone(),
    };
    assert!(change(&mut record, force(1)).is_err(), "epochs only grow");
    change(&mut record, force(5)).unwrap();
    let alone = |rebuild: Vec<MemberId>| ClusterChange::Choose {
        epoch: Epoch(5),
        leader: first_life(2),
        timeline: Timeline(9),
        start: Position { timeline: Timeline(2), lsn: Lsn(900) },
        sync_set: SyncSet::default(),
        rebuild,
        possible_loss: None,
    };
    change(&mut record, alone(vec![member(1), member(3)])).unwrap();
    let cluster = &record.clusters[&APP];
    assert_eq!(cluster.forced[0].retired, [first_life(1), first_life(3)].into());
    assert_eq!((cluster.members[&member(1)].incarnation, cluster.members[&member(2)].incarnation), (2, 1));
    change(&mut record, promotion(5, 9, 2, 900)).unwrap();
    change(&mut record, ClusterChange::Confirm { epoch: Epoch(5) }).unwrap();
    assert!(record.clusters[&APP].forced[0].ended);
    assert!(matches!(record.operations[&OperationId::from_u128(60)].state, OperationState::Succeeded { .. }));
    assert!(record.events.iter().any(|event| event.kind == "failover_forced" && event.message.contains("ann")));
}

#[test]
fn nobody_is_chosen_to_acknowledge_alone_without_a_persons_word() {
    let mut record = confirmed();
    let reason = EpochReason::NodeLost;
    change(&mut record, ClusterChange::BeginEpoch { epoch: Epoch(2), reason, preferred: None }).unwrap();
    let alone = ClusterChange::Choose {
        epoch: Epoch(2),
        leader: first_life(2),
        timeline: Timeline(9),
        start: Position { timeline: Timeline(2), lsn: Lsn(900) },
        sync_set: SyncSet::default(),
        rebuild: vec![],
        possible_loss: None,
    };
    assert!(change(&mut record, alone).is_err());
}

fn recovered(lost: &[u128]) -> Record {
    let mut record = confirmed();
    let lost = lost.iter().map(|n| NodeId::from_u128(*n)).collect();
    let (at, recovery, by) = (WallTime(0), RecoveryId::from_u128(1), "ann".to_string());
    record.apply(&Command::RecoverQuorum { at, recovery, node: NodeId::from_u128(3), by, lost }).unwrap();
    record
}

#[test]
fn a_recovered_record_believes_nobody_to_lead_and_gives_no_number_twice() {
    let record = recovered(&[1]);
    let cluster = &record.clusters[&APP];
    assert_eq!((cluster.epoch, cluster.last_timeline), (Epoch(1001), Timeline(1002)));
    let elects = Leadership::Electing { reason: EpochReason::RecordBehind, preferred: None };
    assert_eq!((cluster.leadership.clone(), cluster.members[&member(1)].incarnation), (elects, 1001));
    assert!(cluster.is_given_up(first_life(1)) && !cluster.is_given_up(first_life(2)));
    assert_eq!(cluster.next_incarnation(&cluster.members[&member(2)]), 1001);
    let preferred = Some(member(1));
    let elects = Leadership::Electing { reason: EpochReason::RecordBehind, preferred };
    assert_eq!(recovered(&[2]).clusters[&APP].leadership, elects);
}

#[test]
fn a_newer_life_is_adopted_only_in_the_election_of_a_recovered_record() {
    let adopt = |n, incarnation| ClusterChange::AdoptIncarnation { member: member(n), incarnation };
    assert!(change(&mut confirmed(), adopt(2, 3)).is_err(), "nothing was recovered");
    let mut record = recovered(&[1]);
    assert!(change(&mut record, adopt(1, 2000)).is_err(), "its node was given up");
    assert!(change(&mut record, adopt(2, 1)).is_err(), "it is known");
    change(&mut record, adopt(2, 3)).unwrap();
    assert_eq!(record.clusters[&APP].members[&member(2)].incarnation, 3);
    change(&mut record, choice(1001, 3, &[], 1003)).expect_err("a set of nobody");
    let set = ClusterChange::Choose {
        epoch: Epoch(1001),
        leader: first_life(3),
        timeline: Timeline(1003),
        start: Position { timeline: Timeline(2), lsn: Lsn(500) },
        sync_set: SyncSet { members: [Incarnation { member: member(2), number: 3 }].into(), needed: 1 },
        rebuild: vec![],
        possible_loss: None,
    };
    change(&mut record, set).unwrap();
    assert!(change(&mut record, adopt(2, 4)).is_err(), "somebody is chosen");
    change(&mut record, promotion(1001, 1003, 2, 500)).unwrap();
    assert!(record.clusters[&APP].recovering().is_some());
    change(&mut record, ClusterChange::Confirm { epoch: Epoch(1001) }).unwrap();
    assert!(record.clusters[&APP].recovering().is_none());
}

#[test]
fn log_is_fetched_once_in_an_open_election_between_two_that_are_there() {
    let order = |epoch, from, to| {
        let upto = Position { timeline: Timeline(2), lsn: Lsn(900) };
        ClusterChange::FetchLog { fetch: LogFetch { epoch: Epoch(epoch), from, to, upto } }
    };
    let mut record = confirmed();
    assert!(change(&mut record, order(1, first_life(2), first_life(3))).is_err(), "nobody is being elected");
    let begin =
        |epoch| ClusterChange::BeginEpoch { epoch: Epoch(epoch), reason: EpochReason::NodeLost, preferred: None };
    change(&mut record, begin(2)).unwrap();
    assert!(change(&mut record, order(1, first_life(2), first_life(3))).is_err(), "an older election");
    assert!(change(&mut record, order(2, first_life(2), first_life(2))).is_err(), "itself");
    let second = Incarnation { number: 2, ..first_life(3) };
    assert!(change(&mut record, order(2, first_life(2), second)).is_err(), "a life that is not there");
    change(&mut record, order(2, first_life(2), first_life(3))).unwrap();
    assert!(change(&mut record, order(2, first_life(1), first_life(3))).is_err(), "once");
    assert_eq!(record.clusters[&APP].fetch().map(|fetch| fetch.to), Some(first_life(3)));
    let fetched = record.clone();
    change(&mut record, begin(3)).unwrap();
    assert_eq!(record.clusters[&APP].fetch(), None);
    change(&mut record, order(3, first_life(2), first_life(3))).unwrap();
    let mut record = fetched;
    change(&mut record, choice(2, 2, &[3], 3)).unwrap();
    assert_eq!(record.clusters[&APP].fetch, None);
}
