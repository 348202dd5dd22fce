//! Searches the larger clusters, one after another, and prints how many states each has.

use pgstead_model::search::search;
use pgstead_model::state::Bounds;
use std::process::ExitCode;

fn main() -> ExitCode {
    let limit = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(20_000_000);
    let sizes = [
        Bounds { members: 2, needed: 1, epochs: 4, rows: 2, crashes: 2, losses: 1, disks_lie: false },
        Bounds { members: 3, needed: 1, epochs: 2, rows: 2, crashes: 1, losses: 0, disks_lie: false },
        Bounds { members: 3, needed: 2, epochs: 2, rows: 1, crashes: 1, losses: 0, disks_lie: false },
        Bounds { members: 3, needed: 1, epochs: 3, rows: 1, crashes: 0, losses: 0, disks_lie: false },
        Bounds { members: 3, needed: 1, epochs: 2, rows: 1, crashes: 1, losses: 1, disks_lie: false },
        Bounds { members: 3, needed: 1, epochs: 3, rows: 1, crashes: 1, losses: 0, disks_lie: false },
        Bounds { members: 4, needed: 2, epochs: 2, rows: 1, crashes: 0, losses: 0, disks_lie: false },
    ];
    let mut well = true;
    for bounds in sizes {
        let found = search(&bounds, limit);
        let end = if found.complete { "all" } else { "not all" };
        println!("{bounds:?}: {} states ({end}), {} transitions", found.states, found.transitions);
        if let Some((why, course)) = found.broken {
            well = false;
            println!("BROKEN: {why}");
            course.iter().for_each(|happens| println!("  {happens}"));
        }
    }
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
