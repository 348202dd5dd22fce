//! What changes in the record when it goes on from one survivor's copy.

use super::Record;
use crate::ids::{NodeId, RecoveryId};
use crate::time::WallTime;
use std::collections::BTreeSet;

/// The entries that are lost may have given members on the lost nodes new incarnations. Numbers from there on are skipped,
/// more of them than anyone loses, so that no life of data is ever taken for another of the same number.
const INCARNATIONS_SKIPPED: u32 = 1000;

impl Record {
    /// Whatever comes back from a lost node is not the cluster's any more.
    pub(super) fn recover_quorum(
        &mut self,
        at: WallTime,
        recovery: RecoveryId,
        node: NodeId,
        by: &str,
        lost: &BTreeSet<NodeId>,
    ) {
        let name = |id: &NodeId| self.nodes.get(id).map_or_else(|| id.to_string(), |node| node.name.clone());
        let names: Vec<String> = lost.iter().map(name).collect();
        let message = format!(
            "{by} recovered the record on node {} at revision {} (recovery {recovery}); lost for good: {}",
            name(&node),
            self.revision,
            names.join(", ")
        );
        self.note(at, "quorum_recovered", message, None, Some(node));
        let mut retired = Vec::new();
        for cluster in self.clusters.values_mut() {
            let before = retired.len();
            for member in cluster.members.values_mut().filter(|member| lost.contains(&member.node)) {
                member.incarnation += INCARNATIONS_SKIPPED;
                retired.push((cluster.id, member.name.clone()));
            }
            cluster.revision += u64::from(retired.len() > before);
        }
        for (cluster, name) in retired {
            let message = format!("the data of {name} was on a lost node and is not the cluster's any more");
            self.note(at, "data_retired", message, Some(cluster), None);
        }
    }
}
