//! The whole world as a value, what can happen to it next, and what must hold of it.

use crate::member::{
    Data, Entry, Member, Postgres, Primary, PromiseHeld, REVISION, SyncSetHeld, What, first_promotion, lsn, member_id,
};
use pgstead_agent::Action;
use pgstead_core::{Connection, Memory, NodeSeen, Observed, Policy};
use pgstead_types::record::{
    ClusterChange, ClusterPorts, ClusterRecord, ClusterSecrets, Command, Deployment, EpochReason, Leadership,
    MemberRecord, NewCluster, NodeRecord, Record,
};
use pgstead_types::report::NodeReport;
use pgstead_types::spec::ClusterSpec;
use pgstead_types::{
    ClusterId, DeploymentId, Epoch, Incarnation, NodeId, OperationId, Secret, Tick, Timeline, VolumeId, WallTime,
};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

const CLUSTER: ClusterId = ClusterId::from_u128(1);

/// How far the search goes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub members: usize,
    pub needed: u8,
    pub epochs: u64,
    pub rows: u8,
    pub crashes: u8,
    /// Members whose data is lost.
    pub losses: u8,
    /// A crash takes the last record, though it was said to be flushed. The check must find what that breaks.
    pub disks_lie: bool,
}

/// What happens between two states.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Happens {
    Write {
        at: usize,
    },
    /// The next record goes to a standby, which flushes it and says so.
    Replicate {
        to: usize,
    },
    Connect {
        from: usize,
    },
    /// A standby's word arrives.
    Hear {
        from: usize,
    },
    Crash {
        whom: usize,
    },
    LoseData {
        whom: usize,
    },
    /// Every process goes by the new names.
    Loaded {
        at: usize,
    },
    Step {
        of: usize,
        step: pgstead_types::Step,
    },
    /// The controller, which hears these nodes (a bit each), changes the record.
    Decide {
        hears: u8,
        change: &'static str,
    },
    BeginEpoch {
        preferred: Option<usize>,
    },
}

impl fmt::Display for Happens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

#[derive(Clone, Debug)]
pub struct State {
    pub record: Arc<ClusterRecord>,
    /// Taken once per change of the record.
    record_hash: (u64, u64),
    pub members: Vec<Member>,
    pub acknowledged: BTreeSet<u8>,
    pub acknowledged_in: Epoch,
    pub rows: u8,
    pub crashes: u8,
    pub losses: u8,
}

/// A change of the record and of the members, or a broken property.
pub type Next = Vec<(Happens, Result<State, String>)>;

impl State {
    /// Epoch 1 is confirmed, everyone streams, nothing is written.
    pub fn start(bounds: &Bounds) -> Self {
        let record = founded(bounds);
        let cluster = &record.clusters[&CLUSTER];
        let log = vec![Entry { timeline: 1, what: What::Made }, Entry { timeline: 2, what: What::EndOfRecovery }];
        let lives: BTreeSet<Incarnation> =
            (1..bounds.members).map(|n| Incarnation { member: member_id(n), number: 1 }).collect();
        let upstream = pgstead_types::report::Upstream::of(member_id(0), Epoch(1));
        let member = |n: usize| Member {
            data: Some(Data { number: 1, log: log.clone() }),
            held: 1,
            promised: Epoch(1),
            answer: None,
            postgres: if n == 0 {
                Postgres::Primary(Primary {
                    epoch: Epoch(1),
                    timeline: 2,
                    fork: 1,
                    sync: SyncSetHeld::from(&cluster.configs[0].sync_set),
                    before: BTreeSet::new(),
                    admitted: lives.clone(),
                    open: true,
                    senders: lives.iter().map(|life| (*life, Some(2))).collect(),
                })
            } else {
                Postgres::Standby { upstream: Some(upstream) }
            },
            word: None,
        };
        Self {
            record: Arc::new(cluster.clone()),
            record_hash: hash_record(cluster),
            members: (0..bounds.members).map(member).collect(),
            acknowledged: BTreeSet::new(),
            acknowledged_in: Epoch(0),
            rows: 0,
            crashes: 0,
            losses: 0,
        }
    }

