//! The commands. Changes to one group wait for each other; reports do not wait for changes.

use crate::device::{self, PhysicalVolume};
use crate::group::{self, VolumeGroup};
use crate::names::{GroupName, LvName, LvPath, Tag};
use crate::program::{self, ProgramError, Run};
use crate::report::BadReport;
use crate::volume::{self, LogicalVolume};
use pgstead_types::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Mutex as AsyncMutex;

/// A change is waited for so long, and then goes on by itself.
const CHANGE_DEADLINE: Duration = Duration::from_secs(600);
/// Older ones have not been tried; Debian 11 has 2.03.11.
const VERSION_MIN: Version = Version { major: 2, minor: 3, patch: 11 };

#[derive(Debug, thiserror::Error)]
pub enum LvmError {
    #[error("there is no program `lvm` on this host; install LVM2 (Debian: lvm2 and thin-provisioning-tools)")]
    NoProgram,
    #[error("LVM here is {found}, expected {VERSION_MIN} or newer")]
    TooOld { found: Version },
    #[error("`lvm version` said {said:?}, expected a line with its version")]
    NoVersion { said: String },
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Report(#[from] BadReport),
    #[error("there are {} volume groups named {group} ({}); rename all but one by its UUID with vgrename", uuids.len(), uuids.join(", "))]
    Ambiguous { group: GroupName, uuids: Vec<String> },
    #[error("{} is not a path that LVM takes; expected an absolute one of ASCII characters, without blanks or %", path.display())]
    BadPath { path: PathBuf },
    #[error("there is no program `{name}` on this host; install it (Debian: {package})")]
    NoTool { name: &'static str, package: &'static str },
    #[error("the thin pool {pool} is not active, so nobody can read its metadata; `lvchange -ay {pool}` activates it")]
    NotActive { pool: LvPath },
    #[error("the kernel said {said:?} of the thin pool {pool}, expected what it holds; it may have failed")]
    NoPoolStatus { pool: LvPath, said: String },
    #[error(
        "a state of the metadata of the thin pool {pool} is held already, by a backup of it for instance; try again when that has ended"
    )]
    AlreadyHeld { pool: LvPath },
    #[error("{earlier} and {later} are not thin volumes of one pool; expected two that are")]
    NotComparable { earlier: LvPath, later: LvPath },
    #[error("`thin_delta` said what it cannot mean: {why}; expected its ranges, one after the other, to their end")]
    BadDelta { why: String },
    #[error("the task that compared two volumes was stopped before it ended")]
    Stopped(#[source] tokio::task::JoinError),
}

/// LVM's version, as 2.03.16.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}.{}", self.major, self.minor, self.patch)
    }
}
impl FromStr for Version {
    type Err = ();
    /// From what `lvm version` prints.
    fn from_str(said: &str) -> Result<Self, ()> {
        let line = said.lines().find_map(|line| line.trim().strip_prefix("LVM version:")).ok_or(())?;
        let number = line.trim().split(['(', ' ']).next().ok_or(())?;
        let mut parts = number.split('.').map(|part| part.parse::<u32>().map_err(|_| ()));
        let mut next = || parts.next().unwrap_or(Err(()));
        Ok(Self { major: next()?, minor: next()?, patch: next()? })
    }
}

/// A thin pool as asked for. Sizes are rounded up to whole extents.
#[derive(Clone, Debug)]
pub struct NewThinPool {
    pub path: LvPath,
    pub data: Bytes,
    pub metadata: Bytes,
    pub chunk: Bytes,
    pub tags: BTreeSet<Tag>,
}

/// A thin volume as asked for.
#[derive(Clone, Debug)]
pub struct NewThinVolume {
    pub pool: LvPath,
    pub name: LvName,
    pub size: Bytes,
    pub tags: BTreeSet<Tag>,
}

/// A volume that has its room for itself.
#[derive(Clone, Debug)]
pub struct NewPlainVolume {
    pub path: LvPath,
    pub size: Bytes,
    pub tags: BTreeSet<Tag>,
}

/// A copy of a thin volume as it is now. It has none of its tags.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub of: LvPath,
    pub name: LvName,
    pub tags: BTreeSet<Tag>,
    pub use_as: SnapshotUse,
}

