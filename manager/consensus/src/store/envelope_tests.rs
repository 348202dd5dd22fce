//! The stored form of log entries, and what happens to entries of a newer version.

use super::*;
use pgstead_types::record::{
    Aside, ClusterChange, ClusterPorts, ClusterSecrets, Deployment, Forked, JoinToken, LogFetch, MemberRecord,
    NewCluster, NodeRecord, NodeService, Standing, TakesPlace,
};
use pgstead_types::spec::ClusterSpec;
use pgstead_types::{
    ClusterId, DeploymentId, Epoch, Incarnation, Lsn, MemberId, OperationId, Position, RecoveryId, Secret, SnapshotId,
    Timeline, TokenId, VolumeId, WallTime,
};
use std::path::Path;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/log_entries.json");

fn node() -> NodeRecord {
    NodeRecord {
        id: NodeId::from_u128(1),
        name: "a".into(),
        host: "10.0.0.1".into(),
        port: 7480,
        region: "eu".into(),
        zone: "eu-1".into(),
        postgres_majors: vec![15],
        pools: vec!["default".into()],
        joined_at: WallTime(1_700_000_000_000),
        service: Default::default(),
    }
}

/// One of every kind. A new kind without a line here fails `every_kind_is_in_the_golden_file`.
fn one_of_each() -> Vec<Command> {
    let at = WallTime(1_700_000_000_000);
    let deployment = Deployment {
        id: DeploymentId::from_u128(9),
        created_at: at,
        ca_cert_pem: "certificate".into(),
        ca_key_pem: Secret::new("key"),
        admin_token_sha256: "00".into(),
        port_first: 6000,
        port_last: 6999,
        lease_ms: 10_000,
    };
    let token = JoinToken { id: TokenId::from_u128(5), secret_sha256: "11".into(), expires_at: at, used_by: None };
    let cluster = NewCluster {
        id: ClusterId::from_u128(100),
        operation: OperationId::from_u128(200),
        spec: ClusterSpec::named("app"),
        postgres_major: 15,
        ports: ClusterPorts { postgres: 6000, read_write: 6001, read_only: 6002 },
        secrets: ClusterSecrets {
            ca_cert_pem: "certificate".into(),
            ca_key_pem: Secret::new("key"),
            server_cert_pem: "certificate".into(),
            server_key_pem: Secret::new("key"),
            server_hosts: BTreeSet::from(["10.0.0.1".to_string()]),
            owner_password: Secret::new("password"),
            consumer_password: None,
        },
        members: vec![MemberRecord {
            id: MemberId::from_u128(300),
            name: "app-1".into(),
            node: NodeId::from_u128(1),
            volume: VolumeId::from_u128(400),
            incarnation: 1,
            restarts: 0,
            standing: Default::default(),
        }],
    };
    let forked = Forked {
        cluster: ClusterId::from_u128(100),
        name: "app".into(),
        member: MemberId::from_u128(300),
        snapshot: SnapshotId::from_u128(500),
        taken: at,
        first: MemberId::from_u128(300),
        keeps_passwords: true,
    };
    let takes_place = TakesPlace {
        operation: OperationId::from_u128(202),
        of: ClusterId::from_u128(100),
        kept_as: "app-kept".into(),
    };
    let rollback =
        Command::RollBackCluster { at, cluster: Box::new(cluster.clone()), forked: forked.clone(), takes_place };
    let fork = Command::ForkCluster { at, cluster: Box::new(cluster.clone()), forked };
    vec![
        Command::Found { at, deployment, node: node() },
        Command::UpdateNode { at, node: node() },
        Command::AdmitNode { at, token: token.id, node: node() },
        Command::RemoveNode { at, node: NodeId::from_u128(1) },
        Command::AddJoinToken { at, token },
        Command::CreateCluster { at, cluster: Box::new(cluster) },
        Command::ChangeCluster {
            at,
            cluster: ClusterId::from_u128(100),
            revision: 7,
            change: ClusterChange::Confirm { epoch: Epoch(3) },
        },
        Command::EndOperation { at, operation: OperationId::from_u128(200), failure: Some("why".into()) },
        Command::RecoverQuorum {
            at,
            recovery: RecoveryId::from_u128(6),
            node: NodeId::from_u128(1),
            by: "ann@a".into(),
            lost: BTreeSet::from([NodeId::from_u128(2)]),
        },
        fork,
        Command::SetNodeService { at, node: NodeId::from_u128(1), service: NodeService::Draining },
        rollback,
        Command::TakePlace { at, cluster: ClusterId::from_u128(101), revision: 7, of_revision: 8 },
    ]
}

