//! What a logical volume of ours says of itself, in its name and its tags. A node that has lost everything else reads its
//! inventory from these.

use crate::driver::{NewVolume, Owner, Volume, VolumeTags};
use crate::entry::{Entry, Prefixes};
use crate::lvm::FileSystemKind;
use crate::snapshot::{NewSnapshot, Snapshot};
use pgstead_lvm::{LogicalVolume, LvName, Tag};
use pgstead_types::{Bytes, NodeId, SnapshotId, VolumeId, WallTime};
use std::collections::BTreeSet;
use std::path::Path;
use std::str::FromStr;

/// Every volume of ours has it.
const OURS: &str = "pgstead";
/// Of the tags. A reader that meets another one leaves the volume alone.
const FORMAT: &str = "1";

/// What it is that has no other use.
const BALLAST: &str = "pgstead.ballast";

pub fn of_ballast() -> BTreeSet<Tag> {
    [OURS, BALLAST].map(|text| text.parse().expect("it is a tag that LVM takes")).into()
}
pub fn is_ballast(held: &LogicalVolume) -> bool {
    held.tags.iter().any(|tag| tag.as_str() == BALLAST)
}

/// Of a group's tags: the node that it belongs to.
pub const NODE: &str = "pgstead.node=";

pub fn of_node(id: NodeId) -> Tag {
    format!("{NODE}{id}").parse().expect("an id makes a tag that LVM takes")
}
pub fn nodes(of_group: &BTreeSet<Tag>) -> impl Iterator<Item = &str> {
    of_group.iter().filter_map(|tag| tag.as_str().strip_prefix(NODE))
}

/// The number of the key that it was given last: what has it is encrypted.
const KEY: &str = "luks_key";

/// How what is in a volume lies on its device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    pub file_system: FileSystemKind,
    /// Where it is encrypted, the number of the key that it was given last.
    pub key: Option<u32>,
}

const NAMES: Prefixes = Prefixes { volume: "vol-", unfinished: "new-", trash: "trash-" };

/// What is unfinished or removed and lacks our tag is not ours. A volume by its name that has lost it is one that a person must
/// look at.
pub fn entry(volume: &LogicalVolume) -> Option<Entry> {
    let entry = NAMES.parse(volume.name.as_str())?;
    let is_ours = volume.tags.iter().any(|tag| tag.as_str() == OURS);
    (is_ours || matches!(entry, Entry::Volume(_))).then_some(entry)
}

fn name(text: String) -> LvName {
    text.parse().expect("a UUID with a prefix is a name that LVM takes")
}
pub fn volume_name(id: VolumeId) -> LvName {
    name(NAMES.volume(id))
}
pub fn unfinished_name(id: VolumeId) -> LvName {
    name(NAMES.unfinished(id))
}
pub fn trash_name(id: VolumeId, number: u32) -> LvName {
    name(NAMES.trash(id, number))
}

const SNAPSHOT: &str = "snap-";

pub fn snapshot_name(id: SnapshotId) -> LvName {
    name(format!("{SNAPSHOT}{id}"))
}

/// A snapshot of ours, and what it is of where its tags say so.
pub fn snapshot_entry(held: &LogicalVolume) -> Option<(SnapshotId, Option<VolumeId>)> {
    let rest = held.name.as_str().strip_prefix(SNAPSHOT)?;
    let id = rest.parse::<SnapshotId>().ok().filter(|id| id.to_string() == rest)?;
    held.tags.iter().any(|tag| tag.as_str() == OURS).then(|| (id, parsed(held, "volume").ok()))
}

/// The tags of a snapshot that is to be taken.
pub fn written_snapshot(new: &NewSnapshot, of: &Volume, created: WallTime, layout: Layout) -> BTreeSet<Tag> {
    let like = NewVolume { id: of.id, tags: of.tags, size: of.size, owner: of.owner };
    let mut tags = written(&like, created, layout);
    let texts = [
        Some(format!("pgstead.snapshot={}", new.id)),
        Some(format!("pgstead.why={}", new.why)),
        new.expires.map(|at| format!("pgstead.expires_unix_ms={}", at.0)),
    ];
    tags.extend(
        texts.into_iter().flatten().map(|text| text.parse().expect("ids and numbers make tags that LVM takes")),
    );
    tags
}

/// Reads what the tags of a snapshot say; the name was read before.
pub fn read_snapshot(held: &LogicalVolume, id: SnapshotId) -> Result<Snapshot, Unreadable> {
    let of: VolumeId = parsed(held, "volume")?;
    let named: SnapshotId = parsed(held, "snapshot")?;
    if named != id {
        return Err(Unreadable(format!("its tags are those of snapshot {named}")));
    }
    let (volume, _) = read(held, of, Path::new(""))?;
    let expires = match value(held, "expires_unix_ms") {
        Err(_) if !held.tags.iter().any(|tag| tag.as_str().starts_with("pgstead.expires")) => None,
        _ => Some(WallTime(parsed(held, "expires_unix_ms")?)),
    };
    Ok(Snapshot {
        id,
        of,
        tags: volume.tags,
        why: parsed(held, "why")?,
        created: volume.created,
        expires,
        size: volume.size.unwrap_or(held.size),
    })
}