    /// Two hashes of 64 bits of all that distinguishes it from another state. With ten million states, one in 10^24 that
    /// two of them are taken for the same.
    pub fn hashes(&self) -> (u64, u64) {
        let hash = |seed: u8| {
            let mut hasher = DefaultHasher::new();
            (seed, self.record_hash, &self.members, &self.acknowledged, self.acknowledged_in).hash(&mut hasher);
            (self.rows, self.crashes, self.losses).hash(&mut hasher);
            hasher.finish()
        };
        (hash(1), hash(2))
    }

    pub fn next(&self, bounds: &Bounds) -> Next {
        let mut next = Next::new();
        for n in 0..self.members.len() {
            self.write(n, bounds, &mut next);
            self.stream(n, &mut next);
            self.hear(n, &mut next);
            self.load(n, &mut next);
            self.step(n, &mut next);
            self.break_down(n, bounds, &mut next);
        }
        self.decide(bounds, &mut next);
        self.begin_epoch(bounds, &mut next);
        next
    }

    fn index(&self, member: pgstead_types::MemberId) -> Option<usize> {
        (0..self.members.len()).find(|n| member_id(*n) == member)
    }
    fn primary(&self, n: usize) -> Option<&Primary> {
        match &self.members[n].postgres {
            Postgres::Primary(primary) => Some(primary),
            Postgres::Down | Postgres::Standby { .. } => None,
        }
    }
    fn primary_mut(&mut self, n: usize) -> Option<&mut Primary> {
        match &mut self.members[n].postgres {
            Postgres::Primary(primary) => Some(primary),
            Postgres::Down | Postgres::Standby { .. } => None,
        }
    }

    fn write(&self, n: usize, bounds: &Bounds, next: &mut Next) {
        let Some(timeline) = self.primary(n).filter(|primary| primary.open).map(|primary| primary.timeline) else {
            return;
        };
        if self.rows >= bounds.rows {
            return;
        }
        let mut after = self.clone();
        after.rows += 1;
        let what = What::Row(after.rows);
        if let Some(data) = after.members[n].data.as_mut() {
            data.log.push(Entry { timeline, what });
        }
        next.push((Happens::Write { at: n }, after.acknowledge(n)));
    }

    /// A standby connects to the primary of the epoch that it was told, or gets its next record from it.
    fn stream(&self, n: usize, next: &mut Next) {
        let (Some(upstream), Some(life)) = (self.members[n].upstream(), self.members[n].life(n)) else { return };
        let Some(leader) = self.index(upstream.leader) else { return };
        let Some(primary) = self.primary(leader).filter(|primary| primary.epoch == upstream.epoch) else { return };
        let (mine, theirs) = (self.members[n].log(), self.members[leader].log());
        let is_prefix = theirs.starts_with(mine);
        if !primary.senders.contains_key(&life) {
            if !primary.admitted.contains(&life) || !admits(theirs, mine) {
                return;
            }
            let mut after = self.clone();
            if let Some(primary) = after.primary_mut(leader) {
                primary.senders.insert(life, None);
            }
            after.members[n].word = Some((upstream.epoch, life, mine.len()));
            let after = match is_prefix {
                true => Ok(after),
                false => Err(format!("member {n} streams from {leader} with a log that is no prefix of its own")),
            };
            next.push((Happens::Connect { from: n }, after));
        } else if is_prefix && mine.len() < theirs.len() {
            let mut after = self.clone();
            let record = theirs[mine.len()];
            if let Some(data) = after.members[n].data.as_mut() {
                data.log.push(record);
            }
            after.members[n].word = Some((upstream.epoch, life, mine.len() + 1));
            next.push((Happens::Replicate { to: n }, Ok(after)));
        }
    }

