//! A cluster's spec changes while it runs. What can change is recorded at once; the controller then brings the cluster
//! to it, and the operation ends when it has.

use super::cluster::{ClusterRecord, Lifecycle};
use super::{MemberRecord, OperationKind, Outcome, Refusal, conflict};
use crate::ids::OperationId;
use crate::secret::Secret;
use crate::size::VolumeSize;
use crate::spec::{Cascade, ClusterSpec};

impl ClusterRecord {
    /// `added`: the number of members may be another, and these are the new ones.
    pub(super) fn update_spec(
        &mut self,
        operation: OperationId,
        spec: &ClusterSpec,
        added: Option<&[MemberRecord]>,
        consumer_password: Option<&Secret>,
        outcome: &mut Outcome,
    ) -> Result<(), Refusal> {
        if self.lifecycle != Lifecycle::Active {
            return Err(conflict("the cluster is being deleted"));
        }
        spec.check().map_err(|error| conflict(error.to_string()))?;
        let mut kept = spec.clone();
        if added.is_some() {
            kept.members = self.spec.members;
        }
        kept.sync_replicas = self.spec.sync_replicas;
        kept.durability = self.spec.durability;
        kept.slot_wal_budget = self.spec.slot_wal_budget;
        kept.cascade = self.spec.cascade;
        kept.logical_replication = self.spec.logical_replication;
        kept.volume_size = self.spec.volume_size;
        kept.volume_limit = self.spec.volume_limit;
        kept.snapshots = self.spec.snapshots;
        kept.replace_after = self.spec.replace_after;
        kept.regions.clone_from(&self.spec.regions);
        kept.zones_min = self.spec.zones_min;
        kept.placement_weights = self.spec.placement_weights;
        kept.io_limits = self.spec.io_limits;
        if kept != self.spec {
            return Err(conflict(
                "only members, sync_replicas, durability, slot_wal_budget, cascade, logical_replication, volume_size, \
                 volume_limit, snapshots, replace_after, regions, zones_min, placement_weights and io_limits of a running cluster can change; everything else stays as it was made",
            ));
        }
        if *spec == self.spec {
            return Err(conflict("the cluster is asked for in that way already; nothing was changed"));
        }
        if let Some(added) = added {
            self.change_members(spec.members, added, outcome)?;
        }
        if let Some(older) = self.updating.replace(operation) {
            outcome.end = Some((older, Some("another change of the spec has taken its place".to_string())));
        }
        let moves = spec.members != self.spec.members;
        let consumers = spec.logical_replication || self.spec.logical_replication;
        let text = |spec: &ClusterSpec| {
            let members = if moves { format!("members = {}, ", spec.members) } else { String::new() };
            let (needed, durability, budget) = (spec.needed(), spec.durability, spec.slot_wal_budget);
            let cascade = match spec.cascade {
                Cascade::None => String::new(),
                Cascade::Zone => ", cascade = zone".to_string(),
            };
            // A voter of the version before says the same of a cluster that has none.
            let logical = match consumers {
                true => format!(", logical_replication = {}", spec.logical_replication),
                false => String::new(),
            };
            let asked = format!("sync_replicas = {needed}, durability = {durability}, slot_wal_budget = {budget}");
            let size = |name: &str, size: Option<VolumeSize>| {
                size.map_or_else(String::new, |size| format!(", {name} = {size}"))
            };
            let sizes = [size("volume_size", spec.volume_size), size("volume_limit", spec.volume_limit)].concat();
            let snapshots =
                if spec.snapshots.is_off() { String::new() } else { format!(", snapshots = {}", spec.snapshots) };
            let replaced = match spec.replace_after.is_default() {
                true => String::new(),
                false => format!(", replace_after = {}", spec.replace_after),
            };
            let placed = placed(spec);
            let limited = match spec.io_limits.is_none() {
                true => String::new(),
                false => format!(", io_limits: {}", spec.io_limits),
            };
            format!("{members}{asked}{cascade}{logical}{sizes}{snapshots}{replaced}{placed}{limited}")
        };
        outcome.event("spec_changed", format!("asked for: {}; before: {}", text(spec), text(&self.spec)));
        if spec.logical_replication != self.spec.logical_replication {
            // Whoever had the old one is out for good.
            self.secrets.consumer_password = consumer_password.filter(|_| spec.logical_replication).cloned();
        }
        self.spec = spec.clone();
        self.judge_degraded();
        outcome.start = Some((operation, OperationKind::UpdateCluster));
        Ok(())
    }
}

/// What it asks of the nodes for new members. A voter of the version before says the same of a cluster that asks for nothing.
fn placed(spec: &ClusterSpec) -> String {
    let regions: Vec<&str> = spec.regions.iter().map(String::as_str).collect();
    let regions = if regions.is_empty() { String::new() } else { format!(", regions = {}", regions.join(" ")) };
    let zones = spec.zones_min.map_or_else(String::new, |zones| format!(", zones_min = {zones}"));
    let weights = match spec.placement_weights.is_default() {
        true => String::new(),
        false => format!(", placement_weights = {}", spec.placement_weights),
    };
    format!("{regions}{zones}{weights}")
}
