//! This node's gateway: a process of its own that outlives the daemon. The daemon starts it when none runs, and feeds it
//! the routes over a socket, whole at every change.

use crate::command;
use crate::config::GatewayConfig;
use crate::files::{FolderLock, Layout};
use crate::routes;
use pgstead_consensus::{Consensus, TokioRuntime};
use pgstead_types::record::{NodeRecord, Record};
use pgstead_types::{Finding, NodeId};
use serde::Deserialize;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// A gateway connects within this after it was started, or another is tried.
const CONNECT_TIME: Duration = Duration::from_secs(3);

/// What the gateway says of itself after each change of routes.
#[derive(Debug, Default, Deserialize)]
struct Said {
    #[serde(default)]
    errors: Vec<ListenError>,
}

#[derive(Debug, Deserialize)]
struct ListenError {
    address: String,
    why: String,
}

/// What is wrong with this node's gateway, for the node's reports.
#[derive(Clone, Default)]
pub struct GatewayHealth {
    findings: Arc<Mutex<Vec<Finding>>>,
}

impl GatewayHealth {
    pub fn findings(&self) -> Vec<Finding> {
        self.findings.lock().expect("nothing panics while it holds the findings").clone()
    }
    fn set(&self, findings: Vec<Finding>) {
        *self.findings.lock().expect("nothing panics while it holds the findings") = findings;
    }
}

pub struct GatewayFeed {
    pub layout: Layout,
    pub config: GatewayConfig,
    pub node: NodeId,
    pub consensus: Consensus<TokioRuntime>,
    pub health: GatewayHealth,
}

impl GatewayFeed {
    /// Serves the socket and keeps a gateway running until `stop`. The gateway itself goes on after that.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let socket = self.layout.routes_socket();
        // Left by an earlier daemon, which is gone: the folder's lock is ours.
        let _ = std::fs::remove_file(&socket);
        let listener = match UnixListener::bind(&socket) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, socket = %socket.display(), "cannot listen for the gateway");
                return;
            }
        };
        let _ = std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600));
        // One that survived the last daemon holds its lock, and dials within a moment. Where there is none, clients of the
        // clusters here would be refused until one runs.
        let survives = matches!(FolderLock::take(&self.layout.gateway().join("gateway.lock")), Ok(None));
        let mut patience = if survives { CONNECT_TIME } else { Duration::ZERO };
        loop {
            let accepted = tokio::select! {
                () = crate::server::stopped(&mut stop) => return,
                accepted = tokio::time::timeout(patience, listener.accept()) => accepted,
            };
            match accepted {
                Ok(Ok((stream, _))) => {
                    tokio::select! {
                        () = crate::server::stopped(&mut stop) => return,
                        why = self.feed(stream) => tracing::warn!(why, "the gateway's connection ended"),
                    }
                    // It may have been killed. A living one dials again within a moment.
                    patience = Duration::from_millis(500);
                }
                Ok(Err(error)) => tracing::warn!(%error, "cannot accept the gateway's connection"),
                Err(_) => {
                    if let Err(error) = command::spawn_gateway(&self.layout, &self.config) {
                        let text = format!("this node's gateway cannot be started: {error}");
                        self.health.set(vec![Finding::error("gateway_down", text).on_node(self.node)]);
                        tracing::error!(%error, "cannot start the gateway");
                    }
                    patience = CONNECT_TIME;
                }
            }
        }
    }

    /// Sends routes until the connection breaks; returns why.
    async fn feed(&self, stream: UnixStream) -> &'static str {
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        let mut record = self.consensus.watch_record();
        self.health.set(Vec::new());
        let mut sent = None;
        loop {
            let now = record.get();
            if let Some(line) = self.line(&now, &mut sent)
                && writer.write_all(&line).await.is_err()
            {
                return "it cannot be written to";
            }
            tokio::select! {
                changed = record.wait_until(|next| next.revision != now.revision) => {
                    if changed.is_err() {
                        return "the record has ended";
                    }
                }
                line = lines.next_line() => match line {
                    Ok(Some(line)) => self.note(&line),
                    Ok(None) | Err(_) => return "it closed",
                },
            }
        }
    }

    /// The routes of this record as a line, unless they say what was sent last.
    fn line(&self, record: &Record, sent: &mut Option<Vec<pgstead_types::routes::ClusterRoute>>) -> Option<Vec<u8>> {
        let here: &NodeRecord = record.nodes.get(&self.node)?;
        let routes = routes::routes(record, here);
        if sent.as_ref() == Some(&routes.clusters) {
            return None;
        }
        let mut line = serde_json::to_vec(&routes).expect("routes are plain data");
        line.push(b'\n');
        *sent = Some(routes.clusters);
        Some(line)
    }

    fn note(&self, line: &str) {
        let said: Said = serde_json::from_str(line).unwrap_or_default();
        let finding = |error: &ListenError| {
            let text = format!(
                "the gateway cannot listen on {}: {}; free the port, it is tried again by itself",
                error.address, error.why
            );
            Finding::error("port_taken", text).on_node(self.node)
        };
        self.health.set(said.errors.iter().map(finding).collect());
    }
}
