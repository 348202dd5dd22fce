//! The one next step in each situation, and nothing where there is nothing to do.

use super::*;
use pgstead_types::record::{
    ClusterPorts, ClusterSecrets, Departed, EpochConfig, EpochReason, Forked, HistoryEntry, MemberRecord, SetChange,
    Switchover, SyncSet,
};
use pgstead_types::report::{
    CleanStop, ClientAccess, DataIdentity, LeaseSeen, PrimarySeen, PromiseAnswer, ReceiverSeen, RefusalSeen,
    SenderSeen, SetBy, StandbySeen, Upstream, Working,
};
use pgstead_types::spec::{ClusterSpec, Durability};
use pgstead_types::{
    ClusterId, Incarnation, Lsn, NodeId, OperationId, Position, Secret, SnapshotId, Step, Timeline, VolumeId, WallTime,
};
use std::collections::BTreeSet;

mod aside;

pub(crate) const A: MemberId = MemberId::from_u128(1);
pub(crate) const B: MemberId = MemberId::from_u128(2);
pub(crate) const C: MemberId = MemberId::from_u128(3);
pub(crate) const FORK: u64 = 500;

pub(crate) fn life(member: MemberId, number: u32) -> Incarnation {
    Incarnation { member, number }
}
pub(crate) fn at(timeline: u32, lsn: u64) -> Position {
    Position { timeline: Timeline(timeline), lsn: Lsn(lsn) }
}
pub(crate) fn others(all: &[MemberId]) -> BTreeSet<Incarnation> {
    all.iter().map(|member| life(*member, 1)).collect()
}

/// A confirmed cluster in epoch 2: A leads on timeline 3, which left timeline 2 at 500; B and C are its set.
pub(crate) fn record() -> ClusterRecord {
    let member = |id: MemberId, n: u128| MemberRecord {
        id,
        name: format!("app-{n}"),
        node: NodeId::from_u128(n),
        volume: VolumeId::from_u128(n),
        incarnation: 1,
        restarts: 0,
        standing: Default::default(),
    };
    ClusterRecord {
        id: ClusterId::from_u128(1),
        spec: ClusterSpec::named("app"),
        revision: 1,
        created_at: WallTime(0),
        lifecycle: Lifecycle::Active,
        ports: ClusterPorts { postgres: 1, read_write: 2, read_only: 3 },
        postgres_major: 15,
        secrets: ClusterSecrets {
            ca_cert_pem: String::new(),
            ca_key_pem: Secret::default(),
            server_cert_pem: String::new(),
            server_key_pem: Secret::default(),
            server_hosts: Default::default(),
            owner_password: Secret::default(),
            consumer_password: None,
        },
        system_identifier: Some("7".into()),
        members: [(A, member(A, 1)), (B, member(B, 2)), (C, member(C, 3))].into(),
        departed: Default::default(),
        epoch: Epoch(2),
        leadership: Leadership::Confirmed { leader: A },
        configs: vec![EpochConfig {
            epoch: Epoch(2),
            leader: life(A, 1),
            timeline: Timeline(3),
            start: at(2, FORK),
            sync_set: SyncSet { members: others(&[B, C]), needed: 1 },
            asynchronous: false,
            possible_loss: None,
            degraded: false,
            target: None,
        }],
        history: vec![HistoryEntry {
            epoch: Epoch(2),
            timeline: Timeline(3),
            parent: Timeline(2),
            fork_lsn: Lsn(FORK),
            end_of_recovery: Lsn(FORK + 100),
            leader: A,
            possible_loss: None,
        }],
        last_timeline: Timeline(3),
        switchover: None,
        restart: None,
        creating: None,
        planned: Default::default(),
        forced: Vec::new(),
        recovered: None,
        updating: None,
        moving: None,
        fetch: None,
        upstreams: Default::default(),
        forked: None,
        returned: Default::default(),
        takes_place: None,
        aside: None,
    }
}
/// Epoch 3 is open.
fn electing(reason: EpochReason) -> ClusterRecord {
    ClusterRecord { epoch: Epoch(3), leadership: Leadership::Electing { reason, preferred: None }, ..record() }
}
/// Epoch 3 has chosen B.
fn chosen() -> ClusterRecord {
    let mut record = ClusterRecord { epoch: Epoch(3), leadership: Leadership::Chosen { leader: B }, ..record() };
    record.configs.push(EpochConfig {
        epoch: Epoch(3),
        leader: life(B, 1),
        timeline: Timeline(4),
        start: at(3, 900),
        sync_set: SyncSet { members: others(&[C]), needed: 1 },
        asynchronous: false,
        possible_loss: None,
        degraded: false,
        target: None,
    });
    record
}

