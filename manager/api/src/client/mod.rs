//! The typed client: asks the servers of a profile in turn, over TLS that is pinned to the deployment's CA.
//!
//! A server that cannot be reached, or that knows no controller, has done nothing, so the next one is asked. Once a
//! write may have been sent, it is never sent again by itself.

mod https;
mod profile;

pub use https::{BadCa, BadServer, ConnectError, Server, pinned_tls};
pub use profile::{Profile, ProfileError};

use crate::backend::{JoinAnswer, JoinRequest};
use crate::page::{LIMIT_MAX, Page};
use crate::percent::encode;
use crate::problem::{Code, Problem};
use crate::routes::clusters::{ForkCluster, SpecChange};
use crate::routes::leaders::{FailoverBody, SwitchoverBody};
use crate::routes::moves::MoveBody;
use crate::routes::nodes::ServiceBody;
use crate::routes::placement::PlacementParams;
use crate::routes::rollback::RollBackBody;
use crate::routes::snapshots::TakeSnapshot;
use crate::routes::tokens::NewToken;
use crate::view::{
    AcceptedView, ClusterSummary, ClusterView, ConnectionView, EventsView, FailoverCheckView, MemberView,
    NodeServiceView, NodeView, OperationView, PlacementView, SnapshotView, SwitchoverCheckView, TokenView, VolumeView,
};
use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use pgstead_types::spec::ClusterSpec;
use pgstead_types::{OperationId, Secret, SnapshotId, Tick, VolumeId};
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// What a node needs for an answer that it does not hold back on purpose, a forward included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// While every node says that there is no controller, and so that nothing was done: an election of Raft is over in a second,
/// on a busy host in a few.
const ELECTION_PATIENCE: Duration = Duration::from_secs(8);
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// A thousand clusters' worth of text many times over; more is not one of our answers.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Asks one deployment.
pub struct Client {
    servers: Vec<Server>,
    tls: Arc<ClientConfig>,
    token: Option<Secret>,
    /// The last good connection, with its server's place in the list.
    kept: Mutex<Option<(usize, SendRequest<Full<Bytes>>)>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Server(#[from] BadServer),
    #[error("{0}; expected the deployment's CA as `pgstead init` wrote it into the profile")]
    Ca(#[from] BadCa),
    /// Nothing was asked.
    #[error(
        "no server of the profile can be reached: {}; check that a daemon runs there, and the servers in the profile",
        .tried.iter().map(|(server, why)| format!("{server}: {why}")).collect::<Vec<_>>().join("; ")
    )]
    Unreachable { tried: Vec<(String, String)> },
    /// Asked, and it may or may not have been done.
    #[error(
        "{server} broke off ({why}); whether it was done is unknown: look at the present state before asking again"
    )]
    Lost { server: String, why: String },
    #[error("{0}")]
    Problem(Problem),
    #[error("{server} answered {status} with something unexpected ({why}); is it a pgstead node of this version?")]
    BadAnswer { server: String, status: u16, why: String },
}

impl ClientError {
    /// The problem's code, if a node answered with one.
    pub fn code(&self) -> Option<Code> {
        match self {
            ClientError::Problem(problem) => Some(problem.code),
            _ => None,
        }
    }
}

struct Ask<'a> {
    method: Method,
    path: &'a str,
    body: Option<Bytes>,
    revision: Option<u64>,
    timeout: Duration,
}

struct Answer {
    server: String,
    status: StatusCode,
    body: Bytes,
}

impl Client {
    pub fn new(profile: &Profile) -> Result<Self, ClientError> {
        Self::with(&profile.servers, &profile.ca_pem, Some(profile.token.clone()))
    }

    /// Without an admin token, for `join`.
    pub fn anonymous(servers: &[String], ca_pem: &str) -> Result<Self, ClientError> {
        Self::with(servers, ca_pem, None)
    }

    fn with(servers: &[String], ca_pem: &str, token: Option<Secret>) -> Result<Self, ClientError> {
        let servers = servers.iter().map(|server| server.parse()).collect::<Result<_, _>>()?;
        Ok(Self { servers, tls: pinned_tls(ca_pem)?, token, kept: Mutex::new(None) })
    }