/// What a copy is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SnapshotUse {
    /// It is read-only, and made inactive.
    Kept,
    /// It is a volume like any other, and active when it is made.
    Written,
}

/// LVM on this host. Cheap to clone; all clones wait for each other.
#[derive(Clone, Debug)]
pub struct Lvm {
    program: PathBuf,
    version: Version,
    /// One lock per group that was ever changed.
    groups: Arc<Mutex<BTreeMap<GroupName, Arc<AsyncMutex<()>>>>>,
}

impl Lvm {
    /// Looks for the program and its version.
    pub async fn find() -> Result<Self, LvmError> {
        let program = program::find("lvm").ok_or(LvmError::NoProgram)?;
        let said = Run::new(&program).arg("version").output().await?.stdout;
        let found: Version =
            said.parse().map_err(|()| LvmError::NoVersion { said: said.chars().take(200).collect() })?;
        if found < VERSION_MIN {
            return Err(LvmError::TooOld { found });
        }
        Ok(Self { program, version: found, groups: Arc::default() })
    }

    pub fn version(&self) -> Version {
        self.version
    }

    // --- reports

    /// Every group that this host sees.
    pub async fn groups(&self) -> Result<Vec<VolumeGroup>, LvmError> {
        Ok(VolumeGroup::read_all(&self.report("vgs", group::COLUMNS, &[]).await?)?)
    }

    /// The one of that name, if there is one.
    pub async fn group(&self, name: &GroupName) -> Result<Option<VolumeGroup>, LvmError> {
        // Asked for by its name, one that is not there is a failure with the same status as any other.
        let mut found = self.groups().await?;
        found.retain(|group| group.name == *name);
        if found.len() > 1 {
            let uuids = found.into_iter().map(|group| group.uuid).collect();
            return Err(LvmError::Ambiguous { group: name.clone(), uuids });
        }
        Ok(found.pop())
    }

    /// Every volume of a group that is there, but for hidden parts.
    pub async fn volumes(&self, group: &GroupName) -> Result<Vec<LogicalVolume>, LvmError> {
        match self.report("lvs", volume::COLUMNS, &[group.as_str()]).await {
            Ok(text) => Ok(LogicalVolume::read_all(&text)?),
            // LVM skips a name that two groups have; nobody can say which of them is meant.
            Err(error) => Err(self.group(group).await.err().unwrap_or(error)),
        }
    }

    /// The one of that name, if there is one.
    pub async fn volume(&self, path: &LvPath) -> Result<Option<LogicalVolume>, LvmError> {
        Ok(self.volumes(&path.group).await?.into_iter().find(|volume| volume.name == path.name))
    }

    /// Every disk that LVM has or had.
    pub async fn devices(&self) -> Result<Vec<PhysicalVolume>, LvmError> {
        Ok(PhysicalVolume::read_all(&self.report("pvs", device::COLUMNS, &[]).await?)?)
    }

    async fn report(&self, command: &str, columns: &str, of: &[&str]) -> Result<String, LvmError> {
        // A host's own settings may change how lists are told.
        let lists = ["--config", "report { list_item_separator=\",\" }"];
        let options = ["--reportformat", "json", "--units", "b", "--nosuffix", "-o", columns];
        Ok(Run::new(&self.program)
            .arg(command)
            .args(lists)
            .args(options)
            .args(of.iter().copied())
            .output()
            .await?
            .stdout)
    }

    // --- groups

    /// Makes a group of devices that hold nothing; LVM refuses those in use or with a signature.
    pub async fn create_group(
        &self,
        name: &GroupName,
        devices: &[PathBuf],
        tags: &BTreeSet<Tag>,
    ) -> Result<(), LvmError> {
        let command = self.careful("vgcreate").args(add_tags(tags)).arg(name.as_str()).args(device_args(devices)?);
        self.run(name, command).await
    }

    /// Adds a tag to a group; one that it has already stays as it is.
    pub async fn tag_group(&self, name: &GroupName, tag: &Tag) -> Result<(), LvmError> {
        self.run(name, self.change("vgchange").args(add_tags(&[tag.clone()].into())).arg(name.as_str())).await
    }

    pub async fn extend_group(&self, name: &GroupName, devices: &[PathBuf]) -> Result<(), LvmError> {
        self.run(name, self.careful("vgextend").arg(name.as_str()).args(device_args(devices)?)).await
    }

