//! What must hold after every event, one file each. `Checks` keeps what must be remembered to tell.

mod acknowledged_once_confirmed;
mod enough_copies;
mod heals;
mod history_is_whole;
mod lease_before_replacement;
mod left_before_forgetting;
mod never_streams_older;
mod no_row_lost;
mod one_leader_per_epoch;
mod one_link;
mod only_copy;
mod set_covers_senders;

use crate::wal::Wal;
use crate::world::World;
use pgstead_types::spec::Durability;
use pgstead_types::{Epoch, MemberId};
use std::collections::{BTreeMap, BTreeSet};

pub use heals::{final_state, unsettled};
pub use no_row_lost::lost_rows;

#[derive(Default)]
pub struct Checks {
    broken: Option<String>,
    leaders: BTreeMap<Epoch, MemberId>,
    last_epoch: Epoch,
    /// Which member made which timeline.
    timelines: BTreeMap<u32, usize>,
    confirmed: Epoch,
    acknowledged_in: Epoch,
    /// A disk's content was destroyed or given up, or another spec asked for, so that nobody can tell on how many disks a row
    /// should be.
    pub copies_vary: bool,
    /// The log of the last leader as its epoch was confirmed.
    confirmed_log: Option<(Epoch, Wal)>,
    /// Members, `k` and durability as first asked for.
    asked: Option<(u8, u8, Durability)>,
    /// Rows whose loss a person has accepted.
    pub forgiven: BTreeSet<u64>,
    revision: u64,
    events: u64,
    /// The last epoch whose reason was counted.
    pub noted_epoch: Epoch,
    pub first_leader: Option<MemberId>,
    /// Another member than the first has led a confirmed epoch.
    pub changed_leader: bool,
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
        lease_before_replacement::check(world)?;
        left_before_forgetting::check(world)?;
        history_is_whole::check(world)?;
        enough_copies::note(world);
        world.spring_traps();
    }
    never_streams_older::check(world)?;
    one_link::check(world)?;
    set_covers_senders::check(world)?;
    if world.checks.events.is_multiple_of(200) {
        only_copy::check(world)?;
        enough_copies::check(world)?;
    }
    world.checks.broken.take().map_or(Ok(()), Err)
}
