//! What was found of each node when somebody was to be placed: the first hard rule that speaks against it, or its score.

use super::PlacementWeights;
use crate::ids::NodeId;
use crate::record::NodeService;
use std::fmt;
use std::time::Duration;

/// All that was looked at for one decision, and its outcome. The nodes come in the order in which they would be taken, those that
/// cannot be after them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Judgement {
    /// Nodes that were wanted.
    pub wanted: usize,
    /// The version of Postgres that they must have; `None` where nothing has any.
    pub major: Option<u16>,
    pub weights: PlacementWeights,
    pub nodes: Vec<Judged>,
}

impl Judgement {
    /// The nodes that were chosen, in their order.
    pub fn chosen(&self) -> impl Iterator<Item = &Judged> {
        self.nodes.iter().filter(|node| node.chosen.is_some())
    }
    pub fn of(&self, node: NodeId) -> Option<&Judged> {
        self.nodes.iter().find(|judged| judged.node == node)
    }
}

/// One node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Judged {
    pub node: NodeId,
    pub against: Option<Against>,
    /// Its place among those that were chosen, from 1 on.
    pub chosen: Option<usize>,
    /// Members of the cluster in its zone and in its region, when it was chosen or came to be next. Fewer go first.
    pub in_zone: usize,
    pub in_region: usize,
    pub terms: Terms,
    /// The mean of the terms by their weights, per mille.
    pub score: u16,
    /// To the controller and back; `None` where the node has not said.
    pub round_trip: Option<Duration>,
    pub load: Load,
}

/// What a node has to do already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Load {
    /// Members of all clusters, leaders among them.
    pub members: usize,
    pub leaders: usize,
}

/// What a score is made of, each per mille: 1000 is the best that can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Terms {
    pub latency: u16,
    pub free: u16,
    pub health: u16,
    pub idle: u16,
}

impl Terms {
    /// Per mille.
    pub fn score(&self, weights: PlacementWeights) -> u16 {
        let weighed = |term: u16, weight: u16| u32::from(term) * u32::from(weight);
        let sum = weighed(self.latency, weights.latency)
            + weighed(self.free, weights.free)
            + weighed(self.health, weights.health)
            + weighed(self.idle, weights.idle);
        let mean = sum.checked_div(u32::from(weights.sum())).unwrap_or(0);
        u16::try_from(mean).unwrap_or(u16::MAX)
    }
}

/// The first hard rule that speaks against a node, in the order in which they are looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Against {
    NotReachable,
    OutOfService(NodeService),
    OtherRegion {
        region: String,
    },
    /// Not the version that is wanted; `None`: none at all.
    NoPostgres {
        major: Option<u16>,
    },
    HasMember,
    HasVolume,
    NoPoolOfClass {
        class: String,
        /// Those that it has.
        has: Vec<String>,
    },
    NoRoom {
        why: String,
    },
    ZoneTaken {
        zone: String,
        zones_min: u8,
    },
}

impl Against {
    /// A stable word for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotReachable => "not_reachable",
            Self::OutOfService(_) => "out_of_service",
            Self::OtherRegion { .. } => "other_region",
            Self::NoPostgres { .. } => "no_postgres",
            Self::HasMember => "has_member",
            Self::HasVolume => "has_volume",
            Self::NoPoolOfClass { .. } => "no_pool_of_class",
            Self::NoRoom { .. } => "no_room",
            Self::ZoneTaken { .. } => "zone_taken",
        }
    }
}

impl fmt::Display for Against {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReachable => f.write_str("it is not reachable"),
            Self::OutOfService(service) => write!(f, "it is {}", service.as_str()),
            Self::OtherRegion { region } => {
                write!(f, "it is in region {region}, and the cluster is not to be there")
            }
            Self::NoPostgres { major: Some(major) } => write!(f, "it has no Postgres {major}"),
            Self::NoPostgres { major: None } => f.write_str("it has no Postgres"),
            Self::HasMember => f.write_str("it has a member of it already"),
            Self::HasVolume => f.write_str("it has the volume of one that has left still"),
            Self::NoPoolOfClass { class, has } => {
                write!(f, "it has no pool of class {class}, but of {}", has.join(", "))
            }
            Self::NoRoom { why } => write!(f, "its pool takes no new volume: {why}"),
            Self::ZoneTaken { zone, zones_min } => {
                write!(f, "members are to be in {zones_min} zones at least, and zone {zone} has one already")
            }
        }
    }
}
