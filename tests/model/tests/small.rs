//! Small clusters whole, and a course that must be found: a check that cannot fail checks nothing.

use pgstead_model::search::{Found, search};
use pgstead_model::state::Bounds;

/// A search in a test ends here; what is larger is for `make model`.
const STATES_MAX: usize = 2_000_000;

fn holds(bounds: Bounds) -> Found {
    let found = search(&bounds, STATES_MAX);
    let Found { states, complete, broken, confirmed_later, .. } = &found;
    println!("{bounds:?}: {states} states, {} changes of the set settled", found.settled);
    assert!(broken.is_none(), "{broken:#?}");
    assert!(*complete, "more than {states} states");
    assert!(*confirmed_later > 0, "no later epoch is ever confirmed: the model is stuck");
    found
}

#[test]
fn two_members_hold_through_three_epochs() {
    holds(Bounds { members: 2, needed: 1, epochs: 3, rows: 1, crashes: 0, losses: 1, disks_lie: false });
}

#[test]
fn three_members_hold_through_two_epochs() {
    let found = holds(Bounds { members: 3, needed: 1, epochs: 2, rows: 1, crashes: 0, losses: 0, disks_lie: false });
    assert!(found.settled > 0, "the set is never changed under its leader");
}

#[test]
fn a_disk_that_lies_is_found_to_lose_a_row() {
    let bounds = Bounds { members: 3, needed: 1, epochs: 2, rows: 1, crashes: 1, losses: 0, disks_lie: true };
    let found = search(&bounds, STATES_MAX);
    let (why, course) = found.broken.expect("a row that was acknowledged and not kept is lost");
    assert!(why.contains("lacks the acknowledged rows"), "{why}: {course:#?}");
}