    pub async fn nodes(&self) -> Result<Vec<NodeView>, ClientError> {
        self.all("/v1/nodes").await
    }
    pub async fn node(&self, node: &str) -> Result<NodeView, ClientError> {
        self.get(&format!("/v1/nodes/{}", encode(node))).await
    }
    pub async fn remove_node(&self, node: &str) -> Result<(), ClientError> {
        let path = format!("/v1/nodes/{}", encode(node));
        self.answer(Ask { method: Method::DELETE, ..Ask::get(&path) }).await.map(|_| ())
    }
    pub async fn set_node_service(&self, node: &str, service: NodeServiceView) -> Result<NodeView, ClientError> {
        let path = format!("/v1/nodes/{}/service", encode(node));
        self.with_body(Method::PUT, &path, &ServiceBody { service }, None).await
    }
    pub async fn move_member(&self, cluster: &str, body: &MoveBody) -> Result<AcceptedView, ClientError> {
        self.post(&format!("/v1/clusters/{}/move", encode(cluster)), body, None).await
    }
    /// Not once the old member has left.
    pub async fn cancel_move(&self, cluster: &str, member: &str) -> Result<AcceptedView, ClientError> {
        let path = format!("/v1/clusters/{}/move?member={}", encode(cluster), encode(member));
        parse(self.answer(Ask { method: Method::DELETE, ..Ask::get(&path) }).await?)
    }
    /// Of one more member of a cluster, and of those that it has.
    pub async fn placement(&self, cluster: &str) -> Result<PlacementView, ClientError> {
        self.get(&format!("/v1/clusters/{}/placement", encode(cluster))).await
    }
    /// Of a cluster that is not there yet.
    pub async fn placement_of_new(&self, asked: &PlacementParams) -> Result<PlacementView, ClientError> {
        let PlacementParams { members, regions, zones_min, storage_class, placement_weights } = asked;
        let asked = [
            members.map(|members| format!("members={members}")),
            regions.as_ref().map(|regions| format!("regions={}", encode(regions))),
            zones_min.map(|zones| format!("zones_min={zones}")),
            storage_class.as_ref().map(|class| format!("storage_class={}", encode(class))),
            placement_weights.map(|weights| format!("placement_weights={}", encode(&weights.to_string()))),
        ];
        let asked: Vec<String> = asked.into_iter().flatten().collect();
        self.get(&format!("/v1/placement?{}", asked.join("&"))).await
    }
    pub async fn create_token(&self, ttl: Option<String>) -> Result<TokenView, ClientError> {
        self.post("/v1/tokens", &NewToken { ttl }, None).await
    }
    pub async fn clusters(&self) -> Result<Vec<ClusterSummary>, ClientError> {
        self.all("/v1/clusters").await
    }
    pub async fn cluster(&self, cluster: &str) -> Result<ClusterView, ClientError> {
        self.get(&format!("/v1/clusters/{}", encode(cluster))).await
    }
    pub async fn create_cluster(&self, spec: &ClusterSpec) -> Result<AcceptedView, ClientError> {
        self.post("/v1/clusters", spec, None).await
    }
    pub async fn fork_cluster(&self, source: &str, fork: &ForkCluster) -> Result<AcceptedView, ClientError> {
        self.post(&format!("/v1/clusters/{}/forks", encode(source)), fork, None).await
    }
    pub async fn roll_back(&self, cluster: &str, body: &RollBackBody) -> Result<AcceptedView, ClientError> {
        self.post(&format!("/v1/clusters/{}/rollback", encode(cluster)), body, None).await
    }
    /// Not once it is done.
    pub async fn cancel_rollback(&self, cluster: &str) -> Result<AcceptedView, ClientError> {
        let path = format!("/v1/clusters/{}/rollback", encode(cluster));
        parse(self.answer(Ask { method: Method::DELETE, ..Ask::get(&path) }).await?)
    }
    /// With `revision`, only if the cluster is still at that one.
    pub async fn delete_cluster(&self, cluster: &str, revision: Option<u64>) -> Result<AcceptedView, ClientError> {
        let path = format!("/v1/clusters/{}", encode(cluster));
        let ask = Ask { method: Method::DELETE, revision, ..Ask::get(&path) };
        parse(self.answer(ask).await?)
    }
    pub async fn update_cluster(
        &self,
        cluster: &str,
        change: &SpecChange,
        revision: Option<u64>,
    ) -> Result<AcceptedView, ClientError> {
        let path = format!("/v1/clusters/{}", encode(cluster));
        self.with_body(Method::PATCH, &path, change, revision).await
    }
    pub async fn restart_cluster(&self, cluster: &str, revision: Option<u64>) -> Result<AcceptedView, ClientError> {
        let path = format!("/v1/clusters/{}/restart", encode(cluster));
        parse(self.answer(Ask { method: Method::POST, revision, ..Ask::get(&path) }).await?)
    }
    pub async fn switchover(
        &self,
        cluster: &str,
        body: &SwitchoverBody,
        revision: Option<u64>,
    ) -> Result<AcceptedView, ClientError> {
        let path = format!("/v1/clusters/{}/switchover", encode(cluster));
        self.post(&path, body, revision).await
    }
    pub async fn check_switchover(
        &self,
        cluster: &str,
        to: Option<&str>,
        undo: bool,
    ) -> Result<SwitchoverCheckView, ClientError> {
        let to = to.map(|to| format!("&to={}", encode(to))).unwrap_or_default();
        self.get(&format!("/v1/clusters/{}/switchover/check?undo={undo}{to}", encode(cluster))).await
    }
    /// Takes back one that was asked for later.
    pub async fn cancel_switchover(&self, cluster: &str) -> Result<AcceptedView, ClientError> {
        let path = format!("/v1/clusters/{}/switchover", encode(cluster));
        parse(self.answer(Ask { method: Method::DELETE, ..Ask::get(&path) }).await?)
    }
    pub async fn check_failover(&self, cluster: &str, to: &str) -> Result<FailoverCheckView, ClientError> {
        self.get(&format!("/v1/clusters/{}/failover/check?to={}", encode(cluster), encode(to))).await
    }
    pub async fn force_failover(
        &self,
        cluster: &str,
        body: &FailoverBody,
        revision: Option<u64>,
    ) -> Result<AcceptedView, ClientError> {
        self.post(&format!("/v1/clusters/{}/failover", encode(cluster)), body, revision).await
    }
    pub async fn connection(&self, cluster: &str) -> Result<ConnectionView, ClientError> {
        self.get(&format!("/v1/clusters/{}/connection", encode(cluster))).await
    }
    pub async fn members(&self) -> Result<Vec<MemberView>, ClientError> {
        self.all("/v1/members").await
    }
    pub async fn cluster_members(&self, cluster: &str) -> Result<Vec<MemberView>, ClientError> {
        self.all(&format!("/v1/clusters/{}/members", encode(cluster))).await
    }
    pub async fn volumes(&self) -> Result<Vec<VolumeView>, ClientError> {
        self.all("/v1/volumes").await
    }
    /// One that no member has, with all its data.
    pub async fn remove_volume(&self, volume: VolumeId) -> Result<(), ClientError> {
        let path = format!("/v1/volumes/{volume}");
        self.answer(Ask { method: Method::DELETE, ..Ask::get(&path) }).await.map(|_| ())
    }
    pub async fn snapshots(&self) -> Result<Vec<SnapshotView>, ClientError> {
        self.all("/v1/snapshots").await
    }
    pub async fn take_snapshot(&self, cluster: &str, what: &TakeSnapshot) -> Result<SnapshotView, ClientError> {
        self.post(&format!("/v1/clusters/{}/snapshots", encode(cluster)), what, None).await
    }
    pub async fn remove_snapshot(&self, snapshot: SnapshotId) -> Result<(), ClientError> {
        let path = format!("/v1/snapshots/{snapshot}");
        self.answer(Ask { method: Method::DELETE, ..Ask::get(&path) }).await.map(|_| ())
    }
    pub async fn operations(&self) -> Result<Vec<OperationView>, ClientError> {
        self.all("/v1/operations").await
    }
    /// With `wait` (up to 60 s) the answer comes when the operation has ended or the time is over.
    pub async fn operation(&self, id: OperationId, wait: Duration) -> Result<OperationView, ClientError> {
        let path = format!("/v1/operations/{id}?wait={}ms", wait.as_millis());
        parse(self.answer(Ask { timeout: ANSWER_TIMEOUT + wait, ..Ask::get(&path) }).await?)
    }
    /// Events after `after`. With `wait` (up to 60 s) the answer comes with the next one or when the time is over.
    pub async fn events(
        &self,
        after: Option<u64>,
        cluster: Option<&str>,
        wait: Duration,
    ) -> Result<EventsView, ClientError> {
        let mut path = format!("/v1/events?limit={LIMIT_MAX}&wait={}ms", wait.as_millis());
        if let Some(after) = after {
            path.push_str(&format!("&after={after}"));
        }
        if let Some(cluster) = cluster {
            path.push_str(&format!("&cluster={}", encode(cluster)));
        }
        parse(self.answer(Ask { timeout: ANSWER_TIMEOUT + wait, ..Ask::get(&path) }).await?)
    }
    pub async fn join(&self, request: &JoinRequest) -> Result<JoinAnswer, ClientError> {
        self.post("/v1/join", request, None).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        parse(self.answer(Ask::get(path)).await?)
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        revision: Option<u64>,
    ) -> Result<T, ClientError> {
        self.with_body(Method::POST, path, body, revision).await
    }

