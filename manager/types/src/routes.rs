//! What a gateway needs to know, pushed to it whole at each change and kept by it on disk.

use crate::ids::ClusterId;
use crate::position::Epoch;
use crate::secret::Secret;
use serde::{Deserialize, Serialize};

/// All clusters of a node's gateway.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Routes {
    /// Version of this structure; a gateway that meets a newer one keeps what it has and says so.
    pub version: u32,
    /// Revision of the record that this was made from; older ones are ignored.
    pub revision: u64,
    pub clusters: Vec<ClusterRoute>,
}

/// One cluster as seen by clients of this node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterRoute {
    pub cluster: ClusterId,
    pub name: String,
    /// Connections made under an older epoch are cut.
    pub epoch: Epoch,
    /// Addresses to listen on, `host:port`.
    pub read_write: String,
    pub read_only: String,
    /// The published leader: only of a confirmed epoch. New read-write connections wait while it is `None`.
    pub leader: Option<Endpoint>,
    /// Members that stream, for read-only connections; the leader serves them when there is none.
    pub replicas: Vec<Endpoint>,
    pub certificate_pem: String,
    pub key_pem: Secret,
    /// The cluster's own CA, by which the gateway checks members.
    pub ca_pem: String,
}

/// A member's Postgres.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    pub member: crate::ids::MemberId,
    /// Host name or IP address as in the certificate.
    pub host: String,
    pub port: u16,
}
