//! Replication slots as the API shows them: whose they are, how much log they keep of how much, and where a logical one would
//! survive a failover.

use super::World;
use super::world::member_name;
use pgstead_types::record::ClusterRecord;
use pgstead_types::slots::{SlotKind, SlotSeen, WalBudget};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The leader's replication slots, some seconds ago.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlotsView {
    /// How much log a slot may keep; beyond it the one furthest behind is lost first. `null` for no limit.
    pub budget_bytes: Option<u64>,
    /// The budget follows the room on the leader's volume.
    pub automatic: bool,
    /// How many slots there are.
    pub total: u32,
    /// Those that keep most first, 64 at most.
    pub slots: Vec<SlotView>,
}

/// One replication slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlotView {
    pub name: String,
    /// The member whose slot it is; `null` for those that people have made.
    pub member: Option<String>,
    /// `physical` or `logical`.
    #[schema(value_type = String, example = "logical")]
    pub kind: SlotKind,
    /// Logical slots only.
    pub database: Option<String>,
    /// The output plugin of a logical slot.
    pub plugin: Option<String>,
    /// Somebody streams from it now.
    pub active: bool,
    /// Log that is kept for it; `null` where none is.
    pub retained_bytes: Option<u64>,
    /// Transactions since the oldest one whose rows vacuum must leave for it; `null` where it needs none.
    pub rows_age: Option<u32>,
    /// It can never be used again.
    pub lost: bool,
    /// To survive failovers: before Postgres 17 every logical one, where there is logical replication.
    pub failover: bool,
    /// Standbys that have a complete copy of it: when one of them leads, it goes on there.
    pub ready_on: Vec<String>,
}

impl SlotsView {
    /// `None` while no leader is observed, or its slots were not looked at yet.
    pub(super) fn of(world: &World<'_>, cluster: &ClusterRecord) -> Option<Self> {
        world.leading(cluster)?;
        let seen = world.fresh(cluster.leadership.leader()?)?.report.slots.as_ref()?;
        Some(Self {
            budget_bytes: seen.budget.map(|budget| budget.0),
            automatic: cluster.spec.slot_wal_budget == WalBudget::Auto
                && cluster.spec.setting("max_slot_wal_keep_size").is_none(),
            total: seen.total,
            slots: seen.slots.iter().map(|slot| SlotView::new(world, cluster, slot)).collect(),
        })
    }
}

impl SlotView {
    fn new(world: &World<'_>, cluster: &ClusterRecord, slot: &SlotSeen) -> Self {
        let has_copy = |member: &pgstead_types::MemberId| {
            let seen = world.fresh(*member).filter(|seen| seen.report.as_standby().is_some());
            let mut copies = seen.and_then(|seen| seen.report.slots.as_ref()).into_iter().flat_map(|seen| &seen.slots);
            copies.any(|copy| copy.name == slot.name && copy.is_ready_copy())
        };
        let ready = cluster.members.keys().filter(|_| slot.failover).filter(|member| has_copy(member));
        let mut ready_on: Vec<String> = ready.map(|member| member_name(cluster, *member)).collect();
        ready_on.sort();
        Self {
            name: slot.name.clone(),
            member: slot.member_life().map(|life| member_name(cluster, life.member)),
            kind: slot.kind,
            database: slot.database.clone(),
            plugin: slot.plugin.clone(),
            active: slot.active,
            retained_bytes: slot.retained.map(|kept| kept.0),
            rows_age: slot.rows_age,
            lost: slot.lost,
            failover: slot.failover,
            ready_on,
        }
    }
}
