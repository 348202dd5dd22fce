//! The daemon's one port: accepts, ends TLS, and serves the public API and the nodes' own routes over HTTP/1.1 and 2.
//! Who connected is known to every request, and the end of a node's report connection is told to the controller.

use crate::pki;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use pgstead_types::NodeId;
use rustls::ServerConfig;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::server::TlsStream;

/// Connections that show no node's certificate; more are closed at once. A bound on memory, far above what operators need,
/// and apart from the nodes' own, which nobody without a certificate can crowd out.
const ANONYMOUS_MAX: usize = 500;
/// Handshakes under way; further connections wait in the kernel's queue for the few milliseconds that one takes.
const HANDSHAKES_MAX: usize = 500;
/// A client that has sent no whole request head for so long is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 64;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

static NEXT_CONNECTION: AtomicU64 = AtomicU64::new(1);

/// One accepted connection, as requests on it see it.
#[derive(Debug)]
pub struct Connection {
    pub id: u64,
    /// The node that showed its certificate, if any.
    pub peer: Option<NodeId>,
    /// Set by the first report that arrives on it.
    pub reports: AtomicBool,
    /// Set by the first message of Raft's that arrives on it.
    pub raft: AtomicBool,
}

/// Who hears of connections that have ended.
#[derive(Clone)]
pub struct Ends {
    /// Of those on which reports arrived.
    pub reports: mpsc::UnboundedSender<Closed>,
    /// Of those on which Raft's messages arrived.
    pub raft: mpsc::UnboundedSender<Closed>,
}

/// A node's connection has ended.
#[derive(Clone, Copy, Debug)]
pub struct Closed {
    pub node: NodeId,
    pub connection: u64,
}

/// Serves until `stop` turns true, then ends what is open after a short grace.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    ends: Ends,
    mut stop: watch::Receiver<bool>,
) {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let anonymous = Arc::new(Semaphore::new(ANONYMOUS_MAX));
    // Snapshots of the record are the largest bodies between nodes; the API has its own, smaller limit.
    let router = router.layer(DefaultBodyLimit::max(64 << 20));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => return,
        };
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                // Out of descriptors, most likely: give others a moment to close.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(handshake) = handshakes.clone().acquire_owned().await else { return };
        let anonymous = anonymous.clone();
        let (acceptor, router, ends, stop) = (acceptor.clone(), router.clone(), ends.clone(), stop.clone());
        tokio::spawn(async move {
            let Some(tls) = handshaken(tcp, acceptor).await else { return };
            drop(handshake);
            connection(tls, &anonymous, router, ends, stop).await;
        });
    }
}

/// Returns when the daemon is to stop, or when nobody is left to say so.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn handshaken(tcp: TcpStream, acceptor: tokio_rustls::TlsAcceptor) -> Option<TlsStream<TcpStream>> {
    let _ = tcp.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => Some(tls),
        Ok(Err(_)) | Err(_) => {
            tracing::debug!("a TLS handshake failed");
            None
        }
    }
}

async fn connection(
    tls: TlsStream<TcpStream>,
    anonymous: &Semaphore,
    router: Router,
    ends: Ends,
    mut stop: watch::Receiver<bool>,
) {
    let shown = tls.get_ref().1.peer_certificates().and_then(|certs| certs.first());
    let peer = shown.and_then(|cert| pki::node_of(cert).ok());
    let place = anonymous.try_acquire();
    if peer.is_none() && place.is_err() {
        tracing::warn!("too many connections without a node's certificate; closed one");
        return;
    }
    let _place = if peer.is_none() { place.ok() } else { None };
    let id = NEXT_CONNECTION.fetch_add(1, Ordering::Relaxed);
    let connection = Arc::new(Connection { id, peer, reports: AtomicBool::new(false), raft: AtomicBool::new(false) });
    let service = TowerToHyperService::new(router.layer(axum::Extension(connection.clone())));
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX);
    builder.http2().keep_alive_interval(Some(HEAD_TIMEOUT)).keep_alive_timeout(HEAD_TIMEOUT);
    let serving = builder.serve_connection(TokioIo::new(tls), service);
    tokio::pin!(serving);
    tokio::select! {
        _ = &mut serving => {}
        () = stopped(&mut stop) => {
            serving.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(Duration::from_secs(2), serving).await;
        }
    }
    let Some(node) = peer else { return };
    let closed = Closed { node, connection: id };
    // Whoever listened has ended with the daemon.
    if connection.reports.load(Ordering::Relaxed) {
        let _ = ends.reports.send(closed);
    }
    if connection.raft.load(Ordering::Relaxed) {
        let _ = ends.raft.send(closed);
    }
}
