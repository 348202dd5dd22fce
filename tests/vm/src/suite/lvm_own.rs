//! What only volumes of LVM do: they come back after a reboot, are checked after a crash, and are left alone where something is odd.

use super::contract::{Bench, made, new_volume, tags};
use super::lvm_bench::{LvmBench, close_mappings, group};
use pgstead_lvm::{Kind, LvPath, Lvm, Run, WhenFull};
use pgstead_types::storage::{PoolState, SnapshotWhy};
use pgstead_types::{Bytes, SnapshotId};
use pgstead_volumes::{
    Creation, FileSystemKind, LvmConfig, LvmDriver, LvmPoolError, MakePoolError, NewSnapshot, NewVolume, PoolBegun,
    PoolRequest, Refusal, Snapshotted, StrayKind, VolumeError, make_pool, plan_pool,
};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

pub async fn run(program: &str, args: &[&str]) -> String {
    Run::new(program).args(args.iter().copied()).output().await.expect("the test runs only what succeeds").stdout
}

async fn bench() -> LvmBench {
    LvmBench::new(FileSystemKind::Ext4).await
}

pub fn path(name: &str) -> LvPath {
    LvPath { group: group(), name: name.parse().expect("a name") }
}

/// As after a reboot: nothing is mounted, nothing is active.
pub async fn reboot(bench: &mut LvmBench) {
    stop(bench).await;
    bench.reopen().await;
}

pub async fn stop(bench: &LvmBench) {
    for entry in fs::read_dir(&bench.config().mounts).expect("it is there").flatten() {
        run("umount", &[&entry.path().to_string_lossy()]).await;
    }
    close_mappings().await;
    run("lvm", &["vgchange", "-an", group().as_str()]).await;
}

pub async fn a_volume_is_back_after_a_reboot_with_what_is_in_it() {
    let mut bench = bench().await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    fs::write(volume.path.join("PG_VERSION"), "15").expect("it can be written to");
    reboot(&mut bench).await;
    assert!(!volume.path.exists());
    assert_eq!(bench.driver().open(volume.id).await.expect("it is whole"), Some(volume.clone()));
    assert_eq!(fs::read_to_string(volume.path.join("PG_VERSION")).expect("it was written"), "15");
    // Nothing has to be done twice.
    assert_eq!(bench.driver().open(volume.id).await.expect("it is mounted"), Some(volume));
}

pub async fn a_creation_that_was_cut_short_is_no_volume_and_leaves_nothing() {
    let mut bench = bench().await;
    let new = new_volume(5);
    let volume = made(bench.driver(), &new).await;
    let (whole, half) = (format!("vol-{}", new.id), format!("new-{}", new.id));
    let lvm = Lvm::find().await.expect("the machine has LVM");
    // Just before the name: with a file system, and still mounted.
    lvm.rename(&path(&whole), &half.parse().expect("a name")).await.expect("it is there");
    let inventory = bench.driver().list().await.expect("LVM answers");
    assert!(inventory.volumes.is_empty());
    assert_eq!(inventory.strays.iter().map(|stray| stray.kind.clone()).collect::<Vec<_>>(), [StrayKind::Unfinished]);
    assert_eq!(bench.driver().open(new.id).await.expect("LVM answers"), None);
    bench.reopen().await;
    assert_eq!(bench.driver().list().await.expect("LVM answers"), Default::default());
    assert!(!volume.path.exists());
    // And without one, with a creation that comes before the next start.
    made(bench.driver(), &new).await;
    bench.driver().remove(new.id, &new.tags, pgstead_volumes::Removal::Hard).await.expect("it is there");
    run("lvm", &["lvcreate", "-y", "-V", "512M", "--thin", "-n", &half, "--addtag", "pgstead", "pgs-test/pool"]).await;
    made(bench.driver(), &new).await;
    assert_eq!(bench.driver().list().await.expect("LVM answers").strays, []);
}

