//! `pgstead node run`: puts the rooms together. The order of starting is that of need: folders, record, port, controller,
//! members, gateway.

use crate::backend::NodeBackend;
use crate::config::{NodeConfig, Pool, PoolConfig, user_named};
use crate::controller;
use crate::files::{self, FolderLock, Layout};
use crate::founding::{self, Founding, NodeIdentity};
use crate::gateway_process::{GatewayFeed, GatewayHealth};
use crate::instances::Instances;
use crate::io_limits::Groups;
use crate::lease::{Asks, Leases};
use crate::member::{NodeContext, supervise};
use crate::moving::Draining;
use crate::peers::Peers;
use crate::raft_transport::RaftTransport;
use crate::report::{Reporter, Reports};
use crate::rollback::Places;
use crate::storage::{self, LateDriver, Pools, Storage};
use crate::succession::Ended;
use crate::{certificates, command, internal, membership, pki, server, succession, tls};
use anyhow::{Context, bail};
use backon::{ExponentialBuilder, Retryable};
use pgstead_consensus::{
    Consensus, Flush, LogPolicy, OpenOptions, ProposeError, RaftAddress, StoreAt, Timing, TokioRuntime,
};
use pgstead_core::Policy;
use pgstead_replication::RunAs;
use pgstead_types::record::{Command, NodeRecord};
use pgstead_types::{NodeId, Tick, WallTime};
use pgstead_volumes::VolumeDriver;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(200);
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// Runs the daemon until it is told to stop. Postgres, guards and the gateway go on after it.
pub async fn run(config: NodeConfig) -> anyhow::Result<()> {
    let layout = Layout::new(&config.data_dir);
    let identity: NodeIdentity = files::read_json(&layout.identity())
        .with_context(|| format!("cannot read {}", layout.identity().display()))?
        .with_context(|| {
            let data_dir = config.data_dir.display();
            format!("{data_dir} is not a node's folder yet; run `pgstead init` on the first host, `pgstead node join` on the others")
        })?;
    layout.ensure().context("cannot make the data folder's parts")?;
    let _lock = lock(&layout, &config).await?;
    let run_as = run_as(&config)?;
    let postgres = postgres(&config)?;
    // Bound before anything is promised to anyone: a taken port ends the start with one sentence.
    let listener = TcpListener::bind((config.host.as_str(), config.port)).await.with_context(|| {
        format!(
            "cannot listen on {}:{}; is another program there, or is the address not this host's?",
            config.host, config.port
        )
    })?;
    let drivers = open_pools(&config, identity.node).await?;

    let peers = Peers::new(tls::client(&identity.ca_pem, &identity.pair())?);
    let consensus = open_consensus(&config, &layout, &identity, peers.clone()).await?;
    let (stopping, stop) = watch::channel(false);
    let (report_ends, closed) = mpsc::unbounded_channel();
    let (raft_ends, raft_closed) = mpsc::unbounded_channel();
    let ends = server::Ends { reports: report_ends, raft: raft_ends };
    let ended = Ended::default();
    tokio::spawn(succession::run(consensus.clone(), raft_closed, ended.clone(), stop.clone()));
    let suspicion = Duration::from_millis(config.timing.suspicion_ms());
    let policy = Policy { suspicion, ..Policy::default() };
    let controller = controller::start(consensus.clone(), policy, closed, ended, stop.clone());

    let instances = Instances::default();
    let (leases, asks) = (Leases::new(), Asks::default());
    let (revision_sender, revision) = watch::channel(0);
    tokio::spawn(publish_revision(consensus.clone(), revision_sender));
    let news = Arc::default();
    let pool = |(of, volumes): (&PoolConfig, Arc<dyn VolumeDriver>)| Storage {
        volumes,
        consensus: consensus.clone(),
        instances: instances.clone(),
        deployment: identity.deployment,
        pool: of.name.clone(),
        class: of.class().to_string(),
        seen: Arc::default(),
        look: Arc::default(),
        news: Arc::clone(&news),
        copies: Arc::default(),
        backups: layout.pool_backups(&of.name),
    };
    let storage = Pools::new(config.pool.iter().zip(drivers).map(pool).collect());
    let backend = NodeBackend {
        consensus: consensus.clone(),
        controller: controller.clone(),
        peers: peers.clone(),
        revision,
        policy,
        instances: instances.clone(),
        storage: storage.clone(),
        draining: Draining::default(),
        places: Places::default(),
    };
    let router = pgstead_api::router(Arc::new(backend.clone())).merge(internal::router(
        consensus.clone(),
        controller.clone(),
        instances.clone(),
        asks.clone(),
        storage.clone(),
    ));
    let tls = tls::server(&identity.ca_pem, &identity.pair())?;
    let serving = tokio::spawn(server::serve(listener, tls, router, ends, stop.clone()));

    found(&config, &layout, &identity, &consensus).await?;
    tokio::spawn(announce(config.clone(), identity.clone(), consensus.clone(), peers.clone(), stop.clone()));
    tokio::spawn(membership::run(consensus.clone(), stop.clone()));
    tokio::spawn(certificates::run(consensus.clone(), stop.clone()));
    tokio::spawn(backend.clone().drain(stop.clone()));
    tokio::spawn(backend.take_places(stop.clone()));

    let reports = Reports::default();
    let gateway = GatewayHealth::default();
    let session =
        u64::from_str_radix(&pki::random_secret().expose()[..16], 16).context("sixteen hexadecimal digits")?;
    let context = NodeContext {
        config: config.clone(),
        layout: layout.clone(),
        deployment: identity.deployment,
        consensus: consensus.clone(),
        storage: storage.clone(),
        postgres,
        run_as,
        groups: Groups::find(config.cgroup.as_deref()),
        instances,
        binary: command::own_binary().context("cannot find this binary's path")?,
        peers: peers.clone(),
        leases: leases.clone(),
        asks,
        session,
    };
    tokio::spawn(storage.clone().run(stop.clone()));
    let members = tokio::spawn(supervise(Arc::new(context), reports.clone(), stop.clone()));
    let reporter = Reporter {
        consensus: consensus.clone(),
        controller,
        peers,
        reports,
        gateway: gateway.clone(),
        storage: storage.clone(),
        heartbeat: config.timing.heartbeat(),
        session,
        leases,
    };
    tokio::spawn(reporter.run(stop.clone()));
    let feed = GatewayFeed {
        layout,
        config: config.gateway,
        node: identity.node,
        consensus: consensus.clone(),
        health: gateway,
    };
    tokio::spawn(feed.run(stop.clone()));

    // A service manager may be waiting; without one this does nothing.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(node = %identity.node, name = %config.name, "the daemon runs on {}:{}", config.host, config.port);
    let outcome = until_told(&consensus).await;
    let _ = stopping.send(true);
    let _ = tokio::time::timeout(Duration::from_secs(5), serving).await;
    let _ = tokio::time::timeout(Duration::from_secs(5), members).await;
    consensus.stop().await;
    tracing::info!("the daemon has stopped; its Postgres, guards and gateway go on");
    outcome
}

