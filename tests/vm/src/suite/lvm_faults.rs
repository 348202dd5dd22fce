//! What goes wrong below volumes of LVM, and what protects against it: nothing acknowledged is lost, and every error says what to do.

use super::contract::{Bench, made, new_volume};
use super::lvm_bench::{LvmBench, group};
use super::lvm_own::{path, reboot, run, stop};
use pgstead_lvm::{Lvm, Run};
use pgstead_types::Bytes;
use pgstead_types::storage::PoolState;
use pgstead_volumes::{
    BackedUp, BallastError, Creation, FileSystemKind, Removed, VolumeError, release_in_group, reserve_in_group,
};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

async fn bench() -> LvmBench {
    LvmBench::new(FileSystemKind::Ext4).await
}

/// An empty folder of that name.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new("/run").join(name);
    // It is there where the test has run before.
    let _ = fs::remove_dir_all(&folder);
    folder
}

pub async fn a_pools_own_metadata_is_backed_up_once_for_each_change() {
    let (bench, to) = (bench().await, folder("backups"));
    let volume = made(bench.driver(), &new_volume(1)).await;
    let back_up = async || {
        // What is written to the volume may take blocks of the pool meanwhile.
        rustix::fs::sync();
        bench.driver().back_up(&to).await
    };
    let BackedUp::Written(first) = back_up().await.expect("the pool is well") else { panic!("there was none") };
    assert_eq!(back_up().await.expect("the pool is well"), BackedUp::Unchanged);
    for (path, mode) in [(to.clone(), 0o700), (first.clone(), 0o700), (first.join("pool.xml"), 0o600)] {
        let found = fs::metadata(&path).expect("it was made").permissions().mode();
        assert_eq!(found & 0o777, mode, "{}", path.display());
    }
    let group_text = fs::read_to_string(first.join("group.vg")).expect("it was made");
    assert!(group_text.contains(&format!("vol-{}", volume.id)), "{group_text}");
    // It can be made into metadata again.
    run("lvm", &["lvcreate", "-y", "-W", "n", "-L", "16M", "-n", "restored", "pgs-test"]).await;
    let restored = path("restored").device();
    let restored = restored.to_string_lossy();
    run("thin_restore", &["-i", &first.join("pool.xml").to_string_lossy(), "-o", &restored]).await;
    run("thin_check", &[&restored]).await;
    made(bench.driver(), &new_volume(2)).await;
    assert!(matches!(back_up().await.expect("the pool is well"), BackedUp::Written(_)));
    let lvm = Lvm::find().await.expect("the machine has LVM");
    assert!(!lvm.holds_metadata(&path("pool")).await.expect("it is active"), "what is deleted gives no room back");
}

pub async fn metadata_that_a_crash_has_left_held_is_released_and_that_of_others_is_not() {
    let (bench, to) = (bench().await, folder("backups"));
    made(bench.driver(), &new_volume(1)).await;
    let (lvm, pool) = (Lvm::find().await.expect("the machine has LVM"), path("pool"));
    lvm.hold_metadata(&pool).await.expect("nobody holds it");
    let refused = bench.driver().back_up(&to).await;
    let Err(VolumeError::NotBackedUp { why, .. }) = refused else { panic!("another program holds it: {refused:?}") };
    assert!(why.contains("dmsetup message pgs--test-pool-tpool 0 release_metadata_snap"), "{why}");
    assert!(lvm.holds_metadata(&pool).await.expect("it is active"));
    // As the daemon's own end would leave it.
    fs::create_dir_all(to.join(".new")).expect("it can be made");
    let written = bench.driver().back_up(&to).await.expect("it was its own");
    assert!(matches!(written, BackedUp::Written(_)), "{written:?}");
    assert!(!lvm.holds_metadata(&pool).await.expect("it is active") && !to.join(".new").exists());
    assert_eq!(lvm.group(&group()).await.expect("LVM answers").map(|group| group.missing_devices), Some(0));
}

fn write_synced(path: &Path) -> std::io::Result<()> {
    fs::write(path, "x").and_then(|()| fs::File::open(path)?.sync_all())
}

/// Snapshots share their metadata with what they are of, until it is written to: a block in each part of it costs that part once more.
async fn fill_metadata() {
    const SNAPSHOTS: usize = 30;
    run("lvm", &["lvcreate", "-y", "-V", "1200M", "--thin", "-n", "hog", "pgs-test/pool"]).await;
    let hog = path("hog").device();
    run("dd", &["if=/dev/zero", &format!("of={}", hog.display()), "bs=1M", "count=1200", "oflag=direct"]).await;
    let name = |number: usize| format!("of-hog-{number}");
    for number in 0..SNAPSHOTS {
        run("lvm", &["lvcreate", "-y", "-s", "-kn", "-n", &name(number), "pgs-test/hog"]).await;
    }
    let filled = (0..SNAPSHOTS).any(|number| !touch(&path(&name(number)).device()));
    assert!(filled, "{SNAPSHOTS} snapshots do not fill the pool's metadata");
}

