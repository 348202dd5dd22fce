//! Replication slots: what they keep, whose they are, and the one that is lost.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use pgstead_types::slots::{SlotKind, SlotSeen};
use pgstead_types::{Bytes, Incarnation};
use support::*;

#[tokio::test]
async fn a_slot_is_seen_with_what_it_keeps_until_it_is_lost() {
    let cluster = Cluster::new();
    let standby = cluster.member(2).await;
    let leader = cluster.leader(1, &[&standby], 1).await;
    cluster.join(&leader, &standby, 1).await;
    let admin = leader.admin().await;
    admin.batch_execute("SELECT pg_create_physical_replication_slot('barman', true)").await.unwrap();

    let seen = leader.instance.slots().await.unwrap();
    assert_eq!((seen.total, seen.budget), (2, Some(Bytes(4 << 30))));
    let of = |slots: &[SlotSeen], name: &str| slots.iter().find(|slot| slot.name == name).cloned();
    let barman = of(&seen.slots, "barman").unwrap();
    assert_eq!(
        (barman.kind, barman.active, barman.lost, barman.member_life()),
        (SlotKind::Physical, false, false, None)
    );
    assert!(barman.retained.is_some(), "{barman:?}");
    let life = standby.instance.config().incarnation;
    let streams = async || of(&leader.instance.slots().await.ok()?.slots, &life.to_string()).filter(|slot| slot.active);
    assert_eq!(until("the standby's slot is in use", streams).await.member_life(), Some(life));
    assert_eq!(standby.instance.slots().await.unwrap().total, 0);

    leader.settings(&[("wal_keep_size", "0"), ("max_slot_wal_keep_size", "64MB"), ("min_wal_size", "32MB")]);
    leader.instance.reload().await.unwrap();
    let write = "CREATE TABLE more (id int); DROP TABLE more; SELECT pg_switch_wal(); CHECKPOINT";
    let kept = async || {
        for text in write.split("; ") {
            admin.batch_execute(text).await.unwrap();
        }
        let seen = leader.instance.slots().await.unwrap();
        assert_eq!(seen.budget, Some(Bytes(64 << 20)));
        assert_eq!(seen.slots[0].name, "barman", "who keeps most comes first: {seen:?}");
        Some(seen.slots[0].clone())
    };
    let half =
        until("it keeps some", async || kept().await.filter(|slot| slot.retained >= Some(Bytes(32 << 20)))).await;
    assert!(!half.lost, "{half:?}");
    let lost = until("it is lost", async || kept().await.filter(|slot| slot.lost)).await;
    assert_eq!(lost.retained, None);
    // The standby has kept up and goes on.
    let life = of(&leader.instance.slots().await.unwrap().slots, &life.to_string()).unwrap();
    assert!(life.active && !life.lost, "{life:?}");
}

#[tokio::test]
async fn a_standby_keeps_slots_that_move_with_it_and_serve_when_it_leads() {
    let cluster = Cluster::new();
    let (standby, third) = (cluster.member(2).await, cluster.member(3).await);
    let leader = cluster.leader(1, &[&standby, &third], 1).await;
    cluster.join(&leader, &standby, 1).await;
    let others = incarnations(&[&leader, &third]);
    let none = incarnations(&[]);
    // On the leader it does nothing: it neither makes nor drops any.
    leader.instance.keep_slots(&[Incarnation { number: 2, ..third.incarnation() }].into(), &none).await.unwrap();
    assert_eq!(leader.primary().await.slots, incarnations(&[&standby, &third]));

    standby.instance.keep_slots(&others, &none).await.unwrap();
    assert_eq!(standby.try_standby().await.unwrap().slots, others);
    let admin = standby.admin().await;
    let of_third = format!("slot_name = '{}'", third.incarnation());
    let restart = format!("SELECT restart_lsn::text FROM pg_replication_slots WHERE {of_third}");
    let first = value(&admin, &restart).await;
    leader.admin().await.batch_execute("CREATE TABLE more (id int)").await.unwrap();
    leader.admin().await.batch_execute("CHECKPOINT").await.unwrap();
    let redo = async || {
        admin.batch_execute("CHECKPOINT").await.ok()?;
        let redo = value(&admin, "SELECT redo_lsn::text FROM pg_control_checkpoint()").await;
        (redo != first).then_some(redo)
    };
    let redo = until("its restartpoint moves", redo).await;
    assert_eq!(value(&admin, &restart).await, first, "by itself it stays");
    standby.instance.keep_slots(&others, &none).await.unwrap();
    assert_eq!(value(&admin, &restart).await, redo);

    // Somebody who streams from here is told nothing else, another life gets its own, and what people made is theirs.
    admin.batch_execute("SELECT pg_create_physical_replication_slot('barman', true)").await.unwrap();
    let anew = Incarnation { number: 2, ..leader.incarnation() };
    let (others, relayed) = ([anew, third.incarnation()].into(), incarnations(&[&third]));
    standby.instance.keep_slots(&others, &relayed).await.unwrap();
    assert_eq!(standby.try_standby().await.unwrap().slots, others);
    assert_eq!(value(&admin, "SELECT count(*)::text FROM pg_replication_slots").await, "3");

    // It leads with the slot that it had.
    standby.instance.cut_upstream().await.unwrap();
    leader.instance.fence().await.unwrap();
    standby.lead(2, 3, &[&third], 1).await;
    assert_eq!(value(&standby.admin().await, &restart).await, redo);
}
