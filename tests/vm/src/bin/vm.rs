//! `make vm`: boots the machine, runs the volume suite in it, and says what it said. Arguments are parts of the names of the
//! bodies to run.

use anyhow::{Context, bail};
use pgstead_vm::machine::{self, Boot};
use std::time::Duration;

fn main() -> anyhow::Result<()> {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let own = std::env::current_exe().context("cannot find this program")?;
    let guest = own.with_file_name("vm-guest");
    let run = format!("exec /payload/vm-guest {}", parts.join(" "));
    let boot = Boot {
        root: &machine::root()?,
        programs: &[("vm-guest", &guest)],
        run: &run,
        disks: 2,
        disk_bytes: 8 << 30,
        limit: Duration::from_secs(900),
    };
    let verdict = machine::run(&boot, |line| println!("{line}"))?;
    if !verdict.succeeded {
        bail!("the suite failed in the machine");
    }
    Ok(())
}
