//! Has a member's volume grow to what the cluster's spec asks for, and by itself when it has become nearly full. Beside the
//! member's steps: nothing waits for it.

use super::{RETRY_LONGEST, chain};
use pgstead_types::record::MemberRecord;
use pgstead_types::spec::ClusterSpec;
use pgstead_types::{Bytes, Finding, Tick, VolumeId};
use pgstead_volumes::{Capability, Extension, Support, VolumeDriver, VolumeError};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// A volume with less room than this share of it grows, where it may.
const FREE_PERCENT: u64 = 20;
/// By so much of what it holds.
const STEP_PERCENT: u64 = 25;
/// Less than an extent or two is not worth a change of LVM's metadata.
const STEP_MIN: Bytes = Bytes(64 << 20);
/// Between two tries of what was refused or failed. Somebody may have made room.
const RETRY_REFUSED: Duration = Duration::from_secs(30);

/// What is known of one member's volume and its growth.
#[derive(Default)]
pub struct Growth {
    /// How much it may hold; `None` while that is not known, or where a volume has no size.
    pub size: Option<Bytes>,
    running: Option<JoinHandle<Result<Extension, VolumeError>>>,
    again: Option<Tick>,
    failed: Option<String>,
}

impl Growth {
    /// The volume was opened.
    pub fn opened(&mut self, driver: &dyn VolumeDriver, size: Option<Bytes>) {
        self.size = size.filter(|_| driver.support(Capability::SizeLimit) == Support::Offered);
    }

    /// Looks whether the volume has to grow, and begins it. `free`: room on it, as of the last write to it.
    pub async fn look(
        &mut self,
        driver: &Arc<dyn VolumeDriver>,
        spec: &ClusterSpec,
        volume: VolumeId,
        free: Option<Bytes>,
    ) {
        if let Some(running) = self.running.take_if(|running| running.is_finished()) {
            self.ended(running.await);
        }
        let (Some(size), None) = (self.size, &self.running) else { return };
        let Some(to) = wanted(spec, size, free) else {
            self.failed = None;
            return;
        };
        if self.again.is_some_and(|again| Tick::now() < again) || driver.support(Capability::Extend) != Support::Offered
        {
            return;
        }
        tracing::info!(%volume, from = %size, %to, "a volume grows");
        let driver = Arc::clone(driver);
        self.running = Some(tokio::spawn(async move { driver.extend(volume, to).await }));
    }

    fn ended(&mut self, ended: Result<Result<Extension, VolumeError>, tokio::task::JoinError>) {
        let (failed, pause) = match ended {
            // The next look knows how much room that has made.
            Ok(Ok(Extension::Holds(size))) => {
                self.size = Some(size);
                (None, RETRY_LONGEST)
            }
            Ok(Ok(Extension::NotThere)) => (Some("it is not there".to_string()), RETRY_REFUSED),
            Ok(Ok(Extension::Refused(why))) => (Some(why.to_string()), RETRY_REFUSED),
            Ok(Ok(Extension::Unsupported { why })) => (Some(why.to_string()), RETRY_REFUSED),
            Ok(Err(error)) => (Some(chain(&error)), RETRY_REFUSED),
            Err(error) => (Some(chain(&error)), RETRY_REFUSED),
        };
        if let Some(why) = &failed {
            tracing::warn!(why, "a volume does not grow");
        }
        self.failed = failed;
        self.again = Some(Tick::now() + pause);
    }

    /// Why it has not grown, and how full it is where it may grow no more.
    pub fn finding(&self, spec: &ClusterSpec, member: &MemberRecord, free: Option<Bytes>) -> Option<Finding> {
        let (name, size) = (&member.name, self.size?);
        if let Some(why) = &self.failed {
            return Some(Finding::error(
                "volume_not_grown",
                format!(
                    "the volume of {name} is to hold more than {size} and does not: {why}; it is tried again every 30 s"
                ),
            ));
        }
        let at_limit = wanted(&ClusterSpec { volume_limit: None, ..spec.clone() }, size, free).is_none()
            && spec.volume_limit.is_none_or(|limit| limit.0 <= size);
        let free = free.filter(|free| at_limit && is_low(size, *free))?;
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
        let growth = Growth { size: Some(Bytes(100 * GIB)), ..Growth::default() };
        let code = |growth: &Growth, spec: &ClusterSpec, free: u64| {
            growth.finding(spec, &member, Some(Bytes(free * GIB))).map(|finding| finding.code)
        };
        assert_eq!(code(&growth, &spec(None, None), 50), None);
        assert_eq!(code(&growth, &spec(None, None), 5).as_deref(), Some("volume_nearly_full"));
        assert_eq!(code(&growth, &spec(None, Some("200GB")), 5), None, "it grows in a moment");
        assert_eq!(code(&growth, &spec(None, Some("100GB")), 5).as_deref(), Some("volume_nearly_full"));
        let failed = Growth { failed: Some("the pool is full".into()), ..growth };
        assert_eq!(code(&failed, &spec(None, Some("200GB")), 5).as_deref(), Some("volume_not_grown"));
    }
}
