//! Runs many seeds and counts what happened in them.

use pgstead_sim::run::run_seed;
use std::collections::BTreeMap;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut seeds, mut start, mut verbose) = (100u64, 1u64, false);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse().ok());
        match argument.as_str() {
            "--seeds" => seeds = number().unwrap_or(seeds),
            "--start" => start = number().unwrap_or(start),
            "--verbose" => verbose = true,
            other => {
                eprintln!("unknown argument {other}; expected --seeds N, --start S, --verbose");
                return ExitCode::from(2);
            }
        }
    }
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let (mut failed, mut rows, mut epochs) = (Vec::new(), 0, 0);
    for seed in start..start + seeds {
        let course = run_seed(seed);
        if verbose {
            println!("--- seed {seed}, {} members", course.members);
            course.transcript.iter().for_each(|line| println!("{line}"));
        }
        for (what, count) in course.counts {
            *counts.entry(what).or_default() += count;
        }
        rows += course.acknowledged;
        epochs += course.epochs;
        if let Some(why) = course.failure {
            println!("seed {seed} ({} members): {why}", course.members);
            failed.push(seed);
        }
    }
    for (what, count) in &counts {
        println!("{count:>8}  {what}");
    }
    println!("{rows:>8}  rows acknowledged");
    println!("{epochs:>8}  epochs");
    if !failed.is_empty() {
        println!("failing seeds: {failed:?}");
    }
    println!("sim: {seeds} seeds, {} failed", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
