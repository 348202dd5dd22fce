//! The steps with what they need to be executed.

use pgstead_types::record::{EpochReason, SyncSet};
use pgstead_types::report::{ClientAccess, SetBy, Upstream};
use pgstead_types::{Epoch, Incarnation, MemberId, OperationId, Position, Step, Timeline};
use std::collections::BTreeSet;

/// One thing to do to a member. Executing the same action twice changes nothing the second time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    CreateVolume,
    InitDatabase {
        incarnation: Incarnation,
    },
    /// The volume was made from a snapshot of another cluster's member, and still has its data.
    AdoptData {
        incarnation: Incarnation,
    },
    DiscardPartial,
    /// Copy from the leader of `epoch`; complete data of an older incarnation is kept aside until the copy is complete.
    Clone {
        incarnation: Incarnation,
        from: MemberId,
        epoch: Epoch,
    },
    Rewind {
        incarnation: Incarnation,
        from: MemberId,
        epoch: Epoch,
    },
    /// `alone`: the recorded sync set is empty, so its names may be empty too.
    StartStandby {
        access: ClientAccess,
        alone: bool,
        restarts: u32,
    },
    SavePromise {
        epoch: Epoch,
    },
    CutUpstream,
    AnswerPromise {
        epoch: Epoch,
    },
    /// Postgres is stopped, `from`'s log up to `upto` comes beside its own, and it answers anew. A part of it is as good as
    /// nothing of it, so it ends well also where `from` does not give it.
    FetchLog {
        epoch: Epoch,
        from: MemberId,
        upto: Position,
    },
    Fence,
    /// Prepare (sync set, holding access, identities, burned timelines), then promote to exactly `timeline`.
    Promote {
        epoch: Epoch,
        timeline: Timeline,
        sync_set: SyncSet,
        admitted: BTreeSet<Incarnation>,
    },
    OpenClients,
    UpdateSyncSet {
        /// The record that it is of; durably noted before anything is loaded.
        by: SetBy,
        epoch: Epoch,
        sync_set: SyncSet,
        admitted: BTreeSet<Incarnation>,
    },
    /// Stream the leader's log, from itself or from the standby that `of` names.
    Follow {
        of: Upstream,
    },
    /// Admit these members, in the epoch in which this standby streams itself, and nobody else.
    Relay {
        epoch: Epoch,
        admitted: BTreeSet<Incarnation>,
    },
    HoldClients {
        /// The record that it is of, where none that is older may let clients in again: durably noted first.
        by: Option<SetBy>,
    },
    /// Transactions are read-only from now on unless they say otherwise, and those that write are ended; or no more.
    LimitWrites {
        read_only: bool,
    },
    Checkpoint {
        operation: OperationId,
    },
    /// `planned`: why, for the log; a clean stop that takes too long becomes a fence.
    StopCleanly {
        planned: Option<EpochReason>,
    },
    RemoveVolume,
}

impl Action {
    /// The first step of it, as people and the kill tests know it.
    pub fn step(&self) -> Step {
        match self {
            Action::CreateVolume => Step::CreateVolume,
            Action::InitDatabase { .. } => Step::InitDatabase,
            Action::AdoptData { .. } => Step::AdoptData,
            Action::DiscardPartial => Step::DiscardPartial,
            Action::Clone { .. } => Step::Clone,
            Action::Rewind { .. } => Step::Rewind,
            Action::StartStandby { .. } => Step::StartStandby,
            Action::SavePromise { .. } => Step::SavePromise,
            Action::CutUpstream => Step::CutUpstream,
            Action::AnswerPromise { .. } => Step::AnswerPromise,
            Action::FetchLog { .. } => Step::FetchLog,
            Action::Fence => Step::Fence,
            Action::Promote { .. } => Step::PreparePromotion,
            Action::OpenClients => Step::OpenClients,
            Action::UpdateSyncSet { .. } => Step::UpdateSyncSet,
            Action::Follow { .. } => Step::Follow,
            Action::Relay { .. } => Step::Relay,
            Action::HoldClients { .. } => Step::HoldClients,
            Action::LimitWrites { .. } => Step::LimitWrites,
            Action::Checkpoint { .. } => Step::Checkpoint,
            Action::StopCleanly { .. } => Step::StopCleanly,
            Action::RemoveVolume => Step::RemoveVolume,
        }
    }

    /// Whether a newer decision may interrupt it. Only the long copies, of which the making of a volume may be one: everything
    /// else is short, and half of it is worse than all of it. Fetching log, which is long too, leaves off by itself while it may.
    pub fn is_interruptible(&self) -> bool {
        matches!(self, Action::CreateVolume | Action::Clone { .. } | Action::Rewind { .. })
    }
}
