//! Members of a cluster for tests: own folders and ports, a CA, and an end to every process when a test ends, whichever way.

#![allow(dead_code, reason = "each test file uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use pgstead_replication::guard::{GuardPaths, StopMode};
use pgstead_replication::instance::{Bootstrap, ServerTls, StartAs, UpstreamSource};
use pgstead_replication::proc::{self, ProcessId};
use pgstead_replication::{GuardLaunch, Instance, InstanceConfig, RunAs};
use pgstead_types::record::SyncSet;
use pgstead_types::report::{ClientAccess, PostgresSeen, PrimarySeen, StandbySeen, Upstream};
use pgstead_types::{Epoch, Incarnation, Lsn, MemberId, Secret, Tick, Timeline};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub const PASSWORD: &str = "correct horse battery staple";
pub const HOLDING: StartAs = StartAs { access: ClientAccess::Holding, alone: false };
/// Beyond this a condition counts as never coming true. Far more than anything takes, for starved machines.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The user that Postgres runs as here.
pub fn postgres_user() -> RunAs {
    if !rustix::process::geteuid().is_root() {
        return RunAs::myself();
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:")).expect("there is a user postgres");
    let fields: Vec<&str> = line.split(':').collect();
    RunAs { uid: fields[2].parse().unwrap(), gid: fields[3].parse().unwrap() }
}

/// Waits for a condition, looking often; says what was missing when it never comes.
pub async fn until<T>(what: &str, condition: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, condition).await
}

