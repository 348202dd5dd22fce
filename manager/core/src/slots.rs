//! Replication slots that keep much log, or have lost it. Nothing is decided by them: a member whose log is gone is made anew for
//! that, and what people have made is theirs to drop.

use crate::observed::{Observed, Policy};
use pgstead_types::record::{ClusterRecord, MemberRecord};
use pgstead_types::slots::{SlotKind, SlotSeen, SlotsSeen, can_copy_slots};
use pgstead_types::{Bytes, Finding, MemberId};

/// From here on a slot is in danger: with a write rate that fills the budget in a day, this leaves some hours.
const NEAR_PERCENT: u64 = 70;

/// So many transactions are hours of a busy cluster, and far from what Postgres itself would stop for.
const ROWS_AGE_LONG: u32 = 10_000_000;

/// The first Postgres that copies logical slots to standbys.
const KEEPS_SLOTS: u16 = 17;

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
        if slot.lost {
            return vec![lost(cluster, seen, slot)];
        }
        let kept = near(cluster, seen, slot).into_iter().chain(holds_rows(cluster, slot)).chain(ahead(slot));
        kept.chain(stays_behind(cluster, observed, policy, leader, slot)).collect()
    };
    let place = |finding: Finding| finding.on_cluster(cluster.id).on_member(leader);
    let of_slots = seen.slots.iter().flat_map(about).chain(crowded(cluster, observed, policy, seen, leader));
    let of_members =
        cluster.members.values().flat_map(|member| of_member(cluster, observed, policy, seen, leader, member));
    of_slots.map(place).chain(of_members).collect()
}

/// What people's slots and consumers leave for members.
fn crowded(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    seen: &SlotsSeen,
    leader: MemberId,
) -> Vec<Finding> {
    let others = u32::try_from(cluster.members.len().saturating_sub(1)).unwrap_or(u32::MAX);
    let members = u32::try_from(seen.slots.iter().filter(|slot| slot.member_life().is_some()).count()).unwrap_or(0);
    let users = seen.total.saturating_sub(members);
    let mut findings = Vec::new();
    if let Some(max) = seen.slots_max.map(|max| max.saturating_sub(others)).filter(|max| users >= max / 4 * 3) {
        let text = format!(
            "{users} replication slots of people are on the leader, and {max} are the most beside those of members: with no place left no \
             other can be made, and a member without one does not stream; drop those that nobody needs"
        );
        findings.push(if users >= max {
            Finding::error("slots_full", text)
        } else {
            Finding::warning("many_slots", text)
        });
    }
    let primary = observed.fresh(cluster, leader, policy).and_then(|report| report.as_primary());
    let senders = primary.map_or(0, |primary| primary.senders.iter().filter(|s| s.incarnation.is_none()).count());
    let senders = u32::try_from(senders).unwrap_or(u32::MAX);
    // Two for each member, its stream and a copy.
    let left = seen.senders_max.map(|max| max.saturating_sub(others * 2));
    if let Some(max) = left.filter(|max| senders >= max / 4 * 3 && senders > 1) {
        let text = format!(
            "{senders} others than members stream from the leader, and {max} are the most beside members (max_wal_senders): more would \
             keep members out; let fewer consumers stream at once"
        );
        findings.push(Finding::warning("many_senders", text));
    }
    findings
}

/// What is to be said of one member's slots, and of what it runs with.
fn of_member(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    leading: &SlotsSeen,
    leader: MemberId,
    member: &MemberRecord,
) -> Vec<Finding> {
    let Some(seen) = observed.fresh(cluster, member.id, policy).and_then(|report| report.slots.as_ref()) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    if cluster.spec.logical_replication && seen.logical == Some(false) {
        let text = format!(
            "{} was started before logical_replication was asked for and runs without: logical slots can be made, and survive a change of \
             leader, once every member was restarted; pgstead cluster restart {} does it one by one",
            member.name, cluster.spec.name
        );
        findings.push(Finding::warning("restart_needed", text));
    }
    let has_it =
        |slot: &SlotSeen| leading.slots.iter().any(|other| other.name == slot.name && other.failover && !other.lost);
    // What is not listed may be there.
    let all_listed = leading.slots.len() >= usize::try_from(leading.total).unwrap_or(usize::MAX);
    let own = seen.slots.iter().filter(|slot| member.id != leader && slot.is_standbys_own() && !slot.active);
    for slot in own.filter(|slot| !slot.failover || (all_listed && !has_it(slot))) {
        let what = described(slot);
        let advice = match cluster.postgres_major {
            KEEPS_SLOTS.. => {
                format!("switch over to {0} if its consumer is to go on with it, or drop it on {0}", member.name)
            }
            // It would be dropped then: what the leader removes may be what it needs.
            _ => format!("its consumer must begin anew; drop it on {}", member.name),
        };
        let text = format!(
            "{0} has {what} of its own and the leader has no copy of it: it is left from when {0} led, or was made there, and keeps log \
             and rows; {advice}",
            member.name
        );
        findings.push(Finding::warning("slot_left_behind", text));
    }
    findings
        .into_iter()
        .map(|finding| finding.on_cluster(cluster.id).on_member(member.id).on_node(member.node))
        .collect()
}

