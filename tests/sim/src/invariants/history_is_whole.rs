//! The recorded history is that of the leader's log, and no abandoned log leads: every timeline that it went through is noted, also those of
//! promotions whose leader ended before anybody knew, and what it has beside the last confirmed leader's log is on newer
//! timelines only.

use crate::world::World;
use pgstead_types::record::Leadership;

pub fn check(world: &mut World) -> Result<(), String> {
    let Some(cluster) = world.cluster() else { return Ok(()) };
    let epoch = cluster.epoch;
    if !matches!(cluster.leadership, Leadership::Confirmed { .. }) {
        return Ok(());
    }
    // Only a person has one lead whose log had left the history: such a timeline may be forgotten.
    let forced = !cluster.forced.is_empty();
    let noted = |timeline: &u32| cluster.history.iter().any(|entry| entry.timeline.0 == *timeline);
    let Some(data) = world.leader().and_then(|n| world.machines[n].data()) else { return Ok(()) };
    // The log of `initdb` is on 1, which nobody was promoted to.
    let unknown = data.wal.timelines().into_iter().filter(|timeline| *timeline > 1).find(|timeline| !noted(timeline));
    if let (Some(timeline), false) = (unknown, forced) {
        return Err(format!("the leader's log went through timeline {timeline}, and the history lacks it"));
    }
    let now = data.wal.first(data.flushed);
    match world.checks.confirmed_log.as_ref().filter(|(of, _)| *of < epoch) {
        Some((of, before)) if !forced => {
            let newest = before.timeline(before.len());
            let same = before.records().iter().zip(now.records()).take_while(|(a, b)| a == b).count();
            let beside = now.records()[same..].iter().find(|record| record.timeline <= newest && same < before.len());
            if let Some(record) = beside {
                return Err(format!(
                    "epoch {epoch} is led with a log on timeline {} that had left the history before epoch {of}, on timeline {newest}",
                    record.timeline
                ));
            }
        }
        Some(_) => {}
        None if world.checks.confirmed_log.is_some() => return Ok(()),
        None => {}
    }
    world.checks.confirmed_log = Some((epoch, now));
    Ok(())
}
