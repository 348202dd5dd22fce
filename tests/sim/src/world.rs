//! The world: machines, a network that delays and is cut, one queue of events on virtual time, and the real consensus
//! beside it. Everything that happens is an event; what is not on a queue does not happen.

use crate::clients::Client;
use crate::faults::{FaultKind, Traps};
use crate::invariants::Checks;
use crate::machine::Machine;
use crate::postgres::Message;
use crate::raft::Raft;
use crate::rng::Rng;
use pgstead_core::Policy;
use pgstead_types::record::{
    ClusterPorts, ClusterRecord, ClusterSecrets, Command, Deployment, EpochReason, Leadership, MemberRecord,
    NewCluster, NodeRecord, Record,
};
use pgstead_types::report::NodeReport;
use pgstead_types::spec::ClusterSpec;
use pgstead_types::{ClusterId, DeploymentId, MemberId, NodeId, OperationId, Secret, Tick, VolumeId, WallTime};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub const CLUSTER: ClusterId = ClusterId::from_u128(0xc1);

/// What can happen, and where.
pub enum Event {
    /// A node's daemon looks at its member.
    Probe {
        node: usize,
        session: u64,
    },
    Heartbeat {
        node: usize,
        session: u64,
    },
    /// The next part of an action.
    Act {
        node: usize,
        session: u64,
        serial: u64,
    },
    Report {
        to: usize,
        from: usize,
        report: Box<NodeReport>,
    },
    ConnectionClosed {
        to: usize,
        from: usize,
        session: u64,
    },
    Decide {
        node: usize,
        session: u64,
    },
    /// Between two Postgres, in order per connection.
    Wire {
        from: usize,
        to: usize,
        connection: u64,
        message: Message,
    },
    Postgres {
        node: usize,
        run: u64,
        what: Inner,
    },
    Client {
        client: usize,
        what: crate::clients::Turn,
    },
    ToPostgres {
        client: usize,
        to: usize,
        row: u64,
    },
    /// Between two daemons, about leases.
    Lease {
        from: usize,
        to: usize,
        message: crate::lease::Message,
    },
    /// A quorum round, for a controller that was frozen when it ended.
    Confirmed {
        ticket: u64,
        confirmed: bool,
    },
    ToClient {
        client: usize,
        from: usize,
        row: u64,
        answer: crate::clients::Answer,
    },
    Fault(crate::faults::Fault),
}

/// What happens inside one Postgres.
pub enum Inner {
    Consistent,
    Recovered,
    StartReceiver,
    EndReceiver {
        connection: u64,
    },
    Flushed {
        upto: usize,
    },
    Replay,
    KeepAlive,
    PromotionBegins,
    PromotionEnds,
    StopTick,
    Fenced,
    /// The guard's timer.
    LeaseOver,
}

impl Event {
    /// The machine that must run for it to happen.
    fn place(&self) -> Option<usize> {
        match self {
            Event::Probe { node, .. }
            | Event::Heartbeat { node, .. }
            | Event::Act { node, .. }
            | Event::Decide { node, .. }
            | Event::Postgres { node, .. } => Some(*node),
            Event::Report { to, .. }
            | Event::ConnectionClosed { to, .. }
            | Event::Lease { to, .. }
            | Event::Wire { to, .. }
            | Event::ToPostgres { to, .. } => Some(*to),
            Event::Client { .. } | Event::ToClient { .. } | Event::Confirmed { .. } | Event::Fault(_) => None,
        }
    }
}

