//! An asynchronous leader is not replaced before its lease has ended or its guard has said that it is down: when the next
//! one is chosen, no Postgres is left that could acknowledge in its epoch.

use crate::world::{World, member_id};
use pgstead_types::report::ClientAccess;

pub fn check(world: &mut World) -> Result<(), String> {
    let Some(cluster) = world.cluster() else { return Ok(()) };
    let (Some(first), Some(now)) = (cluster.configs.first(), cluster.config()) else { return Ok(()) };
    if !first.asynchronous || first.epoch == now.epoch {
        return Ok(());
    }
    let Some(old) = (0..world.members).find(|n| member_id(*n) == first.leader.member) else { return Ok(()) };
    let Some(run) = &world.machines[old].run else { return Ok(()) };
    let acknowledges = run.is_primary() && run.serving == Some(first.epoch) && run.access == ClientAccess::Open;
    let over = run.lease.is_some_and(|end| world.own(old) >= end);
    if acknowledges && !over {
        return Err(format!(
            "epoch {} has a leader, and app-{} may still acknowledge alone in epoch {}",
            now.epoch,
            old + 1,
            first.epoch
        ));
    }
    Ok(())
}
