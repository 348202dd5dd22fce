//! How long this node's reports take to the controller and back. The shortest of the last ones is told: what is longer was a busy host, a
//! new connection, or a queue.

use pgstead_types::NodeId;
use std::collections::VecDeque;
use std::time::Duration;

/// A report goes out every half a second or so; a way that has become longer shows within some seconds.
const KEPT: usize = 16;

/// To one controller; those to another say nothing of it.
#[derive(Debug, Default)]
pub struct RoundTrips {
    controller: Option<NodeId>,
    /// Oldest first.
    took: VecDeque<Duration>,
}

impl RoundTrips {
    pub fn note(&mut self, controller: NodeId, took: Duration) {
        if self.controller != Some(controller) {
            *self = Self { controller: Some(controller), took: VecDeque::new() };
        }
        if self.took.len() == KEPT {
            self.took.pop_front();
        }
        self.took.push_back(took);
    }

    /// In microseconds.
    pub fn shortest_us(&self, controller: NodeId) -> Option<u64> {
        let took = self.took.iter().min().filter(|_| self.controller == Some(controller))?;
        u64::try_from(took.as_micros()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_of_the_last_ones_to_this_controller_counts() {
        let (one, other) = (NodeId::from_u128(1), NodeId::from_u128(2));
        let mut trips = RoundTrips::default();
        assert_eq!(trips.shortest_us(one), None);
        for ms in [9, 2, 30] {
            trips.note(one, Duration::from_millis(ms));
        }
        assert_eq!((trips.shortest_us(one), trips.shortest_us(other)), (Some(2000), None));
        (0..KEPT).for_each(|_| trips.note(one, Duration::from_millis(7)));
        assert_eq!(trips.shortest_us(one), Some(7000), "the way has become longer");
        trips.note(other, Duration::from_millis(1));
        assert_eq!((trips.shortest_us(one), trips.took.len()), (None, 1));
    }
}
