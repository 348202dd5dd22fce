//! A node of the simulated world: its power, its disk, its daemon, and the processes of its Postgres.

use crate::clock::Clock;
use crate::controller::Controller;
use crate::wal::Wal;
use crate::world::Event;
use pgstead_agent::Action;
use pgstead_types::record::SyncSet;
use pgstead_types::report::{
    CleanStop, ClientAccess, DataIdentity, DataSeen, NodeReport, PostgresSeen, PrimarySeen, PromiseAnswer,
    ReceiverSeen, SenderSeen, SetBy, StandbySeen, Unfinished, Upstream, Working,
};
use pgstead_types::{Epoch, Incarnation, Lsn, MemberId, NodeId, OperationId, Position, Tick, Trouble};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub const SYSTEM: &str = "7000000000000000001";

pub struct Machine {
    pub name: String,
    pub id: NodeId,
    pub powered: bool,
    /// While set, nothing on this machine goes on; what would have happened waits.
    pub frozen: bool,
    pub deferred: Vec<Event>,
    /// Disk writes take so many times longer.
    pub slow: u32,
    /// Syncs of the volume alone take so many times longer: the notes are on another disk.
    pub slow_volume: u32,
    /// Nothing more can be written to the volume.
    pub full: bool,
    pub pool: PoolLevel,
    pub clock: Clock,
    pub daemon: Option<Daemon>,
    pub disk: Disk,
    pub run: Option<Run>,
    /// The newest epoch whose promise was ever answered here, whatever the notes say now.
    pub answered: Epoch,
    /// The stop under way is to remove the history of a timeline that the log never got.
    pub forgets: bool,
}

/// The node's daemon, and what it forgets when it dies.
pub struct Daemon {
    /// Random in real life; here it grows with every start in the world.
    pub session: u64,
    pub sequence: u64,
    /// Whom it sends its reports to.
    pub reports_to: Option<usize>,
    pub last_sent: Option<NodeReport>,
    pub probe_due: bool,
    pub work: Option<Work>,
    /// The step that failed last, and when to try again.
    pub failed: Option<(Working, Tick)>,
    pub controller: Option<Controller>,
    /// The lease that the node was granted.
    pub held: Option<Held>,
    /// When it asked for one last.
    pub asked_at: Option<Tick>,
    /// Members that obey no election, until then, and when they were asked last.
    pub refusals: BTreeMap<MemberId, Tick>,
    pub asked_to_refuse: Option<Tick>,
    /// Its own word to a leader.
    pub refusing: Option<(Epoch, Tick)>,
    pub findings: BTreeSet<String>,
}

/// A grant, by the node's own clock, and the revision of the record that it is good for.
#[derive(Clone, Copy)]
pub struct Held {
    pub end: Tick,
    pub revision: u64,
}

/// An action under way.
pub struct Work {
    /// Of the cluster's record that ordered it.
    pub revision: u64,
    pub serial: u64,
    pub action: Action,
    pub step: usize,
    pub attempt: u32,
    pub began: Tick,
    /// The run of the member that is copied from, to notice that it is another one now.
    pub source: Option<u64>,
}

#[derive(Default)]
pub struct Disk {
    pub volume: bool,
    pub data: Option<Data>,
    /// Complete data that a copy in progress will replace.
    pub aside: Option<Data>,
    /// Lives of data that were given up and are kept for a person.
    pub kept: BTreeSet<u32>,
    pub notes: Notes,
}

/// The node's own notes, outside the volume. Each change is synced before it counts.
#[derive(Default)]
pub struct Notes {
    pub promised: Epoch,
    pub answer: Option<PromiseAnswer>,
    /// The incarnation of the last complete data here.
    pub held: Option<Incarnation>,
    pub restarts: u32,
    pub checkpointed: Option<OperationId>,
    pub set_by: Option<SetBy>,
    /// A word to a leader, with how long it holds in full.
    pub refusing: Option<(Epoch, Duration)>,
    pub fetch: Option<NotedFetch>,
}

