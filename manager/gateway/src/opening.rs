//! A leader that has just been published lets clients in a moment later. Until it does, one connection of this gateway at a
//! time finds out; if all that wait did, their TLS handshakes would take the time that the leader needs to open.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

/// Longest wait for the one that finds out: it may be stuck for a reason of its own.
const PATIENCE: Duration = Duration::from_millis(250);

/// Of one leader in one epoch.
#[derive(Default)]
pub struct Opening {
    open: watch::Sender<bool>,
    first: Arc<Mutex<()>>,
}

/// Whoever holds it finds out; the others wait until it is dropped, also between two attempts.
pub struct GoesFirst {
    _turn: OwnedMutexGuard<()>,
}

impl Opening {
    /// Returns when it is one's turn to connect: with `Some` for the one that finds out, with `None` where that is known, or
    /// takes too long.
    pub async fn turn(&self) -> Option<GoesFirst> {
        let mut open = self.open.subscribe();
        tokio::select! {
            biased;
            _ = open.wait_for(|open| *open) => None,
            turn = self.first.clone().lock_owned() => Some(GoesFirst { _turn: turn }),
            () = tokio::time::sleep(PATIENCE) => None,
        }
    }

    /// It has let somebody in.
    pub fn note_open(&self) {
        self.open.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_goes_first_and_the_others_follow_once_it_was_let_in() {
        let opening = Opening::default();
        let first = opening.turn().await.expect("nobody has tried yet");
        let other = opening.turn();
        tokio::pin!(other);
        assert!(tokio::time::timeout(Duration::ZERO, other.as_mut()).await.is_err(), "it waits");
        opening.note_open();
        assert!(other.await.is_none(), "it need not find out, nor wait for the first to be done");
        drop(first);
        assert!(opening.turn().await.is_none(), "nobody waits any more");
    }

    #[tokio::test]
    async fn the_next_one_takes_over_where_the_first_gave_up() {
        let opening = Opening::default();
        drop(opening.turn().await.expect("nobody has tried yet"));
        assert!(opening.turn().await.is_some());
    }

    #[tokio::test]
    async fn one_that_is_stuck_holds_nobody_up() {
        let opening = Opening::default();
        let _stuck = opening.turn().await.expect("nobody has tried yet");
        assert!(opening.turn().await.is_none());
    }
}
