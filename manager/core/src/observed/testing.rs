//! A small world for tests: `world().leader("a").standby("b", lag(0))` is a confirmed cluster that is well, and each
//! further call changes one thing about it.

use super::*;
use crate::decide::{Plan, decide};
use crate::members::SeenWell;
use pgstead_types::record::{
    ClusterChange, ClusterPorts, ClusterSecrets, Command, EpochConfig, EpochReason, HistoryEntry, Leadership,
    Lifecycle, MemberRecord, Record, Refusal, Restart, Switchover, SyncSet,
};
use pgstead_types::report::{
    CleanStop, ClientAccess, DataIdentity, DataSeen, LeaseSeen, PostgresSeen, PrimarySeen, PromiseAnswer, ReceiverSeen,
    SenderSeen, SetBy,
};
use pgstead_types::spec::{ClusterSpec, Durability};
use pgstead_types::{ClusterId, Epoch, Incarnation, Lsn, OperationId, Position, Secret, Timeline, VolumeId, WallTime};

use std::collections::BTreeSet;

/// Where every log ends unless a test says otherwise.
pub(crate) const END: u64 = 1000;
/// Where timeline 2 begins, which epoch 1 made.
pub(crate) const FORK: u64 = 500;
pub(crate) const OPERATION: OperationId = OperationId::from_u128(7);

pub(crate) struct World {
    pub record: ClusterRecord,
    pub observed: Observed,
    pub policy: Policy,
    pub memory: Memory,
}

/// Bytes behind the leader.
pub(crate) fn lag(bytes: u64) -> u64 {
    bytes
}
pub(crate) fn member(name: &str) -> MemberId {
    MemberId::from_u128(u128::from(name.as_bytes()[0]))
}
pub(crate) fn node(name: &str) -> NodeId {
    NodeId::from_u128(u128::from(name.as_bytes()[0]))
}
pub(crate) fn life(name: &str, number: u32) -> Incarnation {
    Incarnation { member: member(name), number }
}
pub(crate) fn at(timeline: u32, lsn: u64) -> Position {
    Position { timeline: Timeline(timeline), lsn: Lsn(lsn) }
}
pub(crate) fn set(names: &[&str], needed: u8) -> SyncSet {
    SyncSet { members: names.iter().map(|name| life(name, 1)).collect(), needed }
}

pub(crate) fn world() -> World {
    let secrets = ClusterSecrets {
        ca_cert_pem: String::new(),
        ca_key_pem: Secret::default(),
        server_cert_pem: String::new(),
        server_key_pem: Secret::default(),
        server_hosts: Default::default(),
        owner_password: Secret::default(),
        consumer_password: None,
    };
    let record = ClusterRecord {
        id: ClusterId::from_u128(1),
        spec: ClusterSpec { members: 0, sync_replicas: Some(0), ..ClusterSpec::named("app") },
        revision: 10,
        created_at: WallTime(0),
        lifecycle: Lifecycle::Active,
        ports: ClusterPorts { postgres: 1, read_write: 2, read_only: 3 },
        postgres_major: 15,
        secrets,
        system_identifier: Some("7".into()),
        members: BTreeMap::new(),
        departed: BTreeMap::new(),
        epoch: Epoch(1),
        leadership: Leadership::Electing { reason: EpochReason::Created, preferred: None },
        configs: Vec::new(),
        history: Vec::new(),
        last_timeline: Timeline(2),
        switchover: None,
        restart: None,
        creating: None,
        planned: Default::default(),
        forced: Vec::new(),
        recovered: None,
        updating: None,
        moving: None,
        fetch: None,
        upstreams: BTreeMap::new(),
        forked: None,
        returned: BTreeMap::new(),
        takes_place: None,
        aside: None,
    };
    let now = Tick::from_millis(100_000);
    let observed = Observed { now, revision: 1, ..Observed::default() };
    World { record, observed, policy: Policy::default(), memory: Memory::default() }
}

