//! One node's part in the replicated record: opening it, proposing to it, reading it, and answering its peers.

use crate::leadership::{Leadership, Watched};
use crate::network::{AppendReply, NetworkFactory, RaftCall, RaftReply, RaftRpc, Transport};
use crate::store::state_machine::StateMachine;
use crate::store::writer::Writer;
use crate::store::{AddressBook, Flush, Store, StoreAt, StoreError, chain};
use crate::type_config::{Change, RaftAddress, TypeConfig};
use openraft::async_runtime::watch::{Watch, WatchReceiver, WatchSender};
use openraft::async_runtime::{Oneshot, OneshotSender};
use openraft::errors::{
    ClientWriteError, Fatal, ForwardReason, ForwardToLeader, InitializeError as RaftInitializeError,
    LinearizableReadError, RaftError,
};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, ReadPolicy, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use openraft::{AsyncRuntime, LinearizerOption, Raft, SnapshotPolicy};
use pgstead_types::record::{Applied, Command, Record, Refusal};
use pgstead_types::{DeploymentId, NodeId, RecoveryId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Raft's times. The heartbeat must be longer than a round trip to the farthest voter with its sync, or heartbeats go
/// unanswered and the leader stops taking proposals; the elections several times longer than the heartbeat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
}

impl Default for Timing {
    /// For voters in one region. A dead leader is replaced about a second after its last heartbeat.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(900),
        }
    }
}

/// How much log is kept. A start replays up to `snapshot_every` entries, and a node that lags by more than `keep` behind
/// a snapshot gets the whole record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogPolicy {
    pub snapshot_every: u64,
    pub keep: u64,
}

impl Default for LogPolicy {
    fn default() -> Self {
        Self { snapshot_every: 2000, keep: 500 }
    }
}

pub struct OpenOptions {
    pub node: NodeId,
    pub deployment: DeploymentId,
    pub store: StoreAt,
    pub flush: Flush,
    pub transport: Arc<dyn Transport>,
    pub timing: Timing,
    pub log: LogPolicy,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the times of consensus do not fit together ({why}); choose heartbeat < election_min < election_max")]
    Timing { why: String },
    #[error("consensus could not start: {why}")]
    Start { why: String },
}

/// Why a proposal has no answer from the record.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was recorded.
    #[error("this node does not lead{}", leader.map(|leader| format!("; node {leader} does")).unwrap_or_default())]
    NotLeader { leader: Option<NodeId> },
    /// Nothing was recorded.
    #[error("too few voters answer this leader; nothing was recorded")]
    NoQuorum,
    /// It may have been recorded, or may be yet: look at the record before trying again.
    #[error("no answer from a quorum within {} ms; it may have been recorded", waited.as_millis())]
    OutcomeUnknown { waited: Duration },
    /// As `OutcomeUnknown`: the next leader has or has not kept it.
    #[error("this node lost the leadership meanwhile; it may have been recorded")]
    LeadershipLost,
    #[error("this node takes no part in consensus any more: {why}")]
    Stopped { why: String },
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InitializeError {
    #[error("this node already has a record; a deployment is founded once, by its first node")]
    AlreadyInitialized,
    #[error("this node takes no part in consensus any more: {why}")]
    Stopped { why: String },
}

/// A node of the replicated record. Cheap to clone; all clones are the same node.
pub struct Consensus<R: AsyncRuntime> {
    pub(crate) inner: Arc<Inner<R>>,
}

pub(crate) struct Inner<R: AsyncRuntime> {
    pub node: NodeId,
    deployment: DeploymentId,
    recovery: Option<RecoveryId>,
    pub timing: Timing,
    pub raft: Raft<TypeConfig<R>, StateMachine<R>>,
    pub addresses: AddressBook,
    writer: Arc<Writer>,
    record: Watched<R, Arc<Record>>,
    leadership: Watched<R, Leadership>,
    stopped: Watched<R, Option<Arc<str>>>,
}