pub(crate) fn seen(member: MemberId, promised: u64, postgres: PostgresSeen) -> MemberReport {
    let identity = DataIdentity { incarnation: life(member, 1), system_identifier: "7".into(), postgres_major: 15 };
    MemberReport {
        cluster: ClusterId::from_u128(1),
        member,
        revision: 1,
        volume_present: true,
        volume_size: None,
        data: DataSeen::Present(identity),
        promised: Epoch(promised),
        answer: None,
        postgres,
        restarts: 0,
        checkpointed: None,
        set_by: None,
        lease: None,
        refusing: None,
        working: None,
        oldest_log: None,
        fetched: None,
        slots: None,
        session: 5,
        kept: Default::default(),
        troubles: Vec::new(),
        findings: vec![],
    }
}
pub(crate) fn standby(upstream: Option<(MemberId, u64)>, position: Option<Position>) -> PostgresSeen {
    PostgresSeen::Standby(StandbySeen {
        upstream: upstream.map(|(leader, epoch)| Upstream::of(leader, Epoch(epoch))),
        receiver: upstream.map(|_| ReceiverSeen { streaming: true, silent_ms: 0 }),
        replayed: Lsn(0),
        position,
        expects: None,
        relays_to: Default::default(),
        slots: Default::default(),
        unfinished: None,
        access: ClientAccess::Open,
    })
}
pub(crate) fn primary_seen() -> PrimarySeen {
    PrimarySeen {
        epoch: Some(Epoch(2)),
        timeline: Timeline(3),
        flushed: Lsn(900),
        fork_lsn: Lsn(FORK),
        parent: Some(Timeline(2)),
        end_of_recovery: Lsn(FORK + 100),
        access: ClientAccess::Open,
        read_only: false,
        sync_set: Some(SyncSet { members: others(&[B, C]), needed: 1 }),
        admitted: others(&[B, C]),
        slots: others(&[B, C]),
        senders: vec![],
    }
}
/// A's primary, to which these stream.
pub(crate) fn leads(streaming: &[MemberId]) -> MemberReport {
    let sender = |member: &MemberId| SenderSeen {
        name: life(*member, 1).to_string(),
        incarnation: Some(life(*member, 1)),
        streaming: true,
        flushed: Some(Lsn(900)),
        replayed: Some(Lsn(900)),
    };
    let senders = streaming.iter().map(sender).collect();
    seen(A, 2, PostgresSeen::Primary(PrimarySeen { senders, ..primary_seen() }))
}
pub(crate) fn streams_from_a() -> MemberReport {
    seen(B, 2, standby(Some((A, 2)), Some(at(3, 900))))
}
/// The same cluster as `record`, where A acknowledges alone.
pub(crate) fn alone() -> ClusterRecord {
    let mut record = record();
    record.spec.durability = Durability::Asynchronous;
    record.configs[0].asynchronous = true;
    record.configs[0].sync_set = SyncSet::default();
    record
}
const DOWN: PostgresSeen = PostgresSeen::Down { clean: None };
fn down_cleanly() -> PostgresSeen {
    PostgresSeen::Down { clean: Some(CleanStop { timeline: Timeline(3), checkpoint: Lsn(900) }) }
}

pub(crate) fn step(record: &ClusterRecord, seen: &MemberReport) -> Option<Step> {
    decide(record, seen.member, seen).action.map(|action| action.step())
}
fn codes(record: &ClusterRecord, seen: &MemberReport) -> Vec<String> {
    decide(record, seen.member, seen).findings.into_iter().map(|finding| finding.code).collect()
}

#[test]
fn a_slot_that_a_member_lacks_is_made_after_clients_are_let_in() {
    let lacking = PrimarySeen { slots: others(&[B]), access: ClientAccess::Holding, ..primary_seen() };
    let next = |primary: &PrimarySeen| step(&record(), &seen(A, 2, PostgresSeen::Primary(primary.clone())));
    assert_eq!(next(&lacking), Some(Step::OpenClients));
    assert_eq!(next(&PrimarySeen { access: ClientAccess::Open, ..lacking }), Some(Step::UpdateSyncSet));
}

// --- nothing to do

#[test]
fn a_settled_leader_and_a_settled_standby_do_nothing() {
    assert_eq!(decide(&record(), A, &seen(A, 2, PostgresSeen::Primary(primary_seen()))), Next::default());
    assert_eq!(decide(&record(), B, &seen(B, 2, standby(Some((A, 2)), Some(at(3, 900))))), Next::default());
}

