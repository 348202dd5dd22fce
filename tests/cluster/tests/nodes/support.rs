//! What the tests share: a deployment that has the machine to itself, clients under load, and the checks at the end.

use anyhow::{Context, bail};
use pgstead_api::view::{ClusterView, Health, Phase};
use pgstead_cluster_tests::{Load, Place, Setup, Target, Testbed, Writers, check, until};
use pgstead_types::Tick;
use pgstead_types::spec::ClusterSpec;
use std::ops::{Deref, DerefMut};
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};
use tokio_postgres::Client;

/// For what takes seconds on an idle machine. Only a test that fails waits for so long.
pub const SOON: Duration = Duration::from_secs(120);
/// For what takes several steps, each with a daemon that may be starting.
pub const LATER: Duration = Duration::from_secs(240);

/// For tests that claim nothing about leases: a daemon that takes long to come back on a busy machine costs no leader its own.
pub const LONG_LEASE: &str = "[timing]\nlease_ms = 60000";

/// Enough to have commits under way at any moment, and little for a machine with two cores.
pub const LOAD: Load = Load { clients: 3, per_second: 30, retry: Duration::from_millis(20) };

static TURN: Mutex<()> = Mutex::const_new(());

/// A testbed while nobody else has one: clusters of real processes side by side would miss each other's deadlines.
pub struct Bed {
    bed: Testbed,
    // Last: the next one begins when this one's processes are gone.
    _turn: MutexGuard<'static, ()>,
}

impl Deref for Bed {
    type Target = Testbed;
    fn deref(&self) -> &Testbed {
        &self.bed
    }
}

impl DerefMut for Bed {
    fn deref_mut(&mut self) -> &mut Testbed {
        &mut self.bed
    }
}

impl Bed {
    pub async fn start(nodes: usize) -> anyhow::Result<Self> {
        Self::start_with(Setup { nodes, ..Setup::default() }).await
    }

    pub async fn start_with(setup: Setup) -> anyhow::Result<Self> {
        let _turn = TURN.lock().await;
        Ok(Self { bed: Testbed::start_with(setup).await?, _turn })
    }

    /// As many nodes as asked, of which the first `joined` have joined.
    pub async fn found(setup: Setup, joined: usize) -> anyhow::Result<Self> {
        let mut bed = Self::prepared(setup).await?;
        bed.found().await?;
        for number in 2..=joined {
            bed.join(number).await?;
        }
        bed.wait_reachable(joined).await?;
        Ok(bed)
    }

    /// Configurations, and nothing that runs.
    pub async fn prepared(setup: Setup) -> anyhow::Result<Self> {
        let _turn = TURN.lock().await;
        Ok(Self { bed: Testbed::prepare(Place::fresh(setup.nodes)?, setup)?, _turn })
    }

    /// Waits until a controller has heard of so many nodes, and all that should vote do: before that the record may be on
    /// fewer disks than there are nodes.
    pub async fn wait_reachable(&self, count: usize) -> anyhow::Result<()> {
        let heard = async || self.are_reachable(count).await;
        self.wait_for(&format!("at least {count} nodes are reachable"), SOON, heard).await
    }

    /// Whether it is so now.
    pub async fn are_reachable(&self, count: usize) -> Result<(), String> {
        let client = self.client().map_err(|error| error.to_string())?;
        let nodes = client.nodes().await.map_err(|error| error.to_string())?;
        let reachable = nodes.iter().filter(|node| node.observed.as_ref().is_some_and(|seen| seen.reachable)).count();
        let all_vote = nodes.iter().flat_map(|node| &node.findings).all(|found| found.code != "not_voting_yet");
        if reachable >= count && all_vote { Ok(()) } else { Err(format!("{reachable} are, all vote: {all_vote}")) }
    }

    /// `nodes` nodes and cluster `app` with a member on each.
    pub async fn with_cluster(nodes: usize) -> anyhow::Result<Self> {
        let bed = Self::start_with(Setup { nodes, config: LONG_LEASE.to_string(), ..Setup::default() }).await?;
        let members = u8::try_from(nodes).context("too many nodes")?;
        bed.create_cluster(&ClusterSpec { members, ..ClusterSpec::named("app") }).await?;
        Ok(bed)
    }

    /// A light load through the gateways.
    pub async fn writers(&self) -> anyhow::Result<Writers> {
        self.writers_on("app").await
    }
    pub async fn writers_on(&self, cluster: &str) -> anyhow::Result<Writers> {
        let target = self.read_write(cluster).await?;
        // A gateway that was started a moment ago may not listen yet.
        session(&target).await?;
        let writers = Writers::start(&target, LOAD).await?;
        writers.all_write_again(Tick::now(), SOON).await?;
        Ok(writers)
    }

