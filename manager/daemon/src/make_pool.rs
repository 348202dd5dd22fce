//! `pgstead pool create`: makes a pool of this host's disks. It talks to LVM alone; no daemon has to run.

mod ballast;

use crate::rotate_key::{self, RotateKey};
use anyhow::{Context, bail};
use ballast::BallastCommand;
use clap::{Args, Subcommand};
use pgstead_types::Bytes;
use pgstead_types::size::VolumeSize;
use pgstead_types::spec::check_name;
use pgstead_volumes::{
    MakePoolError, PoolBegun, PoolPlan, PoolRequest, attach_loop_file, make_loop_file, make_pool, plan_loop_file,
    plan_pool,
};
use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum PoolCommand {
    /// Make a pool of disks of this host: a volume group and a thin pool in it
    #[command(after_help = "Examples:\n  pgstead pool create nvme --device /dev/nvme1n1 --dry-run\n  \
        pgstead pool create nvme --device /dev/nvme1n1 --device /dev/nvme2n1\n  \
        pgstead pool create try --loop-file /var/lib/pgstead-try.img --size 20GB")]
    Create(CreatePool),
    /// Room that is set aside in a pool of this host, for the day when the pool is full
    #[command(subcommand)]
    Ballast(BallastCommand),
    /// Make a new key for the encrypted volumes of this host's pool; the daemon gives it to them, and takes the old one away
    #[command(
        after_help = "Examples:\n  pgstead pool rotate-key\n  pgstead pool rotate-key --pool nvme --config /etc/pgstead/node.toml"
    )]
    RotateKey(RotateKey),
}

#[derive(Args)]
pub struct CreatePool {
    /// The pool's name, and its volume group's: 1 to 40 lower-case letters, digits and hyphens, beginning with a letter
    name: String,
    /// A whole disk or a partition; may be repeated
    #[arg(long, value_name = "DEVICE", required_unless_present = "loop_file")]
    device: Vec<PathBuf>,
    /// Make this file and take it for a disk, to try pools out on a host that has none to spare
    #[arg(long, value_name = "FILE", requires = "size", conflicts_with_all = ["device", "wipe"])]
    loop_file: Option<PathBuf>,
    /// How large the file is made, such as 20GB
    #[arg(long, value_name = "SIZE", requires = "loop_file")]
    size: Option<VolumeSize>,
    /// Delete what the devices hold. Without it a device that holds anything is refused; one that is in use, or a part of LVM, RAID
    /// or encryption, always is
    #[arg(long)]
    wipe: bool,
    /// Set so much aside for the day when the pool is full [default: 4 % of the disks, 32 GiB at most]
    #[arg(long, value_name = "SIZE", conflicts_with = "no_ballast")]
    ballast: Option<VolumeSize>,
    /// Set nothing aside
    #[arg(long)]
    no_ballast: bool,
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
    match command {
        PoolCommand::Create(asked) => create(asked),
        PoolCommand::Ballast(command) => ballast::run(command),
        PoolCommand::RotateKey(asked) => rotate_key::run(&asked),
    }
}

fn create(mut asked: CreatePool) -> anyhow::Result<()> {
    check_name("pool name", &asked.name)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut is_new_file = false;
    if let (Some(file), Some(size)) = (&asked.loop_file, asked.size) {
        if !rustix::process::geteuid().is_root() {
            return Err(MakePoolError::NotRoot.into());
        }
        if !runtime.block_on(plan_loop_file(file, size.0))? {
            println!(
                "This makes the file {} of {size}, and in it as on a disk the pool {}.",
                file.display(),
                asked.name
            );
            if asked.dry_run {
                println!("Nothing was changed.");
                return Ok(());
            }
            if !asked.yes {
                confirm(&asked.name)?;
            }
            is_new_file = make_loop_file(file, size.0)?;
        } else if asked.dry_run {
            println!(
                "The file {} is there. The pool {} is made in it, or is there.\nNothing was changed.",
                file.display(),
                asked.name
            );
            return Ok(());
        }
        asked.device.push(runtime.block_on(attach_loop_file(file))?);
    }
    let request = PoolRequest {
        group: asked.name.parse().context("the name cannot be that of a volume group")?,
        pool: THIN_POOL.parse()?,
        devices: asked.device.clone(),
        wipe: asked.wipe,
        ballast: if asked.no_ballast { Some(Bytes(0)) } else { asked.ballast.map(|size| size.0) },
    };
    let plan = runtime.block_on(plan_pool(request))?;
    print!("{}", said(&asked.name, &plan));
    if asked.dry_run {
        println!("Nothing was changed.");
        return Ok(());
    }
    if plan.state == PoolBegun::Nothing && !asked.yes && !is_new_file {
        confirm(&asked.name)?;
    }
    runtime.block_on(make_pool(&plan)).context(
        "the pool is not whole; when what follows is mended, the same command goes on where this one has stopped",
    )?;
    print!("{}", configured(&asked.name, asked.loop_file.as_deref()));
    Ok(())
}

/// What a person has to do for members to live there.
fn configured(name: &str, loop_file: Option<&Path>) -> String {
    let mut text = format!(
        "The pool {name} is there. To have members live on it, add this to node.toml and restart the daemon:\n\n[[pool]]\nname = \
         \"{name}\"\ndriver = \"lvm\"\nvolume_group = \"{name}\"\nthin_pool = \"{THIN_POOL}\"\n"
    );
    if let Some(file) = loop_file {
        let _ = writeln!(text, "loop_files = [{:?}]", file.display().to_string());
    }
    text += "\nOf several pools give each a class (class = \"nvme\"), which clusters ask for (--storage-class nvme). A node.toml without any \
             pool\nstands for one of driver \"dir\" in pools/default under data_dir: if members live there, name it as well.\n";
    text
}

fn said(name: &str, plan: &PoolPlan) -> String {
    let mut text = String::new();
    let (data, metadata, ballast) = (plan.data, plan.metadata, plan.ballast);
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
    if ballast > Bytes(0) {
        let _ = writeln!(
            text,
            "  {ballast} of ballast, which `pgstead pool ballast release {name}` gives to the pool when it is full"
        );
    }
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
            ballast: None,
        };
        let mut plan = PoolPlan {
            request,
            devices: vec![device("/dev/a", &[]), device("/dev/b", &["gpt", "ext4"])],
            state: PoolBegun::Nothing,
            data: Bytes(14 << 30),
            metadata: Bytes(32 << 20),
            ballast: Bytes(1 << 30),
        };
        let text = said("nvme", &plan);
        assert!(text.contains("/dev/a  8.0 GiB, which holds nothing"), "{text}");
        assert!(text.contains("/dev/b  8.0 GiB, and DELETES what it holds: gpt, ext4"), "{text}");
        assert!(text.contains("14.0 GiB for data, 32.0 MiB for metadata"), "{text}");
        assert!(text.contains("1.0 GiB of ballast, which `pgstead pool ballast release nvme`"), "{text}");
        plan.state = PoolBegun::Group;
        assert!(!said("nvme", &plan).contains("/dev/a"));
    }
}
