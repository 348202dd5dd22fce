//! Transitions of the record: what applies, what is refused, and that a refusal changes nothing.

use super::*;
use crate::ids::{Incarnation, MemberId, RecoveryId, SnapshotId, VolumeId};
use crate::position::{Epoch, Lsn, Position, Timeline};
use crate::secret::Secret;
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
        service: Default::default(),
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
        consumer_password: None,
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

/// Of the cluster that is there: one member, on node 2.
pub(super) fn fork_of(record: &Record) -> (NewCluster, Forked) {
    let source = &record.clusters[&APP];
    let member = MemberRecord {
        id: MemberId::from_u128(11),
        name: "twin-1".into(),
        volume: VolumeId::from_u128(11),
        ..source.members[&member(2)].clone()
    };
    let forked = Forked {
        cluster: APP,
        name: "app".into(),
        member: MemberId::from_u128(2),
        snapshot: SnapshotId::from_u128(5),
        taken: WallTime(7),
        first: member.id,
        keeps_passwords: false,
    };
    let new = NewCluster {
        id: ClusterId::from_u128(2),
        operation: OperationId::from_u128(2),
        spec: ClusterSpec { members: 1, ..ClusterSpec::named("twin") },
        postgres_major: 15,
        ports: ClusterPorts { postgres: 6010, read_write: 6011, read_only: 6012 },
        secrets: source.secrets.clone(),
        members: vec![member],
    };
    (new, forked)
}

#[test]
fn a_fork_begins_above_every_timeline_that_its_source_was_given() {
    let mut record = confirmed();
    change(&mut record, begin(2)).unwrap();
    // Given, and not used yet.
    change(&mut record, choice(2, 2, &[1, 3], 3)).unwrap();
    let (new, forked) = fork_of(&record);
    let id = new.id;
    record.apply(&Command::ForkCluster { at: WallTime(9), cluster: Box::new(new), forked: forked.clone() }).unwrap();
    let cluster = &record.clusters[&id];
    assert_eq!((cluster.last_timeline, cluster.config().unwrap().timeline), (Timeline(4), Timeline(4)));
    assert!(cluster.begins() && cluster.forked.as_ref() == Some(&forked));
    assert_eq!(record.operations[&OperationId::from_u128(2)].kind, OperationKind::CreateCluster);
}

