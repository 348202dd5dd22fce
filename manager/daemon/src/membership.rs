//! Keeps Raft's membership in step with the recorded nodes: every node listens, and the oldest of them, an odd number of
//! at most five, vote. Runs on the controller.

use pgstead_consensus::{Consensus, MembershipError, RaftAddress, TokioRuntime};
use pgstead_types::record::{ClusterRecord, Record};
use pgstead_types::{NodeId, Tick};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::watch;

/// More voters make commits slower and survive no more than anyone needs.
const VOTERS_MAX: usize = 5;
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks when nothing is recorded: a learner may have caught up, or a change may have failed.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// While a node that should vote does not: until it does, the record survives less than it should.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Between two hand-overs by the same node, so that they cannot chase each other.
const MOVE_EVERY: Duration = Duration::from_secs(5);
/// A voter that has answered within this is there.
const HEARD_LATELY: Duration = Duration::from_secs(1);

/// Who should vote: the nodes that joined first. Two nodes are an exception to the odd number: the second votes too, so
/// that the record is on both disks, and either's loss stops decisions until it is back.
pub fn wanted_voters(record: &Record) -> BTreeSet<NodeId> {
    let mut nodes: Vec<_> = record.nodes.values().collect();
    nodes.sort_by_key(|node| (node.joined_at, node.id));
    let count = match nodes.len() {
        n @ 0..=3 => n,
        4 => 3,
        _ => VOTERS_MAX,
    };
    nodes.into_iter().take(count).map(|node| node.id).collect()
}

/// Nodes that should vote and do not.
pub fn not_voting(record: &Record, voters: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    wanted_voters(record).difference(voters).copied().collect()
}

/// A better place for the controller: a voter that leads no cluster, when this node leads some. One host's death then
/// costs one wait, for a new leader of the cluster, and not another before it, for a new controller.
pub fn better_controller(record: &Record, me: NodeId, voters: &BTreeSet<NodeId>) -> Option<NodeId> {
    let settled = |cluster: &ClusterRecord| cluster.is_confirmed() && cluster.switchover.is_none();
    if !record.clusters.values().all(settled) {
        // Whatever is under way goes on faster with the controller that knows of it.
        return None;
    }
    let led: BTreeSet<NodeId> =
        record.clusters.values().filter_map(|cluster| cluster.leader()).map(|leader| leader.node).collect();
    led.contains(&me).then(|| voters.iter().copied().find(|node| !led.contains(node))).flatten()
}

pub async fn run(consensus: Consensus<TokioRuntime>, mut stop: watch::Receiver<bool>) {
    let mut record = consensus.watch_record();
    let mut moved: Option<Tick> = None;
    loop {
        // Before anything is adjusted to it: a node that joins meanwhile is seen at once.
        let nodes = record.get().nodes.clone();
        if consensus.leadership().am_leader {
            if let Err(why) = adjust(&consensus).await {
                tracing::info!(%why, "the voters are not as wanted yet");
            } else if moved.is_none_or(|at| Tick::now().since(at) >= MOVE_EVERY) && hand_over(&consensus).await {
                moved = Some(Tick::now());
            }
        }
        let settled = not_voting(&record.get(), &consensus.membership().voters).is_empty();
        tokio::select! {
            () = crate::server::stopped(&mut stop) => return,
            changed = record.wait_until(|record| record.nodes != nodes) => if changed.is_err() { return },
            () = tokio::time::sleep(if settled { LOOK_EVERY } else { LOOK_AGAIN }) => {}
        }
    }
}

/// Whether a hand-over was begun.
async fn hand_over(consensus: &Consensus<TokioRuntime>) -> bool {
    let voters = consensus.membership().voters;
    let Some(to) = better_controller(&consensus.record(), consensus.node(), &voters) else { return false };
    // Only to one that answers and has everything: until it leads, nothing can be recorded.
    let ready = consensus
        .peers()
        .get(&to)
        .is_some_and(|peer| peer.lag_entries == 0 && peer.heard_ago.is_some_and(|ago| ago < HEARD_LATELY));
    if !ready {
        return false;
    }
    tracing::info!(%to, "handing the controller over to a node that leads no cluster");
    match consensus.transfer_leadership(to).await {
        Ok(()) => true,
        Err(why) => {
            tracing::info!(%why, "the controller stays here");
            false
        }
    }
}

async fn adjust(consensus: &Consensus<TokioRuntime>) -> Result<(), MembershipError> {
    let record = consensus.record();
    for node in record.nodes.values() {
        let address = RaftAddress { host: node.host.clone(), port: node.port };
        consensus.add_learner(node.id, address, CHANGE_TIMEOUT).await?;
    }
    let now = consensus.membership();
    // A node that was admitted and has never answered may have given up joining; it would hold up every change.
    let heard = consensus.peers();
    let mut there = (*record).clone();
    there.nodes.retain(|node, _| {
        *node == consensus.node()
            || now.voters.contains(node)
            || heard.get(node).is_some_and(|peer| peer.heard_ago.is_some())
    });
    let wanted = wanted_voters(&there);
    if (now.voters != wanted || now.changing) && !wanted.is_empty() {
        tracing::info!(voters = wanted.len(), "changing the voters");
        consensus.change_voters(wanted, CHANGE_TIMEOUT).await?;
    }
    for gone in now.learners.iter().filter(|node| !record.nodes.contains_key(*node)) {
        consensus.remove_learner(*gone, CHANGE_TIMEOUT).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_types::WallTime;
    use pgstead_types::record::NodeRecord;

    fn nodes(count: u128) -> Record {
        let mut record = Record::default();
        for n in 1..=count {
            let node = NodeRecord {
                id: NodeId::from_u128(n),
                name: format!("n{n}"),
                host: format!("127.0.{n}.1"),
                port: 7480,
                region: "r".into(),
                zone: "z".into(),
                postgres_majors: vec![15],
                pools: vec![],
                joined_at: WallTime(n as i64),
                service: Default::default(),
            };
            record.nodes.insert(node.id, node);
        }
        record
    }

    #[test]
    fn an_odd_number_of_the_oldest_nodes_votes() {
        for (nodes_there, voters) in [(1, 1), (2, 2), (3, 3), (4, 3), (5, 5), (9, 5)] {
            assert_eq!(wanted_voters(&nodes(nodes_there)).len(), voters, "{nodes_there} nodes");
        }
    }

    #[test]
    fn a_controller_that_leads_nothing_stays() {
        let record = nodes(3);
        let voters = wanted_voters(&record);
        assert_eq!(better_controller(&record, NodeId::from_u128(1), &voters), None);
    }
}
