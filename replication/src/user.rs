//! The operating system's user that Postgres runs as.

use crate::run::{self, RunError};
use std::path::Path;
use std::time::Duration;

/// A user by its numbers; everything that Postgres touches belongs to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunAs {
    pub uid: u32,
    pub gid: u32,
}

impl RunAs {
    /// The user of this process: for a daemon that is not root.
    pub fn myself() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }
    /// Whether switching to it takes root's rights.
    pub(crate) fn is_someone_else(self) -> bool {
        self != Self::myself()
    }
}

/// The name of a user, as Postgres' `peer` authentication will see it. Asked of `id`, which knows every source of users
/// that the host has.
pub(crate) async fn name_of(uid: u32) -> Result<String, RunError> {
    let args = ["-un".to_string(), uid.to_string()];
    let output = run::Run::new(Path::new("id"), args).deadline(Duration::from_secs(10)).output().await?;
    Ok(output.stdout.trim().to_string())
}
