//! Snapshots of directories, and volumes made from them: copies, for which the driver makes the place and gives the name. Whoever asks
//! fills the place in between, and knows how what is in the volume is copied while it is in use.

use super::layout::{self, DATA, Unreadable, unfinished_name, volume_name};
use super::pool::Pool;
use crate::driver::{NewVolume, Refusal, Volume, VolumeError, VolumeTags};
use crate::snapshot::{Forking, NewSnapshot, SNAPSHOTS_MAX, SNAPSHOTS_OF_POOL_MAX, Snapshot, Snapshotted, ToFill};
use pgstead_types::storage::{PoolState, SnapshotWhy};
use pgstead_types::{Bytes, SnapshotId, VolumeId, WallTime};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const TAGS: &str = "snapshot.json";
const VERSION: u32 = 1;
/// Of a whole snapshot; one that is being made or removed has a dot before it.
const WHOLE: &str = "snap-";
const UNFINISHED: &str = ".new-snap-";
const TRASH: &str = ".trash-snap-";

#[derive(Serialize, Deserialize)]
struct TagsFile {
    version: u32,
    snapshot: SnapshotId,
    volume: VolumeId,
    #[serde(flatten)]
    tags: VolumeTags,
    why: SnapshotWhy,
    created_unix_ms: WallTime,
    #[serde(default)]
    expires_unix_ms: Option<WallTime>,
    size_bytes: Bytes,
}

fn id_of(name: &str, prefix: &str) -> Option<SnapshotId> {
    let rest = name.strip_prefix(prefix)?;
    rest.parse::<SnapshotId>().ok().filter(|id| id.to_string() == rest)
}

impl Pool {
    pub fn snapshot(&self, new: &NewSnapshot) -> Result<Snapshotted, VolumeError> {
        let _names = self.lock_names();
        if let Some(found) = self.find_snapshot(new.id)? {
            return match found.of == new.of {
                true => Ok(Snapshotted::AlreadyThere(found)),
                false => Err(VolumeError::Unusable {
                    id: new.of,
                    why: format!("snapshot {} is of volume {}", new.id, found.of),
                }),
            };
        }
        let Some(volume) = self.find(new.of)? else { return Ok(Snapshotted::NotThere) };
        let all = self.whole_snapshots()?;
        if all.iter().filter(|snapshot| snapshot.of == new.of).count() >= SNAPSHOTS_MAX {
            let whose = format!("volume {}", new.of);
            return Ok(Snapshotted::Refused(Refusal::TooManySnapshots { whose, limit: SNAPSHOTS_MAX }));
        }
        if all.len() >= SNAPSHOTS_OF_POOL_MAX {
            let whose = format!("the pool {}", self.path().display());
            return Ok(Snapshotted::Refused(Refusal::TooManySnapshots { whose, limit: SNAPSHOTS_OF_POOL_MAX }));
        }
        match self.usage()?.state {
            PoolState::Fine => {}
            PoolState::NearlyFull { why }
            | PoolState::Full { why }
            | PoolState::Brimming { why }
            | PoolState::Unwell { why } => {
                return Ok(Snapshotted::Refused(Refusal::PoolUnwell { pool: self.path().to_path_buf(), why }));
            }
        }
        let name = format!("{UNFINISHED}{}", new.id);
        self.delete_whole(&name)?;
        let folder = self.path().join(name);
        let into = super::pool::make_place(&folder, volume.owner)?;
        let tags = TagsFile {
            version: VERSION,
            snapshot: new.id,
            volume: new.of,
            tags: volume.tags,
            why: new.why,
            created_unix_ms: WallTime::now(),
            expires_unix_ms: new.expires,
            size_bytes: Bytes(0),
        };
        layout::write_json(&folder.join(TAGS), &tags)?;
        Ok(Snapshotted::ToFill(ToFill { from: volume.path, into }))
    }

    /// It shows what was there until now: the copy ends with what was written while it was made.
    pub fn finish_snapshot(&self, id: SnapshotId) -> Result<Snapshot, VolumeError> {
        let _names = self.lock_names();
        if let Some(found) = self.find_snapshot(id)? {
            return Ok(found);
        }
        let folder = self.path().join(format!("{UNFINISHED}{id}"));
        let unreadable = |Unreadable(why)| VolumeError::Unreadable { path: folder.clone(), why };
        let mut tags = read_file(&folder, id).map_err(unreadable)?;
        tags.created_unix_ms = WallTime::now();
        tags.size_bytes = Bytes(stored(&folder.join(DATA)).map_err(VolumeError::io("measure", &folder))?);
        layout::write_json(&folder.join(TAGS), &tags)?;
        layout::sync_folder(&folder)?;
        let whole = self.path().join(format!("{WHOLE}{id}"));
        fs::rename(&folder, &whole).map_err(VolumeError::io("rename to its final name", &folder))?;
        layout::sync_folder(self.path())?;
        Ok(told(tags))
    }

    pub fn snapshots(&self) -> Result<Vec<Snapshot>, VolumeError> {
        let _names = self.lock_names();
        self.whole_snapshots()
    }

