//! `make bench-volumes`: boots the machine, measures in it what volumes cost and save, prints medians and ratios, and writes all values
//! as JSON to `target/bench/volumes.json`.

use anyhow::{Context, bail, ensure};
use pgstead_vm::machine::{self, Boot};
use pgstead_vm::measured::Measured;
use std::fs;
use std::path::Path;
use std::time::Duration;

const SCRIPT: &str = "bench-volumes.sh";
const LIMIT: Duration = Duration::from_secs(3600 * 2);

fn main() -> anyhow::Result<()> {
    let number = |name: &str, default: u32| match std::env::var(name) {
        Ok(text) => {
            text.parse().ok().filter(|number| *number > 0).with_context(|| format!("{name} must be a number above 0"))
        }
        Err(_) => Ok(default),
    };
    let (rounds, megabytes) = (number("ROUNDS", 5)?, number("MEGABYTES", 2048)?);
    ensure!(megabytes <= 4096, "MEGABYTES is {megabytes}; the machine's disks have room for 4096 at most");
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let product = std::env::current_exe().context("cannot find this program")?.with_file_name("pgstead");
    let (script, common) = (scripts.join(SCRIPT), scripts.join("common.sh"));
    let parts = std::env::var("PARTS").unwrap_or_default();
    ensure!(parts.chars().all(|c| c.is_ascii_lowercase() || c == ' '), "PARTS is {parts:?}; expected words");
    let run = format!("ROUNDS={rounds} MEGABYTES={megabytes} PARTS='{parts}' exec /payload/{SCRIPT}");
    let programs = [("pgstead", product.as_path()), ("common.sh", &common), (SCRIPT, &script)];
    let root = machine::root()?;
    let boot = Boot { root: &root, programs: &programs, run: &run, disks: 2, disk_bytes: 24 << 30, limit: LIMIT };
    let mut measured = Measured { rounds, release: !cfg!(debug_assertions), values: Default::default() };
    let mut wrong = None;
    let verdict = machine::run(&boot, |line| {
        println!("{line}");
        if let Err(error) = measured.hear(line) {
            wrong = Some(error);
        }
    })?;
    if let Some(error) = wrong {
        return Err(error);
    }
    if !verdict.succeeded {
        bail!("it failed in the machine; what it said is above");
    }
    print!("{measured}");
    let path = Path::new("target/bench/volumes.json");
    fs::create_dir_all("target/bench").context("cannot make target/bench")?;
    fs::write(path, serde_json::to_vec_pretty(&measured)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("All values: {}", path.display());
    Ok(())
}