/// The device is larger and its file system is not yet: the daemon was killed between the two, or the machine lost power.
pub async fn a_growth_that_was_cut_short_is_finished_at_the_next_opening() {
    use FileSystemKind::{Ext4, Xfs};
    for (kind, loses_power) in [(Ext4, true), (Ext4, false), (Xfs, true), (Xfs, false)] {
        let mut bench = LvmBench::new(kind).await;
        let volume = made(bench.driver(), &new_volume(1)).await;
        let room =
            || rustix::fs::statvfs(&volume.path).map(|found| found.f_blocks * found.f_frsize).expect("it is mounted");
        let before = room();
        let (lvm, held) = (Lvm::find().await.expect("the machine has LVM"), path(&format!("vol-{}", volume.id)));
        let Bytes(size) = volume.size.expect("it has one");
        lvm.extend(&held, Bytes(size + (256 << 20))).await.expect("there is room");
        assert_eq!(room(), before);
        match loses_power {
            true => reboot(&mut bench).await,
            false => bench.reopen().await,
        }
        bench.driver().open(volume.id).await.expect("it is whole").expect("it is there");
        assert!(room() >= before + (200 << 20), "{kind:?}: {before} bytes before, {} after", room());
    }
}

pub async fn a_snapshot_has_what_was_written_before_it_though_nobody_synced_it() {
    let bench = bench().await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    fs::write(volume.path.join("rows"), "before").expect("it can be written to");
    let new = NewSnapshot { id: SnapshotId::from_u128(1), of: volume.id, why: SnapshotWhy::Asked, expires: None };
    let taken = bench.driver().snapshot(new.clone()).await.expect("the pool has room");
    assert!(matches!(taken, Snapshotted::Made(_)), "{taken:?}");
    fs::write(volume.path.join("rows"), "after").expect("it can be written to");
    let (lvm, held) = (Lvm::find().await.expect("the machine has LVM"), path(&format!("snap-{}", new.id)));
    lvm.activate(&held).await.expect("it is there");
    fs::create_dir_all("/run/look").expect("it can be made");
    run("mount", &["-o", "ro,noload", &held.device().to_string_lossy(), "/run/look"]).await;
    let rows = fs::read_to_string("/run/look/data/rows").expect("it was there");
    // Somebody looks at it: it is not taken away.
    bench.driver().remove_snapshot(new.id).await.expect_err("it is mounted");
    run("umount", &["/run/look"]).await;
    assert_eq!(rows, "before");
    assert!(bench.driver().remove_snapshot(new.id).await.expect("nothing uses it"));
}

pub async fn what_is_not_ours_is_not_looked_at() {
    let bench = bench().await;
    let new = new_volume(1);
    // Of our name without our tag, and of our tag without our name.
    run("lvm", &["lvcreate", "-y", "-V", "64M", "--thin", "-n", &format!("new-{}", new.id), "pgs-test/pool"]).await;
    run("lvm", &["lvcreate", "-y", "-V", "64M", "--thin", "-n", "other", "--addtag", "pgstead", "pgs-test/pool"]).await;
    assert_eq!(bench.driver().list().await.expect("LVM answers"), Default::default());
    // Nor is it removed to make room for a volume.
    let create = bench.driver().create(new.clone()).await;
    assert!(matches!(create, Err(VolumeError::Unreadable { .. })), "{create:?}");
    let lvm = Lvm::find().await.expect("the machine has LVM");
    assert!(lvm.volume(&path(&format!("new-{}", new.id))).await.expect("LVM answers").is_some());
    // One that has the name of a volume is seen all the same.
    run("lvm", &["lvcreate", "-y", "-V", "64M", "--thin", "-n", &format!("vol-{}", new.id), "pgs-test/pool"]).await;
    let strays = bench.driver().list().await.expect("LVM answers").strays;
    assert!(matches!(strays[0].kind, StrayKind::Unreadable { .. }), "{strays:?}");
}

pub async fn a_disk_with_a_file_system_is_not_made_a_pool_of() {
    let lvm = Lvm::find().await.expect("the machine has LVM");
    run("mkfs.ext4", &["-q", "-F", "/dev/vdd"]).await;
    let made = lvm.create_group(&"other".parse().expect("a name"), &["/dev/vdd".into()], &Default::default()).await;
    assert!(made.is_err(), "its file system would be gone");
    run("e2fsck", &["-n", "/dev/vdd"]).await;
}

