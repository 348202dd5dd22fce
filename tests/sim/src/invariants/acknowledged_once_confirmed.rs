//! Nothing is acknowledged in an unconfirmed epoch, and once an epoch acknowledges, no older one does. Only the late word
//! of a commit that was decided in time may still come: a primary that was frozen between the last acknowledgement that
//! it needed and its answer. The newer leader has that row. Nor is anything acknowledged once another cluster has the place.

use super::Checks;
use crate::world::CLUSTER;
use pgstead_types::Epoch;
use pgstead_types::record::Record;

impl Checks {
    /// A backend of `member` tells its client that `row` is committed.
    pub fn acknowledging(
        &mut self,
        member: usize,
        epoch: Option<Epoch>,
        row: u64,
        newer_leader_has_it: bool,
        record: &Record,
    ) {
        let Some(epoch) = epoch else {
            return self.break_rule(format!("app-{} acknowledges row {row} as nobody's leader", member + 1));
        };
        let forced = record.clusters.get(&CLUSTER).map(|cluster| cluster.forced.as_slice()).unwrap_or_default();
        if forced.iter().any(|one| one.epoch > epoch && !one.retired.is_empty()) {
            // Whoever was left behind by force may go on; what it acknowledges was given up with it.
            if !newer_leader_has_it {
                self.forgiven.insert(row);
            }
            return;
        }
        if epoch < self.acknowledged_in && !newer_leader_has_it {
            self.break_rule(format!(
                "app-{} acknowledges row {row} in epoch {epoch} after epoch {} has begun to",
                member + 1,
                self.acknowledged_in
            ));
        }
        if crate::rollback::is_taken(record) && !newer_leader_has_it {
            self.break_rule(format!("app-{} acknowledges row {row} though another cluster has its place", member + 1));
        }
        self.acknowledged_in = self.acknowledged_in.max(epoch);
        let Some(cluster) = record.clusters.get(&CLUSTER) else { return };
        if epoch > cluster.epoch || (epoch == cluster.epoch && !cluster.is_confirmed()) {
            self.break_rule(format!(
                "app-{} acknowledges row {row} in epoch {epoch}, which is not confirmed",
                member + 1
            ));
        }
    }
}
