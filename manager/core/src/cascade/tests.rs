//! Who is to be fed by whom, when that begins and when it ends.

use super::*;
use crate::observed::testing::{World, life, member, node, world};
use pgstead_types::record::{Standing, SyncSet};
use pgstead_types::report::{PostgresSeen, ReceiverSeen};
use pgstead_types::spec::Cascade;
use pgstead_types::{Epoch, Trouble};
use std::time::Duration;

const CALM: Duration = Duration::from_secs(11);

/// a leads in zone 1, where c is as well; b, d and e are in zone 2.
fn placed(mut world: World) -> World {
    for (name, zone) in [("a", "1"), ("b", "2"), ("c", "1"), ("d", "2"), ("e", "2")] {
        let node = NodeId::from_u128(u128::from(name.as_bytes()[0]));
        world.observed.places.insert(node, Place { region: "r".into(), zone: zone.into() });
    }
    world.record.spec.cascade = Cascade::Zone;
    world
}
fn five() -> World {
    placed(world().leader("a").standby("b", 0).standby("c", 0).standby("d", 0).standby("e", 0))
}
fn asynchronous() -> World {
    let mut world = five().asynchronous();
    world.record.configs[0].sync_set = SyncSet::default();
    world.with_primary(|primary| primary.sync_set = Some(SyncSet::default()))
}
/// `name` streams from `relay`, by the record and its own report; the leader has no sender for it.
fn fed(mut world: World, name: &str, relay: &str) -> World {
    let upstream = Upstream { relay: Some(member(relay)), ..Upstream::of(member("a"), Epoch(1)) };
    world.record.upstreams.insert(life(name, 1), life(relay, 1));
    let sender = life(name, 1);
    world
        .on_standby(name, |standby| standby.upstream = Some(upstream))
        .with_primary(|primary| primary.senders.retain(|held| held.incarnation != Some(sender)))
}
fn orders(world: &mut World) -> Option<Vec<(MemberId, MemberId)>> {
    match world.decide().change? {
        ClusterChange::SetUpstreams { upstreams, .. } => {
            Some(upstreams.into_iter().map(|(one, relay)| (one.member, relay.member)).collect())
        }
        other => panic!("{other:?}"),
    }
}
fn none() -> Option<Vec<(MemberId, MemberId)>> {
    Some(Vec::new())
}

#[test]
fn one_of_a_zone_feeds_the_others_once_nothing_changes() {
    let mut world = asynchronous();
    let plan = world.decide();
    assert_eq!((plan.change, plan.wake_at), (None, Some(world.observed.now + world.policy.cascade_after)));
    let mut world = world.later(CALM);
    let (b, d, e) = (member("b"), member("d"), member("e"));
    assert_eq!(orders(&mut world), Some(vec![(d, b), (e, b)]));
    let mut settled = fed(fed(asynchronous(), "d", "b"), "e", "b");
    settled.decide();
    let mut settled = settled.later(CALM);
    assert_eq!(settled.decide().change, None);
    assert_eq!(settled.findings(), Vec::<String>::new());
}

#[test]
fn without_the_option_or_a_zone_of_two_everybody_streams_from_the_leader() {
    let mut off = asynchronous().recorded(|record| record.spec.cascade = Cascade::None);
    off.decide();
    assert_eq!(off.later(CALM).decide().change, None);
    let mut apart = placed(world().leader("a").standby("b", 0).standby("c", 0)).asynchronous();
    apart.decide();
    assert_eq!(apart.later(CALM).decide().change, None);
    let mut switched_off = fed(asynchronous(), "d", "b").recorded(|record| record.spec.cascade = Cascade::None);
    assert_eq!(orders(&mut switched_off), none());
}

