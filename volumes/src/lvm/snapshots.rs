//! Snapshots of volumes: thin, so that one takes a moment and no room, whatever the size; what is written to the volume later does.

use super::{Inner, Pool, blocking, filesystem, tags, unusable};
use crate::driver::{NewVolume, Refusal, VolumeError};
use crate::snapshot::{Forking, NewSnapshot, SNAPSHOTS_MAX, SNAPSHOTS_OF_POOL_MAX, Snapshot, Snapshotted};
use pgstead_lvm::SnapshotUse;
use pgstead_types::storage::PoolState;
use pgstead_types::{SnapshotId, VolumeId, WallTime};
use tags::Unreadable;

impl Inner {
    pub async fn snapshot(&self, new: &NewSnapshot) -> Result<Snapshotted, VolumeError> {
        let turn = self.turn(new.of);
        let _turn = turn.lock().await;
        let held = self.lvm.volumes(&self.config.group).await?;
        let name = tags::snapshot_name(new.id);
        if let Some(there) = held.iter().find(|volume| volume.name == name) {
            let found = self.read_snapshot(there, new.id)?;
            return match found.of == new.of {
                true => Ok(Snapshotted::AlreadyThere(found)),
                false => Err(unusable(new.of, format!("snapshot {} is of volume {}", new.id, found.of))),
            };
        }
        let of = tags::volume_name(new.of);
        let Some(origin) = held.iter().find(|volume| volume.name == of) else { return Ok(Snapshotted::NotThere) };
        let (volume, layout) = self.read(origin, new.of)?;
        let all: Vec<_> = held.iter().filter_map(tags::snapshot_entry).collect();
        if all.iter().filter(|(_, of)| *of == Some(new.of)).count() >= SNAPSHOTS_MAX {
            let whose = format!("volume {}", new.of);
            return Ok(Snapshotted::Refused(Refusal::TooManySnapshots { whose, limit: SNAPSHOTS_MAX }));
        }
        if all.len() >= SNAPSHOTS_OF_POOL_MAX {
            let whose = format!("the pool {}", self.pool_path().display());
            return Ok(Snapshotted::Refused(Refusal::TooManySnapshots { whose, limit: SNAPSHOTS_OF_POOL_MAX }));
        }
        let pool = self.pool_among(&held).await?;
        if let Some(refusal) = self.refuses_snapshot(&pool) {
            return Ok(Snapshotted::Refused(refusal));
        }
        let snapshot = pgstead_lvm::Snapshot {
            of: origin.path(),
            name: name.clone(),
            tags: tags::written_snapshot(new, &volume, WallTime::now(), layout),
            use_as: SnapshotUse::Kept,
        };
        self.sync_mounted(new.of, layout).await?;
        self.lvm.snapshot(&snapshot).await?;
        let made = self.lvm.volume(&self.path(name)).await?;
        let made =
            made.ok_or_else(|| unusable(new.of, "LVM does not list the snapshot though it was made just now"))?;
        Ok(Snapshotted::Made(self.read_snapshot(&made, new.id)?))
    }

    pub async fn finished_snapshot(&self, id: SnapshotId) -> Result<Snapshot, VolumeError> {
        let path = self.path(tags::snapshot_name(id));
        let missing = || VolumeError::Unreadable { path: path.device(), why: "there is no such snapshot".to_string() };
        self.read_snapshot(&self.lvm.volume(&path).await?.ok_or_else(missing)?, id)
    }

