//! TLS on both sides: the cluster's certificate towards clients, the cluster's CA towards members. The choice of the
//! cryptographic provider stands here and nowhere else.

use crate::wire::ALPN;
use pgstead_types::routes::ClusterRoute;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::{Arc, LazyLock};

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));

/// Cryptographically strong random bytes.
pub fn fill_random(bytes: &mut [u8]) {
    PROVIDER.secure_random.fill(bytes).expect("the kernel's random source does not fail after boot");
}

/// Why a cluster's certificate, key or CA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the certificate of cluster {cluster} is not PEM: {source}")]
    Certificate { cluster: String, source: rustls::pki_types::pem::Error },
    #[error("the key of cluster {cluster} is not PEM")]
    Key { cluster: String },
    #[error("the CA of cluster {cluster} is not PEM: {source}")]
    Ca { cluster: String, source: rustls::pki_types::pem::Error },
    #[error("the certificate of cluster {cluster} cannot be used: {source}")]
    Unusable { cluster: String, source: rustls::Error },
}

/// Ready for use, made once per change of the certificates.
#[derive(Clone)]
pub struct ClusterTls {
    pub server: Arc<ServerConfig>,
    pub client: Arc<ClientConfig>,
}

impl ClusterTls {
    pub fn new(route: &ClusterRoute) -> Result<Self, TlsError> {
        let cluster = || route.name.clone();
        let unusable = |source| TlsError::Unusable { cluster: cluster(), source };

        let chain = CertificateDer::pem_slice_iter(route.certificate_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| TlsError::Certificate { cluster: cluster(), source })?;
        // The cause may quote the text, which is a secret.
        let key = PrivateKeyDer::from_pem_slice(route.key_pem.expose().as_bytes())
            .map_err(|_| TlsError::Key { cluster: cluster() })?;
        let mut server = ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(unusable)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        // Postgres clients do not resume TLS sessions; remembering them would only cost memory.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        let mut roots = RootCertStore::empty();
        for ca in CertificateDer::pem_slice_iter(route.ca_pem.as_bytes()) {
            let ca = ca.map_err(|source| TlsError::Ca { cluster: cluster(), source })?;
            roots.add(ca).map_err(unusable)?;
        }
        let mut client = ClientConfig::builder_with_provider(PROVIDER.clone())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}
