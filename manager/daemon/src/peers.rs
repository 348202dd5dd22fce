//! Connections to other nodes: HTTP/2 over mutual TLS, one per peer and lane, opened when needed and kept.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pgstead_types::NodeId;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpStream;

/// A connection that takes longer than this to open is as good as refused.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);
/// No answer between nodes is larger: a snapshot of the record travels in requests, not in answers.
const ANSWER_MAX: usize = 64 << 20;

/// What a connection is used for. Raft's heartbeats never wait behind anything else, and the closing of the report lane
/// is a sign of a node's death.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lane {
    Raft,
    Report,
    Api,
    /// Segments of a log.
    Log,
}

/// Where a node is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerAddress {
    pub node: NodeId,
    pub host: String,
    pub port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Nothing was sent.
    #[error("cannot connect to {host}:{port}: {why}")]
    Connect { host: String, port: u16, why: String },
    /// It may or may not have been done.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the connection broke: {0}")]
    Broken(String),
}

type Sender = SendRequest<Full<Bytes>>;
type Slot = Arc<tokio::sync::Mutex<Option<Sender>>>;

/// All connections of this node to others.
#[derive(Clone)]
pub struct Peers {
    tls: Arc<ClientConfig>,
    slots: Arc<Mutex<BTreeMap<(NodeId, Lane), Slot>>>,
}

impl Peers {
    pub fn new(tls: Arc<ClientConfig>) -> Self {
        Self { tls, slots: Arc::default() }
    }

    /// Sends one request and reads the whole answer, within `timeout`.
    pub async fn call(
        &self,
        to: &PeerAddress,
        lane: Lane,
        request: http::Request<Bytes>,
        timeout: Duration,
    ) -> Result<http::Response<Bytes>, PeerError> {
        match tokio::time::timeout(timeout, self.exchange(to, lane, request)).await {
            Ok(answer) => answer,
            Err(_) => Err(PeerError::Timeout(timeout)),
        }
    }

    /// The same for JSON, which is what nodes speak among themselves.
    pub async fn post_json(
        &self,
        to: &PeerAddress,
        lane: Lane,
        path: &str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<http::Response<Bytes>, PeerError> {
        let request = http::Request::post(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Bytes::from(body))
            .expect("a request made of constants is valid");
        self.call(to, lane, request, timeout).await
    }

    async fn exchange(
        &self,
        to: &PeerAddress,
        lane: Lane,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, PeerError> {
        let mut sender = self.sender(to, lane).await?;
        let (mut parts, body) = request.into_parts();
        // HTTP/2 wants the whole address in the request line.
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_string();
        parts.uri = http::Uri::builder()
            .scheme("https")
            .authority(authority(&to.host, to.port))
            .path_and_query(path)
            .build()
            .map_err(|error| PeerError::Broken(error.to_string()))?;
        parts.version = http::Version::HTTP_2;
        parts.headers.remove(http::header::HOST);
        parts.headers.remove(http::header::CONNECTION);
        let request = http::Request::from_parts(parts, Full::new(body));
        let answer = sender.send_request(request).await.map_err(|error| PeerError::Broken(error.to_string()))?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_MAX).collect().await.map_err(|e| PeerError::Broken(e.to_string()))?;
        Ok(http::Response::from_parts(parts, body.to_bytes()))
    }

    async fn sender(&self, to: &PeerAddress, lane: Lane) -> Result<Sender, PeerError> {
        let slot = {
            let mut slots = self.slots.lock().expect("nothing panics while it holds the slots");
            slots.entry((to.node, lane)).or_default().clone()
        };
        let mut slot = slot.lock().await;
        if let Some(sender) = slot.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let sender =
            self.connect(to).await.map_err(|why| PeerError::Connect { host: to.host.clone(), port: to.port, why })?;
        *slot = Some(sender.clone());
        Ok(sender)
    }

    async fn connect(&self, to: &PeerAddress) -> Result<Sender, String> {
        let connect = async {
            let tcp = TcpStream::connect((to.host.as_str(), to.port)).await.map_err(|error| error.to_string())?;
            tcp.set_nodelay(true).map_err(|error| error.to_string())?;
            // Unanswered data for so long ends the connection, well before any retransmission timer would.
            rustix::net::sockopt::set_tcp_user_timeout(&tcp, 5000).map_err(|error| error.to_string())?;
            let name = ServerName::try_from(to.host.clone()).map_err(|error| error.to_string())?;
            let tls = tokio_rustls::TlsConnector::from(self.tls.clone());
            let tls = tls.connect(name, tcp).await.map_err(|error| error.to_string())?;
            let shown = tls.get_ref().1.peer_certificates().and_then(|certs| certs.first());
            let node = shown.ok_or("it showed no certificate".to_string())?;
            let node = crate::pki::node_of(node).map_err(|error| error.to_string())?;
            if node != to.node {
                return Err(format!("node {node} answers there instead of node {}", to.node));
            }
            let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            let (sender, connection) = handshake.handshake(TokioIo::new(tls)).await.map_err(|e| e.to_string())?;
            // The end of the connection shows in the sender.
            tokio::spawn(async move { drop(connection.await) });
            Ok(sender)
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(result) => result,
            Err(_) => Err(format!("no connection within {CONNECT_TIMEOUT:?}")),
        }
    }
}

/// `host:port`, with brackets around an IPv6 address.
pub fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