/// Who owns what is in a snapshot, and how it lies there.
pub fn read_snapshot_layout(held: &LogicalVolume, id: SnapshotId) -> Result<(Owner, Layout), Unreadable> {
    let snapshot = read_snapshot(held, id)?;
    read(held, snapshot.of, Path::new("")).map(|(volume, layout)| (volume.owner, layout))
}

/// The tags of a volume that is to be made.
pub fn written(new: &NewVolume, created: WallTime, layout: Layout) -> BTreeSet<Tag> {
    let VolumeTags { deployment, cluster, member } = new.tags;
    let Owner { uid, gid } = new.owner;
    let texts = [
        OURS.to_string(),
        format!("pgstead.format={FORMAT}"),
        format!("pgstead.volume={}", new.id),
        format!("pgstead.deployment={deployment}"),
        format!("pgstead.cluster={cluster}"),
        format!("pgstead.member={member}"),
        format!("pgstead.owner={uid}:{gid}"),
        format!("pgstead.created_unix_ms={}", created.0),
        format!("pgstead.fs={}", layout.file_system.as_str()),
    ];
    let tags = texts.into_iter().map(|text| text.parse().expect("ids and numbers make tags that LVM takes"));
    tags.chain(layout.key.map(key_tag)).collect()
}

pub fn key_tag(number: u32) -> Tag {
    format!("pgstead.{KEY}={number}").parse().expect("a number makes a tag that LVM takes")
}

/// Whatever of ours may be encrypted and is to be kept, with the volume whose turn it takes: a volume, one that was removed, a snapshot.
pub fn read_encrypted(held: &LogicalVolume) -> Result<Option<(VolumeId, Layout)>, Unreadable> {
    let id = match (entry(held), snapshot_entry(held)) {
        (Some(Entry::Unfinished(_)), _) | (None, None) => return Ok(None),
        (Some(Entry::Volume(id) | Entry::Trash(id)), _) => id,
        (None, Some((_, of))) => of.ok_or_else(|| Unreadable("tag pgstead.volume cannot be read".to_string()))?,
    };
    read(held, id, Path::new("")).map(|(_, layout)| Some((id, layout)))
}

/// Why a volume by its name is not one by its tags.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unreadable(pub String);

/// Reads what the tags say; the name was read before. `path` is where it belongs when it is mounted.
pub fn read(held: &LogicalVolume, id: VolumeId, path: &Path) -> Result<(Volume, Layout), Unreadable> {
    let format = value(held, "format")?;
    if format != FORMAT {
        return Err(Unreadable(format!("its tags have format {format}, expected {FORMAT}")));
    }
    let of: VolumeId = parsed(held, "volume")?;
    if of != id {
        return Err(Unreadable(format!("its tags are those of volume {of}")));
    }
    let owner = value(held, "owner")?;
    let owner = owner
        .split_once(':')
        .and_then(|(uid, gid)| Some(Owner { uid: uid.parse().ok()?, gid: gid.parse().ok()? }))
        .ok_or_else(|| Unreadable(format!("tag pgstead.owner is {owner:?}, expected uid:gid")))?;
    let encrypted = held.tags.iter().any(|tag| tag.as_str().starts_with(&format!("pgstead.{KEY}")));
    let key = encrypted.then(|| parsed(held, KEY)).transpose()?;
    let layout = Layout { file_system: parsed(held, "fs")?, key };
    let volume = Volume {
        id,
        tags: VolumeTags {
            deployment: parsed(held, "deployment")?,
            cluster: parsed(held, "cluster")?,
            member: parsed(held, "member")?,
        },
        size: Some(Bytes(held.size.0.saturating_sub(layout.overhead().0))),
        owner,
        created: WallTime(parsed(held, "created_unix_ms")?),
        path: path.to_path_buf(),
    };
    Ok((volume, layout))
}

fn value<'a>(held: &'a LogicalVolume, key: &str) -> Result<&'a str, Unreadable> {
    let of = |tag: &'a Tag| tag.as_str().strip_prefix("pgstead.")?.strip_prefix(key)?.strip_prefix('=');
    let mut found = held.tags.iter().filter_map(of);
    match (found.next(), found.next()) {
        (Some(value), None) => Ok(value),
        (None, _) => Err(Unreadable(format!("tag pgstead.{key} is missing"))),
        (Some(_), Some(_)) => Err(Unreadable(format!("tag pgstead.{key} is there more than once"))),
    }
}

