//! One HTTPS connection to one node: dial, TLS pinned to the deployment's CA, HTTP/1.1.

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A dead host answers nothing; the next server is tried soon, and a slow one still gets its chance.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// Where a node's API is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Without brackets.
    pub host: String,
    pub port: u16,
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a server; expected the form https://host:port")]
pub struct BadServer(String);

impl std::str::FromStr for Server {
    type Err = BadServer;
    fn from_str(text: &str) -> Result<Self, BadServer> {
        let bad = || BadServer(text.to_string());
        let rest = text.strip_prefix("https://").ok_or_else(bad)?.trim_end_matches('/');
        let (host, port) = rest.rsplit_once(':').ok_or_else(bad)?;
        let host = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?;
        if host.is_empty() || host.contains(['/', '@', ' ', '[', ']']) {
            return Err(bad());
        }
        Ok(Self { host: host.to_string(), port })
    }
}

impl Server {
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

/// The CA of a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadCa {
    #[error("the CA is not a PEM certificate")]
    Pem(#[source] rustls::pki_types::pem::Error),
    #[error("the CA has no certificate in it; expected -----BEGIN CERTIFICATE-----")]
    Empty,
    #[error("the CA cannot be used")]
    Unusable(#[source] rustls::Error),
}

/// TLS that trusts `ca_pem` and nothing else.
pub fn pinned_tls(ca_pem: &str) -> Result<Arc<ClientConfig>, BadCa> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.map_err(BadCa::Pem)?).map_err(BadCa::Unusable)?;
    }
    if roots.is_empty() {
        return Err(BadCa::Empty);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(BadCa::Unusable)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

/// No connection, so nothing was asked.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot connect: {0}")]
    Dial(std::io::Error),
    #[error("no answer within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    #[error("not a host name")]
    Name(#[source] InvalidDnsNameError),
    #[error("its certificate is not one of this deployment: {0}")]
    Certificate(rustls::CertificateError),
    #[error("no TLS connection: {0}")]
    Tls(std::io::Error),
    #[error("no HTTP connection: {0}")]
    Http(hyper::Error),
}

/// Connects within `CONNECT_TIMEOUT`.
pub async fn connect(server: &Server, tls: &Arc<ClientConfig>) -> Result<SendRequest<Full<Bytes>>, ConnectError> {
    match tokio::time::timeout(CONNECT_TIMEOUT, dial(server, tls)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Timeout),
    }
}

async fn dial(server: &Server, tls: &Arc<ClientConfig>) -> Result<SendRequest<Full<Bytes>>, ConnectError> {
    let tcp = TcpStream::connect((server.host.as_str(), server.port)).await.map_err(ConnectError::Dial)?;
    // Requests are small and waited for.
    tcp.set_nodelay(true).map_err(ConnectError::Dial)?;
    let name = ServerName::try_from(server.host.clone()).map_err(ConnectError::Name)?;
    let stream = TlsConnector::from(tls.clone()).connect(name, tcp).await.map_err(tls_error)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(ConnectError::Http)?;
    tokio::spawn(async move {
        // Its end shows as an error of the request under way, or not at all.
        let _ended = connection.await;
    });
    Ok(sender)
}

fn tls_error(error: std::io::Error) -> ConnectError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(why)) => ConnectError::Certificate(why.clone()),
        _ => ConnectError::Tls(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_read_as_urls_with_a_port() {
        let server: Server = "https://db-1.example:7480/".parse().unwrap();
        assert_eq!((server.host.as_str(), server.port), ("db-1.example", 7480));
        let six: Server = "https://[fd00::1]:7480".parse().unwrap();
        assert_eq!((six.host.as_str(), six.to_string().as_str()), ("fd00::1", "https://[fd00::1]:7480"));
        for bad in ["http://a:1", "a:1", "https://a", "https://a:0", "https://:1", "https://u@a:1"] {
            assert!(bad.parse::<Server>().is_err(), "{bad}");
        }
    }
}
