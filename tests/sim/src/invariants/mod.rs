//! What must hold after every event, one file each. `Checks` keeps what must be remembered to tell.

mod acknowledged_once_confirmed;
mod heals;
mod never_streams_older;
mod no_row_lost;
mod one_leader_per_epoch;
mod only_copy;

use crate::faults::{Fault, Phase};
use crate::world::World;
use pgstead_types::{Epoch, MemberId};
use std::collections::BTreeMap;

pub use heals::{final_state, unsettled};
pub use no_row_lost::lost_rows;

#[derive(Default)]
pub struct Checks {
    broken: Option<String>,
    /// The controller is killed when the record next says this.
    pub trap: Option<Phase>,
    /// The leader's node is killed when the record says this in a later epoch than that.
    pub leader_trap: Option<(Phase, Option<Epoch>)>,
    leaders: BTreeMap<Epoch, MemberId>,
    last_epoch: Epoch,
    /// Which member made which timeline.
    timelines: BTreeMap<u32, usize>,
    confirmed: Epoch,
    acknowledged_in: Epoch,
    revision: u64,
    events: u64,
}

impl Checks {
    pub fn break_rule(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }
}

pub fn check(world: &mut World) -> Result<(), String> {
    world.checks.events += 1;
    if world.record.revision != world.checks.revision {
        world.checks.revision = world.record.revision;
        one_leader_per_epoch::check(world)?;
        no_row_lost::check(world)?;
        spring_trap(world);
    }
    never_streams_older::check(world)?;
    if world.checks.events.is_multiple_of(200) {
        only_copy::check(world)?;
    }
    world.checks.broken.take().map_or(Ok(()), Err)
}

fn spring_trap(world: &mut World) {
    if let (Some((wanted, after)), Some(cluster)) = (world.checks.leader_trap, world.cluster())
        && Phase::of(&cluster.leadership) == wanted
        && Some(cluster.epoch) > after
        && let Some(node) = world.leader()
    {
        world.checks.leader_trap = None;
        world.inflict(Fault::KillNode { node, heard: true });
        let back = world.rng.ms(500, 15_000);
        world.after(back, crate::world::Event::Fault(Fault::StartNode(node)));
    }
    let phase = world.cluster().map(|cluster| Phase::of(&cluster.leadership));
    if world.checks.trap.is_some() && world.checks.trap == phase {
        world.checks.trap = None;
        if let Some(n) = world.controller() {
            world.inflict(Fault::KillDaemon(n));
            let back = world.rng.ms(500, 6000);
            world.after(back, crate::world::Event::Fault(Fault::StartDaemon(n)));
        }
    }
}
