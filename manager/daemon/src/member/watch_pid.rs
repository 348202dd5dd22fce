//! Learns of a process's end at once. A standby's WAL receiver ends when its upstream's sockets close, and that is the
//! earliest word of a dead leader that its standbys have.

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Returns when the process is gone; never, when there is none to watch.
pub async fn ended(pid: Option<i32>) {
    let Some(pid) = pid.and_then(Pid::from_raw) else { return std::future::pending().await };
    // The process is gone already when the descriptor cannot be had.
    let Ok(descriptor) = pidfd_open(pid, PidfdFlags::NONBLOCK) else { return };
    #[expect(
        deprecated,
        reason = "its replacement is unsafe for other types; an owned descriptor stays open and the same"
    )]
    let watched = AsyncFd::with_interest(descriptor, Interest::READABLE);
    match watched {
        Ok(watched) => drop(watched.readable().await),
        Err(_) => std::future::pending().await,
    }
}