    /// In the order in which they were taken. What cannot be read is left out, and left alone.
    fn whole_snapshots(&self) -> Result<Vec<Snapshot>, VolumeError> {
        let read = |name: &String| {
            let id = id_of(name, WHOLE)?;
            read_file(&self.path().join(name), id).ok().map(told)
        };
        let mut all: Vec<Snapshot> = self.names()?.iter().filter_map(read).collect();
        all.sort_by_key(|snapshot| (snapshot.created, snapshot.id));
        Ok(all)
    }

    fn find_snapshot(&self, id: SnapshotId) -> Result<Option<Snapshot>, VolumeError> {
        let folder = self.path().join(format!("{WHOLE}{id}"));
        match folder.try_exists() {
            Ok(false) => Ok(None),
            Ok(true) => {
                let unreadable = |Unreadable(why)| VolumeError::Unreadable { path: folder.clone(), why };
                read_file(&folder, id).map(told).map(Some).map_err(unreadable)
            }
            Err(source) => Err(VolumeError::io("look at", folder)(source)),
        }
    }

    /// Out of the list at once; names what is to be deleted, and says whether it was there. Also one that was never finished.
    pub fn set_snapshot_aside(&self, id: SnapshotId) -> Result<(bool, Vec<String>), VolumeError> {
        let _names = self.lock_names();
        let there = self.find_snapshot(id)?.is_some();
        if there {
            let (from, to) = (self.path().join(format!("{WHOLE}{id}")), self.path().join(format!("{TRASH}{id}")));
            self.delete_whole(&format!("{TRASH}{id}"))?;
            fs::rename(&from, to).map_err(VolumeError::io("set aside", &from))?;
            layout::sync_folder(self.path())?;
        }
        let names = [format!("{TRASH}{id}"), format!("{UNFINISHED}{id}")];
        let left = names.into_iter().filter(|name| self.path().join(name).exists()).collect();
        Ok((there, left))
    }

    /// What interrupted copies and removals have left, when the pool is opened.
    pub(super) fn clear_snapshots(&self) -> Result<(), VolumeError> {
        let left = |name: &&String| id_of(name, UNFINISHED).or_else(|| id_of(name, TRASH)).is_some();
        self.names()?.iter().filter(left).try_for_each(|name| self.delete_whole(name))
    }

    pub fn fork(&self, new: &NewVolume, from: SnapshotId) -> Result<Forking, VolumeError> {
        let _names = self.lock_names();
        if let Some(volume) = self.find(new.id)? {
            return Ok(match volume.tags == new.tags {
                true => Forking::AlreadyThere(volume),
                false => Forking::Refused(Refusal::other_tags(new.id, volume.tags, new.tags)),
            });
        }
        // What an earlier copy has left takes the room that this one is to have.
        self.delete_whole(&unfinished_name(new.id))?;
        if self.find_snapshot(from)?.is_none() {
            return Ok(Forking::NoSnapshot);
        }
        if let Some(refusal) = self.refuses(new)? {
            return Ok(Forking::Refused(refusal));
        }
        let from = self.path().join(format!("{WHOLE}{from}")).join(DATA);
        Ok(Forking::ToFill(ToFill { from, into: self.begin(new, WallTime::now())? }))
    }

    pub fn finish_fork(&self, id: VolumeId) -> Result<Volume, VolumeError> {
        let _names = self.lock_names();
        if let Some(volume) = self.find(id)? {
            return Ok(volume);
        }
        let folder = self.path().join(unfinished_name(id));
        let read = layout::read_volume(&folder, id);
        let volume = read.map_err(|Unreadable(why)| VolumeError::Unreadable { path: folder.clone(), why })?;
        let path = self.path().join(volume_name(id));
        self.give_name(&folder, &path)?;
        Ok(Volume { path: path.join(DATA), ..volume })
    }
}

fn read_file(folder: &Path, id: SnapshotId) -> Result<TagsFile, Unreadable> {
    let text = fs::read(folder.join(TAGS)).map_err(|error| Unreadable(format!("{TAGS}: {error}")))?;
    let file: TagsFile = serde_json::from_slice(&text).map_err(|error| Unreadable(format!("{TAGS}: {error}")))?;
    if file.version != VERSION {
        return Err(Unreadable(format!("{TAGS} has version {}, expected {VERSION}", file.version)));
    }
    if file.snapshot != id {
        return Err(Unreadable(format!("{TAGS} is that of snapshot {}", file.snapshot)));
    }
    Ok(file)
}

fn told(file: TagsFile) -> Snapshot {
    let TagsFile { snapshot, volume, tags, why, created_unix_ms, expires_unix_ms, size_bytes, .. } = file;
    Snapshot {
        id: snapshot,
        of: volume,
        tags,
        why,
        created: created_unix_ms,
        expires: expires_unix_ms,
        size: size_bytes,
    }
}

/// Bytes below a folder, also those that it shares with others. Everything in it is on disk when this returns.
fn stored(folder: &Path) -> io::Result<u64> {
    let (mut bytes, mut open) = (0, vec![folder.to_path_buf()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                open.push(entry.path());
            } else {
                bytes += metadata.blocks() * 512;
            }
        }
        File::open(&folder)?.sync_all()?;
    }
    Ok(bytes)
}
