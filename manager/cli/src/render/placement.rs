//! Where members would go, and why not elsewhere.

use super::{pairs, table};
use pgstead_api::view::{PlacementNodeView, PlacementView, PresentView};

/// `top` nodes, and how many others there are.
pub fn placement(view: &PlacementView, top: usize, width: u16) -> String {
    let mut parts = vec![pairs(facts(view), width)];
    if !view.present.is_empty() {
        let head = ["member", "node", "zone", "in zone", "latency", "free", "health", "idle", "score", "verdict"];
        parts.push(table(&head, view.present.iter().map(present).collect(), width));
    }
    let head = ["node", "zone", "in zone", "latency", "free", "health", "idle", "score", "verdict"];
    let shown = view.nodes.iter().take(top);
    parts.push(table(&head, shown.map(|node| row(view, node)).collect(), width));
    if let Some(rest) = rest(view, top) {
        parts.push(rest);
    }
    parts.join("\n\n")
}

fn facts(view: &PlacementView) -> Vec<(&'static str, String)> {
    let of = match &view.cluster {
        Some(cluster) => format!("one more member of {}", cluster.name),
        None => format!("a new cluster of {} members", view.wanted),
    };
    let chosen: Vec<&str> = view.chosen.iter().map(|node| node.name.as_str()).collect();
    let outcome = match &view.refused {
        Some(why) => format!("refused: {why}"),
        None => chosen.join(", "),
    };
    let weights = view.weights;
    let mut facts = vec![("placement", of), ("chosen", outcome)];
    if let Some(major) = view.postgres_major {
        facts.push(("postgres", major.to_string()));
    }
    if !view.regions.is_empty() {
        facts.push(("regions", view.regions.join(", ")));
    }
    if let Some(zones) = view.zones_min {
        facts.push(("zones", format!("{zones} at least")));
    }
    if let Some(class) = &view.storage_class {
        facts.push(("pools", format!("of class {class}")));
    }
    let weights = format!(
        "latency {}, free {}, health {}, idle {}; scores and their terms are per mille",
        weights.latency, weights.free, weights.health, weights.idle
    );
    facts.push(("weights", weights));
    facts
}

fn row(view: &PlacementView, node: &PlacementNodeView) -> Vec<String> {
    let verdict = match (&node.against, node.chosen) {
        (Some(against), _) => against.why.clone(),
        (None, Some(1)) if view.cluster.is_none() && view.refused.is_none() => {
            "chosen first, and leads first".to_string()
        }
        (None, Some(place)) => format!("chosen, number {place}"),
        (None, None) => "not needed".to_string(),
    };
    std::iter::once(node.node.name.clone()).chain(terms(node)).chain([verdict]).collect()
}

fn present(one: &PresentView) -> Vec<String> {
    let verdict = match (&one.at.against, &one.better) {
        (Some(against), _) => against.why.clone(),
        (None, Some(better)) => format!("{} is better now", better.name),
        (None, None) => "no node is better".to_string(),
    };
    [one.member.name.clone(), one.at.node.name.clone()].into_iter().chain(terms(&one.at)).chain([verdict]).collect()
}

fn terms(node: &PlacementNodeView) -> [String; 7] {
    let latency = node.round_trip_us.map_or_else(|| "?".to_string(), |_| node.latency_permille.to_string());
    [
        format!("{}/{}", node.region, node.zone),
        node.in_zone.to_string(),
        latency,
        node.free_permille.to_string(),
        node.health_permille.to_string(),
        node.idle_permille.to_string(),
        node.score_permille.to_string(),
    ]
}

/// Those that are not shown: how many may have one, and how many each rule speaks against.
fn rest(view: &PlacementView, top: usize) -> Option<String> {
    let hidden = view.nodes.get(top..).filter(|hidden| !hidden.is_empty())?;
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for node in hidden {
        *counts.entry(node.against.as_ref().map_or("", |against| against.rule.as_str())).or_default() += 1;
    }
    let says = |(rule, count): (&str, usize)| match rule {
        "" => format!("{count} may have one"),
        rule => format!("{count} {}", rule.replace('_', " ")),
    };
    let counts: Vec<String> = counts.into_iter().map(says).collect();
    Some(format!("and {} more: {}; --top shows more of them", hidden.len(), counts.join(", ")))
}