impl World {
    fn add(&mut self, name: &str, postgres: PostgresSeen) {
        let id = member(name);
        let held = MemberRecord {
            id,
            name: name.into(),
            node: node(name),
            volume: VolumeId::from_u128(1),
            incarnation: 1,
            restarts: 0,
            standing: Default::default(),
        };
        self.record.members.insert(id, held);
        self.record.spec.members += 1;
        // For ages.
        self.memory.well.insert(id, SeenWell { epoch: Epoch(1), session: 1, since: Tick::from_millis(0) });
        let identity = DataIdentity { incarnation: life(name, 1), system_identifier: "7".into(), postgres_major: 15 };
        let report = MemberReport {
            cluster: self.record.id,
            member: id,
            revision: self.record.revision,
            volume_present: true,
            volume_size: None,
            data: DataSeen::Present(identity),
            promised: self.record.epoch,
            answer: None,
            postgres,
            restarts: 0,
            checkpointed: None,
            set_by: Some(SetBy { epoch: self.record.epoch, revision: self.record.revision }),
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
        };
        let report = NodeReport {
            node: node(name),
            session: 1,
            sequence: 1,
            revision: 1,
            members: vec![report],
            storage: None,
            round_trip_us: None,
            findings: vec![],
        };
        let now = self.observed.now;
        self.observed.hear(report, now);
    }

    /// The confirmed leader of epoch 1 on timeline 2.
    pub fn leader(mut self, name: &str) -> Self {
        let primary = PrimarySeen {
            epoch: Some(Epoch(1)),
            timeline: Timeline(2),
            flushed: Lsn(END),
            fork_lsn: Lsn(FORK),
            parent: None,
            end_of_recovery: Lsn(FORK + 100),
            access: ClientAccess::Open,
            read_only: false,
            sync_set: Some(SyncSet::default()),
            admitted: BTreeSet::new(),
            slots: BTreeSet::new(),
            senders: Vec::new(),
        };
        self.add(name, PostgresSeen::Primary(primary));
        self = self.counts_lease(name);
        self.record.leadership = Leadership::Confirmed { leader: member(name) };
        self.record.configs.push(EpochConfig {
            epoch: Epoch(1),
            leader: life(name, 1),
            timeline: Timeline(2),
            start: at(1, FORK),
            sync_set: SyncSet::default(),
            asynchronous: false,
            possible_loss: None,
            degraded: false,
            target: None,
        });
        self.record.history.push(HistoryEntry {
            epoch: Epoch(1),
            timeline: Timeline(2),
            parent: Timeline(1),
            fork_lsn: Lsn(FORK),
            end_of_recovery: Lsn(FORK + 100),
            leader: member(name),
            possible_loss: None,
        });
        self
    }

    /// Its leader acknowledges alone, and nobody counts.
    pub fn asynchronous(mut self) -> Self {
        self.record.spec.sync_replicas = None;
        self.record.spec.durability = Durability::Asynchronous;
        let config = self.record.configs.last_mut().expect("the test has made a leader");
        config.asynchronous = true;
        config.sync_set = SyncSet::default();
        self
    }
    /// The controller has granted this node a lease so long ago.
    pub fn granted(mut self, name: &str, ago: Duration) -> Self {
        let at = Tick::from_millis(self.observed.now.as_millis() - ago.as_millis() as u64);
        let lease = self.policy.lease;
        self.observed.grant(node(name), at, lease);
        self
    }

    /// By its node's word its guard counts a lease.
    fn counts_lease(self, name: &str) -> Self {
        self.report(name, |report| report.lease = Some(LeaseSeen { remaining_ms: 9000 }))
    }

    /// A standby of the set that streams from the leader of epoch 1.
    pub fn standby(mut self, name: &str, lag: u64) -> Self {
        let leader = self.record.configs[0].leader.member;
        let standby = StandbySeen {
            upstream: Some(Upstream::of(leader, Epoch(1))),
            receiver: Some(ReceiverSeen { streaming: true, silent_ms: 0 }),
            replayed: Lsn(END - lag),
            position: Some(at(2, END - lag)),
            expects: None,
            relays_to: BTreeSet::new(),
            slots: BTreeSet::new(),
            unfinished: None,
            access: ClientAccess::Open,
        };
        self.add(name, PostgresSeen::Standby(standby));
        self.record.spec.sync_replicas = Some(1);
        let set = &mut self.record.configs[0].sync_set;
        set.members.insert(life(name, 1));
        set.needed = 1;
        self.with_primary(|primary| {
            let loaded = primary.sync_set.get_or_insert_default();
            loaded.members.insert(life(name, 1));
            loaded.needed = 1;
            primary.senders.push(SenderSeen {
                name: life(name, 1).to_string(),
                incarnation: Some(life(name, 1)),
                streaming: true,
                flushed: Some(Lsn(END - lag)),
                replayed: Some(Lsn(END - lag)),
            });
        })
    }

