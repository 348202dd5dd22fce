//! Scenarios, and what holds in every world.

use super::*;
use pgstead_types::placement::Against;
use pgstead_types::record::{ClusterPorts, ClusterSecrets, Command, MemberRecord, NewCluster, NodeService, Standing};
use pgstead_types::storage::{CLASS_DEFAULT, PoolSeen, PoolState, StorageSeen};
use pgstead_types::{Bytes, ClusterId, OperationId, Secret, VolumeId, WallTime};
use proptest::prelude::*;
use std::time::Duration;

/// Nodes n1, n2 and so on, all of them well and half empty.
struct Nodes {
    record: Record,
    facts: BTreeMap<NodeId, NodeFacts>,
}

fn id(n: usize) -> NodeId {
    NodeId::from_u128(n as u128)
}

/// Each in `region/zone`.
fn nodes(places: &[&str]) -> Nodes {
    let mut all = Nodes { record: Record::default(), facts: BTreeMap::new() };
    for place in places {
        all.add(place);
    }
    all
}

fn pool(free_percent: u64) -> PoolSeen {
    let state = match free_percent {
        0..20 => PoolState::NearlyFull { why: format!("{free_percent} % of it is free, and 20 % was expected") },
        _ => PoolState::Fine,
    };
    PoolSeen {
        name: "default".into(),
        driver: "dir".into(),
        class: CLASS_DEFAULT.into(),
        total: Bytes(100),
        used: Bytes(100 - free_percent),
        free: Bytes(free_percent),
        metadata_used: None,
        ballast: Bytes(0),
        state,
    }
}

fn storage(free_percent: u64) -> StorageSeen {
    StorageSeen { pool: pool(free_percent), others: Vec::new(), orphans: Vec::new(), snapshots: Vec::new() }
}

impl Nodes {
    fn add(&mut self, place: &str) -> usize {
        let n = self.record.nodes.len() + 1;
        let (region, zone) = place.split_once('/').unwrap_or(("r", place));
        let node = NodeRecord {
            id: id(n),
            name: format!("n{n}"),
            host: format!("127.0.{n}.1"),
            port: 7480,
            region: region.into(),
            zone: zone.into(),
            postgres_majors: vec![15],
            pools: vec![],
            joined_at: WallTime(0),
            service: NodeService::Open,
        };
        self.record.nodes.insert(node.id, node);
        let facts = NodeFacts { reachable: true, storage: Some(storage(50)), ..NodeFacts::default() };
        self.facts.insert(id(n), facts);
        n
    }
    fn node(&mut self, n: usize) -> &mut NodeRecord {
        self.record.nodes.get_mut(&id(n)).unwrap()
    }
    fn fact(&mut self, n: usize) -> &mut NodeFacts {
        self.facts.get_mut(&id(n)).unwrap()
    }
    /// A cluster whose members are on these nodes, the first of them leading.
    fn cluster(&mut self, spec: ClusterSpec, on: &[usize]) -> ClusterId {
        let number = 1000 * (self.record.clusters.len() as u128 + 1);
        let member = |(n, node): (u128, &usize)| MemberRecord {
            id: MemberId::from_u128(number + n),
            name: format!("{}-{}", spec.name, n + 1),
            node: id(*node),
            volume: VolumeId::from_u128(number + n),
            incarnation: 1,
            restarts: 0,
            standing: Standing::Settled,
        };
        let text = || "text".to_string();
        let port = u16::try_from(number / 100).unwrap();
        let new = NewCluster {
            id: ClusterId::from_u128(number),
            operation: OperationId::from_u128(number),
            postgres_major: 15,
            ports: ClusterPorts { postgres: port, read_write: port + 1, read_only: port + 2 },
            secrets: ClusterSecrets {
                ca_cert_pem: text(),
                ca_key_pem: Secret::new("key"),
                server_cert_pem: text(),
                server_key_pem: Secret::new("key"),
                server_hosts: Default::default(),
                owner_password: Secret::new("password"),
                consumer_password: None,
            },
            members: (0..).zip(on).map(member).collect(),
            spec,
        };
        let made = new.id;
        self.record.apply(&Command::CreateCluster { at: WallTime(0), cluster: Box::new(new) }).unwrap();
        made
    }
    fn facts(&self) -> Facts {
        Facts::new(self.facts.clone())
    }
    fn place(&self, spec: &ClusterSpec) -> Placed {
        super::place(&self.record, &self.facts(), spec, Who::New)
    }
    /// The numbers of the nodes that a new cluster gets.
    fn new_on(&self, spec: &ClusterSpec) -> Result<Vec<usize>, PlacementError> {
        numbers(self.place(spec))
    }
    fn more_on(&self, cluster: ClusterId, count: usize) -> Result<Vec<usize>, PlacementError> {
        let cluster = &self.record.clusters[&cluster];
        numbers(super::place(&self.record, &self.facts(), &cluster.spec, Who::More { cluster, count }))
    }
    fn instead(&self, cluster: ClusterId, gone: u128, to: Option<usize>) -> Result<Vec<usize>, PlacementError> {
        let cluster = &self.record.clusters[&cluster];
        let member = *cluster.members.keys().nth(gone as usize - 1).unwrap();
        let who = Who::Instead { cluster, member, to: to.map(id) };
        numbers(super::place(&self.record, &self.facts(), &cluster.spec, who))
    }
}