    /// Every client writes again; then all that was acknowledged is on the leader, and every standby streams and counts.
    pub async fn nothing_is_lost(&self, writers: Writers) -> anyhow::Result<ClusterView> {
        self.nothing_is_lost_of("app", writers).await
    }
    pub async fn nothing_is_lost_of(&self, cluster: &str, writers: Writers) -> anyhow::Result<ClusterView> {
        if let Err(why) = writers.all_write_again(Tick::now(), LATER).await {
            bail!("{why}\n{}", self.describe().await);
        }
        let view = self.wait_healthy(cluster, LATER).await?;
        let written = writers.stop().await;
        let checked = check(&self.read_write(cluster).await?, &written.acknowledged).await?;
        if checked.acknowledged == 0 || !checked.lost.is_empty() {
            bail!(
                "of {} acknowledged rows these are lost: {:?}\n{}",
                checked.acknowledged,
                checked.lost,
                self.describe().await
            );
        }
        Ok(view)
    }

    /// Nodes other than `number`.
    pub fn others(&self, number: usize) -> Vec<usize> {
        self.nodes().iter().map(|node| node.number).filter(|other| *other != number).collect()
    }

    /// The nodes of the members that do not lead.
    pub async fn standbys(&self, cluster: &str) -> anyhow::Result<Vec<usize>> {
        let leader = self.leader_node(cluster).await?;
        let members = self.client()?.cluster_members(cluster).await?;
        let of = |name: &str| self.nodes().iter().find(|node| node.name == name).map(|node| node.number);
        Ok(members.iter().filter_map(|member| of(&member.node.name)).filter(|number| *number != leader).collect())
    }

    /// Waits until the confirmed leader is on another node than `number`; where it is.
    pub async fn leader_leaves(&self, cluster: &str, number: usize) -> anyhow::Result<usize> {
        let client = self.client()?;
        let name = self.node(number).name.clone();
        let left = async || {
            let view = client.cluster(cluster).await.map_err(|error| error.to_string())?;
            let leader = view.leader.as_ref().filter(|_| view.phase == Phase::Confirmed).map(|leader| leader.id);
            let member = view.members.iter().find(|member| Some(member.id) == leader);
            let elsewhere = member.map(|member| &member.node.name).filter(|node| **node != name);
            let node = elsewhere.and_then(|node| self.nodes().iter().find(|known| known.name == *node));
            node.map(|node| node.number).ok_or(view.why)
        };
        self.wait_for(&format!("{cluster} is led from another node than {name}"), LATER, left).await
    }

    /// Waits until the health is as asked; the cluster then.
    pub async fn health(&self, cluster: &str, wanted: Health) -> anyhow::Result<ClusterView> {
        let client = self.client()?;
        let is_so = async || {
            let view = client.cluster(cluster).await.map_err(|error| error.to_string())?;
            if view.health == wanted { Ok(view) } else { Err(format!("{:?}: {}", view.health, view.why)) }
        };
        self.wait_for(&format!("{cluster} is {wanted:?}"), SOON, is_so).await
    }

    /// Waits for a finding of the cluster by its code; its message.
    pub async fn finding(&self, cluster: &str, code: &str) -> anyhow::Result<String> {
        let client = self.client()?;
        let found = async || {
            let view = client.cluster(cluster).await.map_err(|error| error.to_string())?;
            let codes: Vec<&String> = view.findings.iter().map(|finding| &finding.code).collect();
            match view.findings.iter().find(|finding| finding.code == code) {
                Some(finding) => Ok(finding.message.clone()),
                None => Err(format!("{:?} ({}), findings {codes:?}", view.health, view.why)),
            }
        };
        self.wait_for(&format!("{cluster} has the finding {code}"), SOON, found).await
    }
}

/// When the Postgres at the other end was started, to the microsecond.
pub async fn started_at(client: &Client) -> anyhow::Result<String> {
    Ok(client.query_one("select pg_postmaster_start_time()::text", &[]).await?.get(0))
}

/// A session on whoever leads, as soon as one can be had.
pub async fn session(target: &Target) -> anyhow::Result<Client> {
    let connect = async || target.connect().await.map_err(|error| error.to_string());
    until(SOON, connect).await.map_err(|(passed, seen)| anyhow::anyhow!("no session within {passed:?}: {seen}"))
}