pub async fn a_pool_is_made_of_disks_that_hold_nothing_and_goes_on_where_it_stopped() {
    let name = |name: &str| name.parse().expect("a name");
    let ask = |devices: &[&str], wipe| PoolRequest {
        group: "made".parse().expect("a name"),
        pool: "pool".parse().expect("a name"),
        devices: devices.iter().map(Into::into).collect(),
        wipe,
        ballast: None,
    };
    let disk = "/dev/vdd";
    run("mkfs.ext4", &["-q", "-F", disk]).await;
    // It holds something, it is in use, it is none.
    let holds = plan_pool(ask(&[disk], false)).await;
    assert!(matches!(&holds, Err(MakePoolError::Holds { holds, .. }) if holds == &["ext4"]), "{holds:?}");
    fs::create_dir_all("/run/other").expect("it can be made");
    run("mount", &[disk, "/run/other"]).await;
    let in_use = plan_pool(ask(&[disk], true)).await;
    assert!(matches!(in_use, Err(MakePoolError::InUse { .. })), "{in_use:?}");
    run("umount", &["/run/other"]).await;
    for (devices, said) in [
        (vec![], "at least one"),
        (vec![disk, disk], "twice"),
        (vec!["/dev/nosuch"], "cannot be looked at"),
        (vec!["/proc/self/exe"], "not a block device"),
    ] {
        let refused = plan_pool(ask(&devices, true)).await.expect_err("it cannot be").to_string();
        assert!(refused.contains(said), "{refused}");
    }
    // What is LVM's may be of use though nothing has it open now, and bytes that nobody knows may be somebody's.
    run("wipefs", &["-a", disk]).await;
    let unknown = plan_pool(ask(&[disk], false)).await;
    assert!(matches!(unknown, Err(MakePoolError::Holds { .. })), "{unknown:?}");
    run("lvm", &["vgcreate", "-y", "older", disk]).await;
    let of_another = plan_pool(ask(&[disk], true)).await;
    assert!(matches!(of_another, Err(MakePoolError::PartOfMore { .. })), "{of_another:?}");
    run("lvm", &["vgremove", "-y", "older"]).await;
    run("lvm", &["pvremove", "-y", disk]).await;
    run("mkfs.ext4", &["-q", "-F", disk]).await;
    // What was shown is what is done, or nothing.
    let shown = plan_pool(ask(&[disk], true)).await.expect("it may be wiped");
    run("mkfs.xfs", &["-q", "-f", disk]).await;
    let changed = make_pool(&shown).await;
    assert!(matches!(changed, Err(MakePoolError::Changed { .. })), "{changed:?}");
    run("wipefs", &["-a", disk]).await;
    run("mkfs.ext4", &["-q", "-F", disk]).await;
    // A plan changes nothing.
    let plan = plan_pool(ask(&[disk], true)).await.expect("it may be wiped");
    assert_eq!((plan.state, plan.devices[0].holds.as_slice()), (PoolBegun::Nothing, ["ext4".to_string()].as_slice()));
    run("e2fsck", &["-n", disk]).await;
    make_pool(&plan).await.expect("nothing uses it");
    assert_eq!(plan_pool(ask(&[disk], false)).await.expect("it is ours").state, PoolBegun::Whole);
    make_pool(&plan_pool(ask(&[disk], false)).await.expect("it is ours")).await.expect("there is nothing to do");

    // Cut short after the group.
    run("lvm", &["lvremove", "-y", "made/pool"]).await;
    let begun = plan_pool(ask(&[disk], false)).await.expect("it goes on");
    assert_eq!(begun.state, PoolBegun::Group);
    make_pool(&begun).await.expect("the group is there");
    let lvm = Lvm::find().await.expect("the machine has LVM");
    let made = lvm.volume(&LvPath { group: name("made"), name: "pool".parse().expect("a name") }).await;
    let made = made.expect("LVM answers").expect("it is there");
    assert!(matches!(made.kind, Kind::ThinPool { when_full: WhenFull::Error, .. }), "{made:?}");
    assert!(made.size.0 >= plan.data.0, "{made:?}");
    // Not by somebody else's name.
    let other = PoolRequest { pool: "data".parse().expect("a name"), ..ask(&[disk], false) };
    let taken = plan_pool(other).await;
    assert!(matches!(taken, Err(MakePoolError::GroupTaken { .. })), "{taken:?}");

    // A driver works on it.
    let config = LvmConfig {
        group: name("made"),
        pool: "pool".parse().expect("a name"),
        mounts: "/run/made".into(),
        file_system: FileSystemKind::Ext4,
        node: None,
        loop_files: Vec::new(),
        size_default: Some(Bytes(512 << 20)),
        encrypts: false,
        keys: "/run/keys-made".into(),
    };
    let driver = LvmDriver::open(config).await.expect("the pool is there");
    let new = new_volume(1);
    pgstead_volumes::VolumeDriver::create(&driver, new.clone()).await.expect("there is room");
    pgstead_volumes::VolumeDriver::remove(&driver, new.id, &new.tags, pgstead_volumes::Removal::Hard)
        .await
        .expect("it is there");
    run("lvm", &["vgremove", "-ff", "-y", "made"]).await;
    run("wipefs", &["-a", disk]).await;
}