// --- orders and their epochs

#[test]
fn a_newer_epoch_is_made_durable_before_anything_else() {
    for record in [electing(EpochReason::NodeLost), chosen(), record()] {
        assert_eq!(step(&record, &seen(B, 1, standby(Some((A, 1)), None))), Some(Step::SavePromise));
    }
}

#[test]
fn a_record_older_than_the_promise_is_no_order() {
    for postgres in [standby(None, Some(at(3, 900))), DOWN, PostgresSeen::Primary(primary_seen())] {
        let seen = seen(B, 3, postgres);
        assert_eq!((step(&record(), &seen), codes(&record(), &seen)), (None, vec!["stale_order".to_string()]));
    }
}

#[test]
fn a_member_that_has_given_its_word_to_a_leader_obeys_no_election() {
    let mut seen = streams_from_a();
    seen.refusing = Some(RefusalSeen { epoch: Epoch(2), remaining_ms: 700 });
    let open = electing(EpochReason::NodeLost);
    assert_eq!((step(&open, &seen), codes(&open, &seen)), (None, vec!["refusing_elections".to_string()]));
    assert_eq!(decide(&record(), B, &seen), Next::default());
    seen.refusing = None;
    assert_eq!(step(&open, &seen), Some(Step::SavePromise));
}

#[test]
fn a_leader_that_acknowledges_alone_lets_clients_in_only_under_a_lease() {
    let mut seen = leads(&[]);
    if let PostgresSeen::Primary(primary) = &mut seen.postgres {
        primary.access = ClientAccess::Holding;
        primary.sync_set = Some(SyncSet::default());
    }
    // Asynchronous, or left alone by a person's word.
    let mut left_alone = alone();
    left_alone.configs[0].asynchronous = false;
    for record in [alone(), left_alone] {
        seen.lease = None;
        assert_eq!((step(&record, &seen), codes(&record, &seen)), (None, vec!["no_lease".to_string()]));
        seen.lease = Some(LeaseSeen { remaining_ms: 9000 });
        assert_eq!(step(&record, &seen), Some(Step::OpenClients));
    }
}

// --- promising

#[test]
fn a_promise_cuts_the_upstream_before_it_answers() {
    let open = electing(EpochReason::NodeLost);
    assert_eq!(step(&open, &seen(B, 3, standby(Some((A, 2)), Some(at(3, 900))))), Some(Step::CutUpstream));
    assert_eq!(step(&open, &seen(B, 3, standby(None, Some(at(3, 900))))), Some(Step::AnswerPromise));
}

#[test]
fn a_receiver_that_outlives_its_setting_is_still_cut() {
    let mut postgres = standby(Some((A, 2)), Some(at(3, 900)));
    if let PostgresSeen::Standby(standby) = &mut postgres {
        standby.upstream = None;
    }
    assert_eq!(step(&electing(EpochReason::NodeLost), &seen(B, 3, postgres)), Some(Step::CutUpstream));
}

#[test]
fn a_position_that_is_not_known_is_no_answer_yet() {
    assert_eq!(step(&electing(EpochReason::NodeLost), &seen(B, 3, standby(None, None))), None);
}

fn expecting(timeline: u32, position: Position) -> PostgresSeen {
    let mut postgres = standby(None, Some(position));
    if let PostgresSeen::Standby(standby) = &mut postgres {
        standby.expects = Some(Timeline(timeline));
    }
    postgres
}

#[test]
fn a_standby_that_heard_of_a_leader_that_is_gone_starts_anew_before_it_promises_leads_or_follows() {
    let open = electing(EpochReason::NodeLost);
    assert_eq!(step(&open, &seen(B, 3, expecting(4, at(3, 900)))), Some(Step::StopCleanly));
    let own = record().config().unwrap().timeline;
    assert_eq!(own, Timeline(3));
    assert_eq!(step(&record(), &seen(B, 2, expecting(3, at(2, FORK)))), Some(Step::Follow), "it comes from the leader");
    assert_eq!(step(&record(), &seen(B, 2, expecting(4, at(3, 900)))), Some(Step::StopCleanly));
    let mut candidate = seen(B, 3, expecting(9, at(3, 900)));
    candidate.answer = Some(PromiseAnswer { epoch: Epoch(3), incarnation: life(B, 1), position: at(3, 900) });
    assert_eq!(step(&chosen(), &candidate), Some(Step::StopCleanly));
}

