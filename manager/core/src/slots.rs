//! Replication slots that keep much log, or have lost it. Nothing is decided by them: a member whose log is gone is made anew for
//! that, and what people have made is theirs to drop.

use crate::observed::{Observed, Policy};
use pgstead_types::record::ClusterRecord;
use pgstead_types::slots::{SlotKind, SlotSeen, SlotsSeen};
use pgstead_types::{Bytes, Finding, MemberId};

/// From here on a slot is in danger: with a write rate that fills the budget in a day, this leaves some hours.
const NEAR_PERCENT: u64 = 70;

/// What is to be said of the leader's slots.
pub(crate) fn findings(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    leader: MemberId,
) -> Vec<Finding> {
    let report = observed.fresh(cluster, leader, policy);
    let Some(seen) = report.filter(|report| report.as_primary().is_some()).and_then(|report| report.slots.as_ref())
    else {
        return Vec::new();
    };
    let about = |slot: &SlotSeen| {
        let finding = if slot.lost { Some(lost(cluster, seen, slot)) } else { near(cluster, seen, slot) };
        finding.map(|finding| finding.on_cluster(cluster.id).on_member(leader))
    };
    seen.slots.iter().filter_map(about).collect()
}

fn percent(slot: &SlotSeen, budget: Bytes) -> Option<u64> {
    Some(u64::try_from(u128::from(slot.retained?.0) * 100 / u128::from(budget.0.max(1))).unwrap_or(u64::MAX))
}

fn near(cluster: &ClusterRecord, seen: &SlotsSeen, slot: &SlotSeen) -> Option<Finding> {
    let budget = seen.budget?;
    // In steps of ten: a text that changes at every look is read by nobody.
    let percent = percent(slot, budget).filter(|percent| *percent >= NEAR_PERCENT)?.min(100) / 10 * 10;
    let (whose, outcome) = match slot.member_life().and_then(|life| cluster.members.get(&life.member)) {
        Some(member) => {
            (format!("the slot of {}", member.name), format!("{0} is copied anew; bring {0} back", member.name))
        }
        None => (
            described(slot),
            "its consumer must begin anew; have the consumer go on, or drop the slot if nobody needs it".to_string(),
        ),
    };
    let used = if slot.active { "" } else { ", which nobody streams from now," };
    let first = seen.slots.iter().filter(|other| !other.lost).max_by_key(|other| other.retained);
    let order = if first.is_some_and(|first| first.name == slot.name) { " It would be lost first." } else { "" };
    let text = format!(
        "{whose}{used} keeps over {percent} % of the {budget} of log that a slot may keep on the leader (slot_wal_budget): beyond \
         that its log goes, and {outcome}, or raise slot_wal_budget where the disk has room.{order}"
    );
    Some(Finding::warning("slot_near_budget", text))
}

fn lost(cluster: &ClusterRecord, seen: &SlotsSeen, slot: &SlotSeen) -> Finding {
    let budget =
        seen.budget.map_or_else(String::new, |budget| format!(" A slot may keep {budget} of it (slot_wal_budget)."));
    let text = match slot.member_life().and_then(|life| cluster.members.get(&life.member)) {
        Some(member) => format!(
            "the slot of {} has lost log that it needs: it is made anew, and {0} is copied anew if it lacks that log.{budget}",
            member.name
        ),
        None => format!(
            "{} has lost log or rows that it needs and cannot be used any more: its consumer must make a new slot and copy what it \
             follows; then drop this one.{budget}",
            described(slot)
        ),
    };
    Finding::error("slot_lost", text)
}

fn described(slot: &SlotSeen) -> String {
    match (slot.kind, &slot.database) {
        (SlotKind::Logical, Some(database)) => format!("the logical slot {} of database {database}", slot.name),
        (SlotKind::Logical, None) => format!("the logical slot {}", slot.name),
        (SlotKind::Physical, _) => format!("the physical slot {}", slot.name),
    }
}

#[cfg(test)]
mod tests;
