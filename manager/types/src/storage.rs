//! What a node says of its storage: how full it is, and what lies there that the record knows nothing of.

use crate::ids::{ClusterId, DeploymentId, MemberId, SnapshotId, VolumeId};
use crate::position::Bytes;
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// So many orphans are told of; a node with more has them told as those go.
pub const ORPHANS_MAX: usize = 100;

/// So many snapshots are told of, the newest.
pub const SNAPSHOTS_TOLD_MAX: usize = 1000;

/// A node's pool at one look, some seconds ago.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StorageSeen {
    pub pool: PoolSeen,
    /// In the order of their ids, at most [`ORPHANS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub orphans: Vec<Orphan>,
    /// In the order in which they were taken, at most [`SNAPSHOTS_TOLD_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotSeen>,
}

/// A snapshot on a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotSeen {
    pub id: SnapshotId,
    pub volume: VolumeId,
    pub cluster: ClusterId,
    pub member: MemberId,
    pub why: SnapshotWhy,
    pub created: WallTime,
    /// When it goes by itself; `None`: it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<WallTime>,
    /// How much the volume could hold then.
    pub size: Bytes,
}

/// What a snapshot was taken for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotWhy {
    /// A person asked for it.
    Asked,
    /// The cluster's spec did.
    Scheduled,
    /// A cluster is made from it.
    Fork,
    /// Something was about to rewrite the member's data in place.
    Rewind,
    /// What a daemon of a later build says, and this one does not know.
    #[serde(other)]
    Other,
}

impl SnapshotWhy {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Scheduled => "scheduled",
            Self::Fork => "fork",
            Self::Rewind => "rewind",
            Self::Other => "other",
        }
    }
}
impl fmt::Display for SnapshotWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
impl FromStr for SnapshotWhy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found =
            [Self::Asked, Self::Scheduled, Self::Fork, Self::Rewind].into_iter().find(|why| why.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is no reason for a snapshot"))
    }
}

/// How full a pool is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PoolSeen {
    pub name: String,
    pub driver: String,
    pub total: Bytes,
    pub used: Bytes,
    /// Free for volumes; less than the difference where a file system reserves some for root.
    pub free: Bytes,
    /// How full its own bookkeeping is, in hundredths of a percent; `None` where it has none of a fixed size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata_used: Option<u16>,
    pub state: PoolState,
}

/// What a pool can still take. The texts say what was found and what was expected.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolState {
    Fine,
    /// It takes no new volume: what is there needs the rest.
    NearlyFull {
        why: String,
    },
    /// Soon nothing on it can be written: what is led from it takes no writes.
    Full {
        why: String,
    },
    /// The next writes may fail: what is led from it takes no clients either.
    Brimming {
        why: String,
    },
    /// Its storage has a fault.
    Unwell {
        why: String,
    },
}

/// A volume on a node that no member in the record has. It is kept until a person removes it, or until a member has it again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Orphan {
    pub id: VolumeId,
    pub state: OrphanState,
    /// Where it lies, for a person on that host.
    pub path: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrphanState {
    /// Complete. By its tags it was this member's.
    Whole { deployment: DeploymentId, cluster: ClusterId, member: MemberId, created: WallTime, size: Option<Bytes> },
    /// Removed, its data still there or partly so.
    SetAside { member: Option<MemberId> },
    /// It has the name of a volume, and what it is cannot be read.
    Unreadable { why: String },
}
