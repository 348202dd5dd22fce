//! A machine within the machine: a network and mounts of its own, where every node has its own user and address, packets
//! between nodes can be dropped, and disks can be small. All of it is the kernel's namespaces, so it ends with the last
//! process in it, however the test ends, and nothing of it is ever seen outside.
//!
//! A node's connections come from its own address because its user's packets are routed with that as their source. So a cut
//! goes by addresses alone, and also holds for packets that the kernel sends for a process that is gone.

use crate::command;
use crate::place::address;
use anyhow::{Context, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;

/// Users of nodes count up from here: far above those of distributions, below those of user namespaces.
const FIRST_UID: u32 = 61_000;
/// The table of nftables in the lab's own network.
const TABLE: &str = "pgstead_lab";
/// What a lab takes, by program and Debian package.
const PROGRAMS: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("mount", "mount"),
];

/// One direction: packets from the first node to the second.
pub type Direction = (usize, usize);

/// Held by whoever runs nodes in it.
pub struct Lab {
    /// Keeps the namespaces until the first node runs in them.
    holder: Child,
    // A mount in the lab: removing the file would remove the mount.
    _users: tempfile::NamedTempFile,
}

impl Lab {
    /// Why this machine cannot have one, if so.
    pub fn missing() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("networks of one's own take root".to_string());
        }
        let is_there = |name: &str| {
            ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].iter().any(|dir| Path::new(dir).join(name).exists())
        };
        let (name, package) = PROGRAMS.iter().find(|(name, _)| !is_there(name))?;
        Some(format!("{name} is missing (Debian's {package}); run scripts/setup.sh test"))
    }

    /// Makes one for `nodes` nodes and moves this thread into its network, and with it all threads and processes that this
    /// thread starts from now on. The mounts are only the nodes'.
    pub fn enter(nodes: usize) -> anyhow::Result<Arc<Self>> {
        let mut users = tempfile::NamedTempFile::new()?;
        users.write_all(&fs::read("/etc/passwd")?)?;
        for node in 1..=nodes {
            writeln!(users, "pgstead-n{node}:x:{0}:{0}::/nonexistent:/usr/sbin/nologin", uid(node))?;
        }
        users.flush()?;
        users.as_file().set_permissions(Permissions::from_mode(0o644))?;
        let script = script(nodes, users.path());
        let mut holder = command::spawn_piped(
            Path::new("unshare"),
            &["--net", "--mount", "--propagation", "private", "sh", "-ec", &script],
        )?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().context("its output is piped")?).read_line(&mut line)?;
        if line.trim() != "ready" {
            drop(holder.stdin.take());
            let said = holder.wait_with_output()?;
            bail!("the lab cannot be made: {}", String::from_utf8_lossy(&said.stderr).trim());
        }
        let network = File::open(format!("/proc/{}/ns/net", holder.id()))?;
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
            .context("this thread cannot move into the lab's network")?;
        Ok(Arc::new(Self { holder, _users: users }))
    }

    /// What comes before the command line of a node's program: its user, and the lab's mounts.
    pub fn launcher(&self, node: usize) -> Vec<String> {
        let mounts = format!("--mount=/proc/{}/ns/mnt", self.holder.id());
        let (user, group) = (format!("--reuid={}", uid(node)), format!("--regid={}", uid(node)));
        ["nsenter", &mounts, "setpriv", &user, &group, "--clear-groups"].map(str::to_string).to_vec()
    }

    /// Gives a node its folder.
    pub fn give(&self, node: usize, path: &Path) -> anyhow::Result<()> {
        std::os::unix::fs::chown(path, Some(uid(node)), Some(uid(node))).with_context(|| path.display().to_string())
    }

    /// A disk of its own for a node, in memory, at a folder that is there.
    pub fn mount_disk(&self, node: usize, path: &Path, mib: u64) -> anyhow::Result<()> {
        let mounts = format!("--mount=/proc/{}/ns/mnt", self.holder.id());
        let options = format!("size={mib}m,mode=0755,uid={0},gid={0}", uid(node));
        let path = path.display().to_string();
        let args = [mounts.as_str(), "mount", "-t", "tmpfs", "-o", &options, "pgstead-disk", &path];
        command::run_blocking(Path::new("nsenter"), &args)?.output().with_context(|| format!("mounting {path}"))?;
        Ok(())
    }

    /// The same path as seen from outside.
    pub fn outside(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Drops packets in these directions from now on, besides those that are dropped already.
    pub fn cut(&self, directions: &[Direction]) -> anyhow::Result<()> {
        ensure!(!directions.is_empty(), "a cut between nobody");
        let pairs: Vec<String> =
            directions.iter().map(|(from, to)| format!("{} . {}", address(*from), address(*to))).collect();
        nft(&format!("add element ip {TABLE} cut {{ {} }}", pairs.join(", ")))
    }

    /// Lets everything pass again.
    pub fn heal(&self) -> anyhow::Result<()> {
        nft(&format!("flush set ip {TABLE} cut"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Both directions between `nodes` and each of `others`.
pub fn between(nodes: &[usize], others: &[usize]) -> Vec<Direction> {
    let pairs = nodes.iter().flat_map(|one| others.iter().map(move |other| (*one, *other)));
    pairs.flat_map(|(one, other)| [(one, other), (other, one)]).collect()
}

fn uid(node: usize) -> u32 {
    FIRST_UID + u32::try_from(node).expect("a handful of nodes")
}

fn nft(command: &str) -> anyhow::Result<()> {
    command::run_blocking(Path::new("nft"), &[command])?.output().with_context(|| format!("nft {command}"))?;
    Ok(())
}

/// What the holder does in the new namespaces before it says `ready`.
fn script(nodes: usize, users: &Path) -> String {
    let mut lines = vec!["ip link set lo up".to_string()];
    for node in 1..=nodes {
        let (uid, address, table) = (uid(node), address(node), 100 + node);
        lines.push(format!("ip rule add pref 10 uidrange {uid}-{uid} lookup {table}"));
        lines.push(format!("ip route add local 127.0.0.0/8 dev lo src {address} table {table}"));
    }
    // The kernel's own rule comes first otherwise, and would decide.
    lines.push("ip rule add pref 100 lookup local".to_string());
    lines.push("ip rule del pref 0".to_string());
    lines.push(format!(
        "nft 'table ip {TABLE} {{
            set cut {{ type ipv4_addr . ipv4_addr; }}
            chain out {{
                type filter hook output priority 0; policy accept;
                ip saddr . ip daddr @cut drop
            }}
        }}'"
    ));
    lines.push(format!("mount --bind {} /etc/passwd", users.display()));
    // Until this process is killed, or the one that holds the other end of its input is gone.
    lines.push("echo ready".to_string());
    lines.push("exec cat >/dev/null".to_string());
    lines.join("\n")
}
