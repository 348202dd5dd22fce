//! What stands in the way of a change of leader, and what a forced one would lose.

use super::{findings, or_dash, pairs, size, table};
use pgstead_api::view::{FailoverCheckView, ForcedView, SwitchoverCheckView};

pub fn switchover_check(view: &SwitchoverCheckView, width: u16) -> String {
    let name =
        |member: &Option<pgstead_api::view::MemberRef>| or_dash(member.as_ref().map(|member| member.name.clone()));
    let verdict = match (view.clear, view.overrulable) {
        (true, _) => "nothing blocks it",
        (false, true) => "blocked by warnings; --overrule goes on in spite of them",
        (false, false) => "blocked",
    };
    let facts = vec![
        ("switchover", format!("{} to {}", name(&view.from), name(&view.to))),
        ("behind", size(view.lag_bytes)),
        ("verdict", verdict.to_string()),
    ];
    let mut parts = vec![pairs(facts, width)];
    if !view.findings.is_empty() {
        parts.push(findings(&view.findings, width));
    }
    parts.join("\n\n")
}

pub fn failover_check(view: &FailoverCheckView, width: u16) -> String {
    let gap = match view.gap_bytes {
        Some(bytes) => format!(
            "{} of log, as far as was ever seen; what came after the last report is not known",
            size(Some(bytes))
        ),
        None => "not known: nobody here has heard how far the leader's log went".to_string(),
    };
    let facts = vec![
        ("to lead", format!("{}, epoch {}", view.to, view.epoch)),
        ("missing", if view.missing.is_empty() { "-".to_string() } else { view.missing.join(", ") }),
        ("known end", or_dash(view.known_end.clone())),
        ("its log ends", or_dash(view.reaches.clone())),
        ("may be lost", gap),
    ];
    let rows = view.members.iter().map(|one| {
        vec![one.name.clone(), if one.here { "yes" } else { "no" }.to_string(), or_dash(one.reaches.clone())]
    });
    let mut parts = vec![pairs(facts, width), table(&["member", "here", "log reaches"], rows.collect(), width)];
    if !view.findings.is_empty() {
        parts.push(format!("REFUSED\n{}", findings(&view.findings, width)));
    }
    parts.join("\n\n")
}

pub fn forced(all: &[ForcedView], width: u16) -> String {
    let rows = all.iter().map(|one| {
        let lost = match (&one.retired[..], one.gap_bytes) {
            ([], _) => "nothing: enough promised after all".to_string(),
            (retired, Some(bytes)) => format!("{} seen, and what only {} had", size(Some(bytes)), retired.join(", ")),
            (retired, None) => format!("what only {} had", retired.join(", ")),
        };
        vec![one.epoch.to_string(), one.at.clone(), one.by.clone(), one.to.clone(), lost]
    });
    table(&["forced", "at", "by", "to", "given up"], rows.collect(), width)
}
