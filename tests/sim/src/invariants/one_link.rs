//! A standby feeds others only in the epoch in which it streams itself, and never by a chain: nobody is fed by one that is fed.
//! A primary feeds nobody in an older epoch than its own, so that no promotion carries a receiver along that has not been
//! told to follow.

use crate::machine::Mode;
use crate::world::World;

pub fn check(world: &World) -> Result<(), String> {
    for (n, machine) in world.machines.iter().enumerate() {
        let Some(run) = &machine.run else { continue };
        for sender in run.senders.values() {
            let (name, to) = (World::member_name(n), World::member_name(sender.to));
            match run.mode {
                Mode::Primary { .. } if run.serving.is_some_and(|epoch| sender.epoch < epoch) => {
                    return Err(format!("{name} leads in epoch {:?} and feeds {to} in {}", run.serving, sender.epoch));
                }
                Mode::Standby if run.upstream.is_some_and(|upstream| upstream.relay.is_some()) => {
                    return Err(format!("{name} is fed by another standby and feeds {to}"));
                }
                // What its promise ends it ends before it answers.
                Mode::Standby if machine.disk.notes.answer.is_some_and(|answer| answer.epoch > sender.epoch) => {
                    return Err(format!("{name} has answered a promise and feeds {to} in epoch {}", sender.epoch));
                }
                _ => {}
            }
        }
    }
    let Some(cluster) = world.cluster() else { return Ok(()) };
    let chained = cluster.upstreams.values().find(|relay| cluster.upstreams.contains_key(relay));
    match chained {
        Some(relay) => Err(format!("{relay} is recorded to feed a standby and to be fed by one")),
        None => Ok(()),
    }
}
