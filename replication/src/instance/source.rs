//! The leader of an epoch, or a standby that passes its log on, as a source to stream, copy or rewind from, with the
//! certificate that opens it.

use super::applied::Follow;
use super::{Instance, InstanceConfig, InstanceError, hba};
use crate::files::{self, Survives};
use pgstead_types::report::Upstream;
use pgstead_types::{Epoch, Secret, Tick};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::error::SqlState;

/// For a leader to admit a new incarnation, which its node does as soon as it has the record that names it.
const ADMISSION_TIME_MAX: Duration = Duration::from_secs(5);

/// Where to stream from, and the client certificate for it. Its common name is `<incarnation>.e<epoch>`.
#[derive(Clone, Debug)]
pub struct UpstreamSource {
    /// The leader and its epoch, and the standby in between if there is one.
    pub of: Upstream,
    /// Whose Postgres it is, as in its certificate.
    pub host: String,
    pub port: u16,
    pub cert_pem: String,
    pub key_pem: Secret,
}

impl UpstreamSource {
    pub(super) fn follow(&self) -> Follow {
        Follow { of: self.of, host: self.host.clone(), port: self.port }
    }
}

/// The certificates of an epoch have a name of their own, so that a receiver which still has the old configuration in
/// its hands finds no file, rather than the new epoch's.
fn certificate_names(epoch: Epoch) -> [String; 2] {
    [format!("tls/epoch{epoch}.crt"), format!("tls/epoch{epoch}.key")]
}

/// One `key=value` of a connection string, quoted.
fn word(key: &str, value: &str) -> String {
    format!("{key}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

impl Follow {
    /// How to reach it, without who connects and as what. No secret is in it, only the paths of files.
    fn address(&self, config: &InstanceConfig) -> Vec<String> {
        let [cert, key] =
            certificate_names(self.of.epoch).map(|name| config.run_file(&name).to_string_lossy().into_owned());
        vec![
            word("host", &self.host),
            word("port", &self.port.to_string()),
            word("sslmode", "verify-full"),
            word("sslrootcert", &config.run_file("tls/ca.crt").to_string_lossy()),
            word("sslcert", &cert),
            word("sslkey", &key),
            word("gssencmode", "disable"),
            word("connect_timeout", "2"),
            // Noticing a dead network within seconds, whatever the kernel's defaults.
            word("keepalives_idle", "1"),
            word("keepalives_interval", "1"),
            word("keepalives_count", "3"),
            word("tcp_user_timeout", "4000"),
        ]
    }
    fn as_role(&self, config: &InstanceConfig, role: &str, application_name: &str) -> String {
        let mut words = self.address(config);
        words.extend([word("user", role), word("application_name", application_name)]);
        words.join(" ")
    }
    /// For `primary_conninfo`: the application name is what acknowledgements are counted by.
    pub fn conninfo(&self, config: &InstanceConfig) -> String {
        self.as_role(config, hba::REPLICATION_ROLE, &config.incarnation.to_string())
    }
    /// For `pg_basebackup`: a name that no sync set has.
    pub fn copy_conninfo(&self, config: &InstanceConfig) -> String {
        self.as_role(config, hba::REPLICATION_ROLE, "pgstead_copy")
    }
    /// For `pg_rewind`.
    pub fn rewind_conninfo(&self, config: &InstanceConfig) -> String {
        format!("{} dbname='postgres'", self.as_role(config, hba::REWIND_ROLE, "pgstead_rewind"))
    }
}

impl Instance {
    /// Writes the certificates of an upstream, readable by the user that Postgres runs as alone.
    pub(super) fn write_upstream_certificates(&self, source: &UpstreamSource) -> Result<(), InstanceError> {
        let config = self.config();
        let [cert, key] = certificate_names(source.of.epoch).map(|name| config.run_file(&name));
        let write = |path: &PathBuf, text: &str| {
            files::replace(path, text.as_bytes(), config.owner(), Survives::Processes)
                .map_err(InstanceError::file("write", path))
        };
        let ca = config.run_file("tls/ca.crt");
        write(&ca, &config.tls.ca_pem)?;
        write(&cert, &source.cert_pem)?;
        write(&key, source.key_pem.expose())
    }

    /// Removes the client certificates of every epoch but `keep`. From then on no new connection of an older epoch can be
    /// made from here, whoever still tries.
    pub(super) fn remove_upstream_certificates(&self, keep: Option<Epoch>) -> Result<(), InstanceError> {
        let folder = self.config().run_file("tls");
        let kept: Vec<PathBuf> =
            keep.iter().flat_map(|epoch| certificate_names(*epoch).map(|name| self.config().run_file(&name))).collect();
        let entries = std::fs::read_dir(&folder).map_err(InstanceError::file("read", &folder))?;
        for entry in entries {
            let path = entry.map_err(InstanceError::file("read", &folder))?.path();
            let ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("epoch"));
            if ours && !kept.contains(&path) {
                files::remove(&path).map_err(InstanceError::file("remove", &path))?;
            }
        }
        Ok(())
    }

    /// A connection to the leader as the role of `pg_rewind`. A leader that has not heard of this incarnation yet is about to:
    /// it is asked again for a while.
    pub(super) async fn connect_to_source(
        &self,
        source: &UpstreamSource,
    ) -> Result<tokio_postgres::Client, InstanceError> {
        let begun = Tick::now();
        loop {
            match self.try_connect_to_source(source).await {
                Err(InstanceError::Sql { error, .. })
                    if error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
                        && Tick::now().since(begun) < ADMISSION_TIME_MAX =>
                {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                done => return done,
            }
        }
    }

    pub(super) async fn try_connect_to_source(
        &self,
        source: &UpstreamSource,
    ) -> Result<tokio_postgres::Client, InstanceError> {
        let bad = |why: String| InstanceError::BadCertificate { why };
        let mut roots = rustls::RootCertStore::empty();
        for ca in CertificateDer::pem_slice_iter(self.config().tls.ca_pem.as_bytes()) {
            let ca = ca.map_err(|error| bad(error.to_string()))?;
            roots.add(ca).map_err(|error| bad(error.to_string()))?;
        }
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(source.cert_pem.as_bytes()).collect();
        let chain = chain.map_err(|error| bad(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(source.key_pem.expose().as_bytes())
            .map_err(|error| bad(error.to_string()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_root_certificates(roots).with_client_auth_cert(chain, key))
            .map_err(|error| bad(error.to_string()))?;
        let mut options = tokio_postgres::Config::new();
        options.host(&source.host).port(source.port).user(hba::REWIND_ROLE).dbname("postgres");
        options.application_name("pgstead_rewind").ssl_mode(tokio_postgres::config::SslMode::Require);
        // Files are read as text of this form.
        options
            .options("-c search_path=pg_catalog -c bytea_output=hex")
            .connect_timeout(super::sql::STATEMENT_TIME_MAX);
        let doing = "connect to the leader";
        let connecting = options.connect(tokio_postgres_rustls::MakeRustlsConnect::new(tls));
        let (client, connection) = tokio::time::timeout(super::sql::STATEMENT_TIME_MAX, connecting)
            .await
            .map_err(|_| InstanceError::SqlTooSlow { doing, waited: super::sql::STATEMENT_TIME_MAX })?
            .map_err(InstanceError::sql(doing))?;
        tokio::spawn(connection);
        Ok(client)
    }
}