    /// Refused by LVM while it has volumes.
    pub async fn remove_group(&self, name: &GroupName) -> Result<(), LvmError> {
        self.run(name, self.change("vgremove").arg(name.as_str())).await
    }

    // --- pools

    /// Makes a thin pool whose writes fail at once when it is full, instead of waiting for a minute and failing then.
    pub async fn create_thin_pool(&self, new: &NewThinPool) -> Result<(), LvmError> {
        let create = self
            .change("lvcreate")
            .args(["--type", "thin-pool", "--size"])
            .arg(size(new.data))
            .args(["--poolmetadatasize".to_string(), size(new.metadata), "--chunksize".to_string(), size(new.chunk)])
            .args(["--discards", "passdown", "--name"])
            .arg(new.path.name.as_str())
            .args(add_tags(&new.tags))
            .arg(new.path.group.as_str());
        self.run(&new.path.group, create).await?;
        self.set_error_when_full(&new.path).await
    }

    /// Also for a pool whose creation was cut short before this.
    pub async fn set_error_when_full(&self, pool: &LvPath) -> Result<(), LvmError> {
        self.run(&pool.group, self.change("lvchange").args(["--errorwhenfull", "y"]).arg(pool.to_string())).await
    }

    /// Grows a pool's metadata to that size.
    pub async fn extend_metadata(&self, pool: &LvPath, to: Bytes) -> Result<(), LvmError> {
        let extend = self.change("lvextend").arg("--poolmetadatasize").arg(size(to)).arg(pool.to_string());
        self.run(&pool.group, extend).await
    }

    // --- volumes

    /// Inactive, and with whatever was there before.
    pub async fn create_plain_volume(&self, new: &NewPlainVolume) -> Result<(), LvmError> {
        let as_it_is = ["--type", "linear", "--activate", "n", "--zero", "n", "--wipesignatures", "n", "--size"];
        let create = self.change("lvcreate").args(as_it_is).arg(size(new.size)).arg("--name");
        let create = create.arg(new.path.name.as_str()).args(add_tags(&new.tags)).arg(new.path.group.as_str());
        self.run(&new.path.group, create).await
    }

    /// Active when it is made.
    pub async fn create_thin_volume(&self, new: &NewThinVolume) -> Result<(), LvmError> {
        let create = self
            .change("lvcreate")
            .args(["--type", "thin", "--virtualsize"])
            .arg(size(new.size))
            .arg("--name")
            .arg(new.name.as_str())
            .args(add_tags(&new.tags))
            .arg(new.pool.to_string());
        self.run(&new.pool.group, create).await
    }

    /// As the volume is at this instant.
    pub async fn snapshot(&self, snapshot: &Snapshot) -> Result<(), LvmError> {
        let use_as = match snapshot.use_as {
            SnapshotUse::Kept => ["--activate", "n", "--permission", "r"],
            SnapshotUse::Written => ["--activate", "y", "--permission", "rw"],
        };
        let create = self
            .change("lvcreate")
            .args(["--snapshot", "--setactivationskip", "n"])
            .args(use_as)
            .arg("--name")
            .arg(snapshot.name.as_str())
            .args(add_tags(&snapshot.tags))
            .arg(snapshot.of.to_string());
        self.run(&snapshot.of.group, create).await
    }

    /// Grows a volume, or a pool's data, to that size.
    pub async fn extend(&self, path: &LvPath, to: Bytes) -> Result<(), LvmError> {
        self.run(&path.group, self.change("lvextend").arg("--size").arg(size(to)).arg(path.to_string())).await
    }

    pub async fn activate(&self, path: &LvPath) -> Result<(), LvmError> {
        let change = self.change("lvchange").args(["--ignoreactivationskip", "--activate", "y"]).arg(path.to_string());
        self.run(&path.group, change).await
    }

    /// Refused by LVM while its device is open.
    pub async fn deactivate(&self, path: &LvPath) -> Result<(), LvmError> {
        self.run(&path.group, self.change("lvchange").args(["--activate", "n"]).arg(path.to_string())).await
    }

    /// Of a snapshot that is kept, for a change of what is not its data.
    pub async fn set_writable(&self, path: &LvPath, writable: bool) -> Result<(), LvmError> {
        let permission = if writable { "rw" } else { "r" };
        let change = self.change("lvchange").args(["--permission", permission]).arg(path.to_string());
        self.run(&path.group, change).await
    }