/// Puts in a volume's place what was on its disk at this instant, as a power cut does.
async fn cut_power(bench: &mut LvmBench, id: pgstead_types::VolumeId) {
    let lvm = Lvm::find().await.expect("the machine has LVM");
    let name = path(&format!("vol-{id}"));
    let tags = lvm.volume(&name).await.expect("LVM answers").expect("it is there").tags;
    let (cut, use_as) = ("cut".parse().expect("a name"), pgstead_lvm::SnapshotUse::Written);
    let cut = pgstead_lvm::Snapshot { of: name.clone(), name: cut, tags, use_as };
    lvm.snapshot(&cut).await.expect("the pool has room");
    reboot(bench).await;
    lvm.remove(&name).await.expect("it is not in use");
    lvm.rename(&path("cut"), &name.name).await.expect("it is there");
}

pub async fn a_volume_comes_back_after_a_power_cut_with_what_was_synced() {
    for kind in [FileSystemKind::Ext4, FileSystemKind::Xfs] {
        let mut bench = LvmBench::new(kind).await;
        let volume = made(bench.driver(), &new_volume(1)).await;
        for number in 0..50 {
            let file = volume.path.join(number.to_string());
            fs::write(&file, "x").expect("it can be written to");
            fs::File::open(file).and_then(|file| file.sync_all()).expect("it can be synced");
        }
        cut_power(&mut bench, volume.id).await;
        assert_eq!(bench.driver().open(volume.id).await.expect("its log is replayed"), Some(volume.clone()));
        assert_eq!(fs::read_dir(&volume.path).expect("it is mounted").count(), 50);
    }
}

pub async fn a_file_system_that_became_read_only_is_mounted_anew_when_nothing_uses_it() {
    let bench = bench().await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    let place = bench.config().mounts.join(volume.id.to_string());
    run("mount", &["-o", "remount,ro", &place.to_string_lossy()]).await;
    let user = fs::File::open(&volume.path).expect("it is mounted");
    let opened = bench.driver().open(volume.id).await;
    let Err(VolumeError::Unusable { why, .. }) = opened else { panic!("expected it not to be usable, got {opened:?}") };
    assert!(why.contains("takes no writes"), "{why}");
    drop(user);
    assert_eq!(bench.driver().open(volume.id).await.expect("it is free"), Some(volume.clone()));
    fs::write(volume.path.join("PG_VERSION"), "15").expect("it can be written to again");
}

/// Its pool was full, its journal could not be written, and the kernel's list of mounts need not say so.
pub async fn a_volume_whose_pool_was_full_can_be_written_to_again_once_it_has_room() {
    for kind in [FileSystemKind::Ext4, FileSystemKind::Xfs] {
        let bench = LvmBench::new(kind).await;
        let volume = made(bench.driver(), &NewVolume { size: Some(Bytes(1 << 30)), ..new_volume(1) }).await;
        fs::write(volume.path.join("synced"), "x").expect("it can be written to");
        rustix::fs::sync();
        run("lvm", &["lvcreate", "-y", "-V", "2G", "--thin", "-n", "hog", "pgs-test/pool"]).await;
        let hog = path("hog").device();
        let full = Run::new("dd").args(["if=/dev/zero", &format!("of={}", hog.display()), "bs=1M", "oflag=direct"]);
        full.output().await.expect_err("the pool has no room for it");
        let write = |number: usize| {
            let folder = volume.path.join(format!("more-{number}"));
            fs::create_dir(&folder).and_then(|()| fs::File::open(&folder)?.sync_all())
        };
        // ext4 ends its journal where that comes to room that it did not have before; xfs waits for room, in the end for ever.
        let changes = if kind == FileSystemKind::Ext4 { 2000 } else { 5 };
        let gave_up = (0..changes).filter_map(|number| write(number).err()).fold(None, |_, error| Some(error.kind()));
        let expected = (kind == FileSystemKind::Ext4).then_some(ErrorKind::ReadOnlyFilesystem);
        assert_eq!(gave_up, expected, "{kind:?}");
        if kind == FileSystemKind::Ext4 {
            let opened = bench.driver().open(volume.id).await;
            let Err(VolumeError::Unusable { why, .. }) = opened else { panic!("its pool is full: {opened:?}") };
            assert!(why.contains("no room"), "{why}");
        }
        run("lvm", &["lvremove", "-y", "pgs-test/hog"]).await;
        assert_eq!(bench.driver().open(volume.id).await.expect("it has room"), Some(volume.clone()));
        let file = volume.path.join("after");
        fs::write(&file, "x").and_then(|()| fs::File::open(&file)?.sync_all()).expect("it can be written to again");
        assert_eq!(fs::read_to_string(volume.path.join("synced")).expect("it was synced"), "x");
    }
}

