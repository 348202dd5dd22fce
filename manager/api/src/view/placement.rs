//! Why members go where they go: every node, with the hard rule that speaks against it or the terms of its score.

use super::world::{cluster_ref, member_ref};
use super::{ClusterRef, MemberRef, NodeRef};
use crate::backend::{PlacementExplained, PresentJudged};
use pgstead_types::NodeId;
use pgstead_types::placement::{Against, Judged};
use pgstead_types::record::{ClusterRecord, Record};
use pgstead_types::spec::ClusterSpec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Where members would be placed now, and why not elsewhere. Nothing is changed by asking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlacementView {
    /// Whose next member it is; `null` for the members of a cluster that is not there yet.
    pub cluster: Option<ClusterRef>,
    /// Nodes that are wanted.
    pub wanted: u64,
    /// The version of Postgres that they must have.
    pub postgres_major: Option<u16>,
    /// By the spec: only there; anywhere if empty.
    pub regions: Vec<String>,
    /// By the spec: in so many zones at least.
    pub zones_min: Option<u8>,
    /// By the spec: in pools of this class; in those of the class of each node's first one if `null`.
    pub storage_class: Option<String>,
    pub weights: WeightsView,
    /// The nodes in their order. The first one of a new cluster leads first. Fewer than are wanted where it is refused.
    pub chosen: Vec<NodeRef>,
    /// What is answered to whoever asks for it now; `null` where it is done.
    pub refused: Option<String>,
    /// The members that there are, each judged as if it had no node yet.
    pub present: Vec<PresentView>,
    /// How many nodes each hard rule speaks against.
    pub against: BTreeMap<String, u64>,
    /// All of them: those that are chosen, those that would be next, and those that a hard rule speaks against.
    pub nodes: Vec<PlacementNodeView>,
}

/// How much each term counts in the score, beside the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WeightsView {
    pub latency: u16,
    pub free: u16,
    pub health: u16,
    pub idle: u16,
}

/// A member that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PresentView {
    pub member: MemberRef,
    /// Its node. What it has of this member is not counted.
    pub at: PlacementNodeView,
    /// Where it would be placed now; `null` where no node is better than its own.
    pub better: Option<NodeRef>,
}

/// A node as it was judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlacementNodeView {
    pub node: NodeRef,
    pub region: String,
    pub zone: String,
    /// Its place among the nodes that are chosen, from 1 on.
    pub chosen: Option<u64>,
    /// The first hard rule that speaks against it.
    pub against: Option<AgainstView>,
    /// Members of the cluster in its zone, and in its region, when it was chosen or could have been last. Fewer go first.
    pub in_zone: u64,
    pub in_region: u64,
    /// The mean of the four terms by their weights. It decides among nodes whose zone and region have as few.
    pub score_permille: u16,
    /// 1000 up to 5 ms to the controller and back, 500 for 10 ms; 1000 where that is not known.
    pub latency_permille: u16,
    /// How much of its pool is free, in steps of 50; 500 where that is not known.
    pub free_permille: u16,
    /// 1000 less 500 for each error about the node, and 250 for each warning and each member that is not well.
    pub health_permille: u16,
    /// How little of it is taken: by what it has least left of, room or members.
    pub idle_permille: u16,
    /// Of its reports to the controller; `null` where it has not said.
    pub round_trip_us: Option<u64>,
    /// Members of all clusters on it, and how many of them lead.
    pub members: u64,
    pub leaders: u64,
}

/// A hard rule that speaks against a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgainstView {
    /// `not_reachable`, `out_of_service`, `other_region`, `no_postgres`, `has_member`, `has_volume`, `no_room` or `zone_taken`, looked at
    /// in this order.
    pub rule: String,
    /// For people.
    pub why: String,
}

impl PlacementView {
    pub fn new(
        record: &Record,
        cluster: Option<&ClusterRecord>,
        spec: &ClusterSpec,
        found: &PlacementExplained,
    ) -> Self {
        let judgement = &found.judgement;
        let mut against: BTreeMap<String, u64> = BTreeMap::new();
        for rule in judgement.nodes.iter().filter_map(|node| node.against.as_ref()) {
            *against.entry(rule.code().to_string()).or_default() += 1;
        }
        let weights = judgement.weights;
        Self {
            cluster: cluster.map(cluster_ref),
            wanted: count(judgement.wanted),
            postgres_major: judgement.major,
            regions: spec.regions.iter().cloned().collect(),
            zones_min: spec.zones_min,
            storage_class: spec.storage_class.clone(),
            weights: WeightsView {
                latency: weights.latency,
                free: weights.free,
                health: weights.health,
                idle: weights.idle,
            },
            chosen: judgement.chosen().map(|node| node_ref(record, node.node)).collect(),
            refused: found.refused.clone(),
            present: found.present.iter().filter_map(|one| PresentView::new(record, cluster?, one)).collect(),
            against,
            nodes: judgement.nodes.iter().map(|node| PlacementNodeView::new(record, node)).collect(),
        }
    }
}

impl PresentView {
    fn new(record: &Record, cluster: &ClusterRecord, one: &PresentJudged) -> Option<Self> {
        Some(Self {
            member: member_ref(cluster.members.get(&one.member)?),
            at: PlacementNodeView::new(record, &one.at),
            better: one.better.map(|node| node_ref(record, node)),
        })
    }
}

impl PlacementNodeView {
    fn new(record: &Record, judged: &Judged) -> Self {
        let held = record.nodes.get(&judged.node);
        let told = |against: &Against| AgainstView { rule: against.code().to_string(), why: against.to_string() };
        Self {
            node: node_ref(record, judged.node),
            region: held.map(|node| node.region.clone()).unwrap_or_default(),
            zone: held.map(|node| node.zone.clone()).unwrap_or_default(),
            chosen: judged.chosen.map(count),
            against: judged.against.as_ref().map(told),
            in_zone: count(judged.in_zone),
            in_region: count(judged.in_region),
            score_permille: judged.score,
            latency_permille: judged.terms.latency,
            free_permille: judged.terms.free,
            health_permille: judged.terms.health,
            idle_permille: judged.terms.idle,
            round_trip_us: judged.round_trip.and_then(|took| u64::try_from(took.as_micros()).ok()),
            members: count(judged.load.members),
            leaders: count(judged.load.leaders),
        }
    }
}

fn node_ref(record: &Record, id: NodeId) -> NodeRef {
    NodeRef { id, name: record.nodes.get(&id).map_or_else(|| id.to_string(), |node| node.name.clone()) }
}

fn count(all: usize) -> u64 {
    u64::try_from(all).unwrap_or(u64::MAX)
}
