//! Who serves whom, for how long, and which routes are taken.

use super::*;
use pgstead_types::{MemberId, Secret};

fn endpoint(number: u128) -> Endpoint {
    Endpoint { member: MemberId::from_u128(number), host: format!("127.0.0.{number}"), port: 5432 }
}

fn routes(revision: u64, epoch: u64, leader: Option<u128>, replicas: &[u128]) -> Routes {
    static PEMS: std::sync::LazyLock<(String, String)> = std::sync::LazyLock::new(|| {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    });
    let route = ClusterRoute {
        cluster: ClusterId::from_u128(1),
        name: "app".into(),
        epoch: Epoch(epoch),
        read_write: "127.0.0.1:6000".into(),
        read_only: "127.0.0.1:6001".into(),
        leader: leader.map(endpoint),
        replicas: replicas.iter().copied().map(endpoint).collect(),
        certificate_pem: PEMS.0.clone(),
        key_pem: Secret::new(PEMS.1.clone()),
        ca_pem: PEMS.0.clone(),
    };
    Routes { version: 1, revision, clusters: vec![route] }
}

fn table(routes: &Routes) -> RouteTable {
    let (table, errors) = RouteTable::default().try_next(routes).unwrap();
    assert!(errors.is_empty(), "{errors:?}");
    table
}

fn cluster(table: &RouteTable) -> &Cluster {
    &table.clusters[&ClusterId::from_u128(1)]
}

fn hosts(targets: &[Target]) -> Vec<&str> {
    targets.iter().map(|target| target.member.endpoint.host.as_str()).collect()
}

#[test]
fn read_only_connections_take_turns_and_fall_back_to_the_leader() {
    let table = table(&routes(1, 1, Some(1), &[2, 3]));
    assert_eq!(hosts(&cluster(&table).rank_targets(Access::ReadOnly, 0)), ["127.0.0.2", "127.0.0.3", "127.0.0.1"]);
    assert_eq!(hosts(&cluster(&table).rank_targets(Access::ReadOnly, 1)), ["127.0.0.3", "127.0.0.2", "127.0.0.1"]);
    assert_eq!(hosts(&cluster(&table).rank_targets(Access::ReadWrite, 1)), ["127.0.0.1"]);
}

#[test]
fn a_session_with_the_leader_ends_with_its_epoch() {
    let before = table(&routes(1, 1, Some(1), &[2]));
    let target = cluster(&before).rank_targets(Access::ReadWrite, 0).remove(0);
    for (after, serves) in [
        (routes(2, 1, Some(1), &[]), true),
        (routes(2, 2, Some(1), &[]), false),
        (routes(2, 1, None, &[]), false),
        (routes(2, 1, Some(2), &[1]), false),
    ] {
        assert_eq!(cluster(&table(&after)).still_serves(&target), serves, "{after:?}");
    }
}

#[test]
fn a_session_with_a_replica_ends_when_it_is_none_any_more() {
    let before = table(&routes(1, 1, Some(1), &[2]));
    let target = cluster(&before).rank_targets(Access::ReadOnly, 0).remove(0);
    assert!(cluster(&table(&routes(2, 2, Some(3), &[2]))).still_serves(&target));
    assert!(!cluster(&table(&routes(2, 1, Some(1), &[3]))).still_serves(&target));
}

#[test]
fn newer_versions_and_older_revisions_are_refused() {
    let table = table(&routes(5, 1, Some(1), &[]));
    let newer = Routes { version: 2, ..routes(6, 1, None, &[]) };
    assert_eq!(table.try_next(&newer).err(), Some(Refusal::NewerVersion(2)));
    assert_eq!(table.try_next(&routes(4, 1, None, &[])).err(), Some(Refusal::Stale { found: 4, current: 5 }));
    assert!(table.try_next(&routes(5, 1, None, &[])).is_ok(), "the same revision may say more");
}

#[test]
fn a_broken_certificate_leaves_the_one_before_in_use() {
    let table = table(&routes(1, 1, Some(1), &[]));
    let mut broken = routes(2, 1, Some(1), &[]);
    broken.clusters[0].certificate_pem = "none".into();
    let (next, errors) = table.try_next(&broken).unwrap();
    assert_eq!(errors.len(), 1);
    assert!(cluster(&next).tls.is_some());
    let (first, _) = RouteTable::default().try_next(&broken).unwrap();
    assert!(cluster(&first).rank_targets(Access::ReadWrite, 0).is_empty());
}
