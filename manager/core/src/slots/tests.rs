//! What people are told of slots, by the leader's report.

use crate::observed::testing::*;
use pgstead_types::Bytes;
use pgstead_types::record::ClusterChange;
use pgstead_types::slots::{SlotKind, SlotSeen, SlotsSeen};

fn slot(name: &str, kind: SlotKind, retained: u64) -> SlotSeen {
    SlotSeen {
        name: name.to_string(),
        kind,
        database: (kind == SlotKind::Logical).then(|| "app".to_string()),
        plugin: None,
        active: false,
        retained: Some(Bytes(retained)),
        lost: false,
        failover: false,
        synced: false,
        temporary: false,
        rows_age: None,
        ahead: false,
    }
}

fn with(slots: Vec<SlotSeen>) -> World {
    let total = slots.len() as u32;
    let seen = SlotsSeen { budget: Some(Bytes(1000)), slots, total, ..SlotsSeen::default() };
    let cluster = world().leader("a").standby("b", lag(0)).standby("c", lag(0));
    cluster.report("a", |report| report.slots = Some(seen))
}

fn told(world: &mut World) -> Vec<(String, String)> {
    let findings = world.decide().findings.into_iter().filter(|finding| finding.code.starts_with("slot"));
    findings.map(|finding| (finding.code, finding.message)).collect()
}

#[test]
fn slots_within_their_budget_are_nothing_to_talk_of() {
    let mut world = with(vec![slot("barman", SlotKind::Physical, 699), slot("old", SlotKind::Physical, 0)]);
    assert_eq!(told(&mut world), vec![]);
}

#[test]
fn a_slot_near_its_budget_is_named_with_whose_it_is_and_what_to_do() {
    let member = life("b", 1).to_string();
    let mut world = with(vec![slot(&member, SlotKind::Physical, 987), slot("warehouse", SlotKind::Logical, 712)]);
    let told: Vec<_> = told(&mut world).into_iter().filter(|(code, _)| code == "slot_near_budget").collect();
    let [(_, first), (_, second)] = &told[..] else { panic!("{told:?}") };
    assert!(first.contains("the slot of b") && first.contains("over 90 %") && first.contains("lost first"), "{first}");
    assert!(second.contains("the logical slot warehouse of database app") && second.contains("over 70 %"), "{second}");
    assert!(!second.contains("lost first"), "{second}");
}

#[test]
fn a_lost_slot_is_named() {
    let lost = SlotSeen { lost: true, retained: None, ..slot("warehouse", SlotKind::Logical, 0) };
    let told = told(&mut with(vec![lost]));
    assert!(matches!(&told[..], [(code, text)] if code == "slot_lost" && text.contains("warehouse")), "{told:?}");
}

#[test]
fn without_a_limit_no_slot_is_near_it() {
    let mut world = with(vec![slot("barman", SlotKind::Physical, 10_000)]);
    world = world.report("a", |report| report.slots.as_mut().unwrap().budget = None);
    assert_eq!(told(&mut world), vec![]);
}

#[test]
fn a_logical_slot_that_a_failover_leaves_behind_is_named() {
    let codes = |world: &mut World| -> Vec<String> { told(world).into_iter().map(|(code, _)| code).collect() };
    let logical = slot("warehouse", SlotKind::Logical, 1);
    let newer = |slots| with(slots).recorded(|record| record.postgres_major = 17);
    assert_eq!(codes(&mut newer(vec![logical.clone()])), ["slot_not_kept"], "nobody asked for it");
    let kept = SlotSeen { failover: true, ..logical };
    let mut world = newer(vec![kept.clone()]);
    let found = told(&mut world);
    assert!(matches!(&found[..], [(code, text)] if code == "slot_not_copied" && text.contains("b, c")), "{found:?}");
    let copies = vec![SlotSeen { synced: true, ..kept }];
    let copy = SlotsSeen { slots: copies, total: 1, ..SlotsSeen::default() };
    let unfinished = SlotSeen { temporary: true, ..copy.slots[0].clone() };
    let unfinished = SlotsSeen { slots: vec![unfinished], ..copy.clone() };
    world = world
        .report("b", |report| report.slots = Some(copy.clone()))
        .report("c", |report| report.slots = Some(unfinished));
    let found = told(&mut world);
    assert!(
        matches!(&found[..], [(code, text)] if code == "slot_not_copied" && text.contains(" on c yet")),
        "{found:?}"
    );
    world = world.report("c", |report| report.slots = Some(copy));
    assert_eq!(told(&mut world), vec![]);
}

