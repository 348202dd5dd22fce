//! What placement is decided by on this node: the record, and the controller's knowledge of the nodes.

use crate::backend::{NODES_AGAIN, NodeBackend};
use crate::moving::new_members;
use pgstead_api::backend::{PlacementAsked, PlacementExplained, PresentJudged, Rejected};
use pgstead_core::{Facts, Placed, Who, place};
use pgstead_types::placement::Judged;
use pgstead_types::record::{ClusterRecord, MemberRecord, Record};
use pgstead_types::spec::ClusterSpec;
use pgstead_types::{ClusterId, Tick};
use std::cmp::Reverse;
use std::time::Duration;

/// For nodes of the record to be heard, where too few are for what is asked.
const NODES_PATIENCE: Duration = Duration::from_secs(5);

impl NodeBackend {
    /// Of the nodes, as this controller has heard them. Elsewhere nothing is known.
    pub(crate) fn facts(&self) -> Facts {
        match self.controller.view() {
            Some(view) => Facts::seen(&view.observed, &self.policy, Tick::now()),
            None => Facts::default(),
        }
    }

    /// A controller that has just begun, or a busy host: the reports of nodes that would do are on their way.
    pub(crate) async fn await_nodes(&self, can_place: impl Fn(&Record, &Facts) -> bool) {
        let until = Tick::now() + NODES_PATIENCE;
        loop {
            let (record, facts) = (self.consensus.record(), self.facts());
            let all = facts.clone().with_all(record.nodes.keys().copied());
            let may_come = can_place(&record, &all) && !can_place(&record, &facts);
            if !(may_come || self.begins(&record)) || Tick::now() >= until {
                return;
            }
            tokio::time::sleep(NODES_AGAIN).await;
        }
    }

    /// This controller has just begun and has not heard every node yet: what it knows of some is no reason to choose these.
    fn begins(&self, record: &Record) -> bool {
        let Some(view) = self.controller.view() else { return self.consensus.leadership().am_leader };
        let lately = Tick::now().since(view.observed.elected) < self.policy.suspicion;
        lately && record.nodes.keys().any(|node| !view.observed.nodes.contains_key(node))
    }

    /// The members that a cluster lacks to have as many as the spec says, each with the lowest number that is free and a node of its own.
    pub(crate) async fn placed_more(
        &self,
        cluster: ClusterId,
        spec: &ClusterSpec,
    ) -> Result<Vec<MemberRecord>, Rejected> {
        let lacking = |cluster: &ClusterRecord| usize::from(spec.members).saturating_sub(cluster.members.len());
        if lacking(&self.cluster(cluster)?) == 0 {
            return Ok(Vec::new());
        }
        let more = |record: &Record, facts: &Facts, cluster: &ClusterRecord| {
            place(record, facts, spec, Who::More { cluster, count: lacking(cluster) })
        };
        self.await_nodes(|record, facts| {
            let held = record.clusters.get(&cluster);
            held.is_none_or(|held| more(record, facts, held).refused.is_none())
        })
        .await;
        let record = self.consensus.record();
        let held =
            record.clusters.get(&cluster).ok_or(Rejected::NotFound { what: "cluster", id: cluster.to_string() })?;
        let placed = more(&record, &self.facts(), held).nodes();
        let (nodes, _) = placed.map_err(|error| Rejected::Conflict { why: error.to_string() })?;
        Ok(new_members(held, nodes))
    }

    /// By the same decision, and after the same waiting, as if it were asked for.
    pub(crate) async fn explained(&self, asked: PlacementAsked) -> Result<PlacementExplained, Rejected> {
        let placed = |record: &Record, facts: &Facts| match &asked {
            PlacementAsked::New(spec) => Some(place(record, facts, spec, Who::New)),
            PlacementAsked::More(id) => {
                let cluster = record.clusters.get(id)?;
                Some(place(record, facts, &cluster.spec, Who::More { cluster, count: 1 }))
            }
        };
        self.await_nodes(|record, facts| placed(record, facts).is_none_or(|placed| placed.refused.is_none())).await;
        // A read that could not be forwarded ends here: to explain by knowing nothing would be to say that no node is reachable.
        if self.controller.view().is_none() {
            return Err(Rejected::NotController);
        }
        let (record, facts) = (self.consensus.record(), self.facts());
        let Some(Placed { judgement, refused }) = placed(&record, &facts) else {
            return Err(Rejected::Conflict { why: "the cluster was deleted meanwhile".into() });
        };
        let cluster = match &asked {
            PlacementAsked::New(_) => None,
            PlacementAsked::More(id) => record.clusters.get(id),
        };
        let present = cluster.map_or_else(Vec::new, |cluster| present(&record, &facts, cluster));
        Ok(PlacementExplained { judgement, refused: refused.map(|why| why.to_string()), present })
    }
}

fn present(record: &Record, facts: &Facts, cluster: &ClusterRecord) -> Vec<PresentJudged> {
    let one = |member: &MemberRecord| {
        let again = place(record, facts, &cluster.spec, Who::Again { cluster, member: member.id });
        let at = again.judgement.of(member.node)?.clone();
        // Of two that are as good as each other, the one that has it is the better one.
        let worth =
            |judged: &Judged| (judged.against.is_some(), judged.in_zone, judged.in_region, Reverse(judged.score));
        let best = again.judgement.chosen().next();
        let better = best.filter(|best| worth(best) < worth(&at)).map(|best| best.node);
        Some(PresentJudged { member: member.id, at, better })
    };
    cluster.members.values().filter_map(one).collect()
}