    fn hear(&self, n: usize, next: &mut Next) {
        let Some((epoch, life, count)) = self.members[n].word else { return };
        let mut after = self.clone();
        after.members[n].word = None;
        let leader = (0..self.members.len()).find(|n| {
            self.primary(*n).is_some_and(|primary| primary.epoch == epoch && primary.senders.contains_key(&life))
        });
        let Some(leader) = leader else {
            next.push((Happens::Hear { from: n }, Ok(after)));
            return;
        };
        if let Some(primary) = after.primary_mut(leader) {
            primary.senders.insert(life, Some(count));
        }
        next.push((Happens::Hear { from: n }, after.acknowledge(leader)));
    }

    fn load(&self, n: usize, next: &mut Next) {
        if self.primary(n).is_some_and(|primary| !primary.before.is_empty()) {
            let mut after = self.clone();
            if let Some(primary) = after.primary_mut(n) {
                primary.before.clear();
            }
            next.push((Happens::Loaded { at: n }, after.acknowledge(n)));
        }
    }

    /// Whatever a primary's sessions wait for and now have is acknowledged at once. Any delay of it is a delay of a word.
    fn acknowledge(mut self, n: usize) -> Result<Self, String> {
        let Some(primary) = self.primary(n).filter(|primary| primary.open).cloned() else { return Ok(self) };
        for (at, entry) in self.members[n].log().to_vec().into_iter().enumerate() {
            let What::Row(row) = entry.what else { continue };
            let waits = entry.timeline == primary.timeline && !self.acknowledged.contains(&row);
            if !waits || !primary.acknowledges(at + 1) {
                continue;
            }
            if primary.epoch < self.acknowledged_in {
                return Err(format!(
                    "member {n} acknowledges row {row} in epoch {} after epoch {} has",
                    primary.epoch, self.acknowledged_in
                ));
            }
            if primary.epoch == self.record.epoch && !self.record.is_confirmed() {
                return Err(format!("member {n} acknowledges row {row} in the unconfirmed epoch {}", primary.epoch));
            }
            self.acknowledged_in = primary.epoch;
            self.acknowledged.insert(row);
        }
        Ok(self)
    }

    fn break_down(&self, n: usize, bounds: &Bounds, next: &mut Next) {
        if self.crashes < bounds.crashes && self.members[n].postgres != Postgres::Down {
            let mut after = self.clone();
            after.crashes += 1;
            after.members[n].postgres = Postgres::Down;
            if let Some(data) = after.members[n].data.as_mut().filter(|_| bounds.disks_lie) {
                data.log.pop();
            }
            next.push((Happens::Crash { whom: n }, Ok(after)));
        }
        if self.losses < bounds.losses && self.members[n].data.is_some() {
            let mut after = self.clone();
            after.losses += 1;
            after.members[n].postgres = Postgres::Down;
            after.members[n].data = None;
            next.push((Happens::LoseData { whom: n }, Ok(after)));
        }
    }

    /// What the real agent does next, whole.
    fn step(&self, n: usize, next: &mut Next) {
        let report = self.members[n].report(n, CLUSTER);
        let Some(action) = pgstead_agent::decide(&self.record, member_id(n), &report).action else { return };
        let step = action.step();
        let mut after = self.clone();
        if after.carry_out(n, action) {
            next.push((Happens::Step { of: n, step }, after.acknowledge(n)));
        }
    }

