//! Nodes of one process for the tests of this crate: a wire between them that can be cut, and commands to propose.
#![allow(dead_code, reason = "each test binary uses its part of it")]

pub mod medium;

use futures::future::{BoxFuture, FutureExt};
use pgstead_consensus::{
    AsyncRuntime, Consensus, Flush, LogPolicy, OpenError, OpenOptions, RaftAddress, RaftCall, RaftReply, RaftRpc,
    StoreAt, Timing, Transport, TransportError,
};
use pgstead_types::record::{Command, Deployment, JoinToken, NodeRecord};
use pgstead_types::{DeploymentId, NodeId, Secret, TokenId, WallTime};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const DEPLOYMENT: DeploymentId = DeploymentId::from_u128(9);

pub fn id(n: u128) -> NodeId {
    NodeId::from_u128(n)
}
pub fn address(n: u128) -> RaftAddress {
    RaftAddress { host: format!("10.0.0.{n}"), port: 7480 }
}

/// Carries messages between the nodes of a test, as JSON, with a delay if it has one.
pub struct Wire<R: AsyncRuntime> {
    peers: Mutex<BTreeMap<NodeId, Consensus<R>>>,
    cut: Mutex<BTreeSet<NodeId>>,
    /// The address that each node was last called at.
    pub called_at: Mutex<BTreeMap<NodeId, RaftAddress>>,
    /// Records that were sent whole.
    pub snapshots: AtomicU64,
    delay: Duration,
}

impl<R: AsyncRuntime> Wire<R> {
    pub fn new(delay: Duration) -> Arc<Self> {
        let (peers, cut, called_at, snapshots) = Default::default();
        Arc::new(Self { peers, cut, called_at, snapshots, delay })
    }
    pub fn plug(&self, node: &Consensus<R>) {
        self.peers.lock().unwrap().insert(node.node(), node.clone());
    }
    pub fn unplug(&self, node: NodeId) {
        self.peers.lock().unwrap().remove(&node);
    }
    /// Nothing reaches this node and nothing comes from it.
    pub fn cut(&self, node: NodeId) {
        self.cut.lock().unwrap().insert(node);
    }
    pub fn heal(&self) {
        self.cut.lock().unwrap().clear();
    }
    fn reaches(&self, rpc: &RaftRpc) -> bool {
        let cut = self.cut.lock().unwrap();
        !cut.contains(&rpc.from) && !cut.contains(&rpc.to)
    }
}

/// One node's end of the wire.
pub struct Plug<R: AsyncRuntime>(pub Arc<Wire<R>>);

impl<R: AsyncRuntime> Transport for Plug<R> {
    fn call(
        &self,
        to: NodeId,
        address: &RaftAddress,
        rpc: RaftRpc,
        _: Duration,
    ) -> BoxFuture<'static, Result<RaftReply, TransportError>> {
        let wire = self.0.clone();
        wire.called_at.lock().unwrap().insert(to, address.clone());
        async move {
            let rpc: RaftRpc = serde_json::from_str(&serde_json::to_string(&rpc).unwrap()).unwrap();
            if !wire.delay.is_zero() {
                R::sleep(wire.delay).await;
            }
            let lost = || TransportError { why: format!("no way to node {to}") };
            let peer = wire.peers.lock().unwrap().get(&to).cloned().filter(|_| wire.reaches(&rpc)).ok_or_else(lost)?;
            if matches!(rpc.call, RaftCall::Snapshot { .. }) {
                wire.snapshots.fetch_add(1, Ordering::Relaxed);
            }
            let reply = peer.handle(rpc.clone()).await;
            if !wire.reaches(&rpc) {
                return Err(lost()); // The answer is lost as well when the cut comes between the two.
            }
            Ok(serde_json::from_str(&serde_json::to_string(&reply).unwrap()).unwrap())
        }
        .boxed()
    }
}

pub fn options<R: AsyncRuntime>(n: u128, wire: &Arc<Wire<R>>, store: StoreAt, flush: Flush) -> OpenOptions {
    OpenOptions {
        node: id(n),
        deployment: DEPLOYMENT,
        store,
        flush,
        transport: Arc::new(Plug(wire.clone())),
        timing: Timing::default(),
        log: LogPolicy::default(),
    }
}

pub async fn open<R: AsyncRuntime>(wire: &Wire<R>, options: OpenOptions) -> Result<Consensus<R>, OpenError> {
    let node = Consensus::open(options).await?;
    wire.plug(&node);
    Ok(node)
}

pub fn found() -> Command {
    let deployment = Deployment {
        id: DEPLOYMENT,
        created_at: WallTime(0),
        ca_cert_pem: String::new(),
        ca_key_pem: Secret::default(),
        admin_token_sha256: String::new(),
        port_first: 6000,
        port_last: 6999,
        lease_ms: 10_000,
    };
    let node = NodeRecord {
        id: id(1),
        name: "n1".into(),
        host: "10.0.0.1".into(),
        port: 7480,
        region: "local".into(),
        zone: "local".into(),
        postgres_majors: vec![15],
        pools: vec![],
        joined_at: WallTime(0),
        service: Default::default(),
    };
    Command::Found { at: WallTime(0), deployment, node }
}

/// A change that leaves a trace of its own.
pub fn token(n: u128) -> Command {
    let token = JoinToken {
        id: TokenId::from_u128(n),
        secret_sha256: String::new(),
        expires_at: WallTime(i64::MAX),
        used_by: None,
    };
    Command::AddJoinToken { at: WallTime(0), token }
}
