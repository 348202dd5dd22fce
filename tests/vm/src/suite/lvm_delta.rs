//! What changed between two volumes of a pool, as `thin_delta` says it, against what was written.

use super::contract::{Bench, made, new_volume};
use super::lvm_bench::LvmBench;
use super::lvm_own::{path, run};
use pgstead_lvm::{Change, ChangedRange, LogicalVolume, Lvm, LvmError, ProgramError, Snapshot, SnapshotUse};
use pgstead_types::Bytes;
use pgstead_volumes::FileSystemKind;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Of the bench's pool.
const BLOCK: u64 = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(60);

async fn lvm() -> Lvm {
    Lvm::find().await.expect("the machine has LVM")
}

/// A thin volume of 256 blocks.
async fn raw(name: &str) -> File {
    run("lvm", &["lvcreate", "-y", "-V", "16M", "--thin", "-n", name, "pgs-test/pool"]).await;
    OpenOptions::new().read(true).write(true).open(path(name).device()).expect("it is active")
}

async fn snapshot(of: &str, name: &str) {
    let name = name.parse().expect("a name");
    let new = Snapshot { of: path(of), name, tags: BTreeSet::new(), use_as: SnapshotUse::Kept };
    lvm().await.snapshot(&new).await.expect("the pool has room");
}

async fn held(name: &str) -> LogicalVolume {
    lvm().await.volume(&path(name)).await.expect("LVM answers").expect("it is there")
}

async fn changed(earlier: &str, later: &str) -> Result<Vec<ChangedRange>, LvmError> {
    let found = Arc::new(Mutex::new(Vec::new()));
    let (earlier, later, told) = (held(earlier).await, held(later).await, found.clone());
    let each = move |range| told.lock().expect("nothing panics with it").push(range);
    lvm().await.changed_ranges(&earlier, &later, PATIENCE, each).await?;
    Ok(found.lock().expect("nothing panics with it").clone())
}

fn range(from: u64, blocks: u64, change: Change) -> ChangedRange {
    ChangedRange { from: Bytes(from * BLOCK), length: Bytes(blocks * BLOCK), change }
}

fn write(file: &File, from: u64, blocks: u64, byte: u8) {
    let bytes = vec![byte; usize::try_from(blocks * BLOCK).expect("it is small")];
    file.write_all_at(&bytes, from * BLOCK).and_then(|()| file.sync_all()).expect("it can be written to");
}

pub async fn what_changed_between_two_snapshots_is_what_was_written_between_them() {
    let _bench = LvmBench::new(FileSystemKind::Ext4).await;
    let file = raw("raw").await;
    write(&file, 0, 64, 1);
    snapshot("raw", "first").await;
    snapshot("raw", "same").await;
    // The inside of a block counts as all of it; one at the end of what was there; two that were not.
    file.write_all_at(b"x", 10 * BLOCK + 17).and_then(|()| file.sync_all()).expect("it can be written to");
    write(&file, 63, 3, 2);
    run(
        "blkdiscard",
        &["-o", &(20 * BLOCK).to_string(), "-l", &(4 * BLOCK).to_string(), &path("raw").device().to_string_lossy()],
    )
    .await;
    snapshot("raw", "second").await;
    write(&file, 100, 1, 3);

    let expected = [
        range(10, 1, Change::Written),
        range(20, 4, Change::Discarded),
        range(63, 1, Change::Written),
        range(64, 2, Change::Written),
    ];
    assert_eq!(changed("first", "second").await.expect("both are there"), expected);
    assert_eq!(changed("first", "same").await.expect("both are there"), []);
    assert_eq!(changed("second", "raw").await.expect("both are there"), [range(100, 1, Change::Written)]);
    let back = changed("raw", "second").await.expect("both are there");
    assert_eq!(back, [range(100, 1, Change::Discarded)], "what the later one never had reads as zeros there");
    let free = lvm().await;
    assert!(!free.holds_metadata(&path("pool")).await.expect("it is active"), "what is deleted gives no room back");
}

pub async fn a_comparison_that_cannot_be_made_says_why_and_holds_nothing() {
    let bench = LvmBench::new(FileSystemKind::Ext4).await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    drop(raw("raw").await);
    let (lvm, pool) = (lvm().await, path("pool"));
    let of_pool = changed("pool", "raw").await.expect_err("a pool is no volume of its own").to_string();
    assert!(of_pool.contains("not thin volumes of one pool"), "{of_pool}");
    // Of two volumes that have nothing in common.
    assert!(changed("raw", &format!("vol-{}", volume.id)).await.is_ok_and(|ranges| !ranges.is_empty()));
    lvm.hold_metadata(&pool).await.expect("nobody holds it");
    assert!(matches!(changed("raw", "raw").await, Err(LvmError::AlreadyHeld { .. })));
    assert!(lvm.holds_metadata(&pool).await.expect("it is active"), "another one's is left to it");
    lvm.release_metadata(&pool).await.expect("it is held");
    // One that is gone by the time that it is looked for.
    let (gone, there) = (held("raw").await, held(&format!("vol-{}", volume.id)).await);
    run("lvm", &["lvremove", "-y", "pgs-test/raw"]).await;
    let failed = lvm.changed_ranges(&gone, &there, PATIENCE, |_| ()).await.expect_err("it is gone");
    assert!(matches!(failed, LvmError::Program(ProgramError::Failed { .. })), "{failed}");
    assert!(!lvm.holds_metadata(&pool).await.expect("it is active"));
}
