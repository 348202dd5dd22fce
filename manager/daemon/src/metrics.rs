//! Prometheus' text format, made when it is asked for, from the record and the controller's view: a deleted cluster leaves
//! no series behind, and nothing is counted twice.

use crate::controller::View;
use pgstead_consensus::Leadership;
use pgstead_types::record::{ClusterRecord, Record};
use pgstead_types::report::{MemberReport, PostgresSeen};
use pgstead_types::{NodeId, Tick};
use std::fmt::Write;

/// One line per series, families together, as the format wants.
pub fn render(node: NodeId, record: &Record, raft: Leadership, view: Option<&View>, now: Tick) -> String {
    let mut text = String::new();
    let mut family = |name: &str, help: &str, lines: Vec<(String, f64)>| {
        if lines.is_empty() {
            return;
        }
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (labels, value) in lines {
            let _ = writeln!(text, "{name}{{{labels}}} {value}");
        }
    };
    let here = format!("node=\"{node}\"");
    let flag = |on: bool| if on { 1.0 } else { 0.0 };
    family(
        "pgstead_raft_leader",
        "Whether this node leads the Raft group.",
        vec![(here.clone(), flag(raft.am_leader))],
    );
    family("pgstead_raft_term", "Raft's term.", vec![(here.clone(), raft.term as f64)]);
    family("pgstead_record_revision", "Revision of the record here.", vec![(here, record.revision as f64)]);
    let clusters = || record.clusters.values();
    let label = |cluster: &ClusterRecord| format!("cluster=\"{}\"", cluster.spec.name);
    family("pgstead_cluster_epoch", "The cluster's epoch.", clusters().map(|c| (label(c), c.epoch.0 as f64)).collect());
    family(
        "pgstead_cluster_confirmed",
        "Whether the present epoch has a confirmed leader.",
        clusters().map(|c| (label(c), flag(c.is_confirmed()))).collect(),
    );
    family(
        "pgstead_cluster_sync_replicas_needed",
        "Standbys that must have a commit on disk before it is acknowledged, as it is now.",
        clusters().filter_map(|c| Some((label(c), f64::from(c.configs.last()?.sync_set.needed)))).collect(),
    );
    family(
        "pgstead_cluster_degraded",
        "Whether commits are acknowledged with fewer standbys than the spec asks for.",
        clusters()
            .filter_map(|c| Some((label(c), flag(c.configs.last()?.sync_set.needed < c.spec.needed()))))
            .collect(),
    );
    let Some(view) = view else { return text };
    let silent = |seen: &pgstead_core::NodeSeen| now.since(seen.heard).as_secs_f64();
    let nodes = view.observed.nodes.iter().map(|(node, seen)| (format!("node=\"{node}\""), silent(seen))).collect();
    family("pgstead_node_silent_seconds", "Time since the controller heard of the node.", nodes);
    let findings = clusters().map(|c| (label(c), view.findings.get(&c.id).map_or(0, Vec::len) as f64)).collect();
    family("pgstead_cluster_findings", "Findings about the cluster.", findings);
    let mut streaming = Vec::new();
    let mut lag = Vec::new();
    let (mut lease, mut refusing) = (Vec::new(), Vec::new());
    for cluster in clusters() {
        for (name, report) in reports(cluster, view) {
            let labels = format!("{},member=\"{name}\"", label(cluster));
            if let Some(seen) = report.lease {
                lease.push((labels.clone(), seen.remaining_ms as f64 / 1000.0));
            }
            if let Some(seen) = report.refusing {
                refusing.push((labels.clone(), seen.remaining_ms as f64 / 1000.0));
            }
            match &report.postgres {
                PostgresSeen::Standby(standby) => {
                    let on = standby.receiver.is_some_and(|receiver| receiver.streaming);
                    streaming.push((labels, flag(on)));
                }
                PostgresSeen::Primary(primary) => {
                    for sender in &primary.senders {
                        let (Some(life), Some(flushed)) = (sender.incarnation, sender.flushed) else { continue };
                        let Some(member) = cluster.members.get(&life.member) else { continue };
                        let labels = format!("{},member=\"{}\"", label(cluster), member.name);
                        lag.push((labels, primary.flushed.bytes_since(flushed).0 as f64));
                    }
                }
                PostgresSeen::Down { .. } | PostgresSeen::Starting | PostgresSeen::Unresponsive { .. } => {}
            }
        }
    }
    family("pgstead_member_streaming", "Whether the standby streams.", streaming);
    family("pgstead_member_lag_bytes", "WAL that the leader has on disk and the standby has not.", lag);
    family(
        "pgstead_member_lease_seconds",
        "What was left of the lease that the guard counts, by the last report.",
        lease,
    );
    family(
        "pgstead_member_refusing_seconds",
        "For how long the member obeys no election, by the last report.",
        refusing,
    );
    text
}

fn reports<'a>(cluster: &'a ClusterRecord, view: &'a View) -> impl Iterator<Item = (&'a str, &'a MemberReport)> {
    cluster.members.values().filter_map(|member| {
        let seen = view.observed.nodes.get(&member.node)?;
        let report = seen.report.members.iter().find(|report| report.member == member.id)?;
        Some((member.name.as_str(), report))
    })
}