/// A daemon that was just killed may take a moment to be gone.
async fn lock(layout: &Layout, config: &NodeConfig) -> anyhow::Result<FolderLock> {
    let begun = Tick::now();
    loop {
        if let Some(lock) = FolderLock::take(&layout.lock()).context("cannot lock the data folder")? {
            return Ok(lock);
        }
        if Tick::now().since(begun) > LOCK_PATIENCE {
            bail!("another daemon runs on {}; stop it first", config.data_dir.display());
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn until_told(consensus: &Consensus<TokioRuntime>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        // A full disk, or a log written by a newer version: going on would only pretend.
        why = consensus.stopped() => bail!("this node cannot take part in the record any more: {why}"),
    }
}

fn run_as(config: &NodeConfig) -> anyhow::Result<Option<RunAs>> {
    let Some(name) = config.run_as.as_deref().filter(|_| rustix::process::geteuid().is_root()) else { return Ok(None) };
    let user = user_named(name)
        .with_context(|| format!("run_as names the user {name:?}, who is not on this host; create it"))?;
    Ok(Some(RunAs { uid: user.uid, gid: user.gid }))
}

fn postgres(config: &NodeConfig) -> anyhow::Result<BTreeMap<u16, PathBuf>> {
    let mut found = BTreeMap::new();
    for bin in &config.postgres_bin {
        let major = command::postgres_major(bin)
            .map_err(anyhow::Error::msg)
            .context("postgres_bin names no usable Postgres")?;
        found.insert(major, bin.clone());
    }
    Ok(found)
}

/// In the order of the configuration. One that cannot be used keeps nobody from the others.
async fn open_pools(config: &NodeConfig, node: NodeId) -> anyhow::Result<Vec<Arc<dyn VolumeDriver>>> {
    let (mut drivers, mut failed): (Vec<Arc<dyn VolumeDriver>>, Vec<anyhow::Error>) = (Vec::new(), Vec::new());
    for of in &config.pool {
        let mut pool = of.pool(&config.data_dir).map_err(anyhow::Error::msg)?;
        if let Pool::Lvm(lvm) = &mut pool {
            lvm.node = Some(node);
        }
        match storage::open(&pool).await {
            Ok(driver) => drivers.push(driver),
            Err(error) => {
                tracing::error!(pool = %of.name, "the pool cannot be used, and is tried again: {error:#}");
                drivers.push(Arc::new(LateDriver::new(&of.name, pool, format!("{error:#}"))));
                failed.push(error.context(format!("cannot use pool {}", of.name)));
            }
        }
    }
    match failed.len() == drivers.len() {
        true => Err(failed.into_iter().next().context("the configuration has no pool")?),
        false => Ok(drivers),
    }
}

async fn open_consensus(
    config: &NodeConfig,
    layout: &Layout,
    identity: &NodeIdentity,
    peers: Peers,
) -> anyhow::Result<Consensus<TokioRuntime>> {
    let file = layout.record().join("record.redb");
    if layout.record_made().exists() && !file.exists() {
        bail!(
            "{} was there and is gone. A voter that has forgotten its votes could elect two leaders, so this node cannot \
             come back under its identity: let it join as a new node, with an empty data_dir",
            file.display()
        );
    }
    let options = OpenOptions {
        node: identity.node,
        deployment: identity.deployment,
        store: StoreAt::File(file),
        flush: Flush::WriterThread,
        transport: Arc::new(RaftTransport { peers }),
        timing: Timing {
            heartbeat: Duration::from_millis(config.timing.raft_heartbeat_ms),
            election_min: Duration::from_millis(config.timing.raft_election_ms_min),
            election_max: Duration::from_millis(config.timing.raft_election_ms_max),
        },
        log: LogPolicy::default(),
    };
    let consensus = Consensus::open(options).await.context("cannot open the record")?;
    files::write_durably(&layout.record_made(), b"").context("cannot note that the record was made")?;
    Ok(consensus)
}

/// The first node of a deployment founds the record at its first start. Cut short, it goes on at the next.
async fn found(
    config: &NodeConfig,
    layout: &Layout,
    identity: &NodeIdentity,
    consensus: &Consensus<TokioRuntime>,
) -> anyhow::Result<()> {
    let Some(founding): Option<Founding> = files::read_json(&layout.founding()).context("cannot read the founding")?
    else {
        return Ok(());
    };
    let address = RaftAddress { host: config.host.clone(), port: config.port };
    // Done already when an earlier start was cut short after it.
    let _ = consensus.initialize(address).await;
    let at = WallTime::now();
    let node = founding::describe(config, identity.node, at)?;
    let command = Command::Found { at, deployment: founding.deployment, node };
    // It is being elected, which takes a moment.
    let patience =
        ExponentialBuilder::new().with_min_delay(RETRY).with_max_delay(Duration::from_secs(2)).without_max_times();
    let propose = || async {
        match consensus.record().deployment {
            Some(_) => Ok(()),
            None => consensus.propose(command.clone(), PROPOSE_TIMEOUT).await.map(|_| ()),
        }
    };
    propose
        .retry(patience)
        .when(|error| !matches!(error, ProposeError::Stopped { .. }))
        .await
        .context("cannot found the deployment")?;
    // The CA's key is in the record from here on.
    std::fs::remove_file(layout.founding()).context("cannot remove the founding's file")
}

/// Tells the record when this node's name, address or Postgres versions have changed.
async fn announce(
    config: NodeConfig,
    identity: NodeIdentity,
    consensus: Consensus<TokioRuntime>,
    peers: Peers,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        if let Some(held) = consensus.record().nodes.get(&identity.node) {
            match founding::describe(&config, identity.node, held.joined_at) {
                // What a person has said of it the node does not know.
                Ok(now) if *held == (NodeRecord { service: held.service, ..now.clone() }) => return,
                Ok(now) => {
                    if let Err(error) = tell(&consensus, &peers, now).await {
                        tracing::warn!("the record does not know yet where this node is: {error:#}");
                    }
                }
                Err(error) => tracing::error!("cannot describe this node: {error:#}"),
            }
        }
        tokio::select! {
            () = server::stopped(&mut stop) => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

async fn tell(consensus: &Consensus<TokioRuntime>, peers: &Peers, node: NodeRecord) -> anyhow::Result<()> {
    let leadership = consensus.leadership();
    if leadership.am_leader {
        consensus.propose(Command::UpdateNode { at: WallTime::now(), node }, PROPOSE_TIMEOUT).await??;
        return Ok(());
    }
    let leader = leadership.leader.context("there is no controller now")?;
    let record = consensus.record();
    let at = record.nodes.get(&leader).context("the controller is not in the record yet")?;
    let to = crate::peers::PeerAddress { node: leader, host: at.host.clone(), port: at.port };
    let answer = peers
        .post_json(&to, crate::peers::Lane::Api, "/internal/node", serde_json::to_vec(&node)?, PROPOSE_TIMEOUT)
        .await?;
    if !answer.status().is_success() {
        bail!("the controller answered {}: {}", answer.status(), String::from_utf8_lossy(answer.body()));
    }
    Ok(())
}

async fn publish_revision(consensus: Consensus<TokioRuntime>, revision: watch::Sender<u64>) {
    let mut record = consensus.watch_record();
    loop {
        let _ = revision.send(record.get().revision);
        if record.changed().await.is_err() {
            return;
        }
    }
}
