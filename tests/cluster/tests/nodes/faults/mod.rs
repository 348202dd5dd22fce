//! Faults with every kind of client watching: rows and lists are written through every gateway and straight to the members,
//! and a client beside the primary goes on writing there whatever happens to the primary. In a lab, where each node has its
//! own user, its own address and, if wanted, its own disk.

mod cuts;
mod deaths;
mod disk;
mod moments;
mod versions;

pub(crate) use versions::newer_postgres;

use crate::support::{Bed, LATER, LOAD, SOON, session};
use anyhow::{Context, bail, ensure};
use pgstead_api::view::{ClusterView, Phase};
use pgstead_cluster_tests::{Appends, History, Lab, Setup, Target, Testbed, Writers, check};
use pgstead_types::Tick;
use pgstead_types::spec::ClusterSpec;
use std::collections::BTreeMap;
use std::time::Duration;

/// Whether the long form is asked for (`make drill`).
fn is_drill() -> bool {
    std::env::var_os("PGSTEAD_DRILL").is_some()
}

/// For a client to be acknowledged something, until it is looked whether its primary leads at all.
const PATIENCE_BESIDE: Duration = Duration::from_secs(20);

/// How often a course of faults is gone through.
fn rounds() -> usize {
    if is_drill() { 5 } else { 1 }
}

/// The testbed of a test in a lab.
#[derive(Default)]
struct Course {
    setup: Setup,
    /// Of cluster `app`.
    settings: BTreeMap<String, String>,
    logical_replication: bool,
    /// Raft's leader is moved to a node that leads no cluster. Where every node leads one it stays where it is, so that a
    /// test can say what falls together.
    every_node_leads: bool,
}

