//! Holds each member's Postgres to the limits of its cluster's spec, by a control group of its own. Looked at again and again: after
//! a reboot, a restart of anything or a change by another hand the kernel's limits become what the spec says.
//!
//! `groups` finds and makes the groups, `io_max` reads and writes what the kernel calls their limits, `device` finds the disk.

mod device;
mod groups;
mod io_max;

pub use groups::{Group, Groups};

use crate::member::chain;
use groups::GroupError;
use pgstead_replication::cgroup;
use pgstead_replication::proc::ProcessId;
use pgstead_types::io_limits::IoLimits;
use pgstead_types::{Finding, MemberId, Tick};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Between two looks when nothing has changed here. Only another hand changes what was set.
const LOOK: Duration = Duration::from_secs(2);
/// It is a few small files of the kernel's; a start of Postgres waits no longer for them.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why limits are not in force.
#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error(transparent)]
    NoGroup(#[from] Arc<GroupError>),
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error(transparent)]
    Device(#[from] device::DeviceError),
    #[error("cannot put Postgres into its control group {}", group.display())]
    Enter {
        group: PathBuf,
        #[source]
        error: io::Error,
    },
}

/// Of one member: what is to be, as of one look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub limits: IoLimits,
    /// Where the volume is, once it is there.
    pub volume: Option<PathBuf>,
    pub guard: Option<ProcessId>,
}

/// Of one member: what was done, and why it was not.
pub struct Limiter {
    member: MemberId,
    groups: Groups,
    last: Option<(Wanted, Tick)>,
    /// One that does not return is waited for by nobody, and no other is begun.
    running: Option<JoinHandle<Result<(), ApplyError>>>,
    failed: Option<String>,
}

impl Limiter {
    pub fn new(member: MemberId, groups: Groups) -> Self {
        Self { member, groups, last: None, running: None, failed: None }
    }

    /// Makes it so where it is time to look. What cannot be done holds nothing up.
    pub async fn look(&mut self, wanted: Wanted) {
        let now = Tick::now();
        let fresh = |(last, at): &(Wanted, Tick)| *last == wanted && now.since(*at) < LOOK;
        if self.running.is_none() && self.last.as_ref().is_some_and(fresh) {
            return;
        }
        let mut running = match self.running.take() {
            Some(running) => running,
            None => {
                let (groups, member, wanted) = (self.groups.clone(), self.member, wanted.clone());
                tokio::task::spawn_blocking(move || apply(&groups, member, &wanted))
            }
        };
        // One that has not returned in time has been waited for once.
        let patience = if self.failed.as_deref() == Some(STUCK) { Duration::ZERO } else { PATIENCE };
        let failed = match tokio::time::timeout(patience, &mut running).await {
            Err(_) => {
                self.running = Some(running);
                Some(STUCK.to_string())
            }
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(chain(&error)),
            Ok(Err(stopped)) => Some(stopped.to_string()),
        };
        if let Some(why) = failed.as_ref().filter(|why| self.failed.as_ref() != Some(*why)) {
            let limits = wanted.limits;
            tracing::warn!(member = %self.member, %limits, %why, "limits of reads and writes are not in force");
        }
        self.failed = failed;
        self.last = Some((wanted, now));
    }

    pub fn finding(&self, limits: IoLimits, name: &str) -> Option<Finding> {
        let why = self.failed.as_ref().filter(|_| !limits.is_none())?;
        Some(Finding::warning(
            "io_limits_not_applied",
            format!("the limits of {name} ({limits}) are not applied, and its Postgres runs on as before: {why}"),
        ))
    }
}

const STUCK: &str = "the kernel does not answer about its control group or its volume";

fn apply(groups: &Groups, member: MemberId, wanted: &Wanted) -> Result<(), ApplyError> {
    let group = match groups.of(member) {
        // Nobody has asked for any, and none can be in force.
        Err(_) if wanted.limits.is_none() => return Ok(()),
        found => found?,
    };
    group.ensure_made()?;
    match &wanted.volume {
        _ if wanted.limits.is_none() => group.ensure_limits(None)?,
        Some(volume) => group.ensure_limits(Some((device::disk_below(volume)?, wanted.limits)))?,
        // Whatever holds goes on until the volume is there again.
        None => {}
    }
    // After the limits: nothing is written without them that could be written with them.
    if let Some(guard) = wanted.guard {
        let entered = cgroup::bring_in(group.path(), guard);
        entered.map_err(|error| ApplyError::Enter { group: group.path().to_path_buf(), error })?;
    }
    Ok(())
}
