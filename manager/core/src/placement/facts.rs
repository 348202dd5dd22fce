//! What placement knows of the nodes beyond the record: their last reports, as the controller has them.

use crate::observed::{Connection, Observed, Policy};
use pgstead_types::report::NodeReport;
use pgstead_types::storage::StorageSeen;
use pgstead_types::{NodeId, Severity, Tick};
use std::collections::BTreeMap;
use std::time::Duration;

/// By node. One that is absent has told nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts(BTreeMap<NodeId, NodeFacts>);

/// One node, by its last report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    /// It has reported just now.
    pub reachable: bool,
    /// Its pools, by looks of some seconds ago; `None` before the first.
    pub storage: Option<StorageSeen>,
    pub round_trip: Option<Duration>,
    /// Findings of the node about itself.
    pub errors: usize,
    pub warnings: usize,
    /// Members that have told of a trouble.
    pub troubled: usize,
}

impl Facts {
    pub fn new(nodes: BTreeMap<NodeId, NodeFacts>) -> Self {
        Self(nodes)
    }

    /// As the controller has heard it until `now`.
    pub fn seen(observed: &Observed, policy: &Policy, now: Tick) -> Self {
        let of = |(node, seen): (&NodeId, &crate::observed::NodeSeen)| {
            let heard = now.since(seen.heard) < policy.suspicion;
            (*node, NodeFacts::told(&seen.report, seen.connection == Connection::Open && heard))
        };
        Self(observed.nodes.iter().map(of).collect())
    }

    /// As it would be if all of these nodes were reachable.
    pub fn with_all(mut self, nodes: impl Iterator<Item = NodeId>) -> Self {
        for node in nodes {
            self.0.entry(node).or_default().reachable = true;
        }
        self
    }

    pub fn is_reachable(&self, node: NodeId) -> bool {
        self.0.get(&node).is_some_and(|seen| seen.reachable)
    }

    pub(super) fn of(&self, node: NodeId) -> NodeFacts {
        self.0.get(&node).cloned().unwrap_or_default()
    }
}

impl NodeFacts {
    fn told(report: &NodeReport, reachable: bool) -> Self {
        let count = |severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
        Self {
            reachable,
            storage: report.storage.as_ref().map(StorageSeen::alone),
            round_trip: report.round_trip_us.map(Duration::from_micros),
            errors: count(Severity::Error),
            warnings: count(Severity::Warning),
            troubled: report.members.iter().filter(|member| !member.troubles.is_empty()).count(),
        }
    }
}
