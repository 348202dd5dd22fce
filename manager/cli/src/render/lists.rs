//! Nodes, volumes, tokens, and the overview.

use super::{age, clusters, findings, or_dash, pairs, size, table, words};
use pgstead_api::view::{
    ClusterSummary, FindingView, NodeServiceView, NodeView, PoolView, SnapshotView, TokenView, VolumeState, VolumeView,
};
use pgstead_types::storage::CLASS_DEFAULT;
use serde::Serialize;

/// The overview: all nodes and all clusters.
#[derive(Serialize)]
pub struct Status {
    pub nodes: Vec<NodeView>,
    pub clusters: Vec<ClusterSummary>,
}

pub fn status(status: &Status, width: u16) -> String {
    let seen = status.nodes.iter().filter_map(|node| node.observed.as_ref()).count();
    let reachable =
        status.nodes.iter().filter(|node| node.observed.as_ref().is_some_and(|seen| seen.reachable)).count();
    let controller = status.nodes.iter().find(|node| node.controller);
    let head = match (controller, seen) {
        (None, _) => format!("{} nodes; the Raft group has no leader, so nothing is decided now", status.nodes.len()),
        (Some(_), 0) => format!("{} nodes; the controller did not answer, so nothing is observed", status.nodes.len()),
        (Some(node), _) => {
            format!("{reachable} of {} nodes reachable, controller on {}", status.nodes.len(), node.name)
        }
    };
    let mut parts = vec![head, nodes(&status.nodes, width), clusters(&status.clusters, width)];
    let mut all: Vec<FindingView> = status.nodes.iter().flat_map(|node| node.findings.clone()).collect();
    all.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    all.dedup();
    if !all.is_empty() {
        parts.push(format!("FINDINGS\n{}", findings(&all, width)));
    }
    parts.join("\n\n")
}

pub fn nodes(all: &[NodeView], width: u16) -> String {
    let row = |one: &NodeView| {
        let majors: Vec<String> = one.postgres_majors.iter().map(ToString::to_string).collect();
        vec![
            one.name.clone(),
            state(one),
            format!("{}:{}", one.host, one.port),
            format!("{}/{}", one.region, one.zone),
            majors.join(","),
            one.members.len().to_string(),
            if one.controller { "controller" } else { "-" }.to_string(),
        ]
    };
    table(&["node", "state", "address", "zone", "pg", "members", "raft"], all.iter().map(row).collect(), width)
}

/// Whether it is there, and what a person has said of it.
fn state(node: &NodeView) -> String {
    match node.service {
        NodeServiceView::Open => reach(node),
        NodeServiceView::Cordoned => format!("{}, cordoned", reach(node)),
        NodeServiceView::Draining => format!("{}, draining", reach(node)),
    }
}

fn reach(node: &NodeView) -> String {
    match &node.observed {
        None => "?".to_string(),
        Some(seen) if seen.reachable => "reachable".to_string(),
        Some(seen) => match seen.silent_ms {
            Some(ms) => format!("silent for {}", age(ms)),
            None => "not heard yet".to_string(),
        },
    }
}

pub fn node(view: &NodeView, width: u16) -> String {
    let majors: Vec<String> = view.postgres_majors.iter().map(ToString::to_string).collect();
    let held: Vec<String> = view.members.iter().map(|held| held.member.name.clone()).collect();
    let mut facts = vec![
        ("node", format!("{} ({})", view.name, view.id)),
        ("state", state(view)),
        ("address", format!("{}:{}", view.host, view.port)),
        ("place", format!("region {}, zone {}", view.region, view.zone)),
        ("postgres", majors.join(", ")),
    ];
    facts.extend(pools(view).into_iter().map(|pool| ("pool", pool)));
    facts.extend([
        ("raft", if view.controller { "leads the group" } else { "follows" }.to_string()),
        ("members", or_dash((!held.is_empty()).then(|| held.join(", ")))),
        ("joined", view.joined_at.clone()),
    ]);
    let mut text = pairs(facts, width);
    if !view.findings.is_empty() {
        text.push_str(&format!("\n\nFINDINGS\n{}", findings(&view.findings, width)));
    }
    text
}

pub fn snapshots(all: &[SnapshotView], width: u16) -> String {
    if all.is_empty() {
        return "no snapshots".to_string();
    }
    let row = |one: &SnapshotView| {
        vec![
            one.id.to_string(),
            one.cluster.name.clone(),
            one.member.name.clone(),
            one.node.name.clone(),
            one.why.to_string(),
            one.created_at.clone(),
            one.expires_at.clone().unwrap_or_else(|| "kept".to_string()),
        ]
    };
    table(&["snapshot", "cluster", "member", "node", "why", "taken", "goes"], all.iter().map(row).collect(), width)
}

/// As they were seen last, or by their names.
fn pools(node: &NodeView) -> Vec<String> {
    let told: Vec<String> = node.observed.iter().flat_map(|seen| &seen.pools).map(pool).collect();
    if told.is_empty() { node.pools.clone() } else { told }
}

fn pool(pool: &PoolView) -> String {
    let PoolView { name, driver, class, total, used, free, metadata_used_percent, ballast, state, .. } = pool;
    let of = |bytes: &u64| size(Some(*bytes));
    let metadata = metadata_used_percent.map_or_else(String::new, |used| format!(", metadata {used} %"));
    let class = if class == CLASS_DEFAULT { String::new() } else { format!(", class {class}") };
    let ballast = if *ballast == 0 { String::new() } else { format!(", {} of ballast", of(ballast)) };
    let (used, total, free) = (of(used), of(total), of(free));
    format!("{name} ({driver}{class}): {}, {used} of {total} used, {free} free{metadata}{ballast}", words(state))
}

pub fn volumes(all: &[VolumeView], width: u16) -> String {
    if all.is_empty() {
        return "no volumes".to_string();
    }
    let row = |one: &VolumeView| {
        let state = match (one.state, one.present) {
            (VolumeState::InUse, None) => "?".to_string(),
            (VolumeState::InUse, Some(true)) => "present".to_string(),
            (VolumeState::InUse, Some(false)) => "not there".to_string(),
            (other, _) => words(&other),
        };
        vec![
            one.id.to_string(),
            one.node.name.clone(),
            or_dash(one.cluster.as_ref().map(|cluster| cluster.name.clone())),
            or_dash(one.member.as_ref().map(|member| member.name.clone())),
            size(one.size),
            state,
        ]
    };
    table(&["volume", "node", "cluster", "member", "size", "state"], all.iter().map(row).collect(), width)
}

pub fn token(view: &TokenView, _width: u16) -> String {
    // The token stands alone on its line, to be copied.
    format!(
        "{}\n\nIt is shown this once, admits one host, and expires {}. On the new host:\n  pgstead node join --help",
        view.token, view.expires_at
    )
}
