//! Raft's messages over the nodes' own connections. The answer is computed by the peer's `consensus`, behind
//! `POST /internal/raft`.

use crate::peers::{Lane, PeerAddress, Peers};
use futures::FutureExt;
use futures::future::BoxFuture;
use pgstead_consensus::{RaftAddress, RaftReply, RaftRpc, Transport, TransportError};
use pgstead_types::NodeId;
use std::time::Duration;

pub struct RaftTransport {
    pub peers: Peers,
}

fn failed(why: impl ToString) -> TransportError {
    TransportError { why: why.to_string() }
}

impl Transport for RaftTransport {
    fn call(
        &self,
        to: NodeId,
        address: &RaftAddress,
        rpc: RaftRpc,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<RaftReply, TransportError>> {
        let peers = self.peers.clone();
        let to = PeerAddress { node: to, host: address.host.clone(), port: address.port };
        async move {
            let body = serde_json::to_vec(&rpc).map_err(failed)?;
            let answer = peers.post_json(&to, Lane::Raft, "/internal/raft", body, timeout).await.map_err(failed)?;
            if !answer.status().is_success() {
                return Err(failed(format!("answered {}", answer.status())));
            }
            serde_json::from_slice(answer.body()).map_err(failed)
        }
        .boxed()
    }
}
