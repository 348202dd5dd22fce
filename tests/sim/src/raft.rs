//! The real consensus on virtual time: every node runs `pgstead-consensus` over openraft's simulated runtime, with its
//! redb file on a disk in memory. The world asks it to go on until a time or until something changed.

#[path = "../../../manager/consensus/tests/support/medium.rs"]
#[allow(dead_code, reason = "the simulation uses its part of it")]
mod medium;

use crate::rng::Rng;
use futures::FutureExt;
use futures::future::{BoxFuture, Either, select};
use medium::{Medium, Survives};
use openraft_rt_sim::{SimInstant, SimRuntime};
use pgstead_consensus::{
    AsyncRuntime, Consensus, Flush, LogPolicy, OpenOptions, ProposeError, RaftAddress, RaftReply, RaftRpc, StoreAt,
    Timing, Transport, TransportError,
};
use pgstead_types::record::{Applied, Command, Record, Refusal};
use pgstead_types::{DeploymentId, NodeId, Tick};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::Duration;

type Node = Consensus<SimRuntime>;
pub type Outcome = Result<Result<Applied, Refusal>, ProposeError>;

const DEPLOYMENT: DeploymentId = DeploymentId::from_u128(9);
/// How long a controller waits for its proposal.
const PROPOSAL_LIMIT: Duration = Duration::from_secs(3);
/// How long it waits for a quorum to confirm that it leads.
const ROUND_LIMIT: Duration = Duration::from_secs(2);
/// Slower than the daemon's, because idle heartbeats are most of what a seed costs.
const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(400),
    election_min: Duration::from_millis(1200),
    election_max: Duration::from_millis(1900),
};
/// One way between two nodes.
const WAY: Duration = Duration::from_millis(1);

fn node_id(n: usize) -> NodeId {
    NodeId::from_u128(n as u128 + 1)
}
fn address(n: usize) -> RaftAddress {
    RaftAddress { host: format!("10.0.0.{}", n + 1), port: 7480 }
}

/// What the wire and the watchers share with the world.
#[derive(Default)]
struct Shared {
    peers: BTreeMap<NodeId, (u64, Node)>,
    /// Directed pairs that carry nothing.
    cut: BTreeSet<(NodeId, NodeId)>,
    frozen: BTreeSet<NodeId>,
    /// Percent of messages lost, and as many doubled; and how late each may be, in milliseconds, so that they overtake.
    loss: u64,
    late_ms: u64,
    luck: Option<Rng>,
    changed: bool,
    waker: Option<Waker>,
    outcomes: Vec<(u64, Outcome)>,
    /// Rounds that have ended, and whether a quorum has confirmed.
    confirmed: Vec<(u64, bool)>,
    /// Nobody hears anybody, though daemons and Postgres do.
    silent: bool,
}

#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Shared>>);

