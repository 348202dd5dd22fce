//! LVM2 with types. LVM has no library that is kept up; its command line with JSON reports is its supported interface, so
//! that is what this crate drives: one command at a time per volume group, every column asked for by name, sizes in bytes,
//! and errors that hold what was run and what it said.
//!
//! It knows nothing of file systems, of Postgres, or of what a volume is for: whoever uses it says so in [`Tag`]s.

pub mod names;
pub mod program;
pub mod report;

mod client;
mod delta;
mod device;
mod group;
mod metadata;
mod volume;

pub use client::{Lvm, LvmError, NewPlainVolume, NewThinPool, NewThinVolume, Snapshot, SnapshotUse, Version};
pub use delta::{Change, ChangedRange};
pub use device::PhysicalVolume;
pub use group::VolumeGroup;
pub use names::{BadName, GroupName, LvName, LvPath, Tag};
pub use program::{ProgramError, Run};
pub use report::{BadReport, Percent};
pub use volume::{Health, Kind, LogicalVolume, WhenFull};
