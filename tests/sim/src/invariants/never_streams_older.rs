//! A member that has answered a promise has no receiver of an older epoch.

use crate::world::World;

pub fn check(world: &mut World) -> Result<(), String> {
    for (n, machine) in world.machines.iter().enumerate() {
        let Some(answer) = machine.disk.notes.answer else { continue };
        let receiver = machine.run.as_ref().and_then(|run| run.receiver.as_ref());
        if let Some(receiver) = receiver.filter(|receiver| receiver.upstream.epoch < answer.epoch) {
            return Err(format!(
                "app-{} has promised epoch {} and streams in epoch {}",
                n + 1,
                answer.epoch,
                receiver.upstream.epoch
            ));
        }
    }
    Ok(())
}
