//! The daemon dies before and after every step that it can take, and what it leaves behind converges.
//!
//! The points are enumerated from the steps themselves: `operations` names for each step what passes through it, without
//! a wildcard, so a step without a kill test does not compile. During an operation every daemon dies once at each of its
//! points and is started again each time; at the end everything must be as if nothing had happened.

use crate::support::{Bed, LATER, LONG_LEASE, SOON};
use anyhow::{Context, bail, ensure};
use pgstead_api::client::ClientError;
use pgstead_api::view::{ClusterView, Health, Phase};
use pgstead_api::{Code, ForkCluster, RollBackBody, SpecChange};
use pgstead_cluster_tests::{Process, Setup, Target, Testbed, until};
use pgstead_types::Step;
use pgstead_types::spec::{Cascade, ClusterSpec};
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// For all deaths of an operation: each is the start of a daemon, and some operations have dozens.
const ALL_DEATHS: Duration = Duration::from_secs(420);

/// What a test does to a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    Creation,
    /// Another node joins, so that the certificates of every cluster are renewed.
    Joining,
    Switchover,
    /// The node of the leader is lost, and comes back.
    Failover,
    /// The node of the leader is lost with a log that nobody else has, and comes back.
    Divergence,
    /// The data of a standby is lost, and the copy that replaces it is cut short.
    CopyCutShort,
    /// One standby begins to feed another.
    Cascading,
    Deletion,
    /// A cluster begins with the data of another one.
    Forking,
    /// A cluster goes back to a snapshot, and what it was is kept aside.
    RollingBack,
    /// The standby that must be chosen for its log has a full disk; gone through in `faults::disk`.
    Fetch,
    /// No node's pool has room left; gone through in `faults::disk`.
    FullPools,
}

/// What passes through a step.
fn operations(step: Step) -> &'static [Operation] {
    use Operation::*;
    match step {
        Step::CreateVolume => &[Creation, Forking],
        Step::InitDatabase => &[Creation],
        Step::AdoptData => &[Forking],
        Step::DiscardPartial => &[CopyCutShort],
        Step::Clone => &[Creation, CopyCutShort],
        Step::Rewind => &[Divergence],
        Step::StartStandby => &[Creation, Failover],
        Step::SavePromise => &[Creation, Failover],
        Step::CutUpstream => &[Failover],
        Step::AnswerPromise => &[Switchover, Failover],
        Step::FetchLog => &[Fetch],
        Step::Fence => &[Deletion],
        Step::PreparePromotion => &[Creation, Switchover, Failover],
        Step::Promote => &[Creation, Switchover, Failover, Forking],
        Step::OpenClients => &[Creation, Failover, Forking],
        Step::UpdateSyncSet => &[Failover, Divergence],
        Step::Follow => &[Creation, Failover],
        Step::Relay => &[Cascading],
        Step::HoldClients => &[Switchover, RollingBack],
        Step::LimitWrites => &[FullPools],
        Step::Checkpoint => &[Switchover],
        Step::StopCleanly => &[Switchover],
        Step::Reload => &[Joining],
        Step::RemoveVolume => &[Deletion],
    }
}

fn points(operation: Operation) -> Vec<String> {
    let steps = Step::ALL.iter().filter(|step| operations(**step).contains(&operation));
    steps.flat_map(|step| [format!("before:{step}"), format!("after:{step}")]).collect()
}

/// The daemons of some nodes, told to die at points and started again whenever they do.
struct Mortals<'a> {
    bed: &'a mut Bed,
    operation: Operation,
    nodes: Vec<usize>,
    points: Vec<String>,
    deaths: usize,
}

impl<'a> Mortals<'a> {
    /// Starts the daemons anew with the points of `operation`, and waits until they have a controller.
    async fn begin(bed: &'a mut Bed, operation: Operation, nodes: &[usize]) -> anyhow::Result<Self> {
        for number in nodes {
            bed.kill_daemon(*number)?;
        }
        let mut mortals = Self::begin_with(bed, operation, nodes)?;
        // Their restart may have led to an election, in which they die already.
        let heard = until(SOON, async || {
            mortals.revive().map_err(|error| format!("{error:#}"))?;
            mortals.bed.are_reachable(nodes.len()).await
        });
        if let Err((passed, seen)) = heard.await {
            bail!("after {passed:?} not all nodes are reachable: {seen}\n{}", mortals.bed.describe().await);
        }
        Ok(mortals)
    }