/// Runs a test on a testbed of its own in a lab, with cluster `app` of three members on it. CI must be able to; elsewhere
/// a machine without what it takes says so and goes on.
fn in_lab(course: Course, test: impl AsyncFnOnce(&mut Bed) -> anyhow::Result<()> + Send) -> anyhow::Result<()> {
    if let Some(why) = Lab::missing() {
        ensure!(std::env::var_os("CI").is_none(), "in CI this test must run: {why}");
        eprintln!("NOT RUN: {why}");
        return Ok(());
    }
    let Course { setup, settings, logical_replication, every_node_leads } = course;
    // The lab is for a thread and those that it starts, so the runtime is made in there.
    let run = || {
        let lab = Lab::enter(3)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async {
            let mut bed = Bed::start_with(Setup { nodes: 3, lab: Some(lab), ..setup }).await?;
            if every_node_leads {
                // Each goes where the fewest lead.
                for name in ["one", "two", "three"] {
                    bed.create_cluster(&ClusterSpec { members: 1, ..ClusterSpec::named(name) }).await?;
                }
            }
            bed.create_cluster(&ClusterSpec { settings, logical_replication, ..ClusterSpec::named("app") }).await?;
            test(&mut bed).await
        })
    };
    std::thread::scope(|scope| match scope.spawn(run).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Everybody who writes.
struct Clients {
    rows: Writers,
    /// Through the gateway of each node, and no other.
    through: BTreeMap<usize, Appends>,
    /// To whichever member says that it may be written to.
    direct: Appends,
    /// What clients saw that have ended.
    ended: History,
}

/// A client that connects to one member and nowhere else: it is on the side of the primary when that is cut off.
struct Beside {
    node: usize,
    host: String,
    appends: Appends,
    /// From here on nobody should acknowledge anything to it.
    since: Tick,
    tried: usize,
    /// The timeline of whoever led next, while this one was alone.
    newer: Option<u32>,
}

impl Clients {
    async fn start(bed: &Bed) -> anyhow::Result<Self> {
        let target = bed.read_write("app").await?;
        session(&target).await?;
        Appends::prepare(&target).await?;
        let rows = Writers::start(&target, LOAD).await?;
        let view = bed.connection("app").await?;
        let mut through = BTreeMap::new();
        for node in bed.nodes() {
            let target = Target::under_name(&view, &node.host, node.host.parse()?, view.read_write.port)?;
            through.insert(node.number, Appends::start([target]));
        }
        let direct = bed.direct("app").await?;
        let direct = Appends::start([direct.beginning_with(0), direct.beginning_with(1)]);
        let clients = Self { rows, through, direct, ended: History::default() };
        clients.all_write_through(bed, &[1, 2, 3], Tick::now()).await?;
        Ok(clients)
    }

    /// Waits until the clients of these gateways are acknowledged appends.
    async fn all_write_through(&self, bed: &Bed, nodes: &[usize], since: Tick) -> anyhow::Result<()> {
        for node in nodes {
            if let Err(why) = self.through[node].all_append_again(since, LATER).await {
                bail!("through the gateway of node {node}: {why}\n{}", bed.describe().await);
            }
        }
        Ok(())
    }

    /// Begins a client at the primary on `node` alone.
    async fn beside(bed: &Bed, node: usize) -> anyhow::Result<Beside> {
        let view = bed.connection("app").await?;
        let host = bed.node(node).host.clone();
        let target = Target::under_name(&view, &host, host.parse()?, view.direct.port)?;
        let appends = Appends::start([target]);
        let acknowledged = async || {
            let Err(why) = appends.all_append_again(Tick::now(), PATIENCE_BESIDE).await else { return Ok(()) };
            // It may have stopped leading since that was arranged.
            lead_from(bed, node).await.map_err(|error| format!("{error:#}"))?;
            Err(format!("{why:#}"))
        };
        bed.wait_for("the client beside the primary appends", LATER, acknowledged).await?;
        Ok(Beside { node, host, appends, since: Tick::now(), tried: 0, newer: None })
    }

    /// All clients write again, the cluster is whole, and nothing in the whole history is wrong.
    async fn verify(mut self, bed: &Bed) -> anyhow::Result<ClusterView> {
        let now = Tick::now();
        self.all_write_through(bed, &[1, 2, 3], now).await?;
        if let Err(why) = self.direct.all_append_again(now, LATER).await {
            bail!("straight to the members: {why}\n{}", bed.describe().await);
        }
        if let Err(why) = self.rows.all_write_again(now, LATER).await {
            bail!("{why}\n{}", bed.describe().await);
        }
        let view = bed.wait_healthy("app", LATER).await?;
        let mut history = std::mem::take(&mut self.ended);
        for (_, appends) in self.through {
            history.merge(appends.stop().await);
        }
        history.merge(self.direct.stop().await);
        let written = self.rows.stop().await;
        let target = bed.read_write("app").await?;
        let lists = Appends::lists(&target).await?;
        let faults = history.faults(&lists);
        let split = history.split_brain();
        let checked = check(&target, &written.acknowledged).await?;
        let counts = (history.acknowledged_count(), history.looks.len(), checked.acknowledged);
        println!("checked: {} appends and {} rows acknowledged, {} reads", counts.0, counts.2, counts.1);
        if counts.0 == 0 || counts.1 == 0 || counts.2 == 0 {
            bail!("the check has nothing to check: {counts:?}");
        }
        if !faults.is_empty() || !split.is_empty() || !checked.lost.is_empty() {
            bail!(
                "in the lists: {} faults, the first {:?}; split-brain: {split:?}; rows lost: {:?}\n{}",
                faults.len(),
                faults.iter().take(5).collect::<Vec<_>>(),
                checked.lost,
                bed.describe().await
            );
        }
        Ok(view)
    }
}

impl Beside {
    /// From now on its primary must not acknowledge anything.
    fn is_alone_now(&mut self) {
        self.since = Tick::now();
        self.tried = self.appends.tried();
    }

    /// Another leads, as `well` know, while this one is still alone: what it acknowledges in an earlier epoch than that is
    /// wrong. In a later one it may have been elected again.
    async fn is_replaced(&mut self, bed: &Bed, well: &[usize]) -> anyhow::Result<()> {
        let client = bed.client_of_any(well)?;
        let leads = async || {
            let view = client.cluster("app").await.map_err(|error| error.to_string())?;
            match leader_of(bed, &view).filter(|node| *node != self.node) {
                Some(_) if view.phase == Phase::Confirmed => view.timeline.ok_or_else(|| "no timeline".to_string()),
                _ => Err(format!("{:?}: {}", view.phase, view.why)),
            }
        };
        let what = format!("another node than {} leads", self.node);
        self.newer = Some(bed.wait_for(&what, LATER, leads).await?.0);
        Ok(())
    }

    /// It has gone on trying, and was told of no success until now.
    async fn was_told_nothing(self, bed: &Bed, clients: &mut Clients) -> anyhow::Result<()> {
        let until = Tick::now();
        let tries = async || match self.appends.tried() {
            more if more > self.tried => Ok(()),
            _ => Err("it does not try".to_string()),
        };
        // Its last attempt may have been under way for as long as a client waits.
        bed.wait_for("the client beside the primary tries", SOON, tries).await?;
        let history = self.appends.stop().await;
        let newer = self.newer.context("nobody has replaced it")?;
        let told = history.acknowledged_before(newer, &self.host, self.since, until);
        ensure!(told == 0, "the primary on node {} acknowledged {told} appends that it alone had", self.node);
        clients.ended.merge(history);
        Ok(())
    }
}

/// The confirmed leader as those nodes know it, as soon as it is on another node than `old`.
async fn another_leads(bed: &Bed, old: usize, asked: &[usize]) -> anyhow::Result<usize> {
    let client = bed.client_of_any(asked)?;
    let leads = async || {
        let view = client.cluster("app").await.map_err(|error| error.to_string())?;
        match leader_of(bed, &view).filter(|node| *node != old) {
            Some(node) if view.phase == Phase::Confirmed => Ok(node),
            _ => Err(format!("{:?}: {}", view.phase, view.why)),
        }
    };
    bed.wait_for(&format!("another node than {old} leads"), LATER, leads).await
}

/// Lets everything pass again, and waits until nobody is behind what `well` know: a node that was cut off may still say what
/// it knew then.
async fn heal(bed: &Bed, well: &[usize]) -> anyhow::Result<()> {
    bed.lab()?.heal()?;
    all_know(bed, well).await
}

/// Waits until nobody is behind what `well` know now.
async fn all_know(bed: &Bed, well: &[usize]) -> anyhow::Result<()> {
    let epoch = bed.client_of_any(well)?.cluster("app").await?.epoch;
    for node in bed.nodes() {
        let client = bed.client_of_any(&[node.number])?;
        let knows = async || {
            let view = client.cluster("app").await.map_err(|error| error.to_string())?;
            if view.epoch >= epoch { Ok(()) } else { Err(format!("it is at epoch {}", view.epoch)) }
        };
        bed.wait_for(&format!("{} knows of epoch {epoch}", node.name), LATER, knows).await?;
    }
    Ok(())
}

fn leader_of(bed: &Testbed, view: &ClusterView) -> Option<usize> {
    let leader = view.leader.as_ref()?;
    let member = view.members.iter().find(|member| member.id == leader.id)?;
    bed.nodes().iter().find(|node| node.name == member.node.name).map(|node| node.number)
}

/// The node that leads Raft.
async fn raft_leader(bed: &Bed) -> anyhow::Result<usize> {
    let client = bed.client()?;
    let leads = async || {
        let nodes = client.nodes().await.map_err(|error| error.to_string())?;
        let name = nodes.iter().find(|node| node.controller).map(|node| &node.name);
        let node = bed.nodes().iter().find(|node| Some(&node.name) == name);
        node.map(|node| node.number).ok_or_else(|| "nobody does".to_string())
    };
    bed.wait_for("a node leads Raft", SOON, leads).await
}

/// Moves the cluster's leader to a node, if it is elsewhere. Nothing is claimed about the switchover: where something has
/// happened that blocks it, or that another was elected for, it is asked for again.
async fn lead_from(bed: &Bed, node: usize) -> anyhow::Result<()> {
    let name = bed.member_on("app", node).await?.name;
    let leads = async || {
        let view = bed.wait_healthy("app", LATER).await.map_err(|error| format!("{error:#}"))?;
        if leader_of(bed, &view) == Some(node) {
            return Ok(());
        }
        let said = bed.pgstead(&["cluster", "switchover", "app", "--to", &name]).await;
        let said = said.map_err(|error| error.to_string())?;
        Err(format!("the switchover ended with {:?}: {}{}", said.code, said.stdout, said.stderr))
    };
    bed.wait_for(&format!("node {node} leads"), LATER, leads).await
}

/// The leader's node, which leads Raft as well, or, if `together` is false, does not.
async fn leader_and_raft(bed: &Bed, together: Together) -> anyhow::Result<usize> {
    // Raft may change its leader at any moment, so this is arranged once more where it was in vain.
    let arranged = async || {
        let arrange = async {
            let raft = raft_leader(bed).await?;
            let wanted = if together == Together::Yes { raft } else { bed.others(raft)[0] };
            lead_from(bed, wanted).await?;
            anyhow::Ok((wanted, raft_leader(bed).await?))
        };
        match arrange.await {
            Ok((wanted, raft)) if (raft == wanted) == (together == Together::Yes) => Ok(wanted),
            Ok((wanted, raft)) => Err(format!("node {wanted} leads, and node {raft} leads Raft")),
            Err(error) => Err(format!("{error:#}")),
        }
    };
    bed.wait_for(&format!("the cluster's leader is with Raft's: {together:?}"), LATER, arranged).await
}

/// Whether the cluster's leader and Raft's are on one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Together {
    Yes,
    No,
}

