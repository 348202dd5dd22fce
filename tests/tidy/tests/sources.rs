//! Rules for every file: headers, clocks, sizes, paths, and the lint tables that must stay in step.

use pgstead_tidy::{assert_none, code_lines, files, files_ending, read, read_toml, root};
use std::path::Path;
use toml::Value;

/// A file above this is data or a build's output; neither belongs into the history.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

#[test]
fn every_rust_file_says_what_it_is_responsible_for() {
    let mut faults = Vec::new();
    for file in files_ending(".rs") {
        let text = read(&file).unwrap_or_default();
        let header = text.lines().next().unwrap_or_default();
        if !header.starts_with("//! ") || header.len() < 20 {
            faults.push(format!("{} begins with {header:?}", file.display()));
        }
    }
    assert_none("every .rs file opens with //! and what it is responsible for", &faults);
}

#[test]
fn nothing_waits_by_sleeping_a_thread() {
    let sleep = ["thread", "::sleep"].concat(); // Not in one piece, or this line would be found.
    let mut faults = Vec::new();
    for file in files_ending(".rs") {
        let text = read(&file).unwrap_or_default();
        for (number, _) in code_lines(&text).filter(|(_, line)| line.contains(&sleep)) {
            faults.push(format!("{}:{number}", file.display()));
        }
    }
    assert_none("wait on a condition with a deadline instead of sleeping", &faults);
}

#[test]
fn clocks_are_read_in_one_file() {
    let clock = Path::new("manager/types/src/time.rs");
    // `<Runtime as AsyncRuntime>::Instant::now()` is the runtime's own time, virtual in the simulation.
    let reads = |line: &str| {
        let names = ["SystemTime", "Instant"].map(|clock| format!("{clock}::now"));
        names.iter().any(|name| line.match_indices(name.as_str()).any(|(at, _)| !line[..at].ends_with(">::")))
    };
    let mut faults = Vec::new();
    for file in files_ending(".rs").iter().filter(|file| *file != clock) {
        let text = read(file).unwrap_or_default();
        for (number, line) in code_lines(&text) {
            if reads(line) {
                faults.push(format!("{}:{number} {}", file.display(), line.trim()));
            }
        }
    }
    assert_none("only manager/types/src/time.rs reads a clock", &faults);
}

#[test]
fn no_file_is_too_large_for_the_history() {
    let mut faults = Vec::new();
    for file in files() {
        let size = root().join(&file).metadata().map_or(0, |found| found.len());
        if size > FILE_BYTES_MAX {
            faults.push(format!("{} has {size} bytes, expected at most {FILE_BYTES_MAX}", file.display()));
        }
    }
    assert_none("large files", &faults);
}

#[test]
fn no_file_names_a_folder_of_somebodys_own_machine() {
    let private = ["home", "root", "work", "Users"].map(|name| format!("/{name}/"));
    let mut faults = Vec::new();
    for file in files() {
        let Some(text) = read(&file) else { continue };
        for (index, line) in text.lines().enumerate() {
            for path in &private {
                // Only where it begins a path: `manager/work/x` and `https://host/work/` are none of these.
                let begins =
                    |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "/_-.}~)*>".contains(c));
                if line.match_indices(path.as_str()).any(|(at, _)| begins(at)) {
                    faults.push(format!("{}:{} {}", file.display(), index + 1, line.trim()));
                }
            }
        }
    }
    assert_none("absolute paths of one machine", &faults);
}

#[test]
fn shell_scripts_stop_at_the_first_failure() {
    let mut faults = Vec::new();
    for file in files() {
        let Some(text) = read(&file) else { continue };
        if text.starts_with("#!") && text.lines().next().is_some_and(|line| line.contains("sh")) {
            if !text.lines().any(|line| line == "set -euo pipefail") {
                faults.push(format!("{} lacks set -euo pipefail", file.display()));
            }
            if !text.lines().nth(1).is_some_and(|line| line.starts_with("# ")) {
                faults.push(format!("{} does not say in its second line what it is for", file.display()));
            }
        }
    }
    assert_none("shell scripts", &faults);
}

/// The nearest clippy.toml counts alone, so a ban of the root that is not repeated is lifted without a word.
#[test]
fn the_bans_of_pure_crates_contain_those_of_the_root() {
    let root = read_toml("clippy.toml");
    let mut faults = Vec::new();
    for own in ["manager/core/clippy.toml", "manager/agent/clippy.toml"] {
        let table = read_toml(own);
        for (key, value) in &root {
            let missing: Vec<&Value> = match (value, table.get(key)) {
                (Value::Array(wanted), Some(Value::Array(found))) => {
                    wanted.iter().filter(|ban| !found.contains(ban)).collect()
                }
                (wanted, Some(found)) if wanted == found => Vec::new(),
                (wanted, _) => vec![wanted],
            };
            faults.extend(missing.iter().map(|missing| format!("{own}: {key} lacks {missing}")));
        }
        let types = table.get("disallowed-types").and_then(Value::as_array).cloned().unwrap_or_default();
        for banned in ["std::collections::HashMap", "std::collections::HashSet"] {
            if !types.iter().any(|ban| ban.get("path").and_then(Value::as_str) == Some(banned)) {
                faults.push(format!("{own}: {banned} is not banned"));
            }
        }
    }
    assert_none("clippy.toml of core and agent", &faults);
}

/// A ban without its reason is the first to be lifted by someone who does not know what it was for.
#[test]
fn every_ban_gives_its_reason() {
    let mut faults = Vec::new();
    for file in ["clippy.toml", "manager/core/clippy.toml", "manager/agent/clippy.toml"] {
        for (key, value) in read_toml(file) {
            for ban in value.as_array().into_iter().flatten() {
                if ban.get("reason").and_then(Value::as_str).is_none_or(|reason| !reason.contains(' ')) {
                    faults.push(format!("{file}: {key}: {ban}"));
                }
            }
        }
    }
    let deny = read_toml("deny.toml");
    for ban in deny["bans"]["deny"].as_array().into_iter().flatten() {
        if ban.get("reason").and_then(Value::as_str).is_none_or(|reason| !reason.contains(' ')) {
            faults.push(format!("deny.toml: {ban}"));
        }
    }
    assert_none("bans give their reason", &faults);
}
