//! The exhaustive check: on a small cluster every order of writes, acknowledgements, crashes, promises, choices, promotions,
//! confirmations and set changes is tried, up to a bound on epochs and rows.
//!
//! The controller's decisions, the agents' and the record's transitions are the real ones. What is between them is smaller
//! than in the simulation: a step of an agent is one event, a log has a handful of records, and time does not exist. The
//! controller may hear any part of the nodes, and an epoch may begin at any time, needed or not.
//!
//! The sync set changes under its leader: a standby that does not stream may leave it at once, joins it again, and one
//! change may replace another that is still being loaded. Not here, and left to the simulation: records and reports that
//! are not the newest (so the notes of what was loaded by which record decide nothing), a controller that remembers since
//! when a set is in force (here it settles a change only once everything written is flushed by enough), fewer
//! acknowledgements than asked for, leases and asynchronous clusters, changes of the spec, switchovers, forced choices and
//! recovered records.

pub mod member;
pub mod search;
pub mod state;
