//! The recorded history is that of the leader's log: every timeline that it went through is there, also those of promotions whose
//! leader ended before anybody had noted them.

use crate::world::World;
use pgstead_types::record::Leadership;

pub fn check(world: &mut World) -> Result<(), String> {
    let Some(cluster) = world.cluster() else { return Ok(()) };
    // Only a person has one lead whose log had left the history: such a timeline may be forgotten.
    if !matches!(cluster.leadership, Leadership::Confirmed { .. }) || !cluster.forced.is_empty() {
        return Ok(());
    }
    let Some(data) = world.leader().and_then(|n| world.machines[n].data()) else { return Ok(()) };
    let noted = |timeline: &u32| cluster.history.iter().any(|entry| entry.timeline.0 == *timeline);
    // The log of `initdb` is on 1, which nobody was promoted to.
    match data.wal.timelines().into_iter().filter(|timeline| *timeline > 1).find(|timeline| !noted(timeline)) {
        None => Ok(()),
        Some(timeline) => Err(format!("the leader's log went through timeline {timeline}, and the history lacks it")),
    }
}
