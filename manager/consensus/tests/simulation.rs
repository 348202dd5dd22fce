//! Three nodes on openraft's simulated runtime, with stores in memory: one seed, one course of events.
#![allow(clippy::unwrap_used, reason = "the helpers of a test fail it as its body does")]

mod support;

use openraft_rt_sim::SimRuntime;
use pgstead_consensus::{AsyncRuntime, Consensus, Flush, Leadership, LogPolicy, OpenOptions, StoreAt};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::medium::{Medium, Survives};
use support::{Wire, address, found, id, open, options, token};

type Node = Consensus<SimRuntime>;
const LIMIT: Duration = Duration::from_secs(30);

/// What happened, in order, as strings that two runs can compare.
type Course = Arc<Mutex<Vec<String>>>;

fn at(n: u128, wire: &Arc<Wire<SimRuntime>>, medium: &Medium) -> OpenOptions {
    let store = StoreAt::Backend { name: format!("medium {n}"), backend: Box::new(medium.clone()) };
    OpenOptions { log: LogPolicy { snapshot_every: 10, keep: 3 }, ..options(n, wire, store, Flush::Inline) }
}

/// Notes every change of what `node` believes and has applied, and when, in virtual time.
fn observe(node: &Node, course: &Course) {
    let start = <SimRuntime as AsyncRuntime>::Instant::now();
    let name = node.node().short();
    let (mut leadership, mut record) = (node.watch_leadership(), node.watch_record());
    let (mine, other, theirs) = (course.clone(), course.clone(), name.clone());
    drop(SimRuntime::spawn(async move {
        while let Ok(Leadership { leader, term, am_leader }) = leadership.changed().await {
            let elapsed = (<SimRuntime as AsyncRuntime>::Instant::now() - start).as_micros();
            mine.lock().unwrap().push(format!("{elapsed} {name}: {leader:?} leads term {term}, me: {am_leader}"));
        }
    }));
    drop(SimRuntime::spawn(async move {
        while let Ok(record) = record.changed().await {
            let elapsed = (<SimRuntime as AsyncRuntime>::Instant::now() - start).as_micros();
            other.lock().unwrap().push(format!("{elapsed} {theirs}: revision {}", record.revision));
        }
    }));
}

use openraft::async_runtime::Instant;

async fn leader_of(nodes: &[Node]) -> Node {
    loop {
        for node in nodes {
            if node.leadership().am_leader && node.confirm_leadership(Duration::from_secs(1)).await.is_ok() {
                return node.clone();
            }
        }
        SimRuntime::sleep(Duration::from_millis(10)).await;
    }
}

fn run(seed: u64) -> Vec<String> {
    let course = Course::default();
    let noted = course.clone();
    SimRuntime::with_seed(seed).block_on(async move {
        let wire = Wire::<SimRuntime>::new(Duration::from_millis(3));
        let mut media: Vec<Medium> = (0..3).map(|_| Medium::default()).collect();
        let mut nodes = Vec::new();
        for n in 1..=3 {
            let node = open(&wire, at(n, &wire, &media[n as usize - 1])).await.unwrap();
            observe(&node, &course);
            nodes.push(node);
        }
        nodes[0].initialize(address(1)).await.unwrap();
        let first = leader_of(&nodes[..1]).await;
        first.propose(found(), LIMIT).await.unwrap().unwrap();
        for n in 2..=3 {
            first.add_learner(id(n), address(n), LIMIT).await.unwrap();
        }
        first.change_voters(BTreeSet::from([id(1), id(2), id(3)]), LIMIT).await.unwrap();

        for round in 0..3 {
            let leader = leader_of(&nodes).await;
            for n in 0..15 {
                leader.propose(token(round * 100 + n), LIMIT).await.unwrap().unwrap();
            }
            // The leader's power goes; what it had acknowledged is on its disk and on another.
            let gone = leader.node();
            let place = nodes.iter().position(|node| node.node() == gone).unwrap();
            wire.unplug(gone);
            media[place] = media[place].after_power_cut(Survives::SomeSectors(seed + round as u64));
            nodes.remove(place).stop().await;
            let next = leader_of(&nodes).await;
            next.propose(token(round * 100 + 50), LIMIT).await.unwrap().unwrap();
            let revision = next.record().revision;
            let node = open(&wire, at(place as u128 + 1, &wire, &media[place])).await.unwrap();
            observe(&node, &course);
            let mut record = node.watch_record();
            nodes.insert(place, node);
            SimRuntime::timeout(LIMIT, record.wait_until(|record| record.revision >= revision)).await.unwrap().unwrap();
        }
        let expected = leader_of(&nodes).await.record();
        assert_eq!(expected.join_tokens.len(), 48, "every acknowledged change is there");
        for node in &nodes {
            let mut record = node.watch_record();
            let same = record.wait_until(|record| *record == expected);
            SimRuntime::timeout(LIMIT, same).await.unwrap().unwrap();
        }
    });
    Arc::try_unwrap(noted).map_or_else(|noted| noted.lock().unwrap().clone(), |noted| noted.into_inner().unwrap())
}

