//! Leases, as a node holds them: what it was granted, and for each member that leads, a task of its own that has the guard
//! count it. Apart from the member's steps, of which some take long, so that no lease runs out behind one.

mod keeper;
mod refusals;

pub use keeper::Keeper;
pub use refusals::{Ask, Asks, NotedRefusal, Refusing};

use pgstead_types::Tick;
use pgstead_types::lease::LeaseTimes;
use pgstead_types::record::Record;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// A grant, counted from the moment at which the report was sent that it answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Held {
    pub end: Tick,
    /// Good for what the record says at this revision or later.
    pub revision: u64,
}

/// What this node was granted. All clones are the same.
#[derive(Clone)]
pub struct Leases {
    held: Arc<watch::Sender<Held>>,
    /// When the last grant was asked for.
    asked: Arc<Mutex<Option<Tick>>>,
}

impl Leases {
    pub fn new() -> Self {
        Self { held: Arc::new(watch::Sender::new(Held::default())), asked: Arc::default() }
    }

    /// Takes in a grant, unless a later one is held.
    pub fn granted(&self, held: Held) {
        self.held.send_if_modified(|now| {
            let later = held.end > now.end;
            if later {
                *now = held;
            }
            later
        });
    }

    pub fn watch(&self) -> watch::Receiver<Held> {
        self.held.subscribe()
    }

    /// Whether the next report is to ask for a grant; if so, it counts as asked for.
    pub fn is_due(&self, now: Tick, times: LeaseTimes) -> bool {
        let mut asked = self.asked.lock().expect("nothing panics while it holds this");
        let due = asked.is_none_or(|at| now.since(at) >= times.renew_after());
        if due {
            *asked = Some(now);
        }
        due
    }

    /// It was not answered: the next report asks again.
    pub fn was_not_granted(&self) {
        *self.asked.lock().expect("nothing panics while it holds this") = None;
    }
}

/// The lease's length, as the deployment was founded with it.
pub fn times(record: &Record) -> LeaseTimes {
    record.deployment.as_ref().map_or_else(LeaseTimes::default, |deployment| LeaseTimes::of_ms(deployment.lease_ms))
}