    /// One change of LVM's metadata: whoever looks sees the old name or the new one.
    pub async fn rename(&self, path: &LvPath, to: &LvName) -> Result<(), LvmError> {
        let rename = self.change("lvrename").arg(path.group.as_str()).arg(path.name.as_str()).arg(to.as_str());
        self.run(&path.group, rename).await
    }

    /// One change of LVM's metadata.
    pub async fn change_tags(
        &self,
        path: &LvPath,
        add: &BTreeSet<Tag>,
        remove: &BTreeSet<Tag>,
    ) -> Result<(), LvmError> {
        let remove = remove.iter().flat_map(|tag| ["--deltag".to_string(), tag.to_string()]);
        let change = self.change("lvchange").args(add_tags(add)).args(remove).arg(path.to_string());
        self.run(&path.group, change).await
    }

    /// Removes it with what is in it. Refused by LVM while its device is open.
    pub async fn remove(&self, path: &LvPath) -> Result<(), LvmError> {
        self.run(&path.group, self.change("lvremove").arg(path.to_string())).await
    }

    /// `-y`: nobody is there to be asked, and what would be asked was judged before.
    fn change(&self, command: &str) -> Run {
        self.careful(command).arg("-y")
    }
    /// Whatever it asks is answered with no: whether a signature that it has found may be wiped.
    pub(crate) fn careful(&self, command: &str) -> Run {
        // The first activation after a crash reads all of a pool's metadata.
        Run::new(&self.program).args([command, "--quiet"]).lasting().deadline(CHANGE_DEADLINE)
    }

    pub(crate) async fn run(&self, group: &GroupName, command: Run) -> Result<(), LvmError> {
        let lock = {
            // It guards a table of locks: a panic elsewhere leaves nothing broken behind it.
            let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(groups.entry(group.clone()).or_default())
        };
        let _turn = lock.lock().await;
        command.output().await?;
        Ok(())
    }
}

/// In whole sectors: LVM refuses a part of one, and rounds up to whole extents what is given to it.
fn size(bytes: Bytes) -> String {
    const SECTOR: u64 = 512;
    format!("{}b", bytes.0.div_ceil(SECTOR).saturating_mul(SECTOR).min(u64::MAX - SECTOR + 1))
}

fn add_tags(tags: &BTreeSet<Tag>) -> Vec<String> {
    tags.iter().flat_map(|tag| ["--addtag".to_string(), tag.to_string()]).collect()
}

fn device_args(devices: &[PathBuf]) -> Result<Vec<String>, LvmError> {
    let text = |path: &PathBuf| {
        let fits = |text: &&str| Path::new(text).is_absolute() && text.bytes().all(|byte| byte.is_ascii_graphic());
        path.to_str().filter(fits).map(str::to_string).ok_or_else(|| LvmError::BadPath { path: path.clone() })
    };
    devices.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        let old: Version = include_str!("../tests/reports/2.03.16/version.txt").parse().unwrap();
        let new: Version = include_str!("../tests/reports/2.03.31/version.txt").parse().unwrap();
        assert_eq!((old.to_string().as_str(), new.to_string().as_str()), ("2.03.16", "2.03.31"));
        assert!(VERSION_MIN < old && old < new);
        assert!("nonsense".parse::<Version>().is_err());
        assert!("LVM version: 2".parse::<Version>().is_err());
    }

    #[test]
    fn sizes_are_whole_sectors_and_never_less_than_asked_for() {
        for (asked, said) in [(0, "0b"), (1, "512b"), (512, "512b"), (5_368_709_096, "5368709120b")] {
            assert_eq!(size(Bytes(asked)), said);
        }
        assert_eq!(size(Bytes(u64::MAX)), "18446744073709551104b");
    }

    #[test]
    fn devices_are_absolute_paths_without_blanks() {
        assert_eq!(device_args(&["/dev/nvme1n1".into()]).unwrap(), ["/dev/nvme1n1"]);
        for bad in ["nvme1n1", "-f", "/dev/a b", ""] {
            assert!(device_args(&[bad.into()]).is_err(), "{bad:?}");
        }
    }
}
