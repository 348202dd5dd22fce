//! Who takes part: learners, voters, their addresses, and handing the leadership on.

use crate::node::{Consensus, ProposeError};
use crate::type_config::{RaftAddress, TypeConfig};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::TransferLeaderRequest;
use openraft::{AsyncRuntime, ChangeMembers, Instant, LogIdOptionExt, RaftMetrics};
use pgstead_types::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A learner may vote once it is this close to the end of the log: at our rates, seconds of entries.
const LAG_MAX: u64 = 100;

/// Who takes part, by the latest entry of the log that says so.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Membership {
    /// While a change is under way, the old and the new ones.
    pub voters: BTreeSet<NodeId>,
    pub learners: BTreeSet<NodeId>,
    pub addresses: BTreeMap<NodeId, RaftAddress>,
    /// Two sets of voters are in force, because a change has not ended; `change_voters` again ends it.
    pub changing: bool,
}

/// Another node as the leader sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Entries of the log that it lacks; all of them while it has not answered yet.
    pub lag_entries: u64,
    /// Since it last answered this leader.
    pub heard_ago: Option<Duration>,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MembershipError {
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// Nothing was changed.
    #[error("{why}")]
    Refused { why: String },
}

fn refused(why: impl Into<String>) -> MembershipError {
    MembershipError::Refused { why: why.into() }
}

impl<R: AsyncRuntime> Consensus<R> {
    pub fn membership(&self) -> Membership {
        let metrics = self.inner.raft.metrics();
        let config = metrics.borrow_watched().membership_config.clone();
        let config = config.membership();
        Membership {
            voters: config.voter_ids().collect(),
            learners: config.learner_ids().collect(),
            addresses: config.nodes().map(|(node, address)| (*node, address.clone())).collect(),
            changing: config.get_joint_config().len() > 1,
        }
    }

    /// The other nodes, voters and learners; empty on a node that does not lead.
    pub fn peers(&self) -> BTreeMap<NodeId, Peer> {
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        let others = metrics.replication.iter().flat_map(|all| all.keys()).filter(|node| **node != self.inner.node);
        others.map(|node| (*node, peer(&metrics, *node))).collect()
    }

    /// Lets a node listen, or records where it is now. Learner or voter: that does not change by it.
    pub async fn add_learner(
        &self,
        node: NodeId,
        address: RaftAddress,
        limit: Duration,
    ) -> Result<(), MembershipError> {
        if self.membership().addresses.get(&node) == Some(&address) && self.leadership().am_leader {
            return Ok(());
        }
        // Replacing an address is safe because each message names its receiver: a wrong one is refused there.
        self.change(ChangeMembers::SetNodes(BTreeMap::from([(node, address)])), limit).await
    }

    /// Makes exactly these nodes the voters, by joint consensus. Each must be known and close to the end of the log;
    /// voters that are left out stay as learners.
    pub async fn change_voters(&self, voters: BTreeSet<NodeId>, limit: Duration) -> Result<(), MembershipError> {
        let now = self.membership();
        if let Some(unknown) = voters.iter().find(|node| !now.addresses.contains_key(node)) {
            return Err(refused(format!("node {unknown} is not known; add it as a learner first")));
        }
        if voters.is_empty() {
            return Err(refused("no voters would be left"));
        }
        if voters == now.voters && !now.changing && self.leadership().am_leader {
            return Ok(());
        }
        // A voter that is away, or lacks most of the log, would hold up every commit until it has it.
        let new: Vec<NodeId> = voters.difference(&now.voters).copied().collect();
        if !self.wait_for_peers(&new, LAG_MAX, limit).await {
            return Err(refused("a learner has not caught up with the log in time; is it running and reachable?"));
        }
        self.change(ChangeMembers::ReplaceAllVoters(voters), limit).await
    }

    /// Ends the part of a node that is no voter. Its id must never come back.
    pub async fn remove_learner(&self, node: NodeId, limit: Duration) -> Result<(), MembershipError> {
        let now = self.membership();
        if now.voters.contains(&node) {
            return Err(refused(format!("node {node} is a voter; take its vote first")));
        }
        if !now.addresses.contains_key(&node) && self.leadership().am_leader {
            return Ok(());
        }
        self.change(ChangeMembers::RemoveNodes(BTreeSet::from([node])), limit).await
    }