pub struct World {
    pub now: Tick,
    /// The start of the course; the founding of the deployment lies before it.
    pub began: Tick,
    queue: BTreeMap<(Tick, u64), Event>,
    next: u64,
    pub rng: Rng,
    /// For draws that came later: those of `rng` stay what they were, and with them the courses of older seeds.
    pub later: Rng,
    pub raft: Raft,
    pub machines: Vec<Machine>,
    /// The machines before this one may have a member.
    pub members: usize,
    pub clients: Vec<Client>,
    pub policy: Policy,
    /// Directed pairs that carry nothing.
    pub cut: BTreeSet<(usize, usize)>,
    /// Pairs whose replication alone is cut; their daemons still talk.
    pub cut_postgres: BTreeSet<(usize, usize)>,
    /// Packets of Postgres connections that wait for a cut to end.
    pub stalled: Vec<(usize, usize, u64, Message)>,
    /// When the last message of a connection and direction arrives: the next one is not before it.
    pub arrivals: BTreeMap<(u64, usize), Tick>,
    /// Extra time of a way between two members' Postgres, where one standby is farther away than the other.
    pub far_ms: BTreeMap<(usize, usize), u64>,
    /// Percent of reports lost, doubled; and how late they may be, in milliseconds.
    pub report_loss: u64,
    pub report_late_ms: u64,
    /// Records that were the newest before, for nodes that are shown an older one again.
    pub past: VecDeque<Arc<Record>>,
    /// What a node's agent is shown instead of the record that it has applied.
    pub shown: BTreeMap<usize, Arc<Record>>,
    pub tickets: BTreeMap<u64, (usize, u64)>,
    pub serial: u64,
    pub row: u64,
    /// Rows that were left behind by changes of leader that say so.
    pub given_up: BTreeSet<u64>,
    /// The cluster begins as an asynchronous one, and may become one again.
    pub asynchronous: bool,
    /// Another cluster was to take its place, and is to be deleted before the end.
    pub rolled_back: bool,
    pub operation: u128,
    pub checks: Checks,
    pub traps: Traps,
    pub transcript: Vec<String>,
    pub counts: BTreeMap<String, u64>,
    /// The newest record that any node has applied.
    pub record: Arc<Record>,
    seen_events: u64,
    /// Every finding of the present controller, for the transcript and for "why not".
    pub findings: BTreeSet<String>,
}

/// So far back may a restarted node's record be.
const PAST_MAX: usize = 12;

pub fn member_id(n: usize) -> MemberId {
    MemberId::from_u128(0xa0 + n as u128 + 1)
}
pub fn node_id(n: usize) -> NodeId {
    NodeId::from_u128(n as u128 + 1)
}

impl World {
    /// Nodes that have agreed to be a deployment, and a cluster of `members` that is asked for now.
    pub fn new(seed: u64, members: usize, needed: Option<u8>, nodes: usize) -> Self {
        let spec = ClusterSpec { members: members as u8, sync_replicas: needed, ..ClusterSpec::named("app") };
        Self::of(seed, spec, nodes)
    }

    /// The same for a spec named `app`.
    pub fn of(seed: u64, spec: ClusterSpec, nodes: usize) -> Self {
        let members = usize::from(spec.members);
        let raft = Raft::found(seed, nodes);
        let mut world = Self {
            now: Tick::default(),
            began: Tick::default(),
            queue: BTreeMap::new(),
            next: 0,
            rng: Rng::new(seed),
            later: Rng::new(seed ^ 0xFE7C),
            raft,
            machines: (0..nodes).map(Machine::new).collect(),
            members,
            clients: Vec::new(),
            policy: Policy::default(),
            cut: BTreeSet::new(),
            cut_postgres: BTreeSet::new(),
            stalled: Vec::new(),
            arrivals: BTreeMap::new(),
            far_ms: BTreeMap::new(),
            report_loss: 0,
            report_late_ms: 0,
            past: VecDeque::new(),
            shown: BTreeMap::new(),
            tickets: BTreeMap::new(),
            serial: 0,
            row: 0,
            given_up: BTreeSet::new(),
            asynchronous: spec.is_asynchronous(),
            rolled_back: false,
            operation: 1,
            checks: Checks::default(),
            traps: Traps::default(),
            transcript: Vec::new(),
            counts: BTreeMap::new(),
            record: Arc::new(Record::default()),
            seen_events: 0,
            findings: BTreeSet::new(),
        };
        world.now = world.raft.advance(Tick::default());
        world.began = world.now;
        for command in founding(nodes, members, spec) {
            world.serial += 1;
            world.tickets.insert(world.serial, (usize::MAX, 0));
            world.raft.propose(0, world.serial, command);
        }
        for n in 0..nodes {
            world.start_daemon(n);
        }
        world
    }

    pub fn cluster(&self) -> Option<&ClusterRecord> {
        self.record.clusters.get(&CLUSTER)
    }
    /// The machine of the leader that the newest record names.
    pub fn leader(&self) -> Option<usize> {
        let leader = self.cluster()?.leadership.leader()?;
        (0..self.members).find(|n| member_id(*n) == leader)
    }
    pub fn member_name(n: usize) -> String {
        format!("app-{}", n + 1)
    }

