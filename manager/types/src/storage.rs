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

/// The class of pools that are configured with none.
pub const CLASS_DEFAULT: &str = "default";

/// A node's pools at one look each, some seconds ago.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StorageSeen {
    /// The one that is configured first: its class is for clusters that ask for none.
    pub pool: PoolSeen,
    /// The other ones, in the order in which they are configured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<PoolSeen>,
    /// In the order of their ids, at most [`ORPHANS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub orphans: Vec<Orphan>,
    /// In the order in which they were taken, at most [`SNAPSHOTS_TOLD_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotSeen>,
}

impl StorageSeen {
    pub fn pools(&self) -> impl Iterator<Item = &PoolSeen> {
        std::iter::once(&self.pool).chain(&self.others)
    }

    /// The pools, without what is in them.
    pub fn alone(&self) -> Self {
        let (pool, others) = (self.pool.clone(), self.others.clone());
        Self { pool, others, orphans: Vec::new(), snapshots: Vec::new() }
    }

    /// Where a new volume of that class goes: of the pools that take one the one with the most room, and of those alike the first.
    /// Where none takes one, the first of the class, whose state says why. `None`: there is none of the class.
    pub fn pool_for(&self, class: Option<&str>) -> Option<&PoolSeen> {
        let class = class.unwrap_or(&self.pool.class);
        let of_it = || self.pools().filter(|pool| pool.class == class);
        let open = of_it().filter(|pool| pool.state == PoolState::Fine);
        open.reduce(|most, pool| if pool.free > most.free { pool } else { most }).or_else(|| of_it().next())
    }

    /// What several pools of one node have, the first of them first. `None` where there are none.
    pub fn of_all(all: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut all = all.into_iter();
        let mut whole = all.next()?;
        for next in all {
            whole.others.extend(std::iter::once(next.pool).chain(next.others));
            whole.orphans.extend(next.orphans);
            whole.snapshots.extend(next.snapshots);
        }
        whole.orphans.sort_by(|a, b| (a.id, &a.path).cmp(&(b.id, &b.path)));
        whole.orphans.truncate(ORPHANS_MAX);
        whole.snapshots.sort_by_key(|snapshot| (snapshot.created, snapshot.id));
        whole.snapshots.drain(..whole.snapshots.len().saturating_sub(SNAPSHOTS_TOLD_MAX));
        Some(whole)
    }
}

fn class_default() -> String {
    CLASS_DEFAULT.to_string()
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
    /// A label that several pools may have, such as `nvme`: clusters ask for one.
    #[serde(default = "class_default")]
    pub class: String,
    pub total: Bytes,
    pub used: Bytes,
    /// Free for volumes; less than the difference where a file system reserves some for root.
    pub free: Bytes,
    /// How full its own bookkeeping is, in hundredths of a percent; `None` where it has none of a fixed size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata_used: Option<u16>,
    /// Set aside: a person gives it back when the pool is full.
    #[serde(default)]
    pub ballast: Bytes,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str, class: &str, free: u64, state: PoolState) -> PoolSeen {
        PoolSeen {
            name: name.into(),
            driver: "lvm".into(),
            class: class.into(),
            total: Bytes(100),
            used: Bytes(100 - free),
            free: Bytes(free),
            metadata_used: None,
            ballast: Bytes(0),
            state,
        }
    }
    fn seen(pool: PoolSeen) -> StorageSeen {
        StorageSeen { pool, others: Vec::new(), orphans: Vec::new(), snapshots: Vec::new() }
    }

    #[test]
    fn a_volume_goes_where_its_class_has_the_most_room() {
        let full = || PoolState::NearlyFull { why: "81 %".into() };
        let all = StorageSeen::of_all([
            seen(pool("a", "nvme", 20, PoolState::Fine)),
            seen(pool("b", "hdd", 90, PoolState::Fine)),
            seen(pool("c", "nvme", 50, PoolState::Fine)),
            seen(pool("d", "nvme", 60, full())),
            seen(pool("e", "nvme", 50, PoolState::Fine)),
            seen(pool("f", "ssd", 10, full())),
        ])
        .unwrap();
        let chosen = |class| all.pool_for(class).map(|pool| pool.name.as_str());
        assert_eq!(chosen(None), Some("c"), "of the class of the first");
        assert_eq!(chosen(Some("hdd")), Some("b"));
        assert_eq!(chosen(Some("ssd")), Some("f"), "its state says why it takes none");
        assert_eq!(chosen(Some("tape")), None);
        assert!(StorageSeen::of_all([]).is_none());
    }

    #[test]
    fn a_pool_of_a_daemon_that_knew_no_classes_has_the_default_one() {
        let mut written = serde_json::to_value(seen(pool("a", "nvme", 1, PoolState::Fine))).unwrap();
        assert!(written.get("others").is_none());
        written["pool"].as_object_mut().unwrap().remove("class");
        let read: StorageSeen = serde_json::from_value(written).unwrap();
        assert_eq!(read.pool.class, CLASS_DEFAULT);
    }
}
