//! Operations and events.

use super::{or_dash, pairs, table, words};
use pgstead_api::view::{EventView, OperationView};

pub fn operations(all: &[OperationView], width: u16) -> String {
    if all.is_empty() {
        return "no operations".to_string();
    }
    let row = |one: &OperationView| {
        vec![
            one.id.to_string(),
            words(&one.kind),
            one.cluster.name.clone(),
            words(&one.state),
            or_dash(one.failure.clone().or(one.progress.clone())),
        ]
    };
    table(&["operation", "kind", "cluster", "state", "detail"], all.iter().map(row).collect(), width)
}

pub fn operation(view: &OperationView, width: u16) -> String {
    let mut facts = vec![
        ("operation", view.id.to_string()),
        ("kind", words(&view.kind)),
        ("cluster", format!("{} ({})", view.cluster.name, view.cluster.id)),
        ("state", words(&view.state)),
        ("started", view.started_at.clone()),
    ];
    if let Some(ended) = &view.ended_at {
        facts.push(("ended", ended.clone()));
    }
    if let Some(progress) = &view.progress {
        facts.push(("progress", progress.clone()));
    }
    if let Some(failure) = &view.failure {
        facts.push(("failure", failure.clone()));
    }
    pairs(facts, width)
}

pub fn events(all: &[EventView], _width: u16) -> String {
    if all.is_empty() {
        return "no events".to_string();
    }
    all.iter().map(event).collect::<Vec<_>>().join("\n")
}

/// One line, so that following and searching work.
pub fn event(one: &EventView) -> String {
    let about = one.cluster_name.as_ref().map_or_else(String::new, |name| format!("{name}: "));
    format!("{:>6}  {}  {about}{} [{}]", one.sequence, one.at, one.message, one.kind)
}
