//! What a gateway is started with.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of one gateway process. `GatewayOptions::new` gives the usual limits.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// The daemon listens here and pushes `Routes`; the gateway connects, for ever again.
    pub routes_socket: PathBuf,
    /// Holds `routes.json` (the last routes, with keys: mode 0600) and `gateway.lock`.
    pub state_dir: PathBuf,
    /// How long a new connection waits without a member to serve it. Longer than a usual change of leader (about a
    /// second); much longer only hides an outage from clients that could report it.
    pub hold: Duration,
    /// Client connections in all. Each costs about 100 KiB while it moves data.
    pub connections_max: usize,
    /// Client connections of one cluster, so that one busy cluster cannot shut the others out.
    pub connections_per_cluster_max: usize,
    /// For the whole of a client's start-up: first packet, TLS handshake, start-up packet.
    pub startup_deadline: Duration,
    /// How long busy sessions may go on after the order to stop; idle ones end at once.
    pub drain: Duration,
}

impl GatewayOptions {
    pub fn new(routes_socket: impl Into<PathBuf>, state_dir: impl Into<PathBuf>) -> Self {
        Self {
            routes_socket: routes_socket.into(),
            state_dir: state_dir.into(),
            hold: Duration::from_secs(15),
            connections_max: 2000,
            connections_per_cluster_max: 1500,
            startup_deadline: Duration::from_secs(10),
            drain: Duration::from_secs(5),
        }
    }
}