/// Log fetched from another promiser, from before the first change of it.
#[derive(Clone, Copy)]
pub struct NotedFetch {
    pub epoch: Epoch,
    /// Where its own log ended, by the answer that was dropped.
    pub own: Position,
    pub done: bool,
}

#[derive(Clone)]
pub struct Data {
    pub complete: bool,
    pub incarnation: Incarnation,
    pub wal: Wal,
    /// So many records are synced.
    pub flushed: usize,
    pub clean: Option<CleanStop>,
    /// `N.history` files, the burned ones included.
    pub history_files: BTreeSet<u32>,
    /// So many records at the beginning are no longer on disk.
    pub removed: usize,
    /// Pages of it have wrong checksums.
    pub corrupted: bool,
    /// The newest timeline that an upstream has given it the history of; 0 for none.
    pub told: u32,
}

impl Data {
    /// Of this life, with nothing in it yet.
    pub fn begun(incarnation: Incarnation) -> Self {
        Self {
            complete: false,
            incarnation,
            wal: Wal::default(),
            flushed: 0,
            clean: None,
            history_files: BTreeSet::new(),
            removed: 0,
            corrupted: false,
            told: 0,
        }
    }
    /// A timeline that it was told of and has none of the log of.
    pub fn expects(&self) -> Option<u32> {
        (self.told > self.wal.timeline(self.flushed)).then_some(self.told)
    }
    /// What a crash leaves: everything synced and, of what was only written, so many records.
    pub fn lose_after(&mut self, kept: usize) {
        self.wal.truncate(kept.max(self.flushed));
    }
    pub fn flushed_lsn(&self) -> Lsn {
        self.wal.lsn(self.flushed)
    }
}

/// `synchronous_standby_names` as loaded by running processes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SyncNames {
    /// `ANY 1 ("pgstead_none")`: nothing is ever acknowledged.
    Nobody,
    /// Empty: a commit needs nobody else.
    Alone,
    Set(SyncSet),
}

/// How much room the pool below a volume has. Writes work at any level; what follows from it is the product's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PoolLevel {
    Fine,
    Full,
    Brimming,
}

/// The processes of one Postgres, from its start to the end of the last of them.
pub struct Run {
    pub id: u64,
    /// False once the postmaster is gone and others still run.
    pub postmaster: bool,
    /// Its processes take connections and do nothing; what they would do waits.
    pub hung: bool,
    pub held: Vec<Event>,
    pub mode: Mode,
    pub access: ClientAccess,
    /// As a primary: it takes no writes of clients.
    pub read_only: bool,
    pub stopping: bool,
    pub promoting: bool,
    /// A flush is under way and covers so many records.
    pub flushing: Option<usize>,
    /// Until when its guard lets it run, by the node's own clock.
    pub lease: Option<Tick>,
    // As a standby.
    /// As Postgres has loaded it.
    pub upstream: Option<Upstream>,
    /// What its node has written, and what it has seen in effect; where they differ a step was cut short.
    pub wanted: Told,
    pub seen: Told,
    /// Whom it admits was changed, and that was not seen to its end.
    pub pending: bool,
    /// It has a certificate to connect with.
    pub certificate: bool,
    pub receiver: Option<Receiver>,
    pub replayed: usize,
    pub recovered: bool,
    /// The timeline that recovery goes for, from its start or from the last upstream on.
    pub goes_for: u32,
    /// The epoch in which it feeds other standbys, those that are `admitted`.
    pub relaying: Option<Epoch>,
    // As a primary, prepared before the promotion.
    pub serving: Option<Epoch>,
    pub target_timeline: Option<u32>,
    pub sync: SyncNames,
    /// While changes of names are being loaded, some processes still go by older ones, of one or more changes.
    pub sync_before: Vec<SyncNames>,
    pub admitted: BTreeSet<Incarnation>,
    pub slots: BTreeSet<Incarnation>,
    pub senders: BTreeMap<u64, Sender>,
    pub waits: VecDeque<Wait>,
}

