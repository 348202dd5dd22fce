//! What the controller knows of the nodes, how old it may be, and the little that it remembers between decisions.

use crate::cascade::{CascadeMemory, Place};
use crate::health::Rebuilds;
use pgstead_types::lease::{LeaseTimes, SILENCE_MS_DEFAULT};
use pgstead_types::record::ClusterRecord;
use pgstead_types::report::{MemberReport, NodeReport, StandbySeen, Upstream};
use pgstead_types::{Epoch, Lsn, MemberId, NodeId, Tick, WallTime};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Times by which the controller judges. The defaults are for nodes within one region.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Silence of a node for so long makes it suspect. Never below 1 s: a busy host is silent for parts of that. About as
    /// long as a receiver waits before it ends, which is what a witness goes by.
    pub suspicion: Duration,
    /// A WAL receiver that has heard nothing for so long says that its sender is silent. On an idle leader it asks for a
    /// sign of life after 0.8 s, and the report of that may be half a second old: anything near 1.4 s would make a
    /// restart of the leader's daemon look like its death. A receiver ends by itself after 1.6 s, so more costs nothing.
    pub witness_silence: Duration,
    /// A closed connection must stay closed for so long: a report on its way may still arrive.
    pub disconnect_grace: Duration,
    /// How long a new controller waits for a node's first report before it treats the node as disconnected.
    pub first_report: Duration,
    /// Once enough have promised, others of the set get so long to promise as well, so that the new set is larger.
    pub promise_patience: Duration,
    /// A switchover's target gets so long to promise before another may be chosen.
    pub preferred_patience: Duration,
    /// Where only a log that was abandoned could lead an asynchronous cluster, the others get so long to come back.
    pub astray_patience: Duration,
    /// A leader that none of its standbys can reach is left for so long before another is elected.
    pub cut_patience: Duration,
    /// A chosen leader gets so long to be promoted.
    pub promotion_deadline: Duration,
    /// Parts of a switchover: the checkpoint, and then the clean stop with the target catching up.
    pub checkpoint_deadline: Duration,
    pub drain_deadline: Duration,
    /// A new leader that was asked for gets so long to let clients in before the switchover is called over.
    pub open_patience: Duration,
    /// One standby's restart.
    pub restart_deadline: Duration,
    /// One that fetches log from another promiser is waited for so long. Nobody leads meanwhile; what is fetched is what a
    /// standby lagged by.
    pub fetch_deadline: Duration,
    /// One that did not get it is told again after this, where nobody else can be elected.
    pub fetch_again: Duration,
    /// A leader whose Postgres accepts connections and answers nothing is left for so long, though its standbys hear its
    /// senders: those go on beside backends that hang.
    pub hung_patience: Duration,
    /// A member that was made anew and is no better is made anew again after this, then after twice as long, and so on.
    pub rebuild_pause: Duration,
    /// So many leaders lost within `lost_window` slow the next change down, where the leader still runs.
    pub lost_max: usize,
    pub lost_window: Duration,
    /// By how much, at most.
    pub brake: Duration,
    /// How long nodes may run primaries without hearing from a controller.
    pub lease: LeaseTimes,
    /// A standby that has not streamed for so long leaves the sync set while enough others stream. Shorter than a
    /// restart would only make it leave and come back.
    pub shrink_after: Duration,
    /// Where commits may go on with fewer standbys, they wait for so long before. Longer than `cut_patience`, so that a
    /// leader that its standbys cannot reach is replaced first.
    pub degrade_after: Duration,
    /// A standby is fed by another one when nothing has changed for so long.
    pub cascade_after: Duration,
    /// A standby that feeds others, or is fed, may be without a stream for so long before that is taken back. On a host that is
    /// loaded, letting go of one upstream and following another takes a second or two.
    pub cascade_patience: Duration,
    /// After that whichever of them had no stream is not tried again for so long, the next time for twice as long, and so on.
    pub cascade_pause: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            suspicion: Duration::from_millis(SILENCE_MS_DEFAULT),
            witness_silence: Duration::from_millis(2500),
            disconnect_grace: Duration::from_millis(30),
            first_report: Duration::from_millis(400),
            promise_patience: Duration::from_millis(100),
            preferred_patience: Duration::from_secs(2),
            astray_patience: Duration::from_secs(60),
            cut_patience: Duration::from_secs(5),
            promotion_deadline: Duration::from_secs(30),
            checkpoint_deadline: Duration::from_secs(120),
            drain_deadline: Duration::from_secs(10),
            open_patience: Duration::from_secs(10),
            restart_deadline: Duration::from_secs(120),
            fetch_deadline: Duration::from_secs(60),
            fetch_again: Duration::from_secs(120),
            hung_patience: Duration::from_secs(10),
            rebuild_pause: Duration::from_secs(60),
            lost_max: 4,
            lost_window: Duration::from_secs(600),
            brake: Duration::from_secs(30),
            lease: LeaseTimes::default(),
            shrink_after: Duration::from_secs(30),
            degrade_after: Duration::from_secs(8),
            cascade_after: Duration::from_secs(10),
            cascade_patience: Duration::from_secs(5),
            cascade_pause: Duration::from_secs(60),
        }
    }
}

