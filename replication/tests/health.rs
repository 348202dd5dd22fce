//! Log that is gone, streams that are refused, pages with wrong checksums: what a single probe does not show.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::io::{Read, Seek, SeekFrom, Write};
use support::*;

#[tokio::test]
async fn a_standby_whose_log_is_gone_is_refused_and_its_slot_no_longer_counts() {
    let cluster = Cluster::new();
    let standby = cluster.member(2).await;
    let leader = cluster.leader(1, &[&standby], 1).await;
    cluster.join(&leader, &standby, 1).await;
    standby.stop().await;
    let ends = standby.instance.oldest_log().await.unwrap();
    assert!(leader.instance.oldest_log().await.unwrap() <= ends);

    leader.settings(&[("wal_keep_size", "0"), ("max_slot_wal_keep_size", "16MB"), ("min_wal_size", "32MB")]);
    leader.instance.reload().await.unwrap();
    let admin = leader.admin().await;
    for _ in 0..6 {
        // As a session that waits for nobody: no standby is there.
        let text = "SET synchronous_commit = local; CREATE TABLE more (id int); DROP TABLE more; SELECT pg_switch_wal(); CHECKPOINT";
        for text in text.split("; ") {
            admin.batch_execute(text).await.unwrap();
        }
    }
    let lost = async || {
        admin.batch_execute("CHECKPOINT").await.unwrap();
        leader.primary().await.slots.is_empty().then_some(())
    };
    until("the slot has lost its log", lost).await;

    standby.start().await;
    let position = standby.until_position().await;
    let gone = async || (leader.instance.oldest_log().await.unwrap() > position.lsn).then_some(());
    until("the log beyond the standby's is gone", gone).await;
    // The slot is made anew, and what is refused then is the log itself.
    let set = set_of(&[&standby], 1);
    leader.instance.update_sync_set(pgstead_types::Epoch(1), &set, &set.members).await.unwrap();
    assert_eq!(leader.primary().await.slots, set.members);
    assert_eq!(standby.instance.stream_refusal(0).await, None);
    standby.instance.follow(&cluster.source(&leader, &standby, 1)).await.unwrap();
    let why = until("the refusal is seen", async || standby.instance.stream_refusal(0).await).await;
    assert!(why.contains("has already been removed"), "{why}");
}

#[tokio::test]
async fn a_page_with_a_wrong_checksum_is_counted() {
    let cluster = Cluster::new();
    let standby = cluster.member(2).await;
    let leader = cluster.leader(1, &[&standby], 1).await;
    cluster.join(&leader, &standby, 1).await;
    let app = leader.app().await.unwrap();
    app.batch_execute("CREATE TABLE pages AS SELECT generate_series(1, 1000) AS id").await.unwrap();
    let file: String = app.query_one("SELECT pg_relation_filepath('pages')", &[]).await.unwrap().get(0);
    // The standby restarts beyond the records that made the page: replaying them would make it whole again.
    let admin = leader.admin().await;
    admin.batch_execute("CHECKPOINT").await.unwrap();
    let written = lsn(&admin, "pg_current_wal_flush_lsn()").await;
    standby.until_replayed(written).await;
    standby.admin().await.batch_execute("CHECKPOINT").await.unwrap();
    assert_eq!(standby.instance.checksum_failures().await.unwrap(), 0);
    standby.stop().await;

    let path = standby.instance.config().data_dir.join(file);
    let mut page = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    page.seek(SeekFrom::Start(5000)).unwrap();
    page.read_exact(&mut byte).unwrap();
    page.seek(SeekFrom::Start(5000)).unwrap();
    page.write_all(&[!byte[0]]).unwrap();
    page.sync_all().unwrap();

    standby.start().await;
    standby.instance.open_clients().await.unwrap();
    let reader = standby.app().await.unwrap();
    let counted = async || {
        assert!(reader.query("SELECT count(*) FROM pages", &[]).await.is_err(), "the page is broken");
        let failures = standby.instance.checksum_failures().await.unwrap();
        (failures > 0).then_some(())
    };
    until("the failure is counted", counted).await;
}

#[tokio::test]
async fn storage_that_takes_writes_is_no_trouble() {
    let cluster = Cluster::new();
    let leader = cluster.leader(1, &[], 0).await;
    leader.instance.check_storage().await.unwrap();
    let seen = leader.instance.data_seen(None).await;
    assert!(matches!(seen, pgstead_types::report::DataSeen::Present(_)), "the probe is no part of the data");
}
