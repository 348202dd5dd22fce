//! A member that has answered a promise has no receiver of an older epoch, whatever its node remembers of that.

use crate::world::World;

pub fn check(world: &mut World) -> Result<(), String> {
    for (n, machine) in world.machines.iter().enumerate() {
        let receiver = machine.run.as_ref().and_then(|run| run.receiver.as_ref());
        if let Some(receiver) = receiver.filter(|receiver| receiver.upstream.epoch < machine.answered) {
            return Err(format!(
                "app-{} has promised epoch {} and streams in epoch {}",
                n + 1,
                machine.answered,
                receiver.upstream.epoch
            ));
        }
    }
    Ok(())
}