impl<R: AsyncRuntime> Clone for Consensus<R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<R: AsyncRuntime> Consensus<R> {
    /// Opens the store and takes part. What was committed before is in `record()` when this returns.
    pub async fn open(options: OpenOptions) -> Result<Self, OpenError> {
        let OpenOptions { node, deployment, store, flush, transport, timing, log } = options;
        let config = raft_config(deployment, timing, log)?;
        let Store { log, state_machine, writer, addresses, recovery } =
            Store::<R>::open(store, flush, node, deployment)?;
        let record = Watched::new(state_machine.watch_record());
        let network = NetworkFactory {
            deployment,
            recovery,
            node,
            transport,
            addresses: addresses.clone(),
            append_timeout: timing.election_min,
        };
        let raft = Raft::new(node, Arc::new(config), network, log, state_machine).await.map_err(|fatal| {
            let why = writer.failure().map_or_else(|| fatal.to_string(), |failure| chain(&failure));
            OpenError::Start { why }
        })?;
        let (leadership, stopped) = follow(&raft, &writer);
        // openraft reports what it found in the store only once its task has begun.
        let found = raft.with_raft_state(|state| *state.membership_state.effective().log_id()).await;
        if let Ok(found) = found {
            let reported = raft.wait(Some(timing.election_max));
            let reported = reported.metrics(|metrics| *metrics.membership_config.log_id() >= found, "its first report");
            reported.await.ok(); // Late, it reads as a node that knows of no others yet.
        }
        let inner = Inner { node, deployment, recovery, timing, raft, addresses, writer, record, leadership, stopped };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// Founds the record with this node as its only voter. On the first node of a deployment, once.
    pub async fn initialize(&self, address: RaftAddress) -> Result<(), InitializeError> {
        self.inner.addresses.note(self.inner.node, &address);
        match self.inner.raft.initialize(BTreeMap::from([(self.inner.node, address)])).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(RaftInitializeError::NotAllowed(_))) => Err(InitializeError::AlreadyInitialized),
            Err(RaftError::APIError(other)) => Err(InitializeError::Stopped { why: other.to_string() }),
            Err(RaftError::Fatal(fatal)) => Err(InitializeError::Stopped { why: self.why_stopped(&fatal) }),
        }
    }

    /// Asks the leader, which must be this node, to record a change. The answer is the record's own, the same on all
    /// nodes, or the reason why there is none within `limit`.
    pub async fn propose(&self, command: Command, limit: Duration) -> Result<Result<Applied, Refusal>, ProposeError> {
        let change = Change::Known(Arc::new(command));
        let attempts = async {
            match self.write(change.clone()).await {
                Err(ProposeError::NoQuorum) if self.is_heard_after_all(limit).await => self.write(change).await,
                other => other,
            }
        };
        R::timeout(limit, attempts).await.unwrap_or(Err(ProposeError::OutcomeUnknown { waited: limit }))
    }

    async fn write(&self, change: Change) -> Result<Result<Applied, Refusal>, ProposeError> {
        let written = self.inner.raft.client_write(change).await;
        written.map(|response| response.data).map_err(|error| self.propose_error(error))
    }

    /// A leader that was elected this moment, or that was cut off for a while, takes nothing before it has heard from a
    /// quorum. Whether it has now, if it asks.
    pub(crate) async fn is_heard_after_all(&self, limit: Duration) -> bool {
        self.confirm_leadership(limit.min(self.inner.timing.election_max)).await.is_ok()
    }

    /// Returns once a quorum has confirmed, after the call began, that this node still leads, and `record()` holds
    /// everything that was recorded before. ReadIndex: no clock is believed.
    pub async fn confirm_leadership(&self, limit: Duration) -> Result<(), ProposeError> {
        let option = LinearizerOption::from(ReadPolicy::ReadIndex).with_wait_timeout(limit);
        match R::timeout(limit, self.inner.raft.ensure_linearizable(option)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                Err(not_leader::<R>(&forward))
            }
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) | Err(_) => {
                Err(ProposeError::NoQuorum)
            }
            Ok(Err(RaftError::Fatal(fatal))) => Err(ProposeError::Stopped { why: self.why_stopped(&fatal) }),
        }
    }

    /// The record as far as this node has applied it. On the leader, after `confirm_leadership`, it is the latest.
    pub fn record(&self) -> Arc<Record> {
        self.inner.record.get()
    }
    pub fn watch_record(&self) -> Watched<R, Arc<Record>> {
        self.inner.record.clone()
    }
    pub fn leadership(&self) -> Leadership {
        self.inner.leadership.get()
    }
    pub fn watch_leadership(&self) -> Watched<R, Leadership> {
        self.inner.leadership.clone()
    }

    /// Why this node takes no part any more, once that is so: its disk failed, it met an entry that it cannot read, or
    /// it was stopped.
    pub async fn stopped(&self) -> Arc<str> {
        let mut stopped = self.inner.stopped.clone();
        match stopped.wait_until(Option::is_some).await {
            Ok(Some(why)) => why,
            _ => "stopped".into(),
        }
    }

    /// Ends this node's part, for all clones, and gives its file back. A process that ends without it loses nothing that
    /// was acknowledged; a handle that is merely dropped ends nothing.
    pub async fn stop(&self) {
        self.inner.raft.shutdown().await.ok(); // An error is the panic of a task that has ended anyway.
        let (answer, closed) = R::Oneshot::channel();
        self.inner.writer.close(move |result| drop(answer.send(result)));
        closed.await.ok();
    }

    /// Answers a peer. To be called with what its `Transport::call` was given.
    pub async fn handle(&self, rpc: RaftRpc) -> RaftReply {
        let refused = |why: String| RaftReply::Refused { why };
        if rpc.deployment != self.inner.deployment {
            return refused(format!("this node is of deployment {}", self.inner.deployment));
        }
        if rpc.recovery != self.inner.recovery {
            return refused(match self.inner.recovery {
                Some(own) => format!(
                    "this node's group was recovered ({own}) and the caller's is another; let it join with \
                     `pgstead node recover-quorum --join {own}`"
                ),
                None => "this node's group was never recovered, and the caller's was; stop this node's daemon".into(),
            });
        }
        if rpc.to != self.inner.node {
            return refused(format!("this is node {}, not {}", self.inner.node, rpc.to));
        }
        self.answer(rpc.call).await.unwrap_or_else(|fatal| refused(self.why_stopped(&fatal)))
    }

    async fn answer(&self, call: RaftCall) -> Result<RaftReply, Fatal<TypeConfig<R>>> {
        let raft = &self.inner.raft;
        Ok(match call {
            RaftCall::Append { ballot, previous, entries, committed } => {
                let request = AppendEntriesRequest {
                    vote: ballot.into(),
                    prev_log_id: previous.map(Into::into),
                    entries: entries.into_iter().map(Into::into).collect(),
                    leader_commit: committed.map(Into::into),
                };
                RaftReply::Append(match raft.append_entries(request).await.map_err(RaftError::unwrap_fatal)? {
                    AppendEntriesResponse::Success => AppendReply::Success,
                    AppendEntriesResponse::PartialSuccess(upto) => AppendReply::Partial(upto.map(Into::into)),
                    AppendEntriesResponse::Conflict => AppendReply::Conflict,
                    AppendEntriesResponse::HigherVote(vote) => AppendReply::HigherVote(vote.into()),
                })
            }
            RaftCall::Vote { ballot, last, leadership_transfer } => {
                let request =
                    VoteRequest { vote: ballot.into(), last_log_id: last.map(Into::into), leadership_transfer };
                vote_reply(raft.vote(request).await.map_err(RaftError::unwrap_fatal)?)
            }
            RaftCall::PreVote { ballot, last, leadership_transfer } => {
                let request =
                    VoteRequest { vote: ballot.into(), last_log_id: last.map(Into::into), leadership_transfer };
                vote_reply(raft.pre_vote(request).await.map_err(RaftError::unwrap_fatal)?)
            }
            RaftCall::Snapshot { ballot, snapshot } => match snapshot.into_raft() {
                Ok(snapshot) => {
                    let reply = raft.install_full_snapshot(ballot.into(), snapshot).await?;
                    RaftReply::Snapshot { ballot: reply.vote.into() }
                }
                // As with an entry: stop rather than go on with an older record.
                Err(why) => {
                    let why = self.inner.writer.refuse(StoreError::UnknownSnapshot { why });
                    raft.shutdown().await.ok();
                    RaftReply::Refused { why: chain(&why) }
                }
            },
            RaftCall::TransferLeader { from_leader, to, last } => {
                let request = TransferLeaderRequest::new(from_leader.into(), to, last.map(Into::into));
                let refused = raft.handle_transfer_leader(request).await?.err();
                RaftReply::TransferLeader { refused: refused.map(|error| error.to_string()) }
            }
        })
    }

    pub(crate) fn propose_error(
        &self,
        error: RaftError<TypeConfig<R>, ClientWriteError<TypeConfig<R>>>,
    ) -> ProposeError {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => not_leader::<R>(&forward),
            RaftError::APIError(_) => ProposeError::LeadershipLost,
            RaftError::Fatal(fatal) => ProposeError::Stopped { why: self.why_stopped(&fatal) },
        }
    }

    pub(crate) fn why_stopped(&self, fatal: &Fatal<TypeConfig<R>>) -> String {
        why_stopped::<R>(&self.inner.writer, Some(fatal)).to_string()
    }
}