fn parsed<T: FromStr>(held: &LogicalVolume, key: &str) -> Result<T, Unreadable> {
    let text = value(held, key)?;
    text.parse().map_err(|_| Unreadable(format!("tag pgstead.{key} is {text:?}, which cannot be read")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_lvm::{Health, Kind};
    use pgstead_types::{ClusterId, DeploymentId, MemberId};

    fn new() -> NewVolume {
        NewVolume {
            id: VolumeId::from_u128(7),
            tags: VolumeTags {
                deployment: DeploymentId::from_u128(1),
                cluster: ClusterId::from_u128(2),
                member: MemberId::from_u128(3),
            },
            size: Some(Bytes(1 << 30)),
            owner: Owner { uid: 105, gid: 106 },
        }
    }

    fn held(name: LvName, tags: BTreeSet<Tag>) -> LogicalVolume {
        LogicalVolume {
            group: "g".parse().unwrap(),
            name,
            uuid: "u".into(),
            kind: Kind::Other,
            size: Bytes(1 << 30),
            tags,
            active: true,
            open: false,
            read_only: false,
            skips_activation: false,
            health: Health::Fine,
            device_number: None,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let layout = Layout { file_system: FileSystemKind::Xfs, key: None };
        let tags = written(&new(), WallTime(1_795_000_000_123), layout);
        let held = held(volume_name(new().id), tags);
        assert_eq!(entry(&held), Some(Entry::Volume(new().id)));
        let (volume, found) = read(&held, new().id, Path::new("/m")).unwrap();
        assert_eq!(
            (volume.id, volume.tags, volume.owner, volume.size),
            (new().id, new().tags, new().owner, new().size)
        );
        assert_eq!((volume.created, found), (WallTime(1_795_000_000_123), layout));
    }

    #[test]
    fn what_is_encrypted_says_by_which_key_and_holds_less_than_its_device() {
        let layout = Layout { file_system: FileSystemKind::Ext4, key: Some(3) };
        let mut held = held(volume_name(new().id), written(&new(), WallTime(1), layout));
        held.size = layout.with_overhead(Bytes(1 << 30));
        let (volume, found) = read(&held, new().id, Path::new("/m")).unwrap();
        assert_eq!((volume.size, found), (new().size, layout));
        assert_eq!(read_encrypted(&held), Ok(Some((new().id, layout))));
        held.name = trash_name(new().id, 1);
        assert_eq!(read_encrypted(&held), Ok(Some((new().id, layout))));
        held.name = unfinished_name(new().id);
        assert_eq!(read_encrypted(&held), Ok(None));
        held.name = volume_name(new().id);
        held.tags.remove(&key_tag(3));
        held.tags.insert("pgstead.luks_key=x".parse().unwrap());
        assert!(read(&held, new().id, Path::new("/m")).unwrap_err().0.contains("luks_key"));
        assert!(read_encrypted(&held).is_err());
    }

    #[test]
    fn tags_that_do_not_fit_say_which() {
        let whole = written(&new(), WallTime(1), Layout { file_system: FileSystemKind::Ext4, key: None });
        let with = |without: &str, more: &str| {
            let mut tags: BTreeSet<Tag> =
                whole.iter().filter(|tag| !tag.as_str().starts_with(without)).cloned().collect();
            tags.extend(more.parse::<Tag>());
            read(&held(volume_name(new().id), tags), new().id, Path::new("/m")).unwrap_err().0
        };
        assert!(with("pgstead.member", "").contains("pgstead.member is missing"));
        assert!(with("pgstead.member", "pgstead.member=x").contains("cannot be read"));
        assert!(with("none", "pgstead.owner=1:1").contains("more than once"));
        assert!(with("pgstead.format", "pgstead.format=2").contains("format 2"));
        assert!(with("pgstead.volume", &format!("pgstead.volume={}", VolumeId::from_u128(9))).contains("of volume"));
        assert!(with("pgstead.fs", "pgstead.fs=ntfs").contains("ntfs"));
    }

    #[test]
    fn a_name_says_what_it_stands_for_and_only_with_our_tag() {
        let id = VolumeId::from_u128(0xab);
        assert_eq!(NAMES.parse(unfinished_name(id).as_str()), Some(Entry::Unfinished(id)));
        assert_eq!(NAMES.parse(trash_name(id, 12).as_str()), Some(Entry::Trash(id)));
        assert_eq!(NAMES.parse("root"), None);
        assert_eq!(NAMES.parse(&format!("vol-{}", id.to_string().to_uppercase())), None, "a second spelling");
        assert_eq!(entry(&held(unfinished_name(id), BTreeSet::new())), None);
        assert_eq!(entry(&held(trash_name(id, 1), BTreeSet::new())), None);
        let bare = held(volume_name(id), BTreeSet::new());
        assert_eq!(entry(&bare), Some(Entry::Volume(id)));
        assert!(read(&bare, id, Path::new("/m")).is_err(), "it is seen, and never used");
    }
}
