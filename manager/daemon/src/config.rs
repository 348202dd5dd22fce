//! The node's configuration file: read whole, checked whole, refused with one sentence per mistake.

use pgstead_lvm::BadName;
use pgstead_types::Bytes;
use pgstead_types::lease::{LEASE_MS_DEFAULT, LEASE_MS_MAX, LEASE_MS_MIN, SILENCE_MS_DEFAULT};
use pgstead_types::spec::check_name;
use pgstead_types::storage::CLASS_DEFAULT;
use pgstead_volumes::{DirConfig, FileSystemKind, LvmConfig};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// More pools than that on one host are a slip.
const POOLS_MAX: usize = 32;

/// `node.toml`. Unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// A label, unique in the deployment.
    pub name: String,
    /// The host name or IP address by which clients and other nodes reach this one. Everything on the node listens there.
    pub host: String,
    /// Port of the daemon: its API and the other nodes' connections.
    #[serde(default = "default_port")]
    pub port: u16,
    #[serde(default = "default_region")]
    pub region: String,
    #[serde(default = "default_zone")]
    pub zone: String,
    /// Where the node keeps its state, keys, and (unless pools say otherwise) its volumes.
    pub data_dir: PathBuf,
    /// The user that Postgres and its guard run as. Needed when the daemon runs as root, and only then.
    #[serde(default)]
    pub run_as: Option<String>,
    /// Folders with Postgres' programs, one per major version. Default: what Debian's packages install.
    #[serde(default)]
    pub postgres_bin: Vec<PathBuf>,
    /// The control group below which members have theirs, such as `/sys/fs/cgroup/pgstead`; made if it is not there. Default: where
    /// the daemon's own is called `daemon`, the one above that.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// Storage pools. Default: one of driver `dir` under `data_dir`.
    #[serde(default)]
    pub pool: Vec<PoolConfig>,
    #[serde(default)]
    pub ports: PortRange,
    #[serde(default)]
    pub timing: TimingConfig,
    #[serde(default)]
    pub gateway: GatewayConfig,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    pub name: String,
    pub driver: PoolDriver,
    /// A label that several pools may have, such as `nvme`: clusters ask for one. Default: `default`.
    #[serde(default)]
    pub class: Option<String>,
    /// Of `dir`: the directory. Of `lvm`: where volumes are mounted; default: under `data_dir`.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Of `lvm`: the volume group and the thin pool in it.
    #[serde(default)]
    pub volume_group: Option<String>,
    #[serde(default)]
    pub thin_pool: Option<String>,
    /// Of `lvm`: files that stand for the group's disks, for trying it out.
    #[serde(default)]
    pub loop_files: Vec<PathBuf>,
    /// Of `lvm`: `ext4` (the default) or `xfs`, for new volumes.
    #[serde(default)]
    pub file_system: Option<String>,
    /// Of `lvm`: how large new volumes look; default: as large as the pool.
    #[serde(default)]
    pub volume_size_gib: Option<u64>,
    /// Of `lvm`: whether new volumes are encrypted.
    #[serde(default)]
    pub encrypt: bool,
    /// Of `lvm`: the folder of the keys of what is encrypted; default: under `data_dir`.
    #[serde(default)]
    pub key_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolDriver {
    Dir,
    Lvm,
}

/// A pool as its driver is opened with it.
#[derive(Clone, Debug)]
pub enum Pool {
    Dir(DirConfig),
    Lvm(LvmConfig),
}

impl Pool {
    /// What no two pools may share: their inventories would be one.
    fn places(&self) -> Vec<String> {
        match self {
            Pool::Dir(dir) => vec![dir.path.display().to_string()],
            Pool::Lvm(lvm) => vec![lvm.mounts.display().to_string(), format!("volume group {}", lvm.group)],
        }
    }
}

impl PoolConfig {
    pub fn class(&self) -> &str {
        self.class.as_deref().unwrap_or(CLASS_DEFAULT)
    }

