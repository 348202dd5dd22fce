//! The permanent loss of most voters: the store of a survivor is rewritten, offline, into a group of one voter.
//!
//! Each recovery has an id of its own, which from then on is in the store and in every message. Whoever belongs to the
//! group as it was, or to another recovery of it, is refused: a voter that was believed lost and comes back can neither
//! overwrite the recovered log nor be counted in it. The other survivors start their store anew under that id, and
//! join the recovered group as if they were new; in it they have never voted.

use crate::store::disk::{Contents, Disk, Write};
use crate::store::envelope::{Ballot, LogPosition, StoredEntry, StoredMembership};
use crate::store::{StoreAt, StoreError};
use crate::type_config::{Change, Entry, Payload, RaftAddress, RaftMembership};
use pgstead_types::record::{Command, Record};
use pgstead_types::{DeploymentId, NodeId, RecoveryId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the store of this node has no members of a group in it, so there is nothing to recover")]
    NeverMember,
    #[error("this node is no voter of the group (it knows {voters} voters); recover on one that is")]
    NotAVoter { voters: usize },
    #[error(
        "with {lost} of {voters} voters lost the others are still a majority and can go on by themselves; start their \
         daemons instead"
    )]
    QuorumLeft { lost: usize, voters: usize },
    #[error("{0} is this node; it cannot be among the lost")]
    LostMyself(NodeId),
    #[error("this node is of recovery {0} already; starting anew again would forget its votes")]
    JoinedAlready(RecoveryId),
}

/// What a survivor's store holds.
#[derive(Clone, Debug)]
pub struct StoreSeen {
    pub record: Record,
    /// The last entry of its log.
    pub last: Option<LogPosition>,
    /// Up to here it knew that a majority had it.
    pub committed: Option<LogPosition>,
    pub voters: BTreeSet<NodeId>,
    pub addresses: BTreeMap<NodeId, RaftAddress>,
    /// The recovery that its group came from, if any.
    pub recovery: Option<RecoveryId>,
}

/// Reads a store that no daemon has open.
pub fn inspect(at: StoreAt, node: NodeId, deployment: DeploymentId) -> Result<StoreSeen, RecoveryError> {
    let (disk, contents) = Disk::open(at, node, deployment)?;
    let (seen, _) = read(&disk, contents)?;
    Ok(seen)
}

fn read(disk: &Disk, contents: Contents) -> Result<(StoreSeen, Ballot), RecoveryError> {
    let unusable = |why| StoreError::UnknownSnapshot { why };
    let mut record = Record::default();
    let mut membership = RaftMembership::default();
    let mut last = contents.purged;
    if let Some(stored) = contents.snapshot {
        let snapshot = stored.into_raft().map_err(unusable)?;
        record = Arc::unwrap_or_clone(snapshot.snapshot);
        membership = snapshot.meta.last_membership.membership().clone();
        last = last.max(snapshot.meta.last_log_id.map(Into::into));
    }
    let applied = last;
    for (_, stored) in contents.entries {
        let at = stored.at;
        let entry = Entry::from(stored);
        StoreError::check(&entry)?;
        if Some(at) > applied {
            match entry.payload {
                Payload::Blank | Payload::Normal(Change::Unknown(_)) => {}
                // All of the log, also what was not known to be committed: a majority that is lost may have had it and
                // acted on it. A refusal is an answer that was given then.
                Payload::Normal(Change::Known(command)) => drop(record.apply(&command)),
                Payload::Membership(newer) => membership = newer,
            }
        }
        last = last.max(Some(at));
    }
    let ballot = contents.ballot.unwrap_or(Ballot { term: 0, node: disk.node(), granted_by_quorum: false });
    let seen = StoreSeen {
        record,
        last,
        committed: contents.committed,
        voters: membership.voter_ids().collect(),
        addresses: membership.nodes().map(|(node, address)| (*node, address.clone())).collect(),
        recovery: disk.recovery(),
    };
    Ok((seen, ballot))
}

/// Makes this node the only voter of a group of its own, with `audit` as its first command. All or nothing.
pub fn recover_quorum(
    at: StoreAt,
    node: NodeId,
    deployment: DeploymentId,
    address: RaftAddress,
    lost: &BTreeSet<NodeId>,
    recovery: RecoveryId,
    audit: Command,
) -> Result<StoreSeen, RecoveryError> {
    let (mut disk, contents) = Disk::open(at, node, deployment)?;
    let (seen, ballot) = read(&disk, contents)?;
    check_lost(&seen, node, lost)?;
    let last = seen.last.ok_or(RecoveryError::NeverMember)?;
    // A term of its own: nobody ever voted in it, and whoever leads next does so in a later one.
    let term = ballot.term.max(last.term) + 1;
    let alone = StoredMembership { voter_sets: vec![BTreeSet::from([node])], nodes: BTreeMap::from([(node, address)]) };
    let position = |offset: u64| LogPosition { term, index: last.index + offset };
    let members = StoredEntry::membership(position(1), &alone);
    let audit = StoredEntry::from(&Entry {
        log_id: position(2).into(),
        payload: Payload::Normal(Change::Known(Arc::new(audit))),
    });
    disk.recover(
        recovery,
        [
            Write::Append(vec![members, audit]),
            Write::Ballot(Ballot { term, node, granted_by_quorum: false }),
            Write::Committed(position(2)),
        ],
    )?;
    Ok(seen)
}

/// Whether so many are lost that no majority is left, in any set of voters that was in force.
pub fn check_lost(seen: &StoreSeen, node: NodeId, lost: &BTreeSet<NodeId>) -> Result<(), RecoveryError> {
    if seen.voters.is_empty() {
        return Err(RecoveryError::NeverMember);
    }
    if !seen.voters.contains(&node) {
        return Err(RecoveryError::NotAVoter { voters: seen.voters.len() });
    }
    if lost.contains(&node) {
        return Err(RecoveryError::LostMyself(node));
    }
    let gone = seen.voters.intersection(lost).count();
    if (seen.voters.len() - gone) * 2 > seen.voters.len() {
        return Err(RecoveryError::QuorumLeft { lost: gone, voters: seen.voters.len() });
    }
    Ok(())
}

/// Makes the empty store of a survivor that joins the recovered group. The old file must have been set aside.
pub fn start_anew(
    at: StoreAt,
    node: NodeId,
    deployment: DeploymentId,
    recovery: RecoveryId,
) -> Result<(), RecoveryError> {
    let (mut disk, contents) = Disk::open(at, node, deployment)?;
    if contents.ballot.is_some() || !contents.entries.is_empty() || contents.snapshot.is_some() {
        return Err(RecoveryError::JoinedAlready(disk.recovery().unwrap_or(recovery)));
    }
    disk.recover(recovery, [])?;
    Ok(())
}
