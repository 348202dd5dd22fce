//! The daemon's side of a guard: finding it, starting it, asking it, hearing from it.

use super::GuardPaths;
use super::protocol::{GuardEvent, GuardStatus, Reply, ReplyLine, Request, RequestLine, StopMode};
use crate::cgroup;
use crate::proc::ProcessId;
use crate::run;
use crate::user::RunAs;
use pgstead_types::Tick;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{broadcast, oneshot};

/// A guard that takes longer for a plain answer is hung or starved: its work is a few system calls.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// From spawning a guard to its first answer. Far more than the few milliseconds it takes, for starved hosts.
const LAUNCH_TIME_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error("cannot reach the guard at {socket}")]
    Unreachable {
        socket: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("who answers at {socket} (pid {peer}) is not the guard of {state}; a stranger is not obeyed")]
    NotTheGuard { socket: PathBuf, state: PathBuf, peer: i32 },
    #[error("cannot start the guard {program}")]
    Launch {
        program: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("the guard did not come up within {waited:?}; it said: {log}")]
    NotUp { waited: Duration, log: String },
    #[error("the guard did not answer {request} within {waited:?}")]
    NoAnswer { request: &'static str, waited: Duration },
    #[error("the connection to the guard closed, and its Postgres ends with it")]
    Lost,
    #[error("the guard refused to {request}: {why}")]
    Refused { request: &'static str, why: String },
    #[error("the guard speaks version {version} of its protocol, and version {needed} is needed to {request}")]
    TooOld { request: &'static str, version: u32, needed: u32 },
    #[error("the guard answered {request} with something else: {reply}")]
    Confused { request: &'static str, reply: String },
}

/// How to start a guard.
#[derive(Clone, Debug)]
pub struct GuardLaunch {
    /// The pgstead binary.
    pub program: PathBuf,
    /// What comes before `--run-dir` and `--data-dir`: `["guard"]`.
    pub args: Vec<String>,
    /// The control group that it is put into before it starts anything, and all that it starts with it.
    pub cgroup: Option<PathBuf>,
}

/// A connection to a guard. Cloning shares it.
#[derive(Clone)]
pub struct GuardClient {
    guard: ProcessId,
    shared: Arc<Shared>,
}

struct Shared {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    /// `None` once the connection has closed.
    waiting: Mutex<Option<BTreeMap<u64, oneshot::Sender<Reply>>>>,
    next: AtomicU64,
    /// The newest that the guard speaks.
    version: AtomicU32,
}

impl GuardClient {
    /// Connects to the guard of this run folder, checks that it is the one in the state file, and subscribes to its
    /// events, which go to `events` from now on. The last one, when the connection closes, is [`GuardEvent::GuardLost`].
    pub async fn connect(run_dir: &Path, events: broadcast::Sender<GuardEvent>) -> Result<Self, GuardError> {
        let paths = GuardPaths::under(run_dir);
        let unreachable = |error| GuardError::Unreachable { socket: paths.socket.clone(), error };
        let connecting = tokio::time::timeout(ANSWER_TIME_MAX, UnixStream::connect(&paths.socket)).await;
        let stream = connecting.map_err(|_| unreachable(io::ErrorKind::TimedOut.into()))?.map_err(unreachable)?;
        let peer = stream.peer_cred().map_err(unreachable)?.pid().unwrap_or(0);
        let noted: Option<ProcessId> =
            std::fs::read(&paths.state).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let Some(guard) = noted.filter(|guard| ProcessId::of(peer) == Some(*guard)) else {
            return Err(GuardError::NotTheGuard { socket: paths.socket, state: paths.state, peer });
        };
        let (reader, writer) = stream.into_split();
        let shared = Arc::new(Shared {
            writer: tokio::sync::Mutex::new(writer),
            waiting: Mutex::new(Some(BTreeMap::new())),
            next: AtomicU64::new(1),
            version: AtomicU32::new(1),
        });
        let listener = Arc::clone(&shared);
        tokio::spawn(async move {
            let mut lines = BufReader::new(reader).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match serde_json::from_str::<ReplyLine>(&line) {
                    // Nobody may be listening, which is their business.
                    Ok(ReplyLine { reply: Reply::Event(event), .. }) => drop(events.send(event)),
                    Ok(ReplyLine { id: Some(id), reply, .. }) => {
                        if let Some(asker) = listener.take(id) {
                            drop(asker.send(reply));
                        }
                    }
                    Ok(_) | Err(_) => tracing::warn!(%line, "a guard said something that is not known here"),
                }
            }
            // Drops the senders, so that everyone who waits for an answer learns that there will be none.
            listener.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(events.send(GuardEvent::GuardLost));
        });
        let client = Self { guard, shared };
        match client.ask("say hello", Request::Hello, ANSWER_TIME_MAX).await? {
            Reply::Hello { guard: named, version } if named == guard => {
                client.shared.version.store(version, Ordering::Relaxed);
            }
            other => return Err(confused("say hello", &other)),
        }
        match client.ask("subscribe", Request::Subscribe, ANSWER_TIME_MAX).await? {
            Reply::Subscribed => Ok(client),
            other => Err(confused("subscribe", &other)),
        }
    }

    /// Starts a guard, as the user of `run_as` and without the daemon's supplementary groups, and connects to it. It goes
    /// on living when this process ends. Fails when a guard holds the run folder already.
    pub async fn spawn(
        launch: &GuardLaunch,
        run_as: &RunAs,
        run_dir: &Path,
        data_dir: &Path,
        events: broadcast::Sender<GuardEvent>,
    ) -> Result<Self, GuardError> {
        let failed = |error| GuardError::Launch { program: launch.program.clone(), error };
        let paths = GuardPaths::under(run_dir);
        let mut args: Vec<std::ffi::OsString> = launch.args.iter().map(Into::into).collect();
        args.extend(["--run-dir".into(), run_dir.into(), "--data-dir".into(), data_dir.into()]);
        let mut child = run::spawn_lasting(&launch.program, &args, run_as, &paths.own_log).map_err(failed)?;
        if let (Some(group), Some(pid)) = (&launch.cgroup, child.id())
            && let Err(error) = cgroup::enter(group, pid.cast_signed())
        {
            // It is brought in later; a member without limits is better than none.
            tracing::warn!(group = %group.display(), %error, "a guard cannot be put into its control group");
        }
        let begun = Tick::now();
        loop {
            match Self::connect(run_dir, events.clone()).await {
                Ok(client) if i64::from(client.guard.pid) == child.id().map_or(-1, i64::from) => return Ok(client),
                // Someone else's guard: this one will say so and end.
                Ok(_) | Err(_) => {}
            }
            let waited = Tick::now().since(begun);
            if child.try_wait().map_err(failed)?.is_some() || waited > LAUNCH_TIME_MAX {
                // Harmless when it has ended, and one that hangs must not come up later.
                let _ = child.start_kill();
                return Err(GuardError::NotUp { waited, log: run::tail_of(&paths.own_log) });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn process(&self) -> ProcessId {
        self.guard
    }
    /// Whether the connection has closed.
    pub fn is_lost(&self) -> bool {
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Has the guard run the postmaster.
    pub async fn start(&self, program: PathBuf, args: Vec<String>) -> Result<ProcessId, GuardError> {
        match self.ask("start", Request::Start { program, args }, ANSWER_TIME_MAX).await? {
            Reply::Started { postmaster } => Ok(postmaster),
            other => Err(confused("start", &other)),
        }
    }
    /// Tells the postmaster to shut down, and does not wait for it.
    pub async fn stop(&self, mode: StopMode) -> Result<(), GuardError> {
        match self.ask("stop", Request::Stop { mode }, ANSWER_TIME_MAX).await? {
            Reply::Stopping => Ok(()),
            other => Err(confused("stop", &other)),
        }
    }
    /// Returns once no process is left. When the deadline passes first the guard goes on killing.
    pub async fn fence(&self, deadline: Duration) -> Result<(), GuardError> {
        match self.ask("fence", Request::Fence, deadline).await? {
            Reply::Fenced => Ok(()),
            other => Err(confused("fence", &other)),
        }
    }
    pub async fn status(&self) -> Result<GuardStatus, GuardError> {
        match self.ask("tell its status", Request::Status, ANSWER_TIME_MAX).await? {
            Reply::Status(status) => Ok(status),
            other => Err(confused("tell its status", &other)),
        }
    }
    /// Has the guard end every process at `end` (`None`: not any more), and a jump of the wall clock too where it is
    /// `strict`.
    pub async fn count_lease(&self, end: Option<Tick>, strict: bool) -> Result<(), GuardError> {
        let request = Request::Lease { end_boottime_ns: end.map(Tick::as_nanos), strict };
        match self.ask("count a lease", request, ANSWER_TIME_MAX).await? {
            Reply::LeaseCounted => Ok(()),
            other => Err(confused("count a lease", &other)),
        }
    }
    /// Ends the guard; refused while it has processes.
    pub async fn quit(&self) -> Result<(), GuardError> {
        match self.ask("quit", Request::Quit, ANSWER_TIME_MAX).await? {
            Reply::Quitting => Ok(()),
            other => Err(confused("quit", &other)),
        }
    }

    async fn ask(&self, what: &'static str, request: Request, deadline: Duration) -> Result<Reply, GuardError> {
        let (needed, version) = (request.version(), self.shared.version.load(Ordering::Relaxed));
        if version < needed {
            return Err(GuardError::TooOld { request: what, version, needed });
        }
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (asker, answer) = oneshot::channel();
        match self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(waiting) => waiting.insert(id, asker),
            None => return Err(GuardError::Lost),
        };
        let mut line = serde_json::to_vec(&RequestLine { v: needed, id, request }).expect("requests are plain data");
        line.push(b'\n');
        let exchange = async {
            self.shared.writer.lock().await.write_all(&line).await.map_err(|_| GuardError::Lost)?;
            answer.await.map_err(|_| GuardError::Lost)
        };
        let reply = tokio::time::timeout(deadline, exchange).await;
        self.shared.take(id);
        match reply {
            Ok(Ok(Reply::Refused { why })) => Err(GuardError::Refused { request: what, why }),
            Ok(Err(GuardError::Lost)) => {
                // The listening task may not have run yet, and whoever asks next must not be sent to a dead guard.
                self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
                Err(GuardError::Lost)
            }
            Ok(reply) => reply,
            Err(_) => Err(GuardError::NoAnswer { request: what, waited: deadline }),
        }
    }
}

impl Shared {
    fn take(&self, id: u64) -> Option<oneshot::Sender<Reply>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(|waiting| waiting.remove(&id))
    }
}

fn confused(request: &'static str, reply: &Reply) -> GuardError {
    GuardError::Confused { request, reply: format!("{reply:?}") }
}
