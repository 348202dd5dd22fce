//! How applications connect. The only answer with a password in it.

use crate::percent::encode;
use pgstead_types::record::{ClusterRecord, Record};
use pgstead_types::spec::CONSUMER_ROLE;
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// A connection string names at most so many hosts: enough to outlive any failure that the cluster outlives, short
/// enough to paste.
const HOSTS_MAX: usize = 8;

/// Strings for libpq and the drivers that follow it. Save `ca_pem` as the file that `sslrootcert` names.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConnectionView {
    pub database: String,
    pub user: String,
    pub password: String,
    /// Through the gateways, to the leader wherever it is.
    pub read_write: Endpoints,
    /// Through the gateways, to a standby, or to the leader when no standby streams.
    pub read_only: Endpoints,
    /// To the members themselves; the driver finds the leader by `target_session_attrs=read-write`.
    pub direct: Endpoints,
    /// For consumers of logical slots; absent where the spec asks for no `logical_replication`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer: Option<ConsumerView>,
    /// The cluster's own CA.
    pub ca_pem: String,
}

/// How consumers of logical slots connect. Whoever has this password can stream from any database of the cluster, as a standby does.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConsumerView {
    pub user: String,
    pub password: String,
    /// With the password, to the leader wherever it is.
    pub url: String,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Endpoints {
    /// With the password.
    pub url: String,
    pub hosts: Vec<String>,
    /// The same on every host.
    pub port: u16,
}

impl fmt::Debug for ConnectionView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionView {{ {}@{}, <secret> }}", self.user, self.database)
    }
}

impl ConnectionView {
    pub fn new(record: &Record, cluster: &ClusterRecord) -> Self {
        let host_of = |node| record.nodes.get(node).map(|node| node.host.clone());
        let members: Vec<String> = cluster.members.values().filter_map(|member| host_of(&member.node)).collect();
        // Gateways on the members' nodes first: those nodes are certainly of use.
        let others = record.nodes.values().map(|node| node.host.clone()).filter(|host| !members.contains(host));
        let gateways: Vec<String> = members.iter().cloned().chain(others).collect();
        let owner = (cluster.spec.owner.as_str(), cluster.secrets.owner_password.expose());
        let end = |hosts: &[String], port, more: &str| {
            // A host that the certificate does not name yet would fail verify-full.
            let named = |host: &&String| cluster.secrets.server_hosts.contains(*host);
            let hosts: Vec<String> = hosts.iter().filter(named).take(HOSTS_MAX).cloned().collect();
            Endpoints { url: url(cluster, owner, &hosts, port, more), hosts, port }
        };
        let read_write = end(&gateways, cluster.ports.read_write, "");
        Self {
            database: cluster.spec.database.clone(),
            user: cluster.spec.owner.clone(),
            password: cluster.secrets.owner_password.expose().to_string(),
            consumer: consumer(cluster, &read_write),
            read_write,
            read_only: end(&gateways, cluster.ports.read_only, ""),
            direct: end(&members, cluster.ports.postgres, "&target_session_attrs=read-write"),
            ca_pem: cluster.secrets.ca_cert_pem.clone(),
        }
    }
}

fn consumer(cluster: &ClusterRecord, read_write: &Endpoints) -> Option<ConsumerView> {
    let password = cluster.secrets.consumer_password.as_ref()?.expose();
    let url = url(cluster, (CONSUMER_ROLE, password), &read_write.hosts, read_write.port, "");
    Some(ConsumerView { user: CONSUMER_ROLE.to_string(), password: password.to_string(), url })
}

fn url(cluster: &ClusterRecord, (user, password): (&str, &str), hosts: &[String], port: u16, more: &str) -> String {
    let host = |host: &String| {
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    };
    let hosts: Vec<String> = hosts.iter().map(host).collect();
    format!(
        "postgresql://{}:{}@{}/{}?sslmode=verify-full&sslrootcert=ca.pem{more}",
        encode(user),
        encode(password),
        hosts.join(","),
        encode(&cluster.spec.database),
    )
}
