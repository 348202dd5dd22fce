//! A node for tests: a real record changed by real commands, invented observations, and peers that are routers in the
//! same process.

use crate::backend::{
    Accepted, Backend, FailoverChecked, ForkAsked, ForkOf, JoinAnswer, JoinRequest, MemberSeen, NewJoinToken, NodeSeen,
    Observations, Peer, PlacementAsked, PlacementExplained, Rejected, RollBackAsked, SwitchoverAsked,
    SwitchoverChecked,
};
use async_trait::async_trait;
mod listener;
mod placement;

pub use listener::{Ca, acceptor, ca, serve};

use axum::Router;
use bytes::Bytes;
use http_body_util::BodyExt;
use pgstead_types::record::{
    ClusterChange, ClusterPorts, ClusterSecrets, Command, Deployment, ForcedLoss, Forked, MemberRecord, NewCluster,
    NodeRecord, NodeService, Record, Refusal, ScheduledSwitchover, SyncSet, TakesPlace,
};
use pgstead_types::report::{
    ClientAccess, DataIdentity, DataSeen, MemberReport, PostgresSeen, PrimarySeen, ReceiverSeen, SenderSeen,
    StandbySeen, Upstream,
};
use pgstead_types::slots::{SlotKind, SlotSeen, SlotsSeen};
use pgstead_types::spec::ClusterSpec;
use pgstead_types::storage::{Orphan, OrphanState, PoolSeen, PoolState, SnapshotSeen, SnapshotWhy, StorageSeen};
use pgstead_types::{
    ClusterId, DeploymentId, Epoch, Finding, Incarnation, Lsn, MemberId, NodeId, OperationId, Position, Secret,
    SnapshotId, Timeline, TokenId, VolumeId, WallTime,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tower::ServiceExt;

pub const TOKEN: &str = "the-admin-token";
pub const APP: ClusterId = ClusterId::from_u128(100);
pub const PASSWORD: &str = "pass/word";
pub const CONSUMER_PASSWORD: &str = "consumers-word";

/// Ids of the three nodes and of cluster `app`'s three members, member n on node n.
pub const fn node(n: u128) -> NodeId {
    NodeId::from_u128(n)
}
pub const fn member(n: u128) -> MemberId {
    MemberId::from_u128(10 + n)
}

pub struct Fake {
    me: NodeId,
    record: Mutex<Arc<Record>>,
    revision: watch::Sender<u64>,
    pub state: Mutex<State>,
}

#[derive(Default)]
pub struct State {
    pub controller: Option<NodeId>,
    pub observed: Option<Observations>,
    pub peers: BTreeMap<NodeId, Router>,
    /// What each forward was, as `METHOD path`.
    pub forwarded: Vec<String>,
    pub not_ready: Option<String>,
    /// What stands in the way of a change of leader.
    pub in_the_way: Vec<Finding>,
    /// What somebody else changes between the reading of the record and the next change of a spec.
    pub meanwhile: Option<ClusterChange>,
    /// Makes `metrics` panic with this text.
    pub panic: Option<String>,
}

impl Fake {
    /// Node `me` of three, with the record of `record()`; node 1 is the controller.
    pub fn new(me: u128) -> Arc<Self> {
        let fake = Self {
            me: node(me),
            record: Mutex::new(Arc::new(record())),
            revision: watch::Sender::new(0),
            state: Mutex::default(),
        };
        {
            let mut state = fake.state();
            state.controller = Some(node(1));
            state.observed = (me == 1).then(|| observations(&fake.record()));
        }
        Arc::new(fake)
    }
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the state")
    }
    pub fn apply(&self, command: &Command) -> Result<(), Refusal> {
        let mut held = self.record.lock().expect("no test panics while it holds the record");
        let mut record = (**held).clone();
        let applied = record.apply(command)?;
        *held = Arc::new(record);
        self.revision.send_replace(applied.revision);
        Ok(())
    }
    pub fn change(&self, change: ClusterChange) -> Result<(), Refusal> {
        let revision = self.record().clusters[&APP].revision;
        self.apply(&Command::ChangeCluster { at: WallTime(0), cluster: APP, revision, change })
    }
    fn operation(
        &self,
        cluster: ClusterId,
        revision: Option<u64>,
        change: impl FnOnce(OperationId) -> ClusterChange,
    ) -> Result<Accepted, Rejected> {
        let record = self.record();
        let operation = OperationId::from_u128(1000 + record.operations.len() as u128);
        let revision = revision.unwrap_or(record.clusters[&cluster].revision);
        let change = change(operation);
        self.apply(&Command::ChangeCluster { at: WallTime(0), cluster, revision, change })?;
        Ok(Accepted { operation, cluster })
    }
}