    /// What the newest leader's node says of its primary.
    pub fn with_primary(mut self, change: impl FnOnce(&mut PrimarySeen)) -> Self {
        let reports = self.observed.nodes.values_mut().flat_map(|seen| &mut seen.report.members);
        let primary = reports
            .filter_map(|report| match &mut report.postgres {
                PostgresSeen::Primary(primary) => Some(primary),
                _ => None,
            })
            .last();
        change(primary.expect("the test has made a primary"));
        self
    }
    pub fn report(mut self, name: &str, change: impl FnOnce(&mut MemberReport)) -> Self {
        change(&mut self.observed.nodes.get_mut(&node(name)).expect("the test has made it").report.members[0]);
        self
    }
    pub fn recorded(mut self, change: impl FnOnce(&mut ClusterRecord)) -> Self {
        change(&mut self.record);
        self
    }

    /// The node's connection was closed long enough ago.
    pub fn gone(mut self, name: &str) -> Self {
        let seen = self.observed.nodes.get_mut(&node(name)).expect("the test has made it");
        seen.connection = Connection::Closed { at: Tick::from_millis(90_000) };
        self
    }
    pub fn returned(mut self, name: &str) -> Self {
        self.observed.nodes.get_mut(&node(name)).expect("the test has made it").connection = Connection::Open;
        self
    }
    /// The node's connection is open and nothing comes.
    pub fn silent(mut self, name: &str, time: Duration) -> Self {
        let heard = Tick::from_millis(100_000 - time.as_millis() as u64);
        self.observed.nodes.get_mut(&node(name)).expect("the test has made it").heard = heard;
        self
    }
    pub fn down(self, name: &str, clean: Option<CleanStop>) -> Self {
        self.report(name, |report| report.postgres = PostgresSeen::Down { clean })
    }
    /// Its receiver hears nothing from the leader.
    pub fn deaf(self, name: &str) -> Self {
        self.on_standby(name, |standby| standby.receiver = None)
    }
    pub fn on_standby(self, name: &str, change: impl FnOnce(&mut StandbySeen)) -> Self {
        self.report(name, |report| match &mut report.postgres {
            PostgresSeen::Standby(standby) => change(standby),
            _ => panic!("{name} is no standby in this test"),
        })
    }
    pub fn lost_data(self, name: &str) -> Self {
        self.report(name, |report| {
            report.data = DataSeen::Lost { incarnation: life(name, 1) };
            report.volume_present = false;
            report.postgres = PostgresSeen::Down { clean: None };
        })
    }
    /// It has cut its upstream and answered for `epoch`.
    pub fn promised(self, name: &str, epoch: u64, position: Position) -> Self {
        self.report(name, |report| {
            report.promised = Epoch(epoch);
            report.answer = Some(PromiseAnswer { epoch: Epoch(epoch), incarnation: life(name, 1), position });
            report.postgres = PostgresSeen::Standby(StandbySeen {
                upstream: None,
                receiver: None,
                replayed: position.lsn,
                position: Some(position),
                expects: None,
                relays_to: BTreeSet::new(),
                slots: BTreeSet::new(),
                unfinished: None,
                access: ClientAccess::Holding,
            });
        })
    }