pub async fn a_volume_with_odd_tags_is_reported_and_never_touched() {
    let bench = bench().await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    fs::write(volume.path.join("precious"), "x").expect("it can be written to");
    let name = format!("pgs-test/vol-{}", volume.id);
    let owner = format!("pgstead.member={}", tags(1).member);
    for change in [["--deltag", owner.as_str()], ["--addtag", "pgstead.member=nonsense"]] {
        run("lvm", &["lvchange", "-y", change[0], change[1], &name]).await;
        let inventory = bench.driver().list().await.expect("LVM answers");
        assert!(inventory.volumes.is_empty(), "{inventory:?}");
        assert!(matches!(inventory.strays[0].kind, StrayKind::Unreadable { .. }), "{inventory:?}");
        let create = bench.driver().create(new_volume(1)).await;
        assert!(matches!(create, Err(VolumeError::Unreadable { .. })), "{create:?}");
        let remove = bench.driver().remove(volume.id, &volume.tags, pgstead_volumes::Removal::Hard).await;
        assert!(matches!(remove, Err(VolumeError::Unreadable { .. })), "{remove:?}");
    }
    assert!(volume.path.join("precious").exists());
}

pub async fn a_device_that_is_mounted_elsewhere_is_left_there() {
    let mut bench = bench().await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    let device = path(&format!("vol-{}", volume.id)).device();
    let place = bench.config().mounts.join(volume.id.to_string());
    run("umount", &[&place.to_string_lossy()]).await;
    run("mount", &[&device.to_string_lossy(), "/mnt"]).await;
    let opened = bench.driver().open(volume.id).await;
    assert!(matches!(opened, Err(VolumeError::MountedElsewhere { .. })), "{opened:?}");
    run("umount", &["/mnt"]).await;
    // Nor is it put on top of what somebody else has mounted there.
    fs::create_dir_all(&place).expect("the folder can be made");
    run("mount", &["-t", "tmpfs", "tmpfs", &place.to_string_lossy()]).await;
    let opened = bench.driver().open(volume.id).await;
    assert!(matches!(opened, Err(VolumeError::OtherMounted { .. })), "{opened:?}");
    run("umount", &[&place.to_string_lossy()]).await;
    assert_eq!(bench.driver().open(volume.id).await.expect("it is free"), Some(volume));
    reboot(&mut bench).await;
}

pub async fn damage_that_a_check_cannot_mend_by_itself_is_left_for_a_person() {
    let bench = bench().await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    let place = bench.config().mounts.join(volume.id.to_string());
    let device = path(&format!("vol-{}", volume.id)).device();
    run("umount", &[&place.to_string_lossy()]).await;
    // The root's inode is gone: a check would have to make up another one.
    run("debugfs", &["-w", "-R", "clri <2>", &device.to_string_lossy()]).await;
    let opened = bench.driver().open(volume.id).await;
    let Err(VolumeError::Damaged { said, .. }) = opened else { panic!("expected damage, got {opened:?}") };
    assert!(said.contains("UNEXPECTED INCONSISTENCY") || said.contains("fsck"), "{said}");
}

