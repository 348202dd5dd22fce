//! What clients are at in a primary that is to be stopped; asked for when somebody wants to know, never reported.

use serde::{Deserialize, Serialize};

/// A transaction open for so long would be missed by whoever waits for it. In milliseconds.
pub const LONG_TRANSACTION_MS: u64 = 30_000;
/// Identifiers of prepared transactions that are told by name; the rest is counted.
pub const PREPARED_NAMED_MAX: usize = 10;

/// Transactions of clients.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SessionsSeen {
    /// Client sessions, busy or not.
    pub sessions: u64,
    /// Open for longer than [`LONG_TRANSACTION_MS`].
    pub long_transactions: u64,
    /// Age of the oldest open transaction.
    pub oldest_ms: u64,
    /// Prepared transactions: they hold locks until somebody ends them by name.
    pub prepared: u64,
    /// The first few of their names.
    pub prepared_names: Vec<String>,
}
