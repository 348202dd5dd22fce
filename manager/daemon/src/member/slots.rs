//! Replication slots of a member: looked at now and then, while nothing else is going on, and how much log they may keep.

use super::setup::{self, SetupError};
use super::supervise::NodeContext;
use super::{Notes, at_rest};
use crate::pki::sha256_hex;
use pgstead_agent::wal_budget::{Space, calc_wal_budget};
use pgstead_replication::Instance;
use pgstead_replication::instance::Consumer;
use pgstead_types::record::{ClusterRecord, MemberRecord};
use pgstead_types::report::{MemberReport, PostgresSeen, Upstream};
use pgstead_types::slots::{SlotsSeen, WalBudget};
use pgstead_types::spec::ClusterSpec;
use pgstead_types::{Bytes, Incarnation, Lsn, MemberId, Tick};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Between two looks. Slots grow with the log, and a finding about one is for people.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Slots that a standby keeps are moved on as often, and whenever they are not those that it should have.
const MOVE_EVERY: Duration = Duration::from_secs(60);
/// While a copy of a slot is not complete: a restart waits for it before the leader goes down.
const LOOK_SOON: Duration = Duration::from_secs(1);
/// Where Postgres is told.
const SETTING: &str = "max_slot_wal_keep_size";
/// Before anything was measured.
const SHARE_FIRST: Bytes = Bytes(4 << 30);
/// A lower share holds once it has been lower for so long. What fills a volume for a while, a sort or a copy of something, would
/// otherwise cost a slot for good.
const LOWER_AFTER: Duration = Duration::from_secs(600);
/// With less room than this there is no time for that.
const ROOM_LITTLE: Bytes = Bytes(1 << 30);

/// What is remembered between looks.
pub struct SlotWatch {
    looked: Option<Tick>,
    seen: Option<SlotsSeen>,
    /// Copies being moved along, which nobody waits for.
    moving: Option<JoinHandle<()>>,
    /// Slots whose consumers were seen to be ahead of this leader: its log soon hides it.
    ahead: BTreeSet<String>,
    /// Of the room on the volume.
    share: Bytes,
    /// Since when it would be lower.
    lower_since: Option<Tick>,
    /// The share that Postgres is told.
    told: Bytes,
    /// When slots that are kept for other members were moved on last.
    moved: Option<Tick>,
}

impl SlotWatch {
    /// A daemon that was restarted goes on with what was measured before.
    pub fn found(notes: &Notes) -> Self {
        Self::of(notes.get().slot_share.unwrap_or(SHARE_FIRST))
    }

    fn of(share: Bytes) -> Self {
        Self {
            looked: None,
            seen: None,
            moving: None,
            ahead: BTreeSet::new(),
            share,
            lower_since: None,
            told: share,
            moved: None,
        }
    }

    /// The settings of the spec, and the budget with them. Another share waits while the cluster changes its leader: every
    /// reload would come before a promise.
    pub fn settings(&mut self, cluster: &ClusterRecord) -> BTreeMap<String, String> {
        if is_calm(cluster) {
            self.told = self.share;
        }
        self.settings_of(&cluster.spec)
    }

    fn settings_of(&self, spec: &ClusterSpec) -> BTreeMap<String, String> {
        let mut settings = spec.settings.clone();
        let budget = match spec.slot_wal_budget {
            WalBudget::Fixed(bytes) => bytes,
            WalBudget::Auto => self.told,
        };
        if spec.setting(SETTING).is_none() {
            settings.insert(SETTING.to_string(), WalBudget::Fixed(budget).to_string());
        }
        settings
    }

