//! What the API needs of this node: the record, the controller's view, and every change as one proposal.

use crate::controller::ControllerHandle;
use crate::forking::Becomes;
use crate::founding::{ca_sha256, token_parts, token_text};
use crate::instances::Instances;
use crate::membership;
use crate::moving::Draining;
use crate::peers::{Lane, PeerAddress, PeerError, Peers, authority};
use crate::pki::{self, Pair};
use crate::rollback::Places;
use crate::storage::{Pools, RemoveError, SnapshotRequest};
use async_trait::async_trait;
use bytes::Bytes;
use pgstead_api::backend::{
    Accepted, Backend, FailoverChecked, ForkAsked, JoinAnswer, JoinRequest, MemberSeen, NewJoinToken, NodeSeen,
    Observations, Peer, PlacementAsked, PlacementExplained, Rejected, RollBackAsked, SwitchoverAsked,
    SwitchoverChecked,
};
use pgstead_consensus::{Consensus, ProposeError, TokioRuntime};
use pgstead_core::{Connection, Policy, Who, place};
use pgstead_types::record::{
    ClusterChange, ClusterPorts, ClusterRecord, ClusterSecrets, Command, JoinToken, MemberRecord, NewCluster,
    NodeRecord, NodeService, Record, Refusal, Standing,
};
use pgstead_types::spec::{ClusterSpec, check_name};
use pgstead_types::storage::SnapshotSeen;
use pgstead_types::{ClusterId, Finding, MemberId, NodeId, OperationId, SnapshotId, Tick, TokenId, VolumeId, WallTime};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use uuid::Uuid;

const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
const FORWARD_TIMEOUT: Duration = Duration::from_secs(65);
pub(crate) const NODES_AGAIN: Duration = Duration::from_millis(100);
/// A token that lives longer is a password.
const TOKEN_TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Clone)]
pub struct NodeBackend {
    pub consensus: Consensus<TokioRuntime>,
    pub controller: ControllerHandle,
    pub peers: Peers,
    pub revision: watch::Receiver<u64>,
    /// Times by which nodes count as reachable, as the controller judges.
    pub policy: Policy,
    /// The Postgres of this node's own members.
    pub instances: Instances,
    pub storage: Pools,
    pub draining: Draining,
    pub places: Places,
}

impl NodeBackend {
    pub(crate) async fn propose(&self, command: Command) -> Result<u64, Rejected> {
        match self.consensus.propose(command, PROPOSE_TIMEOUT).await {
            Ok(Ok(applied)) => Ok(applied.revision),
            Ok(Err(refusal)) => Err(Rejected::Refused(refusal)),
            Err(ProposeError::NotLeader { .. }) => Err(Rejected::NotController),
            Err(why @ ProposeError::NoQuorum) => Err(Rejected::NoQuorum { why: why.to_string() }),
            Err(why @ (ProposeError::OutcomeUnknown { .. } | ProposeError::LeadershipLost)) => {
                Err(Rejected::Unknown { why: why.to_string() })
            }
            Err(why @ ProposeError::Stopped { .. }) => Err(Rejected::Internal { why: why.to_string() }),
        }
    }

    /// Proposes a change that a person asked for. Without a revision it is tried again on the one found: nothing that the
    /// controller does in between makes a person's request mean something else.
    pub(crate) async fn change(
        &self,
        cluster: ClusterId,
        revision: Option<u64>,
        change: ClusterChange,
    ) -> Result<(), Rejected> {
        let mut tries = 0;
        loop {
            let record = self.consensus.record();
            let held =
                record.clusters.get(&cluster).ok_or(Rejected::NotFound { what: "cluster", id: cluster.to_string() })?;
            let at = WallTime::now();
            let command = Command::ChangeCluster {
                at,
                cluster,
                revision: revision.unwrap_or(held.revision),
                change: change.clone(),
            };
            match self.propose(command).await {
                Err(Rejected::Refused(Refusal::StaleRevision { .. })) if revision.is_none() && tries < 10 => tries += 1,
                other => return other.map(|_| ()),
            }
        }
    }