    /// The same for nodes whose daemons do not run, without waiting.
    fn begin_with(bed: &'a mut Bed, operation: Operation, nodes: &[usize]) -> anyhow::Result<Self> {
        let mut mortals = Self { bed, operation, nodes: Vec::new(), points: points(operation), deaths: 0 };
        nodes.iter().try_for_each(|number| mortals.add(*number))?;
        Ok(mortals)
    }

    /// A node whose daemon does not run.
    fn add(&mut self, number: usize) -> anyhow::Result<()> {
        for path in self.marks(number)? {
            fs::remove_file(path)?;
        }
        self.nodes.push(number);
        self.start(number)
    }

    fn start(&mut self, number: usize) -> anyhow::Result<()> {
        let env = [("PGSTEAD_TEST_ABORT".to_string(), self.points.join(","))];
        self.bed.start_daemon_with(number, &env)
    }

    /// The files in which a node has noted where its daemon died.
    fn marks(&self, number: usize) -> anyhow::Result<Vec<std::path::PathBuf>> {
        let notes = fs::read_dir(self.bed.node(number).data_dir().join("members"))?;
        let all: Vec<_> = notes.collect::<Result<_, _>>()?;
        Ok(all.iter().filter(|entry| mark_of(&entry.path()).is_some()).map(fs::DirEntry::path).collect())
    }

    /// Starts again who has died, until every point was passed somewhere and `settled` says that all is well.
    async fn until_all_died_and(
        mut self,
        mut settled: impl AsyncFnMut(&Testbed) -> Result<(), String>,
    ) -> anyhow::Result<()> {
        let outcome = until(ALL_DEATHS, async || {
            self.revive().map_err(|error| format!("{error:#}"))?;
            let marks = self.all_marks().map_err(|error| format!("{error:#}"))?;
            let missing: Vec<&String> = self.points.iter().filter(|point| !marks.contains(point)).collect();
            let state = settled(self.bed).await;
            let (asked, seen) = (marks.len(), self.deaths);
            match state {
                // No other death than those: a daemon that ended by itself would be a fault of its own.
                Ok(()) if missing.is_empty() && asked == seen => Ok(()),
                // A daemon that starts slowly counts as lost, and the election that follows ends the switchover before its
                // later steps.
                Ok(()) if !missing.is_empty() && self.operation == Operation::Switchover => {
                    let client = self.bed.client().map_err(|error| error.to_string())?;
                    let asked = client.switchover("app", &Default::default(), None).await.map(|_| ());
                    Err(format!("nobody died at {missing:?}; another switchover was asked for: {asked:?}"))
                }
                state => {
                    Err(format!("nobody died at {missing:?}; {asked} deaths asked for, {seen} seen; it is {state:?}"))
                }
            }
        });
        let outcome = outcome.await;
        if let Err((passed, seen)) = outcome {
            bail!("after {passed:?} and {} deaths: {seen}\n{}", self.deaths, self.bed.describe().await);
        }
        for number in &self.nodes {
            self.bed.kill_daemon(*number)?;
            self.bed.start_daemon(*number)?;
        }
        let client = self.bed.client()?;
        let answers = async || client.clusters().await.map(|_| ()).map_err(|error| error.to_string());
        self.bed.wait_for("a node answers", SOON, answers).await
    }