    /// Looks, where it is time to and nothing waits for this member. What was seen last otherwise.
    pub async fn look(
        &mut self,
        context: &NodeContext,
        instance: &Arc<Instance>,
        cluster: &ClusterRecord,
        seen: &MemberReport,
        free: Option<Bytes>,
        notes: &mut Notes,
    ) -> Option<SlotsSeen> {
        if seen.as_primary().is_none() && seen.as_standby().is_none() {
            self.seen = None;
        }
        let loaded = seen.as_primary().is_none_or(|primary| primary.sync_set.is_some());
        let quiet = is_calm(cluster) && loaded && at_rest(seen);
        let now = Tick::now();
        let incomplete = self.seen.iter().flat_map(|seen| &seen.slots).any(|slot| slot.synced && slot.temporary);
        let every = if incomplete { LOOK_SOON } else { LOOK_EVERY };
        if !quiet || self.looked.is_some_and(|at| now.since(at) < every) {
            return self.seen.clone();
        }
        self.looked = Some(now);
        if let Some(space) = free.and_then(|free| measured(seen, free)) {
            let before = self.share;
            self.note_room(space, now);
            if let Err(error) = notes.change(|noted| noted.slot_share = Some(self.share)) {
                tracing::debug!(%error, member = %seen.member, "cannot note how much log a slot may keep");
            }
            if self.share != before {
                tracing::info!(cluster = %cluster.spec.name, member = %seen.member, free = %space.free, %before, now = %self.share,
                    "the room on the volume has changed, and with it how much log a slot may keep");
            }
        }
        self.keep(instance, cluster, seen, now).await;
        self.tend(context, instance, cluster, seen).await;
        match instance.slots().await {
            Ok(mut slots) => {
                self.note_ahead(&mut slots);
                self.tell_lost(cluster, &slots);
                self.seen = Some(slots);
            }
            Err(error) => tracing::debug!(%error, "cannot look at the slots now"),
        }
        self.seen.clone()
    }

    /// More is taken at once, less after a while.
    fn note_room(&mut self, space: Space, now: Tick) {
        let next = calc_wal_budget(space, self.share);
        if next < self.share && space.free >= ROOM_LITTLE {
            let since = *self.lower_since.get_or_insert(now);
            if now.since(since) < LOWER_AFTER {
                return;
            }
        }
        self.lower_since = None;
        self.share = next;
    }

    /// On a standby: slots for all other members, so that a failover needs none to be made.
    async fn keep(&mut self, instance: &Instance, cluster: &ClusterRecord, seen: &MemberReport, now: Tick) {
        let Some(standby) = seen.as_standby().filter(|standby| standby.upstream.is_some()) else { return };
        let others = cluster.members.values().filter(|other| other.id != seen.member);
        let others: BTreeSet<Incarnation> = others.map(MemberRecord::current).collect();
        let relayed = cluster.relayed_by(seen.member);
        if standby.slots == others && self.moved.is_some_and(|at| now.since(at) < MOVE_EVERY) {
            return;
        }
        match instance.keep_slots(&others, &relayed).await {
            Ok(()) => self.moved = Some(now),
            Err(error) => {
                tracing::warn!(cluster = %cluster.spec.name, member = %seen.member, %error, "cannot keep slots for the other members");
            }
        }
    }

    /// What logical slots need beyond settings, beside everything else.
    async fn tend(
        &mut self,
        context: &NodeContext,
        instance: &Arc<Instance>,
        cluster: &ClusterRecord,
        seen: &MemberReport,
    ) {
        if !instance.is_logical() {
            return;
        }
        let tend = async {
            instance.hold_places().await?;
            match seen.as_primary() {
                Some(_) => {
                    instance.settle_waiting_consumers().await?;
                    Ok(instance.tend_consumers(consumer(cluster).as_ref()).await?)
                }
                None if cluster.postgres_major < 17 => self.move_copies(context, instance, cluster, seen.member),
                None => make_room_for_copies(context, instance, cluster, seen.member).await,
            }
        };
        if let Err(error) = tend.await {
            tracing::warn!(cluster = %cluster.spec.name, member = %seen.member, %error, "cannot tend its logical slots");
        }
    }

    /// Before Postgres 17. It may take long, and a promise does not wait for it.
    fn move_copies(
        &mut self,
        context: &NodeContext,
        instance: &Arc<Instance>,
        cluster: &ClusterRecord,
        member: MemberId,
    ) -> Result<(), SetupError> {
        let own = cluster.members.get(&member);
        let (Some(leader), Some(own)) = (cluster.leadership.leader().filter(|leader| *leader != member), own) else {
            return Ok(());
        };
        if self.moving.as_ref().is_some_and(|moving| !moving.is_finished()) {
            return Ok(());
        }
        let of = Upstream { relay: cluster.relay_of(member), ..Upstream::of(leader, cluster.epoch) };
        let source = setup::upstream(&context.consensus.record(), cluster, own, of)?;
        let (instance, name) = (Arc::clone(instance), cluster.spec.name.clone());
        self.moving = Some(tokio::spawn(async move {
            if let Err(error) = instance.tend_copies(&source).await {
                tracing::warn!(cluster = %name, %member, %error, "cannot tend its copies of logical slots");
            }
        }));
        Ok(())
    }