    /// Epoch 2 is open.
    pub fn electing(mut self, reason: EpochReason, preferred: Option<&str>) -> Self {
        self.record.epoch = Epoch(2);
        self.record.leadership = Leadership::Electing { reason, preferred: preferred.map(member) };
        self
    }
    /// A person has forced the next epoch.
    pub fn electing_forced(mut self, name: &str) -> Self {
        let (epoch, operation) = (self.record.epoch.next(), OPERATION);
        let (at, by, loss) = (WallTime(0), "ann".to_string(), Default::default());
        self.apply(ClusterChange::ForceEpoch { at, epoch, operation, to: member(name), by, loss })
            .expect("it is forced");
        self
    }
    /// Epoch 2 has chosen `name` where it stood, on timeline 3.
    pub fn chosen(mut self, name: &str, set: SyncSet) -> Self {
        self.record.epoch = Epoch(2);
        self.record.leadership = Leadership::Chosen { leader: member(name) };
        self.record.last_timeline = Timeline(3);
        let start = at(2, END);
        let leader = life(name, 1);
        let asynchronous = self.record.spec.is_asynchronous();
        self.record.configs.push(EpochConfig {
            epoch: Epoch(2),
            leader,
            timeline: Timeline(3),
            start,
            sync_set: set,
            target: None,
            degraded: false,
            asynchronous,
            possible_loss: None,
        });
        self
    }
    /// It runs as the primary of epoch 2, by its report.
    pub fn promotes(self, name: &str) -> Self {
        self.counts_lease(name).report(name, |report| {
            report.postgres = PostgresSeen::Primary(PrimarySeen {
                epoch: Some(Epoch(2)),
                timeline: Timeline(3),
                flushed: Lsn(END + 100),
                fork_lsn: Lsn(END),
                parent: None,
                end_of_recovery: Lsn(END + 100),
                access: ClientAccess::Holding,
                read_only: false,
                sync_set: None,
                admitted: BTreeSet::new(),
                slots: BTreeSet::new(),
                senders: Vec::new(),
            });
        })
    }
    /// Its promotion is recorded.
    pub fn noted(mut self, name: &str) -> Self {
        self.record.leadership = Leadership::Promoted { leader: member(name) };
        self.record.history.push(HistoryEntry {
            epoch: Epoch(2),
            timeline: Timeline(3),
            parent: Timeline(2),
            fork_lsn: Lsn(END),
            end_of_recovery: Lsn(END + 100),
            leader: member(name),
            possible_loss: None,
        });
        self
    }
    pub fn switchover(mut self, from: &str, to: &str, draining: bool) -> Self {
        let (from, to, epoch) = (member(from), member(to), Epoch(1));
        self.record.switchover =
            Some(Switchover { operation: OPERATION, from, to, epoch, draining, for_restart: false });
        self
    }
    pub fn restart(mut self, remaining: &[&str], current: Option<&str>) -> Self {
        let remaining = remaining.iter().map(|name| member(name)).collect();
        let current = current.map(member);
        self.record.restart = Some(Restart { operation: OPERATION, remaining, current, leader_restarted_in: None });
        self
    }

    pub fn later(mut self, time: Duration) -> Self {
        self.observed.now = self.observed.now + time;
        let now = self.observed.now;
        for seen in self.observed.nodes.values_mut().filter(|seen| seen.connection == Connection::Open) {
            seen.heard = now;
        }
        self
    }
    pub fn decide(&mut self) -> Plan {
        decide(&self.record, &self.observed, &self.policy, &mut self.memory)
    }
    /// Decides, and applies what was decided as the record does; says what was refused.
    pub fn decide_and_apply(&mut self) -> Result<Option<ClusterChange>, Refusal> {
        match self.decide().change {
            Some(change) => self.apply(change.clone()).map(|()| Some(change)),
            None => Ok(None),
        }
    }
    fn apply(&mut self, change: ClusterChange) -> Result<(), Refusal> {
        let (id, revision) = (self.record.id, self.record.revision);
        let mut record = Record { clusters: [(id, self.record.clone())].into(), ..Record::default() };
        record.apply(&Command::ChangeCluster { at: WallTime(0), cluster: id, revision, change })?;
        self.record = record.clusters.remove(&id).expect("a change leaves it");
        Ok(())
    }
    /// Codes of the findings.
    pub fn findings(&mut self) -> Vec<String> {
        self.decide().findings.into_iter().map(|finding| finding.code).collect()
    }
}
