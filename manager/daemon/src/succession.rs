//! The death of the node that leads Raft, told by its closed connections instead of by a timer.
//!
//! When a process ends, its host closes its connections at once and refuses new ones. Both together are a word about that
//! process; a silent host gives neither, and is left to Raft's own timeout. The first of the voters that are left then
//! asks for votes, and each of the others only where the ones before it have not come to lead. A controller that begins
//! like this need not wait for the dead node's first report either.

use crate::server::Closed;
use pgstead_consensus::{Consensus, TokioRuntime};
use pgstead_types::{NodeId, Tick};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

/// A host that is there refuses in much less.
const PROBE_TIMEOUT: Duration = Duration::from_millis(200);
/// Each voter lets those before it have so long: a round of votes with its writes to disk.
const TURN: Duration = Duration::from_millis(200);
/// For so long a refusal is news to a new controller.
const FRESH: Duration = Duration::from_secs(2);

/// Nodes whose daemon was seen to have ended, and when. All clones are the same. At most one entry per node.
#[derive(Clone, Default)]
pub struct Ended {
    nodes: Arc<Mutex<BTreeMap<NodeId, Tick>>>,
}

impl Ended {
    fn note(&self, node: NodeId, at: Tick) {
        self.nodes.lock().expect("nothing panics while it holds the nodes").insert(node, at);
    }
    /// Those of which that is still news.
    pub fn lately(&self, now: Tick) -> BTreeSet<NodeId> {
        let mut nodes = self.nodes.lock().expect("nothing panics while it holds the nodes");
        nodes.retain(|_, at| now.since(*at) < FRESH);
        nodes.keys().copied().collect()
    }
}

pub async fn run(
    consensus: Consensus<TokioRuntime>,
    mut closed: mpsc::UnboundedReceiver<Closed>,
    ended: Ended,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let closed = tokio::select! {
            () = crate::server::stopped(&mut stop) => return,
            closed = closed.recv() => match closed { Some(closed) => closed, None => return },
        };
        if consensus.leadership().leader != Some(closed.node) || !refuses(&consensus, closed.node).await {
            continue;
        }
        tracing::info!(node = %closed.node, "the node that leads Raft has ended");
        ended.note(closed.node, Tick::now());
        let Some(turn) = turn(&consensus.membership().voters, closed.node, consensus.node()) else { continue };
        tokio::time::sleep(TURN * turn).await;
        if let Err(why) = consensus.succeed(closed.node).await {
            tracing::info!(%why, "no early election");
        }
    }
}

/// Whether the host of a node is there and says that nobody listens.
async fn refuses(consensus: &Consensus<TokioRuntime>, node: NodeId) -> bool {
    let record = consensus.record();
    let Some(at) = record.nodes.get(&node) else { return false };
    let attempt = tokio::time::timeout(PROBE_TIMEOUT, TcpStream::connect((at.host.as_str(), at.port))).await;
    matches!(attempt, Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused)
}

/// How many voters come before this one; `None` where it has no vote.
fn turn(voters: &BTreeSet<NodeId>, dead: NodeId, me: NodeId) -> Option<u32> {
    let place = voters.iter().filter(|voter| **voter != dead).position(|voter| *voter == me)?;
    u32::try_from(place).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u128) -> NodeId {
        NodeId::from_u128(number)
    }

    #[test]
    fn the_voters_that_are_left_take_turns() {
        let voters = [node(1), node(2), node(3)].into();
        assert_eq!(turn(&voters, node(1), node(2)), Some(0));
        assert_eq!(turn(&voters, node(1), node(3)), Some(1));
        assert_eq!(turn(&voters, node(1), node(4)), None, "a learner has no vote");
    }

    #[test]
    fn news_of_an_end_grows_old() {
        let ended = Ended::default();
        ended.note(node(1), Tick::from_millis(1000));
        assert_eq!(ended.lately(Tick::from_millis(1500)), [node(1)].into());
        assert_eq!(ended.lately(Tick::from_millis(9000)), BTreeSet::new());
    }
}
