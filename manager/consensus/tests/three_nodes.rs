//! Three nodes on tokio with files, a writer thread each, and a wire that can be cut.
#![allow(clippy::unwrap_used, reason = "the helpers of a test fail it as its body does")]

mod support;

use pgstead_consensus::{
    Ballot, Consensus, Flush, InitializeError, LogPolicy, MembershipError, OpenError, ProposeError, RaftAddress,
    RaftCall, RaftReply, RaftRpc, RecoveryError, StoreAt, StoreError, Timing, TokioRuntime, check_lost, inspect,
    recover_quorum, start_anew,
};
use pgstead_types::record::{Command, Record, Refusal};
use pgstead_types::{DeploymentId, NodeId, RecoveryId, TokenId, WallTime};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::medium::{Medium, Survives};
use support::{Wire, address, found, id, open, options, token};

type Node = Consensus<TokioRuntime>;

/// Everything here ends within a few elections; more than this is a hang.
const LIMIT: Duration = Duration::from_secs(60);

/// Nobody who leads is deposed because this process stood still for a moment: only where a test wants it.
const CALM: Timing = Timing {
    heartbeat: Duration::from_millis(200),
    election_min: Duration::from_secs(3),
    election_max: Duration::from_secs(4),
};

struct World {
    folder: tempfile::TempDir,
    wire: Arc<Wire<TokioRuntime>>,
    nodes: Vec<Node>,
    log: LogPolicy,
}

impl World {
    /// Node 1 has founded the record; 2 and 3 vote as well.
    async fn of_three() -> Self {
        Self::of_three_with(LogPolicy::default()).await
    }
    async fn of_three_with(log: LogPolicy) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut world = Self { folder, wire: Wire::new(Duration::ZERO), nodes: vec![], log };
        for n in 1..=3 {
            let node = world.open(n).await.unwrap();
            world.nodes.push(node);
        }
        let first = world.node(1);
        first.initialize(address(1)).await.unwrap();
        world.leads(1).await;
        first.propose(found(), LIMIT).await.unwrap().unwrap();
        for n in 2..=3 {
            first.add_learner(id(n), address(n), LIMIT).await.unwrap();
        }
        assert_eq!(first.membership().learners, voters([2, 3]));
        first.change_voters(voters([1, 2, 3]), LIMIT).await.unwrap();
        world
    }
    fn path(&self, n: u128) -> PathBuf {
        self.folder.path().join(format!("{n}.redb"))
    }
    async fn open(&self, n: u128) -> Result<Node, OpenError> {
        let at = StoreAt::File(self.path(n));
        let mut options = options(n, &self.wire, at, Flush::WriterThread);
        options.log = self.log;
        options.timing = CALM;
        open(&self.wire, options).await
    }
    fn node(&self, n: u128) -> Node {
        self.nodes.iter().find(|node| node.node() == id(n)).unwrap().clone()
    }
    async fn stop(&mut self, n: u128) {
        self.wire.unplug(id(n));
        self.node(n).stop().await;
        self.nodes.retain(|node| node.node() != id(n));
    }
    async fn start(&mut self, n: u128) {
        let node = self.open(n).await.unwrap();
        self.nodes.push(node);
    }
    async fn leads(&self, n: u128) {
        let mut watch = self.node(n).watch_leadership();
        within("an election", watch.wait_until(|now| now.am_leader)).await.unwrap();
    }
    /// The node that leads by its own word, is not `without`, and is followed by the others that are not.
    async fn leader(&self, without: Option<NodeId>) -> Node {
        let others: Vec<&Node> = self.nodes.iter().filter(|node| Some(node.node()) != without).collect();
        let mut watch = others[0].watch_leadership();
        let believed = within("an election", watch.wait_until(|now| now.leader.is_some() && now.leader != without));
        let leader = believed.await.unwrap().leader.unwrap();
        let node = others.into_iter().find(|node| node.node() == leader).unwrap().clone();
        within("the leader's own word", node.watch_leadership().wait_until(|now| now.am_leader)).await.unwrap();
        node
    }
}

