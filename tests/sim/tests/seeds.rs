//! Seeds that run with every `cargo test`: a fixed range, and each one that has ever shown a bug.

use pgstead_sim::run::{run_moving_seed, run_seed};

/// In parts, so that the cores share them.
fn run(seeds: impl Iterator<Item = u64>) {
    let failed: Vec<String> = seeds
        .map(run_seed)
        .filter_map(|course| course.failure.map(|why| format!("seed {}: {why}", course.seed)))
        .collect();
    assert!(
        failed.is_empty(),
        "{failed:#?}\nlook with: cargo run -p pgstead-sim -- --seeds 1 --verbose --start <seed>"
    );
}

#[test]
fn seeds_1_to_75_hold() {
    run(1..=75);
}

#[test]
fn seeds_76_to_150_hold() {
    run(76..=150);
}

#[test]
fn seeds_151_to_225_hold() {
    run(151..=225);
}

#[test]
fn seeds_226_to_300_hold() {
    run(226..=300);
}

#[test]
fn seeds_that_once_failed_hold() {
    let kept = include_str!("../seeds.txt");
    run(kept.lines().filter_map(|line| line.split('#').next().and_then(|seed| seed.trim().parse().ok())));
}

#[test]
fn the_same_seed_gives_the_same_transcript() {
    for seed in [3, 9] {
        let (first, second) = (run_seed(seed), run_seed(seed));
        assert_eq!(first.transcript, second.transcript, "seed {seed}");
        assert!(first.transcript.len() > 30, "seed {seed} has a course worth comparing");
    }
}

/// The number of members changes all the while.
#[test]
fn clusters_whose_members_change_hold() {
    let failed: Vec<String> = (1..=40)
        .chain([102]) // An older record was shown to the node of one that had left.
        .chain([40060, 70355]) // Only a person ends the lead of corrupted pages in an asynchronous cluster.
        .map(run_moving_seed)
        .filter_map(|course| course.failure.map(|why| format!("seed {}: {why}", course.seed)))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}
