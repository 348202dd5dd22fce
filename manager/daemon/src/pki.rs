//! Certificates: one CA for the deployment (nodes among themselves, the API), one per cluster (Postgres and its clients).

use pgstead_types::{DeploymentId, Epoch, Incarnation, NodeId, Secret};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The scheme of the URI by which a node's certificate names it.
const NODE_URI: &str = "pgstead:node:";

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot make a key or certificate")]
    Make(#[from] rcgen::Error),
    #[error("the certificate is not one of a node of this deployment: {0}")]
    NotANode(String),
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    pub cert_pem: String,
    pub key_pem: Secret,
}

fn named(common_name: &str) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(Vec::new())?;
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    // Certificates live as long as what they belong to; leaving is done by the record, not by expiry.
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2124, 1, 1);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A new CA.
pub fn make_ca(common_name: &str) -> Result<Pair, PkiError> {
    let mut params = named(common_name)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    Ok(Pair { cert_pem: cert.pem(), key_pem: Secret::new(key.serialize_pem()) })
}

fn issuer(ca_cert_pem: &str, ca_key_pem: &Secret) -> Result<Issuer<'static, KeyPair>, PkiError> {
    let key = KeyPair::from_pem(ca_key_pem.expose())?;
    Ok(Issuer::from_ca_cert_pem(ca_cert_pem, key)?)
}

fn host_name(host: &str) -> Result<SanType, PkiError> {
    Ok(match host.parse::<IpAddr>() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(host.try_into()?),
    })
}

fn node_params(params: &mut CertificateParams, node: NodeId, host: &str) -> Result<(), PkiError> {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, format!("node {node}"));
    params.distinguished_name = name;
    params.subject_alt_names = vec![host_name(host)?, SanType::URI(format!("{NODE_URI}{node}").as_str().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.is_ca = IsCa::ExplicitNoCa;
    Ok(())
}

/// A key and certificate for a node, made where the CA's key is.
pub fn make_node(ca: &Pair, node: NodeId, host: &str) -> Result<Pair, PkiError> {
    let mut params = named("node")?;
    node_params(&mut params, node, host)?;
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, &issuer(&ca.cert_pem, &ca.key_pem)?)?;
    Ok(Pair { cert_pem: cert.pem(), key_pem: Secret::new(key.serialize_pem()) })
}

/// A node's own key, and the request to sign it. Only the key in the request counts; its names are given by the signer.
pub fn make_request() -> Result<(String, Secret), PkiError> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::new(Vec::new())?.serialize_request(&key)?;
    Ok((request.pem()?, Secret::new(key.serialize_pem())))
}

/// Signs a node's request with names of the signer's choice.
pub fn sign_node(ca: &Pair, request_pem: &str, node: NodeId, host: &str) -> Result<String, PkiError> {
    let mut request = CertificateSigningRequestParams::from_pem(request_pem)?;
    let mut params = named("node")?;
    node_params(&mut params, node, host)?;
    request.params = params;
    Ok(request.signed_by(&issuer(&ca.cert_pem, &ca.key_pem)?)?.pem())
}

/// The server certificate that a cluster's members and gateways present alike.
pub fn make_server(ca: &Pair, cluster: &str, hosts: &BTreeSet<String>) -> Result<Pair, PkiError> {
    let mut params = named(cluster)?;
    params.subject_alt_names = hosts.iter().map(|host| host_name(host)).collect::<Result<_, _>>()?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.is_ca = IsCa::ExplicitNoCa;
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, &issuer(&ca.cert_pem, &ca.key_pem)?)?;
    Ok(Pair { cert_pem: cert.pem(), key_pem: Secret::new(key.serialize_pem()) })
}

/// A replication certificate, good for one incarnation in one epoch: its common name is what the leader's ident map admits.
pub fn make_replica(ca: &Pair, incarnation: Incarnation, epoch: Epoch) -> Result<Pair, PkiError> {
    let mut params = named(&format!("{incarnation}.e{epoch}"))?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.is_ca = IsCa::ExplicitNoCa;
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, &issuer(&ca.cert_pem, &ca.key_pem)?)?;
    Ok(Pair { cert_pem: cert.pem(), key_pem: Secret::new(key.serialize_pem()) })
}

/// Which node a certificate, already verified against the deployment's CA, was issued to.
pub fn node_of(cert_der: &[u8]) -> Result<NodeId, PkiError> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let bad = |why: &str| PkiError::NotANode(why.to_string());
    let (_, cert) = X509Certificate::from_der(cert_der).map_err(|error| bad(&error.to_string()))?;
    let names = cert.subject_alternative_name().map_err(|error| bad(&error.to_string()))?;
    let names = names.ok_or_else(|| bad("it names no host"))?;
    let uri = names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(NODE_URI),
        _ => None,
    });
    uri.ok_or_else(|| bad("it names no node"))?.parse().map_err(|error| bad(&format!("{error}")))
}

/// SHA-256 in lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 256 random bits from the system in hexadecimal: admin tokens, join secrets, passwords.
pub fn random_secret() -> Secret {
    let mut bytes = [0u8; 32];
    let filled = getrandom(&mut bytes[..], GetRandomFlags::empty()).expect("the system's random source answers");
    assert_eq!(filled, bytes.len(), "requests of up to 256 bytes are filled whole");
    Secret::new(hex(&bytes))
}

/// The deployment CA's common name.
pub fn ca_name(deployment: DeploymentId) -> String {
    format!("pgstead deployment {deployment}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    #[test]
    fn a_signed_request_carries_the_signers_names_only() {
        let ca = make_ca("test").unwrap();
        let (request, _key) = make_request().unwrap();
        let node = NodeId::from_u128(5);
        let cert = sign_node(&ca, &request, node, "127.0.1.1").unwrap();
        let der = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
        assert_eq!(node_of(&der).unwrap(), node);
    }

    #[test]
    fn secrets_differ_and_are_long() {
        let (one, other) = (random_secret(), random_secret());
        assert_ne!(one, other);
        assert_eq!(one.expose().len(), 64);
    }
}
