//! At most one member per epoch is ever told to lead; epochs only grow; no timeline number is given or made twice.

use super::Checks;
use crate::world::World;
use std::collections::BTreeSet;

pub fn check(world: &mut World) -> Result<(), String> {
    let Some(cluster) = world.cluster().cloned() else { return Ok(()) };
    let checks = &mut world.checks;
    if cluster.epoch < checks.last_epoch {
        return Err(format!("the epoch went back from {} to {}", checks.last_epoch, cluster.epoch));
    }
    checks.last_epoch = cluster.epoch;
    if let Some(leader) = cluster.leadership.leader() {
        let known = *checks.leaders.entry(cluster.epoch).or_insert(leader);
        if known != leader {
            return Err(format!("epoch {} has two leaders", cluster.epoch));
        }
    }
    let numbers: Vec<u32> = cluster.history.iter().map(|entry| entry.timeline.0).collect();
    if numbers.iter().collect::<BTreeSet<_>>().len() != numbers.len() {
        return Err(format!("a timeline is twice in the history: {numbers:?}"));
    }
    Ok(())
}

impl Checks {
    /// A Postgres has left recovery on `timeline`.
    pub fn promoted(&mut self, member: usize, timeline: u32) {
        if let Some(other) = self.timelines.insert(timeline, member) {
            self.break_rule(format!(
                "timeline {timeline} was made by app-{} and again by app-{}",
                other + 1,
                member + 1
            ));
        }
    }
}
