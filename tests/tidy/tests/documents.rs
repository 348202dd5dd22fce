//! What documents promise exists: the targets of links, the `make` targets that they name, the numbers of decisions,
//! the expectations of scenarios.

use pgstead_tidy::{assert_none, files, files_ending, read, root};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Targets of `[text](target)` outside of code, with their line numbers.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_block = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        }
        if in_block {
            continue;
        }
        // Every second piece between backticks is code.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for piece in prose.split("](").skip(1) {
            if let Some((target, _)) = piece.split_once(')') {
                found.push((index + 1, target.split_whitespace().next().unwrap_or_default().to_string()));
            }
        }
    }
    found
}

/// The words after `make` wherever a document shows it as code: in backticks, or at the start of a line of a block.
fn make_targets(text: &str) -> BTreeSet<String> {
    let mut commands: Vec<&str> = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            commands.push(line.trim_start_matches("$ "));
        } else {
            commands.extend(line.split('`').skip(1).step_by(2));
        }
    }
    let mut targets = BTreeSet::new();
    for command in commands {
        for part in command.split("&&") {
            let Some(rest) = part.trim().strip_prefix("make ") else { continue };
            // Up to a comment; NAME=value and options are not targets.
            let words = rest.split_whitespace().take_while(|word| !word.starts_with('#'));
            targets.extend(words.filter(|word| !word.contains('=') && !word.starts_with('-')).map(str::to_string));
        }
    }
    targets
}

fn makefile_targets() -> BTreeSet<String> {
    let text = read(Path::new("Makefile")).expect("there is a Makefile");
    let rules = text.lines().filter(|line| !line.starts_with(['\t', '#', ' ', '.']));
    let names = rules.filter_map(|line| line.split_once(':')).filter(|(_, rest)| !rest.starts_with('='));
    names.flat_map(|(names, _)| names.split_whitespace().map(str::to_string).collect::<Vec<_>>()).collect()
}

#[test]
fn relative_links_lead_somewhere() {
    let mut faults = Vec::new();
    for file in files_ending(".md") {
        let text = read(&file).unwrap_or_default();
        for (line, target) in links(&text) {
            if target.contains("://") || target.starts_with("mailto:") || target.starts_with('#') {
                continue;
            }
            let path = target.split('#').next().unwrap_or_default();
            let folder = root().join(&file).parent().expect("a file lies in a folder").to_path_buf();
            if target.starts_with('/') || !folder.join(path).exists() {
                faults.push(format!("{}:{line} links to {target}", file.display()));
            }
        }
    }
    assert_none("links in documents", &faults);
}

#[test]
fn every_make_target_that_a_document_names_exists() {
    let targets = makefile_targets();
    let mut faults = Vec::new();
    for file in files_ending(".md") {
        for target in make_targets(&read(&file).unwrap_or_default()) {
            if !targets.contains(&target) {
                faults.push(format!("{} names make {target}; the Makefile has {targets:?}", file.display()));
            }
        }
    }
    assert_none("make targets", &faults);
}

#[test]
fn make_help_lists_every_target() {
    let text = read(Path::new("Makefile")).expect("there is a Makefile");
    let undocumented = makefile_targets().into_iter().filter(|name| {
        let rule = text.lines().find(|line| line.starts_with(&format!("{name}:")));
        !rule.is_some_and(|line| line.contains("## "))
    });
    let faults: Vec<_> =
        undocumented.map(|name| format!("{name} has no ## text, so make help leaves it out")).collect();
    assert_none("the Makefile", &faults);
}

#[test]
fn decisions_have_unique_numbers_and_their_own_headings() {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let mut faults = Vec::new();
    for file in files().iter().filter(|file| file.starts_with("docs/decisions")) {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == "README.md" {
            continue;
        }
        let number = name.split('-').next().unwrap_or_default().to_string();
        if number.len() != 4 || !number.bytes().all(|byte| byte.is_ascii_digit()) || !name.ends_with(".md") {
            faults.push(format!("{name} is not named NNNN-title.md"));
            continue;
        }
        if let Some(other) = seen.insert(number.clone(), name.clone()) {
            faults.push(format!("{name} and {other} have the same number"));
        }
        let text = read(file).unwrap_or_default();
        if !text.starts_with(&format!("# {number}: ")) || !text.contains("\nStatus: ") {
            faults.push(format!("{name} does not begin with # {number}: and a Status: line"));
        }
    }
    assert_none("docs/decisions", &faults);
}

#[test]
fn every_scenario_says_what_it_expects() {
    let mut faults = Vec::new();
    for file in files()
        .iter()
        .filter(|file| file.starts_with("tests/scenarios") && file.extension().is_some_and(|e| e == "txt"))
    {
        let text = read(file).unwrap_or_default();
        let expects: Vec<_> =
            text.lines().filter_map(|line| line.trim_start_matches("# ").strip_prefix("expect: ")).collect();
        if expects.is_empty() {
            faults.push(format!("{} has no line expect: leader=..., epoch=..., lost=...", file.display()));
        }
        for line in expects {
            let keys: Vec<_> = line.split(", ").filter_map(|part| part.split_once('=')).collect();
            let complete =
                ["leader", "epoch", "lost"].iter().all(|key| keys.iter().any(|(k, v)| k == key && !v.is_empty()));
            if !complete {
                faults.push(format!("{}: expect: {line} lacks leader=, epoch= or lost=", file.display()));
            }
        }
    }
    assert_none("scenarios", &faults);
}

/// The readers above would pass over everything if they found nothing.
#[test]
fn the_readers_of_documents_find_what_is_there() {
    let text = "See [a](b.md#c) and `[not](this)`, run `make demo SEED=1`.\n```\n$ make test && make fix # make no\n[x](y)\n```\n";
    assert_eq!(links(text), [(1, "b.md#c".to_string())]);
    let expected: BTreeSet<_> = ["demo", "fix", "test"].map(str::to_string).into();
    assert_eq!(make_targets(text), expected);
    assert!(makefile_targets().contains("test"));
}
