//! Members that move to other nodes: because a person says so, or because their node is being drained, or is lost. What is recorded is one move;
//! that a node is to be empty is recorded as well, and whoever is the controller begins the moves that it needs.

use crate::backend::NodeBackend;
use pgstead_api::backend::{Accepted, Rejected, SwitchoverAsked};
use pgstead_core::{Connection, place_move};
use pgstead_types::record::{
    ClusterChange, ClusterRecord, Lifecycle, MemberRecord, NodeRecord, NodeService, Record, Standing,
};
use pgstead_types::{ClusterId, Finding, MemberId, NodeId, OperationId, Tick, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use uuid::Uuid;

/// Between two looks at nodes that are being drained.
const LOOK: Duration = Duration::from_secs(1);
/// Before a cluster is asked again that refused.
const AGAIN: Duration = Duration::from_secs(10);
/// Copies from one node at a time: each reads all of a cluster's data, from its leader.
const MOVES_MAX: usize = 2;

/// What keeps members from leaving nodes that are drained or lost. Only the controller knows.
#[derive(Clone, Debug, Default)]
pub struct Draining {
    waits: Arc<Mutex<BTreeMap<(NodeId, ClusterId), Waits>>>,
}

#[derive(Clone, Debug)]
struct Waits {
    why: String,
    until: Tick,
}

/// Why a node is to have no members.
#[derive(Clone, Copy, Debug)]
enum Leaving {
    Drained,
    /// It has not been heard for so long.
    Lost {
        silent: Duration,
    },
}

impl NodeBackend {
    pub(crate) async fn begin_move(
        &self,
        cluster: ClusterId,
        member: MemberId,
        to: Option<NodeId>,
    ) -> Result<Accepted, Rejected> {
        self.await_nodes(|record, nodes| {
            let held = record.clusters.get(&cluster);
            held.is_none_or(|held| place_move(record, nodes, held, member, to).is_ok())
        })
        .await;
        let record = self.consensus.record();
        let held =
            record.clusters.get(&cluster).ok_or(Rejected::NotFound { what: "cluster", id: cluster.to_string() })?;
        if !held.members.contains_key(&member) {
            return Err(Rejected::NotFound { what: "member", id: member.to_string() });
        }
        if held.spec.members == 1 {
            return Err(Rejected::Conflict { why: single(held) });
        }
        let node = place_move(&record, &self.reachable(), held, member, to)
            .map_err(|error| Rejected::Conflict { why: error.to_string() })?;
        let operation = OperationId::from_uuid(Uuid::now_v7());
        for added in new_members(held, vec![node]) {
            self.change(cluster, None, ClusterChange::MoveMember { operation, member, added }).await?;
        }
        Ok(Accepted { operation, cluster })
    }

    pub(crate) async fn take_back_move(&self, cluster: ClusterId) -> Result<Accepted, Rejected> {
        let moving = self.cluster(cluster)?.moving;
        let operation = moving.map(|moving| moving.operation);
        let operation = operation.ok_or_else(|| Rejected::Conflict { why: "no member is being moved".into() })?;
        let why = "it was cancelled".to_string();
        self.change(cluster, None, ClusterChange::CancelMove { operation, why }).await?;
        Ok(Accepted { operation, cluster })
    }

    /// Begins what nodes that are being drained need, as long as this node is the controller, until `stop`.
    pub async fn drain(self, mut stop: watch::Receiver<bool>) {
        loop {
            let record = self.consensus.record();
            let leaving = self.leaving(&record);
            self.draining.retain(|(node, cluster)| {
                leaving.contains_key(node) && record.clusters_on(*node).any(|(held, _)| held.id == *cluster)
            });
            for (node, why) in leaving {
                self.empty_once(&record, node, why).await;
            }
            tokio::select! {
                () = crate::server::stopped(&mut stop) => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Nodes that members have to leave. Only the controller knows any.
    fn leaving(&self, record: &Record) -> BTreeMap<NodeId, Leaving> {
        let Some(view) = self.controller.view() else { return BTreeMap::new() };
        let (now, observed) = (Tick::now(), &view.observed);
        let why = |node: &NodeRecord| {
            if node.service == NodeService::Draining {
                return Some(Leaving::Drained);
            }
            let heard = match observed.nodes.get(&node.id) {
                Some(seen) if seen.connection == Connection::Open && now.since(seen.heard) < self.policy.suspicion => {
                    return None;
                }
                // Before this controller began nobody listened.
                Some(seen) => seen.heard.max(observed.elected),
                None => observed.elected,
            };
            Some(Leaving::Lost { silent: now.since(heard) })
        };
        record.nodes.values().filter_map(|node| Some((node.id, why(node)?))).collect()
    }

    async fn empty_once(&self, record: &Record, node: NodeId, why: Leaving) {
        let mut under_way = record.clusters_on(node).filter(|(cluster, _)| cluster.moving.is_some()).count();
        for (cluster, member) in record.clusters_on(node) {
            let key = (node, cluster.id);
            if under_way >= MOVES_MAX || is_busy(cluster) || self.draining.waits_still(key, Tick::now()) {
                continue;
            }
            if let Leaving::Lost { silent } = why {
                // A leader is replaced by an election, and the only member by nobody.
                let leads = cluster.leadership.leader() == Some(member.id);
                if leads || cluster.spec.replace_after.0.is_none_or(|after| silent < after) {
                    continue;
                }
                let (cluster, member, after) = (&cluster.spec.name, &member.name, cluster.spec.replace_after);
                tracing::info!(%cluster, %member, %after, "its node is lost; replacing it on another one");
            }
            let begun = match cluster.leadership.leader() == Some(member.id) && cluster.spec.members > 1 {
                true => {
                    let asked = SwitchoverAsked { to: None, when: None, overrule: false };
                    self.begin_switchover(cluster.id, asked, None).await
                }
                false => self.begin_move(cluster.id, member.id, None).await,
            };
            match begun {
                Ok(_) => {
                    under_way += 1;
                    self.draining.forget(key);
                }
                Err(why) => self.draining.note(key, why.to_string(), Tick::now() + AGAIN),
            }
        }
    }
}

/// Something is under way there; what comes next is decided when it has ended.
fn is_busy(cluster: &ClusterRecord) -> bool {
    cluster.lifecycle != Lifecycle::Active
        || !cluster.is_confirmed()
        || cluster.switchover.is_some()
        || cluster.restart.is_some()
        || cluster.moving.is_some()
        || cluster.members.len() != usize::from(cluster.spec.members)
}

fn single(cluster: &ClusterRecord) -> String {
    let name = &cluster.spec.name;
    format!(
        "{name} has one member, which cannot be replaced while it leads; ask for a second one (`pgstead cluster update {name} --members 2`), \
         and for one again when that one leads"
    )
}

/// New members of a cluster on these nodes, each with the lowest number that is free.
pub(crate) fn new_members(cluster: &ClusterRecord, nodes: Vec<NodeId>) -> Vec<MemberRecord> {
    let departed = cluster.departed.values().map(|departed| &departed.member);
    let taken: BTreeSet<&str> = cluster.members.values().chain(departed).map(|member| member.name.as_str()).collect();
    let free = (1u32..).map(|n| format!("{}-{n}", cluster.spec.name)).filter(|name| !taken.contains(name.as_str()));
    let member = |(node, name)| MemberRecord {
        id: MemberId::from_uuid(Uuid::now_v7()),
        name,
        node,
        volume: VolumeId::from_uuid(Uuid::now_v7()),
        incarnation: 1,
        restarts: 0,
        standing: Standing::Joining,
    };
    nodes.into_iter().zip(free).map(member).collect()
}

impl Draining {
    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<(NodeId, ClusterId), Waits>> {
        // Each change of it is whole.
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn retain(&self, keep: impl Fn(&(NodeId, ClusterId)) -> bool) {
        self.held().retain(|key, _| keep(key));
    }
    fn waits_still(&self, key: (NodeId, ClusterId), now: Tick) -> bool {
        self.held().get(&key).is_some_and(|waits| now < waits.until)
    }
    fn note(&self, key: (NodeId, ClusterId), why: String, until: Tick) {
        self.held().insert(key, Waits { why, until });
    }
    fn forget(&self, key: (NodeId, ClusterId)) {
        self.held().remove(&key);
    }

    /// How far nodes are that are being drained, and what is in the way.
    pub fn findings(&self, record: &Record) -> Vec<Finding> {
        let mut findings = Vec::new();
        for node in record.nodes.values().filter(|node| node.service == NodeService::Draining) {
            let (members, held) = (record.clusters_on(node.id).count(), record.held_on(node.id).count());
            let text = match (members, held) {
                (0, 0) => format!("{} is drained: it holds nothing any more, and takes no new members", node.name),
                (0, left) => {
                    format!(
                        "{} is drained but for {left} volumes of members that have left, which go by themselves",
                        node.name
                    )
                }
                (members, _) => format!("{} is being drained: {members} members are still on it", node.name),
            };
            findings.push(Finding::info("draining", text).on_node(node.id));
        }
        for ((node, cluster), waits) in self.held().iter() {
            let held = record.nodes.get(node);
            let name = held.map_or("?", |node| node.name.as_str());
            let finding = match held.is_some_and(|node| node.service == NodeService::Draining) {
                true => {
                    let why = &waits.why;
                    let text = format!("the member on {name}, which is being drained, cannot leave it now: {why}");
                    Finding::warning("drain_blocked", text)
                }
                false => {
                    let text = format!("the member on {name}, which is lost, is not replaced: {}", waits.why);
                    Finding::error("member_not_replaced", text)
                }
            };
            findings.push(finding.on_cluster(*cluster).on_node(*node));
        }
        findings
    }
}
