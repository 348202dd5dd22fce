//! The trait that every kind of storage implements, and its words. Written so that LVM, whose volumes must be activated
//! and mounted before use and whose every answer comes from a slow program, fits it as well as plain directories do.

use crate::lvm::KeyError;
use crate::snapshot::{Forking, NewSnapshot, Snapshot, Snapshotted};
use async_trait::async_trait;
use pgstead_lvm::{LvmError, Percent, ProgramError};
use pgstead_types::storage::PoolState;
use pgstead_types::{Bytes, ClusterId, DeploymentId, MemberId, SnapshotId, VolumeId, WallTime};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// One pool of one node. Every call may be repeated: the second one finds the work done and changes nothing.
#[async_trait]
pub trait VolumeDriver: Send + Sync + fmt::Debug {
    /// The driver's name in configuration and messages.
    fn name(&self) -> &'static str;

    /// What this driver offers beyond the methods below. A capability's own methods come with the first driver that
    /// offers it, so that no driver has to pretend.
    fn support(&self, what: Capability) -> Support;

    /// Makes a volume that is complete or not there, whenever the process is killed.
    async fn create(&self, new: NewVolume) -> Result<Creation, VolumeError>;

    /// Makes the volume reachable at its path (LVM activates and mounts it) and describes it; `None` when there is none.
    async fn open(&self, id: VolumeId) -> Result<Option<Volume>, VolumeError>;

    /// Everything in the pool, read from the storage itself: no note kept elsewhere is trusted.
    async fn list(&self) -> Result<Inventory, VolumeError>;

    /// Takes the volume out of the inventory and, if `how` says so, deletes its data. The tags must be the volume's own.
    /// Dropping the future stops a long deletion soon; the next call goes on where it stopped.
    async fn remove(&self, id: VolumeId, tags: &VolumeTags, how: Removal) -> Result<Removed, VolumeError>;

    /// Makes a volume in use hold as much, its file system included; one that holds as much already is left as it is. A growth
    /// that is cut short is finished when the volume is opened next.
    async fn extend(&self, id: VolumeId, to: Bytes) -> Result<Extension, VolumeError>;

    /// Takes a copy of a volume in use as it is at one moment, as a power cut then would leave it; or makes a place for a copy that
    /// the caller makes, who knows what is in the volume. Repeated with its id, it changes nothing.
    async fn snapshot(&self, new: NewSnapshot) -> Result<Snapshotted, VolumeError>;

    /// The place is filled, and all of it on disk. One that is never finished goes with [`VolumeDriver::remove_snapshot`], and at the
    /// next opening of the pool.
    async fn finish_snapshot(&self, id: SnapshotId) -> Result<Snapshot, VolumeError>;

    /// Makes a volume with what is in a snapshot, and is independent of it from then on; or makes a place for a copy. Complete or not
    /// there, like any other volume. Repeated with the volume's id, it changes nothing.
    async fn fork(&self, new: NewVolume, from: SnapshotId) -> Result<Forking, VolumeError>;

    /// The place is filled, and all of it on disk. One that is never finished goes like any unfinished volume.
    async fn finish_fork(&self, id: VolumeId) -> Result<Volume, VolumeError>;

    /// All of the pool, in the order in which they were taken.
    async fn snapshots(&self) -> Result<Vec<Snapshot>, VolumeError>;

    /// Deletes one; whether it was there. A hard removal of a volume deletes its own.
    async fn remove_snapshot(&self, id: SnapshotId) -> Result<bool, VolumeError>;

    /// Gives a pool that is getting full more room, where there is some to give; says what it did.
    async fn relieve(&self) -> Result<Option<String>, VolumeError>;

    /// Keeps a copy of what the pool knows of itself and would be lost with, in a folder elsewhere that is this pool's alone: the newest
    /// few, on disk when it returns. It may take long, and the pool is in use meanwhile.
    async fn back_up(&self, to: &Path) -> Result<BackedUp, VolumeError>;

    /// Gives the newest key to what is encrypted and has an older one: to one volume or snapshot a call, so that whoever calls can say how
    /// far it is. Keeps copies of what an encrypted volume would be lost with, in a folder elsewhere that is for these alone.
    async fn tend_keys(&self, headers: &Path) -> Result<KeysSeen, VolumeError>;

    /// The pool as a whole, now.
    async fn usage(&self) -> Result<Usage, VolumeError>;
}

