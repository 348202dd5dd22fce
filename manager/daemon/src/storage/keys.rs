//! When the driver is asked to bring what is encrypted up to the newest key: every minute, and at once again while there is more to do.

use super::Storage;
use pgstead_types::{Finding, Tick};
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinHandle;

/// It costs a run of LVM's program.
const EVERY: Duration = Duration::from_secs(60);
/// A volume that is being made or removed is another one a minute later.
const FAILS_TOLD: usize = 5;
/// More than a pool has volumes and snapshots: what changes for ever is not to be run for ever.
const ROUNDS_MAX: usize = 10_000;

/// Of this run of the daemon.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    tried: Option<Tick>,
    seen: Seen,
}

/// What the driver said last, in words.
#[derive(Clone, Debug, Default)]
struct Seen {
    encrypted: usize,
    newest: Option<u32>,
    pending: usize,
    fails: Vec<String>,
    locked: Vec<String>,
    /// Why the driver said nothing.
    failed: Option<String>,
    headers_fail: Option<String>,
    not_needed: Vec<PathBuf>,
}

impl Keys {
    fn is_due(&self, now: Tick) -> bool {
        self.tried.is_none_or(|tried| now.since(tried) >= EVERY)
    }

    pub fn findings(&self, pool: &str) -> Vec<Finding> {
        let Seen { encrypted, newest, pending, fails, locked, failed, headers_fail, not_needed } = &self.seen;
        let locked = locked.iter().map(|why| Finding::error("volume_locked", why.clone()));
        let failed = failed.as_ref().map(|why| {
            let text =
                format!("the keys of the pool {pool} cannot be looked after: {why}; it is tried again every minute");
            Finding::warning("key_rotation_fails", text)
        });
        let number = newest.unwrap_or_default();
        let fails_text = (!fails.is_empty()).then(|| {
            let text = format!(
                "{pending} of {encrypted} in the pool {pool} cannot be given key {number}: {}",
                fails.join("; ")
            );
            Finding::warning("key_rotation_fails", text)
        });
        let headers = headers_fail.as_ref().map(|why| {
            let text = format!("not all headers of encrypted volumes in the pool {pool} are kept elsewhere: {why}; it is tried again every minute");
            Finding::warning("headers_not_saved", text)
        });
        let goes_on = (*pending > 0 && fails.is_empty()).then(|| {
            let text = format!(
                "{pending} of {encrypted} volumes and snapshots in the pool {pool} are yet to be given key {number}"
            );
            Finding::info("key_rotation", text)
        });
        let files: Vec<String> = not_needed.iter().map(|path| path.display().to_string()).collect();
        let not_needed = (!files.is_empty()).then(|| {
            let text = format!(
                "nothing in the pool {pool} needs {} any more; delete it once no backup of its disks is to be read again",
                files.join(", ")
            );
            Finding::info("key_not_needed", text)
        });
        locked.chain(failed).chain(fails_text).chain(headers).chain(goes_on).chain(not_needed).collect()
    }
}

impl Storage {
    pub(super) fn tend_keys_when_due(&self, task: &mut Option<JoinHandle<()>>) {
        let runs = task.as_ref().is_some_and(|task| !task.is_finished());
        if !runs && self.held().keys.is_due(Tick::now()) {
            self.held().keys.tried = Some(Tick::now());
            let storage = self.clone();
            *task = Some(tokio::spawn(async move { storage.tend_keys().await }));
        }
    }

    async fn tend_keys(&self) {
        let headers = self.backups.join("headers");
        for _ in 0..ROUNDS_MAX {
            let (seen, goes_on) = match self.volumes.tend_keys(&headers).await {
                Ok(seen) => {
                    let fails = seen.fails.iter().take(FAILS_TOLD);
                    let told = Seen {
                        encrypted: seen.encrypted,
                        newest: seen.newest,
                        pending: seen.pending,
                        fails: fails.map(|(name, error)| format!("{name}: {}", crate::member::chain(error))).collect(),
                        locked: seen.locked.iter().take(FAILS_TOLD).map(|error| crate::member::chain(error)).collect(),
                        failed: None,
                        headers_fail: seen.headers_fail.as_ref().map(|error| crate::member::chain(error)),
                        not_needed: seen.not_needed,
                    };
                    (told, seen.changed)
                }
                Err(error) => {
                    let why = crate::member::chain(&error);
                    tracing::warn!(pool = %self.pool, %why, "cannot look after the keys of the pool");
                    let before = self.held().keys.seen.clone();
                    (Seen { failed: Some(why), not_needed: Vec::new(), ..before }, false)
                }
            };
            self.held().keys.seen = seen;
            if !goes_on {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(seen: Seen) -> Vec<String> {
        Keys { tried: None, seen }.findings("nvme").into_iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn a_change_of_keys_is_told_of_until_the_old_one_is_not_needed() {
        let seen = Seen { encrypted: 3, newest: Some(2), ..Seen::default() };
        assert_eq!(codes(Seen::default()), Vec::<String>::new());
        assert_eq!(codes(seen.clone()), Vec::<String>::new());
        assert_eq!(codes(Seen { pending: 2, ..seen.clone() }), ["key_rotation"]);
        let fails = vec!["vol-1: no key".to_string()];
        assert_eq!(codes(Seen { pending: 1, fails, ..seen.clone() }), ["key_rotation_fails"]);
        let locked = vec!["volume 1 cannot be used".to_string()];
        let failed = Some("others may read it".to_string());
        assert_eq!(codes(Seen { locked, failed, ..seen.clone() }), ["volume_locked", "key_rotation_fails"]);
        let not_needed = vec!["/k/000001.key".into()];
        let headers_fail = Some("no room".to_string());
        assert_eq!(codes(Seen { not_needed, headers_fail, ..seen }), ["headers_not_saved", "key_not_needed"]);
    }

    #[test]
    fn it_is_looked_at_every_minute() {
        let at = |seconds: u64| Tick::from_millis(seconds * 1000);
        assert!(Keys::default().is_due(at(0)));
        let keys = Keys { tried: Some(at(0)), seen: Seen::default() };
        assert!(!keys.is_due(at(59)) && keys.is_due(at(60)));
    }
}
