//! The reference of findings: what the product can show, with its severity, is in `docs/findings.md`, and nothing else is.

use pgstead_tidy::{assert_none, code_lines, files_ending, read};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const REFERENCE: &str = "docs/findings.md";
/// Where `Finding` itself is made.
const TYPE: &str = "manager/types/src/finding.rs";
const SEVERITIES: [&str; 3] = ["error", "warning", "info"];

/// Codes that are not named in the call itself: the file, what stands before them there, and the severity that they get.
const HELPERS: [(&str, &str, &str); 3] = [
    ("manager/core/src/forced.rs", "refuse(", "error"),
    ("manager/core/src/switchover_check.rs", "block(", "error"),
    ("manager/types/src/trouble.rs", "=>", "error"),
];

/// What stands in place of a code where it is handed on: `HELPERS` reads these codes where they are named.
const HANDED_ON: [(&str, &str); 3] = [
    ("manager/core/src/forced.rs", "code,"),
    ("manager/core/src/health.rs", "trouble.code(),"),
    ("manager/core/src/switchover_check.rs", "code,"),
];

/// Codes with their severities.
type Codes = BTreeMap<String, BTreeSet<String>>;

/// What a file's product code emits. `Err` says where a code is handed on that nobody is known to name.
fn emitted(file: &str, text: &str) -> Result<Vec<(String, &'static str)>, String> {
    let product = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    // The code of a call may stand on the next line.
    let code: Vec<&str> = code_lines(product).map(|(_, line)| line).collect();
    let code = code.join("\n");
    let mut found = Vec::new();
    for severity in SEVERITIES {
        for rest in after(&code, &format!("Finding::{severity}(")) {
            let handed_on = || HANDED_ON.iter().any(|(of, what)| *of == file && rest.starts_with(what));
            match literal(rest) {
                Some(code) => found.push((code, severity)),
                None if handed_on() => {}
                None => return Err(format!("{file}: Finding::{severity}({}", rest.lines().next().unwrap_or_default())),
            }
        }
    }
    if file != TYPE && code.contains("Finding::new(") {
        return Err(format!("{file}: Finding::new("));
    }
    for (_, before, severity) in HELPERS.iter().filter(|(of, ..)| *of == file) {
        found.extend(after(&code, before).filter_map(literal).map(|code| (code, *severity)));
    }
    Ok(found)
}

/// What follows each `before`, without the blanks between.
fn after<'a>(text: &'a str, before: &str) -> impl Iterator<Item = &'a str> {
    text.match_indices(before).map(move |(at, found)| text[at + found.len()..].trim_start())
}

/// A string at the beginning that can be a code: a sentence is none.
fn literal(text: &str) -> Option<String> {
    let (code, _) = text.strip_prefix('"')?.split_once('"')?;
    let is_code = !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    is_code.then(|| code.to_string())
}

/// The rows of the reference: `` | `code` | severity, severity | … ``. A code that has two rows is a fault.
fn documented(text: &str, faults: &mut Vec<String>) -> Codes {
    let mut codes = Codes::new();
    for line in text.lines() {
        let Some((code, rest)) = line.strip_prefix("| `").and_then(|row| row.split_once("` | ")) else { continue };
        let severities = rest.split(" | ").next().unwrap_or_default().split(", ").map(str::to_string).collect();
        if codes.insert(code.to_string(), severities).is_some() {
            faults.push(format!("{REFERENCE} has {code} twice"));
        }
    }
    codes
}

fn is_product(file: &str) -> bool {
    let of_product = ["manager/", "replication/", "volumes/"].iter().any(|folder| file.starts_with(folder));
    of_product && !file.contains("/tests/") && !file.ends_with("tests.rs")
}

#[test]
fn every_finding_is_in_the_reference() {
    let mut faults = Vec::new();
    let mut codes = Codes::new();
    for path in files_ending(".rs") {
        let file = path.to_string_lossy();
        if !is_product(&file) {
            continue;
        }
        match emitted(&file, &read(&path).unwrap_or_default()) {
            Ok(found) => {
                for (code, severity) in found {
                    codes.entry(code).or_default().insert(severity.to_string());
                }
            }
            Err(call) => faults.push(format!("{call} … has no code that can be read: name it there, or see HELPERS")),
        }
    }
    assert!(codes.len() > 80, "only {} codes found in the sources", codes.len());
    let documented = documented(&read(Path::new(REFERENCE)).unwrap_or_default(), &mut faults);
    for (code, severities) in &codes {
        match documented.get(code) {
            None => faults.push(format!("{REFERENCE} lacks a row | `{code}` |")),
            Some(named) if named != severities => {
                faults.push(format!("{REFERENCE} calls {code} {named:?}; it is {severities:?}"));
            }
            Some(_) => {}
        }
    }
    let unknown = documented.keys().filter(|code| !codes.contains_key(*code));
    faults.extend(unknown.map(|code| format!("{REFERENCE} has {code}, which nothing shows")));
    assert_none("findings and their reference", &faults);
}

/// The readers above would pass over everything if they found nothing.
#[test]
fn every_finding_is_read_however_it_is_written() {
    let text = "Finding::error(\"a_b\", text);\n// Finding::info(\"no\", \"\")\nFinding::warning(\n    \"c\",\n    text,\n)\n\
                block(\"d\", \"sentence\".into());\nFinding::error(code, text)\n#[cfg(test)]\nmod tests {\n    Finding::info(\"e\", \"\")\n";
    let found = emitted("manager/core/src/switchover_check.rs", text).expect("what is handed on there is known");
    let expected = [("a_b", "error"), ("c", "warning"), ("d", "error")].map(|(code, of)| (code.to_string(), of));
    assert_eq!(found, expected);
    assert!(emitted("manager/core/src/slots.rs", text).is_err(), "nobody is known to name the code that is handed on");
    let mut faults = Vec::new();
    let rows = documented("| code |\n|---|\n| `a` | warning, info | x |\n| `a` | info | x |\n", &mut faults);
    assert_eq!((rows.keys().map(String::as_str).collect::<Vec<_>>(), faults.len()), (vec!["a"], 1));
}