    /// Asks until it is accepted. A daemon that dies may have taken the answer with it, so a conflict means that it was.
    /// Whoever has died is started again meanwhile: those that are left may be too few to answer.
    async fn ask<T>(
        &mut self,
        what: &str,
        mut request: impl AsyncFnMut() -> Result<T, ClientError>,
    ) -> anyhow::Result<()> {
        let asked = until(SOON, async || {
            self.revive().map_err(|error| format!("{error:#}"))?;
            match request().await {
                Ok(_) => Ok(()),
                Err(error) if matches!(error.code(), Some(Code::Exists | Code::Conflict | Code::NotFound)) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        });
        match asked.await {
            Ok(()) => Ok(()),
            Err((passed, seen)) => {
                bail!("waited {passed:?} in vain until {what}: {seen}\n{}", self.bed.describe().await)
            }
        }
    }

    fn revive(&mut self) -> anyhow::Result<()> {
        for number in self.nodes.clone() {
            if !self.bed.daemon_runs(number) {
                self.deaths += 1;
                self.start(number)?;
            }
        }
        Ok(())
    }

    /// Where daemons have died, once per node.
    fn all_marks(&self) -> anyhow::Result<Vec<String>> {
        let mut all = Vec::new();
        for number in &self.nodes {
            all.extend(self.marks(*number)?.iter().filter_map(|path| mark_of(path)));
        }
        Ok(all)
    }
}

fn mark_of(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.strip_prefix("aborted-")?.to_string())
}

/// Whether the cluster leads, streams and counts as its spec says.
async fn well(bed: &Testbed) -> Result<ClusterView, String> {
    let client = bed.client().map_err(|error| error.to_string())?;
    let view = client.cluster("app").await.map_err(|error| error.to_string())?;
    let counting = view.members.iter().filter(|member| member.in_sync_set).count();
    if view.health == Health::Healthy && view.phase == Phase::Confirmed && counting + 1 == view.members.len() {
        return Ok(view);
    }
    Err(format!("{:?}: {}", view.health, view.why))
}

