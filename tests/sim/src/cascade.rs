//! Standbys that feed others: which courses have them, and who is to be fed in the end, computed apart from the controller.

use crate::machine::{Mode, Told};
use crate::rng::Rng;
use crate::world::{World, member_id};
use pgstead_core::Place;
use pgstead_types::record::Record;
use pgstead_types::spec::Cascade;
use pgstead_types::{Epoch, Incarnation, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// Every other node is in the same zone.
pub fn zone(n: usize) -> String {
    format!("z{}", n % 2 + 1)
}

/// Half of the seeds ask for it; it shows where a zone has two standbys more than a commit needs.
pub fn of_seed(seed: u64) -> Cascade {
    if Rng::new(seed ^ 0xCA5C).chance(50) { Cascade::Zone } else { Cascade::None }
}

/// What a controller is told of the nodes.
pub fn places(record: &Record) -> BTreeMap<NodeId, Place> {
    let place = |(id, node): (&NodeId, &pgstead_types::record::NodeRecord)| {
        (*id, Place { region: node.region.clone(), zone: node.zone.clone() })
    };
    record.nodes.iter().map(place).collect()
}

impl World {
    /// A relay admits these in its epoch, and nobody else: written first, then loaded.
    pub fn relay(
        &mut self,
        n: usize,
        step: usize,
        epoch: Epoch,
        admitted: &BTreeSet<Incarnation>,
    ) -> Result<(), String> {
        let Some(run) = self.machines[n].run.as_mut().filter(|run| run.mode == Mode::Standby) else {
            return Err("it is no standby".into());
        };
        let streams = run.wanted.upstream.is_some_and(|upstream| upstream.epoch == epoch && upstream.relay.is_none());
        if !streams && !admitted.is_empty() {
            return Err("it does not stream from the leader of that epoch".into());
        }
        if step == 0 {
            run.slots.extend(admitted);
            let relays = (!admitted.is_empty()).then(|| (epoch, admitted.clone()));
            run.tell(Told { relays, ..run.wanted.clone() });
            return Ok(());
        }
        run.upstream = run.wanted.upstream;
        run.note_told();
        run.relaying = (!admitted.is_empty()).then_some(epoch);
        run.admitted.clone_from(admitted);
        run.slots.clone_from(admitted);
        self.end_senders(n, |sender| admitted.contains(&sender.incarnation) && sender.epoch == epoch);
        Ok(())
    }

    /// Ends the WAL senders that are not to stay.
    pub fn end_senders(&mut self, n: usize, stays: impl Fn(&crate::machine::Sender) -> bool) {
        let Some(run) = self.machines[n].run.as_mut() else { return };
        let ended: Vec<(u64, usize)> =
            run.senders.iter().filter(|(_, sender)| !stays(sender)).map(|(id, sender)| (*id, sender.to)).collect();
        run.senders.retain(|_, sender| stays(sender));
        for (connection, to) in ended {
            let message = crate::postgres::Message::Closed;
            let event = crate::world::Event::Wire { from: n, to, connection, message };
            self.after(std::time::Duration::from_millis(1), event);
        }
    }
}

/// Why those who are fed are not those who should be; `None` when they are.
pub fn unsettled(world: &World, leader: usize) -> Option<String> {
    let cluster = world.cluster()?;
    let members = world.member_machines();
    let standbys = members.len().saturating_sub(1);
    let asynchronous = cluster.config().is_some_and(|config| config.asynchronous);
    let zone_of_leader = zone(leader);
    let others = members.iter().filter(|n| zone(**n) != zone_of_leader).count();
    let spare = match asynchronous {
        true => standbys,
        false => standbys.saturating_sub(usize::from(cluster.spec.needed()) + 1),
    };
    let wanted = match cluster.spec.cascade {
        Cascade::None => 0,
        Cascade::Zone => others.saturating_sub(1).min(spare),
    };
    let fed: Vec<usize> = members.iter().copied().filter(|n| cluster.relay_of(member_id(*n)).is_some()).collect();
    if fed.len() != wanted {
        return Some(format!("{} members are fed by others instead of {wanted}", fed.len()));
    }
    for n in fed {
        let relay =
            cluster.relay_of(member_id(n)).and_then(|relay| members.iter().copied().find(|m| member_id(*m) == relay));
        if relay.is_none_or(|relay| zone(relay) != zone(n) || zone(n) == zone_of_leader) {
            return Some(format!("app-{} is fed from another zone, or in the leader's", n + 1));
        }
    }
    // The leader keeps no log for those whom others feed.
    let run = world.machines[leader].run.as_ref()?;
    let kept = run.slots.iter().find(|life| cluster.relay_of(life.member).is_some());
    kept.map(|life| format!("the leader keeps a slot for {life}, which another standby feeds"))
}
