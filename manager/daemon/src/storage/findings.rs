//! What a look at the pool is worth telling a person.

use pgstead_types::Finding;
use pgstead_types::storage::{OrphanState, PoolSeen, PoolState, StorageSeen};

pub fn findings(seen: &StorageSeen) -> Vec<Finding> {
    let PoolSeen { name, state, ballast, .. } = &seen.pool;
    let at_once = match ballast.0 {
        0 => String::new(),
        _ => format!("; `pgstead pool ballast release {name}` on that host gives it {ballast} more at once"),
    };
    let pool = match state {
        PoolState::Fine => None,
        PoolState::NearlyFull { why } => Some(Finding::warning(
            "pool_nearly_full",
            format!("the pool {name} takes no new volume: {why}; add disks to it, or remove what is not needed"),
        )),
        PoolState::Full { why } => Some(Finding::error(
            "pool_full",
            format!(
                "the pool {name} has little room left: {why}; clusters that are led from here have moved, or take no writes until there \
                 is room: remove snapshots or forks, or add a disk{at_once}"
            ),
        )),
        PoolState::Brimming { why } => Some(Finding::error(
            "pool_full",
            format!(
                "the pool {name} is about to fail the writes of everything on it: {why}; clusters that are led from here take no clients \
                 until there is room: remove snapshots or forks, or add a disk, now{at_once}"
            ),
        )),
        PoolState::Unwell { why } => {
            Some(Finding::error("pool_unwell", format!("the pool {name} is not well: {why}; look at its disks")))
        }
    };
    let orphans = seen.orphans.iter().filter_map(|orphan| match &orphan.state {
        OrphanState::Whole { cluster, member, .. } => Some(Finding::warning(
            "orphaned_volume",
            format!(
                "volume {} at {} was of member {member} of cluster {cluster}, whom the record does not have here; it is kept \
                 until a person removes it: pgstead volume remove {}",
                orphan.id, orphan.path, orphan.id
            ),
        )),
        OrphanState::Unreadable { why } => Some(Finding::warning(
            "unreadable_volume",
            format!("volume {} at {} cannot be read as one ({why}) and no member has it; look at it there", orphan.id, orphan.path),
        )),
        OrphanState::SetAside { .. } => None,
    });
    pool.into_iter().chain(orphans).collect()
}
