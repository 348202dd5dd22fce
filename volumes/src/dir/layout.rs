//! Names within a pool and the file of tags. Nothing else writes or reads `volume.json`.

use crate::driver::{NewVolume, Owner, Volume, VolumeError, VolumeTags};
use crate::entry::{Entry, Prefixes};
use pgstead_types::{Bytes, VolumeId, WallTime};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

pub const TAGS: &str = "volume.json";
pub const DATA: &str = "data";
/// Of the file of tags. A reader that meets another one leaves the volume alone.
const VERSION: u32 = 1;

const NAMES: Prefixes = Prefixes { volume: "", unfinished: ".new-", trash: ".trash-" };

pub fn entry(name: &str) -> Option<Entry> {
    NAMES.parse(name)
}
pub fn volume_name(id: VolumeId) -> String {
    NAMES.volume(id)
}
pub fn unfinished_name(id: VolumeId) -> String {
    NAMES.unfinished(id)
}
pub fn trash_name(id: VolumeId, number: u32) -> String {
    NAMES.trash(id, number)
}

/// Why a folder with a volume's name is not one.
pub struct Unreadable(pub String);

#[derive(Serialize, Deserialize)]
struct TagsFile {
    version: u32,
    volume: VolumeId,
    #[serde(flatten)]
    tags: VolumeTags,
    #[serde(default)]
    size_bytes: Option<Bytes>,
    #[serde(flatten)]
    owner: Owner,
    created_unix_ms: WallTime,
}

/// Writes the tags into a folder that is still being made, and sees them on disk.
pub fn write_tags(folder: &Path, new: &NewVolume, created: WallTime) -> Result<(), VolumeError> {
    let path = folder.join(TAGS);
    let tags = TagsFile {
        version: VERSION,
        volume: new.id,
        tags: new.tags,
        size_bytes: new.size,
        owner: new.owner,
        created_unix_ms: created,
    };
    write_json(&path, &tags)
}

/// On disk when it returns; not at once, so only where nobody looks yet.
pub fn write_json(path: &Path, what: &impl Serialize) -> Result<(), VolumeError> {
    let mut text = serde_json::to_vec_pretty(what).expect("a struct of ids and numbers is always JSON");
    text.push(b'\n');
    let mut file = File::create(path).map_err(VolumeError::io("create", path))?;
    file.write_all(&text).map_err(VolumeError::io("write", path))?;
    file.sync_all().map_err(VolumeError::io("sync", path))
}

/// Reads a volume whose name says `id`; the reason when it is not one.
pub fn read_volume(folder: &Path, id: VolumeId) -> Result<Volume, Unreadable> {
    let volume = read_tags(folder, id)?;
    match fs::symlink_metadata(&volume.path) {
        Ok(found) if found.is_dir() => Ok(volume),
        Ok(_) => Err(Unreadable(format!("{DATA} is not a folder"))),
        Err(error) => Err(Unreadable(format!("{DATA}: {error}"))),
    }
}

/// Reads what the tags say, whether the data is there or not.
pub fn read_tags(folder: &Path, id: VolumeId) -> Result<Volume, Unreadable> {
    let text = fs::read(folder.join(TAGS)).map_err(|error| Unreadable(format!("{TAGS}: {error}")))?;
    let file: TagsFile = serde_json::from_slice(&text).map_err(|error| Unreadable(format!("{TAGS}: {error}")))?;
    if file.version != VERSION {
        return Err(Unreadable(format!("{TAGS} has version {}, expected {VERSION}", file.version)));
    }
    if file.volume != id {
        return Err(Unreadable(format!("{TAGS} is that of volume {}", file.volume)));
    }
    Ok(Volume {
        id,
        tags: file.tags,
        size: file.size_bytes,
        owner: file.owner,
        created: file.created_unix_ms,
        path: folder.join(DATA),
    })
}

/// Makes renames and new names in a folder durable.
pub fn sync_folder(folder: &Path) -> Result<(), VolumeError> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(VolumeError::io("sync", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_it_stands_for() {
        let id = VolumeId::from_u128(7);
        assert_eq!(entry(&volume_name(id)), Some(Entry::Volume(id)));
        assert_eq!(entry(&unfinished_name(id)), Some(Entry::Unfinished(id)));
        assert_eq!(entry(&trash_name(id, 12)), Some(Entry::Trash(id)));
    }

    #[test]
    fn a_second_spelling_of_an_id_is_not_a_volume() {
        let id = VolumeId::from_u128(0xab);
        assert_eq!(entry(&id.simple()), None);
        assert_eq!(entry(&id.to_string().to_uppercase()), None);
        assert_eq!(entry("lost+found"), None);
    }
}
