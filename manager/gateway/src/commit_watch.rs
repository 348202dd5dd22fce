//! Judges, per session, whether a success may be passed on. Postgres reports a commit whose wait for acknowledgement
//! was cancelled as done, with a warning that the client may have switched off; the gateway never passes that on.
//!
//! Withheld, whatever happened before: everything from a notice whose routine field is `SyncRepWaitForLSN`.
//! Withheld while a cancel that this gateway forwarded may still hit: every success that may have committed something.
//! So that such a cancel hits what it was meant for and nothing after it, what a client sends next waits for its end.
//! Not covered: a wait cancelled by other means (`pg_cancel_backend`, a time-out in a procedure that commits) while
//! `client_min_messages` hides the warning; those are found in the server's log.

use std::sync::Mutex;
use tokio::sync::Notify;

/// The routine that Postgres names in the warning; the one field that is neither translated nor configurable.
const ROUTINE: &[u8] = b"SyncRepWaitForLSN";

/// Why a success was withheld.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Withheld {
    /// Postgres said that a wait for acknowledgement was cancelled.
    WaitCancelled,
    /// A cancel was forwarded while this statement ran, and the success may be a commit.
    CancelInFlight,
}

/// What a session's transaction is doing, as ReadyForQuery said last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Transaction {
    Idle,
    Open,
    Failed,
}

/// Shared by a session's relay and by the tasks that forward its cancels.
#[derive(Debug)]
pub struct CommitWatch {
    state: Mutex<State>,
    /// Says that a cancel began or ended. One task waits for it, the relay.
    cancels_changed: Notify,
}

#[derive(Debug)]
struct State {
    transaction: Transaction,
    /// Requests sent to the server that ReadyForQuery ends: Query, FunctionCall, Sync, and the start-up message.
    sent: u64,
    /// Whether messages follow the last of these, to be ended by a Sync that is still to come.
    unfinished: bool,
    last_was_sync: bool,
    /// ReadyForQuery messages seen.
    ready: u64,
    /// A success since the last ReadyForQuery that its commit, still to come, may follow.
    success: bool,
    /// An error since the last ReadyForQuery.
    error: bool,
    /// Forwarded cancels whose delivery is not known to be over.
    cancels: u32,
    /// Those of them of which more will be heard.
    in_flight: u32,
    /// Requests up to this one may be hit by a cancel that has been delivered.
    suspect_until: u64,
}

impl State {
    /// A delivered cancel hits only what was running or queued: Postgres drops one that finds its backend idle.
    fn is_suspect(&self) -> bool {
        self.cancels > 0 || self.ready < self.suspect_until
    }
}

impl Default for CommitWatch {
    fn default() -> Self {
        let state = State {
            transaction: Transaction::Idle,
            sent: 1,
            unfinished: false,
            last_was_sync: false,
            ready: 0,
            success: false,
            error: false,
            cancels: 0,
            in_flight: 0,
            suspect_until: 0,
        };
        Self { state: Mutex::new(state), cancels_changed: Notify::new() }
    }
}

impl CommitWatch {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }

    /// A message of this type is about to be sent to the server.
    pub fn on_client_message(&self, kind: u8) {
        let mut state = self.state();
        match kind {
            b'Q' | b'F' | b'S' => {
                state.sent += 1;
                state.unfinished = false;
                state.last_was_sync = kind == b'S';
            }
            b'P' | b'B' | b'E' | b'D' | b'C' | b'H' => state.unfinished = true,
            _ => {}
        }
    }

    /// A CommandComplete with this tag came.
    pub fn on_command_complete(&self, tag: &[u8]) -> Result<(), Withheld> {
        let mut state = self.state();
        if !may_commit(tag, state.transaction) {
            return Ok(());
        }
        state.success = true;
        if state.is_suspect() { Err(Withheld::CancelInFlight) } else { Ok(()) }
    }

    /// Any other message whose mere arrival matters.
    pub fn on_server_message(&self, kind: u8) {
        let mut state = self.state();
        match kind {
            b'E' => {
                state.success = false;
                state.error = true;
            }
            // A suspended portal or a function result outside a transaction is committed by the Sync after it.
            b's' | b'V' if state.transaction == Transaction::Idle => state.success = true,
            // COPY FROM swallows the Sync that was sent along with it; another follows the data.
            b'G' if state.last_was_sync && state.sent > state.ready => {
                state.sent = state.ready;
                state.unfinished = true;
            }
            _ => {}
        }
    }

    /// A ReadyForQuery with this status byte came. In the extended protocol it is what says that an implicit
    /// transaction was committed.
    pub fn on_ready(&self, status: u8) -> Result<(), Withheld> {
        let mut state = self.state();
        if status == b'I' && state.success && state.is_suspect() {
            return Err(Withheld::CancelInFlight);
        }
        state.transaction = match status {
            b'I' => Transaction::Idle,
            b'T' => Transaction::Open,
            _ => Transaction::Failed,
        };
        state.success = false;
        state.error = false;
        state.ready += 1;
        state.sent = state.sent.max(state.ready);
        Ok(())
    }

    /// Nothing is running and no transaction is open: the session loses nothing when it ends now.
    pub fn is_idle(&self) -> bool {
        let state = self.state();
        state.transaction == Transaction::Idle && state.ready >= state.sent && !state.unfinished
    }

    /// Every request is answered and a cancel is on its way: it would hit whatever were sent now. Some clients send the
    /// next request after an error, without waiting for the ReadyForQuery that follows it.
    pub fn is_held(&self) -> bool {
        let state = self.state();
        let answered = state.ready + u64::from(state.error);
        state.in_flight > 0 && answered >= state.sent && !state.unfinished
    }

    /// Returns when a cancel has begun or ended since the last time.
    pub async fn cancels_changed(&self) {
        self.cancels_changed.notified().await;
    }

    /// Called before the first byte of a cancel leaves.
    pub fn on_cancel_begins(&self) {
        let mut state = self.state();
        state.cancels += 1;
        state.in_flight += 1;
        self.cancels_changed.notify_one();
    }

    /// The member has closed the cancel's connection, so the signal is sent, or the cancel certainly never left.
    pub fn on_cancel_ends(&self) {
        let mut state = self.state();
        state.cancels = state.cancels.saturating_sub(1);
        state.in_flight = state.in_flight.saturating_sub(1);
        state.suspect_until = state.suspect_until.max(state.sent + u64::from(state.unfinished));
        self.cancels_changed.notify_one();
    }

    /// Nothing will be heard of this cancel any more: it may arrive at any later statement.
    pub fn on_cancel_lost(&self) {
        let mut state = self.state();
        state.in_flight = state.in_flight.saturating_sub(1);
        self.cancels_changed.notify_one();
    }
}