/// All that this controller has heard. A node that is absent was never heard: neither healthy nor dead.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub now: Tick,
    /// The time of day, for what people have asked to be done at some time. No safety rests on it.
    pub wall: WallTime,
    /// Revision of the whole record that is decided on. A node that has applied a newer one shows that this is old news.
    pub revision: u64,
    /// Evidence of silence counts from here: when this controller began, or when its own clockwork last stalled.
    pub since: Tick,
    /// Nodes whose daemon was seen to have ended just before this controller began; counts until they report.
    pub ended: BTreeSet<NodeId>,
    /// When this controller was elected, or later. Leases that others have granted began before.
    pub elected: Tick,
    pub nodes: BTreeMap<NodeId, NodeSeen>,
    /// Where the nodes are, by the record.
    pub places: BTreeMap<NodeId, Place>,
    /// By when what this controller has granted to a node is over, margin included. One entry for each node that had any.
    pub leases: BTreeMap<NodeId, Tick>,
}

/// One node.
#[derive(Clone, Debug)]
pub struct NodeSeen {
    pub connection: Connection,
    /// When the last report arrived.
    pub heard: Tick,
    pub report: NodeReport,
    /// Earlier sessions of its daemon, the last few: a late report of one of them says nothing of now.
    pub ended_sessions: Vec<u64>,
}

/// Restarts of a daemon within the time that a report can be late.
const ENDED_SESSIONS_MAX: usize = 8;

/// The connection on which a node's reports arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Connection {
    Open,
    /// It was closed by the other side and no other has been opened since.
    Closed {
        at: Tick,
    },
}

/// How a node looks now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Presence {
    /// Reports arrive.
    Fresh,
    /// Not long enough gone to conclude anything.
    Doubtful { until: Tick },
    /// Its connection is closed, or it never reported to this controller.
    Gone,
    /// Its connection is open and nothing comes.
    Silent { since: Tick },
}

impl Observed {
    /// Takes in a report that arrived at `at`, unless a newer one is known; says whether it did. What it does not repeat of its
    /// storage is as it was.
    pub fn hear(&mut self, mut report: NodeReport, at: Tick) -> bool {
        let Some(seen) = self.nodes.get_mut(&report.node) else {
            let node = report.node;
            let seen = NodeSeen { connection: Connection::Open, heard: at, report, ended_sessions: Vec::new() };
            self.nodes.insert(node, seen);
            return true;
        };
        if seen.report.session == report.session {
            if report.sequence <= seen.report.sequence {
                return false;
            }
            report.storage = report.storage.or_else(|| seen.report.storage.take());
        } else if seen.ended_sessions.contains(&report.session) {
            return false;
        } else {
            seen.ended_sessions.push(seen.report.session);
            if seen.ended_sessions.len() > ENDED_SESSIONS_MAX {
                seen.ended_sessions.remove(0);
            }
        }
        seen.connection = Connection::Open;
        seen.heard = at;
        seen.report = report;
        true
    }