    async fn with_body<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        revision: Option<u64>,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).expect("request bodies are plain structs");
        let ask = Ask { method, body: Some(body.into()), revision, ..Ask::get(path) };
        parse(self.answer(ask).await?)
    }

    /// A whole list, piece by piece.
    async fn all<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ClientError> {
        let mut items = Vec::new();
        let mut after = None;
        loop {
            let piece = match &after {
                None => format!("{path}?limit={LIMIT_MAX}"),
                Some(after) => format!("{path}?limit={LIMIT_MAX}&after={after}"),
            };
            let mut page: Page<T> = self.get(&piece).await?;
            items.append(&mut page.items);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(items),
            }
        }
    }

    async fn answer(&self, ask: Ask<'_>) -> Result<Answer, ClientError> {
        let begun = Tick::now();
        loop {
            match self.answer_once(&ask).await {
                // Nothing was done, and the nodes are electing or have not heard of the outcome.
                Err(ClientError::Problem(problem))
                    if matches!(problem.code, Code::NoController | Code::ControllerUnreachable)
                        && Tick::now().since(begun) < ELECTION_PATIENCE =>
                {
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                other => return other,
            }
        }
    }

    async fn answer_once(&self, ask: &Ask<'_>) -> Result<Answer, ClientError> {
        let mut tried = Vec::new();
        let mut refused = None;
        let kept = self.kept.lock().await.take();
        let first = kept.as_ref().map_or(0, |(place, _)| *place);
        // A kept connection may have died unseen, which would leave a write's outcome in doubt for nothing.
        let usable = |sender: &SendRequest<_>| ask.method.is_safe() && !sender.is_closed();
        let mut kept = kept.map(|(_, sender)| sender).filter(usable);
        for turn in 0..self.servers.len() {
            let place = (first + turn) % self.servers.len();
            let server = &self.servers[place];
            let reused = kept.is_some();
            let mut sender = match kept.take() {
                Some(sender) => sender,
                None => match https::connect(server, &self.tls).await {
                    Ok(sender) => sender,
                    Err(error) => {
                        tried.push((server.to_string(), error.to_string()));
                        continue;
                    }
                },
            };
            let mut result = self.send(server, &mut sender, ask).await;
            if reused && result.is_err() {
                // Only reads get here: once more on a new connection.
                match https::connect(server, &self.tls).await {
                    Ok(fresh) => {
                        sender = fresh;
                        result = self.send(server, &mut sender, ask).await;
                    }
                    Err(error) => {
                        tried.push((server.to_string(), error.to_string()));
                        continue;
                    }
                }
            }
            match result {
                Ok(answer) => {
                    *self.kept.lock().await = Some((place, sender));
                    match problem(&answer) {
                        None => return Ok(answer),
                        // Another server may be on the side of the network that has the majority.
                        Some(problem) if matches!(problem.code, Code::NoController | Code::ControllerUnreachable) => {
                            refused = Some(problem);
                        }
                        Some(problem) => return Err(ClientError::Problem(problem)),
                    }
                }
                Err(why) if ask.method.is_safe() => tried.push((server.to_string(), why)),
                Err(why) => return Err(ClientError::Lost { server: server.to_string(), why }),
            }
        }
        Err(refused.map_or(ClientError::Unreachable { tried }, ClientError::Problem))
    }

    async fn send(
        &self,
        server: &Server,
        sender: &mut SendRequest<Full<Bytes>>,
        ask: &Ask<'_>,
    ) -> Result<Answer, String> {
        let mut request = http::Request::builder()
            .method(ask.method.clone())
            .uri(ask.path)
            .header(header::HOST, server.authority())
            .header(header::ACCEPT, "application/json, application/problem+json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        if let Some(revision) = ask.revision {
            request = request.header(header::IF_MATCH, format!("\"{revision}\""));
        }
        if ask.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Full::new(ask.body.clone().unwrap_or_default());
        let request = request.body(body).map_err(|_| "the token or the path cannot be sent in HTTP".to_string())?;
        let exchange = async {
            sender.ready().await.map_err(|error| describe(&error))?;
            let answer = sender.send_request(request).await.map_err(|error| describe(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| format!("the answer was cut short: {error}"))?.to_bytes();
            Ok(Answer { server: server.to_string(), status, body })
        };
        match tokio::time::timeout(ask.timeout, exchange).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {} s", ask.timeout.as_secs())),
        }
    }
}

impl<'a> Ask<'a> {
    fn get(path: &'a str) -> Self {
        Self { method: Method::GET, path, body: None, revision: None, timeout: ANSWER_TIMEOUT }
    }
}

fn describe(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn problem(answer: &Answer) -> Option<Problem> {
    if answer.status.is_success() {
        return None;
    }
    let read = serde_json::from_slice::<Problem>(&answer.body).ok();
    Some(read.unwrap_or_else(|| {
        let status = answer.status;
        Problem::new(
            Code::Other,
            format!("{} answered {status} without a problem document; is it a pgstead node?", answer.server),
        )
    }))
}

fn parse<T: DeserializeOwned>(answer: Answer) -> Result<T, ClientError> {
    serde_json::from_slice(&answer.body).map_err(|error| ClientError::BadAnswer {
        server: answer.server,
        status: answer.status.as_u16(),
        why: error.to_string(),
    })
}
