//! The steps by which a node makes its members what the record says. Each is idempotent: a daemon killed before, in or
//! after any of them converges when it is started again, and a test per step shows it (`tests/cluster`).

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// What an agent can be doing to a member. One at a time per member.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Step {
            $($(#[$doc])* $name,)+
        }
        impl Step {
            /// Every step, in the order of a member's life. The kill tests run over this list.
            pub const ALL: &'static [Step] = &[$(Step::$name,)+];

            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Step::$name => $text,)+
                }
            }
        }
    };
}

steps! {
    /// Carve the volume.
    CreateVolume = "create_volume",
    /// `initdb` and the roles of a new cluster, on the first member only and only before the record knows a system identifier.
    InitDatabase = "init_database",
    /// Make the data that a fork's first volume was made with the fork's own.
    AdoptData = "adopt_data",
    /// Remove what an interrupted `initdb` or copy has left, never a complete data folder.
    DiscardPartial = "discard_partial",
    /// Copy the data folder from the leader.
    Clone = "clone",
    /// Make a diverged data folder a prefix of the leader's history again.
    Rewind = "rewind",
    /// Start Postgres as a standby without an upstream. There is no other way to start it.
    StartStandby = "start_standby",
    /// Write the promised epoch to the node's disk, before anything else hears of it.
    SavePromise = "save_promise",
    /// End the WAL receiver of the older epoch and see it gone.
    CutUpstream = "cut_upstream",
    /// Read the end of the WAL on disk and keep it as the answer.
    AnswerPromise = "answer_promise",
    /// Take log that another promiser holds, and forget the answer that was given without it.
    FetchLog = "fetch_log",
    /// SIGKILL every process of the Postgres until none is left.
    Fence = "fence",
    /// Load the sync set, the holding `pg_hba`, the replication identities of the epoch, slots; place the burned timelines.
    PreparePromotion = "prepare_promotion",
    /// Promote and see the recorded timeline.
    Promote = "promote",
    /// Let clients in: the epoch is confirmed.
    OpenClients = "open_clients",
    /// Make the running leader's sync set, slots and replication identities what the record says.
    UpdateSyncSet = "update_sync_set",
    /// Stream from the leader of the recorded epoch, or from the standby that passes its log on.
    Follow = "follow",
    /// Let the members that the record names stream from this standby, and nobody else.
    Relay = "relay",
    /// Keep new clients out and end the ones that are in, for a planned change of leader.
    HoldClients = "hold_clients",
    /// Let the leader take no writes while its pool has little room, or take them again.
    LimitWrites = "limit_writes",
    /// Write a checkpoint, so that the clean stop that follows is short.
    Checkpoint = "checkpoint",
    /// Stop Postgres cleanly, its whole log sent.
    StopCleanly = "stop_cleanly",
    /// Load changed settings or certificates.
    Reload = "reload",
    /// Remove the volume of a deleted cluster.
    RemoveVolume = "remove_volume",
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