/// What storage holds of a volume that was not there a moment ago.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    Nothing,
    /// A removal was cut short, or a creation, which may have been a long copy.
    Remains,
    /// It is there after all, whole.
    Whole,
}

pub async fn left_of(driver: &dyn VolumeDriver, id: VolumeId) -> Result<Left, VolumeError> {
    let held = driver.list().await?;
    let unreadable = |stray: &Stray| stray.id == id && matches!(stray.kind, StrayKind::Unreadable { .. });
    if held.volumes.iter().any(|volume| volume.id == id) || held.strays.iter().any(unreadable) {
        return Ok(Left::Whole);
    }
    let remains = held.strays.iter().any(|stray| stray.id == id);
    Ok(if remains { Left::Remains } else { Left::Nothing })
}

/// Whose a volume is; kept with the volume itself, so that the inventory can be rebuilt from storage alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeTags {
    pub deployment: DeploymentId,
    pub cluster: ClusterId,
    pub member: MemberId,
}

impl fmt::Display for VolumeTags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "member {} of cluster {} in deployment {}", self.member, self.cluster, self.deployment)
    }
}

/// The user and group that Postgres runs as.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// A volume as asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewVolume {
    pub id: VolumeId,
    pub tags: VolumeTags,
    /// How much it may hold; `None` leaves it to the pool. Only a driver with [`Capability::SizeLimit`] enforces it.
    pub size: Option<Bytes>,
    pub owner: Owner,
}

/// A complete volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Volume {
    pub id: VolumeId,
    pub tags: VolumeTags,
    pub size: Option<Bytes>,
    pub owner: Owner,
    pub created: WallTime,
    /// The folder that belongs to the owner, mode 0700: a mount point, or a plain folder.
    pub path: PathBuf,
}

/// The answer to a request for a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Creation {
    Made(Volume),
    /// An earlier call made it, for the same member.
    AlreadyThere(Volume),
    Refused(Refusal),
}

/// The answer to a request for more room.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Extension {
    /// It holds so much, which may be a little more than asked for.
    Holds(Bytes),
    NotThere,
    Refused(Refusal),
    Unsupported {
        why: &'static str,
    },
}

/// Why a volume is not made, grown or removed. The text is for a person.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("volume {id} belongs to {found}, not to {asked}; it is left alone")]
    OtherTags { id: VolumeId, found: Box<VolumeTags>, asked: Box<VolumeTags> },
    #[error(
        "{} is too full for another volume: {free} free, expected at least {needed}; free some space, or choose \
         another pool", pool.display()
    )]
    TooFull { pool: PathBuf, free: Bytes, needed: Bytes },
    #[error(
        "the pool {} is {used} full and takes no new volume from {limit} on; add disks to it, remove what is not needed, \
         or choose another pool", pool.display()
    )]
    PoolNearlyFull { pool: PathBuf, used: Percent, limit: Percent },
    #[error(
        "a volume of {asked} is larger than its pool {}, which has {size}; expected no more than that, or a pool with more disks",
        pool.display()
    )]
    LargerThanPool { pool: PathBuf, size: Bytes, asked: Bytes },
    #[error("this node has no pool of class {class}, but of {has}; expected a class that it has")]
    NoPoolOfClass { class: String, has: String },
    #[error("{whose} has {limit} snapshots, and takes no more; remove some (`pgstead snapshot list`)")]
    TooManySnapshots { whose: String, limit: usize },
    #[error("a volume of {size} is too small for {file_system}; expected at least {least}")]
    TooSmall { size: Bytes, least: Bytes, file_system: &'static str },
    #[error("the pool {} is not well: {why}; it takes no new volume", pool.display())]
    PoolUnwell { pool: PathBuf, why: String },
    #[error(
        "user {uid} cannot reach the pool {}: {} is closed to it; expected the execute permission for others on \
         every folder above the pool", pool.display(), blocked_at.display()
    )]
    OwnerLockedOut { pool: PathBuf, uid: u32, blocked_at: PathBuf },
}

impl Refusal {
    pub(crate) fn other_tags(id: VolumeId, found: VolumeTags, asked: VolumeTags) -> Self {
        Self::OtherTags { id, found: Box::new(found), asked: Box::new(asked) }
    }
}

/// How far a removal goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removal {
    /// Set aside: out of the inventory, the data kept until a hard removal.
    Soft,
    /// Set aside, then deleted.
    Hard,
}