/// Whether the success with this tag may stand for a commit. Outside a transaction even a SELECT may call a function
/// that writes, so only what certainly writes nothing is let through.
fn may_commit(tag: &[u8], transaction: Transaction) -> bool {
    let first = tag.split(|byte| *byte == b' ').next().unwrap_or_default();
    match transaction {
        Transaction::Idle => {
            let harmless = matches!(
                first,
                b"BEGIN"
                    | b"START"
                    | b"ROLLBACK"
                    | b"SET"
                    | b"RESET"
                    | b"SHOW"
                    | b"LISTEN"
                    | b"UNLISTEN"
                    | b"DEALLOCATE"
            );
            !harmless || tag == b"ROLLBACK PREPARED"
        }
        Transaction::Open => matches!(first, b"COMMIT" | b"PREPARE") && tag != b"PREPARE",
        Transaction::Failed => false,
    }
}

/// Finds the routine field in a NoticeResponse body that comes in pieces.
#[derive(Debug)]
pub struct NoticeScan {
    /// The field that the next byte belongs to; `None` where a field's type byte is expected.
    field: Option<u8>,
    /// How much of `ROUTINE` the routine field has matched; `None` once it differs.
    matched: Option<usize>,
}

impl NoticeScan {
    pub fn new() -> Self {
        Self { field: None, matched: Some(0) }
    }

