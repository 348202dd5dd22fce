//! One Postgres instance of a cluster: made, started, followed, promoted, rewound, watched; and the guard that is its
//! postmaster's parent. What to do and when is decided elsewhere: here every step is idempotent, safe when it is cut
//! short, and either done and seen in effect or an error.

pub mod cgroup;
mod files;
pub mod guard;
pub mod instance;
pub mod proc;
mod run;
mod sys;
mod user;

pub use guard::{GuardClient, GuardEvent, GuardLaunch, GuardOptions, GuardStatus, guard_main};
pub use instance::{Instance, InstanceConfig, InstanceError, copy_folder};
pub use run::RunError;
pub use user::RunAs;
