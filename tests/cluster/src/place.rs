//! A folder and ports that nobody else uses. Each place has a lock file that its owner holds open and locked for as long as
//! it lives, so the kernel says who is gone; the file names the folder, so whoever takes the lock next cleans up after one
//! that was killed.

use crate::command::run_blocking;
use crate::processes::{signal_all_below, wait_until_gone};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, geteuid};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Blocks of ports begin here: below the range from which the kernel takes ports for outgoing connections.
const FIRST_PORT: u16 = 20_000;
/// One for the daemons, the others for clusters, three each.
const BLOCK_PORTS: u16 = 40;
const BLOCKS: u16 = 250;
/// For killed processes to be gone: one that waits for its disk ends when that has answered.
pub(crate) const END_TIME: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    #[error("port {port} on {address} is taken")]
    PortTaken { address: String, port: u16 },
    #[error("no block of {BLOCK_PORTS} free ports was found between {FIRST_PORT} and 30000; what listens there?")]
    NoPorts,
    #[error("{} processes in {folder} cannot be ended: {left}", .left.matches(',').count() + 1)]
    LeftOver { folder: PathBuf, left: String },
    #[error("{path} cannot be used")]
    Io { path: PathBuf, source: io::Error },
}

/// Held until dropped, when the folder is removed. Whoever started processes in it ends them before.
pub struct Place {
    pub folder: PathBuf,
    pub node_port: u16,
    /// First and last port for clusters.
    pub cluster_ports: (u16, u16),
    lock: File,
    keep: bool,
}

/// Node `n` listens on this address.
pub fn address(n: usize) -> String {
    format!("127.0.{n}.1")
}

impl Place {
    /// A new folder and a block of ports that are free on the addresses of `nodes` nodes.
    pub fn fresh(nodes: usize) -> Result<Self, PlaceError> {
        let root = std::env::temp_dir();
        // Sockets of guards live in the folders, and paths of sockets are short.
        let root = if root.as_os_str().len() > 30 { PathBuf::from("/tmp") } else { root };
        let locks = root.join(format!("pgstead-tests-{}", geteuid().as_raw()));
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| PlaceError::Io { path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&locks).map_err(io(&locks))?;
        sweep(&locks);
        for block in 0..BLOCKS {
            let first = FIRST_PORT + block * BLOCK_PORTS;
            let path = locks.join(format!("{first}.lock"));
            let Some(mut lock) = take_lock(&path)? else { continue };
            // What cannot be cleaned up keeps its block.
            if clean_up(&mut lock, &path).is_err() {
                continue;
            }
            let ports = (first + 1, first + BLOCK_PORTS - 1);
            if first_taken(nodes, first, ports).is_some() {
                continue;
            }
            let folder = tempfile::Builder::new().prefix("pgs").tempdir_in(&root).map_err(io(&root))?.keep();
            let keep = std::env::var_os("PGSTEAD_KEEP").is_some();
            let place = Self { folder, node_port: first, cluster_ports: ports, lock, keep };
            return place.open();
        }
        Err(PlaceError::NoPorts)
    }

    /// This folder and these ports; what a killed owner has left there goes.
    pub fn fixed(folder: &Path, nodes: usize, node_port: u16, cluster_ports: (u16, u16)) -> Result<Self, PlaceError> {
        let path = folder.with_extension("lock");
        let Some(mut lock) = take_lock(&path)? else { return Err(PlaceError::InUse(folder.to_path_buf())) };
        clean_up(&mut lock, &path)?;
        if let Some((address, port)) = first_taken(nodes, node_port, cluster_ports) {
            return Err(PlaceError::PortTaken { address, port });
        }
        let io = |source| PlaceError::Io { path: folder.to_path_buf(), source };
        fs::create_dir(folder).map_err(io)?;
        Self { folder: folder.to_path_buf(), node_port, cluster_ports, lock, keep: false }.open()
    }

    /// Notes the folder in the lock, and lets Postgres' user pass through it.
    fn open(mut self) -> Result<Self, PlaceError> {
        let note = |lock: &mut File, text: &str| {
            lock.set_len(0)?;
            lock.rewind()?;
            lock.write_all(text.as_bytes())
        };
        let text = if self.keep { String::new() } else { self.folder.display().to_string() };
        let io = |source| PlaceError::Io { path: self.folder.clone(), source };
        note(&mut self.lock, &text).map_err(io)?;
        fs::set_permissions(&self.folder, fs::Permissions::from_mode(0o755)).map_err(io)?;
        Ok(self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("kept as PGSTEAD_KEEP asks: {}", self.folder.display());
        } else if fs::remove_dir_all(&self.folder).is_ok() {
            let _ = self.lock.set_len(0);
        }
    }
}

/// `None` when another process holds it.
fn take_lock(path: &Path) -> Result<Option<File>, PlaceError> {
    let io = |source| PlaceError::Io { path: path.to_path_buf(), source };
    let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(io(error.into())),
    }
}