    pub fn at(&mut self, time: Tick, event: Event) {
        self.next += 1;
        self.queue.insert((time, self.next), event);
    }
    /// Faults that were drawn and have not come yet do not come any more.
    pub fn forget_faults(&mut self) {
        self.queue.retain(|_, event| !matches!(event, Event::Fault(_)));
    }
    pub fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to))
    }
    pub fn count(&mut self, what: impl Into<String>) {
        *self.counts.entry(what.into()).or_default() += 1;
    }
    pub fn count_fault(&mut self, kind: FaultKind) {
        self.count(crate::tally::of_fault(kind));
    }
    /// What the clock of a node shows now.
    pub fn own(&self, node: usize) -> Tick {
        self.machines[node].clock.shows(self.now)
    }
    /// After a time by the node's own clock.
    pub fn after_own(&mut self, node: usize, delay: Duration, event: Event) {
        self.after(self.machines[node].clock.lasts(delay), event);
    }
    pub fn say(&mut self, text: impl AsRef<str>) {
        let time = self.now.since(self.began).as_micros();
        self.transcript.push(format!("{:>4}.{:03} {}", time / 1_000_000, time / 1000 % 1000, text.as_ref()));
    }

    /// Lets time pass; stops early when an invariant is broken.
    pub fn run_for(&mut self, time: Duration) -> Result<(), String> {
        let end = self.now + time;
        self.run_until(end, |_| false).map(|_| ())
    }

    /// Lets time pass until `done` or `end`; says whether it was `done`.
    pub fn run_until(&mut self, end: Tick, done: impl Fn(&World) -> bool) -> Result<bool, String> {
        loop {
            if done(self) {
                return Ok(true);
            }
            let next = self.queue.first_key_value().map_or(end, |((time, _), _)| *time).min(end);
            self.now = self.raft.advance(next);
            if self.raft.take_changed() {
                self.on_consensus();
                self.check()?;
            }
            let due = self.queue.first_key_value().is_some_and(|((time, _), _)| *time <= self.now);
            if due {
                let Some((_, event)) = self.queue.pop_first() else { continue };
                self.handle(event);
                self.check()?;
            } else if self.now >= end {
                return Ok(done(self));
            }
        }
    }

    fn check(&mut self) -> Result<(), String> {
        crate::invariants::check(self).map_err(|broken| {
            self.say(format!("BROKEN {broken}"));
            broken
        })
    }

    fn handle(&mut self, event: Event) {
        if let Some(machine) = event.place().and_then(|n| self.machines.get_mut(n))
            && machine.frozen
        {
            machine.deferred.push(event);
            return;
        }
        let Some(event) = self.hold_if_hung(event) else { return };
        match event {
            Event::Probe { node, session } => self.on_probe(node, session),
            Event::Heartbeat { node, session } => self.on_heartbeat(node, session),
            Event::Act { node, session, serial } => self.on_act(node, session, serial),
            Event::Report { to, from, report } => self.on_report(to, from, *report),
            Event::ConnectionClosed { to, from, session } => self.on_connection_closed(to, from, session),
            Event::Decide { node, session } => {
                if self.session(node) == Some(session) {
                    self.decide(node);
                }
            }
            Event::Wire { from, to, connection, message } => self.on_wire(from, to, connection, message),
            Event::Postgres { node, run, what } => self.on_postgres(node, run, what),
            Event::Lease { from, to, message } => self.on_lease_message(from, to, message),
            Event::Confirmed { ticket, confirmed } => self.on_confirmed(ticket, confirmed),
            Event::Client { client, what } => self.on_client(client, what),
            Event::ToPostgres { client, to, row } => self.on_write(client, to, row),
            Event::ToClient { client, from, row, answer } => self.on_answer(client, from, row, answer),
            Event::Fault(fault) => self.inflict(fault),
        }
    }

    pub fn session(&self, node: usize) -> Option<u64> {
        self.machines[node].daemon.as_ref().map(|daemon| daemon.session)
    }

    /// Some node has applied something or sees another leader of the consensus.
    fn on_consensus(&mut self) {
        for n in 0..self.machines.len() {
            let record = self.raft.record(n);
            if record.revision > self.record.revision {
                self.past.push_back(std::mem::replace(&mut self.record, record));
                if self.past.len() > PAST_MAX {
                    self.past.pop_front();
                }
            }
        }
        self.note_epoch();
        self.tell_events();
        for (ticket, confirmed) in self.raft.take_confirmed() {
            self.on_confirmed(ticket, confirmed);
        }
        for (ticket, outcome) in self.raft.take_outcomes() {
            self.on_outcome(ticket, outcome);
        }
        for n in 0..self.machines.len() {
            if self.machines[n].frozen {
                continue;
            }
            self.look_at_leadership(n);
            self.touch(n);
        }
    }

    /// Why epochs begin is counted, and whether another member came to lead.
    fn note_epoch(&mut self) {
        let Some(cluster) = self.cluster() else { return };
        let (epoch, leadership) = (cluster.epoch, cluster.leadership.clone());
        let reason = match leadership {
            Leadership::Electing { reason, .. } => Some(reason),
            _ if epoch.0 == 1 => Some(EpochReason::Created),
            _ => None,
        };
        if let Some(reason) = reason.filter(|_| epoch > self.checks.noted_epoch) {
            self.checks.noted_epoch = epoch;
            self.count(crate::tally::of_change(reason));
        }
        if let Leadership::Confirmed { leader } = leadership {
            let first = *self.checks.first_leader.get_or_insert(leader);
            self.checks.changed_leader |= first != leader;
        }
    }

    /// Events of the record go into the transcript.
    fn tell_events(&mut self) {
        let new: Vec<(String, String)> = self
            .record
            .events
            .iter()
            .filter(|event| event.sequence >= self.seen_events)
            .map(|event| (event.kind.clone(), event.message.clone()))
            .collect();
        self.seen_events = self.record.next_event;
        for (kind, message) in new {
            if ["deployment_founded", "node_joined", "join_token_made"].contains(&kind.as_str()) {
                continue;
            }
            self.count(format!("event: {kind}"));
            self.say(format!("record    {kind}: {message}"));
        }
    }

    pub fn thaw(&mut self, n: usize) {
        if !self.machines[n].frozen {
            return;
        }
        self.machines[n].frozen = false;
        self.raft.thaw(n);
        self.end_what_outlived_its_lease(n);
        for event in std::mem::take(&mut self.machines[n].deferred) {
            self.at(self.now, event);
        }
        // Its own clockwork stalled: what it takes for silence of others was its own.
        let now = self.own(n);
        if let Some(controller) = self.machines[n].daemon.as_mut().and_then(|daemon| daemon.controller.as_mut()) {
            controller.observed.since = now;
        }
        self.look_at_leadership(n);
        self.touch(n);
    }
}

