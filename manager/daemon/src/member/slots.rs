//! Replication slots of a member: looked at now and then, while nothing else is going on, and how much log they may keep.

use super::at_rest;
use pgstead_agent::wal_budget::{Space, calc_wal_budget};
use pgstead_replication::Instance;
use pgstead_replication::instance::Space as Room;
use pgstead_types::record::ClusterRecord;
use pgstead_types::report::{MemberReport, PostgresSeen};
use pgstead_types::slots::{SlotsSeen, WalBudget};
use pgstead_types::spec::ClusterSpec;
use pgstead_types::{Bytes, Lsn, Tick};
use std::collections::BTreeMap;
use std::time::Duration;

/// Between two looks. Slots grow with the log, and a finding about one is for people.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Where Postgres is told.
const SETTING: &str = "max_slot_wal_keep_size";

/// What is remembered between looks.
#[derive(Default)]
pub struct SlotWatch {
    looked: Option<Tick>,
    seen: Option<SlotsSeen>,
    /// Of the room on the volume; `None` until it was measured.
    share: Option<Bytes>,
}

impl SlotWatch {
    /// A daemon that was restarted goes on with what its Postgres has loaded.
    pub fn found(instance: &Instance) -> Self {
        let loaded = instance.presented_setting(SETTING).and_then(|text| match text.parse() {
            Ok(WalBudget::Fixed(bytes)) => Some(bytes),
            Ok(WalBudget::Auto) | Err(_) => None,
        });
        Self { share: loaded, ..Self::default() }
    }

    /// The settings of the spec, and the budget with them.
    pub fn settings(&self, spec: &ClusterSpec) -> BTreeMap<String, String> {
        let mut settings = spec.settings.clone();
        let budget = match spec.slot_wal_budget {
            WalBudget::Fixed(bytes) => Some(bytes),
            WalBudget::Auto => self.share,
        };
        if let Some(budget) = budget.filter(|_| spec.setting(SETTING).is_none()) {
            settings.insert(SETTING.to_string(), WalBudget::Fixed(budget).to_string());
        }
        settings
    }

    /// Looks, where it is time to and nothing waits for this member. What was seen last otherwise.
    pub async fn look(
        &mut self,
        instance: &Instance,
        cluster: &ClusterRecord,
        seen: &MemberReport,
        room: Option<Room>,
    ) -> Option<SlotsSeen> {
        if seen.as_primary().is_none() && seen.as_standby().is_none() {
            self.seen = None;
        }
        let quiet = cluster.is_confirmed() && cluster.switchover.is_none() && at_rest(seen);
        let now = Tick::now();
        if !quiet || self.looked.is_some_and(|at| now.since(at) < LOOK_EVERY) {
            return self.seen.clone();
        }
        self.looked = Some(now);
        if let Some(space) = room.and_then(|room| measured(seen, room)) {
            let next = calc_wal_budget(WalBudget::Auto, space, self.share);
            if let Some(before) = self.share.filter(|before| *before != next) {
                tracing::info!(cluster = %cluster.spec.name, member = %seen.member, free = %space.free, %before, now = %next,
                    "the room on the volume has changed, and with it how much log a slot may keep");
            }
            self.share = Some(next);
        }
        match instance.slots().await {
            Ok(slots) => {
                self.tell_lost(cluster, &slots);
                self.seen = Some(slots);
            }
            Err(error) => tracing::debug!(%error, "cannot look at the slots now"),
        }
        self.seen.clone()
    }

    /// Once for each, where its own node's log is read.
    fn tell_lost(&self, cluster: &ClusterRecord, slots: &SlotsSeen) {
        let known =
            |name: &str| self.seen.iter().flat_map(|seen| &seen.slots).any(|slot| slot.lost && slot.name == name);
        for slot in slots.slots.iter().filter(|slot| slot.lost && !known(&slot.name)) {
            tracing::warn!(cluster = %cluster.spec.name, slot = %slot.name, "a replication slot is lost");
        }
    }
}

fn measured(seen: &MemberReport, room: Room) -> Option<Space> {
    let end: Lsn = match &seen.postgres {
        PostgresSeen::Primary(primary) => primary.flushed,
        PostgresSeen::Standby(standby) => standby.position?.lsn,
        _ => return None,
    };
    Some(Space { free: room.free, log: end.bytes_since(seen.oldest_log?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spec_comes_before_the_share_and_a_setting_of_the_spec_before_both() {
        let mut watch = SlotWatch::default();
        let mut spec = ClusterSpec::named("app");
        assert!(!watch.settings(&spec).contains_key(SETTING), "nothing is measured yet");
        watch.share = Some(Bytes(3 << 29));
        assert_eq!(watch.settings(&spec)[SETTING], "1536MB");
        spec.slot_wal_budget = WalBudget::Fixed(Bytes(8 << 30));
        assert_eq!(watch.settings(&spec)[SETTING], "8GB");
        spec.slot_wal_budget = WalBudget::Auto;
        spec.settings.insert("MAX_slot_wal_keep_size".into(), "-1".into());
        assert!(!watch.settings(&spec).contains_key(SETTING));
    }
}
