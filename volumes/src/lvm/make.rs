//! Makes a pool of disks that hold nothing: a volume group, and the thin pool in it. First it is planned, which changes nothing;
//! cut short, it goes on where it stopped when it is asked for again.

use pgstead_lvm::{GroupName, Kind, LvName, LvPath, Lvm, LvmError, NewThinPool, ProgramError, Run, Tag, WhenFull};
use pgstead_types::Bytes;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Small enough that a page written after a snapshot copies little, large enough that a pool of many TiB can be kept account of.
const CHUNK: Bytes = Bytes(64 << 10);
/// Below this not one volume has room.
pub(super) const DEVICE_MIN: Bytes = Bytes(1 << 30);
/// lvmthin(7): no less than 2 MiB and no more than 16 GiB are of use.
const METADATA_MIN: Bytes = Bytes(16 << 20);
pub(super) const METADATA_MAX: Bytes = Bytes(16 << 30);
/// Of the group, for the pool's data. What is left takes the pool's growth, and the second copy of its metadata that a repair needs.
const DATA_PERCENT: u64 = 90;

/// Of the group, for a person to give back: half of what the data leaves.
const BALLAST_PERCENT: u64 = 4;
const BALLAST_MAX: Bytes = Bytes(32 << 30);

/// A pool as asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolRequest {
    pub group: GroupName,
    pub pool: LvName,
    /// Whole disks or partitions, by absolute paths.
    pub devices: Vec<PathBuf>,
    /// Whether what they hold is of no use.
    pub wipe: bool,
    /// How much is set aside for the day when the pool is full; `None`: [`BALLAST_PERCENT`] of the group.
    pub ballast: Option<Bytes>,
}

/// What is going to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolPlan {
    pub request: PoolRequest,
    pub devices: Vec<DeviceSeen>,
    pub state: PoolBegun,
    pub data: Bytes,
    pub metadata: Bytes,
    pub ballast: Bytes,
}

/// A device as it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceSeen {
    pub path: PathBuf,
    pub size: Bytes,
    /// What it holds by its signatures, such as `ext4` or `gpt`; nothing where it holds nothing.
    pub holds: Vec<String>,
    /// The kernel's number for it: another disk may come to have the same name.
    pub number: u64,
}

/// How far an earlier attempt has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PoolBegun {
    Nothing,
    /// The group is there.
    Group,
    /// Everything is.
    Whole,
}

/// Why no pool is made. The text is for the person who asked for it; nothing was changed, unless a program failed on the way.
#[derive(Debug, thiserror::Error)]
pub enum MakePoolError {
    #[error(transparent)]
    Lvm(#[from] LvmError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("making a pool is for root; this is not")]
    NotRoot,
    #[error("no device was named; expected at least one, such as --device /dev/nvme1n1")]
    NoDevice,
    #[error("{} was named twice", path.display())]
    Twice { path: PathBuf },
    #[error("{} cannot be looked at; expected a disk or a partition", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not a block device; expected a disk or a partition", path.display())]
    NotADevice { path: PathBuf },
    #[error("{} is in use: it is mounted, or has parts that are, or belongs to LVM, RAID, encryption or swap; it is left alone", path.display())]
    InUse { path: PathBuf },
    #[error("{} holds {}, expected nothing; if that is of no use, --wipe deletes it", path.display(), holds.join(", "))]
    Holds { path: PathBuf, holds: Vec<String> },
    #[error(
        "{} is a part of something larger ({what}), which may lie on other disks as well and be of use; take it out there by its \
         own tools first (vgreduce and pvremove, mdadm, cryptsetup, ...)", path.display()
    )]
    PartOfMore { path: PathBuf, what: String },
    #[error("{} has partitions ({}); name one of them, or delete them first", path.display(), parts.join(", "))]
    HasPartitions { path: PathBuf, parts: Vec<String> },
    #[error("{} is not what it was when it was shown; nothing was done: look again", path.display())]
    Changed { path: PathBuf },
    #[error("{} has {size}; expected at least {DEVICE_MIN}", path.display())]
    TooSmall { path: PathBuf, size: Bytes },
    #[error(
        "there is a volume group {group} already, which was not begun by this command; choose another name, or use it: see `[[pool]]` in node.toml"
    )]
    GroupTaken { group: GroupName },
    #[error("{asked} of ballast cannot be: beside its data the pool leaves {left}; ask for less")]
    TooMuchBallast { asked: Bytes, left: Bytes },
    #[error("the volume group {group} was begun with other devices than {}; expected the same ones", devices(asked))]
    OtherDevices { group: GroupName, asked: Vec<PathBuf> },
}

