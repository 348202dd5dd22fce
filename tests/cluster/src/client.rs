//! How the tests connect: several hosts, one CA, the certificate checked against the host (`sslmode=verify-full`).

use crate::wait::until;
use pgstead_api::view::{ConnectionView, Endpoints};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

/// A host that answers nothing must not hold up the next one for long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For a statement that may be tried again: a leader may change meanwhile, and a gateway may be starting.
const PATIENCE: Duration = Duration::from_secs(120);
/// For one try, which a gateway may hold for a while.
const ATTEMPT_TIME: Duration = Duration::from_secs(40);

#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("the CA cannot be used: {0}")]
    Ca(String),
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// With the server's own words and the causes, in one line.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => format!("{}: {} ({})", said.severity(), said.message(), said.code().code()),
        None => match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        },
    }
}

/// A connection string, ready to be used again and again.
#[derive(Clone)]
pub struct Target {
    config: Config,
    /// `None` for a server without TLS.
    tls: Option<MakeRustlsConnect>,
}

impl Target {
    /// One of the strings of a cluster.
    pub fn of(view: &ConnectionView, endpoints: &Endpoints) -> Result<Self, TargetError> {
        let mut config = Config::new();
        for host in &endpoints.hosts {
            config.host(host).port(endpoints.port);
        }
        config.user(&view.user).password(&view.password).dbname(&view.database).ssl_mode(SslMode::Require);
        if endpoints.url.contains("target_session_attrs=read-write") {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        config.connect_timeout(CONNECT_TIMEOUT);
        Ok(Self { config, tls: Some(verify_full(&view.ca_pem)?) })
    }

    /// The server at `address`, which must show a certificate for `name`.
    pub fn under_name(view: &ConnectionView, name: &str, address: IpAddr, port: u16) -> Result<Self, TargetError> {
        let mut config = Config::new();
        config.host(name).hostaddr(address).port(port);
        config.user(&view.user).password(&view.password).dbname(&view.database).ssl_mode(SslMode::Require);
        config.connect_timeout(CONNECT_TIMEOUT);
        Ok(Self { config, tls: Some(verify_full(&view.ca_pem)?) })
    }

    /// Servers without TLS, such as the reference of a measurement.
    pub fn plain(mut config: Config) -> Self {
        config.connect_timeout(CONNECT_TIMEOUT).ssl_mode(SslMode::Disable);
        Self { config, tls: None }
    }

    /// The same hosts, beginning with another one.
    pub fn beginning_with(&self, first: usize) -> Self {
        let (mut hosts, mut ports) = (self.config.get_hosts().to_vec(), self.config.get_ports().to_vec());
        let (hosts_len, ports_len) = (hosts.len().max(1), ports.len().max(1));
        hosts.rotate_left(first % hosts_len);
        // One port per host, or one for all.
        ports.rotate_left(first % ports_len);
        let mut config = Config::new();
        for host in &hosts {
            if let tokio_postgres::config::Host::Tcp(host) = host {
                config.host(host);
            }
        }
        for port in &ports {
            config.port(*port);
        }
        if let Some(user) = self.config.get_user() {
            config.user(user);
        }
        if let Some(password) = self.config.get_password() {
            config.password(password);
        }
        if let Some(database) = self.config.get_dbname() {
            config.dbname(database);
        }
        if let Some(options) = self.config.get_options() {
            config.options(options);
        }
        config.ssl_mode(self.config.get_ssl_mode());
        config.target_session_attrs(self.config.get_target_session_attrs());
        config.connect_timeout(CONNECT_TIMEOUT);
        Self { config, tls: self.tls.clone() }
    }

    /// Options of the session, such as `-c synchronous_commit=off`.
    pub fn with_options(mut self, options: &str) -> Self {
        self.config.options(options);
        self
    }

    /// A session on the first host that takes it. It ends when the client is dropped.
    pub async fn connect(&self) -> Result<Client, TargetError> {
        match &self.tls {
            Some(tls) => {
                let (client, connection) = self.config.connect(tls.clone()).await?;
                tokio::spawn(async move { drop(connection.await) });
                Ok(client)
            }
            None => {
                let (client, connection) = self.config.connect(NoTls).await?;
                tokio::spawn(async move { drop(connection.await) });
                Ok(client)
            }
        }
    }

    /// Does something in a session, and again in another one where none can be had or where it ends: what may be done twice.
    pub async fn in_a_session<T>(
        &self,
        work: impl AsyncFn(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> anyhow::Result<T> {
        let attempt = async || {
            let client = self.connect().await?;
            Ok(work(&client).await?)
        };
        let done = until(PATIENCE, async || match tokio::time::timeout(ATTEMPT_TIME, attempt()).await {
            Ok(done) => done.map_err(|error: TargetError| error.to_string()),
            Err(_) => Err(TargetError::Timeout(ATTEMPT_TIME).to_string()),
        });
        done.await.map_err(|(passed, seen)| anyhow::anyhow!("in vain for {passed:?}: {seen}"))
    }

    /// A session that comes within `patience`.
    pub async fn connect_within(&self, patience: Duration) -> Result<Client, TargetError> {
        tokio::time::timeout(patience, self.connect()).await.unwrap_or(Err(TargetError::Timeout(patience)))
    }
}

fn verify_full(ca_pem: &str) -> Result<MakeRustlsConnect, TargetError> {
    let bad = |error: &dyn std::fmt::Display| TargetError::Ca(error.to_string());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}
