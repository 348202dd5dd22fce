//! The `pgstead` binary: the daemon of a node, its guard and gateway, and the operator's commands.

mod backend;
mod certificates;
mod command;
mod config;
mod controller;
mod files;
mod forking;
mod founding;
mod gateway_process;
mod granting;
mod instances;
mod internal;
mod io_limits;
mod leader_changes;
mod lease;
mod make_pool;
mod member;
mod membership;
mod metrics;
mod moving;
mod node;
mod peers;
mod pki;
mod placing;
mod raft_transport;
mod recover;
mod report;
mod rollback;
mod rotate_key;
mod round_trips;
mod routes;
mod server;
mod storage;
mod succession;
mod tls;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use pgstead_types::Secret;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Runs Postgres clusters on disks of your own: replicas, failover without losing an acknowledged commit, one
/// connection string.
#[derive(Parser)]
#[command(name = "pgstead", version, after_help = pgstead_cli::EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    global: pgstead_cli::GlobalArgs,
    #[command(subcommand)]
    command: Top,
}

#[derive(Subcommand)]
enum Top {
    /// Make this host the first node of a new deployment: its CA, keys, and the operator's credentials
    Init(ConfigArgs),
    /// The daemon of this host, and the deployment's nodes
    #[command(subcommand)]
    Node(NodeCommand),
    /// Make pools of this host's disks
    #[command(subcommand)]
    Pool(make_pool::PoolCommand),
    /// Parent of one Postgres; started by the daemon
    #[command(hide = true)]
    Guard(GuardArgs),
    /// The connection proxy of a node; started by the daemon
    #[command(hide = true)]
    Gateway(GatewayArgs),
    #[command(flatten)]
    Operator(pgstead_cli::Commands),
}

#[derive(Subcommand)]
enum NodeCommand {
    /// Run this node's daemon in the foreground
    Run(ConfigArgs),
    /// Make this host a node of an existing deployment
    Join {
        #[command(flatten)]
        config: ConfigArgs,
        /// The text that `pgstead token create` printed; `-` reads it from standard input, which keeps it out of `ps`
        #[arg(long, env = "PGSTEAD_JOIN_TOKEN", hide_env_values = true)]
        token: String,
    },
    /// After the permanent loss of most voters: make this survivor go on alone, with its daemon stopped
    RecoverQuorum(recover::RecoverArgs),
    #[command(flatten)]
    Operator(pgstead_cli::NodeCommands),
}

#[derive(Args)]
struct ConfigArgs {
    /// The node's configuration
    #[arg(long, default_value = "/etc/pgstead/node.toml", env = "PGSTEAD_CONFIG")]
    config: PathBuf,
}

#[derive(Args)]
struct GuardArgs {
    #[arg(long)]
    run_dir: PathBuf,
    #[arg(long)]
    data_dir: PathBuf,
}

#[derive(Args)]
struct GatewayArgs {
    #[arg(long)]
    routes_socket: PathBuf,
    #[arg(long)]
    state_dir: PathBuf,
    #[arg(long)]
    hold_ms: u64,
    #[arg(long)]
    connections_max: usize,
    /// Start again in a session of its own and leave
    #[arg(long)]
    detach: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        // Small processes of their own, without a runtime that the daemon would need.
        Top::Guard(args) => return guard(args),
        Top::Gateway(args) => return gateway(args),
        Top::Operator(command) => return pgstead_cli::run(&command, &cli.global),
        Top::Node(NodeCommand::Operator(command)) => return pgstead_cli::run_node(&command, &cli.global),
        Top::Init(args) => init(&args),
        Top::Pool(command) => make_pool::run(command),
        Top::Node(NodeCommand::Run(args)) => run_node(&args),
        Top::Node(NodeCommand::RecoverQuorum(args)) => recover::run(&args),
        Top::Node(NodeCommand::Join { config, token }) => join(&config, token),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pgstead: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn guard(args: GuardArgs) -> ExitCode {
    pgstead_replication::guard_main(pgstead_replication::GuardOptions {
        run_dir: args.run_dir,
        data_dir: args.data_dir,
    })
}

fn gateway(args: GatewayArgs) -> ExitCode {
    if args.detach {
        let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--detach");
        return match command::detach(arguments) {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("pgstead: cannot start the gateway: {error}");
                ExitCode::FAILURE
            }
        };
    }
    tls::install_provider();
    log_to_stderr();
    let mut options = pgstead_gateway::GatewayOptions::new(args.routes_socket, args.state_dir);
    options.hold = Duration::from_millis(args.hold_ms);
    options.connections_max = args.connections_max;
    pgstead_gateway::gateway_main(options)
}

fn init(args: &ConfigArgs) -> anyhow::Result<()> {
    let config = config::NodeConfig::load(&args.config)?;
    let profile = founding::init(&config)?;
    println!("This host is the first node of a new deployment.");
    println!("The operator's credentials are in {} (keep that file secret).", profile.display());
    println!();
    println!("Next: systemctl enable --now pgstead");
    println!("      (or, in the foreground: pgstead node run --config {})", args.config.display());
    println!("Then: export PGSTEAD_PROFILE={}", profile.display());
    println!("      pgstead status");
    Ok(())
}

fn join(args: &ConfigArgs, token: String) -> anyhow::Result<()> {
    let config = config::NodeConfig::load(&args.config)?;
    tls::install_provider();
    let token = match token.as_str() {
        "-" => std::io::read_to_string(std::io::stdin()).context("cannot read the token from standard input")?,
        _ => token,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let node = runtime.block_on(founding::join(&config, &Secret::new(token)))?;
    println!("This host is node {node} ({}) of the deployment.", config.name);
    println!("Next: systemctl enable --now pgstead");
    println!("      (or, in the foreground: pgstead node run --config {})", args.config.display());
    Ok(())
}

fn run_node(args: &ConfigArgs) -> anyhow::Result<()> {
    let config = config::NodeConfig::load(&args.config)?;
    tls::install_provider();
    log_to_stderr();
    // Two threads: one may be busy with TLS or JSON while Raft's heartbeats go out on the other.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(node::run(config))
}

/// INFO and above for our own crates unless `PGSTEAD_LOG` says otherwise; JSON lines when it is not a terminal's.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("PGSTEAD_LOG").unwrap_or_else(|_| EnvFilter::new("info,openraft=warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}
