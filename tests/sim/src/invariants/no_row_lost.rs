//! No acknowledged row is ever lost: when an epoch is confirmed, its leader has every row acknowledged before. But for what a
//! person has given up by a forced epoch, and what the choice after an asynchronous leader leaves behind and says so: loss
//! without one of them is a failure.

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
    let possible_loss =
        world.cluster().and_then(|cluster| cluster.config()).is_some_and(|config| config.possible_loss.is_some());
    if possible_loss {
        give_up(world, leader);
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

/// What the new leader lacks is gone by a loss that is recorded, whether its client has heard of it yet or not.
fn give_up(world: &mut World, leader: usize) {
    let has = rows_of(world, leader);
    let lost = (0..=world.row).filter(|row| !has[*row as usize]);
    let before = world.given_up.len();
    let given_up: Vec<u64> = lost.collect();
    world.given_up.extend(given_up);
    if world.given_up.len() > before {
        world.count("changes of leader that may have lost rows");
    }
}

fn rows_of(world: &World, member: usize) -> Vec<bool> {
    let mut has = vec![false; world.row as usize + 1];
    if let Some(data) = world.machines[member].data() {
        data.wal.rows(data.flushed).for_each(|row| has[row as usize] = true);
    }
    has
}

/// Acknowledged rows that a member does not have on its disk.
pub fn lost_rows(world: &World, member: usize) -> Vec<u64> {
    let has = rows_of(world, member);
    let forgiven = &world.checks.forgiven;
    world.acknowledged_rows().filter(|row| !has[*row as usize] && !forgiven.contains(row)).collect()
}
