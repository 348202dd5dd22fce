//! Replication slots of a cluster's leader.

use super::{or_dash, size, table, words};
use pgstead_api::view::{SlotView, SlotsView};

/// In one line: how much a slot may keep, and how many there are.
pub fn summary(view: &SlotsView) -> String {
    let members = view.slots.iter().filter(|slot| slot.member.is_some()).count();
    let others = (view.total as usize).saturating_sub(members);
    let how = if view.automatic { " (automatic)" } else { "" };
    let budget = match view.budget_bytes {
        Some(_) => format!("each may keep {} of log{how}", size(view.budget_bytes)),
        None => "each may keep any amount of log".to_string(),
    };
    format!("{members} of members, {others} of users; {budget}")
}

pub fn slots(view: &SlotsView, width: u16) -> String {
    let rows = view.slots.iter().map(row);
    let mut text = table(&["slot", "of", "kind", "active", "keeps", "survives on"], rows.collect(), width);
    let more = (view.total as usize).saturating_sub(view.slots.len());
    if more > 0 {
        text.push_str(&format!("\nand {more} more"));
    }
    text
}

fn row(slot: &SlotView) -> Vec<String> {
    let of = match (&slot.member, &slot.database) {
        (Some(member), _) => member.clone(),
        (None, Some(database)) => format!("database {database}"),
        (None, None) => "-".to_string(),
    };
    let kind = match &slot.plugin {
        Some(plugin) => format!("{} ({plugin})", words(&slot.kind)),
        None => words(&slot.kind),
    };
    let keeps = if slot.lost { "lost".to_string() } else { size(slot.retained_bytes) };
    let survives = Some(slot.ready_on.join(", ")).filter(|names| !names.is_empty());
    vec![slot.name.clone(), of, kind, if slot.active { "yes" } else { "-" }.to_string(), keeps, or_dash(survives)]
}
