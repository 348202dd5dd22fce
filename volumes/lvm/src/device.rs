//! Physical volumes: the disks, partitions or loop files that groups are made of.

use crate::names::GroupName;
use crate::report::{self, BadReport, Row};
use pgstead_types::Bytes;
use std::path::PathBuf;

/// The columns that [`PhysicalVolume`] is read from.
pub(crate) const COLUMNS: &str = "pv_name,pv_uuid,vg_name,pv_size,pv_free,pv_missing";

/// One physical volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PhysicalVolume {
    /// `None`: this host does not see it now.
    pub device: Option<PathBuf>,
    pub uuid: String,
    /// `None`: in no group, or in one whose name we would not take.
    pub group: Option<GroupName>,
    pub size: Bytes,
    pub free: Bytes,
}

impl PhysicalVolume {
    pub(crate) fn read_all(text: &str) -> Result<Vec<Self>, BadReport> {
        report::rows(text, "pv")?.iter().map(Self::read).collect()
    }

    fn read(row: &Row) -> Result<Self, BadReport> {
        let device = row.required("pv_name")?;
        // `[unknown]` stands where a device was.
        let there = device.starts_with('/') && !row.is_set("pv_missing");
        Ok(Self {
            device: there.then(|| PathBuf::from(device)),
            uuid: row.required("pv_uuid")?.to_string(),
            group: row.text("vg_name").and_then(|name| name.parse().ok()),
            size: row.bytes("pv_size")?,
            free: row.bytes("pv_free")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_missing_has_no_path() {
        for text in [
            include_str!("../tests/reports/2.03.16/pvs-missing.json"),
            include_str!("../tests/reports/2.03.31/pvs-missing.json"),
        ] {
            let devices = PhysicalVolume::read_all(text).unwrap();
            assert_eq!(devices.len(), 3);
            let of: Vec<_> =
                devices.iter().filter(|d| d.group.as_ref().is_some_and(|g| g.as_str() == "pgs-nvme")).collect();
            assert_eq!(of.iter().filter(|device| device.device.is_none()).count(), 1);
            assert_eq!(of.iter().filter(|device| device.device.is_some()).count(), 1);
        }
        for text in
            [include_str!("../tests/reports/2.03.16/pvs.json"), include_str!("../tests/reports/2.03.31/pvs.json")]
        {
            assert!(PhysicalVolume::read_all(text).unwrap().iter().all(|device| device.device.is_some()));
        }
    }
}
