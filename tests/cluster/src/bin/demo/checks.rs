//! What can be wrong before anything is started: one sentence each, with what to do about it.

use anyhow::{Context, bail};
use pgstead_cluster_tests::{Place, PlaceError};
use std::path::{Path, PathBuf};

/// Three members with their WAL take some 400 MB; more, so that nothing else on the disk suffers.
const DISK_FREE_GB: u64 = 2;
const NODE_PORT: u16 = 7480;
const CLUSTER_PORTS: (u16, u16) = (6400, 6429);

/// The demonstration's fixed place, so that what it prints can be pasted again and again.
pub fn take_place(nodes: usize) -> anyhow::Result<Place> {
    let folder = PathBuf::from(format!("/tmp/pgstead-demo-{}", rustix::process::geteuid().as_raw()));
    has_postgres()?;
    has_disk(Path::new("/tmp"))?;
    match Place::fixed(&folder, nodes, NODE_PORT, CLUSTER_PORTS) {
        Ok(place) => Ok(place),
        Err(PlaceError::InUse(_)) => bail!(
            "another demo runs on this machine already (its folder is {}); end it with Ctrl-C in its terminal, or wait \
             until it has ended",
            folder.display()
        ),
        Err(PlaceError::PortTaken { address, port }) => bail!(
            "port {port} on {address} is taken by another program, and the demo needs {NODE_PORT} and {} to {} there; end \
             that program (ss -ltnp 'sport = :{port}' names it) and try again",
            CLUSTER_PORTS.0,
            CLUSTER_PORTS.1
        ),
        Err(PlaceError::Io { path, source }) => {
            bail!("{} cannot be used: {source}; remove it, or make it writable for you, and try again", path.display())
        }
        Err(other) => Err(other.into()),
    }
}

fn has_postgres() -> anyhow::Result<()> {
    let mut found = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    if found.any(|entry| entry.path().join("bin/postgres").exists()) {
        return Ok(());
    }
    bail!("there is no Postgres under /usr/lib/postgresql; install it with scripts/setup.sh postgres")
}

fn has_disk(path: &Path) -> anyhow::Result<()> {
    let disk = rustix::fs::statvfs(path).with_context(|| format!("{} cannot be looked at", path.display()))?;
    let free_mb = disk.f_bavail * disk.f_frsize / 1024 / 1024;
    if free_mb / 1024 < DISK_FREE_GB {
        bail!(
            "{} has {free_mb} MB free and the demo needs {DISK_FREE_GB} GB there for three copies of a database; free some \
             space and try again",
            path.display()
        );
    }
    Ok(())
}