/// Changes of a cluster that came after the first version. A voter of an older one stops at them.
fn later_changes() -> Vec<Command> {
    let member = MemberId::from_u128(301);
    let added = MemberRecord {
        id: member,
        name: "app-2".into(),
        node: NodeId::from_u128(2),
        volume: VolumeId::from_u128(401),
        incarnation: 1,
        restarts: 0,
        standing: Standing::Joining,
    };
    let life = |member| Incarnation { member, number: 1 };
    let fetch = LogFetch {
        epoch: Epoch(3),
        from: life(member),
        to: life(MemberId::from_u128(300)),
        upto: Position { timeline: Timeline(2), lsn: Lsn(0x0300_0028) },
    };
    let (operation, spec) = (OperationId::from_u128(201), Box::new(ClusterSpec::named("app")));
    let logical = Box::new(ClusterSpec { logical_replication: true, ..ClusterSpec::named("app") });
    let consumer_password = Some(Secret::new("consumers"));
    let changes = [
        ClusterChange::ChangeMembers { operation, spec: spec.clone(), added: Vec::new(), consumer_password: None },
        ClusterChange::ChangeMembers { operation, spec, added: vec![added.clone()], consumer_password: None },
        ClusterChange::MarkLeaving { member, instead_of: None },
        ClusterChange::MarkLeaving { member, instead_of: Some(MemberId::from_u128(300)) },
        ClusterChange::RemoveMember { member },
        ClusterChange::ReleaseData { member, session: 5 },
        ClusterChange::FetchLog { fetch },
        ClusterChange::SetUpstreams {
            epoch: Epoch(3),
            upstreams: [(life(member), life(MemberId::from_u128(300)))].into(),
        },
        ClusterChange::UpdateSpec { operation, spec: logical, consumer_password },
        ClusterChange::MoveMember { operation, member: MemberId::from_u128(300), added },
        ClusterChange::CancelMove { operation, why: "why".into() },
        ClusterChange::SetAside { to: ClusterId::from_u128(101) },
        ClusterChange::TakeBackPlace { operation, kept_as: "app-undone".into() },
        ClusterChange::CancelPlace { operation, why: "why".into() },
    ];
    let (at, cluster) = (WallTime(1_700_000_000_000), ClusterId::from_u128(100));
    changes.map(|change| Command::ChangeCluster { at, cluster, revision: 7, change }).into()
}

/// The compiler asks for a line here when a kind is added; the line belongs in `one_of_each` as well.
fn kind(command: &Command) -> &'static str {
    match command {
        Command::Found { .. } => "found",
        Command::UpdateNode { .. } => "update_node",
        Command::AdmitNode { .. } => "admit_node",
        Command::RemoveNode { .. } => "remove_node",
        Command::AddJoinToken { .. } => "add_join_token",
        Command::CreateCluster { .. } => "create_cluster",
        Command::ChangeCluster { .. } => "change_cluster",
        Command::EndOperation { .. } => "end_operation",
        Command::RecoverQuorum { .. } => "recover_quorum",
        Command::ForkCluster { .. } => "fork_cluster",
        Command::SetNodeService { .. } => "set_node_service",
        Command::RollBackCluster { .. } => "roll_back_cluster",
        Command::TakePlace { .. } => "take_place",
    }
}

fn entries() -> Vec<Entry> {
    let membership = StoredMembership {
        voter_sets: vec![BTreeSet::from([NodeId::from_u128(1)])],
        nodes: BTreeMap::from([
            (NodeId::from_u128(1), RaftAddress { host: "10.0.0.1".into(), port: 7480 }),
            (NodeId::from_u128(2), RaftAddress { host: "10.0.0.2".into(), port: 7480 }),
        ]),
    };
    let own = [Payload::Membership(membership.into_raft().unwrap()), Payload::Blank];
    let changes = one_of_each()
        .into_iter()
        .chain(later_changes())
        .map(|command| Payload::Normal(Change::Known(Arc::new(command))));
    let at = |index| LogPosition { term: 4, index };
    own.into_iter()
        .chain(changes)
        .zip(0..)
        .map(|(payload, index)| Entry { log_id: at(index).into(), payload })
        .collect()
}

#[test]
fn every_kind_is_stored_as_it_always_was() {
    let stored: Vec<StoredEntry> = entries().iter().map(StoredEntry::from).collect();
    let text = format!("{}\n", serde_json::to_string_pretty(&stored).unwrap());
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(Path::new(GOLDEN).parent().unwrap()).unwrap();
        std::fs::write(GOLDEN, &text).unwrap();
    }
    let golden = std::fs::read_to_string(GOLDEN).unwrap();
    assert_eq!(text, golden, "the stored form has changed; nodes of the last version could not read it");
    let read: Vec<StoredEntry> = serde_json::from_str(&golden).unwrap();
    assert_eq!(read.into_iter().map(Entry::from).collect::<Vec<_>>(), entries());
}