#[test]
fn before_17_a_slot_is_named_with_who_has_no_copy_of_it_and_how_one_is_made() {
    let kept = SlotSeen { failover: true, ..slot("warehouse", SlotKind::Logical, 1) };
    let copies = |temporary| {
        let copy = SlotSeen { synced: true, temporary, ..slot("warehouse", SlotKind::Logical, 1) };
        Some(SlotsSeen { slots: vec![copy], total: 1, ..SlotsSeen::default() })
    };
    let mut world = with(vec![kept]).report("b", |report| report.slots = copies(true));
    let found = findings_of(&mut world, "slot_not_copied");
    let [text] = &found[..] else { panic!("{found:?}") };
    assert!(text.contains("not complete on b yet") && text.contains("not on c:"), "{text}");
    assert!(text.contains("cluster restart"), "{text}");
    world = world.report("c", |report| report.slots = copies(false)).report("b", |report| report.slots = copies(false));
    assert_eq!(told(&mut world), vec![]);
}

#[test]
fn before_17_members_of_a_minor_version_that_copies_nothing_are_named_with_what_they_need() {
    let kept = SlotSeen { failover: true, ..slot("warehouse", SlotKind::Logical, 1) };
    let runs = |version| Some(SlotsSeen { version: Some(version), ..SlotsSeen::default() });
    let told = |version| {
        let world = with(vec![kept.clone()]).report("b", |report| report.slots = runs(150_013));
        let world = world.report("c", |report| report.slots = runs(150_012));
        let mut world = world.report("a", |report| report.slots.as_mut().unwrap().version = Some(version));
        findings_of(&mut world, "slot_not_copied")
    };
    let found = told(150_018);
    let [text] = &found[..] else { panic!("{found:?}") };
    assert!(text.contains("not on b:") && text.contains("cannot be copied to c:"), "{text}");
    assert!(text.contains("Postgres 15.13 or later"), "{text}");
    let found = told(150_000);
    assert!(matches!(&found[..], [text] if text.contains("cannot be copied to b, c:")), "{found:?}");
}

#[test]
fn before_17_a_restart_hands_over_only_once_the_copies_that_it_made_are_complete() {
    let kept = SlotSeen { failover: true, ..slot("warehouse", SlotKind::Logical, 1) };
    let copies = |temporary| {
        let copy = SlotSeen { synced: true, temporary, ..slot("warehouse", SlotKind::Logical, 1) };
        Some(SlotsSeen { slots: vec![copy], total: 1, ..SlotsSeen::default() })
    };
    let hands_over = |world: World| {
        let change = { world }.restart(&["a"], None).decide().change;
        matches!(change, Some(ClusterChange::RestartLeader { .. }))
    };
    let restarted = |slots: Option<SlotsSeen>| {
        let world = with(vec![kept.clone()]).report("b", |report| report.slots = slots.clone());
        world.report("c", |report| report.slots = slots)
    };
    assert!(!hands_over(restarted(None)), "nobody has looked yet");
    assert!(!hands_over(restarted(copies(true))));
    assert!(hands_over(restarted(copies(false))));
    assert!(hands_over(restarted(Some(SlotsSeen::default()))), "what was not copied is not waited for");
    assert!(hands_over(restarted(copies(true)).recorded(|record| record.postgres_major = 17)));
}