    pub(crate) fn cluster(&self, id: ClusterId) -> Result<ClusterRecord, Rejected> {
        let record = self.consensus.record();
        record.clusters.get(&id).cloned().ok_or(Rejected::NotFound { what: "cluster", id: id.to_string() })
    }

    /// Asks another node for something of its storage; `None`: it has no such thing.
    async fn ask_node(&self, node: NodeId, path: &str, body: Vec<u8>) -> Result<Option<Bytes>, Rejected> {
        let record = self.consensus.record();
        let at = record.nodes.get(&node).ok_or(Rejected::NotFound { what: "node", id: node.to_string() })?;
        let to = PeerAddress { node, host: at.host.clone(), port: at.port };
        let answer = self.peers.post_json(&to, Lane::Api, path, body, FORWARD_TIMEOUT).await;
        let answer = answer.map_err(|error| match error {
            PeerError::Connect { .. } => Rejected::Unreachable { node, why: error.to_string() },
            PeerError::Timeout(_) | PeerError::Broken(_) => Rejected::Unknown { why: error.to_string() },
        })?;
        match answer.status() {
            status if status.is_success() => Ok(Some(answer.into_body())),
            http::StatusCode::NOT_FOUND => Ok(None),
            _ => Err(Rejected::Conflict { why: String::from_utf8_lossy(answer.body()).into_owned() }),
        }
    }

    /// Takes a snapshot on a node, this one or another.
    pub(crate) async fn ask_snapshot(&self, node: NodeId, asked: SnapshotRequest) -> Result<SnapshotSeen, Rejected> {
        if node == self.consensus.node() {
            let taken = self.storage.snapshot(asked).await;
            return taken.map_err(|why| Rejected::Conflict { why: crate::member::chain(&why) });
        }
        let gone = || Rejected::NotFound { what: "member", id: asked.member.to_string() };
        let body = serde_json::to_vec(&asked).map_err(internal)?;
        let answer = self.ask_node(node, "/internal/snapshots", body).await?.ok_or_else(gone)?;
        serde_json::from_slice(&answer).map_err(internal)
    }

    pub(crate) fn new_cluster(&self, spec: ClusterSpec, who: Who<'_>) -> Result<NewCluster, Rejected> {
        spec.check()?;
        let record = self.consensus.record();
        if record.cluster_named(&spec.name).is_some() {
            return Err(Rejected::Refused(Refusal::Exists { what: "cluster".into(), name: spec.name.clone() }));
        }
        let (nodes, postgres_major) = place(&record, &self.facts(), &spec, who)
            .nodes()
            .map_err(|error| Rejected::Conflict { why: error.to_string() })?;
        let ports = free_ports(&record)?;
        let member = |(index, node): (usize, NodeId)| MemberRecord {
            id: MemberId::from_uuid(Uuid::now_v7()),
            name: format!("{}-{}", spec.name, index + 1),
            node,
            volume: VolumeId::from_uuid(Uuid::now_v7()),
            incarnation: 1,
            restarts: 0,
            standing: Standing::Settled,
        };
        let members = nodes.into_iter().enumerate().map(member).collect();
        let secrets = make_secrets(&record, &spec).map_err(internal)?;
        let id = ClusterId::from_uuid(Uuid::now_v7());
        let operation = OperationId::from_uuid(Uuid::now_v7());
        Ok(NewCluster { id, operation, spec, postgres_major, ports, secrets, members })
    }
}

pub(crate) fn internal(error: impl std::fmt::Display) -> Rejected {
    Rejected::Internal { why: error.to_string() }
}

/// The node that has a member of a cluster.
pub(crate) fn node_of(cluster: &ClusterRecord, member: MemberId) -> Result<NodeId, Rejected> {
    let held = cluster.members.get(&member).ok_or(Rejected::NotFound { what: "member", id: member.to_string() })?;
    Ok(held.node)
}