    pub fn feed(&mut self, piece: &[u8]) -> Result<(), Withheld> {
        for byte in piece {
            match (self.field, *byte) {
                (None, 0) => {}
                (None, kind) => {
                    self.field = Some(kind);
                    self.matched = Some(0);
                }
                (Some(b'R'), 0) if self.matched == Some(ROUTINE.len()) => return Err(Withheld::WaitCancelled),
                (Some(_), 0) => self.field = None,
                (Some(b'R'), byte) => {
                    self.matched = self.matched.filter(|at| ROUTINE.get(*at) == Some(&byte)).map(|at| at + 1);
                }
                (Some(_), _) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After start-up, with `Z` seen once.
    fn ready_session() -> CommitWatch {
        let watch = CommitWatch::default();
        watch.on_ready(b'I').unwrap();
        watch
    }

    fn cancelled(watch: &CommitWatch) {
        watch.on_cancel_begins();
        watch.on_cancel_ends();
    }

    #[test]
    fn without_a_cancel_every_success_passes() {
        let watch = ready_session();
        watch.on_client_message(b'Q');
        assert_eq!(watch.on_command_complete(b"INSERT 0 1"), Ok(()));
        assert_eq!(watch.on_ready(b'I'), Ok(()));
        assert!(watch.is_idle());
    }

    #[test]
    fn a_write_that_was_cancelled_is_withheld() {
        let watch = ready_session();
        watch.on_client_message(b'Q');
        cancelled(&watch);
        assert_eq!(watch.on_command_complete(b"INSERT 0 1"), Err(Withheld::CancelInFlight));
    }

    #[test]
    fn an_error_settles_the_cancel() {
        let watch = ready_session();
        watch.on_client_message(b'Q');
        cancelled(&watch);
        watch.on_server_message(b'E');
        assert_eq!(watch.on_ready(b'I'), Ok(()));
        watch.on_client_message(b'Q');
        assert_eq!(watch.on_command_complete(b"INSERT 0 1"), Ok(()));
        assert_eq!(watch.on_ready(b'I'), Ok(()));
    }

    #[test]
    fn a_cancel_on_its_way_taints_later_statements_too() {
        let watch = ready_session();
        watch.on_client_message(b'Q');
        watch.on_cancel_begins();
        watch.on_server_message(b'E');
        assert_eq!(watch.on_ready(b'I'), Ok(()));
        watch.on_client_message(b'Q');
        assert_eq!(watch.on_command_complete(b"UPDATE 1"), Err(Withheld::CancelInFlight));
    }

    #[test]
    fn the_next_request_waits_for_the_end_of_a_cancel_but_not_for_one_that_is_lost() {
        let watch = ready_session();
        watch.on_client_message(b'Q');
        watch.on_cancel_begins();
        assert!(!watch.is_held(), "it is meant for what runs");
        watch.on_server_message(b'E');
        assert!(watch.is_held(), "nothing more is needed for the ReadyForQuery");
        watch.on_ready(b'I').unwrap();
        assert!(watch.is_held());
        watch.on_cancel_ends();
        assert!(!watch.is_held());
        watch.on_cancel_begins();
        watch.on_cancel_lost();
        assert!(!watch.is_held());
        watch.on_client_message(b'Q');
        assert_eq!(watch.on_command_complete(b"UPDATE 1"), Err(Withheld::CancelInFlight));
    }

    #[test]
    fn what_the_server_needs_to_go_on_is_not_held() {
        let watch = ready_session();
        for kind in *b"PBEH" {
            watch.on_client_message(kind);
        }
        watch.on_cancel_begins();
        watch.on_server_message(b'E');
        assert!(!watch.is_held(), "a Sync has to come");
        watch.on_client_message(b'S');
        assert!(watch.is_held());
    }

    #[test]
    fn a_cancel_that_found_the_session_idle_is_forgotten() {
        let watch = ready_session();
        cancelled(&watch);
        watch.on_client_message(b'Q');
        assert_eq!(watch.on_command_complete(b"INSERT 0 1"), Ok(()));
    }

    #[test]
    fn an_implicit_commit_at_sync_is_withheld_at_ready_for_query() {
        let watch = ready_session();
        for kind in *b"PBES" {
            watch.on_client_message(kind);
        }
        assert_eq!(watch.on_command_complete(b"INSERT 0 1"), Ok(()), "executed, not yet committed");
        cancelled(&watch);
        assert_eq!(watch.on_ready(b'I'), Err(Withheld::CancelInFlight));
    }

    #[test]
    fn messages_before_their_sync_are_suspect_as_well() {
        let watch = ready_session();
        for kind in *b"PBEH" {
            watch.on_client_message(kind);
        }
        cancelled(&watch);
        watch.on_client_message(b'S');
        assert_eq!(watch.on_command_complete(b"DELETE 3"), Err(Withheld::CancelInFlight));
    }

    #[test]
    fn inside_a_transaction_only_the_commit_is_withheld() {
        let watch = ready_session();
        watch.on_client_message(b'Q');
        watch.on_command_complete(b"BEGIN").unwrap();
        watch.on_ready(b'T').unwrap();
        watch.on_client_message(b'Q');
        cancelled(&watch);
        assert_eq!(watch.on_command_complete(b"INSERT 0 1"), Ok(()));
        assert_eq!(watch.on_ready(b'T'), Ok(()));
        watch.on_client_message(b'Q');
        cancelled(&watch);
        assert_eq!(watch.on_command_complete(b"COMMIT"), Err(Withheld::CancelInFlight));
    }

    #[test]
    fn copy_in_does_not_leave_the_session_suspect_for_ever() {
        let watch = ready_session();
        for kind in *b"PBES" {
            watch.on_client_message(kind);
        }
        watch.on_server_message(b'G');
        for kind in *b"ddcS" {
            watch.on_client_message(kind);
        }
        watch.on_command_complete(b"COPY 2").unwrap();
        watch.on_ready(b'I').unwrap();
        assert!(watch.is_idle());
    }

    #[test]
    fn the_notice_is_known_however_it_is_cut() {
        let notice = b"SWARNING\0C01000\0Mcanceling wait\0Fsyncrep.c\0L287\0RSyncRepWaitForLSN\0\0";
        for at in 0..notice.len() {
            let mut scan = NoticeScan::new();
            let found = scan.feed(&notice[..at]).and_then(|()| scan.feed(&notice[at..]));
            assert_eq!(found, Err(Withheld::WaitCancelled));
        }
    }

    #[test]
    fn other_notices_pass_whatever_their_text() {
        for notice in [
            b"SNOTICE\0MRSyncRepWaitForLSN\0Rexec_stmt_raise\0\0".as_slice(),
            b"RSyncRepWaitForLSNx\0\0",
            b"RSyncRep\0\0",
            b"\0",
        ] {
            assert_eq!(NoticeScan::new().feed(notice), Ok(()));
        }
    }
}