#[test]
fn the_same_seed_gives_the_same_leaders_and_revisions() {
    let mut courses = BTreeSet::new();
    for seed in 1..=8 {
        let first = run(seed);
        let second = run(seed);
        for (n, (a, b)) in first.iter().zip(&second).enumerate() {
            assert_eq!(a, b, "seed {seed}, event {n}");
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
        assert!(first.iter().filter(|event| event.contains("me: true")).count() >= 4, "seed {seed}: {first:#?}");
        courses.insert(first);
    }
    assert!(courses.len() > 1, "different seeds should give different courses");
}

/// How long three nodes are without a leader when theirs ends, and whether its followers are told.
fn without_a_leader(seed: u64, told: bool) -> Duration {
    SimRuntime::with_seed(seed).block_on(async move {
        let wire = Wire::<SimRuntime>::new(Duration::from_millis(3));
        let mut nodes = Vec::new();
        for n in 1..=3 {
            nodes.push(open(&wire, at(n, &wire, &Medium::default())).await.unwrap());
        }
        nodes[0].initialize(address(1)).await.unwrap();
        let leader = leader_of(&nodes[..1]).await;
        leader.propose(found(), LIMIT).await.unwrap().unwrap();
        for n in 2..=3 {
            leader.add_learner(id(n), address(n), LIMIT).await.unwrap();
        }
        leader.change_voters(BTreeSet::from([id(1), id(2), id(3)]), LIMIT).await.unwrap();
        leader.propose(token(1), LIMIT).await.unwrap().unwrap();
        let place = nodes.iter().position(|node| node.node() == leader.node()).unwrap();
        // The followers have heard of everything, and of the leader this moment.
        for node in &nodes {
            let mut record = node.watch_record();
            record.wait_until(|record| record.revision >= leader.record().revision).await.unwrap();
        }
        let dead = nodes.remove(place);
        wire.unplug(dead.node());
        dead.stop().await;
        let begun = <SimRuntime as AsyncRuntime>::Instant::now();
        if told {
            nodes[0].succeed(dead.node()).await.unwrap();
        }
        let next = leader_of(&nodes).await;
        let passed = <SimRuntime as AsyncRuntime>::Instant::now() - begun;
        next.propose(token(2), LIMIT).await.unwrap().unwrap();
        assert_eq!(next.record().join_tokens.len(), 2);
        // A leader that lives keeps its office, whoever is said to be dead.
        let other = nodes.iter().find(|node| node.node() != next.node()).unwrap();
        other.succeed(dead.node()).await.unwrap();
        SimRuntime::sleep(Duration::from_secs(3)).await;
        assert_eq!(next.leadership().term, leader_of(&nodes).await.leadership().term);
        passed
    })
}

#[test]
fn followers_that_are_told_of_their_leaders_end_do_not_wait_for_its_silence() {
    for seed in 1..=5 {
        let (told, untold) = (without_a_leader(seed, true), without_a_leader(seed, false));
        // Virtual time: no machine is too slow for it.
        assert!(told < Duration::from_millis(100), "seed {seed}: {told:?}");
        assert!(untold > told * 3, "seed {seed}: {untold:?} without a word of it");
    }
}