/// The member that is made on a machine.
pub(crate) fn member_record(n: usize) -> MemberRecord {
    MemberRecord {
        id: member_id(n),
        name: World::member_name(n),
        node: node_id(n),
        volume: VolumeId::from_u128(n as u128 + 1),
        incarnation: 1,
        restarts: 0,
        standing: Default::default(),
    }
}

fn founding(nodes: usize, members: usize, spec: ClusterSpec) -> Vec<Command> {
    let at = WallTime(0);
    let node = |n: usize| NodeRecord {
        id: node_id(n),
        name: format!("n{}", n + 1),
        host: format!("10.0.0.{}", n + 1),
        port: 7480,
        region: "r".into(),
        zone: crate::cascade::zone(n),
        postgres_majors: vec![15],
        pools: vec!["default".into()],
        joined_at: at,
        service: Default::default(),
    };
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
    let mut commands = vec![Command::Found { at, deployment, node: node(0) }];
    for n in 1..nodes {
        let token = pgstead_types::record::JoinToken {
            id: pgstead_types::TokenId::from_u128(n as u128),
            secret_sha256: String::new(),
            expires_at: WallTime(i64::MAX),
            used_by: None,
        };
        let id = token.id;
        commands.push(Command::AddJoinToken { at, token });
        commands.push(Command::AdmitNode { at, token: id, node: node(n) });
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
    let cluster = NewCluster {
        id: CLUSTER,
        operation: OperationId::from_u128(1),
        spec,
        postgres_major: 15,
        ports: ClusterPorts { postgres: 6000, read_write: 6001, read_only: 6002 },
        secrets,
        members: (0..members).map(member_record).collect(),
    };
    commands.push(Command::CreateCluster { at, cluster: Box::new(cluster) });
    commands
}
