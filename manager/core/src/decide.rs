//! Control flow only. The order of a change of leader stands here, in one `match`:
//! record the epoch, fence by promises, promote, confirm, publish.

use crate::observed::{Memory, Observed, Policy};
use crate::{deletion, election, members, promotion, record_behind, schedule, steady};
use pgstead_types::record::{ClusterChange, ClusterRecord, Leadership, Lifecycle};
use pgstead_types::{Finding, OperationId, Tick};

/// What to do about one cluster: at most one change of its record, decided on exactly that revision of it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    pub change: Option<ClusterChange>,
    /// An operation of this cluster that has reached its end.
    pub ended: Option<(OperationId, Option<String>)>,
    pub findings: Vec<Finding>,
    /// Decide again at this time even if nothing changes before.
    pub wake_at: Option<Tick>,
}

impl Plan {
    pub(crate) fn change(change: ClusterChange) -> Self {
        Self { change: Some(change), ..Self::default() }
    }
    pub(crate) fn wait(finding: Finding) -> Self {
        Self { findings: vec![finding], ..Self::default() }
    }
    pub(crate) fn until(mut self, at: Tick) -> Self {
        self.wake_at = Some(self.wake_at.map_or(at, |held| held.min(at)));
        self
    }
    pub(crate) fn with(mut self, finding: Finding) -> Self {
        self.findings.push(finding);
        self
    }
    pub(crate) fn settled(&self) -> bool {
        self.change.is_none() && self.ended.is_none()
    }
}

/// Decides once about one cluster. Deciding again on the same input gives the same plan; on a settled world the plan has
/// no change.
pub fn decide(cluster: &ClusterRecord, observed: &Observed, policy: &Policy, memory: &mut Memory) -> Plan {
    memory.phase_began(cluster, observed.now);
    if cluster.lifecycle != Lifecycle::Active {
        return deletion::plan(cluster, observed, policy);
    }
    if let Some(plan) = record_behind::plan(cluster, observed, policy) {
        return plan;
    }
    let mut plan = situation(cluster, observed, policy, memory);
    if plan.settled() {
        plan.change = schedule::missed(cluster, observed, policy);
    }
    if !cluster.departed.is_empty() {
        let departed = deletion::departed(cluster, observed, policy);
        plan.findings.extend(departed.findings);
        if plan.settled() {
            plan.change = departed.change.or_else(|| members::release(cluster, observed, policy, memory));
        }
    }
    plan
}

fn situation(cluster: &ClusterRecord, observed: &Observed, policy: &Policy, memory: &mut Memory) -> Plan {
    match &cluster.leadership {
        // The epoch is recorded. Members that see it promise; enough promises are the fence.
        Leadership::Electing { reason, preferred } => {
            election::plan(cluster, observed, policy, memory, *reason, *preferred)
        }
        // The choice is recorded. The chosen one promotes itself when it sees it.
        Leadership::Chosen { leader } => promotion::await_promotion(cluster, observed, policy, memory, *leader),
        // Promoted. Only what k of the set have flushed past its beginning makes it count.
        Leadership::Promoted { leader } => promotion::await_confirmation(cluster, observed, policy, memory, *leader),
        // Confirmed, and by that published: gateways route by the record.
        Leadership::Confirmed { leader } => steady::plan(cluster, observed, policy, memory, *leader),
    }
}

#[cfg(test)]
mod tests;
