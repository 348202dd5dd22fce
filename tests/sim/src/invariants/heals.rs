//! Faults off: every cluster returns to its spec in bounded time, and deciding again changes nothing.

use super::lost_rows;
use crate::machine::SyncNames;
use crate::world::{World, member_id};
use pgstead_types::record::Leadership;
use pgstead_types::report::ClientAccess;

/// Why the cluster is not what its spec says; `None` when it is.
pub fn unsettled(world: &World) -> Option<String> {
    let Some(cluster) = world.cluster() else { return Some("the cluster is not recorded".into()) };
    let Leadership::Confirmed { .. } = cluster.leadership else {
        return Some(format!("epoch {} is {:?}", cluster.epoch, cluster.leadership));
    };
    if cluster.switchover.is_some() || cluster.restart.is_some() || cluster.creating.is_some() {
        return Some("an operation is under way".into());
    }
    let leader = world.leader()?;
    let Some(run) = world.machines[leader].run.as_ref().filter(|run| run.is_primary() && run.postmaster) else {
        return Some(format!("app-{} is recorded as leader and is no primary", leader + 1));
    };
    if run.access != ClientAccess::Open {
        return Some("clients are held".into());
    }
    let Some(config) = cluster.config() else { return Some("no configuration".into()) };
    let loaded = match &run.sync {
        SyncNames::Set(set) => set == &config.sync_set,
        SyncNames::Alone => config.sync_set.needed == 0,
        SyncNames::Nobody => false,
    };
    if !loaded || !run.sync_before.is_empty() {
        return Some("the sync set in Postgres is not the recorded one".into());
    }
    let kind_is_wanted = config.asynchronous == cluster.spec.is_asynchronous();
    let count_is_wanted = config.target.is_none() && config.sync_set.needed == cluster.spec.needed();
    if !kind_is_wanted || !count_is_wanted || cluster.updating.is_some() {
        return Some("the sync set is not what the spec asks for".into());
    }
    let waits_for_nobody = |n: &usize| !world.is_kept_for_a_person(*n);
    let departed = (0..world.machines.len()).filter(|n| cluster.departed.contains_key(&member_id(*n)));
    if cluster.members.len() != usize::from(cluster.spec.members) || departed.filter(waits_for_nobody).count() > 0 {
        return Some("there are not as many members as the spec asks for".into());
    }
    if let Some(n) = world.left_overs().into_iter().find(waits_for_nobody) {
        return Some(format!("n{} still has something of a member", n + 1));
    }
    for n in world.member_machines().into_iter().filter(|n| *n != leader) {
        let Some(member) = cluster.members.get(&member_id(n)) else { return Some("a member is missing".into()) };
        let relay = cluster.relay_of(member.id);
        if relay.is_none() && !config.asynchronous && !config.sync_set.members.contains(&member.current()) {
            return Some(format!("app-{} does not count in the sync set", n + 1));
        }
        let source = relay.and_then(|relay| (0..world.members).find(|n| member_id(*n) == relay)).unwrap_or(leader);
        let Some(run) = world.machines[source].run.as_ref() else { return Some("a relay is down".into()) };
        // By both ends: a sender whose other end lost its power goes on until its timeout.
        let receiver = world.machines[n].run.as_ref().and_then(|run| run.receiver.as_ref());
        let sender = receiver.and_then(|receiver| run.senders.get(&receiver.connection));
        let streams = sender.is_some_and(|sender| sender.incarnation == member.current() && sender.streaming);
        if !streams {
            return Some(format!("app-{} does not stream", n + 1));
        }
    }
    crate::cascade::unsettled(world, leader)
}

/// After the last fault: everything acknowledged is on every member, nobody holds what the leader does not, and there is
/// nothing left to decide.
pub fn final_state(world: &mut World) -> Result<(), String> {
    if let Some(why) = unsettled(world) {
        return Err(format!("it did not heal: {why}; findings: {:?}", world.findings));
    }
    let Some(leader) = world.leader() else { return Err("nobody leads".into()) };
    for n in world.member_machines() {
        let lost = lost_rows(world, n);
        if !lost.is_empty() {
            return Err(format!("app-{} lacks the acknowledged rows {lost:?}", n + 1));
        }
        let (Some(data), Some(leads)) = (world.machines[n].data(), world.machines[leader].data()) else {
            return Err(format!("app-{} has no data", n + 1));
        };
        if !leads.wal.begins_with(&data.wal, data.wal.len()) {
            return Err(format!("app-{} holds what its leader does not", n + 1));
        }
    }
    if world.plan_is_empty() == Some(false) {
        return Err(format!("there is still something to decide in a settled world: {:?}", world.findings));
    }
    Ok(())
}
