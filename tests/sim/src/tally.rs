//! How often what happened, and what must have happened in a long enough run. The lists follow the enums themselves: a
//! fault, step or reason that is new and never happens is noticed.

use crate::faults::FaultKind;
use pgstead_types::Step;
use pgstead_types::record::EpochReason;
use std::collections::BTreeMap;

/// Runs of at least so many seeds must have seen everything.
pub const SEEDS_THAT_SHOW_ALL: u64 = 200;

/// A list and a match from one line: a variant that is not in the list does not compile.
macro_rules! every {
    ($list:ident: $type:ident = $($name:ident),+ $(,)?) => {
        const $list: &[$type] = &[$($type::$name),+];
        const _: fn($type) = |one| match one {
            $($type::$name => {})+
        };
    };
}

every!(REASONS: EpochReason = Created, PostgresEnded, NodeLost, NodeSilent, CutFromStandbys, PostgresHung, StorageFailed,
    DataCorruption, SyncSetChange, PromotionFailed, Switchover, Restart, Forced, RecordBehind);

/// Reasons that no simulated record gives.
fn never_recorded(reason: EpochReason) -> Option<&'static str> {
    match reason {
        EpochReason::RecordBehind => Some("recoveries of the record are drawn in few seeds"),
        _ => None,
    }
}

/// Steps that no simulated agent takes, with the reason.
fn never_simulated(step: Step) -> Option<&'static str> {
    match step {
        Step::Reload => Some("certificates and settings are not modelled"),
        Step::AdoptData => Some("there is one cluster, and no snapshots"),
        _ => None,
    }
}

pub fn of_fault(kind: FaultKind) -> String {
    format!("fault: {}", kind.as_str())
}
pub fn of_step(step: Step) -> String {
    format!("step: {step}")
}
pub fn of_change(reason: EpochReason) -> String {
    // As it is recorded.
    let name = serde_json::to_value(reason).ok();
    format!("epoch: {}", name.as_ref().and_then(|name| name.as_str()).unwrap_or("?"))
}

/// Everything that must have happened.
pub fn required() -> Vec<String> {
    let faults = FaultKind::ALL.iter().map(|kind| of_fault(*kind));
    let steps = Step::ALL.iter().filter(|step| never_simulated(**step).is_none()).map(|step| of_step(*step));
    let changes = REASONS.iter().filter(|reason| never_recorded(**reason).is_none()).map(|reason| of_change(*reason));
    faults.chain(steps).chain(changes).collect()
}

/// What many courses came to.
#[derive(Default)]
pub struct Tally {
    pub counts: BTreeMap<String, u64>,
    pub seeds: u64,
    /// Seeds in which another member led at some time than at first.
    pub changed_leader: u64,
    pub rows: u64,
    pub epochs: u64,
}

impl Tally {
    pub fn add(&mut self, course: &crate::run::Course) {
        for (what, count) in &course.counts {
            *self.counts.entry(what.clone()).or_default() += count;
        }
        self.seeds += 1;
        self.changed_leader += u64::from(course.changed_leader);
        self.rows += course.acknowledged as u64;
        self.epochs += course.epochs;
    }

    /// What is wrong with the run as a whole: things that never happened, too few changes of leader.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        if self.seeds < SEEDS_THAT_SHOW_ALL {
            return complaints;
        }
        for what in required().iter().filter(|what| !self.counts.contains_key(*what)) {
            complaints.push(format!("never happened: {what}"));
        }
        if self.changed_leader * 2 < self.seeds {
            complaints.push(format!("only {} of {} seeds change a leader", self.changed_leader, self.seeds));
        }
        complaints
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_that_never_showed_something_is_complained_of() {
        let mut tally = Tally { seeds: 300, changed_leader: 149, ..Tally::default() };
        tally.counts = required().into_iter().map(|what| (what, 1)).collect();
        tally.counts.remove("step: fence");
        let complaints = tally.complaints();
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints[0].contains("step: fence") && complaints[1].contains("149 of 300"), "{complaints:?}");
    }

    #[test]
    fn a_short_run_need_not_show_all() {
        assert!(Tally { seeds: 20, ..Tally::default() }.complaints().is_empty());
    }
}