/// A slot whose reader is away keeps rows from vacuum as well, on every member.
fn holds_rows(cluster: &ClusterRecord, slot: &SlotSeen) -> Option<Finding> {
    // In steps: a text that changes at every look is read by nobody.
    let age = slot.rows_age.filter(|age| *age >= ROWS_AGE_LONG)? / ROWS_AGE_LONG * ROWS_AGE_LONG;
    let whose = match slot.member_life().and_then(|life| cluster.members.get(&life.member)) {
        Some(member) => format!("the slot of {}", member.name),
        None => described(slot),
    };
    let text = format!(
        "{whose} keeps rows that were removed over {age} transactions ago: tables grow until its reader goes on, or it is dropped"
    );
    Some(Finding::warning("slot_keeps_rows", text))
}

/// A logical slot that would not be there after a failover, or not on everyone who could be elected.
fn stays_behind(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    leader: MemberId,
    slot: &SlotSeen,
) -> Option<Finding> {
    if slot.kind != SlotKind::Logical || slot.temporary || cluster.members.len() < 2 {
        return None;
    }
    let what = described(slot);
    let by_postgres = cluster.postgres_major >= KEEPS_SLOTS;
    if !slot.failover && by_postgres {
        let text = format!(
            "{what} will not be there after a change of leader: it was made without failover => true; make it so \
             (ALTER_REPLICATION_SLOT, or ALTER SUBSCRIPTION … SET (failover)), or its consumer must begin anew then"
        );
        return Some(Finding::warning("slot_not_kept", text));
    }
    let lacking = cluster
        .members
        .values()
        .filter(|member| member.id != leader && !has_copy(cluster, observed, policy, member.id, slot));
    let named = |member: &MemberRecord| match cluster.relay_of(member.id).and_then(|relay| cluster.members.get(&relay))
    {
        Some(relay) => format!("{} (fed by {}, from which nothing can be copied)", member.name, relay.name),
        None => member.name.clone(),
    };
    let began = |member: &MemberRecord| by_postgres || has_incomplete(cluster, observed, policy, member.id, &slot.name);
    let needs = |id: MemberId| if by_postgres { None } else { minor_needed(cluster, observed, policy, id) };
    let of_leader = needs(leader);
    let (too_old, lacking): (Vec<_>, Vec<_>) =
        lacking.partition(|member| of_leader.is_some() || needs(member.id).is_some());
    let (begun, none): (Vec<_>, Vec<_>) = lacking.into_iter().partition(|member| began(member));
    let names = |members: Vec<&MemberRecord>| members.into_iter().map(named).collect::<Vec<_>>().join(", ");
    let mut text = match begun.is_empty() {
        true => String::new(),
        false => format!(
            "{what} is not complete on {} yet: if that member led now, its consumer would have to begin anew; a copy is complete once \
             the consumer has moved the slot past where the copy began",
            names(begun)
        ),
    };
    if !none.is_empty() {
        let separator = if text.is_empty() { "" } else { ". " };
        text.push_str(&format!(
            "{separator}{what} is not on {}: if that member led now, its consumer would have to begin anew; on Postgres {} copies are made \
             when a standby starts: pgstead cluster restart {}",
            names(none),
            cluster.postgres_major,
            cluster.spec.name
        ));
    }
    let needed = too_old.iter().find_map(|member| needs(member.id)).or(of_leader);
    if let Some(needed) = needed {
        let separator = if text.is_empty() { "" } else { ". " };
        text.push_str(&format!(
            "{separator}{what} cannot be copied to {}: if that member led now, its consumer would have to begin anew; earlier minor \
             versions move copies along too far, so the leader and that member need Postgres {needed} or later, installed on their hosts, \
             and then pgstead cluster restart {}",
            names(too_old),
            cluster.spec.name
        ));
    }
    (!text.is_empty()).then(|| Finding::info("slot_not_copied", text))
}