    /// For as long as the slot is there.
    fn note_ahead(&mut self, slots: &mut SlotsSeen) {
        self.ahead.retain(|name| slots.slots.iter().any(|slot| slot.name == *name && !slot.synced));
        for slot in &mut slots.slots {
            if slot.ahead {
                self.ahead.insert(slot.name.clone());
            }
            slot.ahead = self.ahead.contains(&slot.name);
        }
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

fn consumer(cluster: &ClusterRecord) -> Option<Consumer> {
    let password = cluster.secrets.consumer_password.clone().filter(|_| cluster.spec.logical_replication)?;
    let mark = sha256_hex(password.expose().as_bytes()).split_off(48);
    Some(Consumer { password, mark })
}

/// A former leader's own slots give way to copies of the present one's.
async fn make_room_for_copies(
    context: &NodeContext,
    instance: &Instance,
    cluster: &ClusterRecord,
    member: MemberId,
) -> Result<(), SetupError> {
    let (Some(leader), Some(own)) = (cluster.leadership.leader(), cluster.members.get(&member)) else { return Ok(()) };
    // Whom another standby feeds copies nothing, and the leader does not let it in.
    if leader == member || cluster.relay_of(member).is_some() || instance.slots_left_over().await?.is_empty() {
        return Ok(());
    }
    let of = Upstream::of(leader, cluster.epoch);
    let source = setup::upstream(&context.consensus.record(), cluster, own, of)?;
    Ok(instance.drop_slots_left_over(&source).await?)
}

/// Nothing is being changed that a reload could get in the way of.
fn is_calm(cluster: &ClusterRecord) -> bool {
    cluster.is_confirmed()
        && cluster.switchover.is_none()
        && cluster.config().is_none_or(|config| config.target.is_none())
}

fn measured(seen: &MemberReport, free: Bytes) -> Option<Space> {
    let end: Lsn = match &seen.postgres {
        PostgresSeen::Primary(primary) => primary.flushed,
        PostgresSeen::Standby(standby) => standby.position?.lsn,
        _ => return None,
    };
    Some(Space { free, log: end.bytes_since(seen.oldest_log?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spec_comes_before_the_share_and_a_setting_of_the_spec_before_both() {
        let watch = SlotWatch::of(Bytes(3 << 29));
        let mut spec = ClusterSpec::named("app");
        assert_eq!(watch.settings_of(&spec)[SETTING], "1536MB");
        spec.slot_wal_budget = WalBudget::Fixed(Bytes(8 << 30));
        assert_eq!(watch.settings_of(&spec)[SETTING], "8GB");
        spec.slot_wal_budget = WalBudget::Auto;
        spec.settings.insert("MAX_slot_wal_keep_size".into(), "-1".into());
        assert!(!watch.settings_of(&spec).contains_key(SETTING));
    }

    #[test]
    fn a_daemon_that_was_killed_goes_on_with_the_share_that_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let notes = || Notes::open(dir.path(), pgstead_types::MemberId::from_u128(7)).unwrap();
        assert_eq!(SlotWatch::found(&notes()).told, SHARE_FIRST);
        notes().change(|noted| noted.slot_share = Some(Bytes(24 << 30))).unwrap();
        assert_eq!(SlotWatch::found(&notes()).told, Bytes(24 << 30));
    }

    #[test]
    fn what_fills_the_volume_for_a_while_costs_no_slot() {
        let gib = |count: u64| Bytes(count << 30);
        let room = |free: u64| Space { free: gib(free), log: Bytes(0) };
        let begin = Tick::from_millis(1);
        let mut watch = SlotWatch::of(gib(8));
        watch.note_room(room(40), begin);
        assert_eq!(watch.share, gib(8));
        watch.note_room(room(20), begin);
        watch.note_room(room(20), begin + LOWER_AFTER / 2);
        assert_eq!(watch.share, gib(8), "a sort");
        // There was room again in between.
        watch.note_room(room(40), begin + LOWER_AFTER / 2);
        watch.note_room(room(20), begin + LOWER_AFTER);
        assert_eq!(watch.share, gib(8));
        watch.note_room(room(20), begin + LOWER_AFTER * 2);
        assert_eq!(watch.share, gib(4));
        // No time for that, and all the time in the world.
        watch.note_room(Space { free: Bytes(ROOM_LITTLE.0 - 1), log: Bytes(0) }, begin + LOWER_AFTER * 2);
        assert_eq!(watch.share, Bytes(512 << 20));
        watch.note_room(room(100), begin + LOWER_AFTER * 2);
        assert_eq!(watch.share, gib(24));
    }
}