fn voters<const N: usize>(of: [u128; N]) -> BTreeSet<NodeId> {
    of.into_iter().map(id).collect()
}
fn has(record: &Record, n: u128) -> bool {
    record.join_tokens.contains_key(&TokenId::from_u128(n))
}
async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("no {what} within {LIMIT:?}"))
}
async fn catches_up(node: &Node, revision: u64) -> Arc<Record> {
    let mut watch = node.watch_record();
    within("catching up", watch.wait_until(|record| record.revision >= revision)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_on_the_leader_reaches_every_record() {
    let world = World::of_three().await;
    let leader = world.node(1);
    let applied = leader.propose(token(1), LIMIT).await.unwrap().unwrap();
    assert!(has(&leader.record(), 1), "a proposer finds its own change");
    assert_eq!(leader.record().revision, applied.revision);
    for n in 2..=3 {
        assert_eq!(*catches_up(&world.node(n), applied.revision).await, *leader.record());
    }
    assert_eq!(leader.membership().voters, voters([1, 2, 3]));
    assert!(!leader.membership().changing);
    leader.confirm_leadership(LIMIT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_an_answer_and_the_record_stays() {
    let world = World::of_three().await;
    let before = world.node(1).record();
    let answer = world.node(1).propose(found(), LIMIT).await.unwrap();
    assert!(matches!(answer, Err(Refusal::Exists { .. })));
    assert_eq!(world.node(1).record(), before);
    assert_eq!(world.node(1).initialize(address(1)).await, Err(InitializeError::AlreadyInitialized));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_names_the_leader() {
    let world = World::of_three().await;
    let mut watch = world.node(2).watch_leadership();
    within("news of the leader", watch.wait_until(|now| now.leader == Some(id(1)))).await.unwrap();
    let expected = ProposeError::NotLeader { leader: Some(id(1)) };
    assert_eq!(world.node(2).propose(token(1), LIMIT).await, Err(expected.clone()));
    assert_eq!(world.node(2).confirm_leadership(LIMIT).await, Err(expected));
    assert!(!world.node(2).leadership().am_leader);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_one_and_of_all_keeps_everything() {
    let mut world = World::of_three().await;
    world.node(1).propose(token(1), LIMIT).await.unwrap().unwrap();
    world.stop(3).await;
    let applied = world.node(1).propose(token(2), LIMIT).await.unwrap().unwrap();
    world.start(3).await;
    catches_up(&world.node(3), applied.revision).await;

    let expected = world.node(1).record();
    for n in 1..=3 {
        world.stop(n).await;
    }
    for n in 1..=3 {
        world.start(n).await;
    }
    let leader = world.leader(None).await;
    leader.confirm_leadership(LIMIT).await.unwrap();
    assert_eq!(leader.record(), expected);
    leader.propose(token(3), LIMIT).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_restarted_node_has_its_record_before_it_has_a_quorum() {
    let mut world = World::of_three().await;
    world.node(1).propose(token(1), LIMIT).await.unwrap().unwrap();
    let expected = world.node(1).record();
    for n in 1..=3 {
        world.stop(n).await;
    }
    world.start(1).await;
    assert_eq!(world.node(1).record(), expected);
    assert_eq!(world.node(1).membership().voters, voters([1, 2, 3]));
    assert!(!world.node(1).leadership().am_leader);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lags_past_the_log_gets_the_record_whole() {
    let mut world = World::of_three_with(LogPolicy { snapshot_every: 20, keep: 5 }).await;
    // Snapshots are made beside the work, so how much log is left when the wire heals is not the test's to say: it cuts
    // again until the node has fallen behind what was left.
    let mut next = 0;
    for _round in 0..50 {
        world.wire.cut(id(3));
        let mut last = 0;
        for _ in 0..100 {
            last = world.node(1).propose(token(next), LIMIT).await.unwrap().unwrap().revision;
            next += 1;
        }
        world.wire.heal();
        assert_eq!(*catches_up(&world.node(3), last).await, *world.node(1).record());
        if world.wire.snapshots.load(Ordering::Relaxed) > 0 {
            break;
        }
    }
    assert!(world.wire.snapshots.load(Ordering::Relaxed) > 0, "the log alone should not have sufficed");
    // And keeps it: what it was given is in its file.
    world.stop(3).await;
    world.wire.cut(id(3));
    world.start(3).await;
    assert_eq!(*world.node(3).record(), *world.node(1).record());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_quorum_is_an_answer_and_not_a_hang() {
    let world = World::of_three().await;
    world.wire.cut(id(2));
    world.wire.cut(id(3));
    let leader = world.node(1);
    // While the leader still believes in itself it takes the proposal, and cannot tell what becomes of it. It is given up
    // when the leader does so no more.
    let waited = CALM.election_max + Duration::from_secs(1);
    assert_eq!(leader.propose(token(1), waited).await, Err(ProposeError::OutcomeUnknown { waited }));
    // Then it knows.
    assert_eq!(leader.propose(token(2), LIMIT).await, Err(ProposeError::NoQuorum));
    assert_eq!(leader.confirm_leadership(waited).await, Err(ProposeError::NoQuorum));
    world.wire.heal();
    let leader = world.leader(None).await;
    leader.propose(token(3), LIMIT).await.unwrap().unwrap();
    assert!(!has(&leader.record(), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_leader_records_nothing() {
    let world = World::of_three().await;
    let old = world.node(1);
    world.wire.cut(id(1));
    let term = old.leadership().term;
    let pending = tokio::spawn({
        let old = old.clone();
        async move { old.propose(token(1), LIMIT).await }
    });
    let new = world.leader(Some(id(1))).await;
    assert!(new.leadership().term > term);
    new.propose(token(2), LIMIT).await.unwrap().unwrap();
    assert!(old.propose(token(3), Duration::from_millis(300)).await.is_err());
    world.wire.heal();
    // It was written by a leader that no quorum heard; the new one has overwritten it.
    assert!(matches!(within("an answer", pending).await.unwrap(), Err(ProposeError::LeadershipLost)));
    let mut watch = old.watch_record();
    let record = within("the new record", watch.wait_until(|record| has(record, 2))).await.unwrap();
    assert!(!has(&record, 1) && !has(&record, 3));
    let hint = old.propose(token(4), LIMIT).await.unwrap_err();
    assert_eq!(hint, ProposeError::NotLeader { leader: Some(new.node()) });
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_not_handed_to_a_node_that_does_not_answer() {
    let world = World::of_three().await;
    world.wire.cut(id(2));
    world.node(1).propose(token(1), LIMIT).await.unwrap().unwrap();
    let refused = world.node(1).transfer_leadership(id(2)).await.unwrap_err();
    assert!(refused.to_string().contains("does not answer"), "{refused}");
    world.node(1).propose(token(2), LIMIT).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_on_when_asked() {
    let world = World::of_three().await;
    world.node(1).transfer_leadership(id(2)).await.unwrap();
    world.leads(2).await;
    world.node(2).propose(token(1), LIMIT).await.unwrap().unwrap();
    let stranger = world.node(2).transfer_leadership(id(7)).await.unwrap_err();
    assert!(matches!(stranger, MembershipError::Refused { .. }), "{stranger}");
}

#[tokio::test(flavor = "multi_thread")]
async fn voters_change_by_joint_consensus_and_leave() {
    let world = World::of_three().await;
    let leader = world.node(1);
    let unknown = leader.change_voters(voters([1, 2, 4]), LIMIT).await.unwrap_err();
    assert!(unknown.to_string().contains("add it as a learner first"), "{unknown}");
    leader.change_voters(voters([1, 2]), LIMIT).await.unwrap();
    assert_eq!(leader.membership().learners, voters([3]));
    assert!(leader.remove_learner(id(2), LIMIT).await.is_err(), "a voter cannot be removed");
    leader.remove_learner(id(3), LIMIT).await.unwrap();
    leader.remove_learner(id(3), LIMIT).await.unwrap();
    assert_eq!(leader.membership().addresses.keys().copied().collect::<BTreeSet<_>>(), voters([1, 2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_that_never_answers_gets_no_vote() {
    let world = World::of_three().await;
    let leader = world.node(1);
    leader.add_learner(id(4), address(4), LIMIT).await.unwrap();
    let absent = leader.change_voters(voters([1, 4]), Duration::from_secs(1)).await.unwrap_err();
    assert!(absent.to_string().contains("has not caught up"), "{absent}");
    assert_eq!(leader.membership().voters, voters([1, 2, 3]));
    assert_eq!(leader.peers()[&id(4)].heard_ago, None);
    assert!(leader.peers()[&id(2)].heard_ago.is_some() && !leader.peers().contains_key(&id(1)));
    leader.propose(token(1), LIMIT).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_called_where_it_was_last_said_to_be() {
    let mut world = World::of_three().await;
    world.stop(3).await;
    let moved = RaftAddress { host: "10.9.9.9".into(), port: 7481 };
    world.node(1).add_learner(id(3), moved.clone(), LIMIT).await.unwrap();
    assert_eq!(world.node(1).membership().voters, voters([1, 2, 3]), "an address changes nobody's vote");
    world.start(3).await;
    let applied = world.node(1).propose(token(1), LIMIT).await.unwrap().unwrap();
    catches_up(&world.node(3), applied.revision).await;
    assert_eq!(world.wire.called_at.lock().unwrap()[&id(3)], moved);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_for_another_node_or_deployment_is_refused() {
    let world = World::of_three().await;
    let ballot = Ballot { term: 99, node: id(2), granted_by_quorum: false };
    let call = RaftCall::Vote { ballot, last: None, leadership_transfer: true };
    let good = RaftRpc { deployment: support::DEPLOYMENT, recovery: None, from: id(2), to: id(1), call };
    let elsewhere = RaftRpc { to: id(3), ..good.clone() };
    let foreign = RaftRpc { deployment: DeploymentId::from_u128(1), ..good };
    for rpc in [elsewhere, foreign] {
        assert!(matches!(world.node(1).handle(rpc).await, RaftReply::Refused { .. }));
    }
    assert!(world.node(1).leadership().term < 99);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_another_node_or_deployment_is_refused() {
    let mut world = World::of_three().await;
    world.stop(1).await;
    let other = options(2, &world.wire, StoreAt::File(world.path(1)), Flush::WriterThread);
    let error = open(&world.wire, other).await.err().unwrap();
    assert!(matches!(error, OpenError::Store(StoreError::OtherNode { .. })), "{error}");
    let mut other = options(1, &world.wire, StoreAt::File(world.path(1)), Flush::WriterThread);
    other.deployment = DeploymentId::from_u128(1);
    let error = open(&world.wire, other).await.err().unwrap();
    assert!(matches!(error, OpenError::Store(StoreError::OtherDeployment { .. })), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_the_voter_with_the_reason_and_loses_nothing() {
    let wire = Wire::<TokioRuntime>::new(Duration::ZERO);
    let medium = Medium::default();
    let on = |medium: &Medium| StoreAt::Backend { name: "/data/raft.redb".into(), backend: Box::new(medium.clone()) };
    let node = open(&wire, options(1, &wire, on(&medium), Flush::WriterThread)).await.unwrap();
    node.initialize(address(1)).await.unwrap();
    within("an election", node.watch_leadership().wait_until(|now| now.am_leader)).await.unwrap();
    node.propose(found(), LIMIT).await.unwrap().unwrap();
    node.propose(token(1), LIMIT).await.unwrap().unwrap();
    let acknowledged = node.record();

    medium.fill_up();
    let Err(ProposeError::Stopped { why }) = node.propose(token(2), LIMIT).await else {
        panic!("it should have stopped")
    };
    assert!(why.contains("/data/raft.redb") && why.contains("Free space"), "{why}");
    assert!(within("the end", node.stopped()).await.contains("/data/raft.redb"));
    assert_eq!(node.leadership().leader, None);

    let again = medium.after_power_cut(Survives::Nothing);
    let node = open(&wire, options(1, &wire, on(&again), Flush::WriterThread)).await.unwrap();
    within("an election", node.watch_leadership().wait_until(|now| now.am_leader)).await.unwrap();
    node.confirm_leadership(LIMIT).await.unwrap();
    assert!(has(&node.record(), 1) && node.record().revision >= acknowledged.revision);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_a_newer_version_stops_the_voter_that_cannot_read_it() {
    let wire = Wire::<TokioRuntime>::new(Duration::ZERO);
    let at = StoreAt::Backend { name: "medium".into(), backend: Box::new(Medium::default()) };
    let node = open(&wire, options(3, &wire, at, Flush::WriterThread)).await.unwrap();
    // What a leader of a newer version would send.
    let entry = r#"{"term":5,"index":0,"version":1,"kind":"reticulate","body":{}}"#;
    let entries = vec![serde_json::from_str(entry).unwrap()];
    let ballot = Ballot { term: 5, node: id(2), granted_by_quorum: true };
    let call = RaftCall::Append { ballot, previous: None, entries, committed: None };
    let reply =
        node.handle(RaftRpc { deployment: support::DEPLOYMENT, recovery: None, from: id(2), to: id(3), call }).await;
    let RaftReply::Refused { why } = reply else { panic!("answered {reply:?}") };
    assert!(why.contains("reticulate") && why.contains("no longer votes"), "{why}");
    assert!(within("the end", node.stopped()).await.contains("reticulate"));
}

fn audit(lost: &[u128]) -> Command {
    let lost = lost.iter().map(|n| id(*n)).collect();
    let recovery = RecoveryId::from_u128(6);
    Command::RecoverQuorum { at: WallTime(0), recovery, node: id(3), by: "ann".into(), lost }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_survivor_goes_on_alone_when_most_voters_are_lost_and_the_lost_ones_are_refused() {
    let mut world = World::of_three().await;
    let applied = world.node(1).propose(token(1), LIMIT).await.unwrap().unwrap();
    catches_up(&world.node(3), applied.revision).await;
    for n in 1..=3 {
        world.stop(n).await;
    }
    let at = || StoreAt::File(world.path(3));
    let (lost, recovery) = ([id(1), id(2)].into(), RecoveryId::from_u128(6));
    let seen = inspect(at(), id(3), support::DEPLOYMENT).unwrap();
    assert_eq!((seen.voters.clone(), seen.record.revision), (voters([1, 2, 3]), applied.revision));
    let one_lost = check_lost(&seen, id(3), &[id(1)].into());
    assert!(matches!(one_lost, Err(RecoveryError::QuorumLeft { lost: 1, voters: 3 })), "{one_lost:?}");
    recover_quorum(at(), id(3), support::DEPLOYMENT, address(3), &lost, recovery, audit(&[1, 2])).unwrap();

    world.start(3).await;
    world.leads(3).await;
    let alone = world.node(3);
    assert_eq!(alone.membership().voters, voters([3]));
    alone.propose(token(2), LIMIT).await.unwrap().unwrap();
    assert!(has(&alone.record(), 1) && has(&alone.record(), 2));
    assert!(alone.record().events.iter().any(|event| event.kind == "quorum_recovered"));

    // One that was believed lost comes back with its old store, and its word counts for nothing.
    world.start(1).await;
    let ballot = Ballot { term: 999, node: id(1), granted_by_quorum: true };
    let call = RaftCall::Append { ballot, previous: None, entries: vec![], committed: None };
    let old = RaftRpc { deployment: support::DEPLOYMENT, recovery: None, from: id(1), to: id(3), call };
    let RaftReply::Refused { why } = alone.handle(old).await else { panic!("the old group was heard") };
    assert!(why.contains("--join"), "{why}");
    world.stop(1).await;

    // It starts anew, and is a voter like any other.
    std::fs::rename(world.path(1), world.folder.path().join("aside")).unwrap();
    start_anew(StoreAt::File(world.path(1)), id(1), support::DEPLOYMENT, recovery).unwrap();
    world.start(1).await;
    alone.add_learner(id(1), address(1), LIMIT).await.unwrap();
    alone.change_voters(voters([1, 3]), LIMIT).await.unwrap();
    let applied = alone.propose(token(3), LIMIT).await.unwrap().unwrap();
    catches_up(&world.node(1), applied.revision).await;
    world.stop(1).await;
    let again = start_anew(StoreAt::File(world.path(1)), id(1), support::DEPLOYMENT, recovery);
    assert!(matches!(again, Err(RecoveryError::JoinedAlready(_))), "{again:?}");
}
