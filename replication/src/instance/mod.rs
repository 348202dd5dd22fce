//! One member's Postgres. Every method is idempotent and safe when this process is killed in the middle of it: doing it
//! again, or doing what the next look at the instance suggests, leads to the same end.
//!
//! `init`, `clone`, `rewind`, `adopt` make data, and `live_copy` copies it; `start`, `stop` run it; `cut`, `position` answer promises; `promote`, `follow`,
//! `relay`, `access` change what it does; `probe` looks. `config`, `hba`, `applied` are the files behind them.

mod access;
mod adopt;
mod applied;
mod basebackup;
mod checkpoints;
mod clients;
mod config;
mod consumers;
mod control;
mod copied;
mod cut;
mod data;
mod error;
mod fetch_wal;
mod folder_copy;
mod follow;
mod hba;
mod health;
mod init;
mod kept_slots;
mod lease;
mod live_copy;
mod position;
mod probe;
mod promote;
mod relay;
mod rewind;
mod safety_copy;
mod sessions;
mod slot_copy;
mod slot_judged;
mod slot_state;
mod slots;
mod slots_tended;
mod source;
mod sql;
mod start;
mod sync_names;
mod take_log;
mod timelines;

pub use adopt::Isolation;
pub use basebackup::CloneProgress;
pub use consumers::Consumer;
pub use cut::{CutHook, CutStep};
pub use error::InstanceError;
pub use health::RecoveryMark;
pub use init::Bootstrap;
pub use lease::LeaseCount;
pub use live_copy::copy_folder;
pub use promote::{Promoted, Promotion};
pub use rewind::Divergence;
pub use safety_copy::SafetyCopy;
pub use source::UpstreamSource;
pub use start::{StartAs, Started};
pub use take_log::Segment;

use crate::guard::{GuardClient, GuardError, GuardEvent, GuardLaunch, GuardStatus};
use crate::user::RunAs;
use applied::{Applied, Shape};
use pgstead_types::{Incarnation, Secret};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast;

/// Where a member's Postgres is and who it is.
#[derive(Clone, Debug)]
pub struct InstanceConfig {
    /// With `postgres`, `initdb`, `pg_basebackup` and so on.
    pub bin_dir: PathBuf,
    /// The major version that the programs and the data must have.
    pub major: u16,
    /// The data folder, on the member's volume. Its parent belongs to the user that Postgres runs as, and holds the
    /// folder's marker and identity beside it.
    pub data_dir: PathBuf,
    /// Outside the volume and of a short path (at most [`RUN_DIR_BYTES_MAX`]): sockets, logs, configuration, TLS files.
    pub run_dir: PathBuf,
    /// `None` for the user of this process.
    pub run_as: Option<RunAs>,
    /// Host name or address to listen on; also what the server certificate names.
    pub listen_host: String,
    pub port: u16,
    /// What the data is or is to become.
    pub incarnation: Incarnation,
    pub tls: ServerTls,
    /// From the spec; they follow pgstead's own in the file and were checked not to touch those.
    pub settings: BTreeMap<String, String>,
    /// Its data began as another cluster's, whose subscriptions it must not follow: no workers for them run, unless the spec's settings
    /// give it some.
    pub forked: bool,
    /// Whether there are to be consumers of logical slots: a `wal_level` for them from the next start on, and their logins.
    pub logical_replication: bool,
    pub guard: GuardLaunch,
}

/// The cluster's certificates as this member presents and trusts them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerTls {
    /// The cluster's own CA.
    pub ca_pem: String,
    pub cert_pem: String,
    pub key_pem: Secret,
}

/// `<run_dir>/.s.PGSQL.<port>.lock` must fit the 107 bytes of a Unix socket's address.
pub const RUN_DIR_BYTES_MAX: usize = 85;

impl InstanceConfig {
    pub(crate) fn owner(&self) -> RunAs {
        self.run_as.unwrap_or_else(RunAs::myself)
    }
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
    /// `<data_dir>.<suffix>`: beside the folder, so that it is there before the folder and after it.
    pub(crate) fn beside_data(&self, suffix: &str) -> PathBuf {
        let mut name = self.data_dir.clone().into_os_string();
        name.push(".");
        name.push(suffix);
        PathBuf::from(name)
    }
    pub(crate) fn run_file(&self, name: &str) -> PathBuf {
        self.run_dir.join(name)
    }
    pub(crate) fn pg_wal(&self) -> PathBuf {
        self.data_dir.join("pg_wal")
    }
}

/// A handle on one member's Postgres. It holds no process: dropping it leaves guard and Postgres running.
pub struct Instance {
    config: Mutex<Arc<InstanceConfig>>,
    guard: tokio::sync::Mutex<Option<GuardClient>>,
    events: broadcast::Sender<GuardEvent>,
    applied: Mutex<Applied>,
    /// One change of configuration at a time.
    changing: tokio::sync::Mutex<()>,
    /// See [`Instance::ask_kept`].
    kept: tokio::sync::Mutex<Option<sql::Sql>>,
    checkpointing: tokio::sync::Mutex<Option<checkpoints::Checkpoints>>,
    control: control::ControlCache,
    local_users: tokio::sync::OnceCell<Vec<String>>,
    /// Nanoseconds of the boot clock at which the lease ends that the guard counts; 0 where it counts none.
    lease: AtomicU64,
    /// See [`Instance::take_false_sender`].
    false_sender: Mutex<Option<String>>,
    /// One change of the note of copied slots at a time.
    copies: tokio::sync::Mutex<()>,
    /// When each copied slot may be moved along again.
    paces: Mutex<BTreeMap<String, slots_tended::Pace>>,
}