#[test]
fn a_consumer_that_is_ahead_of_its_leader_is_an_error() {
    let slot = SlotSeen { ahead: true, ..slot("warehouse", SlotKind::Logical, 1) };
    let found = findings_of(&mut with(vec![slot]), "consumer_ahead");
    assert!(matches!(&found[..], [text] if text.contains("warehouse") && text.contains("begin anew")), "{found:?}");
}

fn findings_of(world: &mut World, code: &str) -> Vec<String> {
    let found = world.decide().findings.into_iter().filter(|finding| finding.code == code);
    found.map(|finding| finding.message).collect()
}

#[test]
fn who_runs_without_what_was_asked_for_is_named() {
    let runs = |logical| Some(SlotsSeen { logical: Some(logical), ..SlotsSeen::default() });
    let mut world = with(vec![]).recorded(|record| record.spec.logical_replication = true);
    world = world.report("b", |report| report.slots = runs(false)).report("c", |report| report.slots = runs(true));
    let found = findings_of(&mut world, "restart_needed");
    assert!(matches!(&found[..], [text] if text.starts_with("b was started")), "{found:?}");
    world = world.recorded(|record| record.spec.logical_replication = false);
    assert_eq!(findings_of(&mut world, "restart_needed"), Vec::<String>::new());
}

#[test]
fn a_standbys_own_slot_is_named_where_the_leader_has_none_like_it() {
    let kept = SlotSeen { failover: true, ..slot("warehouse", SlotKind::Logical, 1) };
    let other = slot("mine", SlotKind::Logical, 1);
    let held = |slots: Vec<SlotSeen>| SlotsSeen { total: slots.len() as u32, slots, ..SlotsSeen::default() };
    let copy = SlotSeen { synced: true, ..slot("copied", SlotKind::Logical, 1) };
    let own = held(vec![kept.clone(), other, copy]);
    let mut world = with(vec![]).report("b", |report| report.slots = Some(own.clone()));
    let found = findings_of(&mut world, "slot_left_behind");
    assert!(matches!(&found[..], [one, two] if one.contains("warehouse") && two.contains("mine")), "{found:?}");
    // Its node drops that one by itself.
    world = with(vec![kept]).report("b", |report| report.slots = Some(own.clone()));
    let found = findings_of(&mut world, "slot_left_behind");
    assert!(matches!(&found[..], [one] if one.contains("mine")), "{found:?}");
    // What is not listed may be there.
    let many = SlotsSeen { total: 90, ..SlotsSeen::default() };
    world = world.report("a", |report| report.slots = Some(many));
    assert_eq!(findings_of(&mut world, "slot_left_behind").len(), 1);
}

#[test]
fn slots_and_streams_of_people_are_too_many_before_members_lack_any() {
    let slots = |count: usize| (0..count).map(|n| slot(&format!("s{n}"), SlotKind::Physical, 0)).collect::<Vec<_>>();
    let limited = |count: usize| {
        with(slots(count)).report("a", |report| {
            let seen = report.slots.as_mut().unwrap();
            (seen.slots_max, seen.senders_max) = (Some(22), Some(20));
        })
    };
    assert_eq!(findings_of(&mut limited(14), "many_slots"), Vec::<String>::new());
    assert_eq!(findings_of(&mut limited(15), "many_slots").len(), 1);
    assert_eq!(findings_of(&mut limited(20), "slots_full").len(), 1);
    assert_eq!(findings_of(&mut limited(0), "many_senders"), Vec::<String>::new());
}

#[test]
fn a_slot_that_keeps_old_rows_is_named_whosever_it_is() {
    let member = SlotSeen { rows_age: Some(25_000_000), ..slot(&life("b", 1).to_string(), SlotKind::Physical, 1) };
    let young = SlotSeen { rows_age: Some(9_999_999), ..slot("barman", SlotKind::Physical, 1) };
    let found = findings_of(&mut with(vec![member, young]), "slot_keeps_rows");
    assert!(matches!(&found[..], [text] if text.contains("the slot of b") && text.contains("20000000")), "{found:?}");
}
