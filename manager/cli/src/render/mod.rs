//! Tables for people, readable at 100 columns. Pure: a view and a width in, text out.

mod cluster;
mod leaders;
mod lists;
mod log;
mod placement;
mod slots;

pub use cluster::{cluster, clusters, connection, describe_steps, members};
pub use leaders::{failover_check, switchover_check};
pub use lists::{Status, node, nodes, snapshots, status, token, volumes};
pub use log::{event, events, operation, operations};
pub use placement::placement;

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use pgstead_api::view::FindingView;
use pgstead_types::{Bytes, Severity};

/// A table without lines: columns under upper-case heads.
fn table(head: &[&str], rows: Vec<Vec<String>>, width: u16) -> String {
    let mut table = bare(width);
    table.set_header(head.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    // Names and ids are typed again or copied, so they are never broken.
    if let Some(first) = table.column_mut(0) {
        first.set_constraint(ColumnConstraint::ContentWidth);
    }
    trim(&table)
}

/// Names and values side by side.
fn pairs(rows: Vec<(&str, String)>, width: u16) -> String {
    let mut table = bare(width);
    for (name, value) in rows {
        table.add_row(vec![format!("{name}:"), value]);
    }
    trim(&table)
}

fn bare(width: u16) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    table
}

fn trim(table: &Table) -> String {
    // Every cell is padded by one blank at both sides.
    let lines: Vec<String> =
        table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_string()).collect();
    lines.join("\n")
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_string())
}

fn size(bytes: Option<u64>) -> String {
    or_dash(bytes.map(|bytes| Bytes(bytes).to_string()))
}

fn age(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..120_000 => format!("{} s", ms / 1000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

/// A serialised enum's text with blanks: `writes_wait` reads `writes wait`.
fn words(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text.replace('_', " "),
        _ => String::new(),
    }
}

fn findings(all: &[FindingView], width: u16) -> String {
    let mut table = bare(width);
    for one in all {
        let severity = match one.severity {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        let about = one.member.as_ref().or(one.node.as_ref()).or(one.cluster.as_ref());
        let about = about.map_or_else(String::new, |about| format!("{about}: "));
        table.add_row(vec![severity.to_string(), format!("{about}{} [{}]", one.message, one.code)]);
    }
    trim(&table)
}

#[cfg(test)]
mod tests;
