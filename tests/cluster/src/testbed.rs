//! A deployment for one test: nodes that are started, joined, killed, frozen and brought back, and what they say meanwhile.
//! Whatever happens to the test, none of its processes outlives it for longer than until the next testbed is made.

use crate::client::Target;
use crate::command::{self, Said};
use crate::lab::Lab;
use crate::place::{END_TIME, Place, address, end_all_below};
use crate::processes::{Process, below_folder, signal_all_below, wait_until_gone};
use crate::wait::until;
use anyhow::{Context, bail};
use pgstead_api::Code;
use pgstead_api::client::{Client, ClientError, Profile};
use pgstead_api::view::{ClusterView, ConnectionView, Health, MemberView, OperationStateView};
use pgstead_types::spec::{ClusterSpec, Durability};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

/// Starting a node on a busy machine, in a debug build.
const START_TIME: Duration = Duration::from_secs(120);
/// Creating a cluster with three members there.
const CREATE_TIME: Duration = Duration::from_secs(240);
/// Lines of each log in a complaint.
const LOG_TAIL: usize = 25;

/// How a testbed is to be.
#[derive(Clone, Default)]
pub struct Setup {
    pub nodes: usize,
    /// So many zones, taken in turn; 0 for one each.
    pub zones: usize,
    /// For the environment of every daemon.
    pub env: Vec<(String, String)>,
    /// Added to every node's configuration, such as `[timing]\nheartbeat_ms = 200`.
    pub config: String,
    /// Where the nodes run, each under its own user; otherwise on this machine as it is.
    pub lab: Option<Arc<Lab>>,
    /// Gives every node's pool a disk of this size, in a lab.
    pub disk_mib: Option<u64>,
}

/// One node; they are numbered from 1.
pub struct Node {
    pub number: usize,
    /// `n1`, `n2` and so on.
    pub name: String,
    pub host: String,
    /// Everything of this node is in here.
    pub folder: PathBuf,
    daemon: Option<Child>,
}

impl Node {
    pub fn config(&self) -> PathBuf {
        self.folder.join("node.toml")
    }
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("d")
    }
    /// Where its volumes are, when they have a disk of their own.
    pub fn disk(&self) -> PathBuf {
        self.folder.join("disk")
    }
    pub fn log(&self) -> PathBuf {
        self.folder.join("daemon.log")
    }
}

/// Ended and removed when dropped; `PGSTEAD_KEEP=1` keeps the folder with its logs.
pub struct Testbed {
    nodes: Vec<Node>,
    setup: Setup,
    binary: PathBuf,
    // Last: it removes the folder when all else is gone.
    place: Place,
}

impl Testbed {
    /// Nodes that have all joined, in a zone each.
    pub async fn start(nodes: usize) -> anyhow::Result<Self> {
        Self::start_with(Setup { nodes, ..Setup::default() }).await
    }

    pub async fn start_with(setup: Setup) -> anyhow::Result<Self> {
        let mut bed = Self::prepare(Place::fresh(setup.nodes)?, setup)?;
        bed.found().await?;
        for number in 2..=bed.nodes.len() {
            bed.join(number).await?;
        }
        bed.wait_until_joined().await?;
        Ok(bed)
    }

    /// Writes the configurations; nothing runs yet. For callers that show each step: then `found`, `join`, and
    /// `wait_until_joined`.
    pub fn prepare(place: Place, setup: Setup) -> anyhow::Result<Self> {
        let binary = command::pgstead_binary()?;
        let mut nodes = Vec::new();
        for number in 1..=setup.nodes {
            let folder = place.folder.join(format!("n{number}"));
            let node = Node { number, name: format!("n{number}"), host: address(number), folder, daemon: None };
            fs::create_dir(&node.folder)?;
            // Postgres runs as another user and has to get to its data.
            fs::set_permissions(&node.folder, fs::Permissions::from_mode(0o755))?;
            let own_user = setup.lab.is_some() || !rustix::process::geteuid().is_root();
            let run_as = if own_user { "" } else { "run_as = \"postgres\"\n" };
            let mut pool = String::new();
            if let Some(lab) = &setup.lab {
                lab.give(number, &node.folder)?;
                if let Some(mib) = setup.disk_mib {
                    fs::create_dir(node.disk())?;
                    lab.mount_disk(number, &node.disk(), mib)?;
                    pool = format!("[[pool]]\nname = \"default\"\ndriver = \"dir\"\npath = {:?}\n", node.disk());
                }
            }
            let zone = number.checked_rem(setup.zones).unwrap_or(number);
            let text = format!(
                "name = \"{}\"\nhost = \"{}\"\nport = {}\nzone = \"z{zone}\"\ndata_dir = \"{}\"\n{run_as}ports = {{ \
                 first = {}, last = {} }}\n{}\n{pool}",
                node.name,
                node.host,
                place.node_port,
                node.data_dir().display(),
                place.cluster_ports.0,
                place.cluster_ports.1,
                setup.config,
            );
            fs::write(node.config(), text)?;
            nodes.push(node);
        }
        Ok(Self { nodes, setup, binary, place })
    }

