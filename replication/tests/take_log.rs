//! A stopped standby takes log that another one has, and goes on from its end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use pgstead_replication::instance::InstanceError;
use pgstead_types::{Lsn, Position, Timeline};
use support::*;

/// A leader, one standby that has all of its log, and one that was cut while more than a segment was written after it.
async fn one_ahead_of_the_other(cluster: &Cluster) -> (Member, Member, Member) {
    let (ahead, behind) = (cluster.member(2).await, cluster.member(3).await);
    let leader = cluster.leader(1, &[&ahead, &behind], 1).await;
    cluster.join(&leader, &ahead, 1).await;
    cluster.join(&leader, &behind, 1).await;
    let app = leader.app().await.unwrap();
    app.batch_execute("CREATE TABLE rows AS SELECT generate_series(1, 100) AS id").await.unwrap();
    behind.instance.cut_upstream().await.unwrap();
    let more =
        "INSERT INTO rows SELECT generate_series(101, 200); SELECT pg_switch_wal(); INSERT INTO rows VALUES (201)";
    let admin = leader.admin().await;
    for text in more.split("; ") {
        let on = if text.contains("switch") { &admin } else { &app };
        on.batch_execute(text).await.unwrap();
    }
    ahead.until_replayed(lsn(&admin, "SELECT pg_current_wal_flush_lsn()").await).await;
    ahead.instance.cut_upstream().await.unwrap();
    leader.instance.fence().await.unwrap();
    (leader, ahead, behind)
}

async fn take_all(from: &Member, to: &Member, own: Position, upto: Position) -> Result<usize, InstanceError> {
    let segments = to.instance.segments_between(own.lsn, upto).await?;
    to.instance.has_room_for(&segments).await?;
    for segment in &segments {
        let bytes = from.instance.read_segment(&segment.name).await?;
        to.instance.take_segment(segment, bytes, own.lsn).await?;
    }
    Ok(segments.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_has_what_another_one_had_and_leads_with_it() {
    let cluster = Cluster::new();
    let (_leader, ahead, behind) = one_ahead_of_the_other(&cluster).await;
    let (upto, own) = (ahead.until_position().await, behind.until_position().await);
    assert!(own.lsn < upto.lsn && own.timeline == upto.timeline, "{own} {upto}");

    let refused = take_all(&ahead, &behind, own, upto).await.unwrap_err();
    assert!(matches!(refused, InstanceError::StillRunning), "{refused}");
    behind.stop().await;
    assert_eq!(take_all(&ahead, &behind, own, upto).await.unwrap(), 2, "the rest of one, and the next");
    // Once more, as after a daemon that died on the way.
    assert_eq!(take_all(&ahead, &behind, own, upto).await.unwrap(), 2);
    behind.start().await;
    assert_eq!(behind.until_position().await, upto);

    behind.lead(2, upto.timeline.0 + 1, &[], 0).await;
    behind.instance.open_clients().await.unwrap();
    let app = behind.app().await.unwrap();
    assert_eq!(value(&app, "SELECT count(*)::text FROM rows").await, "201");
}

#[tokio::test(flavor = "multi_thread")]
async fn log_that_is_not_the_same_so_far_is_not_taken() {
    let cluster = Cluster::new();
    let (_leader, ahead, behind) = one_ahead_of_the_other(&cluster).await;
    let (upto, own) = (ahead.until_position().await, behind.until_position().await);
    behind.stop().await;
    let segments = behind.instance.segments_between(own.lsn, upto).await.unwrap();
    let good = ahead.instance.read_segment(&segments[0].name).await.unwrap();
    let mut other = good.clone();
    let at = (own.lsn.0 % good.len() as u64) as usize - 1;
    other[at] ^= 1;
    let short = good[..good.len() / 2].to_vec();
    let next = ahead.instance.read_segment(&segments[1].name).await.unwrap();
    for bytes in [other, short, next] {
        let refused = behind.instance.take_segment(&segments[0], bytes, own.lsn).await.unwrap_err();
        assert!(matches!(refused, InstanceError::OtherLog { .. }), "{refused}");
    }
    for name in ["../../pgdata.identity", "00000002.history", "000000010000000000000001.partial"] {
        assert!(ahead.instance.read_segment(name).await.is_err(), "{name}");
    }
    let gone = Position { timeline: Timeline(9), lsn: Lsn(own.lsn.0 + 1) };
    assert!(take_all(&ahead, &behind, own, gone).await.is_err());
    behind.start().await;
    assert_eq!(behind.until_position().await, own, "nothing has changed");
}
