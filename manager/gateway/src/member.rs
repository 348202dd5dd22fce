//! Connections to members: TCP, SSLRequest, TLS checked by the cluster's CA and the member's name.

use crate::sockets;
use crate::wire::{SSL_REQUEST_PACKET, error_field};
use pgstead_types::routes::Endpoint;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// For TCP and TLS together. Longer than a few lost packets (1 + 2 s), shorter than the hold, so that a dead leader
/// is given up in time for the next one.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Where to connect and whom to trust there.
#[derive(Clone)]
pub struct Member {
    pub endpoint: Endpoint,
    pub tls: Arc<ClientConfig>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{host:?} is neither a host name nor an IP address")]
    Name { host: String },
    #[error("{host}:{port} cannot be connected to: {source}")]
    Tcp { host: String, port: u16, source: std::io::Error },
    #[error("{host}:{port} does not take TLS; it must present the cluster's certificate")]
    NoTls { host: String, port: u16 },
    #[error("TLS with {host}:{port}: {source}")]
    Tls { host: String, port: u16, source: std::io::Error },
    #[error("{host}:{port} does not answer")]
    Silent { host: String, port: u16 },
    #[error("{host}:{port} takes no connections now: {why}")]
    NotNow { host: String, port: u16, why: String },
    #[error("{host}:{port} closed the connection before it answered")]
    Closed { host: String, port: u16 },
}

/// A TLS connection on which nothing of the Postgres protocol has been said yet.
pub async fn connect(member: &Member) -> Result<TlsStream<TcpStream>, ConnectError> {
    match tokio::time::timeout(CONNECT_DEADLINE, connect_unbounded(member)).await {
        Ok(result) => result,
        Err(_) => Err(silent(member)),
    }
}

/// Not a word in the time that there was.
pub fn silent(member: &Member) -> ConnectError {
    ConnectError::Silent { host: member.endpoint.host.clone(), port: member.endpoint.port }
}

async fn connect_unbounded(member: &Member) -> Result<TlsStream<TcpStream>, ConnectError> {
    let Endpoint { host, port, .. } = member.endpoint.clone();
    let name = ServerName::try_from(host.clone()).map_err(|_| ConnectError::Name { host: host.clone() })?;
    let tcp = |source| ConnectError::Tcp { host: host.clone(), port, source };
    let mut stream = TcpStream::connect((host.as_str(), port)).await.map_err(tcp)?;
    sockets::ensure_alive_checked(&stream, &sockets::MEMBER).map_err(tcp)?;
    stream.write_all(&SSL_REQUEST_PACKET).await.map_err(tcp)?;
    let mut answer = [0];
    // One byte and no more: what follows belongs to the handshake.
    stream.read_exact(&mut answer).await.map_err(tcp)?;
    if answer != *b"S" {
        return Err(ConnectError::NoTls { host, port });
    }
    let mut stream = TlsConnector::from(member.tls.clone())
        .connect(name, stream)
        .await
        .map_err(|source| ConnectError::Tls { host: host.clone(), port, source })?;
    stream.get_mut().1.set_buffer_limit(Some(crate::window::WINDOW_BYTES));
    Ok(stream)
}

/// A member that has taken a client's start-up packet and said something to it.
pub struct Greeted {
    pub stream: TlsStream<TcpStream>,
    /// The first bytes of its answer, not yet judged.
    pub answer: Vec<u8>,
}

/// Connects and forwards the start-up packet. A member that is starting or stopping, or holds clients back, counts as not
/// connected: nothing has been said to the client yet, so another attempt is free.
pub async fn greet(member: &Member, startup_packet: &[u8], user: &str) -> Result<Greeted, ConnectError> {
    let Endpoint { host, port, .. } = member.endpoint.clone();
    let mut stream = connect(member).await?;
    let lost = |source| ConnectError::Tcp { host: host.clone(), port, source };
    stream.write_all(startup_packet).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;
    let mut answer = vec![0; 4096];
    let length = match tokio::time::timeout(CONNECT_DEADLINE, stream.read(&mut answer)).await {
        Ok(Ok(0)) => return Err(ConnectError::Closed { host, port }),
        Ok(Ok(length)) => length,
        Ok(Err(source)) => return Err(lost(source)),
        Err(_) => return Err(ConnectError::Silent { host, port }),
    };
    answer.truncate(length);
    if answer[0] == b'E'
        && let Some(body) = answer.get(5..)
        && error_field(body, b'C').is_some_and(|code| is_not_now(code, user))
    {
        let why = String::from_utf8_lossy(error_field(body, b'M').unwrap_or_default()).into_owned();
        return Err(ConnectError::NotNow { host, port, why });
    }
    Ok(Greeted { stream, answer })
}

/// A member that lets clients in refuses nobody's address but for its own roles, so any other refusal by its access rules
/// means that it holds clients back: a new leader does so until its epoch is confirmed and for a moment after that.
fn is_not_now(code: &[u8], user: &str) -> bool {
    match code {
        b"57P03" => true,
        b"28000" => user != "postgres" && !user.starts_with("pgstead_"),
        _ => false,
    }
}

#[cfg(test)]
impl Member {
    pub fn for_tests() -> Self {
        let endpoint = Endpoint { member: pgstead_types::MemberId::from_u128(1), host: "127.0.0.1".into(), port: 1 };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        Self { endpoint, tls: Arc::new(tls) }
    }
}

#[cfg(test)]
mod tests {
    use super::is_not_now;

    #[test]
    fn only_roles_that_are_never_let_in_are_refused_at_once() {
        assert!(is_not_now(b"28000", "app") && is_not_now(b"57P03", "postgres"));
        assert!(!is_not_now(b"28000", "postgres") && !is_not_now(b"28000", "pgstead_replication"));
        assert!(!is_not_now(b"28P01", "app"), "a wrong password is the client's own");
    }
}
