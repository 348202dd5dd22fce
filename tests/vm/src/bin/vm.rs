//! `make vm`: boots the machine, runs the volume suite in it, then nodes with Postgres on LVM, and says what they said. Arguments
//! are parts of the names of what to run, `all` for everything.

use anyhow::{Context, bail};
use pgstead_vm::machine::{self, Boot};
use std::path::Path;
use std::time::Duration;

const COMMON: &str = "common.sh";
/// What runs of the suite, and after it, where nothing is asked for.
const SUITE: &str = "ext4:: xfs:: lvm::";
const FIRST: [&str; 2] = ["postgres-on-lvm.sh", "three-nodes-on-lvm.sh"];
/// With how many disks of so many GiB.
const SCRIPTS: [(&str, usize, u64); 5] = [
    ("postgres-on-lvm.sh", 2, 8),
    ("three-nodes-on-lvm.sh", 3, 3),
    ("pool-repair.sh", 3, 6),
    ("io-limits.sh", 2, 8),
    ("encrypted-pool.sh", 2, 6),
];

fn main() -> anyhow::Result<()> {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let own = std::env::current_exe().context("cannot find this program")?;
    let (guest, product) = (own.with_file_name("vm-guest"), own.with_file_name("pgstead"));
    let all = parts == ["all"];
    let wanted = |name: &str| match parts.is_empty() {
        true => FIRST.contains(&name),
        false => all || parts.iter().any(|part| name.contains(part.as_str())),
    };
    let root = machine::root()?;
    let boot = |run: &str, programs: &[(&str, &Path)], disks: usize, gib: u64| {
        let limit = Duration::from_secs(1800);
        let boot = Boot { root: &root, programs, run, disks, disk_bytes: gib << 30, limit };
        let verdict = machine::run(&boot, |line| println!("{line}"))?;
        if verdict.succeeded { Ok(()) } else { bail!("it failed in the machine: {run}") }
    };
    let of_scripts = |part: &String| SCRIPTS.iter().any(|(script, ..)| script.contains(part.as_str()));
    if parts.is_empty() || !parts.iter().all(of_scripts) {
        let bodies = match (parts.is_empty(), all) {
            (true, _) => SUITE.to_string(),
            (false, true) => String::new(),
            (false, false) => parts.join(" "),
        };
        let suite = format!("PGSTEAD_TEST_OWNER=105:105 exec /payload/vm-guest {bodies}");
        boot(&suite, &[("vm-guest", &guest)], 2, 8)?;
    }
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    for (script, disks, gib) in SCRIPTS.into_iter().filter(|(script, ..)| wanted(script)) {
        let (path, common) = (scripts.join(script), scripts.join(COMMON));
        boot(
            &format!("exec /payload/{script}"),
            &[("pgstead", &product), (COMMON, &common), (script, &path)],
            disks,
            gib,
        )?;
    }
    Ok(())
}
