//! `make bench-calm`: nothing is wrong, and the machine has more to do than it can. How many changes of leader happen
//! that nobody needed? Any is one too many.

use anyhow::{Context, bail, ensure};
use pgstead_api::view::Phase;
use pgstead_cluster_tests::{Testbed, postgres_bin, run};
use pgstead_types::Tick;
use pgstead_types::spec::ClusterSpec;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const CLUSTER: &str = "app";
const SCALE: &str = "10";
const CLIENTS: &str = "16";
/// Between two looks at the cluster.
const LOOK_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize)]
struct Report {
    minutes: u64,
    release: bool,
    /// Threads that do nothing but use a core, beside pgbench, three nodes and nine members' worth of processes.
    burners: usize,
    transactions_per_second: f64,
    changes_of_leader: u64,
    changes_of_controller: u64,
    /// Looks at which the cluster was anything but healthy, and the last reason.
    unhealthy_looks: u64,
    looks: u64,
    last_complaint: Option<String>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let minutes = match std::env::var("MINUTES") {
        Ok(text) => text.parse().ok().filter(|minutes| *minutes > 0).context("MINUTES must be a number above 0")?,
        Err(_) => 30,
    };
    tokio::select! {
        result = bench(minutes) => result,
        // Dropped on the way out: every process of the nodes ends.
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    }
}

/// Keeps every core busy until it is dropped.
struct Burners {
    stop: Arc<AtomicBool>,
    count: usize,
}

impl Burners {
    fn start() -> Self {
        let count = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..count {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self { stop, count }
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn bench(minutes: u64) -> anyhow::Result<()> {
    let bed = Testbed::start(3).await?;
    let before = bed.create_cluster(&ClusterSpec::named(CLUSTER)).await?.epoch;
    let connection = bed.connection(CLUSTER).await?;
    let ca = bed.folder().join("ca.pem");
    std::fs::write(&ca, &connection.ca_pem)?;
    let url = connection.read_write.url.replace("sslrootcert=ca.pem", &format!("sslrootcert={}", ca.display()));
    let pgbench = postgres_bin()?.join("pgbench");
    run(&pgbench, &["-i", "-q", "-s", SCALE, &url], &[]).await?.output().context("pgbench -i")?;
    println!("pgbench with {CLIENTS} clients beside a burner per core, {minutes} minutes");
    let burners = Burners::start();
    let seconds = (minutes * 60).to_string();
    let args = ["-n", "-c", CLIENTS, "-j", "2", "-T", &seconds, &url];
    let load = run(&pgbench, &args, &[]);
    tokio::pin!(load);
    let (mut looks, mut unhealthy_looks, mut last_complaint) = (0, 0, None);
    let (mut changes_of_controller, mut controller) = (0, None);
    let begun = Tick::now();
    let said = loop {
        tokio::select! {
            said = &mut load => break said?,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        looks += 1;
        let client = bed.client()?;
        match client.cluster(CLUSTER).await {
            Ok(view) if view.phase == Phase::Confirmed => {}
            Ok(view) => {
                unhealthy_looks += 1;
                last_complaint = Some(view.why);
            }
            Err(error) => {
                unhealthy_looks += 1;
                last_complaint = Some(error.to_string());
            }
        }
        if let Ok(nodes) = client.nodes().await {
            let now = nodes.into_iter().find(|node| node.controller).map(|node| node.name);
            if now.is_some() && controller.is_some() && now != controller {
                changes_of_controller += 1;
            }
            controller = now.or(controller);
        }
        if looks % 12 == 0 {
            println!("{:>4} s: {unhealthy_looks} of {looks} looks found fault", Tick::now().since(begun).as_secs());
        }
    };
    let burners = burners.count;
    let printed = said.output().context("pgbench")?;
    let rate = printed.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    let after = bed.wait_healthy(CLUSTER, Duration::from_secs(120)).await?.epoch;
    let report = Report {
        minutes,
        release: !cfg!(debug_assertions),
        burners,
        transactions_per_second: rate.context("pgbench prints its rate")?,
        changes_of_leader: after.0 - before.0,
        changes_of_controller,
        unhealthy_looks,
        looks,
        last_complaint,
    };
    std::fs::create_dir_all("target/bench")?;
    std::fs::write("target/bench/calm.json", serde_json::to_vec_pretty(&report)?)?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    ensure!(report.changes_of_leader == 0, "{} changes of leader that nobody needed", report.changes_of_leader);
    println!("No change of leader in {minutes} minutes.");
    Ok(())
}
