//! A member's word to a leader to obey no election for a while: durable before it is given, and counted anew in full by a
//! daemon that was restarted.

use crate::member::Notes;
use pgstead_types::lease::{LeaseTimes, RefusalAnswer, RefusalRequest};
use pgstead_types::report::RefusalSeen;
use pgstead_types::{Epoch, MemberId, Tick};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// A leader asks, and waits for the answer.
pub struct Ask {
    pub request: RefusalRequest,
    pub answer: oneshot::Sender<RefusalAnswer>,
}

/// Where each member's task takes such questions. All clones are the same.
#[derive(Clone, Default)]
pub struct Asks(Arc<Mutex<BTreeMap<MemberId, mpsc::Sender<Ask>>>>);

impl Asks {
    /// For a member's task; a later one takes an earlier one's place.
    pub fn of(&self, member: MemberId) -> mpsc::Receiver<Ask> {
        // A leader asks each member about once a second.
        let (sender, asks) = mpsc::channel(4);
        self.0.lock().expect("nothing panics while it holds this").insert(member, sender);
        asks
    }

    /// Passes a question on and waits for the answer, for at most `limit`: a member in the middle of a step gives none.
    pub async fn ask(&self, request: RefusalRequest, limit: Duration) -> RefusalAnswer {
        let no = |why: &str| RefusalAnswer::DoesNot { why: why.to_string() };
        let task = self.0.lock().expect("nothing panics while it holds this").get(&request.member).cloned();
        let Some(task) = task else { return no("no such member is on this node") };
        let (answer, answered) = oneshot::channel();
        if task.try_send(Ask { request, answer }).is_err() {
            return no("the member is busy");
        }
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => no("the member is busy"),
        }
    }
}

/// In the member's notes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NotedRefusal {
    pub epoch: Epoch,
    /// In full, margin included.
    pub for_ms: u64,
}

/// A refusal under way.
#[derive(Clone, Copy, Debug)]
pub struct Refusing {
    epoch: Epoch,
    until: Tick,
}

impl Refusing {
    /// What the notes say of one that may be under way. Nobody knows how much of it has passed.
    pub fn found(notes: &Notes, now: Tick) -> Option<Self> {
        let noted = notes.get().refusing?;
        Some(Self { epoch: noted.epoch, until: now + Duration::from_millis(noted.for_ms) })
    }

    /// Begins one, durably. Counted from when it is on disk.
    pub fn begin(notes: &mut Notes, request: &RefusalRequest, times: LeaseTimes) -> io::Result<Self> {
        // Never longer than one of ours, whoever asks.
        let time = Duration::from_millis(request.for_ms).min(times.refusal()) + times.refusal_margin();
        let noted = NotedRefusal { epoch: request.epoch, for_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX) };
        notes.change(|held| held.refusing = Some(noted))?;
        Ok(Self { epoch: request.epoch, until: Tick::now() + time })
    }

    pub fn left(self, now: Tick) -> Duration {
        self.until.since(now)
    }

    pub fn seen(self, now: Tick) -> RefusalSeen {
        RefusalSeen {
            epoch: self.epoch,
            remaining_ms: u64::try_from(self.left(now).as_millis()).unwrap_or(u64::MAX) + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_types::{ClusterId, Incarnation};

    fn request(for_ms: u64) -> RefusalRequest {
        let member = MemberId::from_u128(1);
        RefusalRequest {
            cluster: ClusterId::from_u128(1),
            member,
            leader: Incarnation { member: MemberId::from_u128(2), number: 1 },
            epoch: Epoch(7),
            revision: 1,
            members: [member].into(),
            for_ms,
        }
    }

    #[test]
    fn a_restarted_daemon_counts_a_refusal_anew_and_in_full() {
        let dir = tempfile::tempdir().unwrap();
        let member = MemberId::from_u128(1);
        let times = LeaseTimes::of_ms(10_000);
        let mut notes = Notes::open(dir.path(), member).unwrap();
        Refusing::begin(&mut notes, &request(5_000), times).unwrap();
        let found = Refusing::found(&Notes::open(dir.path(), member).unwrap(), Tick::from_millis(77)).unwrap();
        assert_eq!(found.left(Tick::from_millis(77)), Duration::from_millis(6_000));
        assert_eq!(found.seen(Tick::from_millis(77)).epoch, Epoch(7));
    }

    #[test]
    fn nobody_is_bound_for_longer_than_one_refusal() {
        let dir = tempfile::tempdir().unwrap();
        let mut notes = Notes::open(dir.path(), MemberId::from_u128(1)).unwrap();
        Refusing::begin(&mut notes, &request(u64::MAX), LeaseTimes::of_ms(10_000)).unwrap();
        assert_eq!(notes.get().refusing.unwrap().for_ms, 6_000);
    }

    #[test]
    fn a_refusal_that_cannot_be_written_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut notes = Notes::open(&dir.path().join("gone"), MemberId::from_u128(1)).unwrap();
        assert!(Refusing::begin(&mut notes, &request(5_000), LeaseTimes::default()).is_err());
        assert!(notes.get().refusing.is_none());
    }
}