/// The minor version from which on its slots could be copied, where it runs an earlier one.
fn minor_needed(cluster: &ClusterRecord, observed: &Observed, policy: &Policy, member: MemberId) -> Option<String> {
    let slots = observed.fresh(cluster, member, policy).and_then(|report| report.slots.as_ref());
    can_copy_slots(slots?.version?).err()
}

/// A copy is there and would be dropped if that member led now.
fn has_incomplete(cluster: &ClusterRecord, observed: &Observed, policy: &Policy, member: MemberId, name: &str) -> bool {
    let slots = observed.fresh(cluster, member, policy).and_then(|report| report.slots.as_ref());
    slots.is_some_and(|seen| seen.slots.iter().any(|copy| copy.name == name && copy.synced && copy.temporary))
}

/// Whether a change of leader to `member` would cost a slot whose copy is complete before long. Before Postgres 17 every restart of a
/// standby makes copies, and the last step of a restart changes the leader.
pub(crate) fn waits_for_copies(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    leader: MemberId,
    member: MemberId,
) -> bool {
    let of = |member: MemberId| observed.fresh(cluster, member, policy).and_then(|report| report.slots.as_ref());
    let kept = |slot: &&SlotSeen| slot.kind == SlotKind::Logical && slot.failover && !slot.lost && !slot.temporary;
    let mut slots = of(leader).into_iter().flat_map(|seen| &seen.slots).filter(kept);
    let looked = of(member).is_some();
    cluster.postgres_major < KEEPS_SLOTS
        && slots.any(|slot| !looked || has_incomplete(cluster, observed, policy, member, &slot.name))
}

fn ahead(slot: &SlotSeen) -> Option<Finding> {
    let text = format!(
        "the consumer of {} was sent changes that this leader does not have: a change of leader lost them before any standby had them, and \
         they were never acknowledged; have the consumer begin anew with another slot, and drop this one",
        described(slot)
    );
    (slot.kind == SlotKind::Logical && slot.ahead).then(|| Finding::error("consumer_ahead", text))
}

/// A standby copies from a leader only: what one that is fed by another has is from before, and stays as it was.
fn has_copy(cluster: &ClusterRecord, observed: &Observed, policy: &Policy, member: MemberId, slot: &SlotSeen) -> bool {
    let slots = observed.fresh(cluster, member, policy).and_then(|report| report.slots.as_ref());
    let copied = slots.is_some_and(|seen| seen.slots.iter().any(|copy| copy.name == slot.name && copy.is_ready_copy()));
    copied && cluster.relay_of(member).is_none()
}

/// The leader's logical slots that are made to survive it and would not if `member` led now.
pub(crate) fn lacking(cluster: &ClusterRecord, observed: &Observed, policy: &Policy, member: MemberId) -> Vec<String> {
    let leader = cluster.leadership.leader().and_then(|leader| observed.fresh(cluster, leader, policy));
    let slots = leader.and_then(|report| report.slots.as_ref()).map(|seen| seen.slots.iter());
    let survives = |slot: &&SlotSeen| slot.kind == SlotKind::Logical && slot.failover && !slot.temporary && !slot.lost;
    let lacking =
        slots.into_iter().flatten().filter(survives).filter(|slot| !has_copy(cluster, observed, policy, member, slot));
    lacking.map(|slot| slot.name.clone()).collect()
}

fn percent(slot: &SlotSeen, budget: Bytes) -> Option<u64> {
    Some(u64::try_from(u128::from(slot.retained?.0) * 100 / u128::from(budget.0.max(1))).unwrap_or(u64::MAX))
}

fn near(cluster: &ClusterRecord, seen: &SlotsSeen, slot: &SlotSeen) -> Option<Finding> {
    let budget = seen.budget?;
    // In steps of ten: a text that changes at every look is read by nobody.
    let percent =
        percent(slot, budget).filter(|_| budget.0 > 0).filter(|percent| *percent >= NEAR_PERCENT)?.min(100) / 10 * 10;
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
