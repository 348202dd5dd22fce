//! Has a member's volume grow to what the cluster's spec asks for, and by itself when it has become nearly full. A task of its own
//! for each member: a copy that fills the volume goes on meanwhile, and nothing of the member waits for it.

use super::chain;
use crate::server::stopped;
use crate::storage::Pools;
use pgstead_consensus::{Consensus, TokioRuntime};
use pgstead_types::record::MemberRecord;
use pgstead_types::spec::ClusterSpec;
use pgstead_types::{Bytes, ClusterId, Finding, MemberId, Tick, VolumeId};
use pgstead_volumes::Extension;
use rustix::fs::StatVfs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A volume with less room than this share of it grows, where it may.
const FREE_PERCENT: u64 = 20;
/// By so much of what it holds.
const STEP_PERCENT: u64 = 25;
/// Less than an extent or two is not worth a change of LVM's metadata.
const STEP_MIN: Bytes = Bytes(64 << 20);
/// Between two looks at the room: a copy that comes at 1 GB/s takes longer to fill a fifth of a small volume.
const LOOK: Duration = Duration::from_secs(2);
/// Between two tries of what was refused or failed. Somebody may have made room.
const RETRY: Duration = Duration::from_secs(30);

/// What is known of one member's volume and its growth. Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub struct Growth(Arc<Mutex<Seen>>);

#[derive(Clone, Default)]
struct Seen {
    path: Option<PathBuf>,
    /// How much it may hold; `None` while that is not known, or where a volume has no size.
    size: Option<Bytes>,
    /// Room on it, measured since it had this size.
    free: Option<Bytes>,
    failed: Option<String>,
}

impl Growth {
    /// The volume was opened; `size` where it cannot outgrow it.
    pub fn opened(&self, path: Option<&Path>, size: Option<Bytes>) {
        let mut seen = self.seen();
        seen.path = path.map(Path::to_path_buf);
        seen.size = size;
    }

    pub fn size(&self) -> Option<Bytes> {
        self.seen().size
    }

    /// Why it has not grown, and how full it is where it may grow no more.
    pub fn finding(&self, spec: &ClusterSpec, member: &MemberRecord) -> Option<Finding> {
        let seen = self.seen().clone();
        let (name, size) = (&member.name, seen.size?);
        if let Some(why) = &seen.failed {
            return Some(Finding::error(
                "volume_not_grown",
                format!(
                    "the volume of {name} is to hold more than {size} and does not: {why}; it is tried again every 30 s"
                ),
            ));
        }
        let may_grow = wanted(spec, size, seen.free).is_some();
        let free = seen.free.filter(|free| !may_grow && is_low(size, *free))?;
        let how = match spec.volume_limit {
            Some(limit) => format!("it may grow no more (volume_limit = {limit})"),
            None => "it does not grow by itself (there is no volume_limit)".to_string(),
        };
        Some(Finding::warning(
            "volume_nearly_full",
            format!(
                "the volume of {name} has {free} of {size} left, and {how}; give it more by `pgstead cluster update`"
            ),
        ))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().expect("nothing panics while it holds what was seen")
    }
}

/// The task of one member.
pub struct Grower {
    pub cluster: ClusterId,
    pub member: MemberId,
    pub consensus: Consensus<TokioRuntime>,
    pub storage: Pools,
    pub growth: Growth,
}

