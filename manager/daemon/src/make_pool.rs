//! `pgstead pool create`: makes a pool of this host's disks. It talks to LVM alone; no daemon has to run.

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use pgstead_types::spec::check_name;
use pgstead_volumes::{PoolBegun, PoolPlan, PoolRequest, make_pool, plan_pool};
use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

#[derive(Subcommand)]
pub enum PoolCommand {
    /// Make a pool of disks of this host: a volume group and a thin pool in it
    #[command(after_help = "Examples:\n  pgstead pool create nvme --device /dev/nvme1n1 --dry-run\n  \
        pgstead pool create nvme --device /dev/nvme1n1 --device /dev/nvme2n1")]
    Create(CreatePool),
}

#[derive(Args)]
pub struct CreatePool {
    /// The pool's name, and its volume group's: 1 to 40 lower-case letters, digits and hyphens, beginning with a letter
    name: String,
    /// A whole disk or a partition; may be repeated
    #[arg(long, value_name = "DEVICE", required = true)]
    device: Vec<PathBuf>,
    /// Delete what the devices hold. Without it a device that holds anything is refused; one that is in use, or a part of LVM, RAID
    /// or encryption, always is
    #[arg(long)]
    wipe: bool,
    /// Show what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask to type the name
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
}

/// The thin pool's name in its group.
const THIN_POOL: &str = "pool";

pub fn run(command: PoolCommand) -> anyhow::Result<()> {
    let PoolCommand::Create(asked) = command;
    check_name("pool name", &asked.name)?;
    let request = PoolRequest {
        group: asked.name.parse().context("the name cannot be that of a volume group")?,
        pool: THIN_POOL.parse()?,
        devices: asked.device.clone(),
        wipe: asked.wipe,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let plan = runtime.block_on(plan_pool(request))?;
    print!("{}", said(&asked.name, &plan));
    if asked.dry_run {
        println!("Nothing was changed.");
        return Ok(());
    }
    if plan.state == PoolBegun::Nothing && !asked.yes {
        confirm(&asked.name)?;
    }
    runtime.block_on(make_pool(&plan)).context(
        "the pool is not whole; when what follows is mended, the same command goes on where this one has stopped",
    )?;
    println!(
        "The pool {} is there. To have members live on it, let node.toml have this and no other pool:\n",
        asked.name
    );
    println!(
        "[[pool]]\nname = \"{0}\"\ndriver = \"lvm\"\nvolume_group = \"{0}\"\nthin_pool = \"{THIN_POOL}\"",
        asked.name
    );
    Ok(())
}

fn said(name: &str, plan: &PoolPlan) -> String {
    let mut text = String::new();
    let (data, metadata) = (plan.data, plan.metadata);
    match plan.state {
        PoolBegun::Whole => {
            let _ = writeln!(text, "The pool {name} is there already.");
            return text;
        }
        PoolBegun::Group => {
            let _ = writeln!(
                text,
                "The volume group {name} is there already, from an attempt that was cut short. This makes in it"
            );
        }
        PoolBegun::Nothing => {
            let _ = writeln!(text, "This makes the volume group {name} of");
            for device in &plan.devices {
                let holds = match device.holds.is_empty() {
                    true => "which holds nothing".to_string(),
                    false => format!("and DELETES what it holds: {}", device.holds.join(", ")),
                };
                let _ = writeln!(text, "  {}  {}, {holds}", device.path.display(), device.size);
            }
            let _ = writeln!(text, "and in it");
        }
    }
    let _ = writeln!(
        text,
        "  the thin pool {name}/{THIN_POOL}  {data} for data, {metadata} for metadata, chunks of 64 KiB"
    );
    let _ = writeln!(text, "What is left of the group is for the pool's growth, and for a repair of its metadata.");
    text
}

fn confirm(name: &str) -> anyhow::Result<()> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        bail!("making the pool {name} needs an answer and there is no terminal; give --yes if you are sure");
    }
    eprint!("Type {name} to go on: ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    input.lock().read_line(&mut answer)?;
    if answer.trim() != name {
        bail!("nothing was done: what was typed is not {name}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_types::Bytes;
    use pgstead_volumes::DeviceSeen;

    #[test]
    fn what_would_be_deleted_is_said() {
        let device = |path: &str, holds: &[&str]| DeviceSeen {
            path: path.into(),
            size: Bytes(8 << 30),
            holds: holds.iter().map(ToString::to_string).collect(),
            number: 0,
        };
        let request = PoolRequest {
            group: "nvme".parse().unwrap(),
            pool: "pool".parse().unwrap(),
            devices: vec!["/dev/a".into(), "/dev/b".into()],
            wipe: true,
        };
        let mut plan = PoolPlan {
            request,
            devices: vec![device("/dev/a", &[]), device("/dev/b", &["gpt", "ext4"])],
            state: PoolBegun::Nothing,
            data: Bytes(14 << 30),
            metadata: Bytes(32 << 20),
        };
        let text = said("nvme", &plan);
        assert!(text.contains("/dev/a  8.0 GiB, which holds nothing"), "{text}");
        assert!(text.contains("/dev/b  8.0 GiB, and DELETES what it holds: gpt, ext4"), "{text}");
        assert!(text.contains("14.0 GiB for data, 32.0 MiB for metadata"), "{text}");
        plan.state = PoolBegun::Group;
        assert!(!said("nvme", &plan).contains("/dev/a"));
    }
}
