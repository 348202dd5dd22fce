//! The hard rules: what keeps a node from getting a member at all, and what is said when too few are left.

use super::Who;
use super::facts::Facts;
use pgstead_types::NodeId;
use pgstead_types::placement::{Against, Judgement};
use pgstead_types::record::{NodeRecord, Record};
use pgstead_types::spec::ClusterSpec;
use pgstead_types::storage::PoolState;
use std::collections::{BTreeMap, BTreeSet};

/// Why nobody can be placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    #[error(
        "{asked} members need {asked} nodes that may have one, and there are {found}{others}; add nodes, uncordon some, or ask for fewer \
         members (`pgstead placement explain --members {asked}` names every node)"
    )]
    TooFewNodes { asked: usize, found: usize, others: Others },
    #[error(
        "{asked} more members need as many nodes that may have one, and there are {found}{others}; add nodes, uncordon some, or ask for \
         fewer members (`pgstead placement explain {cluster}` names every node)"
    )]
    TooFewMore { cluster: String, asked: usize, found: usize, others: Others },
    #[error(
        "the node with the data of the fork is not reachable, or has no Postgres {major}; bring it back, or fork from another member"
    )]
    NotThere { major: u16 },
    #[error("node {node} takes no member of this cluster: {why}")]
    Unfit { node: String, why: String },
    #[error(
        "no reachable node that takes members has a Postgres installation; install one on each node and restart its daemon, or uncordon nodes"
    )]
    NoPostgres,
}

/// How many nodes each rule speaks against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others(pub BTreeMap<&'static str, usize>);

impl std::fmt::Display for Others {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts: Vec<String> =
            self.0.iter().map(|(code, count)| format!("{count} {}", code.replace('_', " "))).collect();
        match counts.is_empty() {
            true => Ok(()),
            false => write!(f, " (others: {})", counts.join(", ")),
        }
    }
}

/// For one decision.
pub(super) struct Rules<'a> {
    facts: &'a Facts,
    spec: &'a ClusterSpec,
    major: Option<u16>,
    /// Where the first member's data is already.
    data: Option<NodeId>,
    /// Nodes with members that stay, and with volumes of those that have left.
    members: BTreeSet<NodeId>,
    departed: BTreeSet<NodeId>,
}

impl<'a> Rules<'a> {
    pub(super) fn new(facts: &'a Facts, spec: &'a ClusterSpec, who: Who<'_>, major: Option<u16>) -> Self {
        let own = match who {
            Who::Again { member, .. } => Some(member),
            Who::New | Who::Fork { .. } | Who::More { .. } | Who::Instead { .. } => None,
        };
        let data = match who {
            Who::Fork { first, .. } => Some(first),
            Who::New | Who::More { .. } | Who::Instead { .. } | Who::Again { .. } => None,
        };
        let cluster = who.cluster();
        let members = cluster.into_iter().flat_map(|cluster| cluster.members.values());
        let departed = cluster.into_iter().flat_map(|cluster| cluster.departed.values());
        Self {
            facts,
            spec,
            major,
            data,
            members: members.filter(|member| Some(member.id) != own).map(|member| member.node).collect(),
            departed: departed.map(|departed| departed.member.node).collect(),
        }
    }

    /// The first that speaks against the node. The one of zones depends on who else is chosen: [`ZoneRule`].
    pub(super) fn against(&self, node: &NodeRecord) -> Option<Against> {
        let regions = &self.spec.regions;
        let lacks = self.major.filter(|major| !node.postgres_majors.contains(major));
        if !self.facts.is_reachable(node.id) {
            Some(Against::NotReachable)
        } else if !node.service.is_open() {
            Some(Against::OutOfService(node.service))
        } else if !regions.is_empty() && !regions.contains(&node.region) {
            Some(Against::OtherRegion { region: node.region.clone() })
        } else if lacks.is_some() {
            Some(Against::NoPostgres { major: lacks })
        } else if self.members.contains(&node.id) {
            Some(Against::HasMember)
        } else if self.departed.contains(&node.id) {
            Some(Against::HasVolume)
        } else {
            self.no_room(node.id)
        }
    }