fn devices(paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    names.join(", ")
}

fn tag(text: String) -> Tag {
    text.parse().expect("the name of a pool makes a tag that LVM takes")
}

/// Both the group and the pool in it have them.
fn tags(request: &PoolRequest) -> BTreeSet<Tag> {
    [tag("pgstead".to_string()), tag(format!("pgstead.pool={}", request.pool.as_str()))].into()
}

/// Looks at everything, and changes nothing.
pub async fn plan_pool(mut request: PoolRequest) -> Result<PoolPlan, MakePoolError> {
    if !rustix::process::geteuid().is_root() {
        return Err(MakePoolError::NotRoot);
    }
    if request.devices.is_empty() {
        return Err(MakePoolError::NoDevice);
    }
    for device in &mut request.devices {
        // One device has many names under /dev; LVM and this compare by one.
        *device =
            fs::canonicalize(&*device).map_err(|source| MakePoolError::Unreadable { path: device.clone(), source })?;
    }
    let distinct: BTreeSet<&PathBuf> = request.devices.iter().collect();
    if distinct.len() < request.devices.len() {
        let twice =
            request.devices.iter().find(|path| request.devices.iter().filter(|other| other == path).count() > 1);
        return Err(MakePoolError::Twice { path: twice.cloned().unwrap_or_default() });
    }
    let lvm = Lvm::find().await?;
    let state = begun(&lvm, &request).await?;
    let mut seen = Vec::new();
    for path in &request.devices {
        let size = size(path)?;
        if size < DEVICE_MIN {
            return Err(MakePoolError::TooSmall { path: path.clone(), size });
        }
        let holds = if state == PoolBegun::Nothing { unused(path, request.wipe).await? } else { Vec::new() };
        seen.push(DeviceSeen { path: path.clone(), size, holds, number: number(path)? });
    }
    let total = seen.iter().fold(0u64, |sum, device| sum.saturating_add(device.size.0));
    let (data, metadata) = sizes(Bytes(total));
    let by_itself = Bytes(total / 100 * BALLAST_PERCENT).min(BALLAST_MAX);
    let ballast = request.ballast.unwrap_or(by_itself);
    // What the pool leaves, but for the spare copy of its metadata and what LVM itself takes of each device.
    let left = total.saturating_sub(data.0 + 2 * metadata.0).saturating_sub((seen.len() as u64 + 1) * (8 << 20));
    if ballast.0 > left {
        return Err(MakePoolError::TooMuchBallast { asked: ballast, left: Bytes(left) });
    }
    Ok(PoolPlan { request, devices: seen, state, data, metadata, ballast })
}