/// What a removal has come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Removed {
    /// It was not there, and nothing of it was set aside.
    NotThere,
    /// Its data is kept, out of the inventory.
    SetAside,
    /// Nothing of it is left.
    Deleted,
    Refused(Refusal),
}

/// What a backup has come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BackedUp {
    /// It knows nothing but what its volumes say themselves.
    NothingToKeep,
    /// The last one says the same.
    Unchanged,
    Written(PathBuf),
}

/// What is encrypted in a pool, and how far a change of its keys is.
#[derive(Debug, Default)]
pub struct KeysSeen {
    /// Volumes, removed ones and snapshots.
    pub encrypted: usize,
    /// The number of the key that all are to have.
    pub newest: Option<u32>,
    /// How many have an older one yet.
    pub pending: usize,
    /// One was given the newest key by this call.
    pub changed: bool,
    /// What could not be given the newest key.
    pub fails: Vec<(String, VolumeError)>,
    /// Volumes that are to be in use and that no key opens.
    pub locked: Vec<VolumeError>,
    /// Why not all headers are kept elsewhere.
    pub headers_fail: Option<VolumeError>,
    /// Files of keys that nothing in the pool needs any more.
    pub not_needed: Vec<PathBuf>,
}

/// What storage holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inventory {
    /// In the order of their ids.
    pub volumes: Vec<Volume>,
    /// What is ours by its name and is not a complete volume.
    pub strays: Vec<Stray>,
}

/// Something left over. It is reported, and removed only on request, or when it never was a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stray {
    pub id: VolumeId,
    pub path: PathBuf,
    pub kind: StrayKind,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StrayKind {
    /// A creation was cut short; it never held data.
    Unfinished,
    /// Removed, its data still there or partly so. Without tags when they are gone already, which go last.
    SetAside { tags: Option<VolumeTags> },
    /// A volume by its name whose tags cannot be read or do not fit. A person must look.
    Unreadable { why: String },
}

/// Space in a pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Usage {
    pub total: Bytes,
    pub used: Bytes,
    /// Free for us; less than `total - used` where the file system reserves some for root.
    pub free: Bytes,
    /// How full its own bookkeeping is, where that has a size of its own.
    pub metadata_used: Option<Percent>,
    /// Set aside, for a person to give back.
    pub ballast: Bytes,
    pub state: PoolState,
}

/// What not every driver can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Capability {
    /// More room for a volume in use.
    Extend,
    /// A volume that cannot outgrow its size.
    SizeLimit,
    /// A snapshot of one moment, whatever is written meanwhile, that takes no copy.
    Snapshot,
}

/// Whether a driver can do it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    Offered,
    Unsupported { why: &'static str },
}

/// Storage did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("could not {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the volume at {} is not readable as one ({why}); it is left alone, expected a person to look", path.display())]
    Unreadable { path: PathBuf, why: String },
    #[error("folders under {} are nested deeper than {limit}; delete them by hand", path.display())]
    TooDeep { path: PathBuf, limit: usize },
    #[error(transparent)]
    Lvm(Box<LvmError>),
    #[error(transparent)]
    Keys(#[from] KeyError),
    #[error("could not {doing} {}", path.display())]
    FileSystem {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: ProgramError,
    },
    #[error(
        "the file system on {} has errors that could not be repaired without loss: {said}; keep the volume as it is, and \
         look at it by hand", device.display()
    )]
    Damaged { device: PathBuf, said: String },
    #[error("something else is mounted on {}: expected {}, found {found}; unmount it", path.display(), device.display())]
    OtherMounted { path: PathBuf, device: PathBuf, found: String },
    #[error("{} is mounted on {} already, expected {}; unmount it there", device.display(), at.display(), path.display())]
    MountedElsewhere { device: PathBuf, at: PathBuf, path: PathBuf },
    #[error("volume {id} cannot be used: {why}")]
    Unusable { id: VolumeId, why: String },
    #[error("the pool {pool} cannot be used: {why}; it is tried again by itself")]
    PoolClosed { pool: String, why: String },
    #[error("what the pool {} knows of itself is not backed up now: {why}", pool.display())]
    NotBackedUp { pool: PathBuf, why: String },
    #[error("the task that worked on the pool was stopped before it ended")]
    Stopped(#[source] tokio::task::JoinError),
}

impl From<LvmError> for VolumeError {
    fn from(error: LvmError) -> Self {
        Self::Lvm(Box::new(error))
    }
}

impl VolumeError {
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> VolumeError {
        let path = path.into();
        move |source| VolumeError::Io { doing, path, source }
    }
}