fn numbers(placed: Placed) -> Result<Vec<usize>, PlacementError> {
    let number = |node: NodeId| (1..=99).find(|n| id(*n) == node).unwrap();
    placed.nodes().map(|(nodes, _)| nodes.into_iter().map(number).collect())
}

fn spec(members: u8) -> ClusterSpec {
    ClusterSpec { members, ..ClusterSpec::named("new") }
}

fn named(name: &str, members: usize) -> ClusterSpec {
    ClusterSpec { members: members as u8, ..ClusterSpec::named(name) }
}

fn sorted(mut numbers: Vec<usize>) -> Vec<usize> {
    numbers.sort_unstable();
    numbers
}

fn others(counts: &[(&'static str, usize)]) -> rules::Others {
    rules::Others(counts.iter().copied().collect())
}

#[test]
fn members_spread_over_zones_and_then_over_regions() {
    let all = nodes(&["a", "a", "b", "c"]);
    assert_eq!(sorted(all.new_on(&spec(3)).unwrap()), [1, 3, 4]);
    let two = nodes(&["eu/a", "eu/b", "eu/c", "us/a"]);
    assert_eq!(sorted(two.new_on(&spec(2)).unwrap()), [1, 4], "a zone of the same name is another in another region");
}

#[test]
fn more_members_go_where_the_cluster_is_not() {
    let mut all = nodes(&["a", "a", "b", "c"]);
    let app = all.cluster(named("app", 2), &[1, 3]);
    assert_eq!(all.more_on(app, 1), Ok(vec![4]));
    assert_eq!(all.more_on(app, 2), Ok(vec![4, 2]));
    let counts = others(&[("has_member", 2)]);
    let refused = PlacementError::TooFewMore { cluster: "app".into(), asked: 3, found: 2, others: counts };
    assert_eq!(all.more_on(app, 3), Err(refused));
}

#[test]
fn a_fork_begins_where_its_data_is() {
    let mut all = nodes(&["a", "a", "b", "c"]);
    let fork = |all: &Nodes, members: u8, major: u16| {
        let who = Who::Fork { first: id(2), major };
        numbers(super::place(&all.record, &all.facts(), &spec(members), who))
    };
    assert_eq!(fork(&all, 3, 15), Ok(vec![2, 3, 4]));
    assert_eq!(fork(&all, 1, 15), Ok(vec![2]));
    assert_eq!(fork(&all, 1, 17), Err(PlacementError::NotThere { major: 17 }));
    all.node(2).service = NodeService::Cordoned;
    let refused = fork(&all, 1, 15).unwrap_err().to_string();
    assert!(refused.contains("n2") && refused.contains("cordoned, and the fork begins"), "{refused}");
    all.fact(2).reachable = false;
    assert_eq!(fork(&all, 1, 15), Err(PlacementError::NotThere { major: 15 }));
}

#[test]
fn every_hard_rule_is_named_and_the_first_one_counts() {
    let mut all = nodes(&["eu/a", "eu/b", "eu/c", "eu/d", "eu/e", "us/a", "eu/f", "eu/g"]);
    all.fact(1).reachable = false;
    all.node(1).service = NodeService::Cordoned;
    all.node(2).service = NodeService::Draining;
    all.node(3).postgres_majors = vec![14];
    all.fact(4).storage = Some(storage(19));
    let asked = ClusterSpec { regions: ["eu".to_string()].into(), ..named("app", 3) };
    let app = all.cluster(asked, &[5, 6, 7]);
    let cluster = &all.record.clusters[&app];
    let placed = super::place(&all.record, &all.facts(), &cluster.spec, Who::More { cluster, count: 1 });
    let said = |n: usize| placed.judgement.of(id(n)).unwrap().against.clone();
    assert_eq!(said(1), Some(Against::NotReachable));
    assert_eq!(said(2), Some(Against::OutOfService(NodeService::Draining)));
    assert_eq!(said(3), Some(Against::NoPostgres { major: Some(15) }));
    assert!(matches!(said(4), Some(Against::NoRoom { why }) if why.contains("19 %")));
    assert_eq!((said(5), said(7)), (Some(Against::HasMember), Some(Against::HasMember)));
    assert_eq!(said(6), Some(Against::OtherRegion { region: "us".into() }));
    assert_eq!((said(8), numbers(placed)), (None, Ok(vec![8])));
}

#[test]
fn members_go_where_there_are_pools_of_their_class() {
    let mut all = nodes(&["a", "b", "c", "d"]);
    let class = |class: &str, free| PoolSeen { class: class.into(), ..pool(free) };
    let with = |first, other| StorageSeen { others: vec![other], ..StorageSeen { pool: first, ..storage(0) } };
    all.fact(1).storage = Some(with(class("hdd", 90), class("nvme", 50)));
    all.fact(2).storage = Some(with(class("nvme", 60), class("hdd", 50)));
    all.fact(3).storage = Some(with(class("hdd", 90), class("nvme", 19)));
    let nvme = |members| ClusterSpec { storage_class: Some("nvme".into()), ..spec(members) };
    assert_eq!(sorted(all.new_on(&nvme(2)).unwrap()), [1, 2]);
    let counts = others(&[("no_pool_of_class", 1), ("no_room", 1)]);
    assert_eq!(all.new_on(&nvme(3)), Err(PlacementError::TooFewNodes { asked: 3, found: 2, others: counts }));
    assert!(all.new_on(&spec(4)).is_ok(), "none is asked for, and each node has a first one");
    let placed = super::place(&all.record, &all.facts(), &nvme(1), Who::New);
    let judged = |n: usize| placed.judgement.of(id(n)).unwrap();
    let said = judged(4).against.as_ref().unwrap().to_string();
    assert_eq!(said, "it has no pool of class nvme, but of default");
    assert_eq!((judged(1).terms.free, judged(2).terms.free), (500, 600), "of the pool that it would be in");
    let fork = super::place(&all.record, &all.facts(), &nvme(2), Who::Fork { first: id(4), major: 15 });
    assert_eq!(numbers(fork), Ok(vec![4, 2]), "its first member is where its data is");
}

#[test]
fn members_stay_in_the_regions_and_reach_the_zones_that_are_asked_for() {
    let all = nodes(&["eu/a", "eu/a", "eu/b", "us/a", "us/b"]);
    let eu = ClusterSpec { regions: ["eu".to_string()].into(), ..spec(3) };
    assert_eq!(sorted(all.new_on(&eu).unwrap()), [1, 2, 3]);
    let zones = ClusterSpec { zones_min: Some(3), ..eu.clone() };
    let counts = others(&[("other_region", 2), ("zone_taken", 1)]);
    assert_eq!(all.new_on(&zones), Err(PlacementError::TooFewNodes { asked: 3, found: 2, others: counts }));
    let text = all.new_on(&zones).unwrap_err().to_string();
    assert!(text.contains("(others: 2 other region, 1 zone taken)") && text.contains("--members 3"), "{text}");
    assert!(all.new_on(&ClusterSpec { zones_min: Some(3), ..spec(3) }).is_ok());
    assert!(all.new_on(&ClusterSpec { zones_min: Some(2), ..eu }).is_ok());
}

#[test]
fn a_cluster_that_falls_short_of_its_zones_gets_there_member_by_member() {
    let mut all = nodes(&["a", "a", "a", "b", "a", "c"]);
    let app = all.cluster(ClusterSpec { zones_min: Some(3), ..named("app", 3) }, &[1, 2, 3]);
    assert_eq!(all.instead(app, 1, None), Ok(vec![4]));
    let refused = all.instead(app, 1, Some(5)).unwrap_err().to_string();
    assert!(refused.contains("n5") && refused.contains("in 3 zones at least, and zone a has one"), "{refused}");
}

#[test]
fn a_member_moves_to_the_best_node_or_to_the_one_that_is_asked_for() {
    let mut all = nodes(&["a", "b", "c", "b", "c"]);
    let app = all.cluster(named("app", 3), &[1, 2, 3]);
    assert_eq!(all.instead(app, 2, None), Ok(vec![4]));
    assert_eq!(all.instead(app, 2, Some(5)), Ok(vec![5]), "a person may crowd a zone");
    for (to, why) in [(3, "has a member of it already"), (77, "no node of this deployment")] {
        let refused = all.instead(app, 2, Some(to)).unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
    }
    all.fact(4).storage = Some(storage(10));
    assert!(all.instead(app, 2, Some(4)).unwrap_err().to_string().contains("takes no new volume: 10 %"));
    assert_eq!(all.instead(app, 2, None), Ok(vec![5]));
}

#[test]
fn a_node_that_is_nearly_full_is_avoided_before_it_is_refused() {
    let mut all = nodes(&["a", "a", "a"]);
    all.fact(1).storage = Some(storage(25));
    assert_eq!(sorted(all.new_on(&spec(2)).unwrap()), [2, 3]);
    assert!(all.new_on(&spec(3)).is_ok());
    all.fact(1).storage = Some(storage(19));
    let counts = others(&[("no_room", 1)]);
    assert_eq!(all.new_on(&spec(3)), Err(PlacementError::TooFewNodes { asked: 3, found: 2, others: counts }));
}

#[test]
fn weights_change_the_choice() {
    let mut all = nodes(&["a", "a", "a", "a"]);
    all.fact(1).round_trip = Some(Duration::from_millis(40));
    all.fact(2).storage = Some(storage(30));
    all.fact(3).errors = 1;
    all.cluster(named("other", 1), &[4]);
    let among = |weights: &str| {
        let spec = ClusterSpec { placement_weights: weights.parse().unwrap(), ..spec(3) };
        (1..=4).find(|n| !all.new_on(&spec).unwrap().contains(n)).unwrap()
    };
    assert_eq!(among("latency=100,free=0,health=0,idle=0"), 1);
    assert_eq!(among("latency=0,free=100,health=0,idle=0"), 2);
    assert_eq!(among("latency=0,free=0,health=100,idle=0"), 3);
    all.facts.values_mut().for_each(|facts| facts.storage = None);
    let idle = ClusterSpec { placement_weights: "latency=0,free=0,health=0,idle=1".parse().unwrap(), ..spec(3) };
    assert_eq!(sorted(all.new_on(&idle).unwrap()), [1, 2, 3]);
}

#[test]
fn equal_nodes_fill_evenly_and_lead_in_turn() {
    let mut all = nodes(&["a", "b", "c"]);
    let mut led = Vec::new();
    for n in 0..6 {
        let on = all.new_on(&spec(3)).unwrap();
        led.push(on[0]);
        all.cluster(named(&format!("c{n}"), 3), &on);
    }
    assert_eq!(led, [1, 2, 3, 1, 2, 3]);
    let mut small = nodes(&["a", "a", "a", "a"]);
    for n in 0..8 {
        let on = small.new_on(&spec(1)).unwrap();
        small.cluster(named(&format!("c{n}"), 1), &on);
    }
    assert!(small.record.nodes.keys().all(|node| small.record.clusters_on(*node).count() == 2));
}

#[test]
fn a_little_less_room_makes_no_difference() {
    let mut all = nodes(&["a", "a"]);
    all.cluster(named("other", 1), &[2]);
    all.fact(1).storage = Some(storage(51));
    all.fact(2).storage = Some(storage(54));
    assert_eq!(all.new_on(&spec(1)), Ok(vec![1]), "the other one has a member already");
}

#[test]
fn the_version_of_postgres_is_the_one_that_most_have() {
    let mut all = nodes(&["a", "b", "c"]);
    for n in 1..=3 {
        all.node(n).postgres_majors = vec![15, 17];
    }
    assert_eq!(all.place(&spec(3)).judgement.major, Some(17));
    all.node(3).postgres_majors = vec![15];
    assert_eq!(all.place(&spec(3)).judgement.major, Some(15));
    assert_eq!(all.place(&spec(2)).judgement.major, Some(17));
    let zones = ClusterSpec { zones_min: Some(2), ..spec(2) };
    all.node(2).zone = "a".into();
    assert_eq!(all.place(&zones).judgement.major, Some(15), "the newer one is in one zone only");
    for n in 1..=3 {
        all.node(n).postgres_majors.clear();
    }
    let none = all.place(&spec(1));
    assert_eq!(none.refused, Some(PlacementError::NoPostgres));
    assert!(none.judgement.nodes.iter().all(|node| node.against == Some(Against::NoPostgres { major: None })));
}

#[test]
fn a_member_that_stands_well_is_judged_best_where_it_is() {
    let mut all = nodes(&["a", "b", "c", "c"]);
    let app = all.cluster(named("app", 3), &[1, 2, 3]);
    let cluster = &all.record.clusters[&app];
    for (member, record) in &cluster.members {
        let who = Who::Again { cluster, member: *member };
        let placed = super::place(&all.record, &all.facts(), &cluster.spec, who);
        let best = placed.judgement.chosen().next().unwrap();
        assert_eq!((best.node, best.load), (record.node, Load::default()), "{}", record.name);
    }
}

#[test]
fn of_thousands_of_nodes_each_is_told_of() {
    let places: Vec<String> = (0..3000).map(|n| format!("r{}/z{}", n % 7, n % 60)).collect();
    let mut all = nodes(&places.iter().map(String::as_str).collect::<Vec<_>>());
    for n in (1..=3000).filter(|n| n % 3 == 0) {
        all.fact(n).reachable = false;
    }
    let placed = all.place(&spec(7));
    let against = placed.judgement.nodes.iter().filter(|node| node.against.is_some()).count();
    assert_eq!((placed.judgement.nodes.len(), against, placed.judgement.chosen().count()), (3000, 1000, 7));
    let regions: std::collections::BTreeSet<&str> =
        placed.judgement.chosen().map(|node| all.record.nodes[&node.node].region.as_str()).collect();
    assert_eq!(regions.len(), 7);
}

/// Region, zone, what is the matter with it, free room in percent, and milliseconds to the controller.
type AnyNode = (u8, u8, u8, u8, u16);

/// Nodes, and what is asked: members, zones, and whether in one region only.
fn any_world() -> impl Strategy<Value = (Vec<AnyNode>, u8, Option<u8>, bool)> {
    let node = (0u8..3, 0u8..3, 0u8..12, 0u8..101, 0u16..200);
    (prop::collection::vec(node, 0..12), 1u8..6, prop::option::of(1u8..4), any::<bool>())
}

fn made(all: &[AnyNode]) -> Nodes {
    let mut made = nodes(&[]);
    for (region, zone, state, free, ms) in all {
        let n = made.add(&format!("r{region}/z{zone}"));
        match state {
            0 => made.fact(n).reachable = false,
            1 => made.node(n).service = NodeService::Cordoned,
            2 => made.node(n).postgres_majors = vec![14],
            3 => made.fact(n).storage = None,
            4 => made.fact(n).warnings = 1,
            _ => {}
        }
        if *state != 3 {
            made.fact(n).storage = Some(storage(u64::from(*free)));
        }
        made.fact(n).round_trip = Some(Duration::from_millis(u64::from(*ms))).filter(|_| ms % 3 > 0);
    }
    made
}

fn asked(members: u8, zones_min: Option<u8>, one_region: bool) -> ClusterSpec {
    let regions = if one_region { ["r0".to_string()].into() } else { Default::default() };
    ClusterSpec { zones_min: zones_min.filter(|zones| *zones <= members), regions, ..spec(members) }
}

fn zones(all: &Nodes, on: &[NodeId]) -> usize {
    let place = |node: &NodeId| (all.record.nodes[node].region.clone(), all.record.nodes[node].zone.clone());
    on.iter().map(place).collect::<std::collections::BTreeSet<_>>().len()
}

proptest! {
    #[test]
    fn only_nodes_that_may_are_chosen_each_once_and_every_node_is_told_of(world in any_world()) {
        let (all, members, zones_min, one_region) = world;
        let (all, spec) = (made(&all), asked(members, zones_min, one_region));
        let placed = all.place(&spec);
        let told: std::collections::BTreeSet<NodeId> = placed.judgement.nodes.iter().map(|node| node.node).collect();
        prop_assert_eq!((told.len(), placed.judgement.nodes.len()), (all.record.nodes.len(), all.record.nodes.len()));
        let Ok((on, major)) = placed.clone().nodes() else {
            prop_assert!(placed.judgement.chosen().count() < usize::from(members));
            return Ok(());
        };
        prop_assert_eq!(on.iter().collect::<std::collections::BTreeSet<_>>().len(), usize::from(members));
        for node in &on {
            let (held, seen) = (&all.record.nodes[node], &all.facts[node]);
            prop_assert!(seen.reachable && held.service.is_open() && held.postgres_majors.contains(&major));
            prop_assert!(seen.storage.as_ref().is_none_or(|storage| storage.pool.state == PoolState::Fine));
            prop_assert!(spec.regions.is_empty() || spec.regions.contains(&held.region));
        }
        prop_assert!(zones(&all, &on) >= usize::from(spec.zones_min.unwrap_or(1)));
    }

    #[test]
    fn what_is_chosen_is_the_same_each_time_and_no_zone_is_crowded_while_another_is_free(world in any_world()) {
        let (all, members, zones_min, one_region) = world;
        let (all, spec) = (made(&all), asked(members, zones_min, one_region));
        let placed = all.place(&spec);
        prop_assert_eq!(&placed, &all.place(&spec));
        prop_assert!(placed.judgement.nodes.iter().all(|node| node.score <= 1000));
        if let Ok((on, _)) = placed.clone().nodes() {
            let free: Vec<NodeId> =
                placed.judgement.nodes.iter().filter(|node| node.against.is_none()).map(|node| node.node).collect();
            prop_assert_eq!(zones(&all, &on), zones(&all, &free).min(usize::from(members)));
        }
    }

    #[test]
    fn a_node_more_never_makes_it_worse(world in any_world(), more in (0u8..3, 0u8..3, 5u8..12, 20u8..101, 0u16..200)) {
        let (few, members, zones_min, one_region) = world;
        let spec = asked(members, zones_min, one_region);
        let many: Vec<_> = few.iter().copied().chain([more]).collect();
        let (few, many) = (made(&few), made(&many));
        let (before, after) = (few.place(&spec), many.place(&spec));
        if let Ok((on, major)) = before.clone().nodes() {
            let (better, newer) = after.clone().nodes().unwrap();
            if newer > major {
                // It is the one that makes a newer Postgres possible.
                return Ok(());
            }
            prop_assert!(zones(&many, &better) >= zones(&few, &on));
            let best = |placed: &Placed| placed.judgement.nodes.iter().filter(|node| node.against.is_none()).map(|node| node.score).max();
            prop_assert!(best(&after) >= best(&before));
        }
    }
}