impl Wire {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().expect("nothing panics while it holds this")
    }
    /// What becomes of one message: how late it is, whether it is lost, whether it comes twice.
    fn weather(&self) -> (Duration, bool, bool) {
        let mut shared = self.lock();
        let (loss, late_ms) = (shared.loss, shared.late_ms);
        match shared.luck.as_mut().filter(|_| loss > 0 || late_ms > 0) {
            Some(luck) => (luck.ms(0, late_ms), luck.chance(loss), luck.chance(loss)),
            None => (Duration::ZERO, false, false),
        }
    }
    fn note_change(&self) {
        let mut shared = self.lock();
        shared.changed = true;
        if let Some(waker) = shared.waker.take() {
            waker.wake();
        }
    }
    async fn until_changed(&self) {
        futures::future::poll_fn(|context| {
            let mut shared = self.lock();
            if shared.changed {
                return Poll::Ready(());
            }
            shared.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// One life of a node on the wire: a node that was killed says nothing more, whatever its tasks still do.
struct Plug {
    wire: Wire,
    life: u64,
}

impl Transport for Plug {
    fn call(
        &self,
        to: NodeId,
        _: &RaftAddress,
        rpc: RaftRpc,
        _: Duration,
    ) -> BoxFuture<'static, Result<RaftReply, TransportError>> {
        let (wire, life, from) = (self.wire.clone(), self.life, rpc.from);
        async move {
            let lost = || TransportError { why: format!("no way to node {to}") };
            let pass = async |a: NodeId, b: NodeId| {
                let (late, gone, twice) = wire.weather();
                SimRuntime::sleep(WAY + late).await;
                if gone {
                    return Err(lost());
                }
                // A frozen end neither sends nor takes; its messages wait as packets do in a kernel.
                while [a, b].iter().any(|end| wire.lock().frozen.contains(end)) {
                    SimRuntime::sleep(Duration::from_millis(20)).await;
                }
                let shared = wire.lock();
                let sender_lives = shared.peers.get(&from).is_some_and(|(held, _)| *held == life);
                if sender_lives && !shared.silent && !shared.cut.contains(&(a, b)) { Ok(twice) } else { Err(lost()) }
            };
            let twice = pass(from, to).await?;
            let peer = wire.lock().peers.get(&to).map(|(_, peer)| peer.clone()).ok_or_else(lost)?;
            if twice {
                // Its double comes later, and nobody waits for the answer.
                let (again, peer, (late, _, _)) = (rpc.clone(), peer.clone(), wire.weather());
                drop(SimRuntime::spawn(async move {
                    SimRuntime::sleep(late).await;
                    peer.handle(again).await;
                }));
            }
            let reply = peer.handle(rpc).await;
            pass(to, from).await?;
            Ok(reply)
        }
        .boxed()
    }
}

/// All nodes' consensus.
pub struct Raft {
    runtime: SimRuntime,
    wire: Wire,
    media: Vec<Medium>,
    nodes: Vec<Option<Node>>,
    /// The record that a dead node had applied last.
    last: Vec<Arc<Record>>,
    lives: u64,
}

impl Raft {
    /// A group of `count` voters that agree on nothing yet.
    pub fn found(seed: u64, count: usize) -> Self {
        let mut raft = Self {
            runtime: SimRuntime::with_seed(seed),
            wire: Wire::default(),
            media: (0..count).map(|_| Medium::default()).collect(),
            nodes: vec![None; count],
            last: (0..count).map(|_| Arc::default()).collect(),
            lives: 0,
        };
        raft.wire.lock().luck = Some(Rng::new(seed ^ 0xA17));
        for n in 0..count {
            raft.open(n);
        }
        let first = raft.nodes[0].clone().expect("it was opened just now");
        raft.runtime.block_on(async move {
            let limit = Duration::from_secs(60);
            first.initialize(address(0)).await.expect("the medium is new");
            while !first.leadership().am_leader {
                SimRuntime::sleep(Duration::from_millis(10)).await;
            }
            for n in 1..count {
                first.add_learner(node_id(n), address(n), limit).await.expect("the network is whole");
            }
            first.change_voters((0..count).map(node_id).collect(), limit).await.expect("the network is whole");
        });
        raft
    }

    fn open(&mut self, n: usize) {
        self.lives += 1;
        let life = self.lives;
        let wire = self.wire.clone();
        let options = OpenOptions {
            node: node_id(n),
            deployment: DEPLOYMENT,
            store: StoreAt::Backend { name: format!("medium {n}"), backend: Box::new(self.media[n].clone()) },
            flush: Flush::Inline,
            transport: Arc::new(Plug { wire: wire.clone(), life }),
            timing: TIMING,
            log: LogPolicy { snapshot_every: 60, keep: 20 },
        };
        let node = self.runtime.block_on(async move {
            let node: Node = Consensus::open(options).await.expect("the medium is whole");
            let (mut record, mut leadership) = (node.watch_record(), node.watch_leadership());
            let (mine, other) = (wire.clone(), wire);
            drop(SimRuntime::spawn(async move {
                while record.changed().await.is_ok() {
                    mine.note_change();
                }
            }));
            drop(SimRuntime::spawn(async move {
                while leadership.changed().await.is_ok() {
                    other.note_change();
                }
            }));
            node
        });
        self.wire.lock().peers.insert(node_id(n), (life, node.clone()));
        self.nodes[n] = Some(node);
    }

    /// The power of a node's daemon goes; its disk keeps what was synced.
    pub fn kill(&mut self, n: usize) {
        let Some(node) = self.nodes[n].take() else { return };
        self.last[n] = node.record();
        self.wire.lock().peers.remove(&node_id(n));
        self.media[n] = self.media[n].after_power_cut(Survives::SomeSectors(self.lives));
        // Only to free its memory: it can neither write nor speak any more.
        self.runtime.block_on(async move { drop(SimRuntime::spawn(async move { node.stop().await })) });
    }
    pub fn start(&mut self, n: usize) {
        if self.nodes[n].is_none() {
            self.open(n);
            self.wire.note_change();
        }
    }
    pub fn freeze(&mut self, n: usize) {
        self.wire.lock().frozen.insert(node_id(n));
    }
    pub fn thaw(&mut self, n: usize) {
        self.wire.lock().frozen.remove(&node_id(n));
    }
    /// Messages are lost and doubled (percent each) and late by up to so much.
    pub fn set_weather(&mut self, loss: u64, late_ms: u64) {
        let mut shared = self.wire.lock();
        (shared.loss, shared.late_ms) = (loss, late_ms);
    }
    pub fn cut(&mut self, from: usize, to: usize) {
        self.wire.lock().cut.insert((node_id(from), node_id(to)));
    }
    pub fn join(&mut self, from: usize, to: usize) {
        self.wire.lock().cut.remove(&(node_id(from), node_id(to)));
    }

    /// Virtual time passes until `to`, or until a node has applied something, changed its mind about who leads, or has
    /// an answer to a proposal.
    pub fn advance(&mut self, to: Tick) -> Tick {
        let wire = self.wire.clone();
        self.runtime.block_on(async move {
            let now = tick();
            if now < to {
                let timer = SimRuntime::sleep(to.since(now));
                match select(Box::pin(timer), Box::pin(wire.until_changed())).await {
                    Either::Left(_) | Either::Right(_) => {}
                }
            }
            tick()
        })
    }
    /// The consensus has no quorum, and everything else goes on.
    pub fn silence(&mut self, silent: bool) {
        self.wire.lock().silent = silent;
    }
    pub fn take_confirmed(&mut self) -> Vec<(u64, bool)> {
        std::mem::take(&mut self.wire.lock().confirmed)
    }
    /// Has a quorum confirm that the node leads, in a round that begins now.
    pub fn confirm(&mut self, n: usize, ticket: u64) {
        let Some(node) = self.nodes[n].clone() else { return };
        let wire = self.wire.clone();
        self.runtime.block_on(async move {
            drop(SimRuntime::spawn(async move {
                let confirmed = node.confirm_leadership(ROUND_LIMIT).await.is_ok();
                wire.lock().confirmed.push((ticket, confirmed));
                wire.note_change();
            }));
        });
    }
    /// Whether anything changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.wire.lock().changed)
    }
    pub fn take_outcomes(&mut self) -> Vec<(u64, Outcome)> {
        std::mem::take(&mut self.wire.lock().outcomes)
    }

    /// What the node has applied, or had when it died.
    pub fn record(&self, n: usize) -> Arc<Record> {
        self.nodes[n].as_ref().map_or_else(|| self.last[n].clone(), Consensus::record)
    }
    /// The term in which the node believes that it leads.
    pub fn leads(&self, n: usize) -> Option<u64> {
        let leadership = self.nodes[n].as_ref()?.leadership();
        leadership.am_leader.then_some(leadership.term)
    }
    pub fn leader_known_to(&self, n: usize) -> Option<usize> {
        let leader = self.nodes[n].as_ref()?.leadership().leader?;
        (0..self.nodes.len()).find(|n| node_id(*n) == leader)
    }
    /// The answer comes back under `ticket`.
    pub fn propose(&mut self, n: usize, ticket: u64, command: Command) {
        let Some(node) = self.nodes[n].clone() else { return };
        let wire = self.wire.clone();
        self.runtime.block_on(async move {
            drop(SimRuntime::spawn(async move {
                let outcome = node.propose(command, PROPOSAL_LIMIT).await;
                wire.lock().outcomes.push((ticket, outcome));
                wire.note_change();
            }));
        });
    }
}

impl Drop for Raft {
    fn drop(&mut self) {
        // The peers hold each other through the wire.
        self.wire.lock().peers.clear();
        self.nodes.clear();
    }
}

fn tick() -> Tick {
    let now = SimInstant::try_now().expect("called inside the runtime");
    Tick::default() + now.elapsed_since_start()
}
