//! Copying, following, synchronous commits, and who may do so.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use pgstead_replication::instance::{CutStep, InstanceError, UpstreamSource};
use pgstead_types::record::SyncSet;
use pgstead_types::report::{DataSeen, Unfinished, Upstream};
use pgstead_types::{Epoch, Timeline};
use std::time::Duration;
use support::*;

#[tokio::test]
async fn a_copy_follows_and_confirms_commits() {
    let cluster = Cluster::new();
    let standby = cluster.member(2).await;
    let leader = cluster.leader(1, &[&standby], 1).await;
    cluster.join(&leader, &standby, 1).await;

    let app = leader.app().await.unwrap();
    app.batch_execute("CREATE TABLE rows (id int); INSERT INTO rows VALUES (1)").await.unwrap();
    let seen = leader.primary().await;
    assert_eq!(seen.sync_set, Some(set_of(&[&standby], 1)));
    assert_eq!(seen.slots, incarnations(&[&standby]));
    assert_eq!(seen.admitted, incarnations(&[&standby]));
    let sender = seen.senders.iter().find(|sender| sender.incarnation == Some(standby.incarnation())).unwrap();
    assert!(sender.streaming && sender.flushed.is_some());

    let written = lsn(&leader.admin().await, "pg_current_wal_flush_lsn()").await;
    standby.until_replayed(written).await;
    assert_eq!(value(&standby.admin().await, "SELECT count(*) FROM pg_database WHERE datname = 'app'").await, "1");
    let seen = standby.try_standby().await.unwrap();
    assert_eq!(seen.upstream, Some(Upstream::of(leader.incarnation().member, Epoch(1))));
    assert!(standby.instance.receiver_pid().await.is_some());
    assert_eq!(seen.position.unwrap().timeline, Timeline(2));

    // Without it nothing is acknowledged.
    standby.stop().await;
    let waiting = tokio::spawn(async move { app.batch_execute("INSERT INTO rows VALUES (2)").await.map(|()| app) });
    let waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let admin = leader.admin().await;
    until("the commit waits", async || (!admin.query(waits, &[]).await.unwrap().is_empty()).then_some(())).await;
    assert!(!waiting.is_finished());
    standby.start().await;
    standby.instance.follow(&cluster.source(&leader, &standby, 1)).await.unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_certificate_of_another_epoch_or_of_nobody_is_refused() {
    let cluster = Cluster::new();
    let (standby, stranger) = (cluster.member(2).await, cluster.member(3).await);
    let leader = cluster.leader(1, &[&standby], 1).await;
    for source in [cluster.source(&leader, &standby, 0), cluster.source(&leader, &standby, 2)] {
        let error = format!("{:?}", standby.instance.copy_from(&source, &|_| ()).await.unwrap_err());
        assert!(error.contains("certificate authentication failed"), "{error}");
        assert_eq!(standby.instance.data_seen(None).await, DataSeen::Absent, "nothing was begun");
    }
    let source = cluster.source(&leader, &stranger, 1);
    assert!(stranger.instance.copy_from(&source, &|_| ()).await.is_err());

    cluster.join(&leader, &standby, 1).await;
    // The leader of a newer epoch lets nobody of the old one in.
    standby.instance.cut_upstream().await.unwrap();
    let (epoch, set) = (Epoch(2), set_of(&[&standby], 1));
    leader.instance.update_sync_set(epoch, &set, &set.members).await.unwrap();
    standby.instance.follow(&cluster.source(&leader, &standby, 1)).await.unwrap();
    let refused = async || {
        leader.log().contains("certificate authentication failed for user \"pgstead_replication\"").then_some(())
    };
    until("the old certificate is refused", refused).await;
    assert!(leader.primary().await.senders.is_empty());
    standby.instance.follow(&cluster.source(&leader, &standby, 2)).await.unwrap();
    standby.until_streaming().await;
}

#[tokio::test]
async fn a_member_that_leaves_the_set_is_cut_off_and_its_slot_goes() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.member(2).await, cluster.member(3).await);
    let leader = cluster.leader(1, &[&one, &two], 1).await;
    cluster.join(&leader, &one, 1).await;
    cluster.join(&leader, &two, 1).await;
    let set = set_of(&[&one], 1);
    leader.instance.update_sync_set(Epoch(1), &set, &set.members).await.unwrap();
    let seen = leader.primary().await;
    assert_eq!((seen.sync_set, &seen.admitted), (Some(set.clone()), &set.members));
    assert!(seen.senders.iter().all(|sender| sender.incarnation != Some(two.incarnation())), "{:?}", seen.senders);
    let dropped = async || {
        leader.instance.update_sync_set(Epoch(1), &set, &set.members).await.unwrap();
        (leader.primary().await.slots == set.members).then_some(())
    };
    until("its slot is dropped", dropped).await;
    // And back, with more acknowledgements needed than before.
    let both = set_of(&[&one, &two], 2);
    leader.instance.update_sync_set(Epoch(1), &both, &both.members).await.unwrap();
    two.until_streaming().await;
    leader.app().await.unwrap().batch_execute("CREATE TABLE rows (id int)").await.unwrap();
    assert_eq!(leader.primary().await.sync_set, Some(both));
}