/// What the configuration of a standby says.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Told {
    pub upstream: Option<Upstream>,
    /// Whom it feeds, and in which epoch.
    pub relays: Option<(Epoch, BTreeSet<Incarnation>)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Recovering,
    Standby,
    Primary { timeline: u32, fork: Lsn, end_of_recovery: Lsn },
}

pub struct Receiver {
    pub connection: u64,
    pub upstream: Upstream,
    pub streaming: bool,
    pub heard: Tick,
    pub started: Tick,
}

pub struct Sender {
    pub to: usize,
    /// In which the other end streams.
    pub epoch: Epoch,
    pub incarnation: Incarnation,
    pub streaming: bool,
    pub sent: usize,
    pub flushed: Option<Lsn>,
    pub replayed: Option<Lsn>,
    pub heard: Tick,
}

/// A session that has written a row and waits for its acknowledgements.
pub struct Wait {
    pub client: usize,
    pub row: u64,
    pub end: Lsn,
}

impl Run {
    /// The node writes it; nothing of it is in effect yet.
    pub fn tell(&mut self, told: Told) {
        self.pending |= told.relays != self.wanted.relays || self.seen.relays != self.wanted.relays;
        self.wanted = told;
    }
    /// All of it was seen in effect.
    pub fn note_told(&mut self) {
        self.seen = self.wanted.clone();
        self.pending = false;
    }
    fn unfinished(&self) -> Option<Unfinished> {
        match (self.wanted.upstream, self.seen.upstream) {
            (wanted, Some(seen)) if wanted != Some(seen) => Some(Unfinished::Cut),
            (Some(_), None) => Some(Unfinished::Follow),
            (Some(_), Some(_)) if self.pending || self.wanted.relays != self.seen.relays => Some(Unfinished::Relay),
            _ => None,
        }
    }
    fn relays_to(&self) -> BTreeSet<Incarnation> {
        let relaying = [&self.wanted, &self.seen].into_iter().filter(|told| told.upstream.is_some());
        relaying.filter_map(|told| told.relays.as_ref()).flat_map(|(_, fed)| fed.iter().copied()).collect()
    }
    /// The least that a commit may have waited for: while a change is being loaded, each WAL sender counts by the names that
    /// it has, and one of the old ones and one of the new ones may together be enough for the smallest number.
    pub fn may_go_by(&self) -> SyncNames {
        let all = || self.sync_before.iter().chain([&self.sync]);
        if all().any(|names| *names == SyncNames::Alone) {
            return SyncNames::Alone;
        }
        let sets = all().filter_map(|names| match names {
            SyncNames::Set(set) => Some(set.clone()),
            SyncNames::Nobody | SyncNames::Alone => None,
        });
        sets.reduce(|one, other| one.widened(&other)).map_or(SyncNames::Nobody, SyncNames::Set)
    }
    pub fn is_primary(&self) -> bool {
        matches!(self.mode, Mode::Primary { .. })
    }
    /// Of clients, as a primary.
    pub fn takes_writes(&self) -> bool {
        self.postmaster && !self.stopping && self.access == ClientAccess::Open && !self.read_only
    }
    pub fn timeline(&self) -> Option<u32> {
        match self.mode {
            Mode::Primary { timeline, .. } => Some(timeline),
            _ => None,
        }
    }
}

impl Machine {
    pub fn new(n: usize) -> Self {
        Self {
            name: format!("n{}", n + 1),
            id: NodeId::from_u128(n as u128 + 1),
            powered: true,
            frozen: false,
            deferred: Vec::new(),
            slow: 1,
            slow_volume: 1,
            full: false,
            pool: PoolLevel::Fine,
            clock: Clock::new(std::time::Duration::from_secs(3600 * n as u64)),
            daemon: None,
            disk: Disk::default(),
            run: None,
            answered: Epoch::default(),
            forgets: false,
        }
    }
    pub fn data(&self) -> Option<&Data> {
        self.disk.data.as_ref().filter(|data| data.complete)
    }
    /// The run and its data, if both are there.
    pub fn live(&mut self) -> Option<(&mut Run, &mut Data)> {
        Some((self.run.as_mut()?, self.disk.data.as_mut()?))
    }

