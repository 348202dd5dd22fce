//! Every acknowledged row is on `k + 1` disks, in a folder that is complete or was set aside: no step of ours makes fewer of
//! them. Where nothing was destroyed or given up, and nobody has asked for another spec.

use crate::world::World;
use pgstead_types::record::Lifecycle;
use pgstead_types::spec::Durability;

/// The record has changed.
pub fn note(world: &mut World) {
    let Some(cluster) = world.cluster() else { return };
    let asked = (cluster.spec.members, cluster.spec.needed(), cluster.spec.durability);
    let given_up = !cluster.forced.is_empty() || cluster.recovering().is_some();
    let first = *world.checks.asked.get_or_insert(asked);
    world.checks.copies_vary |= given_up || first != asked || first.2 != Durability::Strict;
}

pub fn check(world: &mut World) -> Result<(), String> {
    let Some(cluster) = world.cluster().filter(|cluster| cluster.lifecycle == Lifecycle::Active) else { return Ok(()) };
    if world.checks.copies_vary {
        return Ok(());
    }
    let wanted = usize::from(cluster.spec.needed()) + 1;
    let mut copies = vec![0; world.row as usize + 1];
    for machine in &world.machines {
        let mut here = vec![false; copies.len()];
        for data in [&machine.disk.data, &machine.disk.aside].into_iter().flatten().filter(|data| data.complete) {
            data.wal.rows(data.flushed).for_each(|row| here[row as usize] = true);
        }
        here.iter().zip(&mut copies).for_each(|(here, copies)| *copies += usize::from(*here));
    }
    match world.acknowledged_rows().find(|row| copies[*row as usize] < wanted) {
        None => Ok(()),
        Some(row) => {
            Err(format!("row {row} was acknowledged and is on {} disks, expected {wanted}", copies[row as usize]))
        }
    }
}
