//! One accepting task per address of the routes. An address that cannot be bound is tried again and reported, never
//! fatal: it may be another cluster's fault, or a port that frees itself.

use crate::gateway::Shared;
use crate::session;
use crate::table::{Access, RouteTable};
use pgstead_types::ClusterId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// How often a taken address is tried again: seldom enough to cost nothing.
const BIND_RETRY: Duration = Duration::from_secs(1);
/// A host name that resolves slowly must not hold up the routes behind these.
const FIRST_TRY_WAIT: Duration = Duration::from_millis(500);
/// Without file descriptors `accept` fails at once; a loop without pause would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Per address: `Ok` when it accepts connections, else why not.
pub type Listening = BTreeMap<String, Result<(), String>>;

pub struct Listeners {
    shared: Arc<Shared>,
    tasks: BTreeMap<String, (ClusterId, Access, JoinHandle<()>)>,
    status: watch::Sender<Listening>,
}

impl Listeners {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, tasks: BTreeMap::new(), status: watch::Sender::new(Listening::new()) }
    }

    pub fn subscribe(&self) -> watch::Receiver<Listening> {
        self.status.subscribe()
    }

    /// Listens on the addresses of `table` and no others. Returns when each has been tried once.
    pub async fn ensure(&mut self, table: &RouteTable) {
        let wanted = table.addresses();
        let unwanted: Vec<String> = self
            .tasks
            .iter()
            .filter(|(address, (cluster, access, _))| wanted.get(*address) != Some(&(*cluster, *access)))
            .map(|(address, _)| address.clone())
            .collect();
        for address in unwanted {
            if let Some((_, _, task)) = self.tasks.remove(&address) {
                task.abort();
                // The socket is closed only when the task is gone; the address may be bound again below.
                let _ = task.await;
            }
            self.status.send_modify(|status| drop(status.remove(&address)));
        }
        for (address, (cluster, access)) in wanted {
            if self.tasks.contains_key(&address) {
                continue;
            }
            let (tried, first_try) = oneshot::channel();
            let task = listen(self.shared.clone(), address.clone(), cluster, access, self.status.clone(), tried);
            self.tasks.insert(address, (cluster, access, tokio::spawn(task)));
            let _ = tokio::time::timeout(FIRST_TRY_WAIT, first_try).await;
        }
    }

    /// Stops accepting. Sessions go on.
    pub async fn close(&mut self) {
        for (_, (_, _, task)) in std::mem::take(&mut self.tasks) {
            task.abort();
            let _ = task.await;
        }
        self.status.send_modify(Listening::clear);
    }
}

async fn listen(
    shared: Arc<Shared>,
    address: String,
    cluster: ClusterId,
    access: Access,
    status: watch::Sender<Listening>,
    tried: oneshot::Sender<()>,
) {
    let mut tried = Some(tried);
    let listener = loop {
        let result = TcpListener::bind(&address).await;
        let state = result.as_ref().map(|_| ()).map_err(ToString::to_string);
        status.send_if_modified(|status| {
            let changed = status.get(&address) != Some(&state);
            if changed {
                match &state {
                    Ok(()) => tracing::info!(%address, %cluster, ?access, "accepts connections"),
                    Err(why) => tracing::warn!(%address, %cluster, %why, "cannot listen; will try again"),
                }
                status.insert(address.clone(), state);
            }
            changed
        });
        if let Some(tried) = tried.take() {
            let _ = tried.send(());
        }
        match result {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(BIND_RETRY).await,
        }
    };
    let mut failing = false;
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                failing = false;
                // At the limit newcomers are dropped unheard: whoever fills it is not telling us who they are.
                let Ok(permit) = shared.startups.clone().try_acquire_owned() else { continue };
                let to = (address.clone(), cluster, access);
                tokio::spawn(session::serve(shared.clone(), stream, from, to, permit));
            }
            Err(why) => {
                if !failing {
                    tracing::error!(%address, %why, "cannot accept connections");
                }
                failing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