#[test]
fn every_step_is_killed_before_and_after() {
    for step in Step::ALL {
        assert!(!operations(*step).is_empty(), "{step} is passed by no operation");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_comes_to_be_gets_new_certificates_and_goes_though_daemons_die_at_every_step() -> anyhow::Result<()> {
    let config = LONG_LEASE.to_string();
    let mut bed = Bed::found(Setup { nodes: 4, config, ..Setup::default() }, 3).await?;
    let three = [1, 2, 3];

    let mut mortals = Mortals::begin(&mut bed, Operation::Creation, &three).await?;
    let client = mortals.bed.client()?;
    let spec = ClusterSpec::named("app");
    mortals.ask("the creation is accepted", async || client.create_cluster(&spec).await).await?;
    mortals.until_all_died_and(async |bed| well(bed).await.map(|_| ())).await?;
    let writers = bed.writers().await?;

    let mortals = Mortals::begin(&mut bed, Operation::Joining, &three).await?;
    mortals.bed.join(4).await?;
    let fourth = mortals.bed.node(4).host.clone();
    mortals.until_all_died_and(async |bed| every_member_presents(bed, &fourth).await).await?;
    bed.nothing_is_lost(writers).await?;

    let mut mortals = Mortals::begin(&mut bed, Operation::Deletion, &three).await?;
    let client = mortals.bed.client()?;
    mortals.ask("the deletion is accepted", async || client.delete_cluster("app", None).await).await?;
    mortals
        .until_all_died_and(async |bed| match bed.client().map_err(|error| error.to_string())?.clusters().await {
            Ok(clusters) if clusters.is_empty() => nothing_is_left(bed),
            Ok(_) => Err("the cluster is there".to_string()),
            Err(error) => Err(error.to_string()),
        })
        .await
}

/// A certificate that names the host, by connecting to each member under that name.
async fn every_member_presents(bed: &Testbed, host: &str) -> Result<(), String> {
    let view = well(bed).await?;
    let connection = bed.connection("app").await.map_err(|error| error.to_string())?;
    for member in &view.members {
        let node = bed.nodes().iter().find(|node| node.name == member.node.name).ok_or("a member of no node")?;
        let address = node.host.parse().map_err(|error| format!("{error}"))?;
        let target = Target::under_name(&connection, host, address, connection.direct.port);
        let client = target.map_err(|error| error.to_string())?.connect().await;
        client.map_err(|error| format!("{} as {host}: {error}", member.name))?;
    }
    Ok(())
}

/// Volumes, run folders, notes and processes of members.
fn nothing_is_left(bed: &Testbed) -> Result<(), String> {
    for node in bed.nodes() {
        for folder in ["pools/default", "run", "members"] {
            let entries = fs::read_dir(node.data_dir().join(folder)).into_iter().flatten().flatten();
            // Marks of this test, and what a pool keeps of itself.
            let of_members = |path: &Path| mark_of(path).is_none() && !path.to_string_lossy().contains("/.");
            let left: Vec<_> = entries.map(|entry| entry.path()).filter(|path| of_members(path)).collect();
            if !left.is_empty() {
                return Err(format!("{left:?} are left"));
            }
        }
        let left: Vec<String> = bed
            .processes(node.number)
            .iter()
            .filter(|process| !["daemon", "gateway"].contains(&process.role().as_str()))
            .map(ToString::to_string)
            .collect();
        if !left.is_empty() {
            return Err(format!("{left:?} run on {}", node.name));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_and_a_switchover_end_well_though_daemons_die_at_every_step() -> anyhow::Result<()> {
    let mut bed = Bed::with_cluster(3).await?;
    let writers = bed.writers().await?;
    let before = bed.client()?.cluster("app").await?;

    let mut mortals = Mortals::begin(&mut bed, Operation::Switchover, &[1, 2, 3]).await?;
    let client = mortals.bed.client()?;
    mortals
        .ask("the switchover is accepted", async || client.switchover("app", &Default::default(), None).await)
        .await?;
    mortals.until_all_died_and(async |bed| well(bed).await.map(|_| ())).await?;
    let switched = bed.client()?.cluster("app").await?;
    ensure!(switched.epoch > before.epoch, "epoch {} after {}", switched.epoch, before.epoch);

    // Restarted nodes may have led to another epoch: whoever leads now is lost.
    let leader = bed.leader_node("app").await?;
    let others = bed.others(leader);
    let mut mortals = Mortals::begin(&mut bed, Operation::Failover, &others).await?;
    mortals.bed.kill_node(leader)?;
    // It comes back under the same sentence as soon as another leads.
    mortals.until_another_leads(leader).await?;
    mortals.add(leader)?;
    mortals.until_all_died_and(async |bed| well(bed).await.map(|_| ())).await?;
    bed.nothing_is_lost(writers).await?;
    Ok(())
}

impl Mortals<'_> {
    async fn until_another_leads(&mut self, lost: usize) -> anyhow::Result<()> {
        let name = self.bed.node(lost).name.clone();
        let outcome = until(LATER, async || {
            self.revive().map_err(|error| format!("{error:#}"))?;
            let client = self.bed.client().map_err(|error| error.to_string())?;
            let view = client.cluster("app").await.map_err(|error| error.to_string())?;
            let leader = view.leader.as_ref().filter(|_| view.phase == Phase::Confirmed);
            let leads = view.members.iter().find(|member| leader.is_some_and(|leader| leader.id == member.id));
            match leads {
                Some(member) if member.node.name != name => Ok(()),
                _ => Err(view.why),
            }
        });
        let outcome = outcome.await;
        match outcome {
            Ok(()) => Ok(()),
            Err((passed, seen)) => bail!("after {passed:?} nobody else leads: {seen}\n{}", self.bed.describe().await),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_made_anew_though_daemons_die_at_every_step() -> anyhow::Result<()> {
    let mut bed = Bed::with_cluster(3).await?;
    let writers = bed.writers().await?;

    // A deletion that only the leader has on disk, and that nobody was told of.
    let leader = bed.leader_node("app").await?;
    let others = bed.others(leader);
    let session = crate::support::session(&bed.direct("app").await?).await?;
    session.batch_execute("create table ahead (text text); insert into ahead values ('x')").await?;
    bed.wait_healthy("app", LATER).await?;
    for other in &others {
        bed.kill_node(*other)?;
    }
    // Nobody else deletes, so that it is this one that is seen to wait.
    let delete = tokio::spawn(async move { session.execute("delete from ahead", &[]).await });
    bed.wait_for("the leader's log has grown", SOON, async || waits_for_standbys(&bed, leader)).await?;
    bed.kill_node(leader)?;
    ensure!(delete.await?.is_err(), "a commit was acknowledged that no standby had");
    let mut mortals = Mortals::begin_with(&mut bed, Operation::Divergence, &others)?;
    mortals.until_another_leads(leader).await?;
    mortals.add(leader)?;
    mortals.until_all_died_and(async |bed| well(bed).await.map(|_| ())).await?;

    // The data of a standby is lost, and everything on its node dies in the midst of the copy.
    bed.wait_healthy("app", LATER).await?;
    let leader = bed.leader_node("app").await?;
    let standby = bed.others(leader)[0];
    bed.kill_node(standby)?;
    let pool = bed.node(standby).data_dir().join("pools/default");
    for volume in fs::read_dir(&pool)?.flatten().map(|entry| entry.path()) {
        fs::remove_dir_all(volume.join("data/pgdata"))?;
    }
    // As far as the copy: before it the standby leaves the set, for which the leader stops and starts.
    let at_the_copy = ("PGSTEAD_TEST_ABORT".to_string(), format!("before:{}", Step::Clone));
    bed.start_daemon_with(standby, &[at_the_copy])?;
    let ended = until(LATER, async || if bed.daemon_runs(standby) { Err("it runs".to_string()) } else { Ok(()) });
    if let Err((passed, seen)) = ended.await {
        bail!("after {passed:?} no copy was about to begin: {seen}\n{}", bed.describe().await);
    }
    // A copy begins with a checkpoint of its source, so it cannot end before its node does.
    let leader = bed.leader_node("app").await?;
    let checkpointer = bed.processes(leader).into_iter().find(|process| process.role() == "checkpointer");
    let checkpointer = checkpointer.with_context(|| format!("node {leader} leads without a checkpointer"))?;
    ensure!(checkpointer.signal(Signal::STOP), "{checkpointer} had ended before");
    bed.start_daemon(standby)?;
    copy_begins(&bed, standby).await?;
    bed.kill_node(standby)?;
    if !checkpointer.signal(Signal::CONT) {
        bail!("{checkpointer} ended while it was stopped\n{}", bed.describe().await);
    }
    let mortals = Mortals::begin_with(&mut bed, Operation::CopyCutShort, &[standby])?;
    mortals.until_all_died_and(async |bed| well(bed).await.map(|_| ())).await?;
    bed.nothing_is_lost(writers).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_standby_comes_to_feed_another_though_daemons_die_at_every_step() -> anyhow::Result<()> {
    let mut bed = crate::cascade::bed(Cascade::None).await?;
    let writers = bed.writers().await?;
    let mut mortals = Mortals::begin(&mut bed, Operation::Cascading, &[1, 2, 3, 4]).await?;
    let client = mortals.bed.client()?;
    let change = SpecChange { cascade: Some(Cascade::Zone), ..SpecChange::default() };
    mortals.ask("the change is accepted", async || client.update_cluster("app", &change, None).await).await?;
    let is_fed = async |bed: &Testbed| {
        let client = bed.client().map_err(|error| error.to_string())?;
        let view = client.cluster("app").await.map_err(|error| error.to_string())?;
        let is_fed = crate::cascade::fed(&view).is_some() && view.health == Health::Healthy;
        if is_fed { Ok(()) } else { Err(format!("{:?}: {}", view.health, view.why)) }
    };
    mortals.until_all_died_and(is_fed).await?;
    bed.nothing_is_lost(writers).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_is_made_though_daemons_die_at_every_step() -> anyhow::Result<()> {
    let config = LONG_LEASE.to_string();
    let mut bed = Bed::start_with(Setup { nodes: 2, config, ..Setup::default() }).await?;
    bed.create_cluster(&ClusterSpec { members: 1, ..ClusterSpec::named("source") }).await?;
    let owner = crate::support::session(&bed.read_write("source").await?).await?;
    owner.batch_execute("CREATE TABLE kept AS SELECT generate_series(1, 100) AS id").await?;
    let mut mortals = Mortals::begin(&mut bed, Operation::Forking, &[1, 2]).await?;
    let client = mortals.bed.client()?;
    let fork = ForkCluster { name: "app".into(), members: Some(2), ..ForkCluster::default() };
    // The first steps may be passed before the answer is there, and the leader may be restarting.
    mortals
        .ask("the fork is accepted", async || match client.fork_cluster("source", &fork).await {
            Err(error) if error.code() == Some(Code::Conflict) => match client.cluster("app").await {
                Ok(_) => Ok(()),
                Err(_) => Err(error),
            },
            asked => asked.map(|_| ()),
        })
        .await?;
    mortals.until_all_died_and(async |bed| well(bed).await.map(|_| ())).await?;
    let inside = crate::support::session(&bed.read_write("app").await?).await?;
    let rows: i64 = inside.query_one("SELECT count(*) FROM kept", &[]).await?.get(0);
    ensure!(rows == 100, "{rows} rows");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_goes_back_though_every_daemon_dies_when_it_lets_go_of_clients() -> anyhow::Result<()> {
    let config = LONG_LEASE.to_string();
    let mut bed = Bed::start_with(Setup { nodes: 2, config, ..Setup::default() }).await?;
    bed.create_cluster(&ClusterSpec { members: 2, ..ClusterSpec::named("app") }).await?;
    let app = bed.read_write("app").await?;
    let owner = crate::support::session(&app).await?;
    owner.batch_execute("CREATE TABLE kept AS SELECT generate_series(1, 100) AS id").await?;
    let id = crate::rollback::snapshot(&bed, "app").await?;
    owner.batch_execute("DELETE FROM kept").await?;
    let mut mortals = Mortals::begin(&mut bed, Operation::RollingBack, &[1, 2]).await?;
    let client = mortals.bed.client()?;
    let body = RollBackBody { snapshot: Some(id), ..RollBackBody::default() };
    // A new controller may not have heard of the snapshot yet; and an earlier request may have been taken whose answer is lost.
    let recorded = until(SOON, async || {
        mortals.revive().map_err(|error| format!("{error:#}"))?;
        let asked = client.roll_back("app", &body).await;
        let all = client.clusters().await.map_err(|error| error.to_string())?;
        match all.iter().any(|cluster| cluster.name == "app-rollback") {
            true => Ok(()),
            false => Err(format!("it is not there: {:?}", asked.map(|accepted| accepted.operation))),
        }
    });
    if let Err((passed, seen)) = recorded.await {
        bail!("after {passed:?} the rollback is not recorded: {seen}\n{}", mortals.bed.describe().await);
    }
    let taken = async |bed: &Testbed| {
        let view = well(bed).await?;
        if view.forked.is_some() && view.takes_place_of.is_none() { Ok(()) } else { Err("it is not taken yet".into()) }
    };
    mortals.until_all_died_and(taken).await?;
    let rows: i64 = crate::support::session(&app).await?.query_one("SELECT count(*) FROM kept", &[]).await?.get(0);
    ensure!(rows == 100, "{rows} rows");
    Ok(())
}

/// A backend of the leader waits for an acknowledgement, by its title.
fn waits_for_standbys(bed: &Testbed, leader: usize) -> Result<(), String> {
    let titles: Vec<String> =
        bed.processes(leader).into_iter().filter_map(|one| one.words.into_iter().next()).collect();
    if titles.iter().any(|title| title.contains("DELETE waiting for")) {
        return Ok(());
    }
    Err(format!("{titles:?}"))
}

async fn copy_begins(bed: &Testbed, number: usize) -> anyhow::Result<()> {
    let begins = async || {
        let all = bed.processes(number);
        // Not one that is asked for its version.
        let copies = |one: &Process| one.program == "pg_basebackup" && one.words.iter().any(|word| word == "--pgdata");
        if all.iter().any(copies) { Ok(()) } else { Err(format!("{all:?}")) }
    };
    bed.wait_for("a copy has begun", LATER, begins).await
}
