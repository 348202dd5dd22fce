//! What LVM's own commands do not reach of a thin pool: its metadata, which says what block is whose. The kernel holds a state of it
//! still while it is read; one at a time, until it is released.

use crate::client::{Lvm, LvmError};
use crate::names::{GroupName, LvPath};
use crate::program::{self, Run};
use pgstead_types::Bytes;
use std::path::{Path, PathBuf};
use std::time::Duration;

impl Lvm {
    /// Writes LVM's description of a group into a file, as `vgcfgrestore` takes it.
    pub async fn back_up_group(&self, group: &GroupName, to: &Path) -> Result<(), LvmError> {
        self.run(group, self.careful("vgcfgbackup").arg("--file").arg(file_arg(to)?).arg(group.as_str())).await
    }

    /// The pool's own name in the device mapper, which is below the device of its name as soon as it has volumes.
    pub async fn pool_device(&self, pool: &LvPath) -> Result<String, LvmError> {
        pool_device(pool).await
    }

    /// Whether a state of the pool's metadata is held.
    pub async fn holds_metadata(&self, pool: &LvPath) -> Result<bool, LvmError> {
        let device = pool_device(pool).await?;
        let said = dmsetup()?.args(["status", "--noflush"]).arg(device).output().await?.stdout;
        parse_held(&said).ok_or_else(|| LvmError::NoPoolStatus { pool: pool.clone(), said: one_line(&said) })
    }

    /// Until it is released, what is deleted gives no room back.
    pub async fn hold_metadata(&self, pool: &LvPath) -> Result<(), LvmError> {
        message(pool, "reserve_metadata_snap").await
    }

    pub async fn release_metadata(&self, pool: &LvPath) -> Result<(), LvmError> {
        message(pool, "release_metadata_snap").await
    }

    /// Writes what is held as text, as `thin_restore` takes it. It is ended where that has more bytes than `most`.
    pub async fn dump_metadata(
        &self,
        pool: &LvPath,
        to: &Path,
        most: Bytes,
        deadline: Duration,
    ) -> Result<(), LvmError> {
        let dump = find("thin_dump", "thin-provisioning-tools")?;
        // The device comes first: what follows the option without its number must not be taken for one.
        let run = Run::new(find("prlimit", "util-linux")?)
            .arg(format!("--fsize={}", most.0))
            .arg(dump.to_string_lossy())
            .arg(metadata_device(pool).to_string_lossy())
            .args(["--metadata-snap", "-o"])
            .arg(file_arg(to)?);
        run.deadline(deadline).output().await?;
        Ok(())
    }
}

pub(crate) fn find(name: &'static str, package: &'static str) -> Result<PathBuf, LvmError> {
    program::find(name).ok_or(LvmError::NoTool { name, package })
}

fn dmsetup() -> Result<Run, LvmError> {
    Ok(Run::new(find("dmsetup", "dmsetup")?))
}

async fn message(pool: &LvPath, text: &str) -> Result<(), LvmError> {
    let device = pool_device(pool).await?;
    dmsetup()?.arg("message").arg(device).args(["0", text]).lasting().output().await?;
    Ok(())
}

async fn pool_device(pool: &LvPath) -> Result<String, LvmError> {
    let said = dmsetup()?.args(["ls", "--target", "thin-pool"]).output().await?.stdout;
    let name = mapper_name(pool);
    let names = [format!("{name}-tpool"), name];
    let is_there = |name: &String| said.lines().any(|line| line.split_whitespace().next() == Some(name.as_str()));
    names.into_iter().find(is_there).ok_or_else(|| LvmError::NotActive { pool: pool.clone() })
}

fn mapper_name(pool: &LvPath) -> String {
    pool.device().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// There while the pool is active.
pub(crate) fn metadata_device(pool: &LvPath) -> PathBuf {
    PathBuf::from(format!("{}_tmeta", pool.device().display()))
}

/// A line of the kernel's (thin-provisioning.rst, "Status"): `0 4194304 thin-pool 1 14/4096 0/32768 - rw no_discard_passdown ...`,
/// where the dash is the place of what is held.
fn parse_held(status: &str) -> Option<bool> {
    let mut fields = status.split_whitespace().skip_while(|field| *field != "thin-pool").skip(4);
    Some(fields.next()? != "-")
}

fn one_line(said: &str) -> String {
    said.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect()
}

/// LVM puts the group's name in the place of `%s`.
fn file_arg(path: &Path) -> Result<String, LvmError> {
    let fits =
        |text: &&str| Path::new(text).is_absolute() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'%');
    path.to_str().filter(fits).map(str::to_string).ok_or_else(|| LvmError::BadPath { path: path.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_whether_metadata_is_held() {
        let line = |held: &str| {
            format!("0 4194304 thin-pool 1 14/4096 0/32768 {held} rw no_discard_passdown error_if_no_space - 1024")
        };
        assert_eq!(parse_held(&line("-")), Some(false));
        assert_eq!(parse_held(&line("117")), Some(true));
        assert_eq!(parse_held("0 4194304 thin-pool Fail"), None);
        assert_eq!(parse_held("0 4194304 linear"), None);
    }

    #[test]
    fn devices_below_a_pool_have_its_name_with_doubled_dashes() {
        let pool = LvPath { group: "pgs-nvme".parse().unwrap(), name: "pool".parse().unwrap() };
        assert_eq!(mapper_name(&pool), "pgs--nvme-pool");
        assert_eq!(metadata_device(&pool), Path::new("/dev/mapper/pgs--nvme-pool_tmeta"));
    }

    #[test]
    fn a_file_that_lvm_would_rename_is_refused() {
        assert_eq!(file_arg(Path::new("/var/lib/pgstead/group.vg")).unwrap(), "/var/lib/pgstead/group.vg");
        for bad in ["group.vg", "/var/%s/group.vg", "/var/a b"] {
            assert!(file_arg(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
