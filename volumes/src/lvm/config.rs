//! What a pool in a thin pool is configured with, and why it cannot be used.

use super::{FileSystemKind, KeyError, LoopFileError, luks};
use pgstead_lvm::{GroupName, LvName, LvPath, LvmError};
use pgstead_types::{Bytes, NodeId};
use std::io;
use std::path::PathBuf;

/// One thin pool as a pool for volumes.
#[derive(Clone, Debug)]
pub struct LvmConfig {
    pub group: GroupName,
    /// The thin pool within the group.
    pub pool: LvName,
    /// Whose the group is: no other node works in it. `None`: whoever opens it.
    pub node: Option<NodeId>,
    /// Where volumes are mounted. Absolute; made when it is not there. It belongs to this pool alone.
    pub mounts: PathBuf,
    /// For new volumes.
    pub file_system: FileSystemKind,
    /// Files that stand for the group's disks, of a pool that is for trying it out. Absolute.
    pub loop_files: Vec<PathBuf>,
    /// For new volumes that are asked for without a size; `None`: as large as the pool.
    pub size_default: Option<Bytes>,
    /// Whether new volumes are encrypted. Those that are there stay as they are.
    pub encrypts: bool,
    /// The folder of keys. Absolute; made with a first key where new volumes are encrypted and nothing is yet.
    pub keys: PathBuf,
}

/// A thin pool that cannot be used. The text is for the person who configured it.
#[derive(Debug, thiserror::Error)]
pub enum LvmPoolError {
    #[error(transparent)]
    Lvm(#[from] LvmError),
    #[error(transparent)]
    LoopFile(#[from] LoopFileError),
    #[error(
        "there is no volume group {group} on this host; make the pool (`pgstead pool create`), or correct its name in the configuration"
    )]
    NoGroup { group: GroupName },
    #[error(
        "there is no thin pool {path}; make the pool (`pgstead pool create`), or correct its name in the configuration"
    )]
    NoPool { path: LvPath },
    #[error("{path} is not a thin pool; expected one")]
    NotThin { path: LvPath },
    #[error("{} is not absolute; expected a path that begins with /", mounts.display())]
    NotAbsolute { mounts: PathBuf },
    #[error("{} cannot be used to mount volumes in; expected a folder that this user may write", mounts.display())]
    Mounts {
        mounts: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("others may write to {}; expected a folder of root's that nobody else may write: what they put there would be mounted over", mounts.display())]
    OthersWrite { mounts: PathBuf },
    #[error("another process already works in {}; expected one pool per node", mounts.display())]
    InUse { mounts: PathBuf },
    #[error("this host lacks {programs:?}, which {} needs; install the tools of that file system", kind.as_str())]
    NoPrograms { kind: FileSystemKind, programs: Vec<&'static str> },
    #[error(
        "the volume group {group} belongs to {others}, expected to node {node}: two nodes that write to one group destroy it. If that node is gone for good and these are its disks, \
         `vgchange --deltag {tag} {group}` gives it to this one"
    )]
    OfAnotherNode { group: GroupName, node: NodeId, others: String, tag: String },
    #[error(transparent)]
    Keys(#[from] KeyError),
    #[error(
        "this host lacks the program `{}`, which the pool needs to encrypt its volumes; install it (Debian: cryptsetup-bin)",
        luks::PROGRAM
    )]
    NoCryptsetup,
    #[error("LVM is for a daemon that runs as root; this one does not")]
    NotRoot,
}
