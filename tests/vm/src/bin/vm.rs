//! `make vm`: boots the machine, runs the volume suite in it, then a node with Postgres on LVM, and says what they said. Arguments
//! are parts of the names of what to run.

use anyhow::{Context, bail};
use pgstead_vm::machine::{self, Boot};
use std::path::Path;
use std::time::Duration;

const POSTGRES: &str = "postgres-on-lvm.sh";

fn main() -> anyhow::Result<()> {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let own = std::env::current_exe().context("cannot find this program")?;
    let (guest, product) = (own.with_file_name("vm-guest"), own.with_file_name("pgstead"));
    let wanted = |name: &str| parts.is_empty() || parts.iter().any(|part| name.contains(part.as_str()));
    let root = machine::root()?;
    let suite = format!("PGSTEAD_TEST_OWNER=105:105 exec /payload/vm-guest {}", parts.join(" "));
    let mut runs = vec![];
    if parts.iter().any(|part| !POSTGRES.contains(part.as_str())) || parts.is_empty() {
        runs.push((suite.as_str(), vec![("vm-guest", guest.as_path())]));
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(POSTGRES);
    let of_script = format!("exec /payload/{POSTGRES}");
    if wanted(POSTGRES) {
        runs.push((&of_script, vec![("pgstead", product.as_path()), (POSTGRES, script.as_path())]));
    }
    for (run, programs) in runs {
        let boot = Boot {
            root: &root,
            programs: &programs,
            run,
            disks: 2,
            disk_bytes: 8 << 30,
            limit: Duration::from_secs(900),
        };
        let verdict = machine::run(&boot, |line| println!("{line}"))?;
        if !verdict.succeeded {
            bail!("it failed in the machine: {run}");
        }
    }
    Ok(())
}