#[test]
fn a_fork_of_what_is_not_there_or_is_another_kind_is_refused() {
    let whole = confirmed();
    let refused = |alter: &dyn Fn(&mut Record, &mut NewCluster, &mut Forked)| {
        let mut record = whole.clone();
        let (mut new, mut forked) = fork_of(&record);
        alter(&mut record, &mut new, &mut forked);
        let before = record.clone();
        let answer = record.apply(&Command::ForkCluster { at: WallTime(9), cluster: Box::new(new), forked });
        assert_eq!(record, before, "a refusal changes nothing");
        answer.unwrap_err().to_string()
    };
    assert!(refused(&|_, _, forked| forked.cluster = ClusterId::from_u128(9)).contains("no cluster"));
    assert!(refused(&|_, _, forked| forked.first = MemberId::from_u128(9)).contains("first member"));
    assert!(refused(&|_, new, _| new.postgres_major = 16).contains("which is 15"));
    assert!(refused(&|_, new, _| new.spec.owner = "other".into()).contains("owner of its source"));
    assert!(refused(&|_, new, _| new.spec.name = "app".into()).contains("exists already"));
    let deleted = |record: &mut Record, _: &mut NewCluster, _: &mut Forked| {
        change(record, ClusterChange::RequestDelete { operation: OperationId::from_u128(3) }).unwrap();
    };
    assert!(refused(&deleted).contains("no cluster"));
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

/// Member 1 leads alone of four, so that nobody counts; standbys may feed each other.
fn cascading() -> Record {
    let mut record = confirmed();
    if let Some(cluster) = record.clusters.get_mut(&APP) {
        let fourth = MemberRecord { id: member(4), name: "app-4".into(), ..cluster.members[&member(3)].clone() };
        cluster.members.insert(fourth.id, fourth);
        cluster.spec.members = 4;
        cluster.spec.cascade = crate::spec::Cascade::Zone;
        cluster.configs[0].sync_set = SyncSet::default();
    }
    record
}
fn upstreams(orders: &[(u128, u128)]) -> ClusterChange {
    let upstreams = orders.iter().map(|(member, relay)| (first_life(*member), first_life(*relay))).collect();
    ClusterChange::SetUpstreams { epoch: Epoch(1), upstreams }
}

#[test]
fn nobody_streams_from_itself_from_the_leader_by_name_or_from_one_that_is_fed_itself() {
    let mut record = cascading();
    for (wrong, why) in [
        (&[(2, 2)][..], "itself"),
        (&[(2, 1)], "leads"),
        (&[(1, 2)], "leads"),
        (&[(2, 3), (3, 2)], "nobody streams from it"),
        (&[(2, 9)], "present incarnation"),
    ] {
        let refused = change(&mut record, upstreams(wrong)).unwrap_err().to_string();
        assert!(refused.contains(why), "{wrong:?}: {refused}");
    }
    change(&mut record, upstreams(&[(3, 2)])).unwrap();
    let cluster = &record.clusters[&APP];
    assert_eq!(cluster.relay_of(member(3)), Some(member(2)));
    assert_eq!(cluster.relayed_by(member(2)), [first_life(3)].into());
    assert!(change(&mut record, upstreams(&[(3, 2)])).is_err(), "it is so already");
}

#[test]
fn who_is_sent_back_is_recorded_with_the_revision_until_the_epoch_or_its_life_ends() {
    let mut record = cascading();
    change(&mut record, upstreams(&[(3, 2), (4, 2)])).unwrap();
    assert!(record.clusters[&APP].returned.is_empty());
    change(&mut record, upstreams(&[(4, 2)])).unwrap();
    let first = record.clusters[&APP].revision;
    assert_eq!(record.clusters[&APP].returned, [(first_life(3), first)].into());
    // Also where the order falls with something else; and one that is fed again is not back.
    change(&mut record, upstreams(&[(3, 2), (4, 2)])).unwrap();
    assert!(record.clusters[&APP].returned.is_empty());
    change(&mut record, ClusterChange::Rebuild { member: member(2), incarnation: 2, why: "it diverged".into() })
        .unwrap();
    let second = record.clusters[&APP].revision;
    assert_eq!(record.clusters[&APP].returned, [(first_life(3), second), (first_life(4), second)].into());
    change(&mut record, ClusterChange::Rebuild { member: member(3), incarnation: 2, why: "it diverged".into() })
        .unwrap();
    assert_eq!(record.clusters[&APP].returned, [(first_life(4), second)].into());
    change(&mut record, begin(2)).unwrap();
    assert!(record.clusters[&APP].returned.is_empty());
}

/// Nodes of another version read these.
#[test]
fn the_stored_forms_of_who_is_fed_by_whom_stay_as_they_are() {
    let mut record = cascading();
    let command = upstreams(&[(3, 2)]);
    let life = |n: u128| format!("{}", first_life(n));
    let (fed, relay) = (life(3), life(2));
    let expected = serde_json::json!({ "change": "set_upstreams", "epoch": 1, "upstreams": { &fed: &relay } });
    assert_eq!(serde_json::to_value(&command).unwrap(), expected);
    assert_eq!(serde_json::from_value::<ClusterChange>(expected).unwrap(), command);
    change(&mut record, upstreams(&[(3, 2), (4, 2)])).unwrap();
    change(&mut record, command).unwrap();
    let cluster = &record.clusters[&APP];
    let stored = serde_json::to_value(cluster).unwrap();
    assert_eq!(stored["upstreams"], serde_json::json!({ &fed: &relay }));
    assert_eq!(stored["returned"], serde_json::json!({ life(4): cluster.revision }));
    assert_eq!(stored["spec"]["cascade"], "zone");
    assert_eq!(&serde_json::from_value::<ClusterRecord>(stored).unwrap(), cluster);
    // Without them it is what it was before there were any.
    let plain = serde_json::to_value(&confirmed().clusters[&APP]).unwrap();
    assert!(plain.get("upstreams").is_none() && plain.get("returned").is_none(), "{plain}");
    let mut told = crate::report::Upstream::of(member(1), Epoch(2));
    assert!(serde_json::to_value(told).unwrap().get("relay").is_none());
    told.relay = Some(member(2));
    assert_eq!(serde_json::to_value(told).unwrap()["relay"], serde_json::to_value(member(2)).unwrap());
}

#[test]
fn whoever_counts_streams_from_the_leader() {
    let mut record = cascading();
    change(&mut record, upstreams(&[(3, 2)])).unwrap();
    let set = SyncSet { members: [first_life(2), first_life(3)].into(), needed: 1 };
    change(&mut record, ClusterChange::SetSyncSet { epoch: Epoch(1), set }).unwrap();
    assert!(record.clusters[&APP].upstreams.is_empty(), "it counts now");
    let refused = change(&mut record, upstreams(&[(3, 2)])).unwrap_err().to_string();
    assert!(refused.contains("sync set"), "{refused}");
}

#[test]
fn an_epoch_and_whatever_is_planned_send_everybody_to_the_leader() {
    let operation = OperationId::from_u128(7);
    let rebuilt = |n| ClusterChange::Rebuild { member: member(n), incarnation: 2, why: "it diverged".into() };
    for ends in [
        begin(2),
        ClusterChange::RequestSwitchover { operation, to: member(2) },
        ClusterChange::RequestRestart { operation },
        ClusterChange::RequestDelete { operation },
        rebuilt(2),
        rebuilt(3),
    ] {
        let mut record = cascading();
        record.clusters.get_mut(&APP).unwrap().creating = None;
        change(&mut record, upstreams(&[(3, 2)])).unwrap();
        change(&mut record, ends.clone()).unwrap();
        assert!(record.clusters[&APP].upstreams.is_empty(), "{ends:?}");
        assert!(change(&mut record, upstreams(&[(3, 2)])).is_err(), "{ends:?}: not while that is under way");
    }
}

#[test]
fn who_joins_or_leaves_neither_feeds_nor_is_fed() {
    for (who, standing) in
        [(2, Standing::Joining), (2, Standing::Leaving), (3, Standing::Joining), (3, Standing::Leaving)]
    {
        let mut record = cascading();
        let cluster = record.clusters.get_mut(&APP).unwrap();
        cluster.members.get_mut(&member(who)).unwrap().standing = standing;
        let refused = change(&mut record, upstreams(&[(3, 2)])).unwrap_err().to_string();
        assert!(refused.contains("joining or leaving"), "{who} {standing:?}: {refused}");
    }
    // There is one more than the spec asks for.
    let mut record = cascading();
    record.clusters.get_mut(&APP).unwrap().spec.members = 3;
    change(&mut record, upstreams(&[(3, 2), (4, 2)])).unwrap();
    change(&mut record, ClusterChange::MarkLeaving { member: member(3), instead_of: None }).unwrap();
    let cluster = &record.clusters[&APP];
    assert_eq!(cluster.upstreams, [(first_life(4), first_life(2))].into());
    assert_eq!(cluster.returned, [(first_life(3), cluster.revision)].into());
    change(&mut record, ClusterChange::RemoveMember { member: member(3) }).unwrap();
    let cluster = &record.clusters[&APP];
    assert_eq!(cluster.upstreams, [(first_life(4), first_life(2))].into());
    assert!(cluster.returned.is_empty() && cluster.relay_of(member(3)).is_none());
}

#[test]
fn logical_replication_and_the_budget_of_slots_change_while_the_cluster_runs_and_a_password_serves_once() {
    let mut record = confirmed();
    let mut spec = record.clusters[&APP].spec.clone();
    spec.logical_replication = true;
    spec.slot_wal_budget = "8GB".parse().unwrap();
    let update = |operation, spec: &crate::spec::ClusterSpec, password: &str| ClusterChange::UpdateSpec {
        operation: OperationId::from_u128(operation),
        spec: Box::new(spec.clone()),
        consumer_password: Some(Secret::new(password)),
    };
    let password = |record: &Record| record.clusters[&APP].secrets.consumer_password.clone();
    change(&mut record, update(70, &spec, "one")).unwrap();
    assert_eq!((&record.clusters[&APP].spec, password(&record)), (&spec, Some(Secret::new("one"))));
    // It does not change with something else, and is gone with what it was for.
    spec.slot_wal_budget = "9GB".parse().unwrap();
    change(&mut record, update(71, &spec, "two")).unwrap();
    assert_eq!(password(&record), Some(Secret::new("one")));
    spec.logical_replication = false;
    change(&mut record, update(72, &spec, "three")).unwrap();
    assert_eq!(password(&record), None);
    spec.logical_replication = true;
    change(&mut record, update(73, &spec, "four")).unwrap();
    assert_eq!(password(&record), Some(Secret::new("four")));
    spec.settings.insert("work_mem".into(), "8MB".into());
    assert!(change(&mut record, update(74, &spec, "five")).is_err());
}

#[test]
fn a_volumes_size_changes_while_the_cluster_runs() {
    let mut record = confirmed();
    let made = record.clusters[&APP].spec.clone();
    let ask = |record: &mut Record, size: Option<&str>, limit: Option<&str>| {
        let parse = |text: &str| text.parse().unwrap();
        let spec = Box::new(crate::spec::ClusterSpec {
            volume_size: size.map(parse),
            volume_limit: limit.map(parse),
            ..made.clone()
        });
        let operation = OperationId::from_u128(80);
        change(record, ClusterChange::UpdateSpec { operation, spec, consumer_password: None })
    };
    ask(&mut record, Some("20GB"), None).unwrap();
    ask(&mut record, Some("30GB"), Some("90GB")).unwrap();
    // What was mistyped can be taken back; what is there already does not shrink by it.
    ask(&mut record, Some("29GB"), Some("90GB")).unwrap();
    assert_eq!(record.clusters[&APP].spec.volume_size, "29GB".parse().ok());
    ask(&mut record, Some("30GB"), None).unwrap();
}
