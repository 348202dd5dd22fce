//! The gateway as a whole: what its tasks share, how it starts and how it stops.

use crate::admission::Admission;
use crate::cancel::CancelKeys;
use crate::options::GatewayOptions;
use crate::routes_feed::RoutesFeed;
use crate::state_dir::{StateDir, StateDirError};
use crate::table::{Cluster, RouteTable};
use pgstead_types::ClusterId;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

/// After the last order to stop: for saying goodbye to clients and members.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How urgently sessions should end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stopping {
    No,
    WhenIdle,
    Now,
}

pub struct Shared {
    pub options: GatewayOptions,
    pub routes: watch::Sender<Arc<RouteTable>>,
    pub stopping: watch::Sender<Stopping>,
    pub cancels: CancelKeys,
    pub admission: Admission,
    /// Connections whose wish is not known yet.
    pub startups: Arc<Semaphore>,
    /// Sessions hold `Shared`, so the receiver sees when the last one is gone.
    _alive: mpsc::Sender<()>,
    turn: AtomicUsize,
}

impl Shared {
    pub fn cluster(&self, id: ClusterId) -> Option<Arc<Cluster>> {
        self.routes.borrow().clusters.get(&id).cloned()
    }
    /// For round-robin.
    pub fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }
}

/// A running gateway. Dropped without `shutdown`, it stops following and accepting; its sessions go on.
pub struct Gateway {
    shared: Arc<Shared>,
    feed: JoinHandle<()>,
    all_gone: mpsc::Receiver<()>,
}

impl Gateway {
    /// Takes the state directory, serves from the saved routes if there are any, and follows the daemon.
    pub async fn start(options: GatewayOptions) -> Result<Self, StateDirError> {
        let state_dir = StateDir::open(&options.state_dir)?;
        let (alive, all_gone) = mpsc::channel(1);
        let shared = Arc::new(Shared {
            admission: Admission::new(options.connections_max, options.connections_per_cluster_max),
            // Refusals and cancels need a start-up too, also when all places are taken.
            startups: Arc::new(Semaphore::new(options.connections_max.max(16))),
            options,
            routes: watch::Sender::new(Arc::default()),
            stopping: watch::Sender::new(Stopping::No),
            cancels: CancelKeys::default(),
            _alive: alive,
            turn: AtomicUsize::new(0),
        });
        let mut feed = RoutesFeed::new(shared.clone(), state_dir);
        feed.resume().await;
        Ok(Self { shared, feed: tokio::spawn(feed.follow()), all_gone })
    }

    /// Client connections that are past their start-up packet.
    pub fn connections(&self) -> usize {
        self.shared.admission.in_use()
    }

    /// Revision of the routes in force; 0 when there are none.
    pub fn revision(&self) -> u64 {
        self.shared.routes.borrow().revision
    }

    /// Stops accepting, ends idle sessions, gives busy ones `options.drain`, ends the rest.
    pub async fn shutdown(self) {
        let Self { shared, feed, mut all_gone } = self;
        shared.stopping.send_replace(Stopping::WhenIdle);
        let _ = feed.await;
        let drain = shared.options.drain;
        let stopping = shared.stopping.clone();
        // With this the last sender is a session's.
        drop(shared);
        if tokio::time::timeout(drain, all_gone.recv()).await.is_err() {
            stopping.send_replace(Stopping::Now);
            if tokio::time::timeout(LAST_WORDS, all_gone.recv()).await.is_err() {
                tracing::warn!("some sessions did not end in time");
            }
        }
    }
}
