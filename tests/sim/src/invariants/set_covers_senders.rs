//! An election by the recorded set meets whoever acknowledges: with `q` promises of the recorded set `S_r`, and `k_p`
//! acknowledgements of the members `S_p` that any WAL sender of the present leader may count, `q + k_p > |S_r ∪ S_p|`.

use crate::machine::SyncNames;
use crate::world::{World, member_id};

pub fn check(world: &World) -> Result<(), String> {
    let Some(cluster) = world.cluster() else { return Ok(()) };
    for (n, machine) in world.machines.iter().enumerate() {
        let Some(run) = machine.run.as_ref().filter(|run| run.is_primary()) else { continue };
        let config = cluster.configs.iter().find(|config| Some(config.epoch) == run.serving);
        let Some(config) = config.filter(|config| config.leader.member == member_id(n)) else { continue };
        let covered = match run.may_go_by() {
            SyncNames::Nobody => true,
            SyncNames::Alone => config.sync_set.needed == 0,
            SyncNames::Set(loaded) => config.sync_set.covers(&loaded),
        };
        if !covered {
            return Err(format!(
                "an election by {:?} can miss what app-{}'s WAL senders acknowledge by {:?}",
                config.sync_set,
                n + 1,
                run.may_go_by()
            ));
        }
    }
    Ok(())
}
