//! The daemon, the gateway and the guard each end alone, and what the others do meanwhile.

use crate::support::{Bed, LATER, SOON, session, started_at};
use anyhow::{Context, ensure};
use pgstead_cluster_tests::{Process, Target, wait_until_gone};
use pgstead_types::Tick;
use rustix::process::Signal;

/// A session with what tells whether it is still the same one on the same Postgres.
struct Watched {
    client: tokio_postgres::Client,
    postmaster: String,
    backend: i32,
}

impl Watched {
    async fn open(target: &Target) -> anyhow::Result<Self> {
        let client = session(target).await?;
        let backend = client.query_one("select pg_backend_pid()", &[]).await?.get(0);
        Ok(Self { postmaster: started_at(&client).await?, client, backend })
    }

    async fn is_unchanged(&self) -> anyhow::Result<()> {
        let now: i32 = self.client.query_one("select pg_backend_pid()", &[]).await?.get(0);
        let postmaster = started_at(&self.client).await?;
        ensure!((now, &postmaster) == (self.backend, &self.postmaster), "another backend or postmaster answers");
        Ok(())
    }
}

fn only(bed: &Bed, number: usize, role: &str) -> anyhow::Result<Process> {
    bed.processes(number)
        .into_iter()
        .find(|process| process.role() == role)
        .with_context(|| format!("no {role} on node {number}"))
}

fn kill(process: &Process) -> anyhow::Result<()> {
    ensure!(process.signal(Signal::KILL), "{process} had ended before");
    let left = wait_until_gone(std::slice::from_ref(process), SOON);
    ensure!(left.is_empty(), "{left:?} cannot be killed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_and_its_clients_do_not_notice_that_daemons_die_under_load() -> anyhow::Result<()> {
    let mut bed = Bed::with_cluster(3).await?;
    let writers = bed.writers().await?;
    let leader = bed.leader_node("app").await?;
    let epoch = bed.client()?.cluster("app").await?.epoch;
    let sessions = [
        Watched::open(&bed.read_write("app").await?).await?,
        Watched::open(&bed.direct("app").await?).await?,
        Watched::open(&bed.read_only("app").await?).await?,
    ];

    bed.kill_daemon(leader)?;
    writers.all_write_again(Tick::now(), SOON).await?;
    bed.start_daemon(leader)?;
    bed.wait_healthy("app", LATER).await?;

    for number in 1..=3 {
        bed.kill_daemon(number)?;
    }
    writers.all_write_again(Tick::now(), SOON).await?;
    for number in 1..=3 {
        bed.start_daemon(number)?;
    }
    bed.wait_healthy("app", LATER).await?;
    for session in &sessions {
        session.is_unchanged().await?;
    }

    // A second one on the same folder.
    let config = bed.node(leader).config().display().to_string();
    let second = bed.pgstead(&["node", "run", "--config", &config]).await?;
    ensure!(second.code == Some(1) && second.stderr.contains("another daemon runs on"), "{second:?}");
    ensure!(second.stderr.trim().lines().count() == 1, "one sentence was expected: {}", second.stderr);

    let view = bed.nothing_is_lost(writers).await?;
    ensure!(view.epoch == epoch, "there was a failover: epoch {} after {epoch}", view.epoch);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_gateway_comes_back_and_a_killed_guard_takes_its_postgres_with_it() -> anyhow::Result<()> {
    let bed = Bed::with_cluster(3).await?;
    let writers = bed.writers().await?;
    let leader = bed.leader_node("app").await?;
    let direct = Watched::open(&bed.direct("app").await?).await?;

    let gateway = only(&bed, leader, "gateway")?;
    kill(&gateway)?;
    let back = async || match only(&bed, leader, "gateway") {
        Ok(new) if new.pid != gateway.pid => Ok(()),
        Ok(_) => Err("it is the old one".to_string()),
        Err(error) => Err(error.to_string()),
    };
    bed.wait_for("the gateway is back", SOON, back).await?;
    // Through this gateway alone.
    let (connection, host) = (bed.connection("app").await?, bed.node(leader).host.clone());
    let through_it = Target::under_name(&connection, &host, host.parse()?, connection.read_write.port)?;
    session(&through_it).await?;
    direct.is_unchanged().await?;
    writers.all_write_again(Tick::now(), SOON).await?;

    let epoch = bed.client()?.cluster("app").await?.epoch;
    let postmaster = bed.postmaster("app", leader).await?;
    kill(&only(&bed, leader, "guard")?)?;
    let left = wait_until_gone(std::slice::from_ref(&postmaster), SOON);
    ensure!(left.is_empty(), "{left:?} outlived its guard");
    bed.leader_leaves("app", leader).await?;
    let view = bed.nothing_is_lost(writers).await?;
    ensure!(view.epoch > epoch, "a leader lost its Postgres and nobody was elected");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_killed_at_once_comes_back_with_nothing_lost() -> anyhow::Result<()> {
    let mut bed = Bed::with_cluster(3).await?;
    let writers = bed.writers().await?;
    for number in 1..=3 {
        bed.freeze_node(number);
    }
    for number in 1..=3 {
        bed.kill_node(number)?;
        ensure!(bed.processes(number).is_empty(), "processes of node {number} are left");
    }
    for number in 1..=3 {
        bed.start_daemon(number)?;
    }
    bed.nothing_is_lost(writers).await?;
    Ok(())
}
