//! A node's score: four terms between 0 and 1000, of what it has told. What it has not told speaks neither for it nor against it.

use super::facts::NodeFacts;
use pgstead_types::placement::{Load, Terms};
use std::time::Duration;

const FULL: u64 = 1000;
/// Within a region round trips differ by what hosts have to do at that moment: below this they say nothing. Between regions they are ten
/// times as long.
const NEAR: Duration = Duration::from_millis(5);
/// Less free room than this makes no difference, per mille: what one look finds, the next one does not.
const STEP: u64 = 50;
/// Of a pool that nobody has looked at yet.
const UNKNOWN_FREE: u64 = 500;
/// What an error about the node costs, and a warning, or a member that is not well.
const ERROR: u64 = 500;
const WARNING: u64 = 250;
/// A node with so many members has half of what it can do to do. No node says how large it is; this is so that the first members make
/// the most difference.
const HALF_BUSY: u64 = 4;

pub(super) fn terms(seen: &NodeFacts, class: Option<&str>, load: Load) -> Terms {
    let pool = seen.storage.as_ref().and_then(|storage| storage.pool_for(class));
    let free = pool.and_then(|pool| free(pool.free.0, pool.used.0));
    Terms {
        latency: permille(seen.round_trip.map_or(FULL, latency)),
        free: permille(free.unwrap_or(UNKNOWN_FREE)),
        health: permille(health(seen)),
        idle: permille(FULL - share(free, load)),
    }
}

/// Of what is near all, of what is twice as far half.
fn latency(round_trip: Duration) -> u64 {
    let far = round_trip.max(NEAR).as_micros();
    u64::try_from(u128::from(FULL) * NEAR.as_micros() / far).unwrap_or(0)
}

/// Of what volumes can have: a file system reserves some for root, which is neither used nor free.
fn free(free: u64, used: u64) -> Option<u64> {
    let share = (u128::from(free) * u128::from(FULL)).checked_div(u128::from(free) + u128::from(used))?;
    let share = u64::try_from(share).unwrap_or(FULL).min(FULL);
    Some(share / STEP * STEP)
}

fn health(seen: &NodeFacts) -> u64 {
    let count = |found: usize| u64::try_from(found).unwrap_or(u64::MAX);
    let lost = count(seen.errors).saturating_mul(ERROR);
    let lost = lost.saturating_add(count(seen.warnings).saturating_add(count(seen.troubled)).saturating_mul(WARNING));
    FULL.saturating_sub(lost)
}

/// How much of the node is taken: three parts by what it has least of left, room or members, and one by the other, so that nodes that are
/// equally full take turns.
fn share(free: Option<u64>, load: Load) -> u64 {
    // A leader does the work of two.
    let busy = u64::try_from(load.members.saturating_add(load.leaders)).unwrap_or(u64::MAX / FULL).min(u64::MAX / FULL);
    let members = busy * FULL / (busy + HALF_BUSY);
    let Some(disk) = free.map(|free| FULL - free) else { return members };
    (3 * disk.max(members) + disk.min(members)) / 4
}

fn permille(term: u64) -> u16 {
    u16::try_from(term.min(FULL)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_types::Bytes;
    use pgstead_types::storage::{CLASS_DEFAULT, PoolSeen, PoolState, StorageSeen};

    fn seen(free: u64) -> NodeFacts {
        let pool = PoolSeen {
            name: "p".into(),
            driver: "dir".into(),
            class: CLASS_DEFAULT.into(),
            total: Bytes(1000),
            used: Bytes(1000 - free),
            free: Bytes(free),
            metadata_used: None,
            ballast: Bytes(0),
            state: PoolState::Fine,
        };
        let storage = StorageSeen { pool, others: Vec::new(), orphans: Vec::new(), snapshots: Vec::new() };
        NodeFacts { reachable: true, storage: Some(storage), ..NodeFacts::default() }
    }

    #[test]
    fn every_term_is_all_for_a_node_that_is_near_empty_well_and_idle() {
        let best = Terms { latency: 1000, free: 1000, health: 1000, idle: 1000 };
        assert_eq!(terms(&seen(1000), None, Load::default()), best);
    }

    #[test]
    fn latency_halves_with_twice_the_way_and_what_is_near_is_alike() {
        let of = |ms| latency(Duration::from_millis(ms));
        assert_eq!((of(0), of(5), of(10), of(50), of(5_000)), (1000, 1000, 500, 100, 1));
        assert_eq!(latency(Duration::MAX), 0);
    }

    #[test]
    fn free_room_counts_in_steps_and_a_pool_without_size_says_nothing() {
        assert_eq!((free(549, 451), free(551, 449), free(0, 0)), (Some(500), Some(550), None));
        assert_eq!((free(u64::MAX, 0), free(1, u64::MAX)), (Some(1000), Some(0)));
    }

    #[test]
    fn health_falls_with_what_is_found_and_not_below_nothing() {
        let found = |errors, warnings, troubled| health(&NodeFacts { errors, warnings, troubled, ..seen(0) });
        assert_eq!((found(0, 0, 0), found(1, 0, 0), found(0, 1, 1), found(9, 9, 9)), (1000, 500, 500, 0));
        assert_eq!(found(usize::MAX, usize::MAX, 1), 0);
    }

    #[test]
    fn a_member_more_is_always_worse_also_where_the_disk_is_what_is_short() {
        for free in [Some(200), Some(900), None] {
            let shares = (0..20).map(|members| share(free, Load { members, leaders: 0 }));
            assert!(shares.is_sorted_by(|fewer, more| fewer < more), "{free:?}");
        }
        assert!(share(Some(500), Load { members: usize::MAX, leaders: 1 }) <= 1000);
    }
}
