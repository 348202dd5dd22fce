//! The node's configuration file: read whole, checked whole, refused with one sentence per mistake.

use pgstead_types::lease::{LEASE_MS_DEFAULT, LEASE_MS_MAX, LEASE_MS_MIN, SILENCE_MS_DEFAULT};
use pgstead_types::spec::check_name;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    /// Only `dir` in this version.
    pub driver: String,
    pub path: PathBuf,
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
            self.pool = vec![PoolConfig { name: "default".to_string(), driver: "dir".to_string(), path }];
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
        for pool in &self.pool {
            named(check_name("pool name", &pool.name))?;
            if pool.driver != "dir" {
                return Err(format!(
                    "pool {} has driver {:?}; this version offers only \"dir\"",
                    pool.name, pool.driver
                ));
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

    /// The pool that new volumes go to.
    pub fn first_pool(&self) -> &PoolConfig {
        self.pool.first().expect("filled in when the configuration was loaded")
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
        assert_eq!(config.first_pool().path, Path::new("/tmp/x/pools/default"));
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
}
