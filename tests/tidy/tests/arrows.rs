//! Which crate may use which, read from the manifests. A crate exists where a dependency must be forbidden, so these
//! tables are the reason that the crates exist.

use pgstead_tidy::{assert_none, code_lines, files_ending, read, read_toml};
use std::collections::BTreeMap;
use std::path::Path;
use toml::Value;

const TYPES: &str = "pgstead-types";

/// Every crate of the workspace, and which of our own it may use. `None`: it composes, or it is a test of the whole.
const ARROWS: &[(&str, Option<&[&str]>)] = &[
    ("manager/types", Some(&[])),
    ("manager/core", Some(&[TYPES])),
    ("manager/agent", Some(&[TYPES])),
    ("manager/consensus", Some(&[TYPES])),
    ("manager/consensus/histogram", Some(&[])),
    ("manager/gateway", Some(&[TYPES])),
    ("manager/api", Some(&[TYPES])),
    ("manager/cli", Some(&["pgstead-api", TYPES])),
    ("manager/daemon", None),
    ("volumes", Some(&[TYPES, "pgstead-lvm"])),
    ("volumes/lvm", Some(&[TYPES])),
    ("replication", Some(&[TYPES])),
    ("tests/sim", None),
    ("tests/model", None),
    ("tests/cluster", None),
    ("tests/vm", None),
    ("tests/tidy", Some(&[])),
];

/// Pure crates: whatever they use besides our own must be free of IO, clocks and randomness.
const PURE: &[&str] = &["manager/core", "manager/agent"];
const PURE_MAY_USE: &[&str] = &[TYPES, "serde", "thiserror"];

/// Crates that the simulation drives just as the daemon does.
const SIMULATED: &[&str] = &["manager/core", "manager/agent", "manager/consensus"];

/// Third parties that only some rooms may name, so that one folder changes when they do.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("openraft", &["manager/consensus", "tests/sim"]),
    ("openraft-rt-sim", &["manager/consensus", "tests/sim"]),
    ("redb", &["manager/consensus", "tests/sim"]),
];

/// Names in the tables of the manifest that make a crate depend on another, wherever they stand (also per target).
fn dependencies(manifest: &toml::Table, kinds: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (key, value) in manifest {
        let Value::Table(table) = value else { continue };
        if kinds.contains(&key.as_str()) {
            for (name, how) in table {
                // A renamed dependency stands under another name than its own.
                let real = how.get("package").and_then(Value::as_str).unwrap_or(name);
                found.push(real.to_string());
            }
        } else if key == "target" {
            for target in table.values().filter_map(Value::as_table) {
                found.extend(dependencies(target, kinds));
            }
        }
    }
    found
}

const PRODUCT: &[&str] = &["dependencies", "build-dependencies"];
const ALL: &[&str] = &["dependencies", "build-dependencies", "dev-dependencies"];

fn members() -> BTreeMap<String, toml::Table> {
    let root = read_toml("Cargo.toml");
    let members = root["workspace"]["members"].as_array().expect("the workspace lists its members");
    let names = members.iter().map(|name| name.as_str().expect("a member is a path"));
    names.map(|name| (name.to_string(), read_toml(Path::new(name).join("Cargo.toml")))).collect()
}

#[test]
fn every_crate_has_its_place_in_the_table() {
    let members = members();
    let mut faults = Vec::new();
    for name in members.keys().filter(|name| !ARROWS.iter().any(|(folder, _)| folder == name)) {
        faults.push(format!("{name} has no arrows; add it to the table with what it may use"));
    }
    for (folder, _) in ARROWS.iter().filter(|(folder, _)| !members.contains_key(*folder)) {
        faults.push(format!("{folder} is in the table and not in the workspace"));
    }
    assert_none("crates and the table of arrows", &faults);
}

#[test]
fn crates_use_only_what_their_arrows_allow() {
    let members = members();
    let mut faults = Vec::new();
    for (folder, allowed) in ARROWS {
        let (Some(allowed), Some(manifest)) = (allowed, members.get(*folder)) else { continue };
        for name in dependencies(manifest, ALL).iter().filter(|name| name.starts_with("pgstead")) {
            if !allowed.contains(&name.as_str()) {
                faults.push(format!("{folder} uses {name}; it may use {allowed:?} of ours"));
            }
        }
    }
    assert_none("arrows between crates", &faults);
}

