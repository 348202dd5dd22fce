//! Volumes that no member has: removed where a person says so, or where they hold nothing.

use super::Storage;
use pgstead_types::record::Record;
use pgstead_types::storage::{Orphan, OrphanState};
use pgstead_types::{ClusterId, MemberId, NodeId, VolumeId};
use pgstead_volumes::{Inventory, Removal, Removed, StrayKind, VolumeError, VolumeTags};
use std::collections::BTreeSet;
use std::path::Path;

/// Why a volume is not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    #[error("there is no volume {0} on this node that no member has")]
    NoOrphan(VolumeId),
    #[error(
        "volume {id} cannot be read ({why}), so nobody can say whose it is; look at it on the host, and remove it there"
    )]
    Unreadable { id: VolumeId, why: String },
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl Storage {
    /// Removes what holds nothing, or what was being removed already. Whether it did.
    pub(super) async fn clear(&self, orphan: &Orphan) -> Result<bool, VolumeError> {
        // Looked at again: what came before this one may have taken hours.
        let inventory = self.volumes.list().await?;
        let Some(record) = self.known() else { return Ok(false) };
        if !orphans(&record, self.consensus.node(), &inventory).contains(orphan) {
            return Ok(false);
        }
        let tags = match &orphan.state {
            OrphanState::Whole { deployment, cluster, member, .. } => {
                let in_use = *deployment != self.deployment || self.instances.has(*member);
                // Made by the order of an old record, a moment before the new one came: nothing was ever written to it.
                if in_use || !is_empty(Path::new(&orphan.path)) {
                    return Ok(false);
                }
                // It was written to, then.
                if self.volumes.snapshots().await?.iter().any(|snapshot| snapshot.of == orphan.id) {
                    return Ok(false);
                }
                VolumeTags { deployment: *deployment, cluster: *cluster, member: *member }
            }
            OrphanState::SetAside { .. } => {
                // A removal takes whatever has the id: somebody may have put the volume back.
                if inventory.volumes.iter().any(|volume| volume.id == orphan.id) {
                    return Ok(false);
                }
                match set_aside_tags(&inventory, orphan) {
                    Some(Some(tags)) if tags.deployment == self.deployment => tags,
                    // They go last: there is no data any more.
                    Some(None) => VolumeTags {
                        deployment: self.deployment,
                        cluster: ClusterId::default(),
                        member: MemberId::default(),
                    },
                    _ => return Ok(false),
                }
            }
            OrphanState::Unreadable { .. } => return Ok(false),
        };
        Ok(matches!(self.volumes.remove(orphan.id, &tags, Removal::Hard).await?, Removed::Deleted | Removed::NotThere))
    }

    /// Removes a volume that no member has, because a person says so: out of the inventory at once, its data by and by.
    pub async fn remove(&self, id: VolumeId) -> Result<(), RemoveError> {
        let inventory = self.volumes.list().await?;
        let all = orphans(&self.consensus.record(), self.consensus.node(), &inventory);
        let orphan = all.into_iter().find(|orphan| orphan.id == id).ok_or(RemoveError::NoOrphan(id))?;
        let tags = match orphan.state {
            OrphanState::Whole { deployment, cluster, member, .. } => VolumeTags { deployment, cluster, member },
            OrphanState::SetAside { .. } => {
                let ours = set_aside_tags(&inventory, &orphan)
                    .is_some_and(|tags| tags.is_none_or(|tags| tags.deployment == self.deployment));
                self.look.notify_one();
                return match ours {
                    true => Ok(()),
                    false => Err(RemoveError::Refused(format!(
                        "volume {id} was set aside by another deployment; look at {} on the host, and remove it there",
                        orphan.path
                    ))),
                };
            }
            OrphanState::Unreadable { why } => return Err(RemoveError::Unreadable { id, why }),
        };
        if self.instances.has(tags.member) {
            return Err(RemoveError::Refused(format!(
                "volume {id} is still in use on this node; try again in a moment"
            )));
        }
        match self.volumes.remove(id, &tags, Removal::Soft).await? {
            Removed::Refused(refusal) => Err(RemoveError::Refused(refusal.to_string())),
            Removed::NotThere => Err(RemoveError::NoOrphan(id)),
            Removed::SetAside | Removed::Deleted => {
                tracing::info!(volume = %id, %tags, "a person has removed a volume that no member has");
                self.change_seen(|seen| seen.orphans.retain(|orphan| orphan.id != id));
                self.look.notify_one();
                Ok(())
            }
        }
    }
}

/// Those of what is set aside there: `None` where nothing is, and none inside where they are gone.
fn set_aside_tags(inventory: &Inventory, orphan: &Orphan) -> Option<Option<VolumeTags>> {
    let stray = inventory.strays.iter().find(|stray| stray.path.to_str() == Some(&orphan.path))?;
    match &stray.kind {
        StrayKind::SetAside { tags } => Some(*tags),
        StrayKind::Unfinished | StrayKind::Unreadable { .. } => None,
    }
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// What no member of the record has on this node.
pub(super) fn orphans(record: &Record, node: NodeId, inventory: &Inventory) -> Vec<Orphan> {
    let held: BTreeSet<VolumeId> = record.held_on(node).map(|(_, member)| member.volume).collect();
    let whole = inventory.volumes.iter().map(|volume| {
        let VolumeTags { deployment, cluster, member } = volume.tags;
        let state = OrphanState::Whole { deployment, cluster, member, created: volume.created, size: volume.size };
        Orphan { id: volume.id, state, path: volume.path.display().to_string() }
    });
    let strays = inventory.strays.iter().filter_map(|stray| {
        let state = match &stray.kind {
            // Being made, or cleared when the pool is opened next: it never held data.
            StrayKind::Unfinished => return None,
            StrayKind::SetAside { tags } => OrphanState::SetAside { member: tags.map(|tags| tags.member) },
            StrayKind::Unreadable { why } => OrphanState::Unreadable { why: why.clone() },
        };
        Some(Orphan { id: stray.id, state, path: stray.path.display().to_string() })
    });
    let mut all: Vec<Orphan> = whole.chain(strays).filter(|orphan| !held.contains(&orphan.id)).collect();
    all.sort_by(|a, b| (a.id, &a.path).cmp(&(b.id, &b.path)));
    all
}
