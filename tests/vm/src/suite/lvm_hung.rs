//! xfs after a crash and after damage, and a device that answers nobody: what is of one volume holds up no other.

use super::contract::{Bench, made, new_volume};
use super::lvm_bench::LvmBench;
use super::lvm_own::{path, run, stop};
use pgstead_types::{Tick, VolumeId};
use pgstead_volumes::{FileSystemKind, VolumeError};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

fn device(id: VolumeId) -> PathBuf {
    path(&format!("vol-{id}")).device()
}

fn unchecked(bench: &LvmBench, id: VolumeId) -> PathBuf {
    bench.config().mounts.join(format!(".unchecked-{id}"))
}

/// Writes a block of the file system's beginning, and returns what was there.
fn exchange(id: VolumeId, block: &[u8; 4096]) -> [u8; 4096] {
    let disk = OpenOptions::new().read(true).write(true).open(device(id)).expect("it is active");
    let mut before = [0; 4096];
    disk.read_exact_at(&mut before, 4096).expect("it can be read");
    disk.write_all_at(block, 4096).and_then(|()| disk.sync_all()).expect("it can be written to");
    before
}

pub async fn an_xfs_that_was_cut_off_is_replayed_checked_and_goes_on() {
    let mut bench = LvmBench::new(FileSystemKind::Xfs).await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    let place = bench.config().mounts.join(volume.id.to_string());
    fs::write(volume.path.join("synced"), "x").expect("it can be written to");
    File::open(volume.path.join("synced")).and_then(|file| file.sync_all()).expect("it can be synced");
    // Its log has what nothing else has: as after an error of the disk.
    run("xfs_io", &["-x", "-c", "shutdown -f", &place.to_string_lossy()]).await;
    assert!(fs::write(volume.path.join("after"), "x").is_err(), "it takes no writes");
    assert_eq!(bench.driver().open(volume.id).await.expect("its log is replayed"), Some(volume.clone()));
    assert_eq!(fs::read_to_string(volume.path.join("synced")).expect("it is there"), "x");
    fs::write(volume.path.join("after"), "x").expect("it takes writes again");
    assert!(!unchecked(&bench, volume.id).exists());
    // A daemon that was ended during the check has left it mounted, and the mark.
    fs::write(unchecked(&bench, volume.id), "").expect("it can be made");
    bench.reopen().await;
    assert_eq!(bench.driver().open(volume.id).await.expect("it is well"), Some(volume.clone()));
    assert!(!unchecked(&bench, volume.id).exists() && volume.path.join("after").exists());
}

pub async fn a_damaged_xfs_is_found_so_again_and_again_and_left_as_it_is() {
    let mut bench = LvmBench::new(FileSystemKind::Xfs).await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    let place = bench.config().mounts.join(volume.id.to_string());
    stop(&bench).await;
    run("lvm", &["lvchange", "-y", "-ay", &format!("pgs-test/vol-{}", volume.id)]).await;
    // The tree of free blocks of its first part: it is mounted all the same, and fails when something is written.
    let tree = exchange(volume.id, &[0x5a; 4096]);
    fs::write(unchecked(&bench, volume.id), "").expect("it can be made");
    for _ in 0..2 {
        bench.reopen().await;
        let opened = bench.driver().open(volume.id).await;
        let Err(VolumeError::Damaged { said, .. }) = opened else { panic!("expected damage, got {opened:?}") };
        assert!(said.contains("bad") || said.contains("would"), "{said}");
        assert!(unchecked(&bench, volume.id).exists(), "the next daemon has to know");
        assert!(!place.join("data").exists(), "it is not mounted");
    }
    // A person mends it, here by putting back what was there.
    assert_eq!(exchange(volume.id, &tree), [0x5a; 4096], "nobody else does");
    assert_eq!(bench.driver().open(volume.id).await.expect("it is well"), Some(volume.clone()));
}

/// More than an open of a volume that hangs takes: its question, and whoever waits for that.
const PATIENCE: Duration = Duration::from_secs(40);

pub async fn a_suspended_device_holds_up_no_other_volume_and_is_back_when_it_is_resumed() {
    for kind in [FileSystemKind::Ext4, FileSystemKind::Xfs] {
        let bench = LvmBench::new(kind).await;
        let hangs = made(bench.driver(), &new_volume(1)).await;
        let works = made(bench.driver(), &new_volume(2)).await;
        let name = device(hangs.id).file_name().expect("it has a name").to_string_lossy().into_owned();
        run("dmsetup", &["suspend", &name]).await;
        let begun = Tick::now();
        // Whatever becomes of each, none waits for ever, and the questions do not become more and more.
        for _ in 0..3 {
            let opened = tokio::time::timeout(PATIENCE, bench.driver().open(hangs.id)).await;
            assert!(opened.is_ok(), "{kind:?}: an open of it waits after {:?}", Tick::now().since(begun));
        }
        let other = tokio::time::timeout(PATIENCE, bench.driver().open(works.id)).await;
        assert_eq!(other.expect("nobody holds it up").expect("it is well"), Some(works.clone()));
        fs::write(works.path.join("rows"), "x").expect("it can be written to");
        let looks = async { (bench.driver().list().await, bench.driver().usage().await) };
        let (list, usage) = tokio::time::timeout(PATIENCE, looks).await.expect("the pool is looked at");
        assert_eq!(list.expect("LVM answers").volumes.len(), 2);
        usage.expect("LVM answers");
        run("dmsetup", &["resume", &name]).await;
        assert_eq!(bench.driver().open(hangs.id).await.expect("it is back"), Some(hangs.clone()));
        fs::write(hangs.path.join("rows"), "x").expect("it can be written to");
    }
}