    pub fn troubles(&self) -> Vec<Trouble> {
        let corrupted = self.data().is_some_and(|data| data.corrupted);
        let hung = self.run.as_ref().is_some_and(|run| run.hung);
        let corrupted = corrupted.then_some(Trouble::Corrupted { failures: 1 });
        let hung = hung.then(|| Trouble::Hung { why: "no answer".into() });
        let full = self.full.then(|| Trouble::Unwritable { why: "no space left on device".into() });
        let pool = match self.pool {
            PoolLevel::Fine => None,
            PoolLevel::Full => Some(Trouble::PoolFull { brimming: false }),
            PoolLevel::Brimming => Some(Trouble::PoolFull { brimming: true }),
        };
        corrupted.into_iter().chain(hung).chain(full).chain(pool).collect()
    }
    pub fn data_seen(&self) -> DataSeen {
        match (&self.disk.data, self.disk.notes.held) {
            (Some(data), _) if data.complete => DataSeen::Present(DataIdentity {
                incarnation: data.incarnation,
                system_identifier: SYSTEM.to_string(),
                postgres_major: 15,
            }),
            (Some(_), _) => DataSeen::Partial,
            (None, Some(incarnation)) => DataSeen::Lost { incarnation },
            (None, None) => DataSeen::Absent,
        }
    }

    /// What its own node sees of it, at `now` of the node's own clock.
    pub fn postgres_seen(&self, now: Tick) -> PostgresSeen {
        let (Some(run), Some(data)) = (&self.run, &self.disk.data) else {
            let clean = self.data().and_then(|data| data.clean);
            return PostgresSeen::Down { clean };
        };
        if !run.postmaster {
            return PostgresSeen::Unresponsive { why: "its postmaster is gone and other processes are left".into() };
        }
        if run.hung {
            return PostgresSeen::Unresponsive { why: "it takes connections and does not answer".into() };
        }
        match run.mode {
            Mode::Recovering => PostgresSeen::Starting,
            Mode::Standby => PostgresSeen::Standby(StandbySeen {
                upstream: run.wanted.upstream.or(run.seen.upstream),
                unfinished: run.unfinished(),
                receiver: run.receiver.as_ref().map(|receiver| ReceiverSeen {
                    streaming: receiver.streaming,
                    silent_ms: now.since(receiver.heard).as_millis() as u64,
                }),
                replayed: data.wal.lsn(run.replayed),
                position: run.recovered.then(|| data.wal.position(data.flushed)),
                expects: run.recovered.then(|| data.expects()).flatten().map(pgstead_types::Timeline),
                relays_to: run.relays_to(),
                slots: run.slots.clone(),
                access: run.access,
            }),
            Mode::Primary { timeline, fork, end_of_recovery } => PostgresSeen::Primary(PrimarySeen {
                epoch: run.serving,
                timeline: pgstead_types::Timeline(timeline),
                flushed: data.flushed_lsn(),
                fork_lsn: fork,
                parent: None,
                end_of_recovery,
                access: run.access,
                read_only: run.read_only,
                sync_set: match &run.sync {
                    _ if !run.sync_before.is_empty() => None,
                    SyncNames::Set(set) => Some(set.clone()),
                    SyncNames::Alone => Some(SyncSet::default()),
                    SyncNames::Nobody => None,
                },
                admitted: run.admitted.clone(),
                slots: run.slots.clone(),
                senders: run
                    .senders
                    .values()
                    .map(|sender| SenderSeen {
                        name: sender.incarnation.to_string(),
                        incarnation: Some(sender.incarnation),
                        streaming: sender.streaming,
                        flushed: sender.flushed,
                        replayed: sender.replayed,
                    })
                    .collect(),
            }),
        }
    }
}
