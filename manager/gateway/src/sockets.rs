//! Settings of TCP sockets: small messages leave at once, and a peer that vanished is noticed.

use std::time::Duration;
use tokio::net::TcpStream;

/// How a vanished peer is noticed. `silence` is the time after which unacknowledged data ends the connection.
pub struct Liveness {
    idle: Duration,
    interval: Duration,
    probes: u32,
    silence: Duration,
}

/// Clients may sit behind links that break for a while: a minute.
pub const CLIENT: Liveness = Liveness {
    idle: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    probes: 3,
    silence: Duration::from_secs(60),
};
/// Members are servers in known networks, and routes say when they are deposed: 20 s.
pub const MEMBER: Liveness = Liveness {
    idle: Duration::from_secs(10),
    interval: Duration::from_secs(5),
    probes: 2,
    silence: Duration::from_secs(20),
};

/// Fails only when the socket is already gone.
pub fn ensure_alive_checked(stream: &TcpStream, liveness: &Liveness) -> std::io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, liveness.idle)?;
    sockopt::set_tcp_keepintvl(stream, liveness.interval)?;
    sockopt::set_tcp_keepcnt(stream, liveness.probes)?;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(liveness.silence.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}
