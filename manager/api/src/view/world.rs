//! One reading of everything that answers are made from, and the names in it.

use super::{ClusterRef, MemberRef, NodeRef};
use crate::backend::{MemberSeen, Observations};
use pgstead_types::record::{ClusterRecord, MemberRecord, Record};
use pgstead_types::report::PrimarySeen;
use pgstead_types::{ClusterId, MemberId, NodeId};

/// A report older than this says what was, not what is. Nodes report every second or so; shorter would flicker at
/// one lost report, longer would call a dead leader healthy.
pub const FRESH_MS: u64 = 5_000;

/// The record and what is observed, both of one moment.
#[derive(Clone, Copy)]
pub struct World<'a> {
    pub record: &'a Record,
    /// `None` when this node is not the controller and cannot reach it.
    pub observed: Option<&'a Observations>,
    /// The node that answers.
    pub answering: NodeId,
    pub controller: Option<NodeId>,
}

impl<'a> World<'a> {
    pub(super) fn seen(&self, member: MemberId) -> Option<&'a MemberSeen> {
        self.observed?.members.get(&member)
    }

    /// The member's last report while it is fresh.
    pub(super) fn fresh(&self, member: MemberId) -> Option<&'a MemberSeen> {
        self.seen(member).filter(|seen| is_fresh(seen))
    }

    /// The recorded leader's Postgres, while it runs as the primary of the recorded epoch and a fresh report says so.
    pub(super) fn leading(&self, cluster: &ClusterRecord) -> Option<&'a PrimarySeen> {
        let leader = cluster.leadership.leader()?;
        self.fresh(leader)?.report.as_primary().filter(|primary| primary.epoch == Some(cluster.epoch))
    }

    pub(super) fn node_ref(&self, id: NodeId) -> NodeRef {
        let name = self.record.nodes.get(&id).map_or_else(|| id.to_string(), |node| node.name.clone());
        NodeRef { id, name }
    }
}

/// Neither old, nor of a node that the controller does not hear: decisions go by that as well.
pub(super) fn is_fresh(seen: &MemberSeen) -> bool {
    seen.reachable && seen.age_ms <= FRESH_MS
}

pub(super) fn cluster_ref(cluster: &ClusterRecord) -> ClusterRef {
    ClusterRef { id: cluster.id, name: cluster.spec.name.clone() }
}

/// By its id where it is gone.
pub(super) fn cluster_named(record: &Record, cluster: ClusterId) -> ClusterRef {
    match record.clusters.get(&cluster) {
        Some(held) => cluster_ref(held),
        None => ClusterRef { id: cluster, name: cluster.to_string() },
    }
}

pub(super) fn member_ref(member: &MemberRecord) -> MemberRef {
    MemberRef { id: member.id, name: member.name.clone() }
}

/// The member's name, or its id when it has left the cluster.
pub(super) fn member_name(cluster: &ClusterRecord, id: MemberId) -> String {
    cluster.members.get(&id).map_or_else(|| id.to_string(), |member| member.name.clone())
}
