//! Members of a cluster that is kept aside let nobody in, by no older record either.

use super::*;
use crate::action::Action;
use pgstead_types::record::Aside;

/// Since revision 8; it is at revision 9.
fn aside() -> ClusterRecord {
    ClusterRecord { revision: 9, aside: Some(Aside { to: ClusterId::from_u128(2), revision: 8 }), ..record() }
}
fn leading(access: ClientAccess, noted: u64) -> MemberReport {
    let mut seen = leads(&[B, C]);
    let PostgresSeen::Primary(primary) = &mut seen.postgres else { unreachable!() };
    primary.access = access;
    seen.set_by = Some(SetBy { epoch: Epoch(2), revision: noted });
    seen
}

#[test]
fn a_leader_lets_its_clients_go_and_notes_by_which_record() {
    let by = Some(SetBy { epoch: Epoch(2), revision: 9 });
    for (access, noted) in [(ClientAccess::Open, 1), (ClientAccess::Open, 8), (ClientAccess::Holding, 7)] {
        let next = decide(&aside(), A, &leading(access, noted)).action;
        assert_eq!(next, Some(Action::HoldClients { by }), "{access:?}, noted {noted}");
    }
    assert_eq!(step(&aside(), &leading(ClientAccess::Holding, 8)), None);
    // Back in its place.
    let back = ClusterRecord { revision: 10, aside: None, ..aside() };
    assert_eq!(step(&back, &leading(ClientAccess::Holding, 9)), Some(Step::OpenClients));
}

#[test]
fn a_record_from_before_lets_nobody_in_again() {
    let before = ClusterRecord { revision: 7, ..record() };
    let seen = leading(ClientAccess::Holding, 9);
    assert_eq!((step(&before, &seen), codes(&before, &seen)), (None, vec!["stale_order".to_string()]));
}

#[test]
fn a_standby_is_not_read_from_either() {
    let mut open = streams_from_a();
    assert_eq!(step(&aside(), &open), Some(Step::HoldClients));
    let PostgresSeen::Standby(standby) = &mut open.postgres else { unreachable!() };
    standby.access = ClientAccess::Holding;
    assert_eq!(step(&aside(), &open), None);
    assert_eq!(step(&record(), &open), Some(Step::OpenClients));
    let down = decide(&aside(), B, &seen(B, 2, DOWN)).action;
    let access = ClientAccess::Holding;
    assert_eq!(down, Some(Action::StartStandby { access, alone: false, restarts: 0 }));
}