    /// False when it fails, which changes nothing.
    fn carry_out(&mut self, n: usize, action: Action) -> bool {
        let member = &mut self.members[n];
        match action {
            Action::StartStandby { .. } => member.postgres = Postgres::Standby { upstream: None },
            Action::SavePromise { epoch } => (member.promised, member.answer) = (epoch, None),
            Action::CutUpstream => member.postgres = Postgres::Standby { upstream: None },
            Action::AnswerPromise { epoch } => {
                let Some(data) = &member.data else { return false };
                let incarnation = Incarnation { member: member_id(n), number: data.number };
                member.answer = Some(PromiseHeld { epoch, incarnation, position: data.position() });
            }
            Action::Fence | Action::StopCleanly { .. } => member.postgres = Postgres::Down,
            Action::Promote { epoch, timeline, sync_set, admitted } => {
                let Some(data) = member.data.as_mut() else { return false };
                if member.promised != epoch {
                    return false;
                }
                let fork = data.log.len();
                data.log.push(Entry { timeline: timeline.0, what: What::EndOfRecovery });
                member.postgres = Postgres::Primary(Primary {
                    epoch,
                    timeline: timeline.0,
                    fork,
                    sync: SyncSetHeld::from(&sync_set),
                    before: BTreeSet::new(),
                    admitted,
                    open: false,
                    senders: BTreeMap::new(),
                });
            }
            Action::OpenClients | Action::HoldClients { .. } => {
                let open = action == Action::OpenClients;
                let Some(primary) = self.primary_mut(n) else { return false };
                primary.open = open;
            }
            Action::UpdateSyncSet { by: _, epoch, sync_set, admitted } => {
                let Some(primary) = self.primary_mut(n).filter(|primary| primary.epoch == epoch) else { return false };
                let wanted = SyncSetHeld::from(&sync_set);
                if primary.sync != wanted {
                    primary.before.insert(std::mem::replace(&mut primary.sync, wanted));
                }
                primary.senders.retain(|life, _| admitted.contains(life));
                primary.admitted = admitted;
            }
            Action::Follow { of } => {
                if of.epoch < member.promised {
                    return false;
                }
                member.postgres = Postgres::Standby { upstream: Some(of) };
            }
            Action::Clone { incarnation, from, epoch } | Action::Rewind { incarnation, from, epoch } => {
                let Some(leader) = self.index(from) else { return false };
                let serves = |primary: &&Primary| primary.epoch == epoch && primary.admitted.contains(&incarnation);
                if self.primary(leader).filter(serves).is_none() {
                    return false;
                }
                let log = self.members[leader].log().to_vec();
                let member = &mut self.members[n];
                member.data = Some(Data { number: incarnation.number, log });
                member.held = incarnation.number;
                member.postgres = Postgres::Down;
            }
            // They belong to a cluster's beginning and end, to planned changes, to members that are not well, and to standbys
            // that feed others.
            Action::FetchLog { .. }
            | Action::CreateVolume
            | Action::InitDatabase { .. }
            | Action::AdoptData { .. }
            | Action::LimitWrites { .. }
            | Action::DiscardPartial
            | Action::Relay { .. }
            | Action::Checkpoint { .. }
            | Action::RemoveVolume => return false,
        }
        true
    }

    /// The real controller, which hears any part of the nodes.
    fn decide(&self, bounds: &Bounds, next: &mut Next) {
        let patience = Duration::from_secs(1 << 30);
        let policy = Policy {
            promise_patience: Duration::ZERO,
            preferred_patience: Duration::ZERO,
            promotion_deadline: patience,
            cut_patience: patience,
            // A set of which one does not stream may shrink at once.
            shrink_after: Duration::ZERO,
            ..Policy::default()
        };
        let now = Tick::from_millis(3_600_000);
        let mut seen = Vec::new();
        for hears in 0u8..(1 << self.members.len()) {
            let nodes = (0..self.members.len()).filter(|n| hears & (1 << n) != 0).map(|n| {
                let report = NodeReport {
                    node: node_id(n),
                    session: 1,
                    sequence: 1,
                    revision: REVISION,
                    members: vec![self.members[n].report(n, CLUSTER)],
                    storage: None,
                    round_trip_us: None,
                    findings: Vec::new(),
                };
                let node = NodeSeen { connection: Connection::Open, heard: now, report, ended_sessions: Vec::new() };
                (node_id(n), node)
            });
            let observed = Observed { now, revision: REVISION, nodes: nodes.collect(), ..Observed::default() };
            let plan = pgstead_core::decide(&self.record, &observed, &policy, &mut Memory::default());
            let Some(change) = plan.change else { continue };
            // Epochs are begun freely below.
            if matches!(change, ClusterChange::BeginEpoch { .. }) || seen.contains(&change) {
                continue;
            }
            let name = name_of(&change);
            if let Some(after) = self.changed(&change) {
                next.push((Happens::Decide { hears, change: name }, after.hold_property(bounds)));
            }
            seen.push(change);
        }
    }

