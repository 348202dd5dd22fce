//! Removes one rule after another from a copy of the tree, runs the simulation on it until a seed fails, and prints what
//! noticed. Takes hours for all; a name as an argument runs those with that in their names.

use pgstead_sim::mutant::Mutant;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

const USAGE: &str = "expected --root FOLDER [--seeds N] [PART OF A NAME ...]";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("mutants: {why}");
            ExitCode::from(2)
        }
    }
}

/// Whether the simulation noticed all of them.
fn run() -> Result<bool, String> {
    let (mut root, mut seeds, mut parts) = (None, 10_000, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--root" => root = arguments.next().map(PathBuf::from),
            "--seeds" => seeds = arguments.next().and_then(|text| text.parse().ok()).ok_or(USAGE)?,
            part if !part.starts_with('-') => parts.push(part.to_string()),
            _ => return Err(USAGE.into()),
        }
    }
    let root = root.ok_or(USAGE)?.canonicalize().map_err(|why| format!("the root: {why}"))?;
    let place = root.join("target/mutants");
    let copy = place.join("tree");
    copy_tree(&root, &copy)?;
    let mut mutants = Mutant::all(&root.join("tests/sim/mutants"))?;
    mutants.retain(|mutant| parts.is_empty() || parts.iter().any(|part| mutant.name.contains(part.as_str())));
    println!("| removed | noticed by | at seed |\n|---|---|---|");
    let mut all = true;
    for mutant in &mutants {
        let verdict = apply_and_run(mutant, &copy, &place.join("target"), seeds);
        // The copy is whole again before anything else is done with it.
        for edit in &mutant.edits {
            std::fs::copy(root.join(&edit.file), copy.join(&edit.file))
                .map_err(|why| format!("{}: {why}", edit.file))?;
            touch(&copy.join(&edit.file))?;
        }
        let (by, seed) = match verdict {
            Ok(Some((seed, by))) => (by, seed.to_string()),
            Ok(None) => {
                all = false;
                ("nothing".to_string(), format!("not within {seeds}"))
            }
            Err(why) => {
                all = false;
                (format!("it could not be run: {why}"), "none".to_string())
            }
        };
        println!("| {}: {} | {by} | {seed} |", mutant.name, mutant.title);
    }
    Ok(all)
}

#[expect(clippy::disallowed_methods, reason = "this program starts git and cargo, and nothing of the product")]
fn program(name: &str) -> Command {
    Command::new(name)
}

/// What git knows or could be told of; files that are the same stay as they are, so that little is built again.
fn copy_tree(root: &Path, copy: &Path) -> Result<(), String> {
    let output = program("git")
        .current_dir(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .map_err(|why| format!("git: {why}"))?;
    for name in String::from_utf8_lossy(&output.stdout).split('\0').filter(|name| !name.is_empty()) {
        let (from, to) = (root.join(name), copy.join(name));
        let Ok(now) = std::fs::read(&from) else { continue }; // Removed, and not told to git yet.
        if std::fs::read(&to).ok().as_ref() == Some(&now) {
            continue;
        }
        let folder = to.parent().ok_or("a file without a folder")?;
        std::fs::create_dir_all(folder).map_err(|why| format!("{}: {why}", folder.display()))?;
        std::fs::write(&to, now).map_err(|why| format!("{}: {why}", to.display()))?;
    }
    Ok(())
}

/// A file that was put back must look new, or cargo goes by the older time and keeps what it built of the other text.
fn touch(path: &Path) -> Result<(), String> {
    let text = std::fs::read(path).map_err(|why| format!("{}: {why}", path.display()))?;
    std::fs::write(path, text).map_err(|why| format!("{}: {why}", path.display()))
}

/// The first failing seed, with what failed.
fn apply_and_run(mutant: &Mutant, copy: &Path, target: &Path, seeds: u64) -> Result<Option<(u64, String)>, String> {
    for edit in &mutant.edits {
        let path = copy.join(&edit.file);
        let text = std::fs::read_to_string(&path).map_err(|why| format!("{}: {why}", edit.file))?;
        std::fs::write(&path, edit.applied(&text)?).map_err(|why| format!("{}: {why}", edit.file))?;
    }
    // Fast enough to run, and built again quickly.
    let built = program("cargo")
        .current_dir(copy)
        .args(["build", "--quiet", "--release", "-p", "pgstead-sim", "--bin", "sim", "--target-dir"])
        .arg(target)
        .env("CARGO_PROFILE_RELEASE_INCREMENTAL", "true")
        .output()
        .map_err(|why| format!("cargo: {why}"))?;
    if !built.status.success() {
        let text = String::from_utf8_lossy(&built.stderr);
        let first = text.lines().find(|line| line.starts_with("error")).unwrap_or("it does not build");
        return Err(first.to_string());
    }
    let ran = program(&target.join("release/sim").to_string_lossy())
        .args(["--until-failed", "--seeds", &seeds.to_string()])
        .stderr(Stdio::null())
        .output()
        .map_err(|why| format!("sim: {why}"))?;
    let text = String::from_utf8_lossy(&ran.stdout);
    // `seed 12 (3 members): what`
    let failed = text.lines().find_map(|line| {
        let (seed, what) = line.strip_prefix("seed ")?.split_once(" (")?;
        Some((seed.parse().ok()?, what.split_once("): ")?.1.replace('|', "/")))
    });
    Ok(failed)
}