#[test]
fn a_promise_is_answered_once() {
    let mut seen = seen(B, 3, standby(None, Some(at(3, 900))));
    seen.answer = Some(PromiseAnswer { epoch: Epoch(3), incarnation: life(B, 1), position: at(3, 900) });
    assert_eq!(step(&electing(EpochReason::NodeLost), &seen), None);
    seen.answer = Some(PromiseAnswer { epoch: Epoch(2), incarnation: life(B, 1), position: at(3, 900) });
    assert_eq!(step(&electing(EpochReason::NodeLost), &seen), Some(Step::AnswerPromise));
}

#[test]
fn an_old_leader_ends_before_it_promises() {
    let runs = seen(A, 3, PostgresSeen::Primary(primary_seen()));
    assert_eq!(step(&electing(EpochReason::NodeSilent), &runs), Some(Step::Fence));
    assert_eq!(step(&electing(EpochReason::Restart), &runs), Some(Step::StopCleanly));
    let hangs = |member| seen(member, 3, PostgresSeen::Unresponsive { why: "it hangs".into() });
    assert_eq!(step(&electing(EpochReason::NodeSilent), &hangs(A)), Some(Step::Fence));
    assert_eq!(step(&electing(EpochReason::NodeSilent), &hangs(B)), None);
    let mut for_long = hangs(B);
    for_long.troubles = [Trouble::Hung { why: "it hangs".into() }].into();
    assert_eq!(step(&electing(EpochReason::NodeSilent), &for_long), Some(Step::Fence), "its promise may be needed");
    assert_eq!(step(&electing(EpochReason::NodeSilent), &seen(A, 3, DOWN)), Some(Step::StartStandby));
}

#[test]
fn nobody_promises_with_data_that_is_not_the_recorded_incarnation() {
    let mut open = electing(EpochReason::NodeLost);
    open.members.get_mut(&B).unwrap().incarnation = 2;
    assert_eq!(step(&open, &seen(B, 3, standby(None, Some(at(3, 900))))), None);
}

// --- leading

#[test]
fn the_chosen_one_promotes_only_after_its_promise_and_without_a_receiver() {
    let mut seen = seen(B, 3, standby(Some((A, 2)), Some(at(3, 900))));
    assert_eq!(step(&chosen(), &seen), Some(Step::CutUpstream));
    seen.postgres = standby(None, Some(at(3, 900)));
    assert_eq!(step(&chosen(), &seen), Some(Step::AnswerPromise));
    seen.answer = Some(PromiseAnswer { epoch: Epoch(3), incarnation: life(B, 1), position: at(3, 900) });
    let Some(Action::Promote { epoch, timeline, sync_set, admitted }) = decide(&chosen(), B, &seen).action else {
        panic!("expected a promotion")
    };
    assert_eq!((epoch, timeline), (Epoch(3), Timeline(4)));
    assert_eq!((sync_set.members, admitted), (others(&[C]), others(&[A, C])));
}

#[test]
fn a_timeline_is_promoted_to_once() {
    let spent = seen(B, 3, standby(None, Some(at(4, 1000))));
    assert_eq!((step(&chosen(), &spent), codes(&chosen(), &spent)), (None, vec!["promotion_spent".to_string()]));
}

#[test]
fn a_leader_that_crashed_is_started_as_a_standby_and_waits_for_the_next_epoch() {
    assert_eq!(step(&record(), &seen(A, 2, DOWN)), Some(Step::StartStandby));
    assert_eq!(step(&record(), &seen(A, 2, standby(None, Some(at(3, 900))))), None);
}

#[test]
fn a_primary_of_another_epoch_or_timeline_is_fenced() {
    let mut primary = primary_seen();
    primary.timeline = Timeline(9);
    assert_eq!(step(&record(), &seen(A, 2, PostgresSeen::Primary(primary))), Some(Step::Fence));
    let stranger = PrimarySeen { epoch: None, ..primary_seen() };
    assert_eq!(step(&record(), &seen(A, 2, PostgresSeen::Primary(stranger))), Some(Step::Fence));
    assert_eq!(step(&record(), &seen(B, 2, PostgresSeen::Primary(primary_seen()))), Some(Step::Fence));
}

#[test]
fn clients_are_let_in_only_when_the_epoch_is_confirmed() {
    let held = PrimarySeen { access: ClientAccess::Holding, ..primary_seen() };
    assert_eq!(step(&record(), &seen(A, 2, PostgresSeen::Primary(held.clone()))), Some(Step::OpenClients));
    let promoted = ClusterRecord { leadership: Leadership::Promoted { leader: A }, ..record() };
    assert_eq!(step(&promoted, &seen(A, 2, PostgresSeen::Primary(held))), None);
    assert_eq!(step(&promoted, &seen(A, 2, PostgresSeen::Primary(primary_seen()))), Some(Step::HoldClients));
}