#[test]
fn every_kind_is_in_the_golden_file() {
    let kinds: BTreeSet<_> = one_of_each().iter().map(kind).collect();
    assert_eq!(kinds.len(), one_of_each().len());
    for (entry, command) in entries().iter().skip(2).zip(one_of_each()) {
        assert_eq!(StoredEntry::from(entry).envelope.kind, kind(&command));
    }
}

#[test]
fn an_unknown_kind_is_carried_as_it_came() {
    let text = r#"{"term":2,"index":9,"version":1,"kind":"reticulate","body":{"splines":[1,2]}}"#;
    let entry = Entry::from(serde_json::from_str::<StoredEntry>(text).unwrap());
    assert!(matches!(&entry.payload, Payload::Normal(Change::Unknown(_))));
    assert_eq!(serde_json::to_string(&StoredEntry::from(&entry)).unwrap(), text);
}

#[test]
fn a_snapshot_survives_its_stored_form() {
    let mut record = Record::default();
    let first = |command: &Command| !matches!(kind(command), "fork_cluster" | "set_node_service" | "roll_back_cluster");
    for command in one_of_each().into_iter().filter(first) {
        record.apply(&command).ok(); // Some refuse, as they should; the record is filled all the same.
    }
    let Payload::Membership(membership) = entries().remove(0).payload else { panic!("the first is the membership") };
    let at = |index| LogId::from(LogPosition { term: 4, index });
    let snapshot = Snapshot {
        meta: SnapshotMeta {
            last_log_id: Some(at(9)),
            last_membership: EffectiveMembership::new(Some(at(0)), membership),
        },
        snapshot: Arc::new(record),
    };
    let text = serde_json::to_string(&StoredSnapshot::from(&snapshot)).unwrap();
    let read = serde_json::from_str::<StoredSnapshot>(&text).unwrap().into_raft().unwrap();
    assert_eq!(read.meta, snapshot.meta);
    assert_eq!(read.snapshot, snapshot.snapshot);

    let newer = text.replacen(r#""version":1"#, r#""version":5"#, 1);
    let why = serde_json::from_str::<StoredSnapshot>(&newer).unwrap().into_raft().unwrap_err();
    assert!(why.contains("version 5"), "{why}");

    // A voter that knows nothing of members that move stops at this, instead of forgetting them.
    let mut moving = Record::default();
    for command in one_of_each() {
        match command {
            Command::Found { .. } => moving.apply(&command).map(|_| ()).expect("the record is empty"),
            Command::CreateCluster { at, mut cluster } => {
                cluster.spec.members = 1;
                moving.apply(&Command::CreateCluster { at, cluster }).map(|_| ()).expect("its node is known");
            }
            _ => {}
        }
    }
    let cluster = moving.clusters.values_mut().next().expect("the record has a cluster");
    cluster.members.values_mut().next().expect("it has a member").standing = Standing::Leaving;
    let mut cordoned = moving.clone();
    cordoned.nodes.values_mut().next().expect("the record has a node").service = NodeService::Cordoned;
    let mut aside = cordoned.clone();
    let to = ClusterId::from_u128(101);
    aside.clusters.values_mut().next().expect("the record has a cluster").aside = Some(Aside { to, revision: 7 });
    let aside = Snapshot { snapshot: Arc::new(aside), ..snapshot.clone() };
    let cordoned = Snapshot { snapshot: Arc::new(cordoned), ..snapshot.clone() };
    let moving = Snapshot { snapshot: Arc::new(moving), ..snapshot };
    let text = serde_json::to_string(&StoredSnapshot::from(&moving)).unwrap();
    assert!(text.contains(r#""version":2,"kind":"record""#), "{text}");
    let read = serde_json::from_str::<StoredSnapshot>(&text).unwrap().into_raft().unwrap();
    assert_eq!(read.snapshot, moving.snapshot);
    let text = serde_json::to_string(&StoredSnapshot::from(&cordoned)).unwrap();
    assert!(text.contains(r#""version":3,"kind":"record""#), "{text}");
    let read = serde_json::from_str::<StoredSnapshot>(&text).unwrap().into_raft().unwrap();
    assert_eq!(read.snapshot, cordoned.snapshot);
    let text = serde_json::to_string(&StoredSnapshot::from(&aside)).unwrap();
    assert!(text.contains(r#""version":4,"kind":"record""#), "{text}");
    let read = serde_json::from_str::<StoredSnapshot>(&text).unwrap().into_raft().unwrap();
    assert_eq!(read.snapshot, aside.snapshot);
}
