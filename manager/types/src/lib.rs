//! The words that every room shares: identities, positions, specs, the replicated record and what nodes report.
//! A leaf without IO: nothing here opens a file or a socket, and only `time` reads a clock.

pub mod finding;
pub mod ids;
pub mod io_limits;
pub mod lease;
pub mod placement;
pub mod position;
pub mod record;
pub mod replacement;
pub mod report;
pub mod routes;
pub mod schedule;
pub mod secret;
pub mod sessions;
pub mod size;
pub mod slots;
pub mod spec;
pub mod step;
pub mod storage;
pub mod time;
pub mod trouble;
pub mod window;

pub use finding::{Finding, Severity};
pub use ids::{
    ClusterId, DeploymentId, Incarnation, MemberId, NodeId, OperationId, RecoveryId, SnapshotId, TokenId, VolumeId,
};
pub use position::{Bytes, Epoch, Lsn, Position, Timeline};
pub use secret::Secret;
pub use step::Step;
pub use time::{Tick, WallTime};
pub use trouble::Trouble;
