//! Which nodes get members: hard rules first, then spread over zones and regions, then the best score. One function decides and tells
//! why, so that what is explained is what is done. A function of the record and of what nodes have told; whole numbers only.
//!
//! `facts` is what nodes have told, `rules` are the hard ones, `score` is the arithmetic.

mod facts;
mod rules;
mod score;

pub use facts::{Facts, NodeFacts};
pub use rules::PlacementError;

use pgstead_types::placement::{Against, Judged, Judgement, Load};
use pgstead_types::record::{ClusterRecord, NodeRecord, Record};
use pgstead_types::spec::ClusterSpec;
use pgstead_types::{MemberId, NodeId};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Who is to be placed.
#[derive(Clone, Copy, Debug)]
pub enum Who<'a> {
    /// The members of a new cluster.
    New,
    /// Of a fork: the first one where its data is.
    Fork { first: NodeId, major: u16 },
    /// So many more members of one that runs.
    More { cluster: &'a ClusterRecord, count: usize },
    /// One that takes the place of a member: on that node, or on the best one.
    Instead { cluster: &'a ClusterRecord, member: MemberId, to: Option<NodeId> },
    /// A member as if it had no node yet. Only to be explained: nobody is placed by it.
    Again { cluster: &'a ClusterRecord, member: MemberId },
}

impl<'a> Who<'a> {
    fn cluster(&self) -> Option<&'a ClusterRecord> {
        match self {
            Self::New | Self::Fork { .. } => None,
            Self::More { cluster, .. } | Self::Instead { cluster, .. } | Self::Again { cluster, .. } => Some(cluster),
        }
    }
    fn count(&self, spec: &ClusterSpec) -> usize {
        match self {
            Self::New | Self::Fork { .. } => usize::from(spec.members),
            Self::More { count, .. } => *count,
            Self::Instead { .. } | Self::Again { .. } => 1,
        }
    }
    /// The one that is not counted where it is.
    fn goes(&self) -> Option<MemberId> {
        match self {
            Self::New | Self::Fork { .. } | Self::More { .. } => None,
            Self::Instead { member, .. } | Self::Again { member, .. } => Some(*member),
        }
    }
    /// The one node that the first can be on.
    fn forced(&self) -> Option<NodeId> {
        match self {
            Self::Fork { first, .. } => Some(*first),
            Self::Instead { to, .. } => *to,
            Self::New | Self::More { .. } | Self::Again { .. } => None,
        }
    }
}

/// What was found, and what keeps it from being done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placed {
    pub judgement: Judgement,
    pub refused: Option<PlacementError>,
}

impl Placed {
    /// The nodes in their order, the first leader's first, and the version of Postgres.
    pub fn nodes(self) -> Result<(Vec<NodeId>, u16), PlacementError> {
        match (self.refused, self.judgement.major) {
            (Some(refused), _) => Err(refused),
            (None, None) => Err(PlacementError::NoPostgres),
            (None, Some(major)) => Ok((self.judgement.chosen().map(|node| node.node).collect(), major)),
        }
    }
}

/// The decision. `spec` is the cluster's, or what it is to become.
pub fn place(record: &Record, facts: &Facts, spec: &ClusterSpec, who: Who<'_>) -> Placed {
    let wanted = who.count(spec);
    let world = match who {
        Who::New => newest_common(record, facts, spec, wanted),
        Who::Fork { major, .. } => World::new(record, facts, spec, who, Some(major)).filled(wanted),
        Who::More { cluster, .. } | Who::Instead { cluster, .. } | Who::Again { cluster, .. } => {
            World::new(record, facts, spec, who, Some(cluster.postgres_major)).filled(wanted)
        }
    };
    let major = world.major;
    let (mut chosen, others) = world.in_order(wanted);
    if let Who::New = who {
        lead_first(&mut chosen);
    }
    for (place, judged) in (1..).zip(&mut chosen) {
        judged.chosen = Some(place);
    }
    let found = chosen.len();
    chosen.extend(others);
    let judgement = Judgement { wanted, major, weights: spec.placement_weights, nodes: chosen };
    let refused = (found < wanted).then(|| rules::why_refused(record, &judgement, who, found));
    Placed { judgement, refused }
}

/// The version of Postgres with which most members find a node, the newest of those.
fn newest_common<'a>(record: &'a Record, facts: &Facts, spec: &'a ClusterSpec, wanted: usize) -> World<'a> {
    let with = |major| World::new(record, facts, spec, Who::New, major).filled(wanted);
    let majors = rules::majors(record, facts, spec).into_iter();
    let best = majors.map(|major| with(Some(major))).max_by_key(|world| (world.chosen.len(), world.major));
    best.unwrap_or_else(|| World::new(record, facts, spec, Who::New, None))
}

/// Of those that were chosen the one that leads least is to lead, and of these the one that was chosen first.
fn lead_first(chosen: &mut [Judged]) {
    let least = chosen.iter().enumerate().min_by_key(|(place, judged)| (judged.load.leaders, *place));
    if let Some((place, _)) = least {
        chosen[..=place].rotate_right(1);
    }
}