#[test]
fn only_the_daemon_composes() {
    let mut faults = Vec::new();
    for (folder, manifest) in members() {
        let names = dependencies(&manifest, PRODUCT);
        let rooms = ["pgstead-core", "pgstead-agent", "pgstead-volumes", "pgstead-replication", "pgstead-gateway"];
        let used: Vec<_> = rooms.iter().filter(|room| names.iter().any(|name| name == *room)).collect();
        if used.len() > 1 && folder != "manager/daemon" && !folder.starts_with("tests/") {
            faults.push(format!("{folder} composes {used:?}"));
        }
    }
    assert_none("rooms meet in manager/daemon alone", &faults);
}

#[test]
fn pure_crates_use_nothing_that_could_do_io() {
    let members = members();
    let mut faults = Vec::new();
    for folder in PURE {
        for name in dependencies(&members[*folder], PRODUCT) {
            if !PURE_MAY_USE.contains(&name.as_str()) {
                faults.push(format!("{folder} uses {name}; it may use {PURE_MAY_USE:?}"));
            }
        }
    }
    for file in files_ending(".rs").iter().filter(|file| PURE.iter().any(|folder| file.starts_with(folder))) {
        let text = read(file).unwrap_or_default();
        for (number, line) in code_lines(&text) {
            for banned in ["HashMap", "HashSet", "std::fs", "std::net", "Tick::now", "WallTime::now", "async fn"] {
                if line.contains(banned) {
                    faults.push(format!("{}:{number} has {banned}", file.display()));
                }
            }
        }
    }
    assert_none("core and agent are pure: told the time, ordered, without IO", &faults);
}

#[test]
fn what_is_simulated_is_what_runs() {
    let members = members();
    let mut faults = Vec::new();
    for folder in SIMULATED {
        if members[*folder].contains_key("features") {
            faults.push(format!("{folder} has cargo features"));
        }
    }
    for file in files_ending(".rs").iter().filter(|file| SIMULATED.iter().any(|folder| file.starts_with(folder))) {
        let text = read(file).unwrap_or_default();
        for (number, line) in code_lines(&text) {
            let conditional = line.contains("cfg(") || line.contains("cfg!(") || line.contains("cfg_attr(");
            if conditional && line.trim() != "#[cfg(test)]" {
                faults.push(format!("{}:{number} is compiled conditionally: {}", file.display(), line.trim()));
            }
        }
    }
    assert_none("the simulation drives the very code that the daemon does", &faults);
}

#[test]
fn some_third_parties_are_named_in_one_room_only() {
    let mut faults = Vec::new();
    for (folder, manifest) in members() {
        for (name, rooms) in ONLY_IN {
            let used = dependencies(&manifest, ALL).iter().any(|used| used == name);
            if used && !rooms.contains(&folder.as_str()) {
                faults.push(format!("{folder} uses {name}; only {rooms:?} may"));
            }
        }
    }
    assert_none("third parties that only some rooms may name", &faults);
}

#[test]
fn every_crate_takes_its_lints_versions_and_licence_from_the_workspace() {
    let mut faults = Vec::new();
    for (folder, manifest) in members() {
        let inherits = |table: &str, key: &str| {
            let value = manifest.get(table).and_then(|table| table.get(key));
            value == Some(&Value::Boolean(true))
                || value.and_then(|value| value.get("workspace")) == Some(&Value::Boolean(true))
        };
        if !inherits("lints", "workspace") {
            faults.push(format!("{folder}: [lints] workspace = true is missing"));
        }
        // A crate that stands in for a published one has that one's version.
        let stands_in = !manifest["package"]["name"].as_str().is_some_and(|name| name.starts_with("pgstead"));
        if !stands_in && !inherits("package", "version") {
            faults.push(format!("{folder}: version.workspace = true is missing"));
        }
        for key in ["edition", "rust-version", "license", "publish"] {
            if !inherits("package", key) {
                faults.push(format!("{folder}: {key}.workspace = true is missing"));
            }
        }
        let description = manifest["package"].get("description").and_then(Value::as_str).unwrap_or_default();
        if !description.contains(' ') {
            faults.push(format!("{folder}: the description {description:?} does not say what the crate is for"));
        }
        for kind in ALL {
            let Some(Value::Table(table)) = manifest.get(*kind) else { continue };
            for (name, how) in table {
                if how.get("workspace") != Some(&Value::Boolean(true)) {
                    faults.push(format!("{folder}: {name} is not taken from [workspace.dependencies]"));
                }
            }
        }
    }
    assert_none("manifests", &faults);
}
