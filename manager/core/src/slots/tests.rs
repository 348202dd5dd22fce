//! What people are told of slots, by the leader's report.

use crate::observed::testing::*;
use pgstead_types::Bytes;
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
    }
}

fn with(slots: Vec<SlotSeen>) -> World {
    let total = slots.len() as u32;
    let seen = SlotsSeen { budget: Some(Bytes(1000)), slots, total };
    let cluster = world().leader("a").standby("b", lag(0)).standby("c", lag(0));
    cluster.report("a", |report| report.slots = Some(seen))
}

fn told(world: &mut World) -> Vec<(String, String)> {
    let findings = world.decide().findings.into_iter().filter(|finding| finding.code.starts_with("slot"));
    findings.map(|finding| (finding.code, finding.message)).collect()
}

#[test]
fn slots_within_their_budget_are_nothing_to_talk_of() {
    let mut world = with(vec![slot("warehouse", SlotKind::Logical, 699), slot("old", SlotKind::Physical, 0)]);
    assert_eq!(told(&mut world), vec![]);
}

#[test]
fn a_slot_near_its_budget_is_named_with_whose_it_is_and_what_to_do() {
    let member = life("b", 1).to_string();
    let mut world = with(vec![slot(&member, SlotKind::Physical, 987), slot("warehouse", SlotKind::Logical, 712)]);
    let told = told(&mut world);
    let [(code, first), (_, second)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(code, "slot_near_budget");
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
    let mut world = with(vec![slot("warehouse", SlotKind::Logical, 10_000)]);
    world = world.report("a", |report| report.slots.as_mut().unwrap().budget = None);
    assert_eq!(told(&mut world), vec![]);
}