fn vote_reply<R: AsyncRuntime>(response: VoteResponse<TypeConfig<R>>) -> RaftReply {
    RaftReply::Vote {
        ballot: response.vote.into(),
        granted: response.vote_granted,
        last: response.last_log_id.map(Into::into),
    }
}

fn not_leader<R: AsyncRuntime>(forward: &ForwardToLeader<TypeConfig<R>>) -> ProposeError {
    match forward.reason {
        // It leads by its own belief, and no quorum has confirmed it for an election's time.
        ForwardReason::LeaseExpired => ProposeError::NoQuorum,
        ForwardReason::NotLeader | ForwardReason::LeadershipTransfer => {
            ProposeError::NotLeader { leader: forward.leader_id }
        }
    }
}

/// Our own words for it where the store knows the reason.
fn why_stopped<R: AsyncRuntime>(writer: &Writer, fatal: Option<&Fatal<TypeConfig<R>>>) -> Arc<str> {
    match (writer.failure(), fatal) {
        (Some(failure), _) => chain(&failure).into(),
        (None, Some(Fatal::Stopped) | None) => "it was stopped".into(),
        (None, Some(fatal)) => fatal.to_string().into(),
    }
}

fn raft_config(deployment: DeploymentId, timing: Timing, log: LogPolicy) -> Result<openraft::Config, OpenError> {
    let ms = |of: Duration| u64::try_from(of.as_millis()).unwrap_or(u64::MAX);
    let config = openraft::Config {
        cluster_name: deployment.to_string(),
        heartbeat_interval: ms(timing.heartbeat),
        election_timeout_min: ms(timing.election_min),
        election_timeout_max: ms(timing.election_max),
        // The whole record in one message; a few megabytes over a slow line.
        install_snapshot_timeout: ms(timing.election_max * 10),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(log.snapshot_every),
        max_in_snapshot_log_to_keep: log.keep,
        // Must exceed the two together, or a snapshot would be sent that does not end the lag.
        replication_lag_threshold: (log.snapshot_every + log.keep) * 2,
        // A node that comes back from behind a partition does not raise the term and unseat a healthy leader.
        enable_pre_vote: Some(true),
        // A restarted leader asks for votes like any other: its record may be older than what it had applied.
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    };
    config.validate().map_err(|error| OpenError::Timing { why: error.to_string() })
}