pub async fn a_pool_that_is_nearly_full_takes_no_volume_and_keeps_what_it_has() {
    let mut bench = bench().await;
    let big = NewVolume { size: Some(Bytes(2 << 30)), ..new_volume(1) };
    let volume = made(bench.driver(), &big).await;
    let file = volume.path.join("big");
    run("dd", &["if=/dev/zero", &format!("of={}", file.display()), "bs=1M", "count=1700", "conv=fsync"]).await;
    let answer = bench.driver().create(new_volume(2)).await.expect("a refusal is no failure");
    assert!(matches!(answer, Creation::Refused(Refusal::PoolNearlyFull { .. })), "{answer:?}");
    let usage = bench.driver().usage().await.expect("LVM answers");
    assert!(usage.used.0 > usage.total.0 / 5 * 4, "{usage:?}");
    assert!(matches!(usage.state, PoolState::NearlyFull { .. }), "{usage:?}");
    // As long as the group has room, so has the pool.
    let total = usage.total;
    assert!(bench.driver().relieve().await.expect("the group has room").is_some());
    let usage = bench.driver().usage().await.expect("LVM answers");
    assert!(usage.total > total && usage.state == PoolState::Fine, "{usage:?}");
    assert_eq!(bench.driver().relieve().await.expect("LVM answers"), None, "{usage:?}");
    let lvm = Lvm::find().await.expect("the machine has LVM");
    assert!(lvm.volume(&path("pool")).await.expect("LVM answers").expect("it is there").size > total);
    // What is there already needs no room.
    let again = bench.driver().create(big).await.expect("LVM answers");
    assert!(matches!(again, Creation::AlreadyThere(_)), "{again:?}");
    reboot(&mut bench).await;
    assert_eq!(bench.driver().open(volume.id).await.expect("it is whole"), Some(volume));
}

pub async fn a_volume_that_is_too_small_is_refused() {
    for (kind, size) in [(FileSystemKind::Ext4, 8 << 20), (FileSystemKind::Xfs, 200 << 20)] {
        let bench = LvmBench::new(kind).await;
        let small = NewVolume { size: Some(Bytes(size)), ..new_volume(1) };
        let answer = bench.driver().create(small).await.expect("a refusal is no failure");
        assert!(matches!(answer, Creation::Refused(Refusal::TooSmall { .. })), "{answer:?}");
    }
}

pub async fn a_pool_that_is_not_there_is_said_so() {
    let bench = bench().await;
    let open = async |change: &dyn Fn(&mut pgstead_volumes::LvmConfig)| {
        let mut config = bench.config().clone();
        config.mounts = "/run/others".into();
        change(&mut config);
        LvmDriver::open(config).await.expect_err("nothing fits")
    };
    let error = open(&|config| config.group = "nowhere".parse().expect("a name")).await;
    assert!(matches!(error, LvmPoolError::NoGroup { .. }), "{error:?}");
    let error = open(&|config| config.pool = "nothing".parse().expect("a name")).await;
    assert!(matches!(error, LvmPoolError::NoPool { .. }), "{error:?}");
    let volume = made(bench.driver(), &new_volume(1)).await;
    let error = open(&|config| config.pool = format!("vol-{}", volume.id).parse().expect("a name")).await;
    assert!(matches!(error, LvmPoolError::NotThin { .. }), "{error:?}");
    let error = open(&|config| config.mounts = Path::new("mounts").into()).await;
    assert!(matches!(error, LvmPoolError::NotAbsolute { .. }), "{error:?}");
    let error = open(&|config| config.mounts = bench.config().mounts.clone()).await;
    assert!(matches!(error, LvmPoolError::InUse { .. }), "{error:?}");
    let error = open(&|config| config.mounts = Path::new("/tmp").into()).await;
    assert!(matches!(error, LvmPoolError::OthersWrite { .. }), "{error:?}");
}

pub async fn a_group_belongs_to_the_node_that_used_it_first() {
    let mut bench = bench().await;
    let open = async |node: u128, mounts: &str| {
        let node = Some(pgstead_types::NodeId::from_u128(node));
        LvmDriver::open(LvmConfig { node, mounts: mounts.into(), ..bench.config().clone() }).await
    };
    drop(open(1, "/run/others").await.expect("nobody has it"));
    drop(open(1, "/run/others").await.expect("it is its own"));
    let refused = open(2, "/run/others").await.expect_err("it is another node's");
    assert!(matches!(refused, LvmPoolError::OfAnotherNode { .. }), "{refused:?}");
    // What is said gives it away.
    let said = refused.to_string();
    let command = said.split('`').nth(1).expect("a command").to_string();
    let (program, args) = command.split_once(' ').expect("arguments");
    run("lvm", &std::iter::once(program).chain(args.split(' ')).collect::<Vec<_>>()).await;
    drop(open(2, "/run/others").await.expect("nobody has it"));
    bench.reopen().await;
}