/// Does what was planned.
pub async fn make_pool(plan: &PoolPlan) -> Result<(), MakePoolError> {
    let (request, lvm) = (&plan.request, Lvm::find().await?);
    if plan.state == PoolBegun::Nothing {
        // All are looked at again before the first is touched: a person has been asked in between.
        for device in &plan.devices {
            let holds = unused(&device.path, request.wipe).await?;
            if holds != device.holds || number(&device.path)? != device.number || size(&device.path)? != device.size {
                return Err(MakePoolError::Changed { path: device.path.clone() });
            }
        }
        for device in plan.devices.iter().filter(|device| !device.holds.is_empty()) {
            Run::new("wipefs").args(["--all", "--quiet"]).arg(device.path.to_string_lossy()).lasting().output().await?;
        }
        lvm.create_group(&request.group, &request.devices, &tags(request)).await?;
    }
    let path = LvPath { group: request.group.clone(), name: request.pool.clone() };
    let all = lvm.volumes(&request.group).await?;
    // Before the pool, which is what makes all of it whole.
    if plan.state != PoolBegun::Whole && plan.ballast > Bytes(0) && super::ballast::size_among(&all) == Bytes(0) {
        super::ballast::make(&lvm, &request.group, plan.ballast).await?;
    }
    match all.into_iter().find(|volume| volume.name == request.pool).map(|volume| volume.kind) {
        Some(Kind::ThinPool { when_full: WhenFull::Error, .. }) => {}
        Some(Kind::ThinPool { .. }) => lvm.set_error_when_full(&path).await?,
        Some(Kind::Thin { .. } | Kind::Other) | None => {
            let pool =
                NewThinPool { path, data: plan.data, metadata: plan.metadata, chunk: CHUNK, tags: tags(request) };
            lvm.create_thin_pool(&pool).await?;
        }
    }
    Ok(())
}

async fn begun(lvm: &Lvm, request: &PoolRequest) -> Result<PoolBegun, MakePoolError> {
    let Some(group) = lvm.group(&request.group).await? else { return Ok(PoolBegun::Nothing) };
    if !tags(request).is_subset(&group.tags) {
        return Err(MakePoolError::GroupTaken { group: request.group.clone() });
    }
    let all = lvm.devices().await?;
    let of_it: BTreeSet<PathBuf> = all
        .into_iter()
        .filter(|device| device.group.as_ref() == Some(&request.group))
        .filter_map(|device| device.device.map(|path| fs::canonicalize(&path).unwrap_or(path)))
        .collect();
    if of_it != request.devices.iter().cloned().collect() {
        return Err(MakePoolError::OtherDevices { group: request.group.clone(), asked: request.devices.clone() });
    }
    let path = LvPath { group: request.group.clone(), name: request.pool.clone() };
    let whole = lvm.volume(&path).await?.is_some_and(|volume| matches!(volume.kind, Kind::ThinPool { .. }));
    Ok(if whole { PoolBegun::Whole } else { PoolBegun::Group })
}

fn size(path: &Path) -> Result<Bytes, MakePoolError> {
    let unreadable = |source| MakePoolError::Unreadable { path: path.into(), source };
    if !fs::metadata(path).map_err(unreadable)?.file_type().is_block_device() {
        return Err(MakePoolError::NotADevice { path: path.into() });
    }
    let mut file = File::open(path).map_err(unreadable)?;
    file.seek(SeekFrom::End(0)).map(Bytes).map_err(unreadable)
}

fn number(path: &Path) -> Result<u64, MakePoolError> {
    let found = fs::metadata(path).map_err(|source| MakePoolError::Unreadable { path: path.into(), source })?;
    Ok(found.rdev())
}