/// Three neighbouring ports that no cluster has.
fn free_ports(record: &Record) -> Result<ClusterPorts, Rejected> {
    let deployment =
        record.deployment.as_ref().ok_or(Rejected::Internal { why: "no deployment is recorded".into() })?;
    let taken: BTreeSet<u16> = record
        .clusters
        .values()
        .flat_map(|cluster| [cluster.ports.postgres, cluster.ports.read_write, cluster.ports.read_only])
        .collect();
    let (first, last) = (u32::from(deployment.port_first), u32::from(deployment.port_last));
    (first..=last.saturating_sub(2))
        .step_by(3)
        .map(|port| port as u16)
        .find(|port| (*port..*port + 3).all(|port| !taken.contains(&port)))
        .map(|port| ClusterPorts { read_write: port, read_only: port + 1, postgres: port + 2 })
        .ok_or_else(|| Rejected::Conflict {
            why: format!("no three ports are left between {first} and {last}; delete a cluster to free its ports"),
        })
}

/// A new cluster's CA, its server certificate for every node, and its passwords.
fn make_secrets(record: &Record, spec: &ClusterSpec) -> Result<ClusterSecrets, pki::PkiError> {
    let name = &spec.name;
    let ca = pki::make_ca(&format!("pgstead cluster {name}"))?;
    let hosts = server_hosts(record);
    let server = pki::make_server(&ca, name, &hosts)?;
    Ok(ClusterSecrets {
        ca_cert_pem: ca.cert_pem,
        ca_key_pem: ca.key_pem,
        server_cert_pem: server.cert_pem,
        server_key_pem: server.key_pem,
        server_hosts: hosts,
        owner_password: pki::random_secret(),
        consumer_password: spec.logical_replication.then(pki::random_secret),
    })
}

/// Every node has a gateway, so the certificate names every node.
pub fn server_hosts(record: &Record) -> BTreeSet<String> {
    record.nodes.values().map(|node| node.host.clone()).collect()
}

/// The deployment's CA, from the record.
fn ca(record: &Record) -> Result<Pair, Rejected> {
    let deployment =
        record.deployment.as_ref().ok_or(Rejected::Internal { why: "no deployment is recorded".into() })?;
    Ok(Pair { cert_pem: deployment.ca_cert_pem.clone(), key_pem: deployment.ca_key_pem.clone() })
}

#[async_trait]
impl Backend for NodeBackend {
    fn node(&self) -> NodeId {
        self.consensus.node()
    }
    fn record(&self) -> Arc<Record> {
        self.consensus.record()
    }
    fn watch_revision(&self) -> watch::Receiver<u64> {
        self.revision.clone()
    }
    fn controller(&self) -> Option<NodeId> {
        self.consensus.leadership().leader
    }

    fn authenticate(&self, bearer: &str) -> bool {
        let record = self.consensus.record();
        let Some(deployment) = &record.deployment else { return false };
        let shown = pki::sha256_hex(bearer.as_bytes());
        shown.as_bytes().ct_eq(deployment.admin_token_sha256.as_bytes()).into()
    }

