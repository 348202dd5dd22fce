//! What is known of the clusters now, and who serves a connection. Replaced whole at every change; never edited.

use crate::member::Member;
use crate::opening::Opening;
use crate::tls::{ClusterTls, TlsError};
use pgstead_types::routes::{ClusterRoute, Endpoint, Routes};
use pgstead_types::{ClusterId, Epoch};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The newest version of `Routes` that this gateway understands.
pub const ROUTES_VERSION_MAX: u32 = 1;

/// The two addresses of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Access {
    ReadWrite,
    ReadOnly,
}

#[derive(Default)]
pub struct RouteTable {
    pub revision: u64,
    pub clusters: BTreeMap<ClusterId, Arc<Cluster>>,
}

pub struct Cluster {
    pub route: ClusterRoute,
    /// `None` when the certificate in the routes cannot be used and there was none before.
    pub tls: Option<ClusterTls>,
    /// Of the leader in the routes.
    pub opening: Arc<Opening>,
}

/// Why routes were not taken. The ones before them stay in force.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("routes of version {0} are newer than this gateway, which knows {ROUTES_VERSION_MAX}; upgrade the gateway")]
    NewerVersion(u32),
    #[error("routes of revision {found} are older than {current}, which is in force")]
    Stale { found: u64, current: u64 },
}

impl RouteTable {
    /// The table after `routes`, with the addresses whose certificates are wrong. The same revision again is taken: whole
    /// routes also change without the record, when a replica stops to stream.
    pub fn try_next(&self, routes: &Routes) -> Result<(Self, Vec<(String, TlsError)>), Refusal> {
        if routes.version > ROUTES_VERSION_MAX {
            return Err(Refusal::NewerVersion(routes.version));
        }
        if routes.revision < self.revision {
            return Err(Refusal::Stale { found: routes.revision, current: self.revision });
        }
        let mut errors = Vec::new();
        let mut clusters = BTreeMap::new();
        for route in &routes.clusters {
            let before = self.clusters.get(&route.cluster);
            let tls = match before {
                Some(cluster) if cluster.tls.is_some() && is_same_tls(&cluster.route, route) => cluster.tls.clone(),
                _ => match ClusterTls::new(route) {
                    Ok(tls) => Some(tls),
                    Err(why) => {
                        errors.push((route.read_write.clone(), why));
                        before.and_then(|cluster| cluster.tls.clone())
                    }
                },
            };
            let opening = match before {
                Some(cluster) if cluster.route.epoch == route.epoch && cluster.route.leader == route.leader => {
                    cluster.opening.clone()
                }
                _ => Arc::default(),
            };
            clusters.insert(route.cluster, Arc::new(Cluster { route: route.clone(), tls, opening }));
        }
        Ok((Self { revision: routes.revision, clusters }, errors))
    }

    /// Addresses to listen on, and for what.
    pub fn addresses(&self) -> BTreeMap<String, (ClusterId, Access)> {
        let pair = |cluster: &Arc<Cluster>| {
            let route = &cluster.route;
            [
                (route.read_write.clone(), (route.cluster, Access::ReadWrite)),
                (route.read_only.clone(), (route.cluster, Access::ReadOnly)),
            ]
        };
        self.clusters.values().flat_map(pair).filter(|(address, _)| !address.is_empty()).collect()
    }
}

impl RouteTable {
    /// The cluster whose clients connect to that address.
    pub fn served_at(&self, address: &str) -> Option<ClusterId> {
        let has = |cluster: &Arc<Cluster>| {
            [Access::ReadWrite, Access::ReadOnly].map(|access| cluster.address(access) == address)
        };
        self.clusters.values().find(|cluster| has(cluster).contains(&true)).map(|cluster| cluster.route.cluster)
    }
}

fn is_same_tls(a: &ClusterRoute, b: &ClusterRoute) -> bool {
    a.certificate_pem == b.certificate_pem && a.key_pem == b.key_pem && a.ca_pem == b.ca_pem
}

/// Who serves a session, and as what.
#[derive(Clone)]
pub struct Target {
    pub member: Member,
    /// Set when it serves as the leader of this epoch; a replica serves in any epoch.
    pub leads: Option<Epoch>,
}

impl Cluster {
    pub fn address(&self, access: Access) -> &str {
        match access {
            Access::ReadWrite => &self.route.read_write,
            Access::ReadOnly => &self.route.read_only,
        }
    }

    /// Who may serve a connection now, best first. `turn` spreads read-only connections over the replicas.
    pub fn rank_targets(&self, access: Access, turn: usize) -> Vec<Target> {
        let Some(tls) = &self.tls else { return Vec::new() };
        let target = |endpoint: &Endpoint, leads| Target {
            member: Member { endpoint: endpoint.clone(), tls: tls.client.clone() },
            leads,
        };
        let mut targets = Vec::new();
        if access == Access::ReadOnly && !self.route.replicas.is_empty() {
            let replicas = &self.route.replicas;
            let first = turn % replicas.len();
            targets.extend(replicas[first..].iter().chain(&replicas[..first]).map(|replica| target(replica, None)));
        }
        targets.extend(self.route.leader.iter().map(|leader| target(leader, Some(self.route.epoch))));
        targets
    }

    /// Whether a session with this target may go on.
    pub fn still_serves(&self, target: &Target) -> bool {
        match target.leads {
            Some(epoch) => epoch == self.route.epoch && self.route.leader.as_ref() == Some(&target.member.endpoint),
            None => self.route.replicas.contains(&target.member.endpoint),
        }
    }
}

#[cfg(test)]
mod tests;