type Followed<R> = (Watched<R, Leadership>, Watched<R, Option<Arc<str>>>);

/// Keeps the leadership and the end of this node watchable, until that end.
fn follow<R: AsyncRuntime>(raft: &Raft<TypeConfig<R>, StateMachine<R>>, writer: &Arc<Writer>) -> Followed<R> {
    let (leadership, leadership_watch) = R::Watch::channel(Leadership::default());
    let (stopped, stopped_watch) = R::Watch::channel(None);
    let mut metrics = raft.metrics();
    let writer = writer.clone();
    drop(R::spawn(async move {
        let why = loop {
            let (running, now) = {
                let metrics = metrics.borrow_and_update();
                let am_leader = metrics.state.is_leader() && metrics.current_leader == Some(metrics.id);
                let now = Leadership { leader: metrics.current_leader, term: metrics.current_term, am_leader };
                (metrics.running_state.clone(), now)
            };
            if let Err(fatal) = running {
                break why_stopped::<R>(&writer, Some(&fatal));
            }
            leadership.send_if_different(now);
            if metrics.changed().await.is_err() {
                break why_stopped::<R>(&writer, None);
            }
        };
        let term = leadership.borrow_watched().term;
        leadership.send_if_different(Leadership { leader: None, term, am_leader: false });
        stopped.send(Some(why)).ok();
    }));
    (Watched::new(leadership_watch), Watched::new(stopped_watch))
}
