//! Log that only another promiser holds: when it is fetched, and when not any more.

use crate::action::Action;
use crate::decide::decide;
use crate::decide::tests::{A, B, C, alone, at, life, seen, standby, step};
use pgstead_types::record::{ClusterRecord, EpochReason, Leadership, LogFetch};
use pgstead_types::report::{MemberReport, PostgresSeen};
use pgstead_types::{Epoch, Step};

/// Epoch 3 is open, and C is to fetch what B holds.
fn fetching() -> ClusterRecord {
    let mut open = alone();
    open.epoch = Epoch(3);
    open.leadership = Leadership::Electing { reason: EpochReason::NodeLost, preferred: None };
    open.fetch = Some(LogFetch { epoch: Epoch(3), from: life(B, 1), to: life(C, 1), upto: at(3, 900) });
    open
}
fn fetch() -> Option<Action> {
    Some(Action::FetchLog { epoch: Epoch(3), from: B, upto: at(3, 900) })
}

#[test]
fn a_promiser_fetches_what_the_record_says_it_lacks_once() {
    let with = |record: &ClusterRecord, member, postgres, fetched| {
        let report = MemberReport { fetched, ..seen(member, 3, postgres) };
        decide(record, member, &report).action
    };
    let behind = || standby(None, Some(at(3, 700)));
    assert_eq!(with(&fetching(), C, behind(), None), fetch());
    assert_eq!(with(&fetching(), C, PostgresSeen::Down { clean: None }, None), fetch(), "it was stopped for it");
    assert_eq!(with(&fetching(), C, behind(), Some(Epoch(2))), fetch(), "another epoch's");
    let answers = Some(Action::AnswerPromise { epoch: Epoch(3) });
    assert_eq!(with(&fetching(), C, standby(None, Some(at(3, 900))), None), answers, "it has it");
    assert_eq!(with(&fetching(), C, behind(), Some(Epoch(3))), answers, "it has tried");
    let down = with(&fetching(), C, PostgresSeen::Down { clean: None }, Some(Epoch(3)));
    assert!(matches!(down, Some(Action::StartStandby { .. })), "{down:?}");
    assert_eq!(with(&fetching(), B, behind(), None), answers, "it is not the one");
    let mut anew = fetching();
    anew.members.get_mut(&C).unwrap().incarnation = 2;
    assert_eq!(with(&anew, C, behind(), None), None, "an order for an earlier life");
}

#[test]
fn what_is_fetched_comes_after_the_promise_and_the_cut() {
    let report = seen(C, 2, standby(Some((A, 2)), Some(at(3, 700))));
    assert_eq!(step(&fetching(), &report), Some(Step::SavePromise));
    let report = seen(C, 3, standby(Some((A, 2)), Some(at(3, 700))));
    assert_eq!(step(&fetching(), &report), Some(Step::CutUpstream));
}

#[test]
fn nobody_fetches_when_the_leader_is_chosen() {
    let mut chosen = fetching();
    chosen.leadership = Leadership::Chosen { leader: B };
    let report = seen(C, 3, standby(None, Some(at(3, 700))));
    assert_ne!(step(&chosen, &report), Some(Step::FetchLog));
}