/// Cleans up after every owner that is gone. What cannot be cleaned up is told, and fails nobody who comes later.
fn sweep(locks: &Path) {
    for entry in fs::read_dir(locks).into_iter().flatten().flatten() {
        let path = entry.path();
        let swept = take_lock(&path).and_then(|lock| lock.map_or(Ok(()), |mut lock| clean_up(&mut lock, &path)));
        if let Err(error) = swept {
            eprintln!("not cleaned up: {error}");
        }
    }
}

/// The lock is ours, so whoever wrote the folder's name into it is gone.
fn clean_up(lock: &mut File, path: &Path) -> Result<(), PlaceError> {
    let io = |source| PlaceError::Io { path: path.to_path_buf(), source };
    let mut folder = String::new();
    lock.rewind().and_then(|()| lock.read_to_string(&mut folder)).map_err(io)?;
    let folder = PathBuf::from(folder.trim());
    if folder.as_os_str().is_empty() {
        return Ok(());
    }
    end_all_below(&folder)?;
    unmount_below(&folder).map_err(io)?;
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PlaceError::Io { path: folder, source: error }),
        _ => lock.set_len(0).map_err(io),
    }
}

/// Takes away what is mounted in the folder, the innermost first. Lazily: nobody is left who works there.
fn unmount_below(folder: &Path) -> io::Result<()> {
    // `36 35 98:0 /root /where/it/is rw,noatime - tmpfs name rw`
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    let below: Vec<&Path> = places.filter(|place| place.starts_with(folder)).collect();
    for place in below.into_iter().rev() {
        // What stays mounted is told by whoever then removes the folder.
        let _ = run_blocking(Path::new("umount"), &["--lazy", &place.display().to_string()]);
    }
    Ok(())
}

/// SIGKILL to everything that works in the folder. Stopped first, so that nobody starts another one meanwhile.
pub fn end_all_below(folder: &Path) -> Result<Vec<crate::Process>, PlaceError> {
    let all = signal_all_below(folder, Signal::STOP);
    for process in &all {
        process.signal(Signal::KILL);
    }
    let mut left = wait_until_gone(&all, END_TIME);
    left.extend(crate::below_folder(folder));
    if left.is_empty() {
        return Ok(all);
    }
    let left = left.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Err(PlaceError::LeftOver { folder: folder.to_path_buf(), left })
}

/// The first port that cannot be had, on the addresses of the nodes.
fn first_taken(nodes: usize, node_port: u16, cluster_ports: (u16, u16)) -> Option<(String, u16)> {
    let ports = || std::iter::once(node_port).chain(cluster_ports.0..=cluster_ports.1);
    let mut all = (1..=nodes).flat_map(|n| ports().map(move |port| (address(n), port)));
    all.find(|(address, port)| TcpListener::bind((address.as_str(), *port)).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_places_share_nothing() {
        let (one, two) = (Place::fresh(3).unwrap(), Place::fresh(3).unwrap());
        assert_ne!((&one.folder, one.node_port), (&two.folder, two.node_port));
        let folder = one.folder.clone();
        drop(one);
        assert!(!folder.exists());
    }

    #[test]
    fn a_taken_port_is_named_and_a_fixed_place_is_had_once() {
        let somewhere = Place::fresh(1).unwrap();
        let (port, folder) = (somewhere.node_port, somewhere.folder.join("demo"));
        let taken = TcpListener::bind(("127.0.1.1", port)).unwrap();
        let refused = Place::fixed(&folder, 1, port, (port + 1, port + 3)).err().unwrap();
        assert!(refused.to_string().contains(&port.to_string()), "{refused}");
        drop(taken);
        let _held = Place::fixed(&folder, 1, port, (port + 1, port + 3)).unwrap();
        let refused = Place::fixed(&folder, 1, port, (port + 1, port + 3)).err().unwrap();
        assert!(matches!(refused, PlaceError::InUse(_)), "{refused}");
    }

    #[test]
    fn what_a_killed_owner_has_left_goes() {
        let somewhere = Place::fresh(1).unwrap();
        let (port, folder) = (somewhere.node_port, somewhere.folder.join("demo"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("old"), "").unwrap();
        // A disk with something on it, where it may be mounted.
        if geteuid().is_root() {
            let disk = folder.join("disk");
            fs::create_dir(&disk).unwrap();
            let args = ["-t", "tmpfs", "-o", "size=1m", "pgstead-test", &disk.display().to_string()];
            run_blocking(Path::new("mount"), &args).unwrap().output().unwrap();
            fs::write(disk.join("old"), "").unwrap();
        }
        fs::write(folder.with_extension("lock"), folder.display().to_string()).unwrap();
        let place = Place::fixed(&folder, 1, port, (port + 1, port + 3)).unwrap();
        assert!(!place.folder.join("old").exists());
    }
}
