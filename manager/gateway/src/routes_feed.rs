//! Follows the daemon: whole `Routes`, one JSON object per line, at every change. Without the daemon the last ones
//! stay in force. Says back what was applied and which addresses cannot be listened on.

use crate::gateway::{Shared, Stopping};
use crate::listener::{Listeners, Listening};
use crate::state_dir::StateDir;
use pgstead_types::routes::Routes;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::watch;

/// The daemon is back within a second or so of a restart; a failed connect to a local socket costs next to nothing.
const RECONNECT_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(1);
/// A daemon that does not read our few bytes within this hangs; a new connection may find it better.
const SAY_DEADLINE: Duration = Duration::from_secs(5);

/// The first line to the daemon.
#[derive(Serialize)]
struct Hello {
    v: u32,
    pid: u32,
    version: &'static str,
}

/// What is in force, after each `Routes` and whenever an address's state changes.
#[derive(Serialize)]
struct Applied {
    applied: u64,
    listening: Vec<String>,
    errors: Vec<AddressError>,
}

/// Something that a person should know. `address` is empty when it is about the routes as a whole.
#[derive(Clone, Serialize)]
struct AddressError {
    address: String,
    why: String,
}

pub struct RoutesFeed {
    shared: Arc<Shared>,
    state_dir: Arc<StateDir>,
    /// The last accepted line, to be written by a task of its own: a stalled disk must not delay the next routes.
    save: watch::Sender<Vec<u8>>,
    listeners: Listeners,
    certificate_errors: Vec<AddressError>,
}

impl RoutesFeed {
    pub fn new(shared: Arc<Shared>, state_dir: StateDir) -> Self {
        let listeners = Listeners::new(shared.clone());
        let save = watch::Sender::default();
        Self { shared, state_dir: Arc::new(state_dir), save, listeners, certificate_errors: Vec::new() }
    }

    /// Serves from the routes that were saved last.
    pub async fn resume(&mut self) {
        if let Some(routes) = self.state_dir.load() {
            match self.apply(&routes).await {
                Ok(()) => tracing::info!(revision = routes.revision, "serves from saved routes"),
                Err(why) => tracing::warn!(why = %why.why, "the saved routes cannot be used; waiting for the daemon"),
            }
        }
    }

    /// Until the gateway is told to stop.
    pub async fn follow(mut self) {
        let mut stopping = self.shared.stopping.subscribe();
        let saver = tokio::spawn(save_each(self.state_dir.clone(), self.save.subscribe()));
        tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping != Stopping::No) => {}
            () = self.follow_for_ever() => {}
        }
        self.listeners.close().await;
        drop(self);
        let _ = saver.await;
    }

    async fn follow_for_ever(&mut self) {
        let mut pause = RECONNECT_FIRST;
        let mut lost = false;
        loop {
            match UnixStream::connect(&self.shared.options.routes_socket).await {
                Ok(stream) => {
                    tracing::info!("connected to the daemon");
                    (pause, lost) = (RECONNECT_FIRST, false);
                    let why = self.converse(stream).await;
                    tracing::warn!(%why, "lost the daemon; serving from the last routes");
                }
                Err(why) if !lost => {
                    lost = true;
                    tracing::warn!(%why, "the daemon does not listen; will try again");
                }
                Err(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    /// One connection, until it ends.
    async fn converse(&mut self, stream: UnixStream) -> std::io::Error {
        let (reads, mut writes) = stream.into_split();
        let mut lines = BufReader::new(reads).split(b'\n');
        let mut listening = self.listeners.subscribe();
        let hello = Hello { v: 1, pid: std::process::id(), version: env!("CARGO_PKG_VERSION") };
        if let Err(why) = say(&mut writes, &hello).await {
            return why;
        }
        loop {
            let mut refused = None;
            tokio::select! {
                line = lines.next_segment() => match line {
                    Ok(None) => return std::io::ErrorKind::UnexpectedEof.into(),
                    Err(why) => return why,
                    Ok(Some(line)) => match self.on_line(&line).await {
                        Ok(()) => drop(self.save.send_replace(line)),
                        Err(why) => refused = Some(why),
                    },
                },
                changed = listening.changed() => {
                    if changed.is_err() {
                        return std::io::ErrorKind::UnexpectedEof.into();
                    }
                }
            }
            let state = listening.borrow_and_update().clone();
            if let Err(why) = say(&mut writes, &self.applied(&state, refused)).await {
                return why;
            }
        }
    }

    async fn on_line(&mut self, line: &[u8]) -> Result<(), AddressError> {
        let whole = |why: String| AddressError { address: String::new(), why };
        let routes: Routes = serde_json::from_slice(line).map_err(|why| {
            tracing::error!(%why, "the daemon sent what is not routes; the last ones stay in force");
            whole(format!("not routes: {why}"))
        })?;
        self.apply(&routes).await.inspect_err(|why| tracing::error!(why = %why.why, "the last routes stay in force"))
    }

    /// Puts routes in force: sessions of deposed leaders end and waiting ones go on at the very send below.
    async fn apply(&mut self, routes: &Routes) -> Result<(), AddressError> {
        let current = self.shared.routes.borrow().clone();
        let (next, errors) =
            current.try_next(routes).map_err(|why| AddressError { address: String::new(), why: why.to_string() })?;
        for (address, why) in &errors {
            tracing::error!(%address, %why, "cannot use a cluster's certificate");
        }
        self.certificate_errors =
            errors.into_iter().map(|(address, why)| AddressError { address, why: why.to_string() }).collect();
        let next = Arc::new(next);
        self.shared.routes.send_replace(next.clone());
        self.listeners.ensure(&next).await;
        Ok(())
    }

    fn applied(&self, state: &Listening, refused: Option<AddressError>) -> Applied {
        let taken = state.iter().filter_map(|(address, state)| {
            state.as_ref().err().map(|why| AddressError { address: address.clone(), why: why.clone() })
        });
        Applied {
            applied: self.shared.routes.borrow().revision,
            listening: state.iter().filter(|(_, state)| state.is_ok()).map(|(address, _)| address.clone()).collect(),
            errors: taken.chain(self.certificate_errors.iter().cloned()).chain(refused).collect(),
        }
    }
}

/// Saves the newest routes whenever there are newer ones, and the last ones before it ends.
async fn save_each(state_dir: Arc<StateDir>, mut lines: watch::Receiver<Vec<u8>>) {
    while lines.changed().await.is_ok() {
        let line = lines.borrow_and_update().clone();
        let state_dir = state_dir.clone();
        if let Ok(Err(why)) = tokio::task::spawn_blocking(move || state_dir.save(&line)).await {
            let cause = std::error::Error::source(&why).map(ToString::to_string);
            tracing::error!(%why, cause, "a restart without the daemon would serve older routes");
        }
    }
}

async fn say(writes: &mut OwnedWriteHalf, what: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    tokio::time::timeout(SAY_DEADLINE, writes.write_all(&line)).await?
}