/// Nodes while some are chosen.
struct World<'a> {
    spec: &'a ClusterSpec,
    major: Option<u16>,
    forced: Option<NodeId>,
    /// Nodes that no rule but the one of zones speaks against, or what does.
    left: Vec<(&'a NodeRecord, Judged)>,
    /// Where members are that stay, and those that were chosen.
    held: Vec<&'a NodeRecord>,
    chosen: Vec<Judged>,
}

impl<'a> World<'a> {
    fn new(record: &'a Record, facts: &Facts, spec: &'a ClusterSpec, who: Who<'a>, major: Option<u16>) -> Self {
        let goes = who.goes();
        let load = load(record, goes);
        let stays = who.cluster().into_iter().flat_map(|cluster| cluster.members.values());
        let stays = stays.filter(|member| Some(member.id) != goes);
        let rules = rules::Rules::new(facts, spec, who, major);
        let judged = |node: &'a NodeRecord| {
            let load = load.get(&node.id).copied().unwrap_or_default();
            let seen = facts.of(node.id);
            let terms = score::terms(&seen, spec.storage_class.as_deref(), load);
            let judged = Judged {
                node: node.id,
                against: rules.against(node),
                chosen: None,
                in_zone: 0,
                in_region: 0,
                terms,
                score: terms.score(spec.placement_weights),
                round_trip: seen.round_trip,
                load,
            };
            (node, judged)
        };
        Self {
            spec,
            major,
            forced: who.forced(),
            left: record.nodes.values().map(judged).collect(),
            held: stays.filter_map(|member| record.nodes.get(&member.node)).collect(),
            chosen: Vec::new(),
        }
    }

    fn filled(mut self, wanted: usize) -> Self {
        while self.chosen.len() < wanted && self.pick(wanted) {}
        self
    }

    /// Takes the best one, if there is any.
    fn pick(&mut self, wanted: usize) -> bool {
        let (held, round) = (self.held.len(), self.chosen.len());
        let zone = self.zone_rule(held, wanted - round - 1);
        let forced = self.forced.filter(|_| round == 0);
        let may = |node: &NodeRecord, judged: &Judged| {
            judged.against.is_none() && forced.is_none_or(|forced| forced == node.id) && zone.against(node).is_none()
        };
        let left = self.left.iter().enumerate().filter(|(_, (node, judged))| may(node, judged));
        let best = left.min_by_key(|(_, (node, judged))| self.rank(held, node, judged)).map(|(place, _)| place);
        let Some(place) = best else { return false };
        let (node, mut judged) = self.left.swap_remove(place);
        (judged.in_zone, judged.in_region) = self.crowd(held, node);
        self.held.push(node);
        self.chosen.push(judged);
        true
    }

    /// Those that were chosen, and the others in the order in which the last choice, or the one that failed, saw them.
    fn in_order(mut self, wanted: usize) -> (Vec<Judged>, Vec<Judged>) {
        let still = wanted.saturating_sub(self.chosen.len() + 1);
        let last = self.held.len() - usize::from(wanted > 0 && self.chosen.len() == wanted);
        let mut left = std::mem::take(&mut self.left);
        let zone = self.zone_rule(last, still);
        for (node, judged) in &mut left {
            (judged.in_zone, judged.in_region) = self.crowd(last, node);
            let lacks = || self.major.is_none().then_some(Against::NoPostgres { major: None });
            judged.against = judged.against.take().or_else(|| zone.against(node)).or_else(lacks);
        }
        left.sort_by_key(|(node, judged)| (judged.against.is_some(), self.rank(last, node, judged)));
        (self.chosen, left.into_iter().map(|(_, judged)| judged).collect())
    }

    fn zone_rule(&self, held: usize, still: usize) -> rules::ZoneRule<'a> {
        rules::ZoneRule::new(self.spec.zones_min, &self.held[..held], still)
    }

    /// Fewer of the cluster in the zone go first, then fewer in the region. Every further term is there so that equal nodes fill evenly,
    /// and the last so that two looks at one world agree.
    fn rank(&self, held: usize, node: &NodeRecord, judged: &Judged) -> impl Ord + use<> {
        let load = judged.load;
        (self.crowd(held, node), Reverse(judged.score), load.members + load.leaders, load.leaders, node.id)
    }

    /// How many of the first `held` are in the node's zone, and in its region.
    fn crowd(&self, held: usize, node: &NodeRecord) -> (usize, usize) {
        let in_region = self.held[..held].iter().filter(|other| other.region == node.region);
        let in_zone = in_region.clone().filter(|other| other.zone == node.zone);
        (in_zone.count(), in_region.count())
    }
}

/// What nodes have to do, but for the member that goes.
fn load(record: &Record, goes: Option<MemberId>) -> BTreeMap<NodeId, Load> {
    let mut all: BTreeMap<NodeId, Load> = BTreeMap::new();
    for cluster in record.clusters.values() {
        let leader = cluster.leadership.leader();
        for member in cluster.members.values().filter(|member| Some(member.id) != goes) {
            let load = all.entry(member.node).or_default();
            load.members += 1;
            load.leaders += usize::from(leader == Some(member.id));
        }
    }
    all
}

#[cfg(test)]
mod tests;