    /// Stands for election now, if a quorum would have it. Does nothing against a leader that is heard.
    pub async fn trigger_election(&self) -> Result<(), ProposeError> {
        let asked = self.inner.raft.trigger().elect(true).await;
        asked.map_err(|fatal| ProposeError::Stopped { why: self.why_stopped(&fatal) })
    }

    /// Asks a voter that is up to date and answers to lead. It has begun when this returns; watch the leadership for
    /// the end, which an election brings if `to` does not take over.
    pub async fn transfer_leadership(&self, to: NodeId) -> Result<(), MembershipError> {
        let leadership = self.leadership();
        if !leadership.am_leader {
            return Err(ProposeError::NotLeader { leader: leadership.leader }.into());
        }
        if to == self.inner.node {
            return Ok(());
        }
        if !self.membership().voters.contains(&to) {
            return Err(refused(format!("node {to} is not a voter")));
        }
        // This leader takes no proposals until somebody leads, so it must be one that can.
        if !self.wait_for_peers(&[to], 0, self.inner.timing.election_max).await {
            return Err(refused(format!("node {to} does not answer, or has not caught up with the log")));
        }
        let asked = self.inner.raft.trigger().transfer_leader(to).await;
        asked.map_err(|fatal| ProposeError::Stopped { why: self.why_stopped(&fatal) }.into())
    }

    /// Asks for votes now instead of when the leader's silence has lasted an election's time. Only for a leader whose
    /// process is known to have ended: its voters set their patience with it aside, as for one that hands over. Safety does
    /// not rest on that; a leader that lives would merely lose its office. Nothing happens where another leads by now, or
    /// this node does not vote.
    pub async fn succeed(&self, dead: NodeId) -> Result<(), MembershipError> {
        let leadership = self.leadership();
        let me = self.inner.node;
        if leadership.leader != Some(dead) || dead == me || !self.membership().voters.contains(&me) {
            return Ok(());
        }
        let vote = self.inner.raft.metrics().borrow_watched().vote;
        let request = TransferLeaderRequest::new(vote, me, None);
        match self.inner.raft.handle_transfer_leader(request).await {
            Ok(_) => Ok(()),
            Err(fatal) => Err(ProposeError::Stopped { why: self.why_stopped(&fatal) }.into()),
        }
    }

    async fn change(&self, change: ChangeMembers<NodeId, RaftAddress>, limit: Duration) -> Result<(), MembershipError> {
        let attempts = async {
            match self.write_membership(change.clone()).await {
                Err(MembershipError::Propose(ProposeError::NoQuorum)) if self.is_heard_after_all(limit).await => {
                    self.write_membership(change).await
                }
                other => other,
            }
        };
        let unknown = ProposeError::OutcomeUnknown { waited: limit };
        R::timeout(limit, attempts).await.unwrap_or(Err(unknown.into()))
    }

    async fn write_membership(&self, change: ChangeMembers<NodeId, RaftAddress>) -> Result<(), MembershipError> {
        match self.inner.raft.change_membership(change, true).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(why))) => Err(refused(why.to_string())),
            Err(error) => Err(self.propose_error(error).into()),
        }
    }

    /// Whether, within `limit`, all of `nodes` answer and lack at most `lag_max` entries. Also ends when this node no
    /// longer leads, which whatever comes next will say better.
    async fn wait_for_peers(&self, nodes: &[NodeId], lag_max: u64, limit: Duration) -> bool {
        let recent = self.inner.timing.election_max;
        let mut metrics = self.inner.raft.metrics();
        let ready = metrics.wait_until(|metrics| {
            !metrics.state.is_leader()
                || nodes.iter().all(|node| {
                    let peer = peer(metrics, *node);
                    peer.lag_entries <= lag_max && peer.heard_ago.is_some_and(|ago| ago <= recent)
                })
        });
        matches!(R::timeout(limit, ready).await, Ok(Ok(_)))
    }
}

fn peer<R: AsyncRuntime>(metrics: &RaftMetrics<TypeConfig<R>>, node: NodeId) -> Peer {
    let matched = metrics.replication.as_ref().and_then(|all| all.get(&node)).copied().flatten();
    let heard = metrics.heartbeat.as_ref().and_then(|all| all.get(&node)).copied().flatten();
    let end = metrics.last_log_index.map_or(0, |index| index + 1);
    Peer { lag_entries: end.saturating_sub(matched.next_index()), heard_ago: heard.map(|at| at.elapsed()) }
}