    /// The connection on which `session` of a node reported was closed by the other side; says whether it was its last.
    pub fn closed(&mut self, node: NodeId, session: u64, at: Tick) -> bool {
        match self.nodes.get_mut(&node) {
            Some(seen) if seen.report.session == session && seen.connection == Connection::Open => {
                seen.connection = Connection::Closed { at };
                true
            }
            _ => false,
        }
    }

    /// A lease is granted to a node, and its answer leaves at `at`, not before this is called.
    pub fn grant(&mut self, node: NodeId, at: Tick, lease: LeaseTimes) {
        let end = at + lease.lease + lease.margin();
        let held = self.leases.entry(node).or_default();
        *held = end.max(*held);
    }

    /// From when on no lease that the node can know of lasts, as of the grants until now.
    pub(crate) fn lease_end(&self, node: Option<NodeId>, policy: &Policy) -> Tick {
        let of_others = self.elected + policy.lease.lease + policy.lease.margin();
        let own = node.and_then(|node| self.leases.get(&node)).copied().unwrap_or_default();
        of_others.max(own)
    }

    /// What this controller or one before it has granted to the node that is good for `leader` is over.
    pub(crate) fn lease_is_over(&self, cluster: &ClusterRecord, leader: MemberId, policy: &Policy) -> bool {
        let node = cluster.members.get(&leader).map(|member| member.node);
        self.now >= self.lease_end(node, policy)
    }

    pub(crate) fn presence(&self, node: NodeId, policy: &Policy) -> Presence {
        let Some(seen) = self.nodes.get(&node) else {
            if self.ended.contains(&node) {
                return Presence::Gone;
            }
            let until = self.since + policy.first_report;
            return if self.now >= until { Presence::Gone } else { Presence::Doubtful { until } };
        };
        if let Connection::Closed { at } = seen.connection {
            let until = at + policy.disconnect_grace;
            return if self.now >= until { Presence::Gone } else { Presence::Doubtful { until } };
        }
        let since = seen.heard.max(self.since);
        if self.now.since(since) < policy.suspicion { Presence::Fresh } else { Presence::Silent { since: seen.heard } }
    }

    /// The last report of a member, whatever its age. Also of one that has left.
    pub(crate) fn last(&self, cluster: &ClusterRecord, member: MemberId) -> Option<&MemberReport> {
        let node = cluster.held(member)?.node;
        self.nodes
            .get(&node)?
            .report
            .members
            .iter()
            .find(|report| report.member == member && report.cluster == cluster.id)
    }

    /// The report of a member whose node is here now.
    pub(crate) fn fresh(&self, cluster: &ClusterRecord, member: MemberId, policy: &Policy) -> Option<&MemberReport> {
        let node = cluster.held(member)?.node;
        match self.presence(node, policy) {
            Presence::Fresh => self.last(cluster, member),
            Presence::Doubtful { .. } | Presence::Gone | Presence::Silent { .. } => None,
        }
    }

    /// Time since a member's node was heard, to be added to ages inside its report.
    pub(crate) fn report_age(&self, cluster: &ClusterRecord, member: MemberId) -> Duration {
        let node = cluster.members.get(&member).map(|member| member.node);
        node.and_then(|node| self.nodes.get(&node)).map_or(Duration::MAX, |seen| self.now.since(seen.heard))
    }
}

/// What standbys say of the leader's Postgres.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Witnesses {
    /// Fresh standbys that stream from it.
    pub hearing: usize,
    /// Fresh standbys that do not.
    pub deaf: usize,
    /// Fresh standbys of which neither is known: another standby feeds them, or they may not have been let in yet.
    pub mute: usize,
    /// Hearing ones become deaf at the earliest after this, if they hear nothing more.
    pub next: Option<Duration>,
}

