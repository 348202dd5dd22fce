//! Runs many seeds on all cores, counts what happened in them, and says what never did.

use pgstead_sim::run::{Course, run_moving_seed, run_seed};
use pgstead_sim::tally::{Tally, required};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

struct Wanted {
    seeds: u64,
    start: u64,
    threads: u64,
    verbose: bool,
    /// End with the first seed that fails.
    until_failed: bool,
    /// The courses in which the number of members changes.
    moving: bool,
}

fn wanted() -> Result<Wanted, String> {
    let mut arguments = std::env::args().skip(1);
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let mut wanted =
        Wanted { seeds: 100, start: 1, threads: cores, verbose: false, until_failed: false, moving: false };
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let text = arguments.next().unwrap_or_default();
            text.parse::<u64>().map_err(|_| format!("{argument} needs a number, not {text:?}"))
        };
        match argument.as_str() {
            "--seeds" => wanted.seeds = number()?,
            "--start" => wanted.start = number()?,
            "--threads" => wanted.threads = number()?.max(1),
            "--verbose" => wanted.verbose = true,
            "--moving" => wanted.moving = true,
            "--until-failed" => wanted.until_failed = true,
            other => {
                return Err(format!(
                    "unknown argument {other}; expected --seeds N, --start S, --threads T, --verbose, --until-failed, --moving"
                ));
            }
        }
    }
    Ok(wanted)
}

fn main() -> ExitCode {
    let wanted = match wanted() {
        Ok(wanted) => wanted,
        Err(why) => {
            eprintln!("sim: {why}");
            return ExitCode::from(2);
        }
    };
    let run = if wanted.moving { run_moving_seed } else { run_seed };
    let end = wanted.start.saturating_add(wanted.seeds);
    let (next, enough) = (AtomicU64::new(wanted.start), AtomicBool::new(false));
    let (mut tally, mut failed) = (Tally::default(), Vec::new());
    std::thread::scope(|scope| {
        let (courses, arriving) = mpsc::channel::<Course>();
        for _ in 0..wanted.threads.min(wanted.seeds.max(1)) {
            let (courses, next, enough) = (courses.clone(), &next, &enough);
            scope.spawn(move || {
                while !enough.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || courses.send(run(seed)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(courses);
        // Told in the order of the seeds, whichever core was quicker.
        let mut early: BTreeMap<u64, Course> = BTreeMap::new();
        let mut told = wanted.start;
        for course in arriving {
            early.insert(course.seed, course);
            while let Some(course) = early.remove(&told) {
                told += 1;
                if enough.load(Ordering::Relaxed) {
                    continue;
                }
                tell(&course, wanted.verbose);
                tally.add(&course);
                if course.failure.is_some() {
                    failed.push(course.seed);
                    enough.store(wanted.until_failed, Ordering::Relaxed);
                }
            }
        }
    });
    let complaints = if wanted.until_failed || wanted.moving { Vec::new() } else { tally.complaints() };
    summary(&tally);
    for complaint in &complaints {
        println!("sim: {complaint}");
    }
    if !failed.is_empty() {
        println!("failing seeds: {failed:?}");
    }
    println!("sim: {} seeds, {} failed", tally.seeds, failed.len());
    if failed.is_empty() && complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tell(course: &Course, verbose: bool) {
    if verbose {
        println!("--- seed {}, {} members", course.seed, course.members);
        course.transcript.iter().for_each(|line| println!("{line}"));
    }
    if let Some(why) = &course.failure {
        println!("seed {} ({} members): {why}", course.seed, course.members);
    }
}

fn summary(tally: &Tally) {
    let mut counts = tally.counts.clone();
    for what in required() {
        counts.entry(what).or_default();
    }
    for (what, count) in &counts {
        println!("{count:>8}  {what}");
    }
    println!("{:>8}  rows acknowledged", tally.rows);
    println!("{:>8}  epochs", tally.epochs);
    println!("{:>8}  seeds that changed a leader", tally.changed_leader);
}