#[async_trait]
impl Backend for Fake {
    fn node(&self) -> NodeId {
        self.me
    }
    fn record(&self) -> Arc<Record> {
        self.record.lock().expect("no test panics while it holds the record").clone()
    }
    fn watch_revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
    fn controller(&self) -> Option<NodeId> {
        self.state().controller
    }
    fn authenticate(&self, bearer: &str) -> bool {
        bearer == TOKEN
    }
    async fn observed(&self) -> Option<Observations> {
        self.state().observed.clone()
    }
    async fn create_cluster(&self, spec: ClusterSpec) -> Result<Accepted, Rejected> {
        let id = ClusterId::from_u128(200 + self.record().clusters.len() as u128);
        let operation = OperationId::from_u128(1000 + self.record().operations.len() as u128);
        let cluster = Box::new(new_cluster(id, operation, spec, 300));
        self.apply(&Command::CreateCluster { at: WallTime(0), cluster })?;
        Ok(Accepted { operation, cluster: id })
    }
    async fn fork_cluster(&self, source: ClusterId, asked: ForkAsked) -> Result<Accepted, Rejected> {
        let id = ClusterId::from_u128(200 + self.record().clusters.len() as u128);
        let operation = OperationId::from_u128(1000 + self.record().operations.len() as u128);
        let held = self.record().clusters[&source].clone();
        let spec = ClusterSpec { name: asked.name, members: asked.members, ..held.spec.clone() };
        let cluster = Box::new(new_cluster(id, operation, spec, 600));
        let (member, snapshot) = match asked.of {
            ForkOf::Member(member) => (member, SnapshotId::from_u128(940)),
            ForkOf::Snapshot(_, snapshot) => (snapshot.member, snapshot.id),
        };
        let forked = Forked {
            cluster: source,
            name: held.spec.name,
            member,
            snapshot,
            taken: WallTime(1_700_000_000_000),
            first: cluster.members[0].id,
            keeps_passwords: asked.keeps_passwords,
        };
        self.apply(&Command::ForkCluster { at: WallTime(0), cluster, forked })?;
        Ok(Accepted { operation, cluster: id })
    }
    async fn roll_back(&self, cluster: ClusterId, asked: RollBackAsked) -> Result<Accepted, Rejected> {
        let held = self.record().clusters[&cluster].clone();
        let (snapshot, keep_as) = match asked {
            RollBackAsked::To { snapshot, keep_as, .. } => (snapshot, keep_as),
            RollBackAsked::Undo { .. } => {
                return Err(Rejected::Conflict {
                    why: format!("nothing is kept aside that {} has taken the place of", held.spec.name),
                });
            }
        };
        let id = ClusterId::from_u128(200 + self.record().clusters.len() as u128);
        let operation = |n| OperationId::from_u128(1000 + self.record().operations.len() as u128 + n);
        let spec = ClusterSpec { name: format!("{}-rollback", held.spec.name), ..held.spec.clone() };
        let mut new = Box::new(new_cluster(id, operation(0), spec, 600));
        new.secrets = held.secrets.clone();
        let forked = Forked {
            cluster,
            name: held.spec.name.clone(),
            member: snapshot.member,
            snapshot: snapshot.id,
            taken: snapshot.created,
            first: new.members[0].id,
            keeps_passwords: true,
        };
        let kept_as = keep_as.unwrap_or_else(|| format!("{}-kept", held.spec.name));
        let takes_place = TakesPlace { operation: operation(1), of: cluster, kept_as };
        let accepted = Accepted { operation: takes_place.operation, cluster };
        self.apply(&Command::RollBackCluster { at: WallTime(0), cluster: new, forked, takes_place })?;
        Ok(accepted)
    }
    async fn cancel_rollback(&self, cluster: ClusterId) -> Result<Accepted, Rejected> {
        let record = self.record();
        let none = || Rejected::Conflict { why: "no rollback is under way".into() };
        let (taker, operation) =
            record.taker_of(cluster).map(|(taker, place)| (taker.id, place.operation)).ok_or_else(none)?;
        let why = "it was cancelled".to_string();
        self.operation(taker, None, |_| ClusterChange::CancelPlace { operation, why })?;
        Ok(Accepted { operation, cluster })
    }
    async fn delete_cluster(&self, cluster: ClusterId, revision: Option<u64>) -> Result<Accepted, Rejected> {
        self.operation(cluster, revision, |operation| ClusterChange::RequestDelete { operation })
    }
    async fn update_cluster(
        &self,
        cluster: ClusterId,
        spec: ClusterSpec,
        revision: Option<u64>,
    ) -> Result<Accepted, Rejected> {
        let spec = Box::new(spec);
        let meanwhile = self.state().meanwhile.take();
        if let Some(change) = meanwhile {
            self.operation(cluster, None, |_| change)?;
        }
        let (here, asked) = {
            let record = self.record();
            let held = record.clusters.get(&cluster);
            held.map_or((0, 0), |held| (held.members.len(), held.spec.members))
        };
        let consumer_password = Some(Secret::new(CONSUMER_PASSWORD));
        if spec.members == asked {
            return self.operation(cluster, revision, |operation| ClusterChange::UpdateSpec {
                operation,
                spec,
                consumer_password,
            });
        }
        let added = (here as u128 + 1..=u128::from(spec.members)).map(|n| MemberRecord {
            id: MemberId::from_u128(500 + n),
            name: format!("{}-{n}", spec.name),
            node: node(n),
            volume: VolumeId::from_u128(500 + n),
            incarnation: 1,
            restarts: 0,
            standing: Default::default(),
        });
        let added = added.collect();
        self.operation(cluster, revision, |operation| ClusterChange::ChangeMembers {
            operation,
            spec,
            added,
            consumer_password,
        })
    }
    async fn restart_cluster(&self, cluster: ClusterId, revision: Option<u64>) -> Result<Accepted, Rejected> {
        self.operation(cluster, revision, |operation| ClusterChange::RequestRestart { operation })
    }
    async fn switchover(
        &self,
        cluster: ClusterId,
        asked: SwitchoverAsked,
        revision: Option<u64>,
    ) -> Result<Accepted, Rejected> {
        if let Some((not_before, not_after)) = asked.when {
            return self.operation(cluster, revision, |operation| ClusterChange::ScheduleSwitchover {
                scheduled: ScheduledSwitchover { operation, to: asked.to, not_before, not_after },
            });
        }
        let to = asked.to.unwrap_or(member(2));
        self.operation(cluster, revision, |operation| ClusterChange::RequestSwitchover { operation, to })
    }
    async fn check_switchover(&self, cluster: ClusterId, to: Option<MemberId>) -> Result<SwitchoverChecked, Rejected> {
        let from = self.record().clusters[&cluster].leadership.leader();
        let findings = self.state().in_the_way.clone();
        Ok(SwitchoverChecked { from, to: to.or(Some(member(2))), lag: Some(pgstead_types::Bytes(0)), findings })
    }
    async fn cancel_switchover(&self, cluster: ClusterId, revision: Option<u64>) -> Result<Accepted, Rejected> {
        let record = self.record();
        let held = record.clusters[&cluster].planned.scheduled.as_ref().map(|scheduled| scheduled.operation);
        let operation = held.ok_or(Rejected::Conflict { why: "no switchover is scheduled".into() })?;
        self.operation(cluster, revision, |_| ClusterChange::CancelSwitchover { operation })?;
        Ok(Accepted { operation, cluster })
    }
    async fn check_failover(&self, cluster: ClusterId, to: MemberId) -> Result<FailoverChecked, Rejected> {
        let at = |lsn| Some(Position { timeline: Timeline(2), lsn: Lsn(lsn) });
        let (end, best) = (at(0x0200_0000), at(0x01ff_f000));
        let missing: BTreeSet<MemberId> = [member(1), member(3)].into();
        let members = [(member(1), false, end), (member(2), true, best), (member(3), false, None)];
        let bytes = Some(pgstead_types::Bytes(0x1000));
        Ok(FailoverChecked {
            epoch: self.record().clusters[&cluster].epoch.next(),
            loss: ForcedLoss { missing, known_end: end, best, bytes },
            members: members.into_iter().filter(|(id, ..)| *id != to || to == member(2)).collect(),
            refused: self.state().in_the_way.clone(),
        })
    }
    async fn force_failover(
        &self,
        cluster: ClusterId,
        to: MemberId,
        by: String,
        revision: Option<u64>,
    ) -> Result<Accepted, Rejected> {
        let FailoverChecked { epoch, loss, .. } = self.check_failover(cluster, to).await?;
        let at = WallTime(0);
        self.operation(cluster, revision, |operation| ClusterChange::ForceEpoch { at, epoch, operation, to, by, loss })
    }
    async fn create_join_token(&self, ttl: Duration) -> Result<NewJoinToken, Rejected> {
        Ok(NewJoinToken { id: TokenId::from_u128(1), token: Secret::new("join-me"), expires_at: WallTime(0).plus(ttl) })
    }
    async fn join(&self, request: JoinRequest) -> Result<JoinAnswer, Rejected> {
        if request.token.expose() != "join-me" {
            return Err(Rejected::BadToken { why: "unknown".into() });
        }
        Ok(JoinAnswer {
            node: node(9),
            deployment: DeploymentId::from_u128(1),
            ca_pem: "ca".into(),
            cert_pem: "cert".into(),
            peers: vec![Peer { node: node(1), host: "n1.example".into(), port: 7480 }],
        })
    }
    async fn remove_node(&self, node: NodeId) -> Result<(), Rejected> {
        Ok(self.apply(&Command::RemoveNode { at: WallTime(0), node })?)
    }
    async fn set_node_service(&self, node: NodeId, service: NodeService) -> Result<(), Rejected> {
        Ok(self.apply(&Command::SetNodeService { at: WallTime(0), node, service })?)
    }
    async fn move_member(
        &self,
        cluster: ClusterId,
        member: MemberId,
        to: Option<NodeId>,
    ) -> Result<Accepted, Rejected> {
        let held = self.record().clusters[&cluster].clone();
        let added = MemberRecord {
            id: MemberId::from_u128(700),
            name: format!("{}-{}", held.spec.name, held.members.len() + 1),
            node: to.unwrap_or(node(held.members.len() as u128 + 1)),
            volume: VolumeId::from_u128(700),
            incarnation: 1,
            restarts: 0,
            standing: Default::default(),
        };
        self.operation(cluster, None, |operation| ClusterChange::MoveMember { operation, member, added })
    }
    async fn cancel_move(&self, cluster: ClusterId, member: Option<MemberId>) -> Result<Accepted, Rejected> {
        let moving = self.record().clusters[&cluster].moving;
        let moving = moving.filter(|moving| member.is_none_or(|member| member == moving.member));
        let operation = moving.ok_or(Rejected::Conflict { why: "no member is being moved".into() })?.operation;
        let why = "it was cancelled".to_string();
        self.operation(cluster, None, |_| ClusterChange::CancelMove { operation, why })?;
        Ok(Accepted { operation, cluster })
    }
    async fn explain_placement(&self, asked: PlacementAsked) -> Result<PlacementExplained, Rejected> {
        Ok(placement::explain(&self.record(), &asked))
    }
    async fn remove_volume(&self, node: NodeId, volume: VolumeId) -> Result<(), Rejected> {
        let mut state = self.state();
        let held = state.observed.as_mut().and_then(|observed| observed.storage.get_mut(&node));
        let orphans = &mut held.ok_or(Rejected::NotFound { what: "node", id: node.to_string() })?.orphans;
        let before = orphans.len();
        orphans.retain(|orphan| orphan.id != volume);
        let gone = orphans.len() < before;
        gone.then_some(()).ok_or(Rejected::NotFound { what: "orphaned volume", id: volume.to_string() })
    }
    async fn take_snapshot(
        &self,
        cluster: ClusterId,
        member: MemberId,
        keep: Option<Duration>,
    ) -> Result<SnapshotSeen, Rejected> {
        let held = self.record().clusters[&cluster].members[&member].clone();
        let mut state = self.state();
        let storage = state.observed.as_mut().and_then(|observed| observed.storage.get_mut(&held.node));
        let why = "the pool default of driver dir takes no snapshots".to_string();
        let snapshots = &mut storage.ok_or(Rejected::Conflict { why })?.snapshots;
        let seen = SnapshotSeen {
            id: SnapshotId::from_u128(950 + snapshots.len() as u128),
            volume: held.volume,
            cluster,
            member,
            why: SnapshotWhy::Asked,
            created: WallTime(1_700_000_000_000),
            expires: keep.map(|keep| WallTime(1_700_000_000_000).plus(keep)),
            size: pgstead_types::Bytes(20 << 30),
        };
        snapshots.push(seen.clone());
        Ok(seen)
    }
    async fn remove_snapshot(&self, node: NodeId, snapshot: SnapshotId) -> Result<(), Rejected> {
        let mut state = self.state();
        let storage = state.observed.as_mut().and_then(|observed| observed.storage.get_mut(&node));
        storage
            .ok_or(Rejected::NotFound { what: "node", id: node.to_string() })?
            .snapshots
            .retain(|held| held.id != snapshot);
        Ok(())
    }
    async fn forward(&self, to: NodeId, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, Rejected> {
        let peer = {
            let mut state = self.state();
            state.forwarded.push(format!("{} {}", request.method(), request.uri().path()));
            state.peers.get(&to).cloned()
        };
        let peer = peer.ok_or(Rejected::Unreachable { node: to, why: "connection refused".into() })?;
        let answer = peer.oneshot(request.map(axum::body::Body::from)).await.expect("routers do not fail");
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| Rejected::Unknown { why: error.to_string() })?.to_bytes();
        Ok(http::Response::from_parts(parts, body))
    }
    fn metrics(&self) -> String {
        let panic = self.state().panic.clone();
        if let Some(text) = panic {
            panic!("{text}");
        }
        "pgstead_up 1\n".to_string()
    }
    fn ready(&self) -> Result<(), String> {
        self.state().not_ready.clone().map_or(Ok(()), Err)
    }
}