#[test]
fn the_set_in_postgres_follows_the_record_before_clients_are_let_in() {
    let other = PrimarySeen {
        access: ClientAccess::Holding,
        read_only: false,
        sync_set: Some(SyncSet { members: others(&[B]), needed: 1 }),
        ..primary_seen()
    };
    assert_eq!(step(&record(), &seen(A, 2, PostgresSeen::Primary(other))), Some(Step::UpdateSyncSet));
}

#[test]
fn no_sync_set_is_loaded_by_an_older_record_than_one_was_before() {
    let loaded = |epoch, revision| MemberReport {
        set_by: Some(SetBy { epoch: Epoch(epoch), revision }),
        ..seen(
            A,
            2,
            PostgresSeen::Primary(PrimarySeen {
                sync_set: Some(SyncSet { members: others(&[B]), needed: 1 }),
                ..primary_seen()
            }),
        )
    };
    let revision = record().revision;
    let next = decide(&record(), A, &loaded(2, revision + 1));
    assert_eq!((next.action, next.findings[0].code.as_str()), (None, "stale_order"));
    assert_eq!(step(&record(), &loaded(2, revision)), Some(Step::UpdateSyncSet));
    // A record that was recovered counts anew, in a later epoch.
    assert_eq!(step(&record(), &loaded(1, revision + 9)), Some(Step::UpdateSyncSet));
}

#[test]
fn a_change_to_what_is_loaded_already_is_carried_out_by_the_record_that_has_it() {
    let set = SyncSet { members: others(&[B]), needed: 1 };
    let primary = PrimarySeen { sync_set: Some(set.clone()), ..primary_seen() };
    let mut record = record();
    record.configs[0].target = Some(SetChange { set, revision: record.revision });
    let by = |revision| Some(SetBy { epoch: Epoch(2), revision });
    let report = |set_by| MemberReport { set_by, ..seen(A, 2, PostgresSeen::Primary(primary.clone())) };
    assert_eq!(step(&record, &report(None)), Some(Step::UpdateSyncSet));
    assert_eq!(step(&record, &report(by(record.revision - 1))), Some(Step::UpdateSyncSet));
    assert_eq!(step(&record, &report(by(record.revision))), None);
}

#[test]
fn a_switchover_checkpoints_holds_and_stops_in_its_own_epoch_only() {
    let asked = |epoch, draining| {
        let operation = OperationId::from_u128(1);
        let switchover = Switchover { operation, from: A, to: B, epoch, draining, for_restart: false };
        ClusterRecord { switchover: Some(switchover), ..record() }
    };
    let open = seen(A, 2, PostgresSeen::Primary(primary_seen()));
    let held = PrimarySeen { access: ClientAccess::Holding, ..primary_seen() };
    assert_eq!(step(&asked(Epoch(2), false), &open), Some(Step::Checkpoint));
    assert_eq!(step(&asked(Epoch(2), true), &open), Some(Step::HoldClients));
    assert_eq!(step(&asked(Epoch(2), true), &seen(A, 2, PostgresSeen::Primary(held))), Some(Step::StopCleanly));
    assert_eq!(step(&asked(Epoch(2), true), &seen(A, 2, down_cleanly())), None, "it stays down for the election");
    assert_eq!(step(&asked(Epoch(1), true), &open), None);
}

#[test]
fn a_database_is_made_once_in_the_life_of_a_cluster() {
    let mut new = ClusterRecord { system_identifier: None, history: vec![], ..record() };
    new.leadership = Leadership::Chosen { leader: A };
    let mut empty = seen(A, 0, DOWN);
    empty.data = DataSeen::Absent;
    assert_eq!(step(&new, &empty), Some(Step::InitDatabase));
    assert_eq!((step(&record(), &empty), codes(&record(), &empty)), (None, vec!["data_lost".to_string()]));
}

