//! What a single look at a member does not show: a stream that is refused again and again, a recovery that does not move,
//! starts that all end soon, pages with wrong checksums, storage that takes no writes.

use super::notes::Notes;
use pgstead_replication::instance::RecoveryMark;
use pgstead_replication::{Instance, InstanceError};
use pgstead_types::report::{MemberReport, PostgresSeen, Upstream};
use pgstead_types::{Bytes, Incarnation, Tick, Trouble};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// A standby without a stream for so long has its log read for the reason.
const UNSTREAMED: Duration = Duration::from_secs(5);
/// Recovery that has read nothing and stands at the same segment for so long is stuck. It polls ten times a second, so that
/// minutes mean that what it waits for does not come.
const STUCK: Duration = Duration::from_secs(120);
/// Starts that were not ordered, within this time, are a loop.
const LOOP_STARTS: usize = 5;
const LOOP_WINDOW: Duration = Duration::from_secs(600);
/// A Postgres that has answered nothing for so long hangs. A host that is merely overloaded answers now and then.
const HUNG: Duration = Duration::from_secs(30);
/// Between two counts of wrong checksums.
const CHECKSUMS_EVERY: Duration = Duration::from_secs(15);
/// Between two writes to the storage, and how long one may take before it counts as stuck. A disk under load takes a second.
const STORAGE_EVERY: Duration = Duration::from_secs(10);
const STORAGE_STUCK: Duration = Duration::from_secs(15);
/// So many failed writes in a row: the first one may have met a burst that is over.
const STORAGE_FAILURES: u32 = 2;

/// What is remembered of one member. A restarted daemon begins anew, but for corruption, which its notes keep.
#[derive(Default)]
pub struct Watch {
    unstreamed_since: Option<Tick>,
    /// Whom it was told to stream from. What another one refused says nothing of this one.
    upstream: Option<Upstream>,
    /// The length of the server log when that began. What is before may be an earlier one's.
    log_from: u64,
    unanswered_since: Option<Tick>,
    recovery: Option<(RecoveryMark, Tick)>,
    /// Recovery of this data was stuck. That Postgres was ended since has not changed it.
    stuck: Option<(Incarnation, String)>,
    starts: VecDeque<Tick>,
    /// The last end of Postgres was ordered here.
    ended_by_us: bool,
    checksums_at: Option<Tick>,
    storage: Storage,
}

#[derive(Default)]
struct Storage {
    check: Option<(JoinHandle<Result<Bytes, InstanceError>>, Tick)>,
    free: Option<Bytes>,
    last: Option<Tick>,
    failures: u32,
    why: String,
}

impl Watch {
    /// Postgres is about to be ended on purpose.
    pub fn note_ordered_end(&mut self) {
        self.ended_by_us = true;
    }
    /// Room on the volume, as of the last write to it that went well.
    pub fn free(&self) -> Option<Bytes> {
        self.storage.free
    }
    /// Postgres is about to be started.
    pub fn note_start(&mut self) {
        if !std::mem::take(&mut self.ended_by_us) {
            self.starts.push_back(Tick::now());
            if self.starts.len() > LOOP_STARTS {
                self.starts.pop_front();
            }
        }
    }

    pub async fn look(&mut self, instance: &Arc<Instance>, seen: &MemberReport, notes: &mut Notes) -> Vec<Trouble> {
        let now = Tick::now();
        let mut troubles = Vec::new();
        let lately = self.starts.iter().filter(|at| now.since(**at) < LOOP_WINDOW).count();
        if lately >= LOOP_STARTS {
            troubles.push(Trouble::CrashLoop { starts: lately as u32 });
        }
        troubles.extend(self.answers(seen, now));
        troubles.extend(self.stream(instance, seen, now).await);
        troubles.extend(self.recovery(instance, seen, now).await);
        troubles.extend(self.checksums(instance, seen, notes, now).await);
        if seen.volume_present && seen.identity().is_some() {
            troubles.extend(self.storage.look(instance, now).await);
        }
        troubles
    }

    fn answers(&mut self, seen: &MemberReport, now: Tick) -> Option<Trouble> {
        let PostgresSeen::Unresponsive { why } = &seen.postgres else {
            self.unanswered_since = None;
            return None;
        };
        let since = *self.unanswered_since.get_or_insert(now);
        (now.since(since) >= HUNG).then(|| Trouble::Hung { why: why.clone() })
    }