    /// A writable snapshot of the snapshot, which has its name and its tags from the one change of LVM's metadata that makes it.
    pub async fn fork(&self, new: &NewVolume, from: SnapshotId) -> Result<Forking, VolumeError> {
        let turn = self.turn(new.id);
        let _turn = turn.lock().await;
        let held = self.lvm.volumes(&self.config.group).await?;
        let name = tags::volume_name(new.id);
        if let Some(there) = held.iter().find(|volume| volume.name == name) {
            let (volume, layout) = self.read(there, new.id)?;
            if volume.tags != new.tags {
                return Ok(Forking::Refused(Refusal::other_tags(new.id, volume.tags, new.tags)));
            }
            self.ensure_mounted(there, &volume, layout).await?;
            return Ok(Forking::AlreadyThere(volume));
        }
        let origin = tags::snapshot_name(from);
        let Some(origin) = held.iter().find(|volume| volume.name == origin) else { return Ok(Forking::NoSnapshot) };
        let (owner, layout) = tags::read_snapshot_layout(origin, from)
            .map_err(|Unreadable(why)| VolumeError::Unreadable { path: origin.path().device(), why })?;
        if owner != new.owner {
            let why = format!(
                "snapshot {from} is of a volume of user {}:{}, expected {}:{}: Postgres could not read what is in it",
                owner.uid, owner.gid, new.owner.uid, new.owner.gid
            );
            return Err(unusable(new.id, why));
        }
        let pool = self.pool_among(&held).await?;
        // What LVM calls its size it has already.
        let like = NewVolume { size: Some(origin.size), ..new.clone() };
        if let Some(refusal) = self.refuses(&like, &pool).await? {
            return Ok(Forking::Refused(refusal));
        }
        let fork = pgstead_lvm::Snapshot {
            of: origin.path(),
            name: name.clone(),
            tags: tags::written(new, WallTime::now(), layout),
            use_as: SnapshotUse::Written,
        };
        self.lvm.snapshot(&fork).await?;
        let made = self.lvm.volume(&self.path(name)).await?;
        let made = made.ok_or_else(|| unusable(new.id, "LVM does not list it though it was made just now"))?;
        let (volume, layout) = self.read(&made, new.id)?;
        self.ensure_mounted(&made, &volume, layout).await?;
        Ok(Forking::Made(volume))
    }

    /// Every write after it copies what it keeps.
    fn refuses_snapshot(&self, pool: &Pool) -> Option<Refusal> {
        match pool.state() {
            PoolState::Fine => None,
            PoolState::NearlyFull { why }
            | PoolState::Full { why }
            | PoolState::Brimming { why }
            | PoolState::Unwell { why } => Some(Refusal::PoolUnwell { pool: self.pool_path(), why }),
        }
    }

    /// In the order in which they were taken. What cannot be read is left out, and left alone.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, VolumeError> {
        let held = self.lvm.volumes(&self.config.group).await?;
        let read = |held| tags::snapshot_entry(held).and_then(|(id, _)| self.read_snapshot(held, id).ok());
        let mut all: Vec<Snapshot> = held.iter().filter_map(read).collect();
        all.sort_by_key(|snapshot| (snapshot.created, snapshot.id));
        Ok(all)
    }

    /// Whether it was there.
    pub async fn remove_snapshot(&self, id: SnapshotId) -> Result<bool, VolumeError> {
        let Some(held) = self.lvm.volume(&self.path(tags::snapshot_name(id))).await? else { return Ok(false) };
        // Its tags are read for this alone: what has our name and not our tags is not ours to remove.
        self.read_snapshot(&held, id)?;
        let mounted = held.device_number;
        let in_use =
            blocking(move || Ok(filesystem::mounts()?.into_iter().any(|mount| Some(mount.device_number) == mounted)));
        if in_use.await? {
            let path = held.path().device();
            return Err(VolumeError::Unreadable { path, why: "it is mounted, which nothing of ours does".to_string() });
        }
        self.lvm.remove(&held.path()).await?;
        Ok(true)
    }

    /// Those of a volume that is deleted itself.
    pub async fn remove_snapshots_of(&self, id: VolumeId) -> Result<(), VolumeError> {
        for snapshot in self.snapshots().await? {
            if snapshot.of == id {
                self.remove_snapshot(snapshot.id).await?;
            }
        }
        Ok(())
    }

    fn read_snapshot(&self, held: &pgstead_lvm::LogicalVolume, id: SnapshotId) -> Result<Snapshot, VolumeError> {
        tags::read_snapshot(held, id)
            .map_err(|Unreadable(why)| VolumeError::Unreadable { path: held.path().device(), why })
    }
}
