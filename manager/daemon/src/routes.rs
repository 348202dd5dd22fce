//! What this node's gateway must know, derived from the record: the published leader of each confirmed epoch.

use crate::peers::authority;
use pgstead_types::record::{ClusterRecord, Leadership, Lifecycle, MemberRecord, NodeRecord, Record};
use pgstead_types::routes::{ClusterRoute, Endpoint, Routes};

/// The structure's version; see `Routes`.
const VERSION: u32 = 1;

/// The routes for a gateway on `here`.
pub fn routes(record: &Record, here: &NodeRecord) -> Routes {
    let clusters = record.clusters.values().filter(|cluster| cluster.lifecycle == Lifecycle::Active);
    Routes {
        version: VERSION,
        revision: record.revision,
        clusters: clusters.map(|cluster| route(record, cluster, here)).collect(),
    }
}

fn route(record: &Record, cluster: &ClusterRecord, here: &NodeRecord) -> ClusterRoute {
    let leader = published(cluster).and_then(|member| endpoint(record, cluster, member));
    // Members of the sync set follow the leader closely; others may be catching up or being made.
    let config = cluster.config();
    let replicas = cluster
        .members
        .values()
        .filter(|_| cluster.aside.is_none())
        .filter(|member| {
            // In an asynchronous cluster nobody is counted, and everyone but the leader may be read from.
            config.is_some_and(|config| match config.asynchronous {
                true => config.leader.member != member.id,
                false => config.sync_set.members.contains(&member.current()),
            })
        })
        .filter_map(|member| endpoint(record, cluster, member))
        .collect();
    ClusterRoute {
        cluster: cluster.id,
        name: cluster.spec.name.clone(),
        epoch: cluster.epoch,
        read_write: authority(&here.host, cluster.ports.read_write),
        read_only: authority(&here.host, cluster.ports.read_only),
        leader,
        replicas,
        certificate_pem: cluster.secrets.server_cert_pem.clone(),
        key_pem: cluster.secrets.server_key_pem.clone(),
        ca_pem: cluster.secrets.ca_cert_pem.clone(),
    }
}

/// The leader that clients may reach: of a confirmed epoch, not about to hand over, and not kept aside.
fn published(cluster: &ClusterRecord) -> Option<&MemberRecord> {
    let Leadership::Confirmed { leader } = cluster.leadership else { return None };
    let draining =
        cluster.switchover.as_ref().is_some_and(|switchover| switchover.draining && switchover.from == leader);
    cluster.members.get(&leader).filter(|_| !draining && cluster.aside.is_none())
}

fn endpoint(record: &Record, cluster: &ClusterRecord, member: &MemberRecord) -> Option<Endpoint> {
    let node = record.nodes.get(&member.node)?;
    Some(Endpoint { member: member.id, host: node.host.clone(), port: cluster.ports.postgres })
}