/// By the commands of docs/operating/repair.md: what is full is not repaired into as little.
async fn repair_into_more() {
    run("lvm", &["lvcreate", "-y", "-an", "-L", "64M", "-n", "repaired", "pgs-test"]).await;
    run("lvm", &["lvchange", "-y", "-ay", "pgs-test/repaired"]).await;
    run("lvm", &["lvchange", "-y", "-ay", "pgs-test/pool_tmeta"]).await;
    run("thin_repair", &["-i", "/dev/mapper/pgs--test-pool_tmeta", "-o", "/dev/mapper/pgs--test-repaired"]).await;
    run("thin_check", &["--clear-needs-check-flag", "/dev/mapper/pgs--test-repaired"]).await;
    run("lvm", &["lvchange", "-an", "pgs-test/pool_tmeta", "pgs-test/repaired"]).await;
    run("lvm", &["lvconvert", "-y", "--thinpool", "pgs-test/pool", "--poolmetadata", "pgs-test/repaired"]).await;
}

/// Whether every write came to something.
fn touch(device: &Path) -> bool {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().write(true).open(device).expect("it is active");
    let written = (0..190).all(|part| file.write_all_at(&[1; 4096], part * (6 << 20)).is_ok());
    written && file.sync_all().is_ok()
}

pub async fn metadata_that_is_full_keeps_what_was_synced_and_goes_on_when_it_was_repaired() {
    let mut bench = LvmBench::with_metadata(FileSystemKind::Ext4, Bytes(4 << 20)).await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    let folder = volume.path.join("rows");
    fs::create_dir(&folder).expect("it can be written to");
    let synced = (0..100).filter(|number| write_synced(&folder.join(number.to_string())).is_ok()).count();
    fill_metadata().await;
    let usage = bench.driver().usage().await.expect("LVM answers");
    assert!(matches!(&usage.state, PoolState::Brimming { why } if why.contains("repair.md")), "{usage:?}");
    let refused = bench.driver().create(new_volume(2)).await;
    assert!(matches!(refused, Ok(Creation::Refused(_))), "{refused:?}");
    // Some of these need new blocks, and some of them fail.
    let more = (100..400).filter(|number| write_synced(&folder.join(number.to_string())).is_ok()).count();
    assert_eq!(
        bench.driver().relieve().await.expect("LVM answers"),
        None,
        "what needs a repair would take all and not use it"
    );
    stop(&bench).await;
    repair_into_more().await;
    bench.reopen().await;
    let usage = bench.driver().usage().await.expect("LVM answers");
    assert!(!matches!(usage.state, PoolState::Brimming { .. } | PoolState::Unwell { .. }), "{usage:?}");
    assert_eq!(bench.driver().open(volume.id).await.expect("it has room"), Some(volume.clone()));
    let there = fs::read_dir(&folder).expect("it is mounted").count();
    assert!(there >= synced + more, "{there} of {synced} and {more} files are there");
    write_synced(&volume.path.join("after")).expect("it can be written to again");
}

pub async fn a_volume_whose_disk_fails_says_so_and_is_back_with_its_disk() {
    let bench = bench().await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    write_synced(&volume.path.join("synced")).expect("it can be written to");
    let (data, table) = ("pgs--test-pool_tdata", run("dmsetup", &["table", "pgs--test-pool_tdata"]).await);
    run("dmsetup", &["wipe_table", "--noflush", "--nolockfs", data]).await;
    let gives_up = |number: usize| {
        let folder = volume.path.join(number.to_string());
        let made = fs::create_dir(&folder).and_then(|()| fs::File::open(&folder)?.sync_all());
        made.is_err_and(|error| error.kind() == ErrorKind::ReadOnlyFilesystem)
    };
    assert!((0..2000).any(gives_up), "its file system goes on without its disk");
    let opened = bench.driver().open(volume.id).await;
    let said = opened.expect_err("its disk fails").to_string();
    assert!(said.contains("vol--") && said.contains("check"), "{said}");
    run("dmsetup", &["load", data, "--table", table.trim()]).await;
    run("dmsetup", &["resume", data]).await;
    assert_eq!(bench.driver().open(volume.id).await.expect("its disk is back"), Some(volume.clone()));
    assert!(volume.path.join("synced").exists());
}

