//! How much log a replication slot may keep on a member's volume (`max_slot_wal_keep_size`).
//!
//! The leader's disk comes before any slot: beyond its budget a slot loses its log, the one that is furthest behind first,
//! whosever it is. A member that loses its slot is made anew; a consumer of a logical slot must begin anew.

use pgstead_types::Bytes;

/// What a member's node has measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// On the volume, for Postgres.
    pub free: Bytes,
    /// Log that is there now. Counted to the room, or a slot that keeps more would lower its own budget.
    pub log: Bytes,
}

/// Of the room for log and everything else, a slot may have one part in so many. Several clusters may share a file system, and
/// tables grow too.
const SHARE: u64 = 4;
/// Twice `wal_keep_size`, which Postgres keeps in any case: below it no standby could be restarted under load.
const LEAST: Bytes = Bytes(512 << 20);
/// Beyond this a copy is made sooner than so much log is replayed.
const MOST: Bytes = Bytes(64 << 30);

/// The budget to go by from now on. `held` is what it was: a share that changes a little changes nothing, for every change is
/// a reload, and a lower budget may cost a slot.
pub fn calc_wal_budget(space: Space, held: Bytes) -> Bytes {
    let share = Bytes(space.free.0.saturating_add(space.log.0) / SHARE).clamp(LEAST, MOST);
    let fits = share.0 >= held.0 / 4 * 3 && share.0 < held.0.saturating_mul(2);
    if fits { held } else { step_below(share) }
}

/// The next lower of 1, 1.5, 2, 3, 4, 6... so that what is set anew lies well within what then stays.
fn step_below(bytes: Bytes) -> Bytes {
    let power = 1u64 << bytes.0.max(1).ilog2();
    let between = power + power / 2;
    Bytes(if bytes.0 >= between { between } else { power })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn of(free_gib: u64, log_gib: u64, held_gib: u64) -> u64 {
        let space = Space { free: Bytes(free_gib * GIB), log: Bytes(log_gib * GIB) };
        calc_wal_budget(space, Bytes(held_gib * GIB)).0
    }

    #[test]
    fn a_quarter_of_the_room_rounded_down() {
        assert_eq!(of(100, 1, 4), 24 * GIB);
        assert_eq!(of(20, 0, 1), 4 * GIB);
        assert_eq!(of(0, 0, 4), LEAST.0);
        assert_eq!(of(10_000, 0, 4), MOST.0);
    }

    #[test]
    fn log_that_a_slot_keeps_does_not_lower_its_own_budget() {
        assert_eq!(of(96, 4, 4), of(76, 24, 4));
    }

    #[test]
    fn a_small_change_of_the_room_changes_nothing_and_a_large_one_does() {
        assert_eq!(of(80, 0, 24), 24 * GIB);
        assert_eq!(of(160, 0, 24), 24 * GIB);
        assert_eq!(of(60, 0, 24), 12 * GIB);
        assert_eq!(of(200, 0, 24), 48 * GIB);
    }

    #[test]
    fn what_is_set_stays_when_it_is_calculated_again_and_is_within_the_room() {
        for free in (0..400_000).step_by(997) {
            let space = Space { free: Bytes(free << 20), log: Bytes(256 << 20) };
            let first = calc_wal_budget(space, Bytes(u64::MAX));
            assert_eq!(calc_wal_budget(space, first), first, "{free}");
            // A tenth more or less of the room, from where it was set, is no reason to change it.
            for other in [free * 9 / 10, free * 11 / 10] {
                let space = Space { free: Bytes(other << 20), log: Bytes(256 << 20) };
                assert_eq!(calc_wal_budget(space, first), first, "{free} {other}");
            }
        }
    }
}