    /// Where the keys are of what is encrypted in it.
    pub fn key_dir(&self, data_dir: &Path) -> PathBuf {
        self.key_dir.clone().unwrap_or_else(|| data_dir.join("volume-keys").join(&self.name))
    }

    /// What the driver needs, or one sentence about what is wrong.
    pub fn pool(&self, data_dir: &Path) -> Result<Pool, String> {
        let of = |text: String| format!("pool {}: {text}", self.name);
        match self.driver {
            PoolDriver::Dir => {
                let lvm_only = [
                    ("volume_group", self.volume_group.is_some()),
                    ("thin_pool", self.thin_pool.is_some()),
                    ("loop_files", !self.loop_files.is_empty()),
                    ("file_system", self.file_system.is_some()),
                    ("volume_size_gib", self.volume_size_gib.is_some()),
                    ("encrypt", self.encrypt),
                    ("key_dir", self.key_dir.is_some()),
                ];
                if let Some((key, _)) = lvm_only.iter().find(|(_, given)| *given) {
                    return Err(of(format!("{key} is for driver \"lvm\", and this one is \"dir\"; remove it")));
                }
                let path = self.path.clone().ok_or_else(|| of("driver \"dir\" needs path, the directory".into()))?;
                Ok(Pool::Dir(DirConfig::new(path)))
            }
            PoolDriver::Lvm => {
                let name = |key: &str, value: &Option<String>| {
                    value.clone().ok_or_else(|| of(format!("driver \"lvm\" needs {key}, a name as `lvs` shows it")))
                };
                let bad = |error: BadName| of(error.to_string());
                let size = self.volume_size_gib.map(|gib| gib.checked_mul(1 << 30).filter(|bytes| *bytes > 0));
                if self.key_dir.as_ref().is_some_and(|folder| !folder.is_absolute()) {
                    return Err(of("key_dir must be an absolute path".into()));
                }
                if size == Some(None) {
                    return Err(of("volume_size_gib must be at least 1".into()));
                }
                Ok(Pool::Lvm(LvmConfig {
                    group: name("volume_group", &self.volume_group)?.parse().map_err(bad)?,
                    pool: name("thin_pool", &self.thin_pool)?.parse().map_err(bad)?,
                    mounts: self.path.clone().unwrap_or_else(|| data_dir.join("volumes").join(&self.name)),
                    file_system: match &self.file_system {
                        None => FileSystemKind::default(),
                        Some(text) => text.parse().map_err(of)?,
                    },
                    loop_files: self.loop_files.clone(),
                    // Known once the node has joined: whoever opens the pool says it.
                    node: None,
                    size_default: size.flatten().map(Bytes),
                    encrypts: self.encrypt,
                    keys: self.key_dir(data_dir),
                }))
            }
        }
    }
}

/// Ports that clusters take theirs from, three each. Read by `pgstead init` and recorded for the deployment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl Default for PortRange {
    fn default() -> Self {
        Self { first: 6400, last: 6999 }
    }
}

/// Times in milliseconds. The defaults are for nodes within a region.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimingConfig {
    /// A node that has nothing new to say reports so often.
    pub heartbeat_ms: u64,
    /// How often a member's Postgres is looked at when nothing hints at a change.
    pub probe_ms: u64,
    pub raft_heartbeat_ms: u64,
    pub raft_election_ms_min: u64,
    pub raft_election_ms_max: u64,
    /// Silence of a node for so long makes it suspect; 1600 or three heartbeats where nothing is said.
    pub suspicion_ms: Option<u64>,
    /// How long primaries may run without a controller's word. Read by `pgstead init` and recorded for the deployment.
    pub lease_ms: u64,
}