/// Three nodes and cluster `app`, confirmed in epoch 1 under member 1.
pub fn record() -> Record {
    let mut record = Record::default();
    let at = WallTime(1_700_000_000_000);
    let deployment = Deployment {
        id: DeploymentId::from_u128(1),
        created_at: at,
        ca_cert_pem: "ca".into(),
        ca_key_pem: Secret::new("deployment-key"),
        admin_token_sha256: "hash".into(),
        port_first: 6000,
        port_last: 6999,
        lease_ms: 10_000,
    };
    let host = |n: u128| NodeRecord {
        id: node(n),
        name: format!("n{n}"),
        host: format!("n{n}.example"),
        port: 7480,
        region: "local".into(),
        zone: format!("z{n}"),
        postgres_majors: vec![15],
        pools: vec!["default".into()],
        joined_at: at,
        service: Default::default(),
    };
    let mut apply = |command: Command| record.apply(&command).map(|_| ()).expect("the fake's history applies");
    apply(Command::Found { at, deployment, node: host(1) });
    for n in [2, 3] {
        let token = pgstead_types::record::JoinToken {
            id: TokenId::from_u128(n),
            secret_sha256: "hash".into(),
            expires_at: at.plus(Duration::from_secs(3600)),
            used_by: None,
        };
        let id = token.id;
        apply(Command::AddJoinToken { at, token });
        apply(Command::AdmitNode { at, token: id, node: host(n) });
    }
    let create = OperationId::from_u128(1000);
    let new = new_cluster(APP, create, ClusterSpec::named("app"), 10);
    apply(Command::CreateCluster { at, cluster: Box::new(new) });
    let changes = [
        ClusterChange::NotePromotion {
            epoch: Epoch(1),
            timeline: Timeline(2),
            parent: Timeline(1),
            fork_lsn: Lsn(0x0150_0000),
            end_of_recovery: Lsn(0x0150_0100),
            system_identifier: "7411".into(),
        },
        ClusterChange::Confirm { epoch: Epoch(1) },
    ];
    for (revision, change) in (1..).zip(changes) {
        apply(Command::ChangeCluster { at, cluster: APP, revision, change });
    }
    apply(Command::EndOperation { at: at.plus(Duration::from_secs(9)), operation: create, failure: None });
    record
}