#[test]
fn a_forks_first_member_adopts_what_its_volume_came_with_and_never_makes_an_empty_database() {
    let mut fork = record();
    fork.system_identifier = None;
    fork.history.clear();
    fork.leadership = Leadership::Chosen { leader: A };
    fork.forked = Some(Forked {
        cluster: ClusterId::from_u128(9),
        name: "source".into(),
        member: MemberId::from_u128(90),
        snapshot: SnapshotId::from_u128(5),
        taken: WallTime(0),
        first: A,
        keeps_passwords: false,
    });
    let with = |member, data| MemberReport { data, ..seen(member, 0, DOWN) };
    let foreign = || DataSeen::Foreign { why: "it is member 90's".into() };
    assert_eq!(
        step(&fork, &MemberReport { volume_present: false, ..with(A, DataSeen::Absent) }),
        Some(Step::CreateVolume)
    );
    assert_eq!(step(&fork, &with(A, foreign())), Some(Step::AdoptData));
    assert_eq!(
        (step(&fork, &with(B, foreign())), codes(&fork, &with(B, foreign()))),
        (None, vec!["foreign_data".to_string()])
    );
    for nothing in [DataSeen::Absent, DataSeen::Partial] {
        let nothing = with(A, nothing);
        assert_eq!((step(&fork, &nothing), codes(&fork, &nothing)), (None, vec!["fork_without_data".to_string()]));
    }
    assert_eq!(step(&fork, &seen(A, 2, DOWN)), Some(Step::StartStandby));
    // Once it has led, what is not its own is somebody else's.
    fork.system_identifier = Some("7".into());
    assert_eq!(codes(&fork, &with(A, foreign())), ["foreign_data"]);
}

#[test]
fn a_leader_on_a_full_pool_takes_no_writes_and_at_the_brim_no_clients() {
    let on = |brimming: Option<bool>, read_only: bool, access: ClientAccess| {
        let mut seen = leads(&[B, C]);
        seen.troubles = brimming.map(|brimming| Trouble::PoolFull { brimming }).into_iter().collect();
        let PostgresSeen::Primary(primary) = &mut seen.postgres else { unreachable!() };
        (primary.read_only, primary.access) = (read_only, access);
        step(&record(), &seen)
    };
    use ClientAccess::{Holding, Open};
    assert_eq!(on(None, false, Open), None);
    assert_eq!(on(Some(false), false, Open), Some(Step::LimitWrites));
    assert_eq!(on(Some(false), true, Open), None);
    // Before it lets anybody in.
    assert_eq!(on(Some(false), false, Holding), Some(Step::LimitWrites));
    assert_eq!(on(Some(false), true, Holding), Some(Step::OpenClients));
    assert_eq!(on(Some(true), true, Open), Some(Step::HoldClients));
    assert_eq!(on(Some(true), true, Holding), None);
    assert_eq!(on(None, true, Holding), Some(Step::LimitWrites));
    assert_eq!(on(None, true, Open), Some(Step::LimitWrites));
}

// --- following

#[test]
fn a_standby_follows_the_leader_of_the_epoch_and_no_two_at_once() {
    assert_eq!(step(&record(), &seen(B, 2, standby(None, Some(at(3, 800))))), Some(Step::Follow));
    assert_eq!(step(&record(), &seen(B, 2, standby(Some((C, 1)), Some(at(3, 800))))), Some(Step::CutUpstream));
    assert_eq!(step(&record(), &seen(B, 2, DOWN)), Some(Step::StartStandby));
}

#[test]
fn a_log_beyond_the_fork_does_not_follow() {
    let diverged = seen(B, 2, standby(None, Some(at(2, FORK + 1))));
    assert_eq!((step(&record(), &diverged), codes(&record(), &diverged)), (None, vec!["diverged".to_string()]));
    assert_eq!(step(&record(), &seen(B, 2, standby(None, Some(at(2, FORK))))), Some(Step::Follow));
}

#[test]
fn a_raised_incarnation_is_rewound_and_copied_when_that_fails_twice() {
    let mut raised = record();
    raised.members.get_mut(&B).unwrap().incarnation = 2;
    assert_eq!(step(&raised, &seen(B, 2, standby(None, None))), Some(Step::StopCleanly));
    assert_eq!(step(&raised, &seen(B, 2, down_cleanly())), Some(Step::Rewind));
    assert_eq!(step(&raised, &seen(B, 2, DOWN)), Some(Step::Rewind));
    let mut failed = seen(B, 2, down_cleanly());
    let error = Some("no common checkpoint".to_string());
    failed.working = Some(Working { step: Step::Rewind, elapsed_ms: 1, attempt: 2, percent: None, error });
    assert_eq!(step(&raised, &failed), Some(Step::Clone));
    raised.leadership = Leadership::Chosen { leader: A };
    assert_eq!(step(&raised, &seen(B, 2, down_cleanly())), None, "nothing is copied from a leader that is none yet");
}