    fn no_room(&self, node: NodeId) -> Option<Against> {
        let storage = self.facts.of(node).storage?;
        let class = self.spec.storage_class.as_deref();
        let Some(pool) = storage.pool_for(class) else {
            if self.data == Some(node) {
                return None;
            }
            let has: BTreeSet<&str> = storage.pools().map(|pool| pool.class.as_str()).collect();
            let has = has.into_iter().map(str::to_string).collect();
            return Some(Against::NoPoolOfClass { class: class.unwrap_or_default().to_string(), has });
        };
        match pool.state.clone() {
            PoolState::Fine => None,
            PoolState::NearlyFull { why }
            | PoolState::Full { why }
            | PoolState::Brimming { why }
            | PoolState::Unwell { why } => Some(Against::NoRoom { why }),
        }
    }
}

/// The versions of Postgres on nodes that may have a member but for that.
pub(super) fn majors(record: &Record, facts: &Facts, spec: &ClusterSpec) -> BTreeSet<u16> {
    let rules = Rules::new(facts, spec, Who::New, None);
    let here = record.nodes.values().filter(|node| rules.against(node).is_none());
    here.flat_map(|node| node.postgres_majors.iter().copied()).collect()
}

/// Members are to be in so many zones at least: a node in a zone that has one is taken only where the others that are still to be chosen
/// can make up for it. A zone more is never refused: a cluster that falls short gets there step by step.
pub(super) struct ZoneRule<'a> {
    zones_min: Option<u8>,
    zones: BTreeSet<(&'a str, &'a str)>,
    still: usize,
}

impl<'a> ZoneRule<'a> {
    /// `still` are to be chosen after this one.
    pub(super) fn new(zones_min: Option<u8>, held: &[&'a NodeRecord], still: usize) -> Self {
        let zones = held.iter().map(|node| (node.region.as_str(), node.zone.as_str())).collect();
        Self { zones_min, zones, still }
    }
    pub(super) fn against(&self, node: &NodeRecord) -> Option<Against> {
        let zones_min = self.zones_min?;
        let taken = self.zones.contains(&(node.region.as_str(), node.zone.as_str()));
        let short = self.zones.len() + self.still < usize::from(zones_min);
        (taken && short).then(|| Against::ZoneTaken { zone: node.zone.clone(), zones_min })
    }
}

/// What is said when fewer were found than are wanted.
pub(super) fn why_refused(record: &Record, judgement: &Judgement, who: Who<'_>, found: usize) -> PlacementError {
    if judgement.major.is_none() {
        return PlacementError::NoPostgres;
    }
    if found == 0
        && let Some(forced) = who.forced()
    {
        return why_unfit(record, judgement, who, forced);
    }
    let mut others: BTreeMap<&'static str, usize> = BTreeMap::new();
    for against in judgement.nodes.iter().filter_map(|node| node.against.as_ref()) {
        *others.entry(against.code()).or_default() += 1;
    }
    let (asked, others) = (judgement.wanted, Others(others));
    match who.cluster() {
        Some(cluster) => PlacementError::TooFewMore { cluster: cluster.spec.name.clone(), asked, found, others },
        None => PlacementError::TooFewNodes { asked, found, others },
    }
}

fn why_unfit(record: &Record, judgement: &Judgement, who: Who<'_>, forced: NodeId) -> PlacementError {
    let name = record.nodes.get(&forced).map_or_else(|| forced.to_string(), |node| node.name.clone());
    let against = judgement.of(forced).and_then(|node| node.against.as_ref());
    match (who, against) {
        (Who::Fork { major, .. }, None | Some(Against::NotReachable | Against::NoPostgres { .. })) => {
            PlacementError::NotThere { major }
        }
        (Who::Fork { .. }, Some(against)) => {
            PlacementError::Unfit { node: name, why: format!("{against}, and the fork begins where its data is") }
        }
        (_, Some(against)) => PlacementError::Unfit { node: name, why: against.to_string() },
        (_, None) => PlacementError::Unfit { node: name, why: "it is no node of this deployment".into() },
    }
}