    /// An epoch may begin at any time, for no reason at all.
    fn begin_epoch(&self, bounds: &Bounds, next: &mut Next) {
        if self.record.epoch.0 >= bounds.epochs {
            return;
        }
        let leader = self.record.leadership.leader();
        for preferred in [None, leader] {
            let reason = if preferred.is_some() { EpochReason::SyncSetChange } else { EpochReason::NodeLost };
            let change = ClusterChange::BeginEpoch { epoch: self.record.epoch.next(), reason, preferred };
            if let (Some(after), true) = (self.changed(&change), preferred.is_none() || leader.is_some()) {
                let preferred = preferred.and_then(|member| self.index(member));
                next.push((Happens::BeginEpoch { preferred }, Ok(after)));
            }
            if leader.is_none() {
                return;
            }
        }
    }

    /// The real transition; `None` when it is refused.
    fn changed(&self, change: &ClusterChange) -> Option<Self> {
        let mut record = Record::default();
        record.clusters.insert(CLUSTER, (*self.record).clone());
        let command = Command::ChangeCluster {
            at: WallTime(0),
            cluster: CLUSTER,
            revision: self.record.revision,
            change: change.clone(),
        };
        record.apply(&command).ok()?;
        let mut cluster = record.clusters.remove(&CLUSTER)?;
        // So that the same record reached by another way is the same.
        cluster.revision = REVISION;
        for change in cluster.configs.iter_mut().filter_map(|config| config.target.as_mut()) {
            change.revision = REVISION;
        }
        let mut after = self.clone();
        after.record_hash = hash_record(&cluster);
        after.record = Arc::new(cluster);
        Some(after)
    }

    /// Every acknowledged row is in the log of every later confirmed leader.
    fn hold_property(self, _: &Bounds) -> Result<Self, String> {
        let Leadership::Confirmed { leader } = self.record.leadership else { return Ok(self) };
        let Some(n) = self.index(leader) else { return Err("the leader is no member".into()) };
        let Some(data) = &self.members[n].data else { return Ok(self) };
        let has: BTreeSet<u8> = data.rows().collect();
        let lost: Vec<u8> = self.acknowledged.difference(&has).copied().collect();
        match lost.is_empty() {
            true => Ok(self),
            false => Err(format!(
                "epoch {} is confirmed, and its leader {n} lacks the acknowledged rows {lost:?}",
                self.record.epoch
            )),
        }
    }
}

fn hash_record(record: &ClusterRecord) -> (u64, u64) {
    let text = format!(
        "{:?}{:?}{:?}{:?}{:?}{:?}",
        record.epoch,
        record.leadership,
        record.configs,
        record.history,
        record.last_timeline,
        record.members.values().map(|member| member.incarnation).collect::<Vec<_>>(),
    );
    let hash = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        (seed, &text).hash(&mut hasher);
        hasher.finish()
    };
    (hash(1), hash(2))
}

/// What Postgres itself checks of a standby: its timeline is in the primary's history, and it is not past its end there.
fn admits(theirs: &[Entry], mine: &[Entry]) -> bool {
    let Some(timeline) = mine.last().map(|entry| entry.timeline) else { return false };
    let is_current = theirs.last().is_some_and(|entry| entry.timeline == timeline);
    theirs.iter().rposition(|entry| entry.timeline == timeline).is_some_and(|last| is_current || mine.len() <= last + 1)
}