/// Nobody can say which of them is meant, so neither is used.
pub async fn two_groups_with_one_name_are_refused_until_one_has_another() {
    const FILTER: &str = "devices { global_filter = [ \"a|^/dev/vdd$|\", \"r|.*|\" ] }";
    let mut bench = bench().await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    run("wipefs", &["-a", "/dev/vdd"]).await;
    stop(&bench).await;
    run("lvm", &["vgcreate", "-y", "--config", FILTER, "pgs-test", "/dev/vdd"]).await;
    let refused = [
        bench.driver().usage().await.map(drop),
        bench.driver().list().await.map(drop),
        bench.driver().open(volume.id).await.map(drop),
        bench.driver().create(new_volume(2)).await.map(drop),
        bench.driver().remove(volume.id, &volume.tags, pgstead_volumes::Removal::Hard).await.map(drop),
        bench.driver().relieve().await.map(drop),
    ];
    for refused in refused {
        let said = refused.expect_err("there are two").to_string();
        assert!(said.contains("2 volume groups named pgs-test") && said.contains("vgrename"), "{said}");
    }
    let other = run("lvm", &["vgs", "--noheadings", "-o", "vg_uuid", "--config", FILTER, "pgs-test"]).await;
    run("lvm", &["vgrename", other.trim(), "pgs-other"]).await;
    bench.reopen().await;
    assert_eq!(bench.driver().open(volume.id).await.expect("it is meant"), Some(volume));
    run("lvm", &["vgremove", "-y", "pgs-other"]).await;
    run("wipefs", &["-a", "/dev/vdd"]).await;
}

/// Somebody has put them where the volume is mounted, while it was not.
pub async fn files_of_others_below_a_mount_are_kept() {
    let mut bench = bench().await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    write_synced(&volume.path.join("ours")).expect("it can be written to");
    reboot(&mut bench).await;
    let place = bench.config().mounts.join(volume.id.to_string());
    fs::create_dir_all(place.join("data")).expect("it can be made");
    fs::write(place.join("data/theirs"), "x").expect("it can be written to");
    assert_eq!(bench.driver().open(volume.id).await.expect("it is whole"), Some(volume.clone()));
    assert!(volume.path.join("ours").exists() && !volume.path.join("theirs").exists());
    let removed = bench.driver().remove(volume.id, &volume.tags, pgstead_volumes::Removal::Hard).await;
    assert_eq!(removed.expect("nothing uses it"), Removed::Deleted);
    assert!(place.join("data/theirs").exists());
    fs::remove_dir_all(place).expect("it is a folder");
}

pub async fn ballast_gives_a_full_pool_room_when_a_person_says_so() {
    let bench = bench().await;
    let lvm = Lvm::find().await.expect("the machine has LVM");
    let group = lvm.group(&group()).await.expect("LVM answers").expect("it is there");
    let all = reserve_in_group(bench.config(), group.free).await.expect("nobody else wants it");
    assert_eq!(all, group.free);
    let more = reserve_in_group(bench.config(), Bytes(all.0 + 1)).await;
    assert!(matches!(more, Err(BallastError::Smaller { .. })), "{more:?}");
    assert_eq!(reserve_in_group(bench.config(), all).await.expect("it is there"), all);
    assert_eq!(bench.driver().usage().await.expect("the pool is well").ballast, all);
    assert!(bench.driver().list().await.expect("LVM answers").strays.is_empty());

    run("lvm", &["lvcreate", "-y", "-V", "4G", "-T", "pgs-test/pool", "-n", "hog"]).await;
    let hog = path("hog").device();
    let fill =
        || Run::new("dd").args(["if=/dev/zero", &format!("of={}", hog.display()), "bs=1M", "oflag=direct"]).output();
    fill().await.expect_err("the pool has no room for it");
    assert_eq!(bench.driver().relieve().await.expect("there is nothing to give"), None);
    let full = bench.driver().usage().await.expect("LVM answers").state;
    assert!(matches!(full, PoolState::Brimming { .. }), "{full:?}");

    assert_eq!(release_in_group(bench.config()).await.expect("it is there"), all);
    assert_eq!(release_in_group(bench.config()).await.expect("there is none"), Bytes(0));
    assert!(bench.driver().relieve().await.expect("there is room again").is_some());
    let usage = bench.driver().usage().await.expect("LVM answers");
    assert!(!matches!(usage.state, PoolState::Brimming { .. }) && usage.ballast == Bytes(0), "{usage:?}");
    // By a fifth each time.
    while bench.driver().relieve().await.expect("the group has room, or not").is_some() {}
    made(bench.driver(), &new_volume(1)).await;

    // Nobody else's volume of that name is taken for it.
    run("lvm", &["lvremove", "-y", "pgs-test/hog"]).await;
    run("lvm", &["lvcreate", "-y", "-V", "100M", "-T", "pgs-test/pool", "-n", "ballast"]).await;
    let theirs = release_in_group(bench.config()).await;
    assert!(matches!(theirs, Err(BallastError::NotOurs { .. })), "{theirs:?}");
    assert_eq!(bench.driver().usage().await.expect("LVM answers").ballast, Bytes(0));
}
