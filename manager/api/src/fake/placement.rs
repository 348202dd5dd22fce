//! Placement as the fake sees it: nodes in their order, one that is away and one that has a member.

use crate::backend::{PlacementAsked, PlacementExplained, PresentJudged};
use pgstead_types::placement::{Against, Judged, Judgement, Load, PlacementWeights, Terms};
use pgstead_types::record::Record;
use std::time::Duration;

pub(super) fn explain(record: &Record, asked: &PlacementAsked) -> PlacementExplained {
    let (wanted, cluster, weights) = match asked {
        PlacementAsked::New(spec) => (usize::from(spec.members), None, spec.placement_weights),
        PlacementAsked::More(cluster) => (1, record.clusters.get(cluster), PlacementWeights::default()),
    };
    let judged = |(place, node): (usize, &pgstead_types::NodeId)| {
        let terms = Terms { latency: 1000, free: 650, health: 1000, idle: 600 - 100 * place as u16 };
        let held = cluster.is_some_and(|cluster| cluster.members.values().any(|member| member.node == *node));
        let against = match place {
            _ if held => Some(Against::HasMember),
            2 => Some(Against::NotReachable),
            _ => None,
        };
        Judged {
            node: *node,
            chosen: Some(place + 1).filter(|place| against.is_none() && *place <= wanted),
            against,
            in_zone: usize::from(held),
            in_region: cluster.map_or(0, |cluster| cluster.members.len()),
            terms,
            score: terms.score(weights),
            round_trip: (place < 2).then_some(Duration::from_micros(700)),
            load: Load { members: 1, leaders: usize::from(place == 0) },
        }
    };
    let nodes: Vec<Judged> = record.nodes.keys().enumerate().map(judged).collect();
    let found = nodes.iter().filter(|node| node.chosen.is_some()).count();
    let refused = format!("{wanted} members need {wanted} nodes that may have one, and there are {found}");
    let members = cluster.into_iter().flat_map(|cluster| cluster.members.values());
    let present = members.zip(&nodes).map(|(member, at)| PresentJudged {
        member: member.id,
        at: Judged { against: None, chosen: None, in_zone: 0, ..at.clone() },
        better: None,
    });
    PlacementExplained {
        present: present.collect(),
        refused: (found < wanted).then_some(refused),
        judgement: Judgement { wanted, major: Some(15), weights, nodes },
    }
}
