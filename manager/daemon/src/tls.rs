//! TLS between nodes and for the API: one server that takes client certificates where they are offered, one client that
//! always shows its own. Both trust the deployment's CA and nothing else.

use crate::pki::Pair;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("a certificate or key of this node is not valid PEM")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("the certificates of this node cannot be used")]
    Rustls(#[from] rustls::Error),
    #[error("the deployment's CA cannot be used")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Names ring as the provider, once per process.
pub fn install_provider() {
    // A second call finds it installed, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn roots(ca_pem: &str) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(cert?)?;
    }
    Ok(Arc::new(roots))
}

fn chain(pair: &Pair) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let certs = CertificateDer::pem_slice_iter(pair.cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.expose().as_bytes())?;
    Ok((certs, key))
}

/// For the daemon's port. A client certificate is checked when shown; who shows none can reach the API only.
pub fn server(ca_pem: &str, pair: &Pair) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = WebPkiClientVerifier::builder(roots(ca_pem)?).allow_unauthenticated().build()?;
    let (mut certs, key) = chain(pair)?;
    // The CA goes along: a joining host knows it only by its sum.
    for cert in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        certs.push(cert?);
    }
    let mut config = ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(certs, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// For connections to other nodes.
pub fn client(ca_pem: &str, pair: &Pair) -> Result<Arc<ClientConfig>, TlsError> {
    let (certs, key) = chain(pair)?;
    let mut config =
        ClientConfig::builder().with_root_certificates(roots(ca_pem)?).with_client_auth_cert(certs, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// For a host that has no certificate yet: any certificate chain that ends in a CA with this SHA-256 is the deployment.
/// The join token carries the sum, so nobody in between can stand in for the deployment.
pub fn pinned_client(ca_sha256: &str) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = Pinned { ca_sha256: ca_sha256.to_string(), provider: rustls::crypto::ring::default_provider() };
    let mut config =
        ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Checks the server's chain against a CA that the server itself sends and whose sum is known.
#[derive(Debug)]
struct Pinned {
    ca_sha256: String,
    provider: rustls::crypto::CryptoProvider,
}

impl rustls::client::danger::ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &rustls::pki_types::ServerName<'_>,
        ocsp_response: &[u8],
        now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|cert| crate::pki::sha256_hex(cert) == self.ca_sha256);
        let pinned = pinned.ok_or(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::new(self.provider.clone()),
        )
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
