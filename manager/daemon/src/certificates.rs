//! Renews clusters' server certificates when nodes have come: each node has a gateway, and the certificate names them all.
//! Runs on the controller.

use crate::backend::server_hosts;
use crate::pki::{self, Pair};
use pgstead_consensus::{Consensus, TokioRuntime};
use pgstead_types::WallTime;
use pgstead_types::record::{ClusterChange, ClusterRecord, ClusterSecrets, Command, Record};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::watch;

const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_secs(5);

pub async fn run(consensus: Consensus<TokioRuntime>, mut stop: watch::Receiver<bool>) {
    loop {
        if consensus.leadership().am_leader {
            let record = consensus.record();
            for cluster in record.clusters.values() {
                renew(&consensus, &record, cluster).await;
            }
        }
        tokio::select! {
            () = crate::server::stopped(&mut stop) => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Hosts that are not named yet. One that has left stays named: that harms nobody, and a renewal would.
fn missing(record: &Record, cluster: &ClusterRecord) -> BTreeSet<String> {
    server_hosts(record).difference(&cluster.secrets.server_hosts).cloned().collect()
}

async fn renew(consensus: &Consensus<TokioRuntime>, record: &Record, cluster: &ClusterRecord) {
    let missing = missing(record, cluster);
    if missing.is_empty() {
        return;
    }
    let held = &cluster.secrets;
    let ca = Pair { cert_pem: held.ca_cert_pem.clone(), key_pem: held.ca_key_pem.clone() };
    let hosts: BTreeSet<String> = held.server_hosts.union(&missing).cloned().collect();
    let server = match pki::make_server(&ca, &cluster.spec.name, &hosts) {
        Ok(server) => server,
        Err(error) => {
            tracing::error!(cluster = %cluster.spec.name, %error, "cannot renew the server certificate");
            return;
        }
    };
    let secrets = ClusterSecrets {
        server_cert_pem: server.cert_pem,
        server_key_pem: server.key_pem,
        server_hosts: hosts,
        ..held.clone()
    };
    let change = ClusterChange::ReplaceSecrets { secrets };
    let command =
        Command::ChangeCluster { at: WallTime::now(), cluster: cluster.id, revision: cluster.revision, change };
    // Refused when the cluster changed meanwhile; the next look tries again.
    if let Err(error) = consensus.propose(command, PROPOSE_TIMEOUT).await {
        tracing::info!(cluster = %cluster.spec.name, %error, "the server certificate is not renewed yet");
    }
}