    /// Where the nodes run.
    pub fn lab(&self) -> anyhow::Result<&Lab> {
        self.setup.lab.as_deref().context("this testbed is in no lab")
    }
    pub fn folder(&self) -> &Path {
        &self.place.folder
    }
    /// The program under test.
    pub fn binary(&self) -> &Path {
        &self.binary
    }
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }
    fn node_named(&self, name: &str) -> anyhow::Result<usize> {
        self.nodes.iter().find(|node| node.name == name).map(|node| node.number).context("a node of another testbed")
    }

    // Beginning. ------------------------------------------------------------------------------------------------------

    /// Makes node 1 the first of a deployment, and starts it.
    pub async fn found(&mut self) -> anyhow::Result<()> {
        let config = self.node(1).config();
        let said = self.pgstead_as(1, &["init", "--config", &config.display().to_string()], &[]).await?;
        said.output().context("pgstead init")?;
        self.start_daemon(1)?;
        // The one that init has written knows this node alone.
        let mut profile = Profile::load(&self.node(1).data_dir().join("secrets/admin.json"))?;
        let server = |node: &Node| format!("https://{}:{}", node.host, self.place.node_port);
        profile.servers = self.nodes.iter().map(server).collect();
        profile.save(&self.profile())?;
        let client = self.client()?;
        let answers = async || client.nodes().await.map(|_| ()).map_err(|error| error.to_string());
        self.wait_for("the first node answers", START_TIME, answers).await
    }

    /// Lets a node join, and starts it.
    pub async fn join(&mut self, number: usize) -> anyhow::Result<()> {
        let client = self.client()?;
        let make = async || client.create_token(None).await.map_err(|error| error.to_string());
        let token = self.wait_for("a join token is made", START_TIME, make).await?.token;
        self.join_with(number, &token).await?;
        self.start_daemon(number)
    }

    /// `pgstead node join` with this token; the node does not run yet.
    pub async fn join_with(&self, number: usize, token: &str) -> anyhow::Result<()> {
        let config = self.node(number).config().display().to_string();
        let args = ["node", "join", "--config", &config];
        let said = self.pgstead_as(number, &args, &[("PGSTEAD_JOIN_TOKEN", token)]).await?;
        said.output().with_context(|| format!("node {number} joins"))?;
        Ok(())
    }

    /// Waits until every node has joined and reports.
    pub async fn wait_until_joined(&self) -> anyhow::Result<()> {
        let client = self.client()?;
        let all = async || {
            let nodes = client.nodes().await.map_err(|error| error.to_string())?;
            let there = |node: &&pgstead_api::view::NodeView| node.observed.as_ref().is_some_and(|seen| seen.reachable);
            let reachable = nodes.iter().filter(there).count();
            let pending: Vec<_> = nodes.iter().flat_map(|node| &node.findings).map(|found| &found.code).collect();
            if reachable == self.nodes.len() && pending.is_empty() {
                return Ok(());
            }
            Err(format!("{reachable} of {} nodes are reachable; findings {pending:?}", self.nodes.len()))
        };
        self.wait_for("every node has joined", START_TIME, all).await
    }

    // Asking. ---------------------------------------------------------------------------------------------------------

    /// The operator's credentials, with every node as a server.
    pub fn profile(&self) -> PathBuf {
        self.folder().join("profile.json")
    }
    /// A client of the API that asks the nodes in turn.
    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(&Profile::load(&self.profile())?)?)
    }
    /// A client that asks one node only.
    pub fn client_of(&self, number: usize) -> anyhow::Result<Client> {
        self.client_of_any(&[number])
    }
    /// A client that asks some of the nodes, such as those on one side of a cut.
    pub fn client_of_any(&self, numbers: &[usize]) -> anyhow::Result<Client> {
        let mut profile = Profile::load(&self.profile())?;
        let server = |number: &usize| format!("https://{}:{}", self.node(*number).host, self.place.node_port);
        profile.servers = numbers.iter().map(server).collect();
        Ok(Client::new(&profile)?)
    }
    /// Runs `pgstead` with the operator's profile.
    pub async fn pgstead(&self, args: &[&str]) -> anyhow::Result<Said> {
        let profile = self.profile().display().to_string();
        command::run(&self.binary, args, &[("PGSTEAD_PROFILE", &profile)]).await
    }

    /// The same, handing over each line as it is printed.
    pub async fn pgstead_showing(&self, args: &[&str], line: impl FnMut(&str)) -> anyhow::Result<Option<i32>> {
        let profile = self.profile().display().to_string();
        command::run_showing(&self.binary, args, &[("PGSTEAD_PROFILE", &profile)], line).await
    }

    /// Runs `pgstead` as a node's user.
    async fn pgstead_as(&self, number: usize, args: &[&str], env: &[(&str, &str)]) -> anyhow::Result<Said> {
        let binary = self.binary.display().to_string();
        let launcher = self.launcher(number);
        let mut words: Vec<&str> = launcher.iter().map(String::as_str).chain([binary.as_str()]).collect();
        words.extend(args);
        command::run(Path::new(words[0]), &words[1..], env).await
    }

    fn launcher(&self, number: usize) -> Vec<String> {
        self.setup.lab.as_ref().map(|lab| lab.launcher(number)).unwrap_or_default()
    }

    /// Creates a cluster and waits until it is healthy.
    pub async fn create_cluster(&self, spec: &ClusterSpec) -> anyhow::Result<ClusterView> {
        let client = self.client()?;
        // Who has no controller, or cannot be reached, has done nothing.
        let asked = async || match client.create_cluster(spec).await {
            Err(error @ ClientError::Unreachable { .. }) => Err(error.to_string()),
            Err(error) if matches!(error.code(), Some(Code::NoController | Code::ControllerUnreachable)) => {
                Err(error.to_string())
            }
            answer => Ok(answer),
        };
        let accepted = self.wait_for(&format!("cluster {} is asked for", spec.name), START_TIME, asked).await??;
        let ended = async || {
            let operation = client.operation(accepted.operation, Duration::from_secs(1)).await;
            let operation = operation.map_err(|error| error.to_string())?;
            match operation.state {
                OperationStateView::Running => Err(operation.progress.unwrap_or_default()),
                OperationStateView::Succeeded => Ok(Ok(())),
                OperationStateView::Failed => Ok(Err(operation.failure.unwrap_or_default())),
            }
        };
        let what = format!("cluster {} is created", spec.name);
        if let Err(why) = self.wait_for(&what, CREATE_TIME, ended).await? {
            bail!("{what}: {why}");
        }
        self.wait_healthy(&spec.name, CREATE_TIME).await
    }

    /// Waits until the leader leads, every standby streams and counts, and no member is at work.
    pub async fn wait_healthy(&self, cluster: &str, deadline: Duration) -> anyhow::Result<ClusterView> {
        let client = self.client()?;
        let healthy = async || {
            let view = client.cluster(cluster).await.map_err(|error| error.to_string())?;
            let counts = view.members.iter().filter(|member| member.in_sync_set).count();
            let seen = view.members.iter().filter_map(|member| member.observed.as_ref());
            let works: Vec<_> = seen.filter_map(|seen| seen.working.as_ref()).map(|working| &working.step).collect();
            // In an asynchronous cluster nobody counts, and a healthy one streams.
            // Nor does one that another standby feeds.
            let leader = view.leader.as_ref().map(|leader| &leader.name);
            let fed =
                view.members.iter().filter(|member| member.upstream.is_some() && member.upstream.as_ref() != leader);
            let all_count =
                counts + fed.count() + 1 == view.members.len() || view.spec.durability == Durability::Asynchronous;
            if view.health == Health::Healthy && all_count && works.is_empty() {
                return Ok(view);
            }
            Err(format!("{:?}: {}; {counts} standbys count; at work: {works:?}", view.health, view.why))
        };
        self.wait_for(&format!("{cluster} is healthy"), deadline, healthy).await
    }

    /// The node of the leader that is confirmed now, in whatever epoch.
    pub async fn leader_node(&self, cluster: &str) -> anyhow::Result<usize> {
        let client = self.client()?;
        let leads = async || {
            let view = client.cluster(cluster).await.map_err(|error| error.to_string())?;
            let leader = view.leader.as_ref().filter(|_| view.phase == pgstead_api::view::Phase::Confirmed);
            let member = leader.and_then(|leader| view.members.iter().find(|member| member.id == leader.id));
            member.map(|member| member.node.name.clone()).ok_or_else(|| view.why.clone())
        };
        let name = self.wait_for(&format!("{cluster} has a leader"), START_TIME, leads).await?;
        self.node_named(&name)
    }

    /// Waits until a member on another node than `old` is confirmed as the leader.
    pub async fn wait_for_another_leader(
        &self,
        cluster: &str,
        old: usize,
        deadline: Duration,
    ) -> anyhow::Result<usize> {
        let another = async || match self.leader_node(cluster).await {
            Ok(number) if number != old => Ok(number),
            Ok(number) => Err(format!("node {number} leads")),
            Err(error) => Err(format!("{error:#}")),
        };
        self.wait_for(&format!("{cluster} is led from another node than {old}"), deadline, another).await
    }

    pub async fn member_on(&self, cluster: &str, number: usize) -> anyhow::Result<MemberView> {
        let members = self.client()?.cluster_members(cluster).await?;
        let name = &self.node(number).name;
        members.into_iter().find(|member| member.node.name == *name).context("the cluster has no member on that node")
    }

    pub async fn connection(&self, cluster: &str) -> anyhow::Result<ConnectionView> {
        Ok(self.client()?.connection(cluster).await?)
    }
    /// Through the gateways to the leader.
    pub async fn read_write(&self, cluster: &str) -> anyhow::Result<Target> {
        let view = self.connection(cluster).await?;
        Ok(Target::of(&view, &view.read_write)?)
    }
    /// Through the gateways to a standby.
    pub async fn read_only(&self, cluster: &str) -> anyhow::Result<Target> {
        let view = self.connection(cluster).await?;
        Ok(Target::of(&view, &view.read_only)?)
    }
    /// Straight to the members, looking for the leader.
    pub async fn direct(&self, cluster: &str) -> anyhow::Result<Target> {
        let view = self.connection(cluster).await?;
        Ok(Target::of(&view, &view.direct)?)
    }

    // Faults. ---------------------------------------------------------------------------------------------------------

    pub fn start_daemon(&mut self, number: usize) -> anyhow::Result<()> {
        self.start_daemon_with(number, &[])
    }

    /// With more in its environment than the testbed's daemons have.
    pub fn start_daemon_with(&mut self, number: usize, env: &[(String, String)]) -> anyhow::Result<()> {
        let env = [&self.setup.env, env].concat();
        let launcher = self.launcher(number);
        let node = &mut self.nodes[number - 1];
        let (config, log) = (node.config(), node.log());
        if let Some(mut old) = node.daemon.take()
            && old.try_wait()?.is_none()
        {
            node.daemon = Some(old);
            bail!("the daemon of node {number} runs already");
        }
        node.daemon = Some(command::spawn_daemon(&launcher, &self.binary, &config, &log, &env)?);
        Ok(())
    }

    /// Whether the daemon runs; one that has ended by itself is noticed.
    pub fn daemon_runs(&mut self, number: usize) -> bool {
        let daemon = &mut self.nodes[number - 1].daemon;
        daemon.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// SIGKILL to the daemon alone; its guards, Postgres and gateway go on.
    pub fn kill_daemon(&mut self, number: usize) -> anyhow::Result<()> {
        let Some(mut daemon) = self.nodes[number - 1].daemon.take() else {
            bail!("the daemon of node {number} does not run");
        };
        daemon.kill()?;
        daemon.wait()?;
        Ok(())
    }

    /// Every living process of a node: daemon, guards, gateway, postmasters and all that they have started.
    pub fn processes(&self, number: usize) -> Vec<Process> {
        below_folder(&self.node(number).folder)
    }

    /// SIGKILL to every process of a node, which none of them can answer to. Returns them; none is left.
    pub fn kill_node(&mut self, number: usize) -> anyhow::Result<Vec<Process>> {
        let killed = end_all_below(&self.node(number).folder)?;
        if let Some(mut daemon) = self.nodes[number - 1].daemon.take() {
            daemon.wait()?;
        }
        Ok(killed)
    }

    /// The postmaster of a cluster's member on a node.
    pub async fn postmaster(&self, cluster: &str, number: usize) -> anyhow::Result<Process> {
        let member = self.member_on(cluster, number).await?;
        let run_dir = self.node(number).data_dir().join("run").join(member.id.short());
        let all = self.processes(number);
        let guard =
            all.iter().find(|one| one.role() == "guard" && one.words.iter().any(|word| Path::new(word) == run_dir));
        let guard = guard.with_context(|| format!("{} has no guard", member.name))?;
        let postmaster = all.iter().find(|one| one.parent == guard.pid && one.program == "postgres");
        postmaster.cloned().with_context(|| format!("{} has no postmaster", member.name))
    }

    /// SIGKILL to the postmaster alone, as the kernel does when memory runs out.
    pub async fn kill_postmaster(&self, cluster: &str, number: usize) -> anyhow::Result<Process> {
        let postmaster = self.postmaster(cluster, number).await?;
        if !postmaster.signal(Signal::KILL) {
            bail!("the postmaster {postmaster} had ended before it was killed");
        }
        let left = wait_until_gone(std::slice::from_ref(&postmaster), END_TIME);
        if left.is_empty() { Ok(postmaster) } else { bail!("{postmaster} cannot be killed") }
    }

    /// SIGSTOP to every process of a node: its connections stay open and nobody answers.
    pub fn freeze_node(&self, number: usize) -> Vec<Process> {
        signal_all_below(&self.node(number).folder, Signal::STOP)
    }
    pub fn thaw_node(&self, number: usize) -> Vec<Process> {
        signal_all_below(&self.node(number).folder, Signal::CONT)
    }

    // Waiting. --------------------------------------------------------------------------------------------------------

    /// Asks until the answer is `Ok`; `Err` says what was seen instead. Past the deadline: the last of that, and what the
    /// nodes say.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        deadline: Duration,
        condition: impl AsyncFnMut() -> Result<T, String>,
    ) -> anyhow::Result<T> {
        match until(deadline, condition).await {
            Ok(value) => Ok(value),
            Err((passed, seen)) => {
                bail!("waited {passed:?} in vain until {what}; last seen: {seen}\n{}", self.describe().await)
            }
        }
    }

    /// What the nodes say of themselves: every cluster, and the ends of the logs.
    pub async fn describe(&self) -> String {
        let mut text = String::new();
        let mut whole = String::new();
        let patience = Duration::from_secs(10);
        match tokio::time::timeout(patience, self.pgstead(&["cluster", "list", "--output", "json"])).await {
            Ok(Ok(said)) => {
                let list: Vec<serde_json::Value> = serde_json::from_str(&said.stdout).unwrap_or_default();
                text.push_str(&said.stderr);
                for name in list.iter().filter_map(|one| one["name"].as_str()) {
                    let args = ["cluster", "show", name, "--output", "json"];
                    let show = self.pgstead(&args);
                    if let Ok(Ok(said)) = tokio::time::timeout(patience, show).await {
                        text.push_str(&in_short(name, &said.stdout));
                        whole.push_str(&format!("--- cluster {name}\n{}{}\n", said.stdout, said.stderr));
                    }
                }
            }
            other => text.push_str(&format!("no list of clusters: {other:?}\n")),
        }
        text.push_str(&whole);
        for node in &self.nodes {
            for log in [vec![node.log(), node.data_dir().join("gateway/gateway.log")], self.member_logs(node)].concat()
            {
                let all = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
                let lines: Vec<&str> = all.lines().collect();
                let tail = lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n");
                text.push_str(&format!("--- {}\n{tail}\n", log.display()));
            }
        }
        text
    }

    fn member_logs(&self, node: &Node) -> Vec<PathBuf> {
        let members = fs::read_dir(node.data_dir().join("run")).into_iter().flatten().flatten();
        members.flat_map(|entry| ["guard.log", "postgres.log"].map(|name| entry.path().join(name))).collect()
    }
}

/// What matters most of a cluster, for where only the beginning of a text is kept.
fn in_short(name: &str, show: &str) -> String {
    let Ok(view) = serde_json::from_str::<serde_json::Value>(show) else { return String::new() };
    let mut text = format!("--- in short: {name}, epoch {}, {}: {}\n", view["epoch"], view["phase"], view["findings"]);
    for member in view["members"].as_array().into_iter().flatten() {
        let observed = &member["observed"];
        text.push_str(&format!(
            "{} on {}, {}: {}, {}, working {}, findings {}\n",
            member["name"],
            member["node"]["name"],
            member["role"],
            observed["state"],
            observed["why"],
            observed["working"],
            observed["findings"]
        ));
    }
    text
}

impl Drop for Testbed {
    fn drop(&mut self) {
        if let Err(error) = end_all_below(&self.place.folder) {
            eprintln!("{error}");
        }
        for node in &mut self.nodes {
            if let Some(mut daemon) = node.daemon.take() {
                // It is dead or was never alive; this only takes it off the list of processes.
                let _ = daemon.kill();
                let _ = daemon.wait();
            }
        }
    }
}
