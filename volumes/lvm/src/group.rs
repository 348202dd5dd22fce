//! Volume groups as LVM reports them.

use crate::names::{GroupName, Tag};
use crate::report::{self, BadReport, Row};
use pgstead_types::Bytes;
use std::collections::BTreeSet;

/// The columns that [`VolumeGroup`] is read from.
pub(crate) const COLUMNS: &str =
    "vg_name,vg_uuid,vg_attr,vg_size,vg_free,vg_extent_size,vg_missing_pv_count,vg_tags,pv_count,lv_count";

/// One volume group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeGroup {
    pub name: GroupName,
    /// LVM's own; two groups of one name differ in it.
    pub uuid: String,
    pub size: Bytes,
    /// Not given to any logical volume.
    pub free: Bytes,
    /// Sizes of its volumes are multiples of this.
    pub extent: Bytes,
    /// Disks of it that this host does not see now.
    pub missing_devices: u64,
    pub writable: bool,
    /// Taken out for another host by `vgexport`.
    pub exported: bool,
    pub tags: BTreeSet<Tag>,
}

impl VolumeGroup {
    /// Groups whose names we would not take are other people's, and left out.
    pub(crate) fn read_all(text: &str) -> Result<Vec<Self>, BadReport> {
        report::rows(text, "vg")?.iter().map(Self::read).filter_map(Result::transpose).collect()
    }

    fn read(row: &Row) -> Result<Option<Self>, BadReport> {
        let Ok(name) = row.required("vg_name")?.parse() else { return Ok(None) };
        let attr = row.required("vg_attr")?.as_bytes();
        let extent = row.bytes("vg_extent_size")?;
        Ok(Some(Self {
            name,
            uuid: row.required("vg_uuid")?.to_string(),
            size: row.bytes("vg_size")?,
            free: row.bytes("vg_free")?,
            // It divides sizes; a group without one would be no group.
            extent: Bytes(extent.0.max(1)),
            missing_devices: row.number("vg_missing_pv_count")?.unwrap_or(0),
            writable: attr.first() == Some(&b'w'),
            exported: attr.get(2) == Some(&b'x'),
            tags: row.tags("vg_tags")?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [(&str, &str); 2] = [
        (include_str!("../tests/reports/2.03.16/vgs.json"), include_str!("../tests/reports/2.03.16/vgs-missing.json")),
        (include_str!("../tests/reports/2.03.31/vgs.json"), include_str!("../tests/reports/2.03.31/vgs-missing.json")),
    ];

    #[test]
    fn groups_are_read_from_the_reports_of_several_versions() {
        for (whole, missing) in KNOWN {
            let groups = VolumeGroup::read_all(whole).unwrap();
            assert_eq!(groups.len(), 2);
            let nvme = &groups[1];
            assert_eq!(
                (nvme.name.as_str(), nvme.size, nvme.free),
                ("pgs-nvme", Bytes(2_139_095_040), Bytes(1_593_835_520))
            );
            assert_eq!((nvme.extent, nvme.missing_devices), (Bytes(4 << 20), 0));
            assert!(nvme.writable && !nvme.exported);
            assert_eq!(nvme.tags, ["pgstead".parse().unwrap()].into());
            let with_less = VolumeGroup::read_all(missing).unwrap();
            assert_eq!((with_less[1].missing_devices, &with_less[1].uuid), (1, &nvme.uuid));
        }
    }
}