/// [`until`] for what Postgres takes its time for.
pub async fn until_within<T>(patience: Duration, what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Tick::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Tick::now().since(begun) < patience, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A cluster: its CA, the folder of its members, the members' processes.
pub struct Cluster {
    pub folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
    server_cert: String,
    server_key: String,
    guard: PathBuf,
    owner: RunAs,
}

impl Cluster {
    pub fn new() -> Self {
        let owner = postgres_user();
        let folder = tempfile::Builder::new().prefix("pgr").tempdir_in("/tmp").unwrap().keep();
        own(&folder, owner);
        // The user that Postgres runs as need not be able to enter the build's folder.
        let guard = folder.join("guard");
        std::fs::copy(env!("CARGO_BIN_EXE_pgstead-guard-for-tests"), &guard).unwrap();
        std::fs::set_permissions(&guard, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test cluster CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        let key = KeyPair::generate().unwrap();
        let server_cert = params.signed_by(&key, &issuer).unwrap().pem();
        Self { folder, issuer, server_cert, server_key: key.serialize_pem(), guard, owner }
    }

    /// A member by its number, as its first incarnation.
    pub async fn member(&self, number: u128) -> Member {
        self.member_as(number, 1).await
    }
    pub async fn member_as(&self, number: u128, incarnation: u32) -> Member {
        let root = self.folder.join(format!("m{number}"));
        let _ = std::fs::create_dir(&root);
        own(&root, self.owner);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let settings = [
            ("shared_buffers", "16MB"),
            ("max_connections", "30"),
            ("log_connections", "on"),
            ("min_wal_size", "32MB"),
            // Tests wait for state, never for a write-back.
            ("autovacuum", "off"),
        ];
        let config = InstanceConfig {
            bin_dir: "/usr/lib/postgresql/15/bin".into(),
            major: 15,
            data_dir: root.join("data"),
            run_dir: root.join("run"),
            run_as: Some(self.owner),
            listen_host: "127.0.0.1".to_string(),
            port,
            incarnation: Incarnation { member: MemberId::from_u128(number), number: incarnation },
            tls: ServerTls {
                ca_pem: self.issuer.pem(),
                cert_pem: self.server_cert.clone(),
                key_pem: Secret::new(&self.server_key),
            },
            settings: settings.map(|(name, value)| (name.to_string(), value.to_string())).into(),
            forked: false,
            logical_replication: false,
            guard: GuardLaunch { program: self.guard.clone(), args: vec!["guard".to_string()], cgroup: None },
        };
        Member { instance: Arc::new(Instance::open(config).await.unwrap()) }
    }

    /// A first member, promoted in epoch 1 to timeline 2 for this set, and open.
    pub async fn leader(&self, number: u128, standbys: &[&Member], needed: u8) -> Member {
        let leader = self.member(number).await;
        leader.instance.init_database(&bootstrap()).await.unwrap();
        leader.start().await;
        leader.lead(1, 2, standbys, needed).await;
        leader.instance.open_clients().await.unwrap();
        leader
    }

    /// How `member` reaches `leader` in an epoch, with a certificate for it.
    pub fn source(&self, leader: &Member, member: &Member, epoch: u64) -> UpstreamSource {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("{}.e{epoch}", member.incarnation()));
        let key = KeyPair::generate().unwrap();
        let cert_pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        UpstreamSource {
            of: Upstream::of(leader.incarnation().member, Epoch(epoch)),
            host: "127.0.0.1".to_string(),
            port: leader.port(),
            cert_pem,
            key_pem: Secret::new(key.serialize_pem()),
        }
    }

    /// Copies the leader and streams from it.
    pub async fn join(&self, leader: &Member, member: &Member, epoch: u64) {
        let source = self.source(leader, member, epoch);
        member.instance.copy_from(&source, &|_| ()).await.unwrap();
        member.start().await;
        member.instance.follow(&source).await.unwrap();
        member.until_streaming().await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.folder).unwrap().flatten() {
            let noted = std::fs::read(GuardPaths::under(&entry.path().join("run")).state).unwrap_or_default();
            if let Ok(guard) = serde_json::from_slice::<ProcessId>(&noted) {
                let _ = guard.signal(rustix::process::Signal::KILL);
            }
            let begun = Tick::now();
            loop {
                let left = proc::postgres_in(&entry.path().join("data")).unwrap_or_default();
                if left.is_empty() || Tick::now().since(begun) > PATIENCE {
                    break;
                }
                for process in left {
                    let _ = process.id().signal(rustix::process::Signal::KILL);
                }
                std::thread::yield_now();
            }
        }
        if std::thread::panicking() {
            eprintln!("kept for a look: {}", self.folder.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

fn own(folder: &Path, owner: RunAs) {
    std::os::unix::fs::chown(folder, Some(owner.uid), Some(owner.gid)).unwrap();
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}

pub fn bootstrap() -> Bootstrap {
    Bootstrap { database: "app".to_string(), owner: "app".to_string(), owner_password: Secret::new(PASSWORD) }
}

pub fn set_of(standbys: &[&Member], needed: u8) -> SyncSet {
    SyncSet { members: incarnations(standbys), needed }
}
pub fn incarnations(members: &[&Member]) -> BTreeSet<Incarnation> {
    members.iter().map(|member| member.incarnation()).collect()
}

#[derive(Clone)]
pub struct Member {
    pub instance: Arc<Instance>,
}

impl Member {
    pub fn incarnation(&self) -> Incarnation {
        self.instance.config().incarnation
    }
    pub fn port(&self) -> u16 {
        self.instance.config().port
    }
    pub fn become_incarnation(&self, number: u32) {
        let mut config = (*self.instance.config()).clone();
        config.incarnation.number = number;
        self.instance.set_config(config);
    }
    /// The same member as a daemon that was started again finds it.
    pub async fn found_again(&self) -> Member {
        Member { instance: Arc::new(Instance::open((*self.instance.config()).clone()).await.unwrap()) }
    }
    pub async fn start(&self) {
        self.instance.start_standby(HOLDING).await.unwrap();
        until("Postgres accepts connections", async || self.try_standby().await).await;
    }
    pub async fn lead(&self, epoch: u64, timeline: u32, standbys: &[&Member], needed: u8) {
        let (epoch, timeline) = (Epoch(epoch), Timeline(timeline));
        let set = set_of(standbys, needed);
        self.instance.prepare_promotion(epoch, timeline, &set, &incarnations(standbys)).await.unwrap();
        let promoted = self.instance.promote(epoch, timeline).await.unwrap();
        assert_eq!(promoted.timeline, timeline);
    }
    pub async fn stop(&self) {
        self.instance.stop(StopMode::Fast, PATIENCE).await.unwrap();
    }
    pub async fn try_standby(&self) -> Option<StandbySeen> {
        match self.instance.probe().await {
            PostgresSeen::Standby(seen) => Some(seen),
            _ => None,
        }
    }
    pub async fn primary(&self) -> PrimarySeen {
        match self.instance.probe().await {
            PostgresSeen::Primary(seen) => seen,
            other => panic!("expected a primary, found {other:?}"),
        }
    }
    pub async fn until_streaming(&self) {
        let streams = async || {
            let seen = self.try_standby().await?;
            seen.receiver.is_some_and(|receiver| receiver.streaming).then_some(())
        };
        until("the standby streams", streams).await;
    }
    pub async fn until_position(&self) -> pgstead_types::Position {
        until("the position is known", async || self.instance.position().await.unwrap()).await
    }
    pub async fn until_replayed(&self, lsn: Lsn) {
        let reached = async || (self.try_standby().await?.replayed >= lsn).then_some(());
        until("the standby has replayed", reached).await;
    }
    pub async fn postmaster(&self) -> ProcessId {
        self.instance.guard_status().await.unwrap().unwrap().postmaster.expect("a postmaster runs")
    }
    pub async fn guard(&self) -> ProcessId {
        self.instance.guard_if_any().await.expect("there is a guard").process()
    }
    /// As the superuser, on this host.
    pub async fn admin(&self) -> tokio_postgres::Client {
        let config = self.instance.config();
        let mut options = tokio_postgres::Config::new();
        options.host_path(&config.run_dir).port(config.port).user("postgres").dbname("postgres");
        let (client, connection) = options.connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
    /// As the application, over the network.
    pub async fn app(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        self.login("app", PASSWORD, "app").await
    }
    pub async fn login(
        &self,
        user: &str,
        password: &str,
        database: &str,
    ) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let tls = self.tls_client();
        let mut options = tokio_postgres::Config::new();
        options.host("127.0.0.1").port(self.port()).user(user).password(password).dbname(database);
        options.ssl_mode(tokio_postgres::config::SslMode::Require).connect_timeout(Duration::from_secs(5));
        let (client, connection) = options.connect(tls).await?;
        tokio::spawn(connection);
        Ok(client)
    }
    fn tls_client(&self) -> tokio_postgres_rustls::MakeRustlsConnect {
        use rustls::pki_types::pem::PemObject;
        let mut roots = rustls::RootCertStore::empty();
        let ca = self.instance.config().tls.ca_pem.clone();
        roots.add(rustls::pki_types::CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tokio_postgres_rustls::MakeRustlsConnect::new(tls)
    }
    pub fn log(&self) -> String {
        let log = GuardPaths::under(&self.instance.config().run_dir).server_log;
        String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
    }
    pub fn settings(&self, changes: &[(&str, &str)]) {
        let mut config = (*self.instance.config()).clone();
        let changes: BTreeMap<String, String> =
            changes.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        config.settings.extend(changes);
        self.instance.set_config(config);
    }
}

/// The first column of the first row.
pub async fn value(client: &tokio_postgres::Client, text: &str) -> String {
    let messages = client.simple_query(text).await.unwrap();
    messages
        .into_iter()
        .find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("").to_string()),
            _ => None,
        })
        .expect("a row")
}

pub async fn lsn(client: &tokio_postgres::Client, text: &str) -> Lsn {
    value(client, &format!("SELECT ({text})::text")).await.parse().unwrap()
}
