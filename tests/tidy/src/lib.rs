//! Reads the repository for the checks in `tests/`: its files, its manifests, its documents. It changes nothing.
//! A check collects every fault that it finds and fails once, so that one run shows all there is to mend.

use std::fs;
use std::path::{Path, PathBuf};

/// The root of the checkout.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("this crate lies two folders below the root").to_path_buf()
}

/// Every file of the repository, relative to the root, sorted. What git tracks; where there is no git (an unpacked
/// archive), what lies in the folder apart from what a build leaves.
pub fn files() -> Vec<PathBuf> {
    let root = root();
    let mut files = tracked(&root).unwrap_or_else(|| {
        let mut found = Vec::new();
        walk(&root, Path::new(""), &mut found);
        found
    });
    // A tracked file may be deleted and the deletion not committed yet.
    files.retain(|file| fs::symlink_metadata(root.join(file)).is_ok_and(|found| found.is_file()));
    files.sort();
    assert!(files.len() > 20, "only {} files found under {}", files.len(), root.display());
    files
}

pub fn files_ending(end: &str) -> Vec<PathBuf> {
    files().into_iter().filter(|file| file.to_string_lossy().ends_with(end)).collect()
}

/// The text of a file of the repository; `None` when it is not text.
pub fn read(file: &Path) -> Option<String> {
    fs::read(root().join(file)).ok().and_then(|bytes| String::from_utf8(bytes).ok())
}

/// A file that must be there.
pub fn read_toml(file: impl AsRef<Path>) -> toml::Table {
    let file = file.as_ref();
    let text = read(file).unwrap_or_else(|| panic!("{} is missing", file.display()));
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Fails with every fault on a line of its own.
#[track_caller]
pub fn assert_none(rule: &str, faults: &[String]) {
    assert!(faults.is_empty(), "{rule}\n  {}", faults.join("\n  "));
}

/// The lines of a Rust file that are code, with their numbers from 1: no comments, which may name what is banned.
pub fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[expect(clippy::disallowed_methods, reason = "the one place of this crate that runs a program")]
fn tracked(root: &Path) -> Option<Vec<PathBuf>> {
    let output = std::process::Command::new("git").arg("-C").arg(root).args(["ls-files", "-z"]).output().ok()?;
    let text = output.status.success().then(|| String::from_utf8(output.stdout).ok())??;
    let files: Vec<PathBuf> = text.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect();
    (!files.is_empty()).then_some(files)
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<PathBuf>) {
    const NOT_OURS: &[&str] = &[".git", "target", ".demo", "node_modules"];
    let Ok(entries) = fs::read_dir(root.join(folder)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let path = folder.join(&name);
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && !NOT_OURS.iter().any(|other| name == *other) => walk(root, &path, found),
            Ok(kind) if kind.is_file() => found.push(path),
            _ => {}
        }
    }
}