#[tokio::test]
async fn from_nobody_to_somebody_a_commit_waits_once_the_set_is_in_effect() {
    let cluster = Cluster::new();
    let standby = cluster.member(2).await;
    let leader = cluster.leader(1, &[&standby], 1).await;
    cluster.join(&leader, &standby, 1).await;
    let (both, nobody) = (set_of(&[&standby], 1), SyncSet::default());
    leader.instance.open_clients().await.unwrap();
    leader.app().await.unwrap().batch_execute("CREATE TABLE rows (id int)").await.unwrap();
    for _ in 0..3 {
        standby.stop().await;
        leader.instance.update_sync_set(Epoch(1), &nobody, &both.members).await.unwrap();
        // The leader acknowledges alone.
        leader.app().await.unwrap().batch_execute("INSERT INTO rows VALUES (1)").await.unwrap();
        assert_eq!(leader.primary().await.sync_set, Some(nobody.clone()));
        // Looked at while the checkpoints are written: not in effect, whatever the files say.
        let at_once = Duration::ZERO;
        let under_way = leader.instance.update_sync_set_within(Epoch(1), &both, &both.members, at_once).await;
        assert!(matches!(under_way, Err(InstanceError::Checkpointing)), "{under_way:?}");
        assert_eq!(leader.primary().await.sync_set, None);
        leader.instance.update_sync_set(Epoch(1), &both, &both.members).await.unwrap();
        let client = leader.app().await.unwrap();
        let waiting = tokio::spawn(async move { client.batch_execute("INSERT INTO rows VALUES (2)").await });
        let admin = leader.admin().await;
        let waits = async || {
            let seen = value(&admin, "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await;
            assert!(!waiting.is_finished(), "a commit is acknowledged without the standby");
            (seen == "1").then_some(())
        };
        until("the commit waits for the standby", waits).await;
        standby.start().await;
        standby.instance.follow(&cluster.source(&leader, &standby, 1)).await.unwrap();
        waiting.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_copy_cut_short_is_partial_and_its_programs_end() {
    let cluster = Cluster::new();
    let standby = cluster.member(2).await;
    let leader = cluster.leader(1, &[&standby], 0).await;
    let source = cluster.source(&leader, &standby, 1);
    let data_dir = standby.instance.config().data_dir.clone();
    let copying = tokio::spawn({
        let (instance, source) = (standby.instance.clone(), source.clone());
        async move { instance.copy_from(&source, &|_| ()).await }
    });
    until("the copy has begun", async || data_dir.join("base").exists().then_some(())).await;
    copying.abort();
    let _ = copying.await;
    assert_eq!(standby.instance.data_seen(None).await, DataSeen::Partial);
    assert!(matches!(standby.instance.copy_from(&source, &|_| ()).await, Err(InstanceError::PartialData { .. })));
    assert!(standby.instance.discard_partial().await.unwrap());
    assert!(pgstead_replication::proc::programs_on(&data_dir).unwrap().is_empty());
    assert_eq!(standby.instance.data_seen(None).await, DataSeen::Absent);
    let percents = std::sync::Mutex::new(Vec::new());
    let identity =
        standby.instance.copy_from(&source, &|percent| percents.lock().unwrap().push(percent)).await.unwrap();
    assert_eq!(identity.incarnation, standby.incarnation());
    assert_eq!(percents.lock().unwrap().last(), Some(&100));
    standby.start().await;
}

#[tokio::test]
async fn a_changed_upstream_ends_the_stream_of_the_old_one() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.member(2).await, cluster.member(3).await);
    let leader = cluster.leader(1, &[&one, &two], 1).await;
    cluster.join(&leader, &one, 1).await;
    cluster.join(&leader, &two, 1).await;
    leader.instance.fence().await.unwrap();
    for standby in [&one, &two] {
        standby.instance.cut_upstream().await.unwrap();
    }
    let (first, second) = (one.until_position().await, two.until_position().await);
    let (new, other) = if first >= second { (&one, &two) } else { (&two, &one) };
    new.lead(2, 5, &[other], 1).await;
    other.instance.follow(&cluster.source(new, other, 2)).await.unwrap();
    other.until_streaming().await;
    new.instance.open_clients().await.unwrap();
    new.app().await.unwrap().batch_execute("CREATE TABLE rows (id int)").await.unwrap();
    let moved = async || (other.instance.position().await.unwrap()?.timeline == Timeline(5)).then_some(());
    until("the standby is on the new timeline", moved).await;
    // Across the gap it also starts again.
    other.stop().await;
    other.start().await;
    assert_eq!(other.until_position().await.timeline, Timeline(5));
    // And a third promotion, on the member that followed.
    let set = set_of(&[new], 0);
    other.instance.prepare_promotion(Epoch(3), Timeline(9), &set, &set.members).await.unwrap();
    let promoted = other.instance.promote(Epoch(3), Timeline(9)).await.unwrap();
    assert_eq!(promoted.parent, Timeline(5));
}

/// As when a leader dies right after its promotion: its history came, and nothing of its log.
#[tokio::test]
async fn a_standby_that_heard_of_a_leader_that_is_gone_follows_again_once_it_forgets_it() {
    let cluster = Cluster::new();
    let standby = cluster.member(2).await;
    let leader = cluster.leader(1, &[&standby], 1).await;
    cluster.join(&leader, &standby, 1).await;
    assert_eq!(standby.try_standby().await.unwrap().expects, None);
    standby.instance.cut_upstream().await.unwrap();
    let position = standby.until_position().await;
    assert_eq!(position.timeline, Timeline(2));
    standby.stop().await;
    let pg_wal = standby.instance.config().data_dir.join("pg_wal");
    let own = std::fs::read_to_string(pg_wal.join("00000002.history")).unwrap();
    let of_the_gone = pg_wal.join("00000003.history");
    std::fs::write(&of_the_gone, format!("{own}\n2\t{}\tno recovery target specified\n", position.lsn)).unwrap();
    standby.start().await;
    let expects = async || standby.try_standby().await?.expects;
    assert_eq!(until("it expects what is gone", expects).await, Timeline(3));
    let source = cluster.source(&leader, &standby, 1);
    standby.instance.follow(&source).await.unwrap();
    let refused = async || standby.log().contains("primary is behind recovery timeline 3").then_some(());
    until("it does not follow a leader that does not know it", refused).await;

    standby.instance.cut_upstream().await.unwrap();
    standby.stop().await;
    standby.instance.forget_timelines_after(Timeline(2)).await.unwrap();
    assert!(!of_the_gone.exists());
    standby.start().await;
    assert_eq!(standby.until_position().await, position);
    assert_eq!(standby.try_standby().await.unwrap().expects, None);
    standby.instance.follow(&source).await.unwrap();
    standby.until_streaming().await;
}

/// How `member` reaches what `relay` passes on of `leader`.
fn through(cluster: &Cluster, leader: &Member, relay: &Member, member: &Member, epoch: u64) -> UpstreamSource {
    let of =
        Upstream { relay: Some(relay.incarnation().member), ..Upstream::of(leader.incarnation().member, Epoch(epoch)) };
    UpstreamSource { of, ..cluster.source(relay, member, epoch) }
}

#[tokio::test]
async fn a_standby_passes_on_what_it_streams_until_it_promises() {
    let cluster = Cluster::new();
    let (relay, fed) = (cluster.member(2).await, cluster.member(3).await);
    let leader = cluster.leader(1, &[&relay, &fed], 1).await;
    cluster.join(&leader, &relay, 1).await;
    cluster.join(&leader, &fed, 1).await;

    // The leader lets go of it, and keeps no log for it.
    let (one, both) = (set_of(&[&relay], 1), incarnations(&[&relay]));
    leader.instance.update_sync_set(Epoch(1), &one, &both).await.unwrap();
    assert_eq!(leader.primary().await.slots, incarnations(&[&relay]));
    fed.instance.cut_upstream().await.unwrap();
    relay.instance.relay(Epoch(1), &incarnations(&[&fed])).await.unwrap();
    let seen = relay.try_standby().await.unwrap();
    assert_eq!((&seen.relays_to, &seen.slots, seen.unfinished), (&seen.slots, &incarnations(&[&fed]), None));
    let source = through(&cluster, &leader, &relay, &fed, 1);
    fed.instance.follow(&source).await.unwrap();
    fed.until_streaming().await;
    assert_eq!(fed.try_standby().await.unwrap().upstream, Some(source.of));
    leader.app().await.unwrap().batch_execute("CREATE TABLE rows (id int)").await.unwrap();
    let written = lsn(&leader.admin().await, "pg_current_wal_flush_lsn()").await;
    fed.until_replayed(written).await;
    // Its slot is the relay's, and holds log there.
    let slot = format!("SELECT active::text FROM pg_replication_slots WHERE slot_name = '{}'", fed.incarnation());
    assert_eq!(value(&relay.admin().await, &slot).await, "true");

    // A daemon that was started again finds it so, and does it again without harm.
    let again = relay.found_again().await;
    assert_eq!(again.try_standby().await.unwrap().relays_to, incarnations(&[&fed]));
    again.instance.relay(Epoch(1), &incarnations(&[&fed])).await.unwrap();

    // To admit nobody ends the sender; the slot is one of those that every standby keeps from then on, until nobody is of that life.
    let none = incarnations(&[]);
    again.instance.relay(Epoch(1), &none).await.unwrap();
    let seen = again.try_standby().await.unwrap();
    assert_eq!((seen.relays_to.len(), seen.slots), (0, incarnations(&[&fed])));
    again.instance.keep_slots(&incarnations(&[&leader]), &none).await.unwrap();
    assert_eq!(again.try_standby().await.unwrap().slots, incarnations(&[&leader]));
    again.instance.relay(Epoch(1), &incarnations(&[&fed])).await.unwrap();
    fed.until_streaming().await;

    // Its promise ends what it passes on, and nobody gets in again with that certificate.
    again.instance.cut_upstream().await.unwrap();
    let seen = again.try_standby().await.unwrap();
    assert_eq!((seen.upstream, seen.relays_to.len()), (None, 0));
    assert_eq!(value(&again.admin().await, "SELECT count(*) FROM pg_stat_replication").await, "0");
    assert!(matches!(
        again.instance.relay(Epoch(1), &incarnations(&[&fed])).await,
        Err(InstanceError::NothingToRelay { .. })
    ));
}

#[tokio::test]
async fn a_promotion_carries_nobody_along_who_was_not_told_to_follow() {
    let cluster = Cluster::new();
    let (relay, fed) = (cluster.member(2).await, cluster.member(3).await);
    let leader = cluster.leader(1, &[&relay, &fed], 1).await;
    cluster.join(&leader, &relay, 1).await;
    cluster.join(&leader, &fed, 1).await;
    fed.instance.cut_upstream().await.unwrap();
    relay.instance.relay(Epoch(1), &incarnations(&[&fed])).await.unwrap();
    fed.instance.follow(&through(&cluster, &leader, &relay, &fed, 1)).await.unwrap();
    fed.until_streaming().await;

    // The member that is fed has not heard of the new epoch; Postgres would send it the new timeline by itself.
    leader.stop().await;
    relay.instance.cut_upstream().await.unwrap();
    relay.until_position().await;
    relay.lead(2, 3, &[&fed], 1).await;
    assert!(relay.primary().await.senders.is_empty());
    assert_eq!(fed.try_standby().await.unwrap().position.unwrap().timeline, Timeline(2));
    // Told so, it follows.
    fed.instance.cut_upstream().await.unwrap();
    fed.instance.follow(&cluster.source(&relay, &fed, 2)).await.unwrap();
    fed.until_streaming().await;
    let streams = async || (fed.try_standby().await?.position?.timeline == Timeline(3)).then_some(());
    until("it is on the new timeline", streams).await;
}

#[tokio::test]
async fn a_cut_that_ends_half_way_is_told_and_done_again() {
    let cluster = Cluster::new();
    let mut standby = cluster.member(2).await;
    let leader = cluster.leader(1, &[&standby], 1).await;
    cluster.join(&leader, &standby, 1).await;
    let source = cluster.source(&leader, &standby, 1);
    let told = standby.try_standby().await.unwrap();
    assert_eq!((told.upstream, told.unfinished), (Some(source.of), None));
    for last in [CutStep::ConfigurationLoaded, CutStep::ReceiverEnded] {
        // The daemon dies after this step.
        let instance = standby.instance.clone();
        let hook = move |step: CutStep| -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
            let dies = step == last;
            Box::pin(async move {
                if dies {
                    std::future::pending::<()>().await;
                }
            })
        };
        let time = Duration::from_secs(2);
        assert!(tokio::time::timeout(time, instance.cut_upstream_watched(&hook)).await.is_err());
        standby = standby.found_again().await;
        let seen = standby.try_standby().await.unwrap();
        assert_eq!((seen.upstream, seen.unfinished), (Some(source.of), Some(Unfinished::Cut)), "{last:?}");
        // Who may connect says nothing of it.
        standby.instance.open_clients().await.unwrap();
        assert_eq!(standby.try_standby().await.unwrap().unfinished, Some(Unfinished::Cut), "{last:?}");
        standby.instance.cut_upstream().await.unwrap();
        let seen = standby.try_standby().await.unwrap();
        assert_eq!((seen.upstream, seen.unfinished), (None, None), "{last:?}");
        standby.instance.follow(&source).await.unwrap();
        standby.until_streaming().await;
        assert_eq!(standby.try_standby().await.unwrap().unfinished, None, "{last:?}");
    }
}
