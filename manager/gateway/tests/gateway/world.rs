//! Certificates, a daemon played by the test, the gateway under test and clients for it.

use crate::postgres::PASSWORD;
use crate::programs;
use pgstead_gateway::{Gateway, GatewayOptions};
use pgstead_types::routes::{ClusterRoute, Endpoint, Routes};
use pgstead_types::{ClusterId, Epoch, Secret, Tick};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Far more than anything here takes, on any machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a condition; says which when it does not come.
pub async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let began = Tick::now();
    while !check().await {
        assert!(Tick::now().since(began) < PATIENCE, "not in {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("not in {PATIENCE:?}: {what}"))
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[derive(Clone)]
pub struct Certificates {
    pub ca_pem: String,
    pub certificate_pem: String,
    pub key_pem: String,
}

impl Certificates {
    pub fn new() -> Self {
        Self::for_names(&["127.0.0.1", "localhost"])
    }

    pub fn for_names(names: &[&str]) -> Self {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        // Each its own name: a CA of the same name and another key is another failure than an unknown CA.
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("cluster CA {}", NUMBER.fetch_add(1, Ordering::Relaxed));
        ca.distinguished_name.push(rcgen::DnType::CommonName, name);
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let certificate_pem = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap().pem();
        Self { ca_pem, certificate_pem, key_pem: key.serialize_pem() }
    }
}

/// Listens where a daemon would, sends the current routes to whoever connects, and keeps what is said back.
pub struct Daemon {
    routes: watch::Sender<Option<Routes>>,
    pub heard: Arc<Mutex<Vec<serde_json::Value>>>,
    task: JoinHandle<()>,
}

impl Daemon {
    pub fn listen(socket: &Path) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let routes = watch::Sender::new(None::<Routes>);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (seen, said) = (routes.clone(), heard.clone());
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (reads, mut writes) = stream.into_split();
                let mut lines = BufReader::new(reads).lines();
                let mut routes = seen.subscribe();
                routes.mark_changed();
                loop {
                    tokio::select! {
                        line = lines.next_line() => match line {
                            Ok(Some(line)) => said.lock().unwrap().push(serde_json::from_str(&line).unwrap()),
                            _ => break,
                        },
                        _ = routes.changed() => {
                            let line = routes.borrow_and_update().as_ref().map(|routes| serde_json::to_string(routes).unwrap());
                            if let Some(line) = line && writes.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                                break;
                            }
                        }
                    }
                }
            }
        });
        Self { routes, heard, task }
    }

    pub fn send(&self, routes: Routes) {
        self.routes.send_replace(Some(routes));
    }

    pub fn last_heard(&self) -> serde_json::Value {
        self.heard.lock().unwrap().last().cloned().unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One gateway with one cluster named `app`.
pub struct World {
    pub gateway: Option<Gateway>,
    pub daemon: Option<Daemon>,
    pub certificates: Certificates,
    pub routes: Routes,
    pub dir: tempfile::TempDir,
    pub options: GatewayOptions,
}

impl World {
    pub async fn new() -> Self {
        Self::with(Certificates::new(), |_| {}).await
    }

    pub async fn with(certificates: Certificates, adjust: impl FnOnce(&mut GatewayOptions)) -> Self {
        let dir = tempfile::Builder::new().prefix("gw").tempdir_in("/tmp").unwrap();
        let mut options = GatewayOptions::new(dir.path().join("routes.sock"), dir.path().join("state"));
        adjust(&mut options);
        std::fs::write(dir.path().join("ca.pem"), &certificates.ca_pem).unwrap();
        let route = ClusterRoute {
            cluster: ClusterId::from_u128(1),
            name: "app".into(),
            epoch: Epoch(1),
            read_write: format!("127.0.0.1:{}", free_port()),
            read_only: format!("127.0.0.1:{}", free_port()),
            leader: None,
            replicas: Vec::new(),
            certificate_pem: certificates.certificate_pem.clone(),
            key_pem: Secret::new(certificates.key_pem.clone()),
            ca_pem: certificates.ca_pem.clone(),
        };
        let routes = Routes { version: 1, revision: 0, clusters: vec![route] };
        let daemon = Some(Daemon::listen(&options.routes_socket));
        let gateway = Some(Gateway::start(options.clone()).await.unwrap());
        let mut world = Self { gateway, daemon, certificates, routes, dir, options };
        world.push(|_| {}).await;
        world
    }

    /// Changes the route, pushes it as the next revision and waits until the gateway says that it is in force.
    pub async fn push(&mut self, change: impl FnOnce(&mut ClusterRoute)) {
        change(&mut self.routes.clusters[0]);
        self.routes.revision += 1;
        let daemon = self.daemon.as_ref().expect("the daemon runs");
        daemon.send(self.routes.clone());
        let revision = self.routes.revision;
        eventually("the routes are in force", async || daemon.last_heard()["applied"] == revision).await;
    }

    pub async fn lead(&mut self, leader: Option<Endpoint>) {
        self.push(|route| {
            route.epoch = route.epoch.next();
            route.leader = leader;
        })
        .await;
    }

    /// Stops the gateway and starts it again with the present options.
    pub async fn restart_gateway(&mut self) {
        self.gateway.take().expect("the gateway runs").shutdown().await;
        let mut next = None;
        // Another test's child, between fork and exec, may hold a copy of the lock for a moment.
        eventually("the gateway starts again", async || {
            next = Gateway::start(self.options.clone()).await.ok();
            next.is_some()
        })
        .await;
        self.gateway = next;
    }

    pub fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().expect("the gateway runs")
    }

    pub fn read_write(&self) -> String {
        self.routes.clusters[0].read_write.clone()
    }

    pub fn read_only(&self) -> String {
        self.routes.clusters[0].read_only.clone()
    }

    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// For libpq: everything but the password.
    pub fn conninfo(&self, address: &str) -> String {
        let (host, port) = address.rsplit_once(':').unwrap();
        format!(
            "host={host} port={port} user=postgres dbname=postgres sslmode=verify-full sslrootcert={} channel_binding=require",
            self.ca_file().display()
        )
    }

    /// What psql prints, or its complaint.
    pub async fn psql(&self, conninfo: &str, sql: &str) -> Result<String, String> {
        let output = soon("psql ends", programs::client("psql", &["-XAtq", "-d", conninfo, "-c", sql])).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    pub fn tls(&self) -> tokio_postgres_rustls::MakeRustlsConnect {
        tokio_postgres_rustls::MakeRustlsConnect::new(self.rustls_client())
    }

    /// Trusts the cluster's CA.
    pub fn rustls_client(&self) -> rustls::ClientConfig {
        use rustls::pki_types::pem::PemObject;
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(rustls::pki_types::CertificateDer::from_pem_slice(self.certificates.ca_pem.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    /// A client, and the task that ends with its connection.
    pub async fn connect(
        &self,
        address: &str,
    ) -> Result<(tokio_postgres::Client, JoinHandle<Result<(), tokio_postgres::Error>>), tokio_postgres::Error> {
        let (host, port) = address.rsplit_once(':').unwrap();
        let (client, connection) = tokio_postgres::Config::new()
            .host(host)
            .port(port.parse().unwrap())
            .user("postgres")
            .dbname("postgres")
            .password(PASSWORD)
            .ssl_mode(tokio_postgres::config::SslMode::Require)
            .connect(self.tls())
            .await?;
        Ok((client, tokio::spawn(connection)))
    }
}

/// The SQLSTATE of a database error.
pub fn code(error: &tokio_postgres::Error) -> &str {
    error.code().map_or("", |code| code.code())
}
