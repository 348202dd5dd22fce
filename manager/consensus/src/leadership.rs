//! Who leads, as this node believes, and values that can be watched on any runtime.

use openraft::AsyncRuntime;
use openraft::async_runtime::watch::{Watch, WatchReceiver};
use pgstead_types::NodeId;
use std::fmt;

/// What this node believes about the leadership. A leader that is cut off believes in itself for a while; ask
/// `confirm_leadership` before anything that only the leader may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Leadership {
    pub leader: Option<NodeId>,
    /// Grows with every election; it has at most one leader.
    pub term: u64,
    pub am_leader: bool,
}

/// A value that changes, and its changes. Built on the runtime's own watch channel, because that of tokio wakes several
/// waiters in an order that no seed repeats.
pub struct Watched<R: AsyncRuntime, T: Clone + Send + Sync + 'static> {
    receiver: <R::Watch as Watch>::Receiver<T>,
}

/// The node has ended, and the value will not change any more.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the consensus node has ended")]
pub struct Ended;

impl<R: AsyncRuntime, T: Clone + Send + Sync + 'static> Watched<R, T> {
    pub(crate) fn new(receiver: <R::Watch as Watch>::Receiver<T>) -> Self {
        Self { receiver }
    }
    /// The present value. `changed` still reports it if it has not been reported.
    pub fn get(&self) -> T {
        // Cloned at once: a reference would hold up whoever sets the next value.
        self.receiver.borrow_watched().clone()
    }
    /// The next value that this watch has not seen.
    pub async fn changed(&mut self) -> Result<T, Ended> {
        self.receiver.changed().await.map_err(|_| Ended)?;
        Ok(self.receiver.borrow_and_update().clone())
    }
    /// The first value, the present one included, for which `holds`.
    pub async fn wait_until(&mut self, holds: impl Fn(&T) -> bool + Send) -> Result<T, Ended> {
        self.receiver.wait_until(holds).await.map_err(|_| Ended)
    }
}

impl<R: AsyncRuntime, T: Clone + Send + Sync + 'static> Clone for Watched<R, T> {
    fn clone(&self) -> Self {
        Self { receiver: self.receiver.clone() }
    }
}

impl<R: AsyncRuntime, T: Clone + Send + Sync + fmt::Debug + 'static> fmt::Debug for Watched<R, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watched").field(&self.get()).finish()
    }
}