impl Default for TimingConfig {
    fn default() -> Self {
        Self {
            heartbeat_ms: 500,
            probe_ms: 1000,
            raft_heartbeat_ms: 150,
            raft_election_ms_min: 600,
            raft_election_ms_max: 900,
            suspicion_ms: None,
            lease_ms: LEASE_MS_DEFAULT,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayConfig {
    /// A new connection waits so long for a leader before it is refused.
    pub hold_ms: u64,
    pub connections_max: usize,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self { hold_ms: 15_000, connections_max: 2000 }
    }
}

fn default_port() -> u16 {
    7480
}
fn default_region() -> String {
    "default".to_string()
}
fn default_zone() -> String {
    "default".to_string()
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}; write one as the README shows, or give its path with --config")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {path} is not valid: {why}")]
    Parse { path: PathBuf, why: String },
    #[error("in {path}: {why}")]
    Check { path: PathBuf, why: String },
}

impl NodeConfig {
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        let mut config: Self = toml::from_str(&text).map_err(|error| ConfigError::Parse {
            path: path.to_path_buf(),
            why: error.to_string().trim().to_string(),
        })?;
        config.fill_in();
        config.check().map_err(|why| ConfigError::Check { path: path.to_path_buf(), why })?;
        Ok(config)
    }

    fn fill_in(&mut self) {
        if self.pool.is_empty() {
            let path = self.data_dir.join("pools/default");
            self.pool = vec![PoolConfig {
                name: "default".to_string(),
                driver: PoolDriver::Dir,
                class: None,
                path: Some(path),
                volume_group: None,
                thin_pool: None,
                loop_files: Vec::new(),
                file_system: None,
                volume_size_gib: None,
                encrypt: false,
                key_dir: None,
            }];
        }
        if self.postgres_bin.is_empty() {
            let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
                .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
                .unwrap_or_default();
            found.retain(|bin| bin.join("postgres").exists());
            found.sort();
            self.postgres_bin = found;
        }
    }

    fn check(&self) -> Result<(), String> {
        let named = |result: Result<(), pgstead_types::spec::SpecError>| result.map_err(|error| error.to_string());
        named(check_name("node name", &self.name))?;
        named(check_name("region", &self.region))?;
        named(check_name("zone", &self.zone))?;
        if self.host.is_empty() || (self.host.as_str(), self.port).to_socket_addrs().is_err() {
            return Err(format!("host = {:?} is neither an IP address nor a host name that resolves", self.host));
        }
        if self.host == "0.0.0.0" || self.host == "::" {
            return Err("host must be the one address by which others reach this node, not a wildcard".to_string());
        }
        if !self.data_dir.is_absolute() {
            return Err(format!("data_dir = {:?} must be an absolute path", self.data_dir));
        }
        // Sockets of guards live under it, and the system allows 107 bytes for their paths.
        if self.data_dir.as_os_str().len() > 60 {
            return Err(format!(
                "data_dir = {:?} is too long; expected at most 60 bytes, for the sockets in it",
                self.data_dir
            ));
        }
        if let Some(cgroup) = self.cgroup.as_ref().filter(|path| !path.is_absolute()) {
            return Err(format!("cgroup = {cgroup:?} must be an absolute path, such as /sys/fs/cgroup/pgstead"));
        }
        self.check_user()?;
        if self.postgres_bin.is_empty() {
            return Err(
                "no Postgres was found under /usr/lib/postgresql; install postgresql or set postgres_bin".to_string()
            );
        }
        let names: BTreeSet<&str> = self.pool.iter().map(|pool| pool.name.as_str()).collect();
        if names.len() != self.pool.len() {
            return Err("two pools have the same name".to_string());
        }
        if self.pool.len() > POOLS_MAX {
            return Err(format!("there are {} pools; expected at most {POOLS_MAX}", self.pool.len()));
        }
        let mut places = BTreeMap::new();
        for pool in &self.pool {
            named(check_name("pool name", &pool.name))?;
            named(check_name("pool class", pool.class()))?;
            for place in pool.pool(&self.data_dir)?.places() {
                if let Some(other) = places.insert(place.clone(), &pool.name) {
                    let name = &pool.name;
                    return Err(format!(
                        "pools {other} and {name} are both in {place}; expected one pool per folder and per volume group"
                    ));
                }
            }
        }
        if self.ports.first < 1024 || self.ports.last < self.ports.first.saturating_add(2) {
            return Err("ports needs first >= 1024 and last at least first + 2: a cluster takes three".to_string());
        }
        self.timing.check()
    }

    fn check_user(&self) -> Result<(), String> {
        let root = rustix::process::geteuid().is_root();
        match (&self.run_as, root) {
            (None, true) => {
                Err("as root, run_as must name the unprivileged user that Postgres runs as, such as postgres"
                    .to_string())
            }
            (Some(user), true) if user == "root" => Err("run_as must be an unprivileged user".to_string()),
            (Some(user), false) if Some(user.as_str()) != current_user().as_deref() => Err(format!(
                "run_as = {user:?} needs a daemon that runs as root; remove it, and Postgres runs as the daemon's user"
            )),
            _ => Ok(()),
        }
    }
}

