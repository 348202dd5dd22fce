//! `pgstead init` and `pgstead node join`: how a host becomes a node. Both write the node's keys and identity, whole or
//! not at all, and leave the rest to the first start.

use crate::config::NodeConfig;
use crate::files::{self, Layout};
use crate::pki::{self, Pair};
use crate::{command, peers, tls};
use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use pgstead_api::backend::{JoinAnswer, JoinRequest, Peer};
use pgstead_types::record::{Deployment, NodeRecord, NodeService};
use pgstead_types::{DeploymentId, NodeId, Secret, TokenId, WallTime};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::TcpStream;
use uuid::Uuid;

/// Who this node is; in `secrets/`, because it holds the key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeIdentity {
    pub node: NodeId,
    pub deployment: DeploymentId,
    pub ca_pem: String,
    pub cert_pem: String,
    pub key_pem: Secret,
    /// Nodes that were there when this one joined.
    pub peers: Vec<Peer>,
}

impl NodeIdentity {
    pub fn pair(&self) -> Pair {
        Pair { cert_pem: self.cert_pem.clone(), key_pem: self.key_pem.clone() }
    }
}

/// What the first node records at its first start.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Founding {
    pub deployment: Deployment,
}

/// The operator's credentials, in the form that the commands read.
#[derive(Serialize, Deserialize)]
struct Profile {
    servers: Vec<String>,
    ca_pem: String,
    token: Secret,
}

/// What a join token says besides its secret: whom to ask, and by which CA to know them.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenBody {
    id: TokenId,
    secret: Secret,
    ca_sha256: String,
    servers: Vec<String>,
}

const TOKEN_PREFIX: &str = "pgstead1_";

/// The sum by which a joining host knows the deployment.
pub fn ca_sha256(ca_pem: &str) -> anyhow::Result<String> {
    let der = CertificateDer::from_pem_slice(ca_pem.as_bytes()).context("the CA's certificate is not PEM")?;
    Ok(pki::sha256_hex(&der))
}

/// The text of a join token.
pub fn token_text(id: TokenId, secret: &Secret, ca_sha256: String, servers: Vec<String>) -> Secret {
    let body = TokenBody { id, secret: secret.clone(), ca_sha256, servers };
    let json = serde_json::to_vec(&body).expect("a token is plain data");
    Secret::new(format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(json)))
}

fn parse_token(text: &str) -> anyhow::Result<TokenBody> {
    let body = text.trim().strip_prefix(TOKEN_PREFIX).and_then(|rest| URL_SAFE_NO_PAD.decode(rest).ok());
    let body = body.and_then(|json| serde_json::from_slice(&json).ok());
    body.context("this is not a join token; expected the whole text that `pgstead token create` printed")
}

/// The id and secret inside a token's text, for the side that checks it.
pub fn token_parts(text: &Secret) -> Option<(TokenId, Secret)> {
    parse_token(text.expose()).ok().map(|body| (body.id, body.secret))
}

/// What a node says of itself in the record.
pub fn describe(config: &NodeConfig, node: NodeId, joined_at: WallTime) -> anyhow::Result<NodeRecord> {
    let mut majors = Vec::new();
    for bin in &config.postgres_bin {
        majors.push(command::postgres_major(bin).map_err(anyhow::Error::msg)?);
    }
    majors.sort_unstable();
    majors.dedup();
    Ok(NodeRecord {
        id: node,
        name: config.name.clone(),
        host: config.host.clone(),
        port: config.port,
        region: config.region.clone(),
        zone: config.zone.clone(),
        postgres_majors: majors,
        pools: config.pool.iter().map(|pool| pool.name.clone()).collect(),
        joined_at,
        service: NodeService::default(),
    })
}

fn check_new(layout: &Layout) -> anyhow::Result<()> {
    if layout.identity().exists() {
        bail!(
            "this folder already belongs to a node ({}); start it with `pgstead node run`, or choose another data_dir",
            layout.identity().display()
        );
    }
    layout.ensure().context("cannot make the data folder; is data_dir on a writable disk and owned by this user?")
}

