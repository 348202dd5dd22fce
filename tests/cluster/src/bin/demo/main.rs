//! `make demo`: three nodes on loopback, a cluster with three members, writers, and the loss of every process of the
//! leader's node. With a terminal it stays up afterwards; without one its last line is the result.

mod checks;
mod screen;

use anyhow::{Context, bail};
use pgstead_api::client::Client;
use pgstead_api::view::{ConnectionView, EventView, MemberObserved, MemberState, MemberView};
use pgstead_cluster_tests::{Load, Process, Setup, Target, Testbed, Writers, check};
use pgstead_types::{Tick, WallTime};
use screen::Screen;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

const NODES: usize = 3;
const CLUSTER: &str = "app";
/// Nothing here takes that long; something is wrong when it does.
const PATIENCE: Duration = Duration::from_secs(120);
/// What a node runs, in the order in which it is shown; all else are their children.
const OURS: [&str; 4] = ["daemon", "guard", "gateway", "postmaster"];
/// How long the writers write before the blow, so that there is something to lose.
const BEFORE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match &runtime {
        Ok(runtime) => runtime.block_on(until_stopped()),
        Err(error) => Err(anyhow::anyhow!("no runtime: {error}")),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whatever ends the demonstration, its testbed is dropped here, and with that every process of it is ended.
async fn until_stopped() -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let stays = std::io::stdin().is_terminal() && std::io::stdout().is_terminal() && std::env::var_os("CI").is_none();
    let mut screen = Screen::new();
    let mut bed = None;
    // Set when there is nothing left to show, and the end is a person's choice.
    let mut shown = false;
    let result = {
        let demo = async {
            let place = checks::take_place(NODES)?;
            let bed = bed.insert(Testbed::prepare(place, Setup { nodes: NODES, ..Setup::default() })?);
            let outcome = show(bed, &mut screen).await?;
            if stays {
                screen.plain(&outcome.to_string());
                say_what_next(bed, &screen).await?;
                shown = true;
                std::future::pending::<()>().await;
            }
            anyhow::Ok(outcome)
        };
        tokio::select! {
            outcome = demo => Some(outcome),
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
            _ = hangup.recv() => None,
        }
    };
    if result.is_none() {
        screen.plain("\ndemo: stopped; ending every process of it and removing its folder");
    }
    drop(bed);
    let Some(outcome) = result else { return Ok(if shown { ExitCode::SUCCESS } else { ExitCode::from(130) }) };
    let outcome = outcome?;
    screen.plain(&outcome.to_string());
    Ok(if outcome.lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Outcome {
    failover: Duration,
    acknowledged: usize,
    lost: usize,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = self.failover.as_millis();
        write!(f, "demo: failover in {ms} ms, {} rows acknowledged, {} lost", self.acknowledged, self.lost)
    }
}

async fn show(bed: &mut Testbed, screen: &mut Screen) -> anyhow::Result<Outcome> {
    screen.plain("pgstead: a Postgres cluster that survives the loss of its leader's whole node, on this one machine.");
    start_nodes(bed, screen).await?;
    let connection = create_cluster(bed, screen).await?;
    let target = Target::of(&connection, &connection.read_write)?;
    let writers = write(bed, screen, &connection, &target).await?;
    let (leader, failover) = lose_leader(bed, screen, &writers).await?;
    bring_back(bed, screen, leader).await?;

    screen.heading("Every row that was acknowledged");
    let written = writers.stop().await;
    let checked = check(&target, &written.acknowledged).await?;
    let lost = checked.lost.len();
    let sum = format!(
        "{} rows were acknowledged, before, during and after the failover; {} are there, {lost} are lost.",
        checked.acknowledged,
        checked.acknowledged - lost
    );
    if lost == 0 {
        screen.good(&sum)
    } else {
        screen.say(&sum)
    }
    screen
        .say(&format!("(The clients saw {} failed statements and tried again, as applications do.)", written.failures));
    screen.plain("");
    Ok(Outcome { failover, acknowledged: checked.acknowledged, lost })
}

/// Runs `pgstead` and shows it as it would look in a terminal.
async fn run(bed: &Testbed, screen: &Screen, args: &[&str]) -> anyhow::Result<()> {
    let line = args.join(" ");
    screen.typed(&format!("pgstead {line}"));
    match bed.pgstead_showing(args, |text| screen.answer(text)).await? {
        Some(0) => Ok(()),
        code => bail!("pgstead {line} ended with {code:?}; what it said is above"),
    }
}

async fn start_nodes(bed: &mut Testbed, screen: &mut Screen) -> anyhow::Result<()> {
    screen.heading("Three nodes, each with its own address, folder and processes, in a zone of its own");
    let config = |bed: &Testbed, number: usize| bed.node(number).config().display().to_string();
    screen.typed(&format!("pgstead init --config {}", config(bed, 1)));
    screen.typed(&format!("pgstead node run --config {} &", config(bed, 1)));
    bed.found().await?;
    for number in 2..=NODES {
        let token = bed.client()?.create_token(None).await?.token;
        let short = format!("{}...", token.chars().take(24).collect::<String>());
        screen.typed("pgstead token create");
        screen.answer(&short);
        screen.typed(&format!("pgstead node join --config {} --token {short}", config(bed, number)));
        bed.join_with(number, &token).await?;
        screen.typed(&format!("pgstead node run --config {} &", config(bed, number)));
        bed.start_daemon(number)?;
    }
    bed.wait_until_joined().await?;
    run(bed, screen, &["status"]).await
}

async fn create_cluster(bed: &Testbed, screen: &mut Screen) -> anyhow::Result<ConnectionView> {
    screen.heading("A cluster of three members, one per zone; a commit counts once it is on two disks");
    run(bed, screen, &["cluster", "create", CLUSTER, "--members", "3"]).await?;
    bed.wait_healthy(CLUSTER, PATIENCE).await?;
    let connection = bed.connection(CLUSTER).await?;
    std::fs::write(bed.folder().join("ca.pem"), &connection.ca_pem)?;
    screen.typed(&format!("pgstead cluster connection {CLUSTER} --ca > {}/ca.pem", bed.folder().display()));
    run(bed, screen, &["cluster", "connection", CLUSTER]).await?;
    Ok(connection)
}

async fn write(
    bed: &Testbed,
    screen: &mut Screen,
    connection: &ConnectionView,
    target: &Target,
) -> anyhow::Result<Writers> {
    screen.heading("Four clients write through the read-write string, 100 rows a second each");
    let begun = Tick::now();
    let writers = Writers::start(target, Load::default()).await?;
    writers.all_write_again(begun, PATIENCE).await?;
    tokio::time::sleep(BEFORE).await;
    screen.say(&format!("{} rows are acknowledged so far.", writers.acknowledged()));
    let (host, standby, rows) = read(&Target::of(connection, &connection.read_only)?).await?;
    let what = if standby { "a standby" } else { "the leader" };
    screen.say(&format!("The read-only string leads to {what} on {host}, which shows {rows} rows."));
    run(bed, screen, &["member", "list", "--cluster", CLUSTER]).await?;
    Ok(writers)
}

/// Where the string leads, whether that is a standby, and how many rows it shows.
async fn read(target: &Target) -> anyhow::Result<(String, bool, i64)> {
    let client = target.connect_within(PATIENCE).await?;
    let sql = "select host(inet_server_addr()), pg_is_in_recovery(), (select count(*) from written)";
    let row = client.query_one(sql, &[]).await?;
    Ok((row.get(0), row.get(1), row.get(2)))
}

/// Kills everything on the leader's node and shows what follows. Returns the node, and the longest time without an
/// acknowledged write.
async fn lose_leader(bed: &mut Testbed, screen: &mut Screen, writers: &Writers) -> anyhow::Result<(usize, Duration)> {
    let leader = bed.leader_node(CLUSTER).await?;
    let member = bed.member_on(CLUSTER, leader).await?;
    let name = bed.node(leader).name.clone();
    let client = bed.client()?;
    let seen = client.events(None, None, Duration::ZERO).await?.next_after;
    let controller = client.nodes().await?.iter().any(|node| node.controller && node.name == name);
    let also = if controller { ", which is also the controller" } else { "" };
    screen.heading(&format!("SIGKILL to every process on {name}, the node of the leader {}{also}", member.name));

    let (killed_at, killed_wall) = (Tick::now(), WallTime::now());
    let killed = bed.kill_node(leader)?;
    let left = bed.processes(leader);
    for (role, pids) in by_role(&killed) {
        screen.say(&format!("{role:<28} {}", pids.join(" ")));
    }
    if !left.is_empty() {
        bail!("{} processes of {name} are left: {left:?}", left.len());
    }
    screen.good(&format!("{} processes were killed; a look through /proc finds none of them left.", killed.len()));
    screen.say("");

    screen.at(Duration::ZERO, &format!("{name} is dead"));
    let confirmed = follow_until_confirmed(&client, screen, seen, killed_wall);
    let confirmed = tokio::time::timeout(PATIENCE, confirmed).await;
    if confirmed.is_err() {
        bail!("no new leader within {PATIENCE:?}\n{}", bed.describe().await);
    }
    confirmed.context("checked above")??;
    let since = Tick::now();
    writers.all_write_again(since, PATIENCE).await?;
    let gap = writers.longest_gap(killed_at);
    let first = (gap.from + gap.length).since(killed_at);
    screen.at(first, "the first write is acknowledged by the new leader");
    screen.good(&format!("Longest time without an acknowledged write: {} ms.", gap.length.as_millis()));
    Ok((leader, gap.length))
}

/// Ours first, then Postgres' own.
fn by_role(processes: &[Process]) -> Vec<(String, Vec<String>)> {
    let mut roles: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for process in processes {
        roles.entry(process.role()).or_default().push(process.pid.to_string());
    }
    let mut roles: Vec<_> = roles.into_iter().collect();
    roles.sort_by_key(|(role, _)| OURS.iter().position(|name| name == role).unwrap_or(OURS.len()));
    roles
}

/// Prints events as they happen, until a leader is confirmed.
async fn follow_until_confirmed(
    client: &Client,
    screen: &Screen,
    mut seen: Option<u64>,
    killed: WallTime,
) -> anyhow::Result<()> {
    loop {
        // The nodes that are left may be electing a controller just now.
        let Ok(news) = client.events(seen, None, Duration::from_secs(1)).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        seen = news.next_after.or(seen);
        for event in &news.events {
            screen.at(since(killed, event), &event.message);
        }
        if news.events.iter().any(|event| event.kind == "leader_confirmed") {
            return Ok(());
        }
    }
}

/// All nodes of the demonstration read one clock.
fn since(killed: WallTime, event: &EventView) -> Duration {
    let at = event.at.parse::<jiff::Timestamp>().map_or(killed.0, |at| at.as_millisecond());
    Duration::from_millis(u64::try_from(at - killed.0).unwrap_or(0))
}

async fn bring_back(bed: &mut Testbed, screen: &mut Screen, number: usize) -> anyhow::Result<()> {
    let name = bed.node(number).name.clone();
    screen.heading(&format!("{name} comes back, and its member as a replica"));
    screen.typed(&format!("pgstead node run --config {} &", bed.node(number).config().display()));
    let begun = Tick::now();
    bed.start_daemon(number)?;
    let client = bed.client()?;
    let mut said = String::new();
    let counts = async || {
        let members = client.cluster_members(CLUSTER).await.map_err(|error| error.to_string())?;
        let member = members.iter().find(|member| member.node.name == name).ok_or("it is no member any more")?;
        let now = describe(member);
        if now != said && !now.is_empty() {
            screen.at(Tick::now().since(begun), &format!("{}: {now}", member.name));
            said.clone_from(&now);
        }
        let rests = |seen: &MemberObserved| seen.state == MemberState::Streaming && seen.working.is_none();
        let streams = member.observed.as_ref().is_some_and(rests);
        if streams && member.in_sync_set { Ok(()) } else { Err(now) }
    };
    bed.wait_for(&format!("the member on {name} streams and counts"), PATIENCE, counts).await?;
    bed.wait_healthy(CLUSTER, PATIENCE).await?;
    run(bed, screen, &["cluster", "show", CLUSTER]).await
}

fn describe(member: &MemberView) -> String {
    // Stale, or from before it died: nothing has been heard of it since.
    let old = [MemberState::Primary, MemberState::StrayPrimary];
    let Some(seen) = member.observed.as_ref().filter(|seen| !seen.stale && !old.contains(&seen.state)) else {
        return String::new();
    };
    if let Some(working) = &seen.working {
        return working.step.replace('_', " ");
    }
    match seen.state {
        MemberState::Streaming if member.in_sync_set => "streams from the new leader, and its disk counts again",
        MemberState::Streaming => "streams from the new leader",
        MemberState::Starting => "starting",
        MemberState::Down => "not running",
        MemberState::Waiting => "runs as a standby and waits",
        MemberState::Primary | MemberState::StrayPrimary => "runs as a primary",
        MemberState::Unresponsive => "does not answer",
    }
    .to_string()
}

async fn say_what_next(bed: &Testbed, screen: &Screen) -> anyhow::Result<()> {
    let url = bed.connection(CLUSTER).await?.read_write.url;
    let folder = bed.folder().display();
    let url = url.replace("sslrootcert=ca.pem", &format!("sslrootcert={folder}/ca.pem"));
    let programs = bed.binary().parent().context("the binary is in a folder")?.display();
    let leader = bed.leader_node(CLUSTER).await?;
    let name = &bed.node(leader).name;
    let roots = by_role(&bed.processes(leader)).into_iter().take(OURS.len());
    let pids: Vec<String> = roots.flat_map(|(_, pids)| pids).collect();
    screen.plain("\nIt goes on running. In another terminal, try:\n");
    for line in [
        format!("export PATH={programs}:$PATH PGSTEAD_PROFILE={}", bed.profile().display()),
        "pgstead status                       # the deployment on one page".to_string(),
        format!("pgstead cluster show {CLUSTER}             # who leads, whose disk counts, and why"),
        format!("pgstead psql {CLUSTER} -- -c 'select count(*) from written'"),
        format!("psql '{url}'"),
        "pgstead events --follow              # keep this open while you do what follows".to_string(),
        format!("kill -9 {}     # {name}'s daemon, guard, gateway and postmaster", pids.join(" ")),
        format!("pgstead node run --config {folder}/{name}/node.toml     # brings it back"),
        format!("pgstead cluster switchover {CLUSTER}"),
    ] {
        screen.say(&line);
    }
    screen.plain("\nCtrl-C here ends every process of the demo and removes its folder.");
    Ok(())
}
