//! No acknowledged row is ever lost: when an epoch is confirmed, its leader has every row acknowledged before. But for
//! what a person has given up by a forced epoch: that is counted, and loss without one is a failure.

use crate::world::World;
use pgstead_types::Epoch;
use pgstead_types::record::Leadership;

pub fn check(world: &mut World) -> Result<(), String> {
    let Some(cluster) = world.cluster() else { return Ok(()) };
    let epoch = cluster.epoch;
    if !matches!(cluster.leadership, Leadership::Confirmed { .. }) || epoch <= world.checks.confirmed {
        return Ok(());
    }
    let before = std::mem::replace(&mut world.checks.confirmed, epoch);
    // Only where a person has forced an epoch since and its election gave data up.
    let forced = cluster_forced(world, before, epoch);
    let Some(leader) = world.leader() else { return Ok(()) };
    if forced {
        let lost = lost_rows(world, leader);
        if !lost.is_empty() {
            world.say(format!("given up  rows {lost:?}, as was accepted"));
            world.count("rows given up by force");
        }
        world.checks.forgiven.extend(lost);
    }
    match lost_rows(world, leader).as_slice() {
        [] => Ok(()),
        rows => Err(format!("epoch {epoch} is confirmed and app-{} lacks the acknowledged rows {rows:?}", leader + 1)),
    }
}

fn cluster_forced(world: &World, before: Epoch, epoch: Epoch) -> bool {
    let forced = world.cluster().map(|cluster| cluster.forced.as_slice()).unwrap_or_default();
    forced.iter().any(|one| one.epoch > before && one.epoch <= epoch && !one.retired.is_empty())
}

/// Acknowledged rows that a member does not have on its disk.
pub fn lost_rows(world: &World, member: usize) -> Vec<u64> {
    let mut has = vec![false; world.row as usize + 1];
    if let Some(data) = world.machines[member].data() {
        data.wal.rows(data.flushed).for_each(|row| has[row as usize] = true);
    }
    let forgiven = &world.checks.forgiven;
    world.acknowledged_rows().filter(|row| !has[*row as usize] && !forgiven.contains(row)).collect()
}