/// Lets time pass in which a fault lasts; nothing is concluded from its length.
async fn let_it_last(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Leaves the end of a row in the log of the leader that nobody else has and nobody was told of, and kills all three nodes.
async fn end_with_a_row_of_its_own(bed: &mut Bed, leader: usize) -> anyhow::Result<()> {
    let view = bed.connection("app").await?;
    let host = bed.node(leader).host.clone();
    let target = Target::under_name(&view, &host, host.parse()?, view.direct.port)?;
    let session = session(&target).await?;
    session.batch_execute("create table ahead (text text); insert into ahead values ('x')").await?;
    for other in bed.others(leader) {
        bed.kill_node(other)?;
    }
    // Nobody else deletes, so that it is this one that is seen to wait.
    let delete = tokio::spawn(async move { session.execute("delete from ahead", &[]).await });
    let waits = async || {
        let titles: Vec<String> =
            bed.processes(leader).into_iter().filter_map(|one| one.words.into_iter().next()).collect();
        let waits = titles.iter().any(|title| title.contains("DELETE waiting for"));
        if waits { Ok(()) } else { Err(format!("{titles:?}")) }
    };
    bed.wait_for("the deletion is in the leader's log", SOON, waits).await?;
    bed.kill_node(leader)?;
    ensure!(delete.await?.is_err(), "a commit was acknowledged that no standby had");
    Ok(())
}
