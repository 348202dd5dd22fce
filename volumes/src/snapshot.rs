//! Snapshots: read-only copies of volumes as they were at one moment.

use crate::driver::{Refusal, Volume, VolumeTags};
use pgstead_types::storage::SnapshotWhy;
use pgstead_types::{Bytes, SnapshotId, VolumeId, WallTime};
use std::path::PathBuf;

/// More of one volume than this make every write to it dearer, and nobody finds the right one.
pub const SNAPSHOTS_MAX: usize = 100;

/// Of one pool: LVM keeps all that it knows of a group in an area of a megabyte, and a snapshot takes nearly a thousand bytes of it.
pub const SNAPSHOTS_OF_POOL_MAX: usize = 400;

/// A snapshot as asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewSnapshot {
    pub id: SnapshotId,
    pub of: VolumeId,
    pub why: SnapshotWhy,
    /// When it may go; `None`: when a person says so.
    pub expires: Option<WallTime>,
}

/// A snapshot that is there. What it was taken of may be gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    pub id: SnapshotId,
    pub of: VolumeId,
    /// Of the volume, then.
    pub tags: VolumeTags,
    pub why: SnapshotWhy,
    pub created: WallTime,
    pub expires: Option<WallTime>,
    pub size: Bytes,
}

/// The answer to a request for a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Snapshotted {
    Made(Snapshot),
    /// An earlier call made it, of the same volume.
    AlreadyThere(Snapshot),
    /// There is no such volume.
    NotThere,
    Refused(Refusal),
    /// The storage cannot copy what is written to meanwhile. The caller can, and says when it has.
    ToFill(ToFill),
}

/// The answer to a request for a volume made from a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Forking {
    Made(Volume),
    /// An earlier call made it, for the same member.
    AlreadyThere(Volume),
    NoSnapshot,
    Refused(Refusal),
    ToFill(ToFill),
}

/// A copy to be made: all that is in one folder into another, which is there, empty, and has its owner.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ToFill {
    pub from: PathBuf,
    pub into: PathBuf,
}