impl TimingConfig {
    pub fn suspicion_ms(&self) -> u64 {
        self.suspicion_ms.unwrap_or_else(|| (3 * self.heartbeat_ms).max(SILENCE_MS_DEFAULT))
    }
    fn check(&self) -> Result<(), String> {
        if !(50..=10_000).contains(&self.heartbeat_ms) || !(50..=10_000).contains(&self.probe_ms) {
            return Err("timing: heartbeat_ms and probe_ms must be between 50 and 10000".to_string());
        }
        if self.suspicion_ms() < 1000 || self.suspicion_ms() < 3 * self.heartbeat_ms {
            return Err("timing: suspicion_ms must be at least 1000 and three heartbeats".to_string());
        }
        if !(LEASE_MS_MIN..=LEASE_MS_MAX).contains(&self.lease_ms) || self.lease_ms < 4 * self.heartbeat_ms {
            return Err(format!(
                "timing: lease_ms must be between {LEASE_MS_MIN} and {LEASE_MS_MAX} and at least four heartbeats"
            ));
        }
        let elections = self.raft_election_ms_min..self.raft_election_ms_max;
        if elections.is_empty() || self.raft_election_ms_min < 3 * self.raft_heartbeat_ms {
            return Err(
                "timing: raft_election_ms_min must be at least three raft_heartbeat_ms and below raft_election_ms_max"
                    .to_string(),
            );
        }
        Ok(())
    }
    pub fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms)
    }
    pub fn probe(&self) -> Duration {
        Duration::from_millis(self.probe_ms)
    }
}

/// An entry of the user database.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

/// Looks a user up by name in `/etc/passwd`.
pub fn user_named(name: &str) -> Option<User> {
    users().into_iter().find(|user| user.name == name)
}

fn current_user() -> Option<String> {
    let uid = rustix::process::geteuid().as_raw();
    users().into_iter().find(|user| user.uid == uid).map(|user| user.name)
}

