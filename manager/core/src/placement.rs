//! Which nodes get the members of a new cluster: hard rules first (one member per node, the Postgres version there), then
//! spread over regions and zones, then the least loaded.

use pgstead_types::record::{ClusterRecord, NodeRecord, Record};
use pgstead_types::{ClusterId, MemberId, NodeId};
use std::collections::BTreeSet;

/// Why a cluster cannot be placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    #[error(
        "{asked} members need {asked} nodes that are reachable, take members and have the same major version of Postgres, and there \
         are {found}; add nodes, uncordon some, or ask for fewer members"
    )]
    TooFewNodes { asked: u8, found: usize },
    #[error(
        "{asked} more members need as many nodes that are reachable, take members, have room in their pool and Postgres {major}, and hold nothing of this \
         cluster yet, and there are {found}; add nodes, uncordon some, or ask for fewer members"
    )]
    TooFewMore { asked: usize, found: usize, major: u16 },
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

/// Nodes for `members` members, the first leader's first, and the major version of Postgres that they share: the one that
/// most nodes have, the newest of those. `reachable` are the nodes that report now.
pub fn place(record: &Record, reachable: &BTreeSet<NodeId>, members: u8) -> Result<(Vec<NodeId>, u16), PlacementError> {
    let takes = |node: &&NodeRecord| reachable.contains(&node.id) && node.service.is_open();
    let here: Vec<&NodeRecord> = record.nodes.values().filter(takes).collect();
    let majors: BTreeSet<u16> = here.iter().flat_map(|node| node.postgres_majors.iter().copied()).collect();
    let having = |major: u16| here.iter().filter(move |node| node.postgres_majors.contains(&major));
    let major = majors.iter().copied().max_by_key(|major| (having(*major).count().min(usize::from(members)), *major));
    let Some(major) = major else { return Err(PlacementError::NoPostgres) };
    let free: Vec<&NodeRecord> = having(major).copied().collect();
    if free.len() < usize::from(members) {
        return Err(PlacementError::TooFewNodes { asked: members, found: free.len() });
    }
    Ok((spread(record, free, Vec::new(), usize::from(members)), major))
}

/// Nodes for the members of a fork, the one that has its data first, and the others as for any cluster.
pub fn place_fork(
    record: &Record,
    reachable: &BTreeSet<NodeId>,
    first: NodeId,
    members: u8,
    major: u16,
) -> Result<Vec<NodeId>, PlacementError> {
    let here = |node: &&NodeRecord| reachable.contains(&node.id) && node.postgres_majors.contains(&major);
    let free: Vec<&NodeRecord> = record.nodes.values().filter(here).collect();
    let Some(with_data) = free.iter().copied().find(|node| node.id == first) else {
        return Err(PlacementError::NotThere { major });
    };
    if !with_data.service.is_open() {
        let why = format!("it is {}, and the fork begins where its data is", with_data.service.as_str());
        return Err(PlacementError::Unfit { node: with_data.name.clone(), why });
    }
    let free: Vec<&NodeRecord> = free.into_iter().filter(|node| node.service.is_open()).collect();
    if free.len() < usize::from(members) {
        return Err(PlacementError::TooFewNodes { asked: members, found: free.len() });
    }
    let others = free.into_iter().filter(|node| node.id != first).collect();
    let more = usize::from(members).saturating_sub(1);
    Ok(std::iter::once(first).chain(spread(record, others, vec![with_data], more)).collect())
}

/// `count` of the `free` nodes: spread by where those are that `held` has, and then by load. The first one of a cluster will
/// lead: not where others lead already.
fn spread<'a>(
    record: &Record,
    mut free: Vec<&'a NodeRecord>,
    mut held: Vec<&'a NodeRecord>,
    count: usize,
) -> Vec<NodeId> {
    let mut chosen = Vec::new();
    for _ in 0..count {
        let crowding = |node: &&NodeRecord| {
            let same_zone = held.iter().filter(|c| c.region == node.region && c.zone == node.zone).count();
            let same_region = held.iter().filter(|c| c.region == node.region).count();
            let leads = if held.is_empty() { led_by(record, node.id) } else { 0 };
            (same_zone, same_region, leads, record.clusters_on(node.id).count(), node.id)
        };
        let Some(best) = free.iter().copied().min_by_key(crowding) else { break };
        free.retain(|node| node.id != best.id);
        held.push(best);
        chosen.push(best.id);
    }
    chosen
}

/// Nodes for `count` more members of a cluster: with its version of Postgres, and none that has a member of it or the volume of
/// one that has left; spread by where the present members are.
pub fn place_more(
    record: &Record,
    reachable: &BTreeSet<NodeId>,
    cluster: &ClusterRecord,
    count: usize,
) -> Result<Vec<NodeId>, PlacementError> {
    let free = free_for(record, reachable, cluster);
    if free.len() < count {
        let major = cluster.postgres_major;
        return Err(PlacementError::TooFewMore { asked: count, found: free.len(), major });
    }
    let held = cluster.members.values().filter_map(|member| record.nodes.get(&member.node)).collect();
    Ok(spread(record, free, held, count))
}

