//! Logical volumes as LVM reports them: thin pools, thin volumes, snapshots, and whatever else is there.

use crate::names::{GroupName, LvName, LvPath, Tag};
use crate::report::{self, BadReport, Percent, Row};
use pgstead_types::Bytes;
use std::collections::BTreeSet;
use std::fmt;

/// The columns that [`LogicalVolume`] is read from.
pub(crate) const COLUMNS: &str = "lv_name,vg_name,lv_uuid,lv_attr,lv_size,lv_metadata_size,pool_lv,origin,data_percent,\
    metadata_percent,lv_tags,lv_active_locally,lv_device_open,lv_health_status,lv_when_full,thin_id,lv_kernel_major,\
    lv_kernel_minor,chunk_size,lv_layout,lv_skip_activation,lv_check_needed";

/// One logical volume. Hidden parts of pools are not listed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogicalVolume {
    pub group: GroupName,
    pub name: LvName,
    pub uuid: String,
    pub kind: Kind,
    /// Of a thin volume: as large as it looks, whatever is stored.
    pub size: Bytes,
    pub tags: BTreeSet<Tag>,
    pub active: bool,
    /// Somebody has its device open: a file system is mounted, or a program reads it.
    pub open: bool,
    pub read_only: bool,
    /// It is activated only where one insists, as LVM has it for snapshots.
    pub skips_activation: bool,
    pub health: Health,
    /// Major and minor number of its device while it is active.
    pub device_number: Option<(u32, u32)>,
}

/// What kind of volume it is, with what only that kind has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Percentages are known while it is active.
    ThinPool {
        data_used: Option<Percent>,
        metadata_used: Option<Percent>,
        metadata_size: Bytes,
        chunk: Bytes,
        when_full: WhenFull,
    },
    Thin {
        pool: LvName,
        /// What it was made from as a snapshot, while that is there.
        origin: Option<LvName>,
        /// Its number within the pool, by which `thin_delta` knows it.
        thin_id: u64,
        data_used: Option<Percent>,
    },
    Other,
}

/// What a full pool does with writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhenFull {
    /// They fail at once.
    Error,
    /// They wait for a minute, and fail then.
    Queue,
}

/// LVM's own judgement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    Fine,
    /// A pool that has no room left: writes of new blocks fail or wait.
    OutOfData,
    /// The pool's metadata cannot be changed any more, until it was repaired.
    MetadataReadOnly,
    /// The pool's metadata is to be checked before anything else.
    NeedsCheck,
    /// Some of the disks that it lies on are missing.
    Partial,
    /// It gave up; it must be deactivated and repaired.
    Failed,
    /// Another word of LVM's.
    Other(String),
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fine => "fine",
            Self::OutOfData => "out of data space",
            Self::MetadataReadOnly => "its metadata is read-only",
            Self::NeedsCheck => "its metadata needs a check",
            Self::Partial => "some of its disks are missing",
            Self::Failed => "failed",
            Self::Other(text) => text,
        })
    }
}

impl LogicalVolume {
    pub fn path(&self) -> LvPath {
        LvPath { group: self.group.clone(), name: self.name.clone() }
    }

    /// Whether it is a thin volume of that pool.
    pub fn is_in_pool(&self, pool: &LvName) -> bool {
        matches!(&self.kind, Kind::Thin { pool: of, .. } if of == pool)
    }

    /// Volumes whose names we would not take are other people's or LVM's own, and left out.
    pub(crate) fn read_all(text: &str) -> Result<Vec<Self>, BadReport> {
        report::rows(text, "lv")?.iter().map(Self::read).filter_map(Result::transpose).collect()
    }

    fn read(row: &Row) -> Result<Option<Self>, BadReport> {
        let (Ok(group), Ok(name)) = (row.required("vg_name")?.parse(), row.required("lv_name")?.parse()) else {
            return Ok(None);
        };
        let attr = row.required("lv_attr")?.as_bytes();
        let attr = |place: usize| attr.get(place).copied().unwrap_or(b'-');
        let layout = row.words("lv_layout")?;
        let is = |word: &str| layout.iter().any(|held| held == word);
        let kind = if is("thin") && is("pool") {
            Kind::ThinPool {
                data_used: row.percent("data_percent")?,
                metadata_used: row.percent("metadata_percent")?,
                metadata_size: row.bytes("lv_metadata_size")?,
                chunk: row.bytes("chunk_size")?,
                when_full: match row.text("lv_when_full") {
                    Some("error") => WhenFull::Error,
                    _ => WhenFull::Queue,
                },
            }
        } else if is("thin") {
            let pool = row.required("pool_lv")?.parse();
            match (pool, row.number("thin_id")?) {
                (Ok(pool), Some(thin_id)) => Kind::Thin {
                    pool,
                    origin: row.text("origin").and_then(|name| name.parse().ok()),
                    thin_id,
                    data_used: row.percent("data_percent")?,
                },
                _ => Kind::Other,
            }
        } else {
            Kind::Other
        };
        let number = |column| Ok(row.number(column)?.and_then(|number| u32::try_from(number).ok()));
        Ok(Some(Self {
            group,
            name,
            uuid: row.required("lv_uuid")?.to_string(),
            kind,
            size: row.bytes("lv_size")?,
            tags: row.tags("lv_tags")?,
            active: row.is_set("lv_active_locally"),
            open: row.is_set("lv_device_open"),
            // The permission of one that is not active is called unknown in its own column.
            read_only: matches!(attr(1), b'r' | b'R'),
            skips_activation: row.is_set("lv_skip_activation"),
            health: health(row, attr(8)),
            device_number: number("lv_kernel_major")?.zip(number("lv_kernel_minor")?),
        }))
    }
}