impl Grower {
    /// Runs until the cluster has the member no more, or `stop`.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        if !self.storage.may_extend() {
            return;
        }
        let mut record = self.consensus.watch_record();
        // A growth that the last daemon's end cut short is finished whether or not more is asked for.
        let (mut checked, mut not_before, mut measuring) = (false, Tick::now(), None);
        loop {
            let now = record.get();
            let Some(cluster) = now.clusters.get(&self.cluster) else { return };
            let Some(member) = cluster.members.get(&self.member) else { return };
            if Tick::now() >= not_before {
                let grown = self.look(&cluster.spec, member.volume, &mut checked, &mut measuring).await;
                not_before = Tick::now() + if grown { Duration::ZERO } else { RETRY };
            }
            let revision = cluster.revision;
            let id = self.cluster;
            tokio::select! {
                () = stopped(&mut stop) => return,
                changed = record.wait_until(|next| next.clusters.get(&id).is_none_or(|c| c.revision != revision)) => {
                    if changed.is_err() {
                        return;
                    }
                    // What was refused may have been asked for otherwise.
                    not_before = Tick::now();
                }
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Measures, and grows the volume where that is due. Whether there is nothing left to try again.
    async fn look(&self, spec: &ClusterSpec, volume: VolumeId, checked: &mut bool, measuring: &mut Measuring) -> bool {
        let (path, size) = {
            let seen = self.growth.seen();
            let (Some(path), Some(size)) = (seen.path.clone(), seen.size) else { return true };
            (path, size)
        };
        let free = measured(path, measuring).await;
        self.growth.seen().free = free;
        let to = match wanted(spec, size, free) {
            Some(to) => to,
            None if *checked => {
                self.growth.seen().failed = None;
                return true;
            }
            None => size,
        };
        if to > size {
            tracing::info!(%volume, from = %size, %to, "a volume grows");
        }
        let Some(home) = self.storage.home(volume) else { return true };
        let failed = match home.volumes.extend(volume, to).await {
            Ok(Extension::Holds(size)) => {
                *checked = true;
                let mut seen = self.growth.seen();
                // How much room that has made is measured anew before it grows again.
                (seen.size, seen.free, seen.failed) = (Some(size), None, None);
                return true;
            }
            Ok(Extension::NotThere) => "it is not there".to_string(),
            Ok(Extension::Refused(why)) => why.to_string(),
            Ok(Extension::Unsupported { why }) => why.to_string(),
            Err(error) => chain(&error),
        };
        tracing::warn!(%volume, why = failed, "a volume does not grow");
        self.growth.seen().failed = Some(failed);
        false
    }
}

/// A question for the room that has not been answered yet. No other is asked meanwhile: a thread of the process waits with each.
type Measuring = Option<JoinHandle<rustix::io::Result<StatVfs>>>;

/// Room for Postgres. `None` where that cannot be said, also because the file system does not answer.
async fn measured(path: PathBuf, measuring: &mut Measuring) -> Option<Bytes> {
    let mut asked = match measuring.take() {
        Some(asked) => asked,
        None => tokio::task::spawn_blocking(move || rustix::fs::statvfs(&path)),
    };
    let Ok(answer) = tokio::time::timeout(LOOK, &mut asked).await else {
        *measuring = Some(asked);
        return None;
    };
    let found = answer.ok()?.ok()?;
    Some(Bytes(found.f_bavail.saturating_mul(found.f_frsize)))
}

fn is_low(size: Bytes, free: Bytes) -> bool {
    free.0 < size.0 / 100 * FREE_PERCENT
}

/// How much the volume should hold, where that is more than it does.
fn wanted(spec: &ClusterSpec, size: Bytes, free: Option<Bytes>) -> Option<Bytes> {
    let asked = spec.volume_size.map(|asked| asked.0);
    let limit = spec.volume_limit.map_or(Bytes(0), |limit| limit.0);
    let by_itself = free.filter(|free| is_low(size, *free)).map(|_| {
        let step = (size.0 / 100 * STEP_PERCENT).max(STEP_MIN.0);
        Bytes(size.0.saturating_add(step)).min(limit)
    });
    asked.max(by_itself).filter(|to| *to > size)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn spec(size: Option<&str>, limit: Option<&str>) -> ClusterSpec {
        let parse = |text: &str| text.parse().unwrap();
        ClusterSpec { volume_size: size.map(parse), volume_limit: limit.map(parse), ..ClusterSpec::named("app") }
    }
    fn to(spec: &ClusterSpec, size: u64, free: u64) -> Option<u64> {
        wanted(spec, Bytes(size * GIB), Some(Bytes(free * GIB))).map(|to| to.0 / GIB)
    }

    #[test]
    fn it_grows_to_what_is_asked_for_and_never_shrinks() {
        assert_eq!(to(&spec(Some("100GB"), None), 80, 50), Some(100));
        assert_eq!(to(&spec(Some("100GB"), None), 100, 1), None);
        assert_eq!(to(&spec(Some("100GB"), None), 120, 1), None);
        assert_eq!(to(&spec(None, None), 80, 0), None);
        assert_eq!(wanted(&spec(Some("100GB"), None), Bytes(GIB), None), Some(Bytes(100 * GIB)));
    }

    #[test]
    fn a_nearly_full_one_grows_by_itself_up_to_its_limit() {
        let spec = spec(Some("100GB"), Some("200GB"));
        assert_eq!(to(&spec, 100, 20), None);
        assert_eq!(to(&spec, 100, 19), Some(125));
        assert_eq!(to(&spec, 180, 5), Some(200));
        assert_eq!(to(&spec, 200, 5), None);
        assert_eq!(to(&spec, 80, 5), Some(100), "what was asked for is at hand");
    }

    #[test]
    fn one_that_is_full_and_may_not_grow_is_told_of() {
        let member = MemberRecord {
            id: pgstead_types::MemberId::from_u128(1),
            name: "app-1".into(),
            node: pgstead_types::NodeId::from_u128(1),
            volume: VolumeId::from_u128(1),
            incarnation: 1,
            restarts: 0,
            standing: Default::default(),
        };
        let growth = Growth::default();
        growth.seen().size = Some(Bytes(100 * GIB));
        let code = |growth: &Growth, spec: &ClusterSpec, free: u64| {
            growth.seen().free = Some(Bytes(free * GIB));
            growth.finding(spec, &member).map(|finding| finding.code)
        };
        assert_eq!(code(&growth, &spec(None, None), 50), None);
        assert_eq!(code(&growth, &spec(None, None), 5).as_deref(), Some("volume_nearly_full"));
        assert_eq!(code(&growth, &spec(None, Some("200GB")), 5), None, "it grows in a moment");
        assert_eq!(code(&growth, &spec(None, Some("100GB")), 5).as_deref(), Some("volume_nearly_full"));
        growth.seen().failed = Some("the pool is full".into());
        assert_eq!(code(&growth, &spec(None, Some("200GB")), 5).as_deref(), Some("volume_not_grown"));
    }
}
