//! One standby feeds another: what each of the three does, and when it ends.

use crate::action::Action;
use crate::decide::decide;
use crate::decide::tests::{A, B, C, FORK, alone, at, leads, life, others, primary_seen, seen, standby, step};
use crate::lease::{may_refuse, refusals_needed};
use pgstead_types::lease::LeaseTimes;
use pgstead_types::record::{ClusterRecord, EpochReason, Leadership, SyncSet};
use pgstead_types::report::{LeaseSeen, MemberReport, PostgresSeen, PrimarySeen, StandbySeen, Unfinished, Upstream};
use pgstead_types::spec::Cascade;
use pgstead_types::{Epoch, MemberId, Step};

/// C streams from B.
fn cascaded() -> ClusterRecord {
    let mut record = alone();
    record.spec.cascade = Cascade::Zone;
    record.upstreams = [(life(C, 1), life(B, 1))].into();
    record
}
fn told(member: MemberId, upstream: Upstream, relays_to: &[MemberId]) -> MemberReport {
    let mut report = seen(member, upstream.epoch.0, standby(Some((A, 2)), Some(at(3, 900))));
    if let PostgresSeen::Standby(standby) = &mut report.postgres {
        standby.upstream = Some(upstream);
        standby.relays_to = others(relays_to);
        standby.slots = others(relays_to);
    }
    report
}
const FROM_A: Upstream = Upstream { leader: A, epoch: Epoch(2), relay: None };
const FROM_B: Upstream = Upstream { leader: A, epoch: Epoch(2), relay: Some(B) };

#[test]
fn a_member_changes_its_upstream_by_cutting_the_old_one_first() {
    assert_eq!(step(&cascaded(), &told(C, FROM_A, &[])), Some(Step::CutUpstream));
    let mut report = seen(C, 2, standby(None, Some(at(3, 900))));
    assert_eq!(decide(&cascaded(), C, &report).action, Some(Action::Follow { of: FROM_B }));
    assert_eq!(step(&cascaded(), &told(C, FROM_B, &[])), None, "settled");
    // The order is taken back.
    assert_eq!(step(&alone(), &told(C, FROM_B, &[])), Some(Step::CutUpstream));
    assert_eq!(decide(&alone(), C, &report).action, Some(Action::Follow { of: FROM_A }));
    // Diverged from the leader's history it streams from nobody.
    report.postgres = standby(None, Some(at(2, FORK + 1)));
    assert_eq!(decide(&cascaded(), C, &report).action, None);
}

#[test]
fn a_relay_admits_whom_the_record_names_while_it_streams_from_the_leader_itself() {
    let relay = |admitted: &[MemberId]| Action::Relay { epoch: Epoch(2), admitted: others(admitted) };
    assert_eq!(decide(&cascaded(), B, &told(B, FROM_A, &[])).action, Some(relay(&[C])));
    assert_eq!(step(&cascaded(), &told(B, FROM_A, &[C])), None, "settled");
    assert_eq!(decide(&alone(), B, &told(B, FROM_A, &[C])).action, Some(relay(&[])));
    let lost = seen(B, 2, standby(None, Some(at(3, 900))));
    assert_eq!(step(&cascaded(), &lost), Some(Step::Follow), "what it has to pass on comes first");
}

#[test]
fn what_was_cut_half_way_is_cut_again_also_where_the_order_is_taken_back() {
    let with = |unfinished: Unfinished, mut report: MemberReport| {
        if let PostgresSeen::Standby(standby) = &mut report.postgres {
            standby.unfinished = Some(unfinished);
        }
        report
    };
    // It was to be fed by B, has begun to let go of A, and is sent back.
    for receives in [true, false] {
        let mut report = with(Unfinished::Cut, told(C, FROM_A, &[]));
        if let PostgresSeen::Standby(standby) = &mut report.postgres {
            standby.receiver = standby.receiver.filter(|_| receives);
        }
        assert_eq!(decide(&alone(), C, &report).action, Some(Action::CutUpstream), "receives: {receives}");
    }
    let begun = with(Unfinished::Follow, told(C, FROM_B, &[]));
    assert_eq!(decide(&cascaded(), C, &begun).action, Some(Action::Follow { of: FROM_B }));
    assert_eq!(decide(&alone(), C, &begun).action, Some(Action::CutUpstream), "another order meanwhile");
}

#[test]
fn what_a_relay_has_begun_to_admit_and_the_slots_that_it_lacks_are_looked_at_again() {
    let relay = |admitted: &[MemberId]| Some(Action::Relay { epoch: Epoch(2), admitted: others(admitted) });
    let with = |relays_to: &[MemberId], change: fn(&mut StandbySeen)| {
        let mut report = told(B, FROM_A, relays_to);
        if let PostgresSeen::Standby(standby) = &mut report.postgres {
            change(standby);
        }
        report
    };
    // Written and not loaded: C is refused.
    let half = with(&[C], |standby| standby.unfinished = Some(Unfinished::Relay));
    assert_eq!(decide(&cascaded(), B, &half).action, relay(&[C]));
    // It keeps slots for everybody in case it is to lead; one that is lost to the budget is made anew.
    let kept = with(&[], |standby| standby.slots = others(&[A, C]));
    assert_eq!(decide(&alone(), B, &kept).action, None);
    let lost = with(&[C], |standby| standby.slots.clear());
    assert_eq!(decide(&cascaded(), B, &lost).action, relay(&[C]));
}

#[test]
fn a_newer_epoch_ends_what_a_relay_passes_on_and_what_is_fed() {
    let mut open = ClusterRecord { upstreams: cascaded().upstreams, ..alone() };
    open.epoch = Epoch(3);
    open.leadership = Leadership::Electing { reason: EpochReason::PostgresEnded, preferred: None };
    for report in [told(B, FROM_A, &[C]), told(C, FROM_B, &[])] {
        assert_eq!(step(&open, &report), Some(Step::SavePromise));
        let promised = MemberReport { promised: Epoch(3), ..report };
        assert_eq!(step(&open, &promised), Some(Step::CutUpstream));
    }
}

#[test]
fn a_leader_keeps_no_log_for_a_member_that_another_one_feeds() {
    let mut primary = PrimarySeen {
        sync_set: Some(SyncSet::default()),
        admitted: others(&[B]),
        slots: others(&[B]),
        ..primary_seen()
    };
    let with = |primary: &PrimarySeen| {
        let mut report = seen(A, 2, PostgresSeen::Primary(primary.clone()));
        report.lease = Some(LeaseSeen { remaining_ms: 9000 });
        decide(&cascaded(), A, &report).action
    };
    assert_eq!(with(&primary), None, "settled");
    primary.slots = others(&[B, C]);
    match with(&primary) {
        Some(Action::UpdateSyncSet { admitted, .. }) => assert_eq!(admitted, others(&[B])),
        other => panic!("the slot stays: {other:?}"),
    }
}

#[test]
fn a_fed_member_refuses_elections_for_the_leader_of_its_epoch() {
    let asked = refusals_needed(&cascaded(), &leads(&[B])).unwrap();
    assert_eq!((asked.ask.clone(), asked.enough), ([B, C].into(), 2));
    let asked = asked.request(&cascaded(), C, LeaseTimes::default());
    assert_eq!(may_refuse(Some(&cascaded()), &told(C, FROM_B, &[]), &asked), Ok(()));
    let older = Upstream { epoch: Epoch(1), ..FROM_B };
    let mut report = told(C, older, &[]);
    report.promised = Epoch(2);
    assert!(may_refuse(Some(&cascaded()), &report, &asked).is_err());
}