fn health(row: &Row, attr: u8) -> Health {
    match row.text("lv_health_status") {
        Some("failed") => Health::Failed,
        // Its metadata is read-only as well, and more room for it is of no use then.
        _ if row.is_set("lv_check_needed") => Health::NeedsCheck,
        Some("out_of_data") => Health::OutOfData,
        Some("metadata_read_only") => Health::MetadataReadOnly,
        Some("needs_check") => Health::NeedsCheck,
        Some("partial") => Health::Partial,
        Some(other) => Health::Other(other.to_string()),
        // The attribute knows more in some versions (lvs(8), "lv_attr").
        None => match attr {
            b'F' => Health::Failed,
            b'D' => Health::OutOfData,
            b'M' => Health::MetadataReadOnly,
            b'p' => Health::Partial,
            _ => Health::Fine,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Known {
        whole: &'static str,
        full: &'static str,
        missing: &'static str,
    }
    const KNOWN: [Known; 2] = [
        Known {
            whole: include_str!("../tests/reports/2.03.16/lvs.json"),
            full: include_str!("../tests/reports/2.03.16/lvs-full.json"),
            missing: include_str!("../tests/reports/2.03.16/lvs-missing.json"),
        },
        Known {
            whole: include_str!("../tests/reports/2.03.31/lvs.json"),
            full: include_str!("../tests/reports/2.03.31/lvs-full.json"),
            missing: include_str!("../tests/reports/2.03.31/lvs-missing.json"),
        },
    ];

    fn named<'a>(volumes: &'a [LogicalVolume], name: &str) -> &'a LogicalVolume {
        volumes.iter().find(|volume| volume.name.as_str() == name).unwrap()
    }

    #[test]
    fn volumes_are_read_from_the_reports_of_several_versions() {
        for known in KNOWN {
            let volumes = LogicalVolume::read_all(known.whole).unwrap();
            let names: Vec<_> = volumes.iter().map(|volume| volume.name.as_str()).collect();
            assert_eq!(names, ["plain", "fork-1", "pool", "snap-1", "vol-1", "vol-2"], "hidden parts are left out");
            assert_eq!(named(&volumes, "plain").kind, Kind::Other);
            let pool = named(&volumes, "pool");
            let Kind::ThinPool { data_used, metadata_size, chunk, when_full, .. } = &pool.kind else {
                panic!("{pool:?}")
            };
            assert!(data_used.is_some_and(|used| (1200..1400).contains(&used.hundredths())), "{data_used:?}");
            assert_eq!((*metadata_size, *chunk, *when_full), (Bytes(4 << 20), Bytes(65_536), WhenFull::Error));
            let vol = named(&volumes, "vol-1");
            assert!(vol.active && vol.open && !vol.read_only && vol.is_in_pool(&pool.name));
            assert_eq!(vol.tags.len(), 2);
            assert_eq!((vol.size, vol.device_number), (Bytes(2 << 30), Some((253, 4))));
            let snapshot = named(&volumes, "snap-1");
            assert!(snapshot.read_only && snapshot.skips_activation && !snapshot.active && !snapshot.open);
            assert!(
                matches!(&snapshot.kind, Kind::Thin { origin: Some(origin), thin_id: 3, .. } if *origin == vol.name)
            );
            let away = named(&volumes, "vol-2");
            assert!(!away.active && !away.open && away.device_number.is_none());
            assert!(matches!(away.kind, Kind::Thin { data_used: None, .. }));
            assert!(volumes.iter().all(|volume| volume.health == Health::Fine));
        }
    }

    #[test]
    fn metadata_that_needs_a_check_is_not_only_read_only() {
        let says = |word: &str| format!("\"lv_health_status\":\"{word}\"");
        for known in KNOWN {
            let read_only = known.full.replace(&says("out_of_data"), &says("metadata_read_only"));
            let to_check = says("metadata_read_only") + ", \"lv_check_needed\":\"check needed\"";
            let checked = read_only.replace(&says("metadata_read_only"), &to_check);
            for (text, health) in [(read_only, Health::MetadataReadOnly), (checked, Health::NeedsCheck)] {
                let volumes = LogicalVolume::read_all(&text).unwrap();
                assert_eq!(named(&volumes, "pool").health, health);
            }
        }
    }

    #[test]
    fn a_full_pool_says_so() {
        for known in KNOWN {
            let volumes = LogicalVolume::read_all(known.full).unwrap();
            let pool = named(&volumes, "pool");
            assert_eq!(pool.health, Health::OutOfData);
            assert!(matches!(&pool.kind, Kind::ThinPool { data_used: Some(used), .. } if *used == Percent::whole(100)));
        }
    }

    #[test]
    fn volumes_on_a_missing_disk_are_partial() {
        for known in KNOWN {
            let volumes = LogicalVolume::read_all(known.missing).unwrap();
            assert_eq!(named(&volumes, "vol-1").health, Health::Partial);
            assert_eq!(named(&volumes, "plain").health, Health::Fine);
        }
    }
}