/// The node for the member that takes the place of another one: `asked`, or the best by where the others are.
pub fn place_move(
    record: &Record,
    reachable: &BTreeSet<NodeId>,
    cluster: &ClusterRecord,
    member: MemberId,
    asked: Option<NodeId>,
) -> Result<NodeId, PlacementError> {
    if let Some(asked) = asked {
        let Some(node) = record.nodes.get(&asked) else {
            return Err(PlacementError::Unfit {
                node: asked.to_string(),
                why: "it is no node of this deployment".into(),
            });
        };
        return match why_not(reachable, cluster, node) {
            None => Ok(node.id),
            Some(why) => Err(PlacementError::Unfit { node: node.name.clone(), why }),
        };
    }
    let free = free_for(record, reachable, cluster);
    let stay = cluster.members.values().filter(|other| other.id != member);
    let held = stay.filter_map(|other| record.nodes.get(&other.node)).collect();
    let major = cluster.postgres_major;
    let chosen = spread(record, free, held, 1).first().copied();
    chosen.ok_or(PlacementError::TooFewMore { asked: 1, found: 0, major })
}

fn free_for<'a>(record: &'a Record, reachable: &BTreeSet<NodeId>, cluster: &ClusterRecord) -> Vec<&'a NodeRecord> {
    record.nodes.values().filter(|node| why_not(reachable, cluster, node).is_none()).collect()
}

/// Why a node cannot get one more member of a cluster that runs.
fn why_not(reachable: &BTreeSet<NodeId>, cluster: &ClusterRecord, node: &NodeRecord) -> Option<String> {
    let mut departed = cluster.departed.values().map(|departed| departed.member.node);
    let major = cluster.postgres_major;
    if !reachable.contains(&node.id) {
        Some("it is not reachable".into())
    } else if !node.service.is_open() {
        Some(format!("it is {}", node.service.as_str()))
    } else if !node.postgres_majors.contains(&major) {
        Some(format!("it has no Postgres {major}"))
    } else if cluster.members.values().any(|member| member.node == node.id) {
        Some("it has a member of it already".into())
    } else if departed.any(|held| held == node.id) {
        Some("it has the volume of one that has left still".into())
    } else {
        None
    }
}

fn led_by(record: &Record, node: NodeId) -> usize {
    let leads = |id: &ClusterId| {
        record.clusters.get(id).and_then(|cluster| cluster.leader()).is_some_and(|member| member.node == node)
    };
    record.clusters.keys().filter(|id| leads(id)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_types::WallTime;
    use pgstead_types::record::NodeService;

    fn world(zones: &[&str]) -> (Record, BTreeSet<NodeId>) {
        let mut record = Record::default();
        for (n, zone) in zones.iter().enumerate() {
            let id = NodeId::from_u128(n as u128 + 1);
            let node = NodeRecord {
                id,
                name: format!("n{n}"),
                host: format!("127.0.{n}.1"),
                port: 7480,
                region: "r".into(),
                zone: (*zone).into(),
                postgres_majors: vec![15],
                pools: vec![],
                joined_at: WallTime(0),
                service: Default::default(),
            };
            record.nodes.insert(id, node);
        }
        let all = record.nodes.keys().copied().collect();
        (record, all)
    }

    #[test]
    fn members_spread_over_zones() {
        let (record, all) = world(&["a", "a", "b", "c"]);
        let (nodes, major) = place(&record, &all, 3).unwrap();
        let zones: BTreeSet<&str> = nodes.iter().map(|id| record.nodes[id].zone.as_str()).collect();
        assert_eq!((zones.len(), major), (3, 15));
    }

    #[test]
    fn a_fork_begins_where_its_data_is() {
        let (record, mut all) = world(&["a", "a", "b", "c"]);
        let first = NodeId::from_u128(2);
        let nodes = place_fork(&record, &all, first, 3, 15).unwrap();
        let zones: BTreeSet<&str> = nodes.iter().map(|id| record.nodes[id].zone.as_str()).collect();
        assert_eq!((nodes[0], zones.len()), (first, 3));
        assert_eq!(place_fork(&record, &all, first, 1, 15), Ok(vec![first]));
        assert_eq!(place_fork(&record, &all, first, 1, 17), Err(PlacementError::NotThere { major: 17 }));
        all.remove(&first);
        assert_eq!(place_fork(&record, &all, first, 1, 15), Err(PlacementError::NotThere { major: 15 }));
    }

    #[test]
    fn a_node_that_is_cordoned_or_draining_gets_nothing() {
        let (mut record, all) = world(&["a", "a", "b", "c"]);
        for (n, service) in [(3, NodeService::Cordoned), (4, NodeService::Draining)] {
            record.nodes.get_mut(&NodeId::from_u128(n)).unwrap().service = service;
        }
        assert_eq!(place(&record, &all, 3), Err(PlacementError::TooFewNodes { asked: 3, found: 2 }));
        let refused = place_fork(&record, &all, NodeId::from_u128(3), 1, 15).unwrap_err().to_string();
        assert!(refused.contains("n2") && refused.contains("cordoned"), "{refused}");
        assert!(place_fork(&record, &all, NodeId::from_u128(1), 2, 15).is_ok());
        assert!(place_fork(&record, &all, NodeId::from_u128(1), 3, 15).is_err());
    }

    #[test]
    fn more_members_than_nodes_is_refused() {
        let (record, all) = world(&["a", "b"]);
        assert_eq!(place(&record, &all, 3), Err(PlacementError::TooFewNodes { asked: 3, found: 2 }));
    }
}
