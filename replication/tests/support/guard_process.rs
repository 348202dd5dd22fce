//! The guard as a program: `pgstead-guard-for-tests guard --run-dir <dir> --data-dir <dir>`, as the product is called.

use pgstead_replication::guard::{GuardOptions, guard_main};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "guard", "--run-dir", run_dir, "--data-dir", data_dir] => {
            guard_main(GuardOptions { run_dir: run_dir.into(), data_dir: data_dir.into() })
        }
        _ => {
            eprintln!("expected: guard --run-dir <dir> --data-dir <dir>");
            ExitCode::FAILURE
        }
    }
}