fn new_cluster(id: ClusterId, operation: OperationId, spec: ClusterSpec, first_member: u128) -> NewCluster {
    let port = if id == APP { 6000 } else { 6000 + 3 * (id.as_uuid().as_u128() as u16 - 199) };
    let members = (1..=u128::from(spec.members)).map(|n| MemberRecord {
        id: MemberId::from_u128(first_member + n),
        name: format!("{}-{n}", spec.name),
        node: node(n),
        volume: VolumeId::from_u128(first_member + n),
        incarnation: 1,
        restarts: 0,
        standing: Default::default(),
    });
    NewCluster {
        id,
        operation,
        postgres_major: 15,
        ports: ClusterPorts { postgres: port, read_write: port + 1, read_only: port + 2 },
        secrets: ClusterSecrets {
            ca_cert_pem: "cluster-ca".into(),
            ca_key_pem: Secret::new("cluster-key"),
            server_cert_pem: "cert".into(),
            server_key_pem: Secret::new("server-key"),
            server_hosts: ["n1.example", "n2.example", "n3.example"].map(String::from).into(),
            owner_password: Secret::new(PASSWORD),
            consumer_password: None,
        },
        members: members.collect(),
        spec,
    }
}

/// Everybody well: member 1 leads, members 2 and 3 stream, 3 a little behind.
pub fn observations(record: &Record) -> Observations {
    let cluster = &record.clusters[&APP];
    let flushed = Lsn(0x0200_0000);
    let first_life = |n| Incarnation { member: member(n), number: 1 };
    let config = cluster.config();
    let report = |n: u128, postgres: PostgresSeen| MemberReport {
        revision: 1,
        cluster: APP,
        member: member(n),
        volume_present: true,
        volume_size: None,
        data: DataSeen::Present(DataIdentity {
            incarnation: first_life(n),
            system_identifier: "7411".into(),
            postgres_major: 15,
        }),
        promised: Epoch(1),
        answer: None,
        postgres,
        restarts: 0,
        checkpointed: None,
        set_by: None,
        lease: None,
        refusing: None,
        working: None,
        oldest_log: None,
        fetched: None,
        slots: None,
        session: 1,
        kept: Default::default(),
        troubles: Vec::new(),
        findings: vec![],
    };
    let sender = |n: u128, behind: u64| SenderSeen {
        name: first_life(n).to_string(),
        incarnation: Some(first_life(n)),
        streaming: true,
        flushed: Some(Lsn(flushed.0 - behind)),
        replayed: Some(Lsn(flushed.0 - behind)),
    };
    let primary = PostgresSeen::Primary(PrimarySeen {
        epoch: Some(Epoch(1)),
        timeline: Timeline(2),
        flushed,
        fork_lsn: Lsn(0x0150_0000),
        parent: None,
        end_of_recovery: Lsn(0x0150_0100),
        access: ClientAccess::Open,
        read_only: false,
        sync_set: config.map(|config| SyncSet { ..config.sync_set.clone() }),
        admitted: [first_life(2), first_life(3)].into(),
        slots: [first_life(2), first_life(3)].into(),
        senders: vec![sender(2, 0), sender(3, 4096)],
    });
    let standby = |behind: u64| {
        PostgresSeen::Standby(StandbySeen {
            upstream: Some(Upstream::of(member(1), Epoch(1))),
            receiver: Some(ReceiverSeen { streaming: true, silent_ms: 20 }),
            replayed: Lsn(flushed.0 - behind),
            position: Some(Position { timeline: Timeline(2), lsn: Lsn(flushed.0 - behind) }),
            expects: None,
            relays_to: BTreeSet::new(),
            slots: BTreeSet::new(),
            unfinished: None,
            access: ClientAccess::Open,
        })
    };
    let slot = |name: String, kind: SlotKind, kept: u64| SlotSeen {
        name,
        kind,
        database: None,
        plugin: None,
        active: true,
        retained: Some(pgstead_types::Bytes(kept)),
        lost: false,
        failover: false,
        synced: false,
        temporary: false,
        rows_age: None,
        ahead: false,
    };
    let followed = SlotSeen {
        database: Some("app".into()),
        plugin: Some("pgoutput".into()),
        active: false,
        failover: true,
        ..slot("warehouse".into(), SlotKind::Logical, 3 << 20)
    };
    let of_member = |n: u128, kept: u64| slot(first_life(n).to_string(), SlotKind::Physical, kept);
    let copies = SlotsSeen {
        budget: Some(pgstead_types::Bytes(4 << 30)),
        slots: vec![SlotSeen { synced: true, ..followed.clone() }],
        total: 1,
        ..SlotsSeen::default()
    };
    let slots = SlotsSeen {
        budget: Some(pgstead_types::Bytes(4 << 30)),
        slots: vec![followed, of_member(3, 4096), of_member(2, 0)],
        total: 3,
        ..SlotsSeen::default()
    };
    let with = |report: MemberReport, slots: SlotsSeen| MemberReport { slots: Some(slots), ..report };
    let second = PoolSeen {
        name: "disks".into(),
        class: "hdd".into(),
        metadata_used: None,
        ballast: pgstead_types::Bytes(0),
        driver: "dir".into(),
        ..pool()
    };
    let storage = StorageSeen { pool: pool(), others: vec![second], orphans: Vec::new(), snapshots: Vec::new() };
    let members = [with(report(1, primary), slots), with(report(2, standby(0)), copies), report(3, standby(4096))];
    Observations {
        at: WallTime(1_700_000_100_000),
        nodes: (1..=3).map(|n| (node(n), NodeSeen { reachable: true, silent_ms: Some(120) })).collect(),
        members: members
            .into_iter()
            .map(|report| (report.member, MemberSeen { report, age_ms: 120, reachable: true }))
            .collect(),
        findings: vec![],
        storage: BTreeMap::from([(node(1), storage)]),
    }
}

fn pool() -> PoolSeen {
    let gib = |n: u64| pgstead_types::Bytes(n << 30);
    PoolSeen {
        name: "nvme".into(),
        driver: "lvm".into(),
        class: "nvme".into(),
        total: gib(900),
        used: gib(300),
        free: gib(600),
        metadata_used: Some(1240),
        ballast: gib(36),
        state: PoolState::Fine,
    }
}

/// A volume on node 1 of a cluster and a member that the record does not know.
pub fn orphan() -> Orphan {
    let id = VolumeId::from_u128(900);
    let state = OrphanState::Whole {
        deployment: DeploymentId::from_u128(1),
        cluster: ClusterId::from_u128(901),
        member: MemberId::from_u128(902),
        created: WallTime(1_700_000_000_000),
        size: Some(pgstead_types::Bytes(20 << 30)),
    };
    Orphan { id, state, path: format!("/var/lib/pgstead/volumes/{id}/data") }
}
