//! One member: its log, its notes, its Postgres, and what its node sees of them.

use pgstead_types::record::{HistoryEntry, SyncSet};
use pgstead_types::report::{
    ClientAccess, DataIdentity, DataSeen, MemberReport, PostgresSeen, PrimarySeen, PromiseAnswer, ReceiverSeen,
    SenderSeen, SetBy, StandbySeen, Upstream,
};
use pgstead_types::{ClusterId, Epoch, Incarnation, Lsn, MemberId, Position, Timeline};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

/// One record of a log. Two logs agree as far as their records do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Entry {
    pub timeline: u32,
    pub what: What,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum What {
    Made,
    Row(u8),
    EndOfRecovery,
}

/// Every record and every report has this one: here everybody knows the newest record, and reports the present.
pub const REVISION: u64 = 1;

/// Each record is as long as the others.
const BYTES: u64 = 0x80;

pub fn lsn(count: usize) -> Lsn {
    Lsn(count as u64 * BYTES)
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Data {
    pub number: u32,
    pub log: Vec<Entry>,
}

impl Data {
    pub fn position(&self) -> Position {
        let timeline = self.log.last().map_or(1, |entry| entry.timeline);
        Position { timeline: Timeline(timeline), lsn: lsn(self.log.len()) }
    }
    pub fn rows(&self) -> impl Iterator<Item = u8> + '_ {
        self.log.iter().filter_map(|entry| match entry.what {
            What::Row(row) => Some(row),
            What::Made | What::EndOfRecovery => None,
        })
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Postgres {
    Down,
    Standby { upstream: Option<Upstream> },
    Primary(Primary),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Primary {
    pub epoch: Epoch,
    pub timeline: u32,
    /// So many records lie before its own timeline.
    pub fork: usize,
    pub sync: SyncSetHeld,
    /// While a change is being loaded, some processes go by one of these still: one change may replace another meanwhile.
    pub before: BTreeSet<SyncSetHeld>,
    pub admitted: BTreeSet<Incarnation>,
    pub open: bool,
    /// Who is connected, and how many records each has said to have flushed.
    pub senders: BTreeMap<Incarnation, Option<usize>>,
}

/// A sync set as a state holds it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SyncSetHeld {
    pub members: BTreeSet<Incarnation>,
    pub needed: u8,
}

impl Hash for Postgres {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        match self {
            Postgres::Down => 0u8.hash(hasher),
            Postgres::Standby { upstream } => {
                (1u8, upstream.map(|upstream| (upstream.leader, upstream.epoch))).hash(hasher);
            }
            Postgres::Primary(primary) => (2u8, primary).hash(hasher),
        }
    }
}

impl From<&SyncSet> for SyncSetHeld {
    fn from(set: &SyncSet) -> Self {
        Self { members: set.members.clone(), needed: set.needed }
    }
}
impl From<&SyncSetHeld> for SyncSet {
    fn from(set: &SyncSetHeld) -> Self {
        Self { members: set.members.clone(), needed: set.needed }
    }
}

impl Primary {
    /// Whether the first `count` records count as acknowledged, by what is loaded or by what some still go by.
    pub fn acknowledges(&self, count: usize) -> bool {
        let enough = |set: &SyncSetHeld| {
            let have = set.members.iter().filter(|life| self.senders.get(life).is_some_and(|at| *at >= Some(count)));
            have.count() >= usize::from(set.needed)
        };
        enough(&self.sync) || self.before.iter().any(enough)
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Member {
    pub data: Option<Data>,
    /// The number of the last complete data here, by the node's notes.
    pub held: u32,
    pub promised: Epoch,
    pub answer: Option<PromiseHeld>,
    pub postgres: Postgres,
    /// A word on its way to the primary of that epoch: so many records are flushed.
    pub word: Option<(Epoch, Incarnation, usize)>,
}

/// An answer as a state holds it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PromiseHeld {
    pub epoch: Epoch,
    pub incarnation: Incarnation,
    pub position: Position,
}

pub fn member_id(n: usize) -> MemberId {
    MemberId::from_u128(n as u128 + 1)
}

impl Member {
    pub fn life(&self, n: usize) -> Option<Incarnation> {
        self.data.as_ref().map(|data| Incarnation { member: member_id(n), number: data.number })
    }
    pub fn log(&self) -> &[Entry] {
        self.data.as_ref().map_or(&[], |data| data.log.as_slice())
    }
    pub fn upstream(&self) -> Option<Upstream> {
        match &self.postgres {
            Postgres::Standby { upstream } => *upstream,
            Postgres::Down | Postgres::Primary(_) => None,
        }
    }

    /// What its node reports: always the present.
    pub fn report(&self, n: usize, cluster: ClusterId) -> MemberReport {
        let member = member_id(n);
        let data = match &self.data {
            Some(data) => DataSeen::Present(DataIdentity {
                incarnation: Incarnation { member, number: data.number },
                system_identifier: "7".into(),
                postgres_major: 15,
            }),
            None => DataSeen::Lost { incarnation: Incarnation { member, number: self.held } },
        };
        let answer = self.answer.map(|held| PromiseAnswer {
            epoch: held.epoch,
            incarnation: held.incarnation,
            position: held.position,
        });
        MemberReport {
            cluster,
            member,
            revision: REVISION,
            volume_present: true,
            volume_size: None,
            data,
            promised: self.promised,
            answer,
            postgres: self.postgres_seen(),
            restarts: 0,
            checkpointed: None,
            // Only a leader is asked, and it has promised its own epoch.
            set_by: Some(SetBy { epoch: self.promised, revision: REVISION }),
            lease: None,
            refusing: None,
            working: None,
            oldest_log: None,
            fetched: None,
            slots: None,
            session: 1,
            kept: Default::default(),
            troubles: Vec::new(),
            findings: Vec::new(),
        }
    }

    fn postgres_seen(&self) -> PostgresSeen {
        let Some(data) = &self.data else { return PostgresSeen::Down { clean: None } };
        match &self.postgres {
            Postgres::Down => PostgresSeen::Down { clean: None },
            Postgres::Standby { upstream } => PostgresSeen::Standby(StandbySeen {
                upstream: *upstream,
                receiver: upstream.map(|_| ReceiverSeen { streaming: true, silent_ms: 0 }),
                replayed: data.position().lsn,
                position: Some(data.position()),
                expects: None,
                relays_to: BTreeSet::new(),
                slots: BTreeSet::new(),
                unfinished: None,
                access: ClientAccess::Open,
            }),
            Postgres::Primary(primary) => PostgresSeen::Primary(PrimarySeen {
                epoch: Some(primary.epoch),
                timeline: Timeline(primary.timeline),
                flushed: data.position().lsn,
                fork_lsn: lsn(primary.fork),
                parent: None,
                end_of_recovery: lsn(primary.fork + 1),
                access: if primary.open { ClientAccess::Open } else { ClientAccess::Holding },
                read_only: false,
                sync_set: primary.before.is_empty().then(|| SyncSet::from(&primary.sync)),
                admitted: primary.admitted.clone(),
                slots: primary.admitted.clone(),
                senders: primary
                    .senders
                    .iter()
                    .map(|(life, flushed)| SenderSeen {
                        name: life.to_string(),
                        incarnation: Some(*life),
                        streaming: flushed.is_some(),
                        flushed: flushed.map(lsn),
                        replayed: None,
                    })
                    .collect(),
            }),
        }
    }
}

/// Where the first epoch's promotion lies in every log at the start.
pub fn first_promotion(epoch: Epoch, leader: MemberId) -> HistoryEntry {
    HistoryEntry {
        epoch,
        timeline: Timeline(2),
        parent: Timeline(1),
        fork_lsn: lsn(1),
        end_of_recovery: lsn(2),
        leader,
        possible_loss: None,
    }
}
