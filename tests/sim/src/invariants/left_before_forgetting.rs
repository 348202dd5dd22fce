//! In a confirmed epoch every life that counts is its member's present one: data that is made anew was in no set.

use crate::world::World;
use pgstead_types::Incarnation;
use pgstead_types::record::{Leadership, Lifecycle};

pub fn check(world: &World) -> Result<(), String> {
    // One that is being deleted is wanted by nobody.
    for cluster in world.record.clusters.values().filter(|cluster| cluster.lifecycle == Lifecycle::Active) {
        let (Leadership::Confirmed { .. }, Some(config)) = (&cluster.leadership, cluster.config()) else { continue };
        let is_forgotten = |life: &&Incarnation| {
            cluster.members.get(&life.member).is_none_or(|member| member.incarnation > life.number)
        };
        let forgotten = config.sync_set.members.iter().find(is_forgotten);
        if let Some(life) = forgotten {
            return Err(format!("{life} counts in epoch {} and is made anew", config.epoch));
        }
    }
    Ok(())
}
