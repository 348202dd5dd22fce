//! Starts a task for each member that the record places on this node, and what all of them share.

use super::growth::{Grower, Growth};
use super::notes::Notes;
use super::observe::Observer;
use super::slots::SlotWatch;
use super::{MemberTask, setup};
use crate::config::NodeConfig;
use crate::files::Layout;
use crate::instances::Instances;
use crate::io_limits::{Groups, Limiter};
use crate::lease::{Asks, Keeper, Leases, Refusing};
use crate::peers::Peers;
use crate::report::Reports;
use crate::storage::Pools;
use anyhow::Context as _;
use pgstead_consensus::{Consensus, TokioRuntime};
use pgstead_replication::{Instance, RunAs};
use pgstead_types::record::{ClusterRecord, MemberRecord, Record};
use pgstead_types::{DeploymentId, MemberId, NodeId, Tick};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A member whose task could not be started is tried again after this.
const RETRY: Duration = Duration::from_secs(2);

/// A volume gets so long to be there before its member's task begins without it.
pub const OPEN_PATIENCE: Duration = Duration::from_secs(3);

/// What every member's task needs of its node.
pub struct NodeContext {
    pub config: NodeConfig,
    pub layout: Layout,
    pub deployment: DeploymentId,
    pub consensus: Consensus<TokioRuntime>,
    /// Where their volumes are.
    pub storage: Pools,
    /// Folders of programs by major version.
    pub postgres: BTreeMap<u16, PathBuf>,
    /// `None` for the daemon's own user.
    pub run_as: Option<RunAs>,
    /// Of members' control groups.
    pub groups: Groups,
    pub instances: Instances,
    /// This binary.
    pub binary: PathBuf,
    /// Random per start of the daemon.
    pub session: u64,
    pub peers: Peers,
    pub leases: Leases,
    pub asks: Asks,
}

/// Runs until `stop`. Guards and Postgres go on without it.
pub async fn supervise(context: Arc<NodeContext>, reports: Reports, mut stop: watch::Receiver<bool>) {
    let mut tasks: BTreeMap<MemberId, JoinHandle<()>> = BTreeMap::new();
    let mut record = context.consensus.watch_record();
    let node = context.consensus.node();
    loop {
        let now = record.get();
        tasks.retain(|_, task| !task.is_finished());
        let mut all_started = true;
        sweep(&context.groups, &now, node).await;
        for (cluster, member) in now.held_on(node) {
            if tasks.contains_key(&member.id) {
                continue;
            }
            match task(&context, &reports, cluster, member).await {
                Ok(task) => {
                    let keeper = Keeper {
                        cluster: cluster.id,
                        member: member.id,
                        consensus: context.consensus.clone(),
                        instance: task.instance.clone(),
                        reports: reports.clone(),
                        peers: context.peers.clone(),
                        leases: context.leases.clone(),
                    };
                    tokio::spawn(keeper.run(stop.clone()));
                    let grower = Grower {
                        cluster: cluster.id,
                        member: member.id,
                        consensus: context.consensus.clone(),
                        storage: context.storage.clone(),
                        growth: task.growth.clone(),
                    };
                    tokio::spawn(grower.run(stop.clone()));
                    tasks.insert(member.id, tokio::spawn(task.run(stop.clone())));
                }
                Err(error) => {
                    all_started = false;
                    tracing::error!(cluster = %cluster.spec.name, member = %member.name, "cannot take care of it: {error:#}");
                }
            }
        }
        let retry = if all_started { Duration::from_secs(3600) } else { RETRY };
        let revision = now.revision;
        tokio::select! {
            () = crate::server::stopped(&mut stop) => return,
            changed = record.wait_until(|next| next.revision != revision) => if changed.is_err() { return },
            () = tokio::time::sleep(retry) => {}
        }
    }
}

/// Groups of members that are gone.
async fn sweep(groups: &Groups, record: &Record, node: NodeId) {
    let (groups, known) = (groups.clone(), record.held_on(node).map(|(_, member)| member.id).collect());
    // Files of the kernel's: there is nothing to go wrong that somebody could mend.
    let _ = tokio::task::spawn_blocking(move || groups.sweep(&known)).await;
}

async fn task(
    context: &Arc<NodeContext>,
    reports: &Reports,
    cluster: &ClusterRecord,
    member: &MemberRecord,
) -> anyhow::Result<MemberTask> {
    // A check after a crash may take long, and goes on by itself; the member's own task looks again. Nobody else waits for it.
    let volume = match tokio::time::timeout(OPEN_PATIENCE, context.storage.open(member.volume)).await {
        Ok(opened) => opened.context("cannot look for its volume")?,
        Err(_) => None,
    };
    let growth = Growth::default();
    let (path, size) = volume.as_ref().map(|volume| (&*volume.path, volume.size)).unzip();
    growth.opened(path, size.flatten().filter(|_| context.storage.limits_size(member.volume)));
    let volume = volume.map(|volume| volume.path);
    let config = setup::instance_config(context, cluster, member, volume.as_deref())?;
    let instance = Arc::new(Instance::open(config).await.context("cannot open its Postgres")?);
    context.instances.put(member.id, instance.clone());
    let notes = Notes::open(&context.layout.members(), member.id).context("cannot read the notes about it")?;
    let slots = SlotWatch::found(&notes);
    Ok(MemberTask {
        cluster: cluster.id,
        member: member.id,
        context: context.clone(),
        instance,
        volume,
        unseen: None,
        growth,
        limiter: Limiter::new(member.id, context.groups.clone()),
        observer: Observer::new(member.id, context.session),
        reports: reports.clone(),
        pace: super::pace::Pace::default(),
        reload_after: None,
        watch: Default::default(),
        slots,
        asks: context.asks.of(member.id),
        refusing: Refusing::found(&notes, Tick::now()),
        notes,
    })
}
