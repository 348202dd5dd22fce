//! HTTPS by hand, so that a test can send what no well-behaved client sends.

use crate::support::Bed;
use anyhow::Context;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A certificate to show, and its key, in PEM.
pub struct Shown {
    pub cert_pem: String,
    pub key_pem: String,
}

/// What a server has answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub text: String,
}

/// Sends `head` (request line and headers) with a body to a node's daemon, and reads until it closes.
pub async fn send(bed: &Bed, number: usize, shown: Option<&Shown>, head: &str, body: &[u8]) -> anyhow::Result<Answer> {
    let profile: serde_json::Value = serde_json::from_slice(&std::fs::read(bed.profile())?)?;
    let ca = profile["ca_pem"].as_str().context("the profile has a CA")?;
    let server = profile["servers"][number - 1].as_str().context("the profile names the node")?;
    let address = server.trim_start_matches("https://");
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(cert?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match shown {
        None => config.with_no_client_auth(),
        Some(shown) => {
            let chain = CertificateDer::pem_slice_iter(shown.cert_pem.as_bytes()).collect::<Result<_, _>>()?;
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(shown.key_pem.as_bytes())?)?
        }
    };
    let exchange = async {
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::try_from(bed.node(number).host.clone())?;
        let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        let length = body.len();
        let text = format!("{head}\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        tls.write_all(text.as_bytes()).await?;
        // Whoever refuses early may close before it has read everything.
        let _ = tls.write_all(body).await;
        let mut answer = Vec::new();
        let ended = tls.read_to_end(&mut answer).await;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
        match status {
            Some(status) => Ok(Answer { status, text }),
            None => Err(anyhow::anyhow!("no answer: {ended:?} {text}")),
        }
    };
    tokio::time::timeout(Duration::from_secs(30), exchange).await.context("no answer in time")?
}
