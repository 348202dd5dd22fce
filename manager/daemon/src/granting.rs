//! Leases, as the controller grants them: after a quorum has confirmed, in a round that began when the reports had arrived,
//! that this node still leads. One round serves all that have arrived before it.

use crate::controller::ControllerHandle;
use pgstead_consensus::{Consensus, TokioRuntime};
use pgstead_types::NodeId;
use pgstead_types::lease::LeaseGrant;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// A quorum that takes longer is as good as lost; whoever waits asks again.
const ROUND_TIME_MAX: Duration = Duration::from_secs(2);
/// So many wait at most: more nodes than a deployment has, and whoever is refused asks again.
const WAITING_MAX: usize = 8192;

/// A node that waits for its grant.
pub struct Asked {
    pub node: NodeId,
    pub answer: oneshot::Sender<LeaseGrant>,
}

/// A round that has ended.
pub struct Round {
    /// The term in which it was begun.
    pub term: u64,
    pub asked: Vec<Asked>,
    pub confirmed: bool,
}

pub struct Granting {
    waiting: Vec<Asked>,
    running: bool,
    ended: mpsc::UnboundedSender<Round>,
}

impl Granting {
    /// With where the rounds come when they have ended; at most one is under way.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Round>) {
        let (ended, rounds) = mpsc::unbounded_channel();
        (Self { waiting: Vec::new(), running: false, ended }, rounds)
    }

    pub fn ask(&mut self, asked: Asked) {
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push(asked);
        }
    }

    /// Whoever waits is of no use to an older or later term.
    pub fn forget(&mut self) {
        self.waiting.clear();
    }

    /// Begins a round for all that wait, unless one is under way: those have arrived after it began.
    pub fn begin(&mut self, consensus: &Consensus<TokioRuntime>, term: u64) {
        if self.running || self.waiting.is_empty() {
            return;
        }
        self.running = true;
        let asked = std::mem::take(&mut self.waiting);
        let (consensus, ended) = (consensus.clone(), self.ended.clone());
        tokio::spawn(async move {
            let confirmed = consensus.confirm_leadership(ROUND_TIME_MAX).await.is_ok();
            let _ = ended.send(Round { term, asked, confirmed });
        });
    }

    pub fn on_ended(&mut self) {
        self.running = false;
    }
}

/// Waits for the grant that goes with a report, for at most `limit`. The report itself has been handed over.
pub async fn granted(answer: oneshot::Receiver<LeaseGrant>, limit: Duration) -> Option<LeaseGrant> {
    tokio::time::timeout(limit, answer).await.ok()?.ok()
}

/// As [`ControllerHandle::arrived`] has it: a report, and where its grant goes.
pub fn asking() -> (Option<oneshot::Sender<LeaseGrant>>, oneshot::Receiver<LeaseGrant>) {
    let (answer, granted) = oneshot::channel();
    (Some(answer), granted)
}

/// How long whoever carries a report waits for the grant.
pub const GRANT_TIME_MAX: Duration = Duration::from_millis(2500);

/// Hands a report of the controller's own node over and waits for its grant.
pub async fn of_own_node(controller: &ControllerHandle, arrived: crate::controller::Arrived) -> Option<LeaseGrant> {
    let (grant, answer) = asking();
    controller.arrived(crate::controller::Arrived { grant, ..arrived });
    granted(answer, GRANT_TIME_MAX).await
}