pub(crate) fn witnesses(cluster: &ClusterRecord, observed: &Observed, policy: &Policy, leader: MemberId) -> Witnesses {
    let mut count = Witnesses::default();
    for member in cluster.members.keys().filter(|id| **id != leader) {
        let Some(report) = observed.fresh(cluster, *member, policy) else { continue };
        let Some(standby) = report.as_standby() else { continue };
        // One that another standby feeds hears that one, or is on its way to it.
        let is_fed =
            cluster.relay_of(*member).is_some() || standby.upstream.is_some_and(|upstream| upstream.relay.is_some());
        match hears(standby, Upstream::of(leader, cluster.epoch), observed.report_age(cluster, *member), policy) {
            Some(left) => {
                count.hearing += 1;
                count.next = Some(count.next.map_or(left, |next| next.min(left)));
            }
            None if is_fed || !may_stream(cluster, observed, policy, leader, *member) => count.mute += 1,
            None => count.deaf += 1,
        }
    }
    count
}

/// Whether it says something of the leader that this standby does not hear it. One that was sent back from another standby gets
/// in only when the leader's own node has seen that; when the lease is over, the leader acknowledges nothing alone, and
/// synchronous ones are elected by those who never were elsewhere.
fn may_stream(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    leader: MemberId,
    member: MemberId,
) -> bool {
    let Some(life) = cluster.members.get(&member).map(|member| member.current()) else { return false };
    let Some(revision) = cluster.returned.get(&life) else { return true };
    let let_in = observed.last(cluster, leader).is_some_and(|report| {
        let primary = report.as_primary().filter(|primary| primary.epoch == Some(cluster.epoch));
        report.revision >= *revision
            && primary.is_some_and(|primary| primary.admitted.contains(&life) && primary.slots.contains(&life))
    });
    let_in || observed.lease_is_over(cluster, leader, policy)
}

/// Whether a standby's receiver hears its upstream, and for how long that statement is still good.
pub(crate) fn hears(standby: &StandbySeen, upstream: Upstream, age: Duration, policy: &Policy) -> Option<Duration> {
    let receiver = standby.receiver.filter(|receiver| receiver.streaming && standby.upstream == Some(upstream))?;
    let silent = Duration::from_millis(receiver.silent_ms).saturating_add(age);
    policy.witness_silence.checked_sub(silent).filter(|left| !left.is_zero())
}

/// What the controller keeps between two decisions about a cluster: since when something has been so. Losing it (a new
/// controller) only makes it wait anew.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Memory {
    /// The cluster's revision at which the present phase was first seen, and when.
    pub(crate) phase: Option<(u64, Tick)>,
    /// Since when enough promises are there.
    pub(crate) electable: Option<Tick>,
    /// Since when the leader runs with too few standbys that hear it.
    pub(crate) cut: Option<Tick>,
    /// Since when the leader's Postgres answers nobody while its standbys hear it.
    pub(crate) hung: Option<Tick>,
    /// Leaders that were lost lately, with the epoch that each led, oldest first.
    pub(crate) lost: Vec<(Epoch, MemberId, Tick)>,
    /// Epochs whose promotion failed, since the last one that was confirmed, and when.
    pub(crate) failed: BTreeMap<Epoch, Tick>,
    pub(crate) rebuilds: BTreeMap<MemberId, Rebuilds>,
    /// In an open epoch: when the old leader's lease is over, by what was granted before the epoch was seen open.
    pub(crate) lease_until: Option<Tick>,
    /// How far the asynchronous leader of that epoch had flushed, by its last report.
    pub(crate) flushed: Option<(Epoch, Lsn)>,
    /// Members, while they are well.
    pub(crate) well: BTreeMap<MemberId, crate::members::SeenWell>,
    /// While there are more members than asked for: since when one that was to stay is away or not well.
    pub(crate) missed: BTreeMap<MemberId, Tick>,
    /// Of the present leader's sync set.
    pub(crate) set: crate::sync_set::SetMemory,
    pub(crate) cascade: CascadeMemory,
}

impl Memory {
    /// When the record of this cluster last changed, as far as this controller has seen.
    pub(crate) fn phase_began(&mut self, cluster: &ClusterRecord, now: Tick) -> Tick {
        match self.phase {
            Some((revision, at)) if revision == cluster.revision => at,
            _ => {
                self.phase = Some((cluster.revision, now));
                self.electable = None;
                self.cut = None;
                self.hung = None;
                self.lease_until = None;
                now
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;
