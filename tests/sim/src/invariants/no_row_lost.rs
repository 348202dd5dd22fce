//! No acknowledged row is ever lost: when an epoch is confirmed, its leader has every row acknowledged before.

use crate::world::World;
use pgstead_types::record::Leadership;

pub fn check(world: &mut World) -> Result<(), String> {
    let Some(cluster) = world.cluster() else { return Ok(()) };
    let epoch = cluster.epoch;
    if !matches!(cluster.leadership, Leadership::Confirmed { .. }) || epoch <= world.checks.confirmed {
        return Ok(());
    }
    world.checks.confirmed = epoch;
    let Some(leader) = world.leader() else { return Ok(()) };
    match lost_rows(world, leader).as_slice() {
        [] => Ok(()),
        rows => Err(format!("epoch {epoch} is confirmed and app-{} lacks the acknowledged rows {rows:?}", leader + 1)),
    }
}

/// Acknowledged rows that a member does not have on its disk.
pub fn lost_rows(world: &World, member: usize) -> Vec<u64> {
    let mut has = vec![false; world.row as usize + 1];
    if let Some(data) = world.machines[member].data() {
        data.wal.rows(data.flushed).for_each(|row| has[row as usize] = true);
    }
    world.acknowledged_rows().filter(|row| !has[*row as usize]).collect()
}
