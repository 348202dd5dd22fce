//! `pgstead pool rotate-key`: makes a new key for the encrypted volumes of this host's pool. The daemon finds it by itself, gives it to
//! what is there, and takes the old one away.

use crate::config::{NodeConfig, PoolConfig, PoolDriver};
use anyhow::{Context, bail};
use clap::Args;
use pgstead_volumes::KeyFolder;
use std::path::PathBuf;

#[derive(Args)]
pub struct RotateKey {
    /// The node's configuration
    #[arg(long, default_value = "/etc/pgstead/node.toml", env = "PGSTEAD_CONFIG")]
    config: PathBuf,
    /// The pool, where the configuration has several
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
}

pub fn run(asked: &RotateKey) -> anyhow::Result<()> {
    let config = NodeConfig::load(&asked.config)?;
    let pool = chosen(&config.pool, asked.pool.as_deref())?;
    let keys = KeyFolder::new(&pool.key_dir(&config.data_dir));
    if keys.all().context("the keys that are there cannot be used")?.is_empty() {
        bail!(
            "there is no key in {}, so there is none to take the place of; with `encrypt = true` the daemon makes the first one when it \
             starts",
            keys.path().display()
        );
    }
    let key = keys.add().context("no key was made")?;
    println!("Made {}. Keep a copy of it elsewhere.", key.path.display());
    println!("The daemon gives it to the volumes and snapshots of the pool {} within minutes; the findings", pool.name);
    println!("key_rotation and key_not_needed (`pgstead status`) say how far it is. Until then the old key is needed.");
    Ok(())
}

fn chosen<'a>(pools: &'a [PoolConfig], name: Option<&str>) -> anyhow::Result<&'a PoolConfig> {
    let mut may = pools.iter().filter(|pool| name.is_none_or(|name| pool.name == name));
    let pool = match (may.next(), may.next(), name) {
        (Some(pool), None, _) => pool,
        (None, _, Some(name)) => bail!("the configuration has no pool {name}"),
        (None, _, None) => bail!("the configuration has no pool"),
        (Some(_), Some(_), _) => bail!("the configuration has several pools; say which one with --pool"),
    };
    if pool.driver != PoolDriver::Lvm {
        bail!("the pool {} is of driver \"dir\", which encrypts nothing; expected one of driver \"lvm\"", pool.name);
    }
    Ok(pool)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str, driver: PoolDriver) -> PoolConfig {
        PoolConfig {
            name: name.into(),
            driver,
            class: None,
            loop_files: Vec::new(),
            path: None,
            volume_group: None,
            thin_pool: None,
            file_system: None,
            volume_size_gib: None,
            encrypt: false,
            key_dir: None,
        }
    }

    #[test]
    fn the_pool_is_the_one_that_is_there_or_the_one_that_is_named() {
        let pools = [pool("a", PoolDriver::Lvm), pool("b", PoolDriver::Dir)];
        assert_eq!(chosen(&pools[..1], None).unwrap().name, "a");
        assert_eq!(chosen(&pools, Some("a")).unwrap().name, "a");
        assert!(chosen(&pools, None).unwrap_err().to_string().contains("--pool"));
        assert!(chosen(&pools, Some("b")).unwrap_err().to_string().contains("dir"));
        assert!(chosen(&pools, Some("c")).unwrap_err().to_string().contains("no pool c"));
    }
}