    async fn stream(&mut self, instance: &Instance, seen: &MemberReport, now: Tick) -> Option<Trouble> {
        let upstream = seen.as_standby().and_then(|standby| standby.upstream);
        if upstream.is_some() && upstream != self.upstream {
            self.upstream = upstream;
            self.unstreamed_since = None;
            self.log_from = instance.log_length().await;
        }
        let waits = seen
            .as_standby()
            .is_some_and(|s| s.upstream.is_some() && s.receiver.is_none_or(|receiver| !receiver.streaming));
        if !waits {
            // One look may fall between a refusal and the next attempt's; only a stream that lasts is one.
            if seen.as_standby().is_none_or(|s| s.receiver.is_some_and(|receiver| receiver.silent_ms < 1000)) {
                self.unstreamed_since = None;
            }
            return None;
        }
        let since = *self.unstreamed_since.get_or_insert(now);
        if now.since(since) < UNSTREAMED {
            return None;
        }
        instance.stream_refusal(self.log_from).await.map(|why| Trouble::StreamRefused { why })
    }

    async fn recovery(&mut self, instance: &Instance, seen: &MemberReport, now: Tick) -> Option<Trouble> {
        if !matches!(seen.postgres, PostgresSeen::Starting) {
            self.recovery = None;
            let down = matches!(seen.postgres, PostgresSeen::Down { .. });
            self.stuck = self.stuck.take().filter(|(of, _)| down && seen.incarnation() == Some(*of));
            return self.stuck.clone().map(|(_, why)| Trouble::RecoveryStuck { why });
        }
        let mark = instance.recovery_mark().await?;
        match &self.recovery {
            Some((before, since)) if *before == mark => {
                let stuck = now.since(*since) >= STUCK;
                // Without the time that it took: a text that changes would be news at every look.
                let why = format!("it stands at {:?} and reads nothing", mark.title);
                if stuck {
                    self.stuck = seen.incarnation().map(|of| (of, why.clone()));
                }
                stuck.then_some(Trouble::RecoveryStuck { why })
            }
            _ => {
                self.recovery = Some((mark, now));
                None
            }
        }
    }

    /// Postgres' own count starts anew after a crash, so what was found is kept with the incarnation.
    async fn checksums(
        &mut self,
        instance: &Instance,
        seen: &MemberReport,
        notes: &mut Notes,
        now: Tick,
    ) -> Option<Trouble> {
        let incarnation = seen.incarnation()?;
        let accepts = seen.as_primary().is_some() || seen.as_standby().is_some();
        if accepts && self.checksums_at.is_none_or(|at| now.since(at) >= CHECKSUMS_EVERY) {
            self.checksums_at = Some(now);
            match instance.checksum_failures().await {
                Ok(0) => {}
                Ok(failures) => {
                    if let Err(error) = notes.change(|noted| noted.corrupted = Some((incarnation, failures))) {
                        tracing::error!(%error, %incarnation, "cannot note that pages have wrong checksums");
                        return Some(Trouble::Corrupted { failures });
                    }
                }
                Err(error) => tracing::debug!(%error, "cannot count wrong checksums now"),
            }
        }
        let (of, failures) = notes.get().corrupted?;
        (of == incarnation).then_some(Trouble::Corrupted { failures })
    }
}

impl Storage {
    async fn look(&mut self, instance: &Arc<Instance>, now: Tick) -> Option<Trouble> {
        if let Some((check, begun)) = self.check.take_if(|(check, _)| check.is_finished()) {
            self.last = Some(begun);
            match check.await {
                Ok(Err(error)) => {
                    self.failures += 1;
                    self.why = super::chain(&error);
                }
                Ok(Ok(free)) => {
                    self.failures = 0;
                    self.free = Some(free);
                }
                Err(_) => self.failures = 0,
            }
        }
        match &self.check {
            None if self.last.is_none_or(|at| now.since(at) >= STORAGE_EVERY) => {
                let instance = instance.clone();
                // Beside everything else: a write that never returns must not hold the member's task up.
                self.check = Some((tokio::spawn(async move { instance.check_storage().await }), now));
            }
            Some((_, begun)) if now.since(*begun) >= STORAGE_STUCK => {
                let why = "a write does not return; is the device suspended (`dmsetup info`), or does its disk hang?"
                    .to_string();
                return Some(Trouble::Unwritable { why });
            }
            _ => {}
        }
        (self.failures >= STORAGE_FAILURES).then(|| Trouble::Unwritable { why: self.why.clone() })
    }
}