impl Instance {
    /// Opens the member: makes its run folder, reads what was applied last, connects to its guard if there is one.
    pub async fn open(config: InstanceConfig) -> Result<Self, InstanceError> {
        let length = config.run_dir.as_os_str().len();
        if length > RUN_DIR_BYTES_MAX {
            return Err(InstanceError::RunDirTooLong { run_dir: config.run_dir, length });
        }
        let owner = config.owner();
        for folder in [config.run_dir.clone(), config.run_file("tls")] {
            crate::files::ensure_folder(&folder, owner).map_err(InstanceError::file("make", &folder))?;
        }
        let applied = Applied::load(&config);
        let instance = Self {
            config: Mutex::new(Arc::new(config)),
            guard: tokio::sync::Mutex::new(None),
            // Events are rare; a subscriber that is this far behind is told so and asks for the status.
            events: broadcast::Sender::new(64),
            applied: Mutex::new(applied),
            changing: tokio::sync::Mutex::new(()),
            kept: tokio::sync::Mutex::new(None),
            checkpointing: tokio::sync::Mutex::new(None),
            control: control::ControlCache::default(),
            local_users: tokio::sync::OnceCell::new(),
            lease: AtomicU64::new(0),
            false_sender: Mutex::new(None),
            copies: tokio::sync::Mutex::new(()),
            paces: Mutex::default(),
        };
        // Its word on the lease that it counts, too.
        let _ = instance.guard_status().await;
        Ok(instance)
    }

    pub fn config(&self) -> Arc<InstanceConfig> {
        Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner))
    }
    /// Takes a new incarnation, new settings or certificates. [`Instance::reload`] brings them to a running Postgres.
    /// Folders, port and user stay what they are.
    pub fn set_config(&self, config: InstanceConfig) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// What the guard sees: ends of the postmaster, at once. Survives the loss of a guard and the start of another.
    pub fn guard_events(&self) -> broadcast::Receiver<GuardEvent> {
        self.events.subscribe()
    }

    /// The connection to the guard, made anew where there is a guard and no connection.
    pub async fn guard_if_any(&self) -> Option<GuardClient> {
        let mut guard = self.guard.lock().await;
        if guard.as_ref().is_none_or(GuardClient::is_lost) {
            let config = self.config();
            *guard = GuardClient::connect(&config.run_dir, self.events.clone()).await.ok();
        }
        guard.clone()
    }
    /// Finds the guard or starts one.
    pub async fn ensure_guard(&self) -> Result<GuardClient, InstanceError> {
        if let Some(guard) = self.guard_if_any().await {
            return Ok(guard);
        }
        let mut guard = self.guard.lock().await;
        let config = self.config();
        let (run_dir, data_dir) = (&config.run_dir, &config.data_dir);
        let fresh = GuardClient::spawn(&config.guard, &config.owner(), run_dir, data_dir, self.events.clone()).await?;
        *guard = Some(fresh.clone());
        Ok(fresh)
    }
    /// The guard's word on its processes; `None` without a guard.
    pub async fn guard_status(&self) -> Result<Option<GuardStatus>, InstanceError> {
        // Twice: a guard that was lost since the last question is not an answer, whether there is another one is.
        for _ in 0..2 {
            match self.guard_if_any().await {
                None => {
                    self.note_lease(None);
                    return Ok(None);
                }
                Some(guard) => match guard.status().await {
                    Err(GuardError::Lost) => {}
                    answer => {
                        let status = answer?;
                        self.note_lease(Some(&status));
                        return Ok(Some(status));
                    }
                },
            }
        }
        Err(GuardError::Lost.into())
    }

    fn applied(&self) -> Applied {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    fn wanted(&self) -> Shape {
        self.applied().wanted
    }
    /// Names of the users whose local connections are the superuser's: Postgres' own, and the daemon's.
    async fn local_users(&self) -> Result<Vec<String>, InstanceError> {
        let look_up = || async {
            let mut names = vec![crate::user::name_of(self.config().owner().uid).await?];
            let mine = crate::user::name_of(RunAs::myself().uid).await?;
            if !names.contains(&mine) {
                names.push(mine);
            }
            Ok::<_, InstanceError>(names)
        };
        self.local_users.get_or_try_init(look_up).await.cloned()
    }
}

/// Runs file work that may wait for a disk without holding up the runtime's other tasks.
async fn on_disk<T: Send + 'static>(
    doing: &'static str,
    path: &Path,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, InstanceError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(std::io::Error::other).and_then(|done| done).map_err(InstanceError::file(doing, path))
}
