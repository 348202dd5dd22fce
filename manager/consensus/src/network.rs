//! Raft's calls as messages: what goes over the wire, who carries it, and openraft's network on top of that.
//!
//! A message names its deployment, sender and receiver, so that one that reaches the wrong node (an address that was
//! given to another host) is refused rather than believed.

use crate::store::AddressBook;
use crate::store::envelope::{Ballot, LogPosition, StoredEntry, StoredSnapshot};
use crate::type_config::{LogId, RaftAddress, Snapshot, TypeConfig, Vote};
use futures::future::{BoxFuture, Either, select};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout as RaftTimeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RPCTypes};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AsyncRuntime, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use pgstead_types::record::Record;
use pgstead_types::{DeploymentId, NodeId, RecoveryId};
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// A call from one node to another.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RaftRpc {
    pub deployment: DeploymentId,
    /// The recovery that the sender's group came from, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<RecoveryId>,
    pub from: NodeId,
    pub to: NodeId,
    pub call: RaftCall,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RaftCall {
    /// Log entries, or none: then it is a heartbeat.
    Append {
        ballot: Ballot,
        previous: Option<LogPosition>,
        entries: Vec<StoredEntry>,
        committed: Option<LogPosition>,
    },
    Vote {
        ballot: Ballot,
        last: Option<LogPosition>,
        leadership_transfer: bool,
    },
    /// Would you vote for me? Nothing is written for it.
    PreVote {
        ballot: Ballot,
        last: Option<LogPosition>,
        leadership_transfer: bool,
    },
    Snapshot {
        ballot: Ballot,
        snapshot: StoredSnapshot,
    },
    TransferLeader {
        from_leader: Ballot,
        to: NodeId,
        last: Option<LogPosition>,
    },
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RaftReply {
    Append(AppendReply),
    Vote {
        ballot: Ballot,
        granted: bool,
        last: Option<LogPosition>,
    },
    Snapshot {
        ballot: Ballot,
    },
    TransferLeader {
        refused: Option<String>,
    },
    /// The node does not take part: it has stopped, or the message was not for it.
    Refused {
        why: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppendReply {
    Success,
    /// Only up to here.
    Partial(Option<LogPosition>),
    /// The entry before them is not there.
    Conflict,
    HigherVote(Ballot),
}

/// The message or its answer did not arrive. The receiver may have acted on it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{why}")]
pub struct TransportError {
    pub why: String,
}

/// Carries messages. One instance serves all peers and both runtimes.
///
/// `address` is the recorded one; a transport that knows a node to be elsewhere meanwhile (it has announced itself) may
/// use that. It must check that the peer is `to`, and give up after `timeout`.
pub trait Transport: Send + Sync + 'static {
    fn call(
        &self,
        to: NodeId,
        address: &RaftAddress,
        rpc: RaftRpc,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<RaftReply, TransportError>>;
}

/// Makes a connection per peer and purpose; they share the transport, which may share its streams.
pub(crate) struct NetworkFactory {
    pub deployment: DeploymentId,
    pub recovery: Option<RecoveryId>,
    pub node: NodeId,
    pub transport: Arc<dyn Transport>,
    pub addresses: AddressBook,
    /// How long entries may take. Longer than a heartbeat's time, which would be too short for a long way.
    pub append_timeout: Duration,
}

pub(crate) struct Connection {
    deployment: DeploymentId,
    recovery: Option<RecoveryId>,
    node: NodeId,
    to: NodeId,
    transport: Arc<dyn Transport>,
    addresses: AddressBook,
    append_timeout: Duration,
    /// Between tries to reach a peer that cannot be reached.
    retry_every: Duration,
}

impl<R: AsyncRuntime> RaftNetworkFactory<TypeConfig<R>> for NetworkFactory {
    type Network = Connection;

    async fn new_client(&mut self, target: NodeId, address: &RaftAddress) -> Connection {
        if self.addresses.get(target).is_none() {
            self.addresses.note(target, address);
        }
        Connection {
            deployment: self.deployment,
            recovery: self.recovery,
            node: self.node,
            to: target,
            transport: self.transport.clone(),
            addresses: self.addresses.clone(),
            append_timeout: self.append_timeout,
            retry_every: self.append_timeout / 4,
        }
    }
}

impl Connection {
    async fn call<R: AsyncRuntime>(
        &self,
        action: RPCTypes,
        call: RaftCall,
        limit: Duration,
    ) -> Result<RaftReply, RPCError<TypeConfig<R>>> {
        let Some(address) = self.addresses.get(self.to) else {
            return Err(Unreachable::from_string(format!("no address of node {} is known", self.to)).into());
        };
        let rpc = RaftRpc { deployment: self.deployment, recovery: self.recovery, from: self.node, to: self.to, call };
        // The transport has the limit too; this one holds whatever the transport does.
        match R::timeout(limit, self.transport.call(self.to, &address, rpc, limit)).await {
            Ok(Ok(RaftReply::Refused { why })) => Err(Unreachable::from_string(why).into()),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => Err(Unreachable::from_string(format!("{address}: {error}")).into()),
            Err(_) => Err(RaftTimeout { action, id: self.node, target: self.to, timeout: limit }.into()),
        }
    }

    async fn ask_for_vote<R: AsyncRuntime>(
        &self,
        call: RaftCall,
        limit: Duration,
    ) -> Result<VoteResponse<TypeConfig<R>>, RPCError<TypeConfig<R>>> {
        match self.call::<R>(RPCTypes::Vote, call, limit).await? {
            RaftReply::Vote { ballot, granted, last } => {
                Ok(VoteResponse { vote: ballot.into(), vote_granted: granted, last_log_id: last.map(Into::into) })
            }
            other => Err(unexpected::<R>("vote", &other)),
        }
    }
}

fn unexpected<R: AsyncRuntime>(call: &str, reply: &RaftReply) -> RPCError<TypeConfig<R>> {
    NetworkError::from_string(format!("a {call} was answered with {reply:?}")).into()
}

impl<R: AsyncRuntime> RaftNetworkV2<TypeConfig<R>> for Connection {
    type SnapshotData = Arc<Record>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig<R>>, RPCError<TypeConfig<R>>> {
        let limit = match rpc.entries.is_empty() {
            true => option.soft_ttl(), // A heartbeat: openraft cuts it off at the hard limit.
            false => option.soft_ttl().max(self.append_timeout),
        };
        let call = RaftCall::Append {
            ballot: rpc.vote.into(),
            previous: rpc.prev_log_id.map(Into::into),
            entries: rpc.entries.iter().map(StoredEntry::from).collect(),
            committed: rpc.leader_commit.map(Into::into),
        };
        match self.call::<R>(RPCTypes::AppendEntries, call, limit).await? {
            RaftReply::Append(reply) => Ok(match reply {
                AppendReply::Success => AppendEntriesResponse::Success,
                AppendReply::Partial(upto) => AppendEntriesResponse::PartialSuccess(upto.map(Into::into)),
                AppendReply::Conflict => AppendEntriesResponse::Conflict,
                AppendReply::HigherVote(ballot) => AppendEntriesResponse::HigherVote(ballot.into()),
            }),
            other => Err(unexpected::<R>("append", &other)),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<R>>, RPCError<TypeConfig<R>>> {
        let (ballot, last, leadership_transfer) = vote_parts::<R>(rpc);
        self.ask_for_vote(RaftCall::Vote { ballot, last, leadership_transfer }, option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<R>>, RPCError<TypeConfig<R>>> {
        let (ballot, last, leadership_transfer) = vote_parts::<R>(rpc);
        self.ask_for_vote(RaftCall::PreVote { ballot, last, leadership_transfer }, option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig<R>>, StreamingError<TypeConfig<R>>> {
        let call = RaftCall::Snapshot { ballot: vote.into(), snapshot: StoredSnapshot::from(&snapshot) };
        let sent = Box::pin(self.call::<R>(RPCTypes::InstallSnapshot, call, option.soft_ttl()));
        match select(Box::pin(cancel), sent).await {
            Either::Left((closed, _)) => Err(closed.into()),
            Either::Right((reply, _)) => match reply? {
                RaftReply::Snapshot { ballot } => Ok(SnapshotResponse::new(ballot.into())),
                other => Err(unexpected::<R>("snapshot", &other).into()),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig<R>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig<R>>, RPCError<TypeConfig<R>>> {
        let call = RaftCall::TransferLeader {
            from_leader: (*rpc.from_leader()).into(),
            to: *rpc.to_node_id(),
            last: rpc.last_log_id().copied().map(Into::into),
        };
        match self.call::<R>(RPCTypes::TransferLeader, call, option.soft_ttl()).await? {
            RaftReply::TransferLeader { refused: None } => Ok(Ok(())),
            RaftReply::TransferLeader { refused: Some(why) } => Err(NetworkError::from_string(why).into()),
            other => Err(unexpected::<R>("transfer of leadership", &other)),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        let every = self.retry_every;
        Some(Backoff::new(std::iter::repeat(every)))
    }
}

fn vote_parts<R: AsyncRuntime>(rpc: VoteRequest<TypeConfig<R>>) -> (Ballot, Option<LogPosition>, bool) {
    (rpc.vote.into(), rpc.last_log_id.map(|id: LogId| id.into()), rpc.leadership_transfer)
}