#[test]
fn a_copy_in_flight_is_not_what_an_interrupted_one_has_left() {
    let mut seen = seen(B, 2, DOWN);
    seen.data = DataSeen::Partial;
    assert_eq!(step(&record(), &seen), Some(Step::DiscardPartial));
    for copying in [Step::Clone, Step::Rewind] {
        let working = Working { step: copying, elapsed_ms: 1, attempt: 1, percent: None, error: None };
        seen.working = Some(working.clone());
        assert_eq!(step(&record(), &seen), Some(copying), "the same again, so that nothing interrupts it");
        seen.working = Some(Working { error: Some("cut short".into()), ..working });
        assert_eq!(step(&record(), &seen), Some(Step::DiscardPartial));
    }
}

#[test]
fn lost_data_is_replaced_only_by_the_records_word() {
    let mut seen = seen(B, 2, DOWN);
    seen.data = DataSeen::Lost { incarnation: life(B, 1) };
    seen.volume_present = false;
    assert_eq!((step(&record(), &seen), codes(&record(), &seen)), (None, vec!["data_lost".to_string()]));
    let mut raised = record();
    raised.members.get_mut(&B).unwrap().incarnation = 2;
    assert_eq!(step(&raised, &seen), Some(Step::CreateVolume));
    seen.volume_present = true;
    assert_eq!(step(&raised, &seen), Some(Step::Clone));
}

#[test]
fn foreign_data_is_left_alone() {
    let mut seen = seen(B, 2, DOWN);
    seen.data = DataSeen::Foreign { why: "another cluster's".into() };
    assert_eq!((step(&record(), &seen), codes(&record(), &seen)), (None, vec!["foreign_data".to_string()]));
}

#[test]
fn a_standby_restarts_when_the_record_counts_one_more() {
    let mut asked = record();
    asked.members.get_mut(&B).unwrap().restarts = 1;
    let mut seen = seen(B, 2, standby(Some((A, 2)), Some(at(3, 900))));
    assert_eq!(step(&asked, &seen), Some(Step::StopCleanly));
    seen.restarts = 1;
    assert_eq!(step(&asked, &seen), None);
}

// --- leaving

#[test]
fn a_deleted_clusters_member_ends_postgres_before_it_removes_the_volume() {
    let lifecycle = Lifecycle::Deleting { operation: OperationId::from_u128(1) };
    let deleting = ClusterRecord { lifecycle, ..record() };
    assert_eq!(step(&deleting, &seen(B, 2, standby(None, None))), Some(Step::Fence));
    assert_eq!(step(&deleting, &seen(B, 2, DOWN)), Some(Step::RemoveVolume));
    let mut gone = seen(B, 2, DOWN);
    gone.volume_present = false;
    assert_eq!(step(&deleting, &gone), None);
}

#[test]
fn a_member_that_hangs_is_ended_where_another_leads() {
    let unresponsive = PostgresSeen::Unresponsive { why: "no answer".into() };
    let mut seen = seen(B, 2, unresponsive);
    assert_eq!(decide(&record(), B, &seen).action, None);
    seen.troubles.push(pgstead_types::Trouble::Hung { why: "no answer".into() });
    assert_eq!(decide(&record(), B, &seen).action, Some(Action::Fence));
}

#[test]
fn a_recovery_of_data_that_is_given_up_is_ended() {
    let mut record = record();
    record.members.get_mut(&B).unwrap().incarnation = 2;
    assert_eq!(decide(&record, B, &seen(B, 2, PostgresSeen::Starting)).action, Some(Action::Fence));
}

#[test]
fn broken_pages_are_copied_anew_and_never_rewound() {
    let mut raised = record();
    raised.members.get_mut(&B).unwrap().incarnation = 2;
    let mut seen = seen(B, 2, down_cleanly());
    assert_eq!(step(&raised, &seen), Some(Step::Rewind));
    seen.troubles.push(pgstead_types::Trouble::Corrupted { failures: 3 });
    assert_eq!(step(&raised, &seen), Some(Step::Clone));
    seen.troubles = vec![pgstead_types::Trouble::RecoveryStuck { why: "it reads nothing".into() }];
    assert_eq!(step(&raised, &seen), Some(Step::Clone));
}

/// A person has forced A to lead, and given the first life of `member` up.
fn gave_up(member: MemberId) -> pgstead_types::record::ForcedEpoch {
    pgstead_types::record::ForcedEpoch {
        epoch: Epoch(2),
        at: WallTime(0),
        operation: OperationId::from_u128(1),
        by: "ann".into(),
        to: A,
        loss: Default::default(),
        retired: others(&[member]),
        ended: true,
    }
}