/// The names of a disk's partitions, mounted or not.
fn partitions(path: &Path) -> Vec<String> {
    let Some(name) = path.file_name() else { return Vec::new() };
    let entries = fs::read_dir(Path::new("/sys/class/block").join(name)).into_iter().flatten().flatten();
    let parts = entries.filter(|entry| entry.path().join("partition").exists());
    parts.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Of a signature: what has it may be needed by what lies on other disks, or is a lock that somebody has the key to.
fn is_part_of_more(signature: &str) -> bool {
    const OTHERS: [&str; 8] =
        ["crypto_LUKS", "BitLocker", "bcache", "ceph_bluestore", "drbd", "btrfs", "DM_integrity", "stratis"];
    signature.ends_with("_member") || OTHERS.contains(&signature)
}

/// Whether there is anything at its beginning or its end, where what has no signature begins and ends too.
fn has_bytes(path: &Path, size: Bytes) -> io::Result<bool> {
    const LOOK: u64 = 1 << 20;
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    for from in [0, size.0.saturating_sub(LOOK)] {
        file.seek(SeekFrom::Start(from))?;
        (&file).take(LOOK).read_to_end(&mut bytes)?;
    }
    Ok(bytes.iter().any(|byte| *byte != 0))
}

/// What a device holds that nothing uses.
async fn unused(path: &Path, wipe: bool) -> Result<Vec<String>, MakePoolError> {
    let parts = partitions(path);
    if !parts.is_empty() {
        return Err(MakePoolError::HasPartitions { path: path.into(), parts });
    }
    // open(2): on a block device, O_EXCL fails while the system uses it or a part of it.
    let exclusive = i32::try_from(rustix::fs::OFlags::EXCL.bits()).expect("it is a flag of open(2)");
    match OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(path) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            return Err(MakePoolError::InUse { path: path.into() });
        }
        Err(source) => return Err(MakePoolError::Unreadable { path: path.into(), source }),
    }
    let run = Run::new("wipefs").args(["--no-act", "--parsable", "--noheadings", "--output", "TYPE"]);
    let said = run.arg(path.to_string_lossy()).output().await?.stdout;
    let mut holds: Vec<String> =
        said.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
    holds.dedup();
    if let Some(what) = holds.iter().find(|signature| is_part_of_more(signature)) {
        return Err(MakePoolError::PartOfMore { path: path.into(), what: what.clone() });
    }
    let unreadable = |source| MakePoolError::Unreadable { path: path.into(), source };
    if holds.is_empty() && has_bytes(path, size(path)?).map_err(unreadable)? {
        holds.push("data of an unknown kind".to_string());
    }
    if !holds.is_empty() && !wipe {
        return Err(MakePoolError::Holds { path: path.into(), holds });
    }
    Ok(holds)
}

/// Of a pool in a group of so much: its data, and its metadata, of which there is a second copy for repairs.
fn sizes(group: Bytes) -> (Bytes, Bytes) {
    // Some 64 bytes for each chunk, and as much again for what snapshots share.
    let metadata = Bytes((group.0 / CHUNK.0).saturating_mul(128)).clamp(METADATA_MIN, METADATA_MAX);
    const MIB: u64 = 1 << 20;
    let metadata = Bytes(metadata.0.div_ceil(4 * MIB) * 4 * MIB);
    let left = group.0.saturating_sub(2 * metadata.0);
    (Bytes(left / 100 * DATA_PERCENT / (4 * MIB) * (4 * MIB)), metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_belong_to_other_disks_is_never_wiped() {
        for signature in ["LVM2_member", "linux_raid_member", "zfs_member", "isw_raid_member", "crypto_LUKS", "btrfs"] {
            assert!(is_part_of_more(signature), "{signature}");
        }
        for signature in ["ext4", "xfs", "swap", "gpt", "PMBR", "vfat"] {
            assert!(!is_part_of_more(signature), "{signature}");
        }
    }

    #[test]
    fn a_pool_leaves_room_for_its_metadata_twice_and_for_growth() {
        for gib in [1u64, 8, 100, 2_000, 30_000] {
            let group = Bytes(gib << 30);
            let (data, metadata) = sizes(group);
            assert!((METADATA_MIN..=METADATA_MAX).contains(&metadata), "{metadata}");
            let left = group.0.checked_sub(data.0 + 2 * metadata.0).expect("it fits");
            assert!(left * 20 > group.0, "{gib} GiB: {left} bytes are left");
            assert_eq!((data.0 % (4 << 20), metadata.0 % (4 << 20)), (0, 0));
        }
        assert_eq!(sizes(Bytes(1 << 40)).1, Bytes(2 << 30));
    }
}
