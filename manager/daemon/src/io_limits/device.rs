//! The disk below a folder, as the kernel numbers it. Limits are of whole disks: of a partition's the kernel takes none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("cannot look at {}", path.display())]
    Look {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error(
        "the file system of {} has no block device of its own, as with btrfs, overlays, tmpfs and NFS; put the pool on ext4 or xfs",
        path.display()
    )]
    NoDevice { path: PathBuf },
    #[error("the kernel's {} does not say a device's number: {text:?}", path.display())]
    BadNumber { path: PathBuf, text: String },
}

/// Of the file system that holds the folder.
pub fn disk_below(folder: &Path) -> Result<(u32, u32), DeviceError> {
    let look = |error| DeviceError::Look { path: folder.into(), error };
    let number = rustix::fs::stat(folder).map_err(|errno| look(errno.into()))?.st_dev;
    let number = (rustix::fs::major(number), rustix::fs::minor(number));
    disk_of(Path::new("/sys/dev/block"), number, folder)
}

/// `block` has a link by the number of every block device (sysfs(5)); a partition's folder lies in its disk's.
fn disk_of(block: &Path, (major, minor): (u32, u32), folder: &Path) -> Result<(u32, u32), DeviceError> {
    let device = match fs::canonicalize(block.join(format!("{major}:{minor}"))) {
        Ok(device) => device,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(DeviceError::NoDevice { path: folder.into() });
        }
        Err(error) => return Err(DeviceError::Look { path: block.into(), error }),
    };
    if !device.join("partition").exists() {
        return Ok((major, minor));
    }
    let path = device.parent().unwrap_or(&device).join("dev");
    let text = fs::read_to_string(&path).map_err(|error| DeviceError::Look { path: path.clone(), error })?;
    parse_number(text.trim()).ok_or(DeviceError::BadNumber { path, text })
}

/// `8:16`.
pub fn parse_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// As a host with a partitioned disk and a thin volume has it.
    fn tree() -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let folders = [
            ("259:0", "devices/pci0000:00/nvme/nvme0n1", false),
            ("259:2", "devices/pci0000:00/nvme/nvme0n1/nvme0n1p2", true),
            ("253:4", "devices/virtual/block/dm-4", false),
        ];
        let block = sys.path().join("dev/block");
        fs::create_dir_all(&block).unwrap();
        for (number, folder, is_partition) in folders {
            let device = sys.path().join(folder);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("dev"), format!("{number}\n")).unwrap();
            if is_partition {
                fs::write(device.join("partition"), "2\n").unwrap();
            }
            symlink(Path::new("../..").join(folder), block.join(number)).unwrap();
        }
        sys
    }

    #[test]
    fn a_partition_stands_for_its_disk_and_a_disk_for_itself() {
        let sys = tree();
        let block = sys.path().join("dev/block");
        let of = |number| disk_of(&block, number, Path::new("/srv"));
        assert_eq!(of((259, 2)).unwrap(), (259, 0));
        assert_eq!(of((259, 0)).unwrap(), (259, 0));
        assert_eq!(of((253, 4)).unwrap(), (253, 4));
        let none = of((0, 57)).unwrap_err().to_string();
        assert!(none.contains("/srv") && none.contains("ext4 or xfs"), "{none}");
    }

    #[test]
    fn a_disk_without_a_number_is_an_error() {
        let sys = tree();
        fs::write(sys.path().join("devices/pci0000:00/nvme/nvme0n1/dev"), "nonsense").unwrap();
        let error = disk_of(&sys.path().join("dev/block"), (259, 2), Path::new("/srv")).unwrap_err();
        assert!(matches!(error, DeviceError::BadNumber { .. }), "{error}");
        assert!(disk_below(Path::new("/nowhere")).is_err());
    }
}