    async fn observed(&self) -> Option<Observations> {
        let view = self.controller.view()?;
        let now = Tick::now();
        let mut observations = Observations { at: WallTime::now(), ..Observations::default() };
        for (node, seen) in &view.observed.nodes {
            let silent = now.since(seen.heard);
            let reachable = seen.connection == Connection::Open && silent < self.policy.suspicion;
            let age_ms = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX);
            observations.nodes.insert(*node, NodeSeen { reachable, silent_ms: Some(age_ms) });
            for report in &seen.report.members {
                observations.members.insert(report.member, MemberSeen { report: report.clone(), age_ms, reachable });
            }
            observations.findings.extend(seen.report.findings.iter().cloned());
            if let Some(storage) = &seen.report.storage {
                observations.storage.insert(*node, storage.clone());
            }
        }
        observations.findings.extend(view.findings.into_values().flatten());
        let record = self.consensus.record();
        for node in membership::not_voting(&record, &self.consensus.membership().voters) {
            let name = record.nodes.get(&node).map_or("?", |node| node.name.as_str());
            let text = format!(
                "{name} should have a vote in the Raft group and has none yet: it has just joined, or does not answer; \
                 until then the record survives the loss of fewer nodes"
            );
            observations.findings.push(Finding::info("not_voting_yet", text).on_node(node));
        }
        observations.findings.extend(self.draining.findings(&record));
        observations.findings.extend(self.places.findings(&record));
        Some(observations)
    }

    async fn create_cluster(&self, spec: ClusterSpec) -> Result<Accepted, Rejected> {
        self.await_nodes(|record, facts| place(record, facts, &spec, Who::New).refused.is_none()).await;
        let new = self.new_cluster(spec, Who::New)?;
        let accepted = Accepted { operation: new.operation, cluster: new.id };
        self.propose(Command::CreateCluster { at: WallTime::now(), cluster: Box::new(new) }).await?;
        Ok(accepted)
    }

    async fn fork_cluster(&self, source: ClusterId, asked: ForkAsked) -> Result<Accepted, Rejected> {
        self.make_fork(source, asked, Becomes::Itself).await
    }

    async fn roll_back(&self, cluster: ClusterId, asked: RollBackAsked) -> Result<Accepted, Rejected> {
        self.begin_rollback(cluster, asked).await
    }

    async fn cancel_rollback(&self, cluster: ClusterId) -> Result<Accepted, Rejected> {
        self.take_back_rollback(cluster).await
    }

    async fn delete_cluster(&self, cluster: ClusterId, revision: Option<u64>) -> Result<Accepted, Rejected> {
        let operation = OperationId::from_uuid(Uuid::now_v7());
        self.change(cluster, revision, ClusterChange::RequestDelete { operation }).await?;
        Ok(Accepted { operation, cluster })
    }

    async fn update_cluster(
        &self,
        cluster: ClusterId,
        spec: ClusterSpec,
        revision: Option<u64>,
    ) -> Result<Accepted, Rejected> {
        let operation = OperationId::from_uuid(Uuid::now_v7());
        let added = self.placed_more(cluster, &spec).await?;
        let same_members = spec.members == self.cluster(cluster)?.spec.members && added.is_empty();
        let consumer_password = spec.logical_replication.then(pki::random_secret);
        let spec = Box::new(spec);
        let change = match same_members {
            true => ClusterChange::UpdateSpec { operation, spec, consumer_password },
            false => ClusterChange::ChangeMembers { operation, spec, added, consumer_password },
        };
        self.change(cluster, revision, change).await?;
        Ok(Accepted { operation, cluster })
    }

    async fn restart_cluster(&self, cluster: ClusterId, revision: Option<u64>) -> Result<Accepted, Rejected> {
        let operation = OperationId::from_uuid(Uuid::now_v7());
        self.change(cluster, revision, ClusterChange::RequestRestart { operation }).await?;
        Ok(Accepted { operation, cluster })
    }

    async fn switchover(
        &self,
        cluster: ClusterId,
        asked: SwitchoverAsked,
        revision: Option<u64>,
    ) -> Result<Accepted, Rejected> {
        self.begin_switchover(cluster, asked, revision).await
    }
    async fn check_switchover(&self, cluster: ClusterId, to: Option<MemberId>) -> Result<SwitchoverChecked, Rejected> {
        self.checked_switchover(cluster, to).await
    }
    async fn cancel_switchover(&self, cluster: ClusterId, revision: Option<u64>) -> Result<Accepted, Rejected> {
        self.take_back_switchover(cluster, revision).await
    }
    async fn check_failover(&self, cluster: ClusterId, to: MemberId) -> Result<FailoverChecked, Rejected> {
        self.checked_failover(&self.cluster(cluster)?, to)
    }
    async fn force_failover(
        &self,
        cluster: ClusterId,
        to: MemberId,
        by: String,
        revision: Option<u64>,
    ) -> Result<Accepted, Rejected> {
        self.begin_forced(cluster, to, by, revision).await
    }

    async fn create_join_token(&self, ttl: Duration) -> Result<NewJoinToken, Rejected> {
        if ttl.is_zero() || ttl > TOKEN_TTL_MAX {
            return Err(Rejected::Invalid { why: "a join token lives for more than 0 s and at most 7 days".into() });
        }
        let record = self.consensus.record();
        let ca = ca(&record)?;
        let (id, secret) = (TokenId::from_uuid(Uuid::now_v7()), pki::random_secret());
        let expires_at = WallTime::now().plus(ttl);
        let secret_sha256 = pki::sha256_hex(secret.expose().as_bytes());
        let token = JoinToken { id, secret_sha256, expires_at, used_by: None };
        self.propose(Command::AddJoinToken { at: WallTime::now(), token }).await?;
        let servers = record.nodes.values().map(|node| format!("https://{}", authority(&node.host, node.port)));
        let token = token_text(id, &secret, ca_sha256(&ca.cert_pem).map_err(internal)?, servers.take(5).collect());
        Ok(NewJoinToken { id, token, expires_at })
    }

    async fn join(&self, request: JoinRequest) -> Result<JoinAnswer, Rejected> {
        let bad_token = |why: &str| Rejected::BadToken { why: why.to_string() };
        let (id, secret) = token_parts(&request.token).ok_or_else(|| bad_token("not one"))?;
        let record = self.consensus.record();
        let held = record.join_tokens.get(&id).ok_or_else(|| bad_token("unknown"))?;
        let shown = pki::sha256_hex(secret.expose().as_bytes());
        if !bool::from(shown.as_bytes().ct_eq(held.secret_sha256.as_bytes())) {
            return Err(bad_token("unknown"));
        }
        check_join(&request)?;
        let ca = ca(&record)?;
        let node = NodeId::from_uuid(Uuid::now_v7());
        // Signed before the token is used up: a request that cannot be signed leaves everything as it was.
        let cert_pem = pki::sign_node(&ca, &request.csr_pem, node, &request.host)
            .map_err(|error| Rejected::Invalid { why: format!("the signing request cannot be signed: {error}") })?;
        let joining = NodeRecord {
            id: node,
            name: request.name,
            host: request.host,
            port: request.port,
            region: request.region,
            zone: request.zone,
            postgres_majors: request.postgres_majors,
            pools: request.pools,
            joined_at: WallTime::now(),
            service: Default::default(),
        };
        self.propose(Command::AdmitNode { at: WallTime::now(), token: id, node: joining }).await?;
        let deployment = record.deployment.as_ref().map(|deployment| deployment.id).unwrap_or_default();
        let peer = |node: &NodeRecord| Peer { node: node.id, host: node.host.clone(), port: node.port };
        let peers = record.nodes.values().map(peer).collect();
        Ok(JoinAnswer { node, deployment, ca_pem: ca.cert_pem, cert_pem, peers })
    }

    async fn remove_node(&self, node: NodeId) -> Result<(), Rejected> {
        if node == self.consensus.node() {
            return Err(Rejected::Conflict {
                why: "this node is the controller; stop its daemon first, and ask another node".into(),
            });
        }
        self.propose(Command::RemoveNode { at: WallTime::now(), node }).await.map(|_| ())
    }

    async fn set_node_service(&self, node: NodeId, service: NodeService) -> Result<(), Rejected> {
        self.propose(Command::SetNodeService { at: WallTime::now(), node, service }).await.map(|_| ())
    }

    async fn move_member(
        &self,
        cluster: ClusterId,
        member: MemberId,
        to: Option<NodeId>,
    ) -> Result<Accepted, Rejected> {
        self.begin_move(cluster, member, to, None).await
    }
    async fn cancel_move(&self, cluster: ClusterId, member: Option<MemberId>) -> Result<Accepted, Rejected> {
        self.take_back_move(cluster, member).await
    }

    async fn explain_placement(&self, asked: PlacementAsked) -> Result<PlacementExplained, Rejected> {
        self.explained(asked).await
    }

    async fn remove_volume(&self, node: NodeId, volume: VolumeId) -> Result<(), Rejected> {
        let none = || Rejected::NotFound { what: "orphaned volume", id: volume.to_string() };
        if node == self.consensus.node() {
            return match self.storage.remove(volume).await {
                Ok(()) => Ok(()),
                Err(RemoveError::NoOrphan(_)) => Err(none()),
                Err(why) => Err(Rejected::Conflict { why: crate::member::chain(&why) }),
            };
        }
        let answer = self.ask_node(node, &format!("/internal/volumes/{volume}/remove"), Vec::new()).await?;
        answer.map(drop).ok_or_else(none)
    }

    async fn take_snapshot(
        &self,
        cluster: ClusterId,
        member: MemberId,
        keep: Option<Duration>,
    ) -> Result<SnapshotSeen, Rejected> {
        let node = node_of(&self.cluster(cluster)?, member)?;
        let asked = SnapshotRequest {
            id: SnapshotId::from_uuid(Uuid::now_v7()),
            cluster,
            member,
            keep_s: keep.map(|keep| keep.as_secs().max(1)),
            fork: false,
        };
        self.ask_snapshot(node, asked).await
    }

    async fn remove_snapshot(&self, node: NodeId, snapshot: SnapshotId) -> Result<(), Rejected> {
        let none = || Rejected::NotFound { what: "snapshot", id: snapshot.to_string() };
        if node == self.consensus.node() {
            return match self.storage.remove_snapshot(snapshot).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(none()),
                Err(why) => Err(Rejected::Conflict { why: crate::member::chain(&why) }),
            };
        }
        let answer = self.ask_node(node, &format!("/internal/snapshots/{snapshot}/remove"), Vec::new()).await?;
        answer.map(drop).ok_or_else(none)
    }

    async fn forward(&self, to: NodeId, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, Rejected> {
        let record = self.consensus.record();
        let node = record.nodes.get(&to).ok_or(Rejected::NotFound { what: "node", id: to.to_string() })?;
        let address = PeerAddress { node: to, host: node.host.clone(), port: node.port };
        self.peers.call(&address, Lane::Api, request, FORWARD_TIMEOUT).await.map_err(|error| match error {
            PeerError::Connect { .. } => Rejected::Unreachable { node: to, why: error.to_string() },
            PeerError::Timeout(_) | PeerError::Broken(_) => Rejected::Unknown { why: error.to_string() },
        })
    }

    fn metrics(&self) -> String {
        let view = self.controller.view();
        let (record, raft) = (self.consensus.record(), self.consensus.leadership());
        crate::metrics::render(self.consensus.node(), &record, raft, view.as_ref(), Tick::now())
    }

    fn ready(&self) -> Result<(), String> {
        let record = self.consensus.record();
        if record.deployment.is_none() {
            return Err("this node has not received the record yet".to_string());
        }
        match self.consensus.leadership().leader {
            Some(_) => Ok(()),
            None => Err("the Raft group has no leader that this node knows of".to_string()),
        }
    }
}

fn check_join(request: &JoinRequest) -> Result<(), Rejected> {
    check_name("node name", &request.name)?;
    check_name("region", &request.region)?;
    check_name("zone", &request.zone)?;
    let bounded = request.host.len() <= 253 && request.postgres_majors.len() <= 20 && request.pools.len() <= 100;
    if request.host.is_empty() || request.port == 0 || !bounded {
        return Err(Rejected::Invalid { why: "host and port must say where the new node can be reached".into() });
    }
    Ok(())
}