#[test]
fn a_sync_set_keeps_one_more_than_a_commit_needs_and_the_spared_leave_it_first() {
    let mut world = five();
    assert_eq!(world.decide().change, None, "something may have changed just now");
    let mut world = world.later(CALM);
    match world.decide_and_apply() {
        // Of b, c, d and e two are enough: b feeds d and e.
        Ok(Some(ClusterChange::SetSyncSet { set, .. })) => {
            assert_eq!(set.members, [life("b", 1), life("c", 1)].into());
        }
        other => panic!("{other:?}"),
    }
    // It is on its way; nobody comes back into the set meanwhile, and nobody is fed before it is settled.
    assert_eq!(world.decide().change, None);
    let two = SyncSet { members: [life("b", 1), life("c", 1)].into(), needed: 2 };
    let mut short = five().recorded(|record| {
        record.configs[0].sync_set = SyncSet { needed: 2, ..two.clone() };
        record.spec.sync_replicas = Some(2);
    });
    short.decide();
    match short.later(CALM).decide().change {
        Some(ClusterChange::SetSyncSet { set, .. }) => assert!(set.members.len() > 2, "{set:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_order_is_taken_back_when_the_relay_is_not_well() {
    let world = || fed(asynchronous(), "d", "b");
    assert_eq!(orders(&mut world().gone("b").deaf("d")), none());
    let down = PostgresSeen::Down { clean: None };
    assert_eq!(orders(&mut world().report("b", |report| report.postgres = down)), none());
    let trouble = Trouble::Unwritable { why: "full".into() };
    assert_eq!(orders(&mut world().report("b", |report| report.troubles.push(trouble))), none());
    let mut quiet = world();
    quiet.decide();
    assert_eq!(quiet.decide().change, None, "it is well");
}

#[test]
fn a_stream_that_is_cut_for_a_moment_is_waited_for_and_then_not_tried_again_for_a_while() {
    for cut in ["b", "d"] {
        let mut world = fed(asynchronous(), "d", "b").deaf(cut);
        let until = world.observed.now + world.policy.cascade_patience;
        let plan = world.decide();
        assert_eq!((plan.change, plan.wake_at), (None, Some(until)), "{cut}");
        let patience = world.policy.cascade_patience;
        let mut world = world.later(patience);
        assert_eq!(orders(&mut world), none(), "{cut}");
        assert!(world.memory.cascade.is_paused(member(cut), world.observed.now), "{cut}");
    }
}

#[test]
fn an_order_that_cannot_work_is_tried_ever_more_rarely() {
    let mut memory = CascadeMemory::default();
    let policy = Policy::default();
    let (d, b) = (member("d"), member("b"));
    let mut now = Tick::from_millis(1_000);
    let mut pauses = Vec::new();
    for _ in 0..9 {
        memory.broken_since(d, true, now);
        memory.pause(d, b, now, &policy);
        assert!(!memory.paused.contains_key(&b), "its relay streams");
        pauses.push(memory.paused[&d].until.since(now).as_secs() / 60);
        now = memory.paused[&d].until;
        assert!(!memory.is_paused(d, now));
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
    // The next decision keeps it in mind for a while.
    let mut world = asynchronous();
    world.memory.cascade.paused.insert(d, Pause { until: world.observed.now, times: 3 });
    world.decide();
    assert_eq!(world.memory.cascade.paused[&d].times, 3);
    let mut world = world.later(policy.cascade_pause * PAUSES_KEPT);
    world.decide();
    assert!(world.memory.cascade.paused.is_empty());
}

#[test]
fn a_relay_whose_node_is_away_for_a_moment_or_was_not_heard_yet_goes_on() {
    // A new controller hears the leader first.
    let mut world = fed(asynchronous(), "d", "b");
    let nodes = std::mem::take(&mut world.observed.nodes);
    world.observed.since = world.observed.now;
    world.observed.nodes = nodes.iter().filter(|(id, _)| **id == node("a")).map(|(id, n)| (*id, n.clone())).collect();
    assert_eq!(world.decide().change, None, "nobody else was heard");
    // Then of the relay that its connection is closed, and from the one that it feeds that all is well.
    world.observed.nodes = nodes;
    let mut away = world.gone("b");
    assert_eq!(away.decide().change, None, "its Postgres streams and feeds");
    // Who joins the zone now cannot be let in there.
    let mut away = away.later(CALM);
    assert_eq!(away.decide().change, None);
    // Its Postgres is gone as well, by the word of either end.
    let sender = life("b", 1);
    let mut ended = away.with_primary(|primary| primary.senders.retain(|held| held.incarnation != Some(sender)));
    assert_eq!(orders(&mut ended), none());
}

#[test]
fn more_is_asked_for_only_when_those_who_are_fed_are_back() {
    // Of b, c and e two were enough to spare d; three are not.
    let mut world = fed(five(), "d", "b").recorded(|record| {
        record.configs[0].sync_set = SyncSet { members: ["b", "c", "e"].map(|name| life(name, 1)).into(), needed: 2 };
        record.spec.sync_replicas = Some(3);
    });
    let set = world.record.configs[0].sync_set.clone();
    world = world.with_primary(|primary| primary.sync_set = Some(set));
    assert_eq!(orders(&mut world), none());
}

#[test]
fn a_fed_member_is_no_witness_and_becomes_one_when_its_relay_is_gone_with_the_leader() {
    let mut world = fed(placed(world().leader("a").standby("b", 0).standby("d", 0)).asynchronous(), "d", "b");
    world = world.gone("a").gone("b").deaf("d");
    assert_eq!(world.findings(), ["no_witness"]);
    assert!(matches!(world.decide_and_apply(), Ok(Some(ClusterChange::SetUpstreams { .. }))));
    // It is told to stream from the leader, and hears nothing of it.
    let mut world = sent_back(world, "d");
    assert_eq!(world.findings().first().map(String::as_str), Some("leader_lost"));
}

/// It has let go of its relay, and nobody lets it in.
fn sent_back(world: World, name: &str) -> World {
    let told = Upstream::of(member("a"), Epoch(1));
    world.on_standby(name, |standby| {
        standby.upstream = Some(told);
        standby.receiver = None;
    })
}

#[test]
fn while_the_leader_may_acknowledge_a_fed_stream_is_not_cut_and_who_is_sent_back_is_no_witness() {
    let three = || {
        let world = placed(world().leader("a").standby("b", 0).standby("d", 0)).asynchronous();
        fed(world.granted("a", Duration::from_secs(2)), "d", "b")
    };
    // Two daemons are restarted. Both Postgres go on, and d gets every commit.
    let mut world = three().gone("a").gone("b");
    let end = world.observed.lease_end(Some(node("a")), &world.policy);
    let plan = world.decide();
    assert_eq!((plan.change, plan.wake_at), (None, Some(end)));
    assert_eq!(world.findings(), ["no_witness"]);
    // It may refuse elections for a leader that goes on by that word.
    let over = end.since(world.observed.now);
    let refusing = pgstead_types::report::RefusalSeen { epoch: Epoch(1), remaining_ms: 5000 };
    let mut asked = three().gone("a").gone("b").report("d", |report| report.refusing = Some(refusing)).later(over);
    assert_eq!(asked.decide().change, None);
    let mut world = world.later(over);
    assert_eq!(orders(&mut world), none(), "it acknowledges nothing any more");

    // The relay has really gone: d is sent back, and only the leader's node can let it in.
    let mut world = three().gone("a").gone("b").deaf("d");
    assert!(matches!(world.decide_and_apply(), Ok(Some(ClusterChange::SetUpstreams { .. }))));
    let mut cutting = sent_back(world, "d").on_standby("d", |standby| standby.upstream = None);
    assert_eq!(cutting.findings(), ["no_witness"]);
    let mut world = sent_back(cutting, "d");
    let plan = world.decide();
    assert_eq!((plan.change, plan.wake_at), (None, Some(end)));
    assert_eq!(world.findings(), ["no_witness"]);
    // The leader's node has let it in before it went away: that it hears nothing is a word.
    let revision = world.record.revision;
    let mut let_in = world.with_primary(|primary| {
        primary.admitted = [life("d", 1)].into();
        primary.slots = primary.admitted.clone();
    });
    assert_eq!(let_in.findings(), ["no_witness"], "that was before it was sent to b");
    let mut known = let_in.report("a", |report| report.revision = revision);
    assert_eq!(known.findings().first().map(String::as_str), Some("leader_lost"));
    // Or its lease is over.
    let mut late = known.report("a", |report| report.revision = 1).later(over);
    assert_eq!(late.findings().first().map(String::as_str), Some("leader_lost"));
}

#[test]
fn a_leader_that_hangs_is_replaced_though_those_who_are_here_are_no_witnesses() {
    let hung = PostgresSeen::Unresponsive { why: "no answer".into() };
    let mut world = fed(placed(world().leader("a").standby("b", 0).standby("d", 0)).asynchronous(), "d", "b")
        .granted("a", Duration::ZERO)
        .report("a", |report| report.postgres = hung)
        .gone("b");
    assert_eq!(world.findings(), ["leader_unresponsive"]);
    let patience = world.policy.hung_patience;
    assert_eq!(world.later(patience).findings().first().map(String::as_str), Some("leader_hung"));
}

#[test]
fn what_a_relay_refuses_is_no_reason_to_copy_anew() {
    let refused = Trouble::StreamRefused { why: "it is gone".into() };
    let mut world = fed(asynchronous(), "d", "b")
        .on_standby("d", |standby| standby.receiver = Some(ReceiverSeen { streaming: false, silent_ms: 0 }))
        .report("d", |report| report.troubles.push(refused.clone()));
    assert_eq!(world.decide().change, None);
    let mut direct = asynchronous()
        .on_standby("d", |standby| standby.receiver = None)
        .report("d", |report| report.troubles.push(refused));
    assert!(matches!(direct.decide().change, Some(ClusterChange::Rebuild { .. })));
}

fn standing(world: World, name: &str, standing: Standing) -> World {
    world.recorded(|record| record.members.get_mut(&member(name)).unwrap().standing = standing)
}
/// One member fewer is asked for than there are, and `name` is to go.
fn leaving(world: World, name: &str) -> World {
    standing(world, name, Standing::Leaving).recorded(|record| record.spec.members -= 1)
}

#[test]
fn who_joins_or_leaves_neither_feeds_nor_is_fed() {
    let calm = |mut world: World| {
        world.decide();
        world.later(CALM)
    };
    let (d, e) = (member("d"), member("e"));
    assert_eq!(orders(&mut calm(standing(asynchronous(), "b", Standing::Joining))), Some(vec![(e, d)]));
    let removes = |name| Some(ClusterChange::RemoveMember { member: member(name) });
    assert_eq!(calm(leaving(asynchronous(), "c")).decide().change, removes("c"), "nothing begins meanwhile");
    assert_eq!(leaving(fed(asynchronous(), "d", "b"), "e").decide().change, removes("e"), "what there is goes on");
    for leaves in ["b", "d"] {
        assert_eq!(orders(&mut leaving(fed(asynchronous(), "d", "b"), leaves)), none(), "{leaves}");
    }
}

#[test]
fn one_that_leaves_is_missed_where_somebody_is_fed_until_that_one_is_back() {
    let counted = |world: World, names: &[&str]| {
        let set = SyncSet { members: names.iter().map(|name| life(name, 1)).collect(), needed: 1 };
        let loaded = set.clone();
        world
            .recorded(|record| record.configs[0].sync_set = set)
            .with_primary(|primary| primary.sync_set = Some(loaded))
    };
    let four = placed(world().leader("a").standby("b", 0).standby("d", 0).standby("e", 0));
    let mut few = leaving(counted(fed(four, "d", "b"), &["b", "e"]), "e");
    assert_eq!(orders(&mut few), none());
    let mut enough = leaving(counted(fed(five(), "d", "b"), &["b", "c", "e"]), "e");
    match enough.decide().change {
        Some(ClusterChange::SetSyncSet { set, .. }) => assert_eq!(set.members, [life("b", 1), life("c", 1)].into()),
        other => panic!("{other:?}"),
    }
}