fn users() -> Vec<User> {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let parse = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_string();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(User { name, uid, gid })
    };
    text.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(extra: &str) -> Result<NodeConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        let run_as = if rustix::process::geteuid().is_root() { "run_as = \"nobody\"\n" } else { "" };
        let text = format!(
            "name = \"n1\"\nhost = \"127.0.0.1\"\ndata_dir = \"/tmp/x\"\npostgres_bin = [\"/tmp\"]\n{run_as}{extra}"
        );
        std::fs::write(&path, text).unwrap();
        NodeConfig::load(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_short_file_is_filled_with_defaults() {
        let config = load("").unwrap();
        assert_eq!(config.port, 7480);
        assert_eq!(config.pool[0].path.as_deref(), Some(Path::new("/tmp/x/pools/default")));
    }

    #[test]
    fn unknown_keys_and_wrong_units_are_refused_with_their_place() {
        assert!(load("zonne = \"a\"\n").unwrap_err().contains("zonne"));
        assert!(load("[timing]\nheartbeat_ms = \"1s\"\n").unwrap_err().contains("heartbeat_ms"));
        assert!(load("[timing]\nsuspicion_ms = 200\n").unwrap_err().contains("suspicion_ms"));
        assert!(load("[timing]\nheartbeat_ms = 600\nsuspicion_ms = 1600\n").unwrap_err().contains("suspicion_ms"));
        assert_eq!(load("[timing]\nheartbeat_ms = 600\n").unwrap().timing.suspicion_ms(), 1800);
        assert!(load("[[pool]]\nname = \"p\"\ndriver = \"zfs\"\npath = \"/x\"\n").unwrap_err().contains("zfs"));
    }

    #[test]
    fn pools_share_no_place_and_have_classes() {
        let dir =
            |name: &str, path: &str| format!("[[pool]]\nname = \"{name}\"\ndriver = \"dir\"\npath = \"{path}\"\n");
        let lvm = |name: &str, group: &str| {
            format!(
                "[[pool]]\nname = \"{name}\"\ndriver = \"lvm\"\nvolume_group = \"{group}\"\nthin_pool = \"t{name}\"\n"
            )
        };
        let shared = load(&[dir("a", "/x"), dir("b", "/x")].concat()).unwrap_err();
        assert!(shared.contains("pools a and b are both in /x"), "{shared}");
        let shared = load(&[lvm("a", "g"), lvm("b", "g")].concat()).unwrap_err();
        assert!(shared.contains("both in volume group g"), "{shared}");
        let config =
            load(&[lvm("a", "g"), lvm("b", "h"), dir("c", "/x"), "class = \"hdd\"\n".into()].concat()).unwrap();
        assert_eq!(config.pool.iter().map(PoolConfig::class).collect::<Vec<_>>(), ["default", "default", "hdd"]);
        assert!(load(&(dir("a", "/x") + "class = \"HDD\"\n")).unwrap_err().contains("pool class"));
        let many: String = (0..=POOLS_MAX).map(|n| dir(&format!("p{n}"), &format!("/{n}"))).collect();
        assert!(load(&many).unwrap_err().contains("at most 32"));
        assert!(load(&(dir("a", "/x") + "loop_files = [\"/y\"]\n")).unwrap_err().contains("loop_files"));
    }

    #[test]
    fn a_pool_says_what_its_driver_lacks_or_does_not_take() {
        let pool = |rest: &str| load(&format!("[[pool]]\nname = \"p\"\n{rest}"));
        assert!(pool("driver = \"dir\"\n").unwrap_err().contains("needs path"));
        assert!(pool("driver = \"dir\"\npath = \"/x\"\nthin_pool = \"t\"\n").unwrap_err().contains("thin_pool"));
        assert!(pool("driver = \"lvm\"\nvolume_group = \"g\"\n").unwrap_err().contains("needs thin_pool"));
        let lvm = "driver = \"lvm\"\nvolume_group = \"g\"\nthin_pool = \"t\"\n";
        assert!(pool(&format!("{lvm}file_system = \"ntfs\"\n")).unwrap_err().contains("ntfs"));
        assert!(pool(&format!("{lvm}volume_size_gib = 0\n")).unwrap_err().contains("at least 1"));
        assert!(pool(&lvm.replace("\"g\"", "\"-g\"")).unwrap_err().contains("dash"));
        assert!(pool("driver = \"dir\"\npath = \"/x\"\nencrypt = true\n").unwrap_err().contains("encrypt is for"));
        assert!(pool(&format!("{lvm}key_dir = \"keys\"\n")).unwrap_err().contains("absolute"));
        let config = pool(&format!("{lvm}encrypt = true\n")).unwrap();
        let Ok(Pool::Lvm(found)) = config.pool[0].pool(&config.data_dir) else { panic!("{config:?}") };
        assert_eq!((found.mounts, found.size_default), (PathBuf::from("/tmp/x/volumes/p"), None));
        assert_eq!((found.encrypts, found.keys), (true, PathBuf::from("/tmp/x/volume-keys/p")));
    }
}
