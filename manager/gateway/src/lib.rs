//! The Postgres connection proxy of a node, a process of its own. Clients connect to a cluster's address; the gateway
//! ends TLS, finds the right member, relays the session and cuts it when the leader changes. It knows only what the
//! daemon pushes to it (`pgstead_types::routes`) and serves on without the daemon.
//!
//! Start reading at `session`. What it promises to clients: `docs/gateway.md`.

mod admission;
mod cancel;
mod client;
mod commit_watch;
mod frames;
mod gateway;
mod listener;
mod member;
mod opening;
mod options;
mod relay;
mod routes_feed;
mod session;
mod sockets;
mod startup;
mod state_dir;
mod table;
mod tls;
mod window;
mod wire;

pub use gateway::Gateway;
pub use options::GatewayOptions;
pub use state_dir::StateDirError;
pub use table::ROUTES_VERSION_MAX;

use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// A session moves data in one task; two threads keep a second one going beside it, and cost no memory when idle.
const WORKER_THREADS: usize = 2;
/// For name look-ups and for saving the routes.
const BLOCKING_THREADS_MAX: usize = 4;

/// Runs a gateway until SIGTERM or SIGINT. The caller has set up `tracing`.
pub fn gateway_main(options: GatewayOptions) -> ExitCode {
    ensure_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(options)),
        Err(why) => Err(why.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let cause = std::error::Error::source(&why).map(ToString::to_string);
            tracing::error!(%why, cause, "the gateway cannot run");
            eprintln!("pgstead gateway: {why}{}", cause.map(|cause| format!(": {cause}")).unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    #[error("cannot start the runtime or wait for signals")]
    System(#[from] std::io::Error),
}

async fn run(options: GatewayOptions) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let gateway = Gateway::start(options).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(connections = gateway.connections(), "stops");
    tokio::select! {
        () = gateway.shutdown() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Two descriptors per connection: the soft limit of 1024 is a habit from `select(2)`, which nothing here uses.
fn ensure_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(why) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%why, "cannot raise the limit of open files");
    }
}
