//! `pgstead pool ballast`: it works on the host itself, also when the daemon does not run, and beside one that does.

use crate::config::{NodeConfig, Pool};
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use pgstead_types::Bytes;
use pgstead_types::size::VolumeSize;
use pgstead_volumes::{release_in_dir, release_in_group, reserve_in_dir, reserve_in_group};
use std::path::PathBuf;

#[derive(Subcommand)]
pub enum BallastCommand {
    /// Set so much of a pool's room aside
    #[command(after_help = "Examples:\n  pgstead pool ballast reserve nvme --size 20GB")]
    Reserve {
        #[command(flatten)]
        of: Of,
        /// How much, such as 20GB
        #[arg(long, value_name = "SIZE")]
        size: VolumeSize,
    },
    /// Give a pool what was set aside, because it is full. Once there is room again, set some aside anew
    #[command(after_help = "Examples:\n  pgstead pool ballast release nvme")]
    Release(Of),
}

#[derive(Args)]
pub struct Of {
    /// The pool's name in the node's configuration
    #[arg(value_name = "POOL")]
    name: String,
    /// The node's configuration
    #[arg(long, default_value = "/etc/pgstead/node.toml", env = "PGSTEAD_CONFIG")]
    config: PathBuf,
}

impl Of {
    fn pool(&self) -> anyhow::Result<Pool> {
        let config = NodeConfig::load(&self.config)?;
        let Some(pool) = config.pool.iter().find(|pool| pool.name == self.name) else {
            let names: Vec<&str> = config.pool.iter().map(|pool| pool.name.as_str()).collect();
            bail!("{} has no pool {}, but {}", self.config.display(), self.name, names.join(", "));
        };
        pool.pool(&config.data_dir).map_err(anyhow::Error::msg)
    }
}

pub fn run(command: BallastCommand) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        BallastCommand::Reserve { of, size } => {
            let pool = of.pool()?;
            let held = runtime.block_on(async {
                match pool {
                    Pool::Dir(dir) => reserve_in_dir(dir, size.0).await,
                    Pool::Lvm(lvm) => reserve_in_group(&lvm, size.0).await,
                }
            });
            let held = held.with_context(|| format!("nothing was set aside for pool {}", of.name))?;
            println!(
                "{held} are set aside for the day when the pool {0} is full: `pgstead pool ballast release {0}`",
                of.name
            );
        }
        BallastCommand::Release(of) => {
            let pool = of.pool()?;
            let in_group = matches!(pool, Pool::Lvm(_));
            let freed = runtime.block_on(async {
                match pool {
                    Pool::Dir(dir) => release_in_dir(&dir),
                    Pool::Lvm(lvm) => release_in_group(&lvm).await,
                }
            });
            let freed = freed.with_context(|| format!("the ballast of pool {} is as it was", of.name))?;
            match (freed, in_group) {
                (Bytes(0), _) => println!("The pool {} has no ballast.", of.name),
                (freed, true) => println!(
                    "{freed} more are there for the pool {}, which takes of it within seconds while its daemon runs.",
                    of.name
                ),
                (freed, false) => println!("The pool {} has {freed} more.", of.name),
            }
        }
    }
    Ok(())
}
