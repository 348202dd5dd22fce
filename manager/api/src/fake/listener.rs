//! Serves a fake node over real TLS on a free port of this host.

use super::Fake;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A deployment's CA, made for one test.
pub struct Ca {
    pub pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

pub fn ca() -> Ca {
    let key = rcgen::KeyPair::generate().expect("the system gives random bytes");
    let mut params = rcgen::CertificateParams::new(vec![]).expect("no names, no wrong names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).expect("the key is good");
    Ca { pem: certificate.pem(), issuer: rcgen::Issuer::new(params, key) }
}

/// Ends TLS with a certificate for 127.0.0.1.
pub fn acceptor(ca: &Ca) -> TlsAcceptor {
    let key = rcgen::KeyPair::generate().expect("the system gives random bytes");
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_string()]).expect("an address is a name");
    let certificate = params.signed_by(&key, &ca.issuer).expect("the key is good");
    let chain = vec![CertificateDer::from(certificate.der().to_vec())];
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("what rcgen writes is PEM");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("key and certificate belong together");
    TlsAcceptor::from(Arc::new(tls))
}

/// Serves `fake` for as long as the runtime lives; answers where.
pub async fn serve(fake: &Arc<Fake>, ca: &Ca) -> String {
    let acceptor = acceptor(ca);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("a bound listener has an address");
    let router = crate::router(fake.clone());
    tokio::spawn(async move {
        loop {
            let Ok((tcp, _)) = listener.accept().await else { return };
            let (acceptor, router) = (acceptor.clone(), router.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(tcp).await else { return };
                let http = auto::Builder::new(TokioExecutor::new());
                let service = TowerToHyperService::new(router);
                let _ended = http.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    format!("https://{address}")
}
