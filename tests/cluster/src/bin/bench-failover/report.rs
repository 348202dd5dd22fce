//! The table and the JSON.

use crate::usage::Usage;
use anyhow::Context;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    PostmasterKilled,
    NodeKilled,
    /// The controller, which leads Raft, dies with the leader.
    ControllerNodeKilled,
    /// Every process stopped and every connection open: silence.
    NodeFrozen,
    Switchover,
}

impl Fault {
    pub const ALL: [Fault; 5] =
        [Fault::PostmasterKilled, Fault::NodeKilled, Fault::ControllerNodeKilled, Fault::NodeFrozen, Fault::Switchover];

    /// As in the JSON.
    pub fn parse(name: &str) -> anyhow::Result<Fault> {
        let faults = || Fault::ALL.iter().map(|fault| serde_json::to_value(fault).unwrap_or_default());
        let at = faults().position(|known| known == name);
        at.and_then(|at| Fault::ALL.get(at).copied()).with_context(|| {
            let known: Vec<String> = faults().filter_map(|known| known.as_str().map(str::to_string)).collect();
            format!("FAULTS names {name:?}; known are {}", known.join(","))
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fault::PostmasterKilled => "postmaster killed",
            Fault::NodeKilled => "whole node killed",
            Fault::ControllerNodeKilled => "controller's node",
            Fault::NodeFrozen => "whole node frozen",
            Fault::Switchover => "switchover",
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    Pgstead,
    Reference,
}

/// One fault in one round.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    pub subject: Subject,
    pub fault: Fault,
    pub round: usize,
    /// Longest time in which no client was acknowledged a write.
    pub gap_ms: u64,
    /// The same for the client that was hit hardest.
    pub client_gap_ms: u64,
    pub acknowledged: usize,
    pub lost: usize,
    /// Statements that failed, all clients together.
    pub failures: usize,
    /// Whether the controller was on the leader's node.
    pub controller_there: bool,
}

/// Whether the check finds a loss where there is one.
#[derive(Clone, Debug, Serialize)]
pub struct Proof {
    pub acknowledged: usize,
    pub lost: usize,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub rounds: usize,
    pub release: bool,
    pub clients: usize,
    pub writes_per_second: u32,
    pub retry_ms: u64,
    pub results: Vec<Round>,
    pub proof: Proof,
    pub idle_seconds: u64,
    pub idle_fresh: Vec<Usage>,
    /// With five clusters.
    pub idle_many: Vec<Usage>,
    pub idle_after_rounds: Vec<Usage>,
    pub elapsed_seconds: u64,
}

/// The value that nine in ten do not exceed.
fn p90(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    let at = (values.len() * 9).div_ceil(10).saturating_sub(1);
    values.get(at).copied().unwrap_or(0)
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    match values.len() {
        0 => 0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2,
    }
}

impl Report {
    fn of(&self, subject: Subject, fault: Fault) -> impl Iterator<Item = &Round> {
        self.results.iter().filter(move |round| round.subject == subject && round.fault == fault)
    }
    pub fn lost(&self, subject: Subject) -> usize {
        self.results.iter().filter(|round| round.subject == subject).map(|round| round.lost).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let build = if self.release { "release" } else { "DEBUG" };
        writeln!(
            f,
            "\nLongest time without an acknowledged write, ms: {} clients at {} writes/s each, {} ms retry, {} rounds, {build} \
             build\n",
            self.clients, self.writes_per_second, self.retry_ms, self.rounds
        )?;
        writeln!(
            f,
            "                      pgstead                                 reference         beyond it     rows lost"
        )?;
        writeln!(
            f,
            "fault                 median    p90    worst  one client    median    p90     median    p90   pgstead  ref."
        )?;
        for fault in Fault::ALL.into_iter().filter(|fault| self.of(Subject::Pgstead, *fault).next().is_some()) {
            let gaps = |subject| self.of(subject, fault).map(|round| round.gap_ms).collect::<Vec<_>>();
            let lost = |subject| self.of(subject, fault).map(|round| round.lost).sum::<usize>();
            let (ours, floor) = (gaps(Subject::Pgstead), gaps(Subject::Reference));
            let single = median(self.of(Subject::Pgstead, fault).map(|round| round.client_gap_ms).collect());
            let (our_median, floor_median) = (median(ours.clone()), median(floor.clone()));
            let (our_p90, floor_p90) = (p90(ours.clone()), p90(floor.clone()));
            writeln!(
                f,
                "{fault:<18} {our_median:>9} {our_p90:>6} {:>8} {single:>11} {floor_median:>9} {floor_p90:>6} {:>10} {:>6} {:>9} \
                 {:>5}",
                ours.iter().max().unwrap_or(&0),
                our_median.saturating_sub(floor_median),
                our_p90.saturating_sub(floor_median),
                lost(Subject::Pgstead),
                lost(Subject::Reference),
            )?;
        }
        writeln!(
            f,
            "\nThe check, where a loss was made on purpose (synchronous_commit = off, a standby that lags promoted by hand): {} \
             of {} acknowledged rows lost.",
            self.proof.lost, self.proof.acknowledged
        )?;
        writeln!(f, "\nManagement of one node at rest, {} s: daemon, guard and gateway", self.idle_seconds)?;
        writeln!(f, "node    when           PSS MiB  alone MiB   % of a core   (each: PSS in MiB, %)")?;
        for (when, usages) in
            [("fresh", &self.idle_fresh), ("five clusters", &self.idle_many), ("after rounds", &self.idle_after_rounds)]
        {
            for usage in usages {
                let part = |(role, kib): &(String, u64)| {
                    let percent =
                        usage.cpu_percent_of.iter().find(|(other, _)| other == role).map_or(0.0, |(_, one)| *one);
                    format!("{role} {:.1} {percent:.2}", *kib as f64 / 1024.0)
                };
                let parts: Vec<String> = usage.pss_kib_of.iter().map(part).collect();
                let (mib, alone) = (usage.pss_kib as f64 / 1024.0, usage.alone_kib as f64 / 1024.0);
                writeln!(
                    f,
                    "{:<7} {when:<13} {mib:>8.1} {alone:>10.1} {:>13.2}   {}",
                    usage.node,
                    usage.cpu_percent,
                    parts.join(", ")
                )?;
            }
        }
        writeln!(
            f,
            "alone: an estimate for a host of its own, where no other node's processes share the program's pages."
        )?;
        writeln!(f, "\nThe whole run took {} s.", self.elapsed_seconds)
    }
}

impl Round {
    /// Before anything has happened.
    pub fn of(subject: Subject, fault: Fault, round: usize) -> Self {
        Self {
            subject,
            fault,
            round,
            gap_ms: 0,
            client_gap_ms: 0,
            acknowledged: 0,
            lost: 0,
            failures: 0,
            controller_there: false,
        }
    }

    pub fn line(&self) -> String {
        let subject = match self.subject {
            Subject::Pgstead => "pgstead",
            Subject::Reference => "reference",
        };
        let also = if self.controller_there { "  (the controller's node)" } else { "" };
        format!(
            "{:>3}  {subject:<10} {:<18} {:>6} ms  {} rows, {} lost{also}",
            self.round, self.fault, self.gap_ms, self.acknowledged, self.lost
        )
    }
}

pub fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
