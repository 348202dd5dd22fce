//! The one place where this crate starts other processes: this binary's own guard and gateway go by the path of the
//! running daemon, so that all three are of one version when they start.

use crate::config::GatewayConfig;
use crate::files::Layout;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The path of this binary. After an upgrade in place the kernel marks the old one as deleted; the new one is at the
/// same path.
pub fn own_binary() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let text = path.to_string_lossy();
    Ok(match text.strip_suffix(" (deleted)") {
        Some(replaced) => PathBuf::from(replaced),
        None => path,
    })
}

/// Starts the node's gateway so that it outlives the daemon: through a short-lived parent, in a session of its own.
#[expect(clippy::disallowed_methods, reason = "the command module of this crate")]
pub fn spawn_gateway(layout: &Layout, config: &GatewayConfig) -> io::Result<()> {
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(layout.gateway().join("gateway.log"))?;
    let mut child = Command::new(own_binary()?)
        .arg("gateway")
        .arg("--detach")
        .arg("--routes-socket")
        .arg(layout.routes_socket())
        .arg("--state-dir")
        .arg(layout.gateway())
        .arg("--hold-ms")
        .arg(config.hold_ms.to_string())
        .arg("--connections-max")
        .arg(config.connections_max.to_string())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    // The parent ends as soon as it has started the gateway proper, so this does not wait for long.
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("it ended with {status}"))) }
}

/// What `--detach` does: start the same again without it, in a new session, and leave.
#[expect(clippy::disallowed_methods, reason = "the command module of this crate")]
pub fn detach(arguments: impl Iterator<Item = std::ffi::OsString>) -> io::Result<u32> {
    // The child inherits the session that is made here.
    rustix::process::setsid()?;
    let child = Command::new(own_binary()?).args(arguments).stdin(Stdio::null()).spawn()?;
    Ok(child.id())
}

/// The major version of the Postgres in a folder of programs, by its own word.
#[expect(clippy::disallowed_methods, reason = "the command module of this crate")]
pub fn postgres_major(bin: &std::path::Path) -> Result<u16, String> {
    let program = bin.join("postgres");
    let output = Command::new(&program).arg("--version").output();
    let output = output.map_err(|error| format!("cannot run {}: {error}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().find_map(|word| word.split('.').next()?.parse().ok());
    version.ok_or_else(|| format!("{} --version says {text:?}, which names no version", program.display()))
}
