//! The table and the JSON.

use crate::usage::Usage;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    PostmasterKilled,
    NodeKilled,
    Switchover,
}

impl Fault {
    pub const ALL: [Fault; 3] = [Fault::PostmasterKilled, Fault::NodeKilled, Fault::Switchover];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fault::PostmasterKilled => "postmaster killed",
            Fault::NodeKilled => "whole node killed",
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
    pub idle_after_rounds: Vec<Usage>,
    pub elapsed_seconds: u64,
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
        writeln!(f, "                        pgstead                       reference            ratio of   rows lost")?;
        writeln!(
            f,
            "fault                   median    worst  one client    median    worst     medians    pgstead  ref."
        )?;
        for fault in Fault::ALL {
            let gaps = |subject| self.of(subject, fault).map(|round| round.gap_ms).collect::<Vec<_>>();
            let lost = |subject| self.of(subject, fault).map(|round| round.lost).sum::<usize>();
            let (ours, floor) = (gaps(Subject::Pgstead), gaps(Subject::Reference));
            let single = median(self.of(Subject::Pgstead, fault).map(|round| round.client_gap_ms).collect());
            let (our_median, floor_median) = (median(ours.clone()), median(floor.clone()));
            writeln!(
                f,
                "{fault:<20} {our_median:>9} {:>8} {single:>11} {floor_median:>9} {:>8} {:>11.1} {:>10} {:>5}",
                ours.iter().max().unwrap_or(&0),
                floor.iter().max().unwrap_or(&0),
                our_median as f64 / floor_median.max(1) as f64,
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
        for (when, usages) in [("fresh", &self.idle_fresh), ("after rounds", &self.idle_after_rounds)] {
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