fn name_of(change: &ClusterChange) -> &'static str {
    match change {
        ClusterChange::Choose { .. } => "choose",
        ClusterChange::NotePromotion { .. } => "note promotion",
        ClusterChange::Confirm { .. } => "confirm",
        ClusterChange::SetSyncSet { .. } => "set the sync set",
        ClusterChange::SettleSyncSet { .. } => "settle the sync set",
        ClusterChange::Rebuild { .. } => "rebuild",
        _ => "other",
    }
}

fn node_id(n: usize) -> NodeId {
    NodeId::from_u128(n as u128 + 1)
}

/// A record with one cluster whose first epoch is confirmed.
fn founded(bounds: &Bounds) -> Record {
    let at = WallTime(0);
    let node = |n: usize| NodeRecord {
        id: node_id(n),
        name: format!("n{n}"),
        host: format!("10.0.0.{n}"),
        port: 7480,
        region: "r".into(),
        zone: format!("z{n}"),
        postgres_majors: vec![15],
        pools: vec!["default".into()],
        joined_at: at,
        service: Default::default(),
    };
    let mut record = Record::default();
    let deployment = Deployment {
        id: DeploymentId::from_u128(9),
        created_at: at,
        ca_cert_pem: String::new(),
        ca_key_pem: Secret::default(),
        admin_token_sha256: String::new(),
        port_first: 6000,
        port_last: 6999,
        lease_ms: 10_000,
    };
    let mut apply = |command: Command| {
        record.apply(&command).expect("the commands of a beginning apply");
    };
    apply(Command::Found { at, deployment, node: node(0) });
    for n in 1..bounds.members {
        let id = pgstead_types::TokenId::from_u128(n as u128);
        let token = pgstead_types::record::JoinToken {
            id,
            secret_sha256: String::new(),
            expires_at: WallTime(i64::MAX),
            used_by: None,
        };
        apply(Command::AddJoinToken { at, token });
        apply(Command::AdmitNode { at, token: id, node: node(n) });
    }
    let secrets = ClusterSecrets {
        ca_cert_pem: String::new(),
        ca_key_pem: Secret::default(),
        server_cert_pem: String::new(),
        server_key_pem: Secret::default(),
        server_hosts: BTreeSet::new(),
        owner_password: Secret::default(),
        consumer_password: None,
    };
    let member = |n: usize| MemberRecord {
        id: member_id(n),
        name: format!("m{n}"),
        node: node_id(n),
        volume: VolumeId::from_u128(n as u128 + 1),
        incarnation: 1,
        restarts: 0,
        standing: pgstead_types::record::Standing::default(),
    };
    let operation = OperationId::from_u128(1);
    let cluster = NewCluster {
        id: CLUSTER,
        operation,
        spec: ClusterSpec {
            members: bounds.members as u8,
            sync_replicas: Some(bounds.needed),
            ..ClusterSpec::named("app")
        },
        postgres_major: 15,
        ports: ClusterPorts { postgres: 6000, read_write: 6001, read_only: 6002 },
        secrets,
        members: (0..bounds.members).map(member).collect(),
    };
    apply(Command::CreateCluster { at, cluster: Box::new(cluster) });
    let first = first_promotion(Epoch(1), member_id(0));
    let noted = ClusterChange::NotePromotion {
        epoch: first.epoch,
        timeline: Timeline(2),
        parent: first.parent,
        fork_lsn: lsn(1),
        end_of_recovery: lsn(2),
        system_identifier: "7".into(),
    };
    for (revision, change) in [(1, noted), (2, ClusterChange::Confirm { epoch: Epoch(1) })] {
        apply(Command::ChangeCluster { at, cluster: CLUSTER, revision, change });
    }
    apply(Command::EndOperation { at, operation, failure: None });
    if let Some(cluster) = record.clusters.get_mut(&CLUSTER) {
        cluster.revision = REVISION;
    }
    record
}
