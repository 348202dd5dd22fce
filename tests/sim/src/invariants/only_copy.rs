//! There is always a complete data folder with every acknowledged row, in place or kept aside. Not where a leader acknowledges
//! alone.

use crate::world::World;
use pgstead_types::record::Lifecycle;

pub fn check(world: &mut World) -> Result<(), String> {
    if world.cluster().is_none_or(|cluster| cluster.lifecycle != Lifecycle::Active) {
        return Ok(()); // Nobody wants it any more.
    }
    if world.asynchronous {
        return Ok(()); // What a leader acknowledges alone is on one disk, and its loss is the spec's choice.
    }
    let mut wanted = vec![false; world.row as usize + 1];
    let mut count = 0;
    for row in world.acknowledged_rows().filter(|row| !world.checks.forgiven.contains(row)) {
        wanted[row as usize] = true;
        count += 1;
    }
    let folders = world.machines.iter().flat_map(|machine| [&machine.disk.data, &machine.disk.aside]).flatten();
    let has_all = |data: &crate::machine::Data| {
        data.complete && data.wal.rows(data.flushed).filter(|row| wanted[*row as usize]).count() == count
    };
    if count == 0 || folders.into_iter().any(has_all) {
        return Ok(());
    }
    Err(format!("no complete data folder is left with all {count} acknowledged rows"))
}
