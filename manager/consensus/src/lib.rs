//! The replicated record: openraft over a redb file, and the only place that names either of them.
//!
//! `node` is what others use; `store` keeps the log and the record; `recovery` is for
//! the day when most voters are lost; `network` turns Raft's calls into messages for a
//! `Transport`. Everything is generic over openraft's `AsyncRuntime`, so that the daemon and the simulation run the same
//! code, one on tokio and files, the other on virtual time and memory.

mod leadership;
mod membership;
mod network;
mod node;
mod recovery;
mod store;
mod type_config;

pub use leadership::{Ended, Leadership, Watched};
pub use membership::{Membership, MembershipError, Peer};
pub use network::{AppendReply, RaftCall, RaftReply, RaftRpc, Transport, TransportError};
pub use node::{Consensus, InitializeError, LogPolicy, OpenError, OpenOptions, ProposeError, Timing};
pub use openraft::AsyncRuntime;
pub use openraft::impls::TokioRuntime;
pub use recovery::{RecoveryError, StoreSeen, check_lost, inspect, recover_quorum, start_anew};
pub use store::envelope::{
    Ballot, Envelope, LogPosition, SnapshotEnvelope, StoredEntry, StoredMembership, StoredSnapshot,
};
pub use store::{Flush, StoreAt, StoreError};
pub use type_config::RaftAddress;
