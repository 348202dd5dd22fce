//! Where members keep their data: one trait for every kind of storage, and the drivers behind it.
//! It knows nothing of Postgres; whoever removes a volume has first seen that nothing runs in it.

mod ballast;
pub mod dir;
pub mod driver;
mod entry;
mod folder;
pub mod lvm;
mod snapshot;

pub use ballast::{BallastError, release_in_dir, release_in_group, reserve_in_dir, reserve_in_group};
pub use dir::{DirConfig, DirDriver, PoolError};
pub use driver::{
    BackedUp, Capability, Creation, Extension, Inventory, KeysSeen, Left, NewVolume, Owner, Refusal, Removal, Removed,
    Stray, StrayKind, Support, Usage, Volume, VolumeDriver, VolumeError, VolumeTags, left_of,
};
pub use lvm::{
    DeviceSeen, FileSystemKind, Key, KeyError, KeyFolder, LoopFileError, LvmConfig, LvmDriver, LvmPoolError,
    MakePoolError, PoolBegun, PoolPlan, PoolRequest, attach_loop_file, make_loop_file, make_pool, plan_loop_file,
    plan_pool,
};
pub use snapshot::{Forking, NewSnapshot, SNAPSHOTS_MAX, Snapshot, Snapshotted, ToFill};
