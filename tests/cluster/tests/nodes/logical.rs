//! A consumer of a logical slot over changes of leader: it never misses what was acknowledged, whoever copies slots.

use crate::faults::newer_postgres;
use crate::support::{Bed, LATER, LONG_LEASE, SOON, session};
use anyhow::{Context, ensure};
use pgstead_api::view::ConnectionView;
use pgstead_cluster_tests::{Setup, Target, run};
use pgstead_types::Incarnation;
use pgstead_types::spec::ClusterSpec;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// Between two tries of somebody who met an error.
const RETRY: Duration = Duration::from_millis(100);
/// Of a slot that Postgres is to copy.
const FAILOVER: &str = ", failover => true";

/// Ids that are known to be written, or to have been read.
type Ids = Arc<Mutex<BTreeSet<i64>>>;

fn ids(of: &Ids) -> BTreeSet<i64> {
    of.lock().expect("nothing panics while it holds the ids").clone()
}

/// Writes one row after the other until told to stop, and keeps what was acknowledged.
async fn write(target: Target, acknowledged: Ids, stop: watch::Receiver<bool>) {
    let mut id = 0i64;
    while !*stop.borrow() {
        let Ok(client) = target.connect().await else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        while !*stop.borrow() {
            id += 1;
            if client.execute("INSERT INTO changes VALUES ($1)", &[&id]).await.is_err() {
                break;
            }
            acknowledged.lock().expect("nothing panics while it holds the ids").insert(id);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Reads what there is, keeps it, and only then says so to the slot.
async fn consume_some(client: &Client, consumed: &Ids) -> Result<(), tokio_postgres::Error> {
    let peek =
        "SELECT lsn::text, data FROM pg_logical_slot_peek_changes('warehouse', NULL, 200, 'skip-empty-xacts', '1')";
    let mut end: Option<String> = None;
    for row in client.query(peek, &[]).await? {
        let data: String = row.get(1);
        if let Some(id) = data.split_once("INSERT: id[bigint]:").and_then(|(_, id)| id.parse().ok()) {
            consumed.lock().expect("nothing panics while it holds the ids").insert(id);
        }
        end = Some(row.get(0));
    }
    if let Some(end) = end {
        client.batch_execute(&format!("SELECT pg_replication_slot_advance('warehouse', '{end}')")).await?;
    }
    Ok(())
}

async fn consume(target: Target, consumed: Ids, last_error: Arc<Mutex<String>>, stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        let failed = match target.connect().await {
            Ok(client) => loop {
                if *stop.borrow() {
                    return;
                }
                match consume_some(&client, &consumed).await {
                    Ok(()) => tokio::time::sleep(Duration::from_millis(20)).await,
                    Err(error) => break format!("{error:?}"),
                }
            },
            Err(error) => format!("{error:?}"),
        };
        *last_error.lock().expect("nothing panics while it holds the error") = failed;
        tokio::time::sleep(RETRY).await;
    }
}

/// The cluster as consumers see it; `None` where it has none.
async fn as_consumer(bed: &Bed) -> anyhow::Result<Option<ConnectionView>> {
    let view = bed.connection("app").await?;
    let of = |consumer: &pgstead_api::view::ConsumerView| (consumer.user.clone(), consumer.password.clone());
    let login = view.consumer.as_ref().map(of);
    Ok(login.map(|(user, password)| ConnectionView { user, password, ..view }))
}

async fn consumers_target(bed: &Bed) -> anyhow::Result<Target> {
    let view = as_consumer(bed).await?.context("it has no consumers")?;
    Ok(Target::of(&view, &view.read_write)?)
}

/// As a consumer, as soon as the leader's node has seen to the role.
async fn make_slot(bed: &Bed, name: &str, options: &str) -> anyhow::Result<()> {
    let target = consumers_target(bed).await?;
    let make = format!("SELECT pg_create_logical_replication_slot('{name}', 'test_decoding'{options})");
    let made = async || {
        let client = target.connect().await.map_err(|error| error.to_string())?;
        client.batch_execute(&make).await.map_err(|error| format!("{error:?}"))
    };
    bed.wait_for("a consumer makes a slot", SOON, made).await
}

/// Somebody who writes rows and somebody who follows them by a slot, whoever leads.
pub(crate) struct Following {
    stop: watch::Sender<bool>,
    acknowledged: Ids,
    consumed: Ids,
    last_error: Arc<Mutex<String>>,
    tasks: [JoinHandle<()>; 2],
}

impl Following {
    pub(crate) async fn start(bed: &Bed) -> anyhow::Result<Self> {
        Self::start_by_slot(bed, FAILOVER).await
    }

    async fn start_by_slot(bed: &Bed, options: &str) -> anyhow::Result<Self> {
        let target = bed.read_write("app").await?;
        session(&target).await?.batch_execute("CREATE TABLE changes (id bigint PRIMARY KEY)").await?;
        make_slot(bed, "warehouse", options).await?;
        let (stop, stopped) = watch::channel(false);
        let (acknowledged, consumed) = (Ids::default(), Ids::default());
        let last_error = Arc::new(Mutex::new(String::new()));
        let writer = tokio::spawn(write(target, acknowledged.clone(), stopped.clone()));
        let consumer = consume(consumers_target(bed).await?, consumed.clone(), last_error.clone(), stopped);
        Ok(Self { stop, acknowledged, consumed, last_error, tasks: [writer, tokio::spawn(consumer)] })
    }

    /// Waits until every standby has a complete copy of the slot.
    pub(crate) async fn copied_everywhere(&self, bed: &Bed) -> anyhow::Result<()> {
        let client = bed.client()?;
        let copied = async || {
            let view = client.cluster("app").await.map_err(|error| error.to_string())?;
            let slots = view.slots.ok_or("its slots were not looked at")?;
            let slot = slots.slots.into_iter().find(|slot| slot.name == "warehouse").ok_or("the slot is not there")?;
            if slot.ready_on.len() == 2 { Ok(()) } else { Err(format!("{slot:?}")) }
        };
        bed.wait_for("the slot is copied to every standby", LATER, copied).await
    }

    pub(crate) async fn has_caught_up(&self, bed: &Bed) -> anyhow::Result<()> {
        let wanted = ids(&self.acknowledged);
        let caught_up = async || {
            let missing: Vec<i64> = wanted.difference(&ids(&self.consumed)).copied().take(5).collect();
            let error = self.last_error.lock().expect("nothing panics while it holds the error").clone();
            if missing.is_empty() { Ok(()) } else { Err(format!("it misses {missing:?}…; its last error: {error}")) }
        };
        bed.wait_for("the consumer has everything that was acknowledged", LATER, caught_up).await
    }

    pub(crate) async fn writes_go_on(&self, bed: &Bed) -> anyhow::Result<()> {
        let before = ids(&self.acknowledged).len();
        let more = async || {
            let now = ids(&self.acknowledged).len();
            if now > before + 20 { Ok(()) } else { Err(format!("{now} rows, {before} before")) }
        };
        bed.wait_for("rows are written", LATER, more).await
    }

    pub(crate) async fn end(self) -> anyhow::Result<()> {
        self.stop.send_replace(true);
        for task in self.tasks {
            task.await?;
        }
        let (acknowledged, consumed) = (ids(&self.acknowledged).len(), ids(&self.consumed).len());
        println!("{acknowledged} rows acknowledged, {consumed} consumed");
        ensure!(acknowledged > 60, "{acknowledged} rows");
        Ok(())
    }
}

async fn on_newer_postgres(spec: ClusterSpec) -> anyhow::Result<Bed> {
    let bin = newer_postgres()?;
    let config = format!("postgres_bin = [{bin:?}]\n{LONG_LEASE}\n");
    let bed = Bed::start_with(Setup { nodes: 3, config, ..Setup::default() }).await?;
    bed.create_cluster(&spec).await?;
    Ok(bed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_misses_nothing_acknowledged_when_leaders_are_killed() -> anyhow::Result<()> {
    let spec = ClusterSpec { logical_replication: true, ..ClusterSpec::named("app") };
    let mut bed = on_newer_postgres(spec).await?;
    let following = Following::start(&bed).await?;
    for _ in 0..2 {
        following.copied_everywhere(&bed).await?;
        following.writes_go_on(&bed).await?;
        let leader = bed.leader_node("app").await?;
        bed.kill_node(leader)?;
        bed.leader_leaves("app", leader).await?;
        following.writes_go_on(&bed).await?;
        following.has_caught_up(&bed).await?;
        bed.start_daemon(leader)?;
        bed.wait_healthy("app", LATER).await?;
    }
    // The slot is on the former leaders again, as a copy.
    following.copied_everywhere(&bed).await?;
    bed.pgstead(&["cluster", "switchover", "app"]).await?.output().context("switchover")?;
    following.writes_go_on(&bed).await?;
    following.has_caught_up(&bed).await?;
    following.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_17_a_consumer_goes_on_by_copies_that_a_restart_has_made() -> anyhow::Result<()> {
    let spec = ClusterSpec { logical_replication: true, ..ClusterSpec::named("app") };
    let config = format!("{LONG_LEASE}\n");
    let mut bed = Bed::start_with(Setup { nodes: 3, config, ..Setup::default() }).await?;
    bed.create_cluster(&spec).await?;
    let following = Following::start_by_slot(&bed, "").await?;
    let lacking = bed.finding("app", "slot_not_copied").await?;
    ensure!(lacking.contains("cluster restart app"), "{lacking}");
    // It hands over to a standby: to one whose copy is complete.
    bed.pgstead(&["cluster", "restart", "app"]).await?.output().context("restart")?;
    following.writes_go_on(&bed).await?;
    following.has_caught_up(&bed).await?;
    for _ in 0..2 {
        following.copied_everywhere(&bed).await?;
        following.writes_go_on(&bed).await?;
        let leader = bed.leader_node("app").await?;
        bed.kill_node(leader)?;
        bed.leader_leaves("app", leader).await?;
        following.writes_go_on(&bed).await?;
        following.has_caught_up(&bed).await?;
        bed.start_daemon(leader)?;
        bed.wait_healthy("app", LATER).await?;
    }
    following.copied_everywhere(&bed).await?;
    following.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_asked_for_while_a_cluster_runs_and_a_consumer_that_plays_a_member_is_found() -> anyhow::Result<()> {
    let mut bed = on_newer_postgres(ClusterSpec::named("app")).await?;
    let postmasters = async |bed: &Bed| -> anyhow::Result<Vec<i32>> {
        let mut pids = Vec::new();
        for node in bed.nodes() {
            pids.push(bed.postmaster("app", node.number).await?.pid);
        }
        Ok(pids)
    };
    let before = postmasters(&bed).await?;
    bed.pgstead(&["cluster", "update", "app", "--logical-replication"]).await?.output()?;
    let waits = bed.finding("app", "restart_needed").await?;
    ensure!(waits.contains("cluster restart app"), "{waits}");
    let view = bed.wait_healthy("app", LATER).await?;
    ensure!(postmasters(&bed).await? == before, "a Postgres was ended by what it was told");
    ensure!(view.members.iter().all(|member| member.incarnation == 1), "{:?}", view.members);
    bed.pgstead(&["cluster", "restart", "app"]).await?.output().context("restart")?;
    make_slot(&bed, "warehouse", FAILOVER).await?;
    let client = bed.client()?;
    let all_restarted = async || {
        let view = client.cluster("app").await.map_err(|error| error.to_string())?;
        let waits = view.findings.iter().find(|finding| finding.code == "restart_needed");
        waits.map_or(Ok(()), |waits| Err(waits.message.clone()))
    };
    bed.wait_for("nobody waits for a restart", SOON, all_restarted).await?;

    // A standby is away, and a consumer of changes takes its name.
    let (leader, away) = (bed.leader_node("app").await?, bed.standbys("app").await?[0]);
    let member = bed.member_on("app", away).await?;
    bed.kill_node(away)?;
    let name = Incarnation { member: member.id, number: member.incarnation }.to_string();
    let consumer = as_consumer(&bed).await?.context("it has no consumers")?;
    let locked = Target::of(&consumer, &consumer.direct)?;
    locked.connect().await?;
    let conninfo = format!(
        "host={} port={} user={} dbname=app sslmode=require application_name={name}",
        bed.node(leader).host,
        consumer.direct.port,
        consumer.user
    );
    let program = newer_postgres()?.join("pg_recvlogical");
    let playing = tokio::spawn(async move {
        let args = ["--dbname", &conninfo, "--slot", "warehouse", "--start", "--file", "/dev/null"];
        run(&program, &args, &[("PGPASSWORD", &consumer.password)]).await
    });
    let found = bed.finding("app", "false_sender").await?;
    ensure!(found.contains(&name), "{found}");
    playing.abort();
    bed.start_daemon(away)?;

    bed.pgstead(&["cluster", "update", "app", "--logical-replication=false"]).await?.output()?;
    // Each node answers by the record that it has.
    let hidden = async || match as_consumer(&bed).await {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err("a password is shown".to_string()),
        Err(error) => Err(error.to_string()),
    };
    bed.wait_for("no password for consumers is shown", SOON, hidden).await?;
    let locked_out = async || match locked.connect().await {
        Ok(_) => Err("it is let in".to_string()),
        Err(_) => Ok(()),
    };
    bed.wait_for("consumers are locked out", SOON, locked_out).await?;
    bed.wait_healthy("app", LATER).await?;
    Ok(())
}