#[test]
fn data_that_was_given_up_is_kept_and_copied_anew() {
    let mut raised = record();
    raised.members.get_mut(&B).unwrap().incarnation = 2;
    raised.forced.push(gave_up(B));
    assert_eq!(step(&raised, &seen(B, 2, down_cleanly())), Some(Step::Clone));
    // Its next life was nobody's loss.
    raised.members.get_mut(&B).unwrap().incarnation = 3;
    let mut second = seen(B, 2, down_cleanly());
    if let DataSeen::Present(identity) = &mut second.data {
        identity.incarnation.number = 2;
    }
    assert_eq!(step(&raised, &second), Some(Step::Rewind));
}

#[test]
fn a_member_that_has_left_ends_and_removes_its_volume_and_the_others_are_left_alone() {
    let mut record = record();
    let member = record.members.remove(&B).unwrap();
    record.departed.insert(B, Departed { member, revision: 1, released: None });
    assert_eq!(step(&record, &streams_from_a()), Some(Step::Fence));
    assert_eq!(step(&record, &seen(B, 2, DOWN)), None, "whether others have it all is for the controller to say");
    record.departed.get_mut(&B).unwrap().released = Some(4);
    assert_eq!(step(&record, &seen(B, 2, DOWN)), None, "that was said to a daemon that is gone, maybe long ago");
    record.departed.get_mut(&B).unwrap().released = Some(5);
    assert_eq!(step(&record, &seen(B, 2, DOWN)), Some(Step::RemoveVolume));
    let gone = MemberReport { volume_present: false, ..seen(B, 2, DOWN) };
    assert_eq!(step(&record, &gone), None);
    record.departed.clear();
    assert_eq!(step(&record, &seen(B, 2, DOWN)), None, "who is unknown is not touched");
}

#[test]
fn data_that_was_given_up_outlives_its_membership() {
    let mut record = record();
    let member = record.members.remove(&B).unwrap();
    record.departed.insert(B, Departed { member, revision: 1, released: Some(5) });
    let given_up = ClusterRecord { forced: vec![gave_up(B)], ..record.clone() };
    // Its own, as its node brings it back; and what is kept beside a copy.
    assert_eq!(step(&given_up, &streams_from_a()), Some(Step::Fence));
    assert_eq!(step(&given_up, &seen(B, 2, DOWN)), None);
    let beside = MemberReport { kept: [1].into(), ..seen(B, 2, DOWN) };
    assert_eq!(step(&record, &beside), None);
    let foreign = MemberReport { data: DataSeen::Foreign { why: "another's".into() }, ..seen(B, 2, DOWN) };
    assert_eq!((step(&record, &foreign), codes(&record, &foreign)), (None, vec!["foreign_data".to_string()]));
    // Nor before those who are left are known to have it all.
    let reason = EpochReason::RecordBehind;
    let open = Leadership::Electing { reason, preferred: None };
    assert_eq!(step(&ClusterRecord { leadership: open, ..record.clone() }, &seen(B, 2, DOWN)), None);
    // Once a person has removed it the rest goes.
    let lost = MemberReport { data: DataSeen::Lost { incarnation: life(B, 1) }, ..seen(B, 2, DOWN) };
    assert_eq!(step(&given_up, &lost), Some(Step::RemoveVolume));
    // Whoever deletes the cluster wants nothing of it.
    let lifecycle = Lifecycle::Deleting { operation: OperationId::from_u128(1) };
    assert_eq!(step(&ClusterRecord { lifecycle, ..given_up }, &seen(B, 2, DOWN)), Some(Step::RemoveVolume));
}

#[test]
fn a_leader_that_acknowledges_alone_admits_nobody_before_its_lease_counts() {
    let mut record = record();
    record.configs[0].sync_set = SyncSet::default();
    let seen = |lease: Option<u64>, admitted: &[MemberId]| {
        let primary = PrimarySeen { sync_set: Some(SyncSet::default()), admitted: others(admitted), ..primary_seen() };
        let lease = lease.map(|remaining_ms| LeaseSeen { remaining_ms });
        MemberReport { lease, ..seen(A, 2, PostgresSeen::Primary(primary)) }
    };
    assert_eq!(step(&record, &seen(None, &[])), None);
    assert_eq!(step(&record, &seen(Some(9000), &[])), Some(Step::UpdateSyncSet));
    // Fewer are always fine.
    record.members.remove(&C);
    assert_eq!(step(&record, &seen(None, &[B, C])), Some(Step::UpdateSyncSet));
}
