//! Members that move to other nodes: because a person says so, or because their node is being drained, or is lost. What is recorded is one move;
//! that a node is to be empty is recorded as well, and whoever is the controller begins the moves that it needs.

use crate::backend::NodeBackend;
use pgstead_api::backend::{Accepted, Rejected, SwitchoverAsked};
use pgstead_core::{Connection, Facts, Who, place};
use pgstead_types::record::{
    ClusterChange, ClusterRecord, Lifecycle, MemberRecord, NodeRecord, NodeService, Record, Standing,
};
use pgstead_types::report::SenderSeen;
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
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// Copies from one node at a time: each reads all of a cluster's data, from its leader.
const MOVES_MAX: usize = 2;

/// What keeps members from leaving nodes that are drained or lost. Only the controller knows.
#[derive(Clone, Debug, Default)]
pub struct Draining {
    waits: Arc<Mutex<BTreeMap<Key, Waits>>>,
}

/// A member that is to leave its node, or first to hand over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Key {
    node: NodeId,
    cluster: ClusterId,
    leads: bool,
}

#[derive(Clone, Debug)]
struct Waits {
    /// Why nothing could be begun.
    why: Option<String>,
    until: Tick,
    /// What was begun and came to nothing is begun again after a longer time each time.
    pause: Duration,
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
        revision: Option<u64>,
    ) -> Result<Accepted, Rejected> {
        let instead = |record: &Record, facts: &Facts, cluster: &ClusterRecord| {
            place(record, facts, &cluster.spec, Who::Instead { cluster, member, to })
        };
        self.await_nodes(|record, facts| {
            let held = record.clusters.get(&cluster);
            held.is_none_or(|held| instead(record, facts, held).refused.is_none())
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
        let placed = instead(&record, &self.facts(), held).nodes();
        let (nodes, _) = placed.map_err(|error| Rejected::Conflict { why: error.to_string() })?;
        let operation = OperationId::from_uuid(Uuid::now_v7());
        for added in new_members(held, nodes) {
            self.change(cluster, revision, ClusterChange::MoveMember { operation, member, added }).await?;
        }
        Ok(Accepted { operation, cluster })
    }

    /// `member`: only if that one is being moved.
    pub(crate) async fn take_back_move(
        &self,
        cluster: ClusterId,
        member: Option<MemberId>,
    ) -> Result<Accepted, Rejected> {
        let held = self.cluster(cluster)?;
        let name = |id: MemberId| held.members.get(&id).map_or("another member", |member| member.name.as_str());
        let Some(moving) = held.moving else {
            return Err(Rejected::Conflict { why: "no member is being moved".into() });
        };
        if member.is_some_and(|member| member != moving.member) {
            return Err(Rejected::Conflict {
                why: format!("{} is being moved, and no other one", name(moving.member)),
            });
        }
        let (operation, why) = (moving.operation, "it was cancelled".to_string());
        self.change(cluster, None, ClusterChange::CancelMove { operation, why }).await?;
        Ok(Accepted { operation, cluster })
    }

    /// Begins what nodes that are being drained or are lost need, as long as this node is the controller, until `stop`.
    pub async fn drain(self, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = crate::server::stopped(&mut stop) => return,
                () = self.empty_all() => {}
            }
            tokio::select! {
                () = crate::server::stopped(&mut stop) => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn empty_all(&self) {
        let record = self.consensus.record();
        let leaving = self.leaving(&record);
        self.draining.retain(|key| {
            leaving.contains_key(&key.node) && record.clusters_on(key.node).any(|(held, _)| held.id == key.cluster)
        });
        for node in leaving.into_keys() {
            let clusters: Vec<ClusterId> = record.clusters_on(node).map(|(cluster, _)| cluster.id).collect();
            for cluster in clusters {
                self.empty_one(node, cluster).await;
            }
        }
    }

    /// By what is so now: what came before this one may have taken a while.
    async fn empty_one(&self, node: NodeId, cluster: ClusterId) {
        let record = self.consensus.record();
        let Some(why) = self.leaving(&record).remove(&node) else { return };
        let Some((cluster, member)) = record.clusters_on(node).find(|(held, _)| held.id == cluster) else { return };
        let leads = cluster.leadership.leader() == Some(member.id);
        let key = Key { node, cluster: cluster.id, leads };
        if is_busy(cluster) || self.draining.waits_still(key, Tick::now()) {
            return;
        }
        if let Leaving::Lost { silent } = why {
            // A leader is replaced by an election, and the only member by nobody.
            let waits = leads || cluster.spec.members == 1 || self.is_fed(cluster, member);
            if waits || cluster.spec.replace_after.0.is_none_or(|after| silent < after) {
                return;
            }
        }
        let under_way = record.clusters_on(node).filter(|(cluster, _)| cluster.moving.is_some()).count();
        if under_way >= MOVES_MAX {
            return;
        }
        let revision = Some(cluster.revision);
        let begun = match leads && cluster.spec.members > 1 {
            true => self.hand_over(&record, cluster, member).await,
            false => self.begin_move(cluster.id, member.id, None, revision).await,
        };
        match begun {
            Ok(_) => {
                let (cluster, member) = (&cluster.spec.name, &member.name);
                tracing::info!(%cluster, %member, ?why, leads, "it is to leave its node");
                self.draining.begun(key, Tick::now());
            }
            Err(why) => self.draining.refused(key, why.to_string(), Tick::now()),
        }
    }

    /// To one on a node that stays.
    async fn hand_over(
        &self,
        record: &Record,
        cluster: &ClusterRecord,
        leader: &MemberRecord,
    ) -> Result<Accepted, Rejected> {
        let facts = self.facts();
        let stays = |node: &NodeId| {
            facts.is_reachable(*node) && record.nodes.get(node).is_some_and(|node| node.service.is_open())
        };
        let others = cluster.members.values().filter(|member| member.id != leader.id && stays(&member.node));
        let mut refused = None;
        for member in others {
            let asked = SwitchoverAsked { to: Some(member.id), when: None, overrule: false };
            match self.begin_switchover(cluster.id, asked, Some(cluster.revision)).await {
                Err(why) => refused = Some(why),
                begun => return begun,
            }
        }
        let none = || {
            Rejected::Conflict { why: "it leads, and no other member is on a node that is reachable and takes members; bring one back, or uncordon one".into() }
        };
        Err(refused.unwrap_or_else(none))
    }

    /// Its Postgres goes on though its daemon is not heard.
    fn is_fed(&self, cluster: &ClusterRecord, member: &MemberRecord) -> bool {
        let (Some(view), Some(leader)) = (self.controller.view(), cluster.leader()) else { return true };
        let Some(seen) = view.observed.nodes.get(&leader.node) else { return true };
        let primary = seen.report.members.iter().find(|report| report.member == leader.id);
        let Some(primary) = primary.and_then(|report| report.as_primary()) else { return true };
        let streams = |sender: &SenderSeen| sender.incarnation == Some(member.current()) && sender.streaming;
        cluster.relay_of(member.id).is_some() || primary.senders.iter().any(streams)
    }

    /// Nodes that members have to leave. Only the controller knows any.
    fn leaving(&self, record: &Record) -> BTreeMap<NodeId, Leaving> {
        let Some(view) = self.controller.view() else { return BTreeMap::new() };
        let (now, observed) = (Tick::now(), &view.observed);
        let why = |node: &NodeRecord| {
            match node.service {
                NodeService::Draining => return Some(Leaving::Drained),
                // Somebody knows of it, and waits for it.
                NodeService::Cordoned => return None,
                NodeService::Open => {}
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
    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Waits>> {
        // Each change of it is whole.
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn retain(&self, keep: impl Fn(&Key) -> bool) {
        self.held().retain(|key, _| keep(key));
    }
    fn waits_still(&self, key: Key, now: Tick) -> bool {
        self.held().get(&key).is_some_and(|waits| now < waits.until)
    }
    fn refused(&self, key: Key, why: String, now: Tick) {
        let mut held = self.held();
        let pause = held.get(&key).map_or(AGAIN, |waits| waits.pause);
        held.insert(key, Waits { why: Some(why), until: now + AGAIN, pause });
    }
    fn begun(&self, key: Key, now: Tick) {
        let mut held = self.held();
        let pause = held.get(&key).map_or(AGAIN, |waits| (waits.pause * 2).min(PAUSE_MAX));
        held.insert(key, Waits { why: None, until: now + pause, pause });
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
        for (key, waits) in self.held().iter() {
            let begun = record.clusters.get(&key.cluster).is_none_or(|cluster| cluster.moving.is_some());
            let Some(why) = waits.why.as_ref().filter(|_| !begun) else { continue };
            let held = record.nodes.get(&key.node);
            let name = held.map_or("?", |node| node.name.as_str());
            let finding = match held.is_some_and(|node| node.service == NodeService::Draining) {
                true => {
                    let text = format!("the member on {name}, which is being drained, cannot leave it now: {why}");
                    Finding::warning("drain_blocked", text)
                }
                false => {
                    let text = format!("the member on {name}, which is lost, is not replaced: {why}");
                    Finding::error("member_not_replaced", text)
                }
            };
            findings.push(finding.on_cluster(key.cluster).on_node(key.node));
        }
        findings
    }
}
