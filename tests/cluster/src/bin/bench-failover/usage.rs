//! What management costs a node at rest: memory and processor time of its daemon, guards and gateway.

use anyhow::Context;
use pgstead_cluster_tests::{Process, Testbed};
use pgstead_types::Tick;
use serde::Serialize;
use std::fs;
use std::time::Duration;

/// Of the times in `/proc/<pid>/stat`: fixed for user space, whatever the kernel's own clock is.
const TICKS_PER_SECOND: f64 = 100.0;

/// Of one node.
#[derive(Clone, Debug, Serialize)]
pub struct Usage {
    pub node: String,
    pub pss_kib: u64,
    /// What the three would take on a host of their own, where no other node's processes share the program's pages.
    pub alone_kib: u64,
    pub pss_kib_of: Vec<(String, u64)>,
    /// Percent of one core.
    pub cpu_percent: f64,
    pub cpu_percent_of: Vec<(String, f64)>,
}

fn managers(bed: &Testbed, number: usize) -> Vec<Process> {
    let ours = |process: &Process| ["daemon", "guard", "gateway"].contains(&process.role().as_str());
    bed.processes(number).into_iter().filter(ours).collect()
}

/// In KiB.
struct Memory {
    /// What is shared with other processes is counted in equal parts.
    pss: u64,
    private: u64,
    shared: u64,
}

fn memory(pid: i32) -> anyhow::Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        number.with_context(|| format!("{path} tells no {name}"))
    };
    Ok(Memory {
        pss: field("Pss")?,
        private: field("Private_Clean")? + field("Private_Dirty")?,
        shared: field("Shared_Clean")? + field("Shared_Dirty")?,
    })
}

/// User and system time since its start.
fn cpu_ticks(pid: i32) -> anyhow::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("a stat line has the name in parentheses")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

pub async fn measure(bed: &Testbed, time: Duration) -> anyhow::Result<Vec<Usage>> {
    let begun = Tick::now();
    let mut before = Vec::new();
    for node in bed.nodes() {
        for process in managers(bed, node.number) {
            before.push((node.number, process.role(), process.pid, cpu_ticks(process.pid)?));
        }
    }
    tokio::time::sleep(time).await;
    let passed = Tick::now().since(begun).as_secs_f64();
    let mut all = Vec::new();
    for node in bed.nodes() {
        let (mut shares, mut cpu) = (Vec::new(), Vec::new());
        let (mut private, mut shared) = (0, 0);
        for (_, role, pid, ticks) in before.iter().filter(|(number, ..)| *number == node.number) {
            let memory = memory(*pid)?;
            shares.push((role.clone(), memory.pss));
            private += memory.private;
            // One program, so mostly the same pages: the most that one of them shares stands for all.
            shared = memory.shared.max(shared);
            let used = (cpu_ticks(*pid)? - ticks) as f64 / TICKS_PER_SECOND;
            cpu.push((role.clone(), 100.0 * used / passed));
        }
        all.push(Usage {
            node: node.name.clone(),
            pss_kib: shares.iter().map(|(_, kib)| kib).sum(),
            alone_kib: private + shared,
            pss_kib_of: shares,
            cpu_percent: cpu.iter().map(|(_, percent)| percent).sum(),
            cpu_percent_of: cpu,
        });
    }
    Ok(all)
}