/// Makes this host the first node of a new deployment. Returns where the operator's profile is.
pub fn init(config: &NodeConfig) -> anyhow::Result<PathBuf> {
    let layout = Layout::new(&config.data_dir);
    check_new(&layout)?;
    let deployment = DeploymentId::from_uuid(Uuid::now_v7());
    let node = NodeId::from_uuid(Uuid::now_v7());
    // Fails early where Postgres is missing or broken.
    describe(config, node, WallTime::now())?;
    let ca = pki::make_ca(&pki::ca_name(deployment))?;
    let pair = pki::make_node(&ca, node, &config.host)?;
    let admin = pki::random_secret();
    let founding = Founding {
        deployment: Deployment {
            id: deployment,
            created_at: WallTime::now(),
            ca_cert_pem: ca.cert_pem.clone(),
            ca_key_pem: ca.key_pem.clone(),
            admin_token_sha256: pki::sha256_hex(admin.expose().as_bytes()),
            port_first: config.ports.first,
            port_last: config.ports.last,
            lease_ms: config.timing.lease_ms,
        },
    };
    let server = format!("https://{}", peers::authority(&config.host, config.port));
    let profile = Profile { servers: vec![server], ca_pem: ca.cert_pem.clone(), token: admin };
    let identity = NodeIdentity {
        node,
        deployment,
        ca_pem: ca.cert_pem,
        cert_pem: pair.cert_pem,
        key_pem: pair.key_pem,
        peers: Vec::new(),
    };
    files::write_json(&layout.founding(), &founding)?;
    files::write_json(&layout.admin_profile(), &profile)?;
    // Last: a node is there only with everything else in place.
    files::write_json(&layout.identity(), &identity)?;
    Ok(layout.admin_profile())
}

/// Makes this host a node of the deployment that the token names.
pub async fn join(config: &NodeConfig, token: &Secret) -> anyhow::Result<NodeId> {
    let layout = Layout::new(&config.data_dir);
    let body = parse_token(token.expose())?;
    check_new(&layout)?;
    let about = describe(config, NodeId::default(), WallTime::now())?;
    let (csr_pem, key_pem) = pki::make_request()?;
    let request = JoinRequest {
        token: token.clone(),
        name: about.name,
        host: about.host,
        port: about.port,
        region: about.region,
        zone: about.zone,
        postgres_majors: about.postgres_majors,
        pools: about.pools,
        csr_pem,
    };
    let mut failures = Vec::new();
    for server in &body.servers {
        match ask(server, &body.ca_sha256, &request).await {
            Ok(answer) => {
                if ca_sha256(&answer.ca_pem)? != body.ca_sha256 {
                    bail!("the deployment's answer holds another CA than the token names; nothing was written");
                }
                let identity = NodeIdentity {
                    node: answer.node,
                    deployment: answer.deployment,
                    ca_pem: answer.ca_pem,
                    cert_pem: answer.cert_pem,
                    key_pem,
                    peers: answer.peers,
                };
                files::write_json(&layout.identity(), &identity)?;
                return Ok(identity.node);
            }
            Err(Asked::Refused(why)) => bail!("the deployment refused: {why}"),
            Err(Asked::Unreachable(why)) => failures.push(format!("{server}: {why}")),
        }
    }
    bail!(
        "no node of the deployment could be asked ({}); are they running and reachable from here?",
        failures.join("; ")
    )
}

enum Asked {
    Refused(String),
    Unreachable(String),
}

async fn ask(server: &str, ca_sha256: &str, request: &JoinRequest) -> Result<JoinAnswer, Asked> {
    let unreachable = |why: String| Asked::Unreachable(why);
    match tokio::time::timeout(Duration::from_secs(30), exchange(server, ca_sha256, request)).await {
        Ok(Ok((status, body))) if status.is_success() => {
            serde_json::from_slice(&body).map_err(|error| unreachable(format!("an answer that is not one: {error}")))
        }
        Ok(Ok((status, body))) => {
            let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let detail = problem.get("detail").or_else(|| problem.get("title")).and_then(|text| text.as_str());
            let why = detail.map_or_else(|| status.to_string(), ToString::to_string);
            if status.is_client_error() { Err(Asked::Refused(why)) } else { Err(unreachable(why)) }
        }
        Ok(Err(error)) => Err(unreachable(format!("{error:#}"))),
        Err(_) => Err(unreachable("no answer within 30 s".to_string())),
    }
}

async fn exchange(server: &str, ca_sha256: &str, request: &JoinRequest) -> anyhow::Result<(http::StatusCode, Bytes)> {
    let uri: http::Uri = server.parse()?;
    let host = uri.host().context("no host in the address")?.trim_matches(['[', ']']).to_string();
    let port = uri.port_u16().unwrap_or(443);
    let tcp = TcpStream::connect((host.as_str(), port)).await?;
    let tls = tokio_rustls::TlsConnector::from(tls::pinned_client(ca_sha256)?);
    let tls = tls.connect(ServerName::try_from(host.clone())?, tcp).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
    tokio::spawn(async move { drop(connection.await) });
    let request = http::Request::post("/v1/join")
        .header(http::header::HOST, peers::authority(&host, port))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(request)?)))?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), 1 << 20).collect().await.map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok((status, body.to_bytes()))
}
