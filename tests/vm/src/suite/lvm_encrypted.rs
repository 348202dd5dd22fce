//! What only encrypted volumes do: their keys come and go, mappings are left open by the dead, and the disk says nothing.

use super::contract::{Bench, made, new_volume};
use super::lvm_bench::{KEYS, LvmBench, close_mappings, group};
use super::lvm_own::{path, reboot, run};
use pgstead_lvm::{Lvm, Run};
use pgstead_types::storage::SnapshotWhy;
use pgstead_types::{Bytes, SnapshotId, VolumeId};
use pgstead_volumes::{
    FileSystemKind, Forking, Key, KeyFolder, KeysSeen, NewSnapshot, Removal, Snapshotted, Volume, VolumeError,
};
use std::fs;
use std::path::{Path, PathBuf};

const MARKER: &str = "a-row-that-nobody-may-read-on-the-disk";
const HEADERS: &str = "/run/headers";

async fn bench() -> LvmBench {
    let _ = fs::remove_dir_all(HEADERS); // Not every test has made some.
    LvmBench::encrypted(FileSystemKind::Ext4).await
}

fn keys() -> Vec<Key> {
    KeyFolder::new(Path::new(KEYS)).all().expect("the driver has made them")
}

fn device(name: &str) -> PathBuf {
    path(name).device()
}

fn mapping(id: VolumeId) -> PathBuf {
    PathBuf::from(format!("/dev/mapper/pgstead-{id}"))
}

fn write(volume: &Volume, text: &str) {
    let file = volume.path.join("row");
    fs::write(&file, text).and_then(|()| fs::File::open(&file)?.sync_all()).expect("it can be written to");
}

fn row(volume: &Volume) -> String {
    fs::read_to_string(volume.path.join("row")).expect("it was written")
}

async fn is_on(device: &Path) -> bool {
    // What is between zeros is a line: one of all zeros would be as large as the disk.
    let search = Run::new("grep").args(["-z", "-a", "-q", "-F", MARKER]).arg(device.to_string_lossy());
    search.answers([1]).output().await.expect("it can be read").code == 0
}

async fn opens(device: &Path, key: &Key) -> bool {
    let open = Run::new("cryptsetup").args(["open", "--test-passphrase", "--key-file"]).arg(key.path.to_string_lossy());
    open.arg(device.to_string_lossy()).answers([2]).output().await.expect("it has a header").code == 0
}

async fn open(bench: &LvmBench, id: VolumeId) -> Volume {
    bench.driver().open(id).await.expect("its key is there").expect("it is there")
}

async fn snapshot(bench: &LvmBench, number: u128, of: VolumeId) -> SnapshotId {
    let id = SnapshotId::from_u128(number);
    let new = NewSnapshot { id, of, why: SnapshotWhy::Asked, expires: None };
    let taken = bench.driver().snapshot(new).await.expect("the pool has room");
    assert!(matches!(taken, Snapshotted::Made(_)), "{taken:?}");
    id
}

pub async fn what_is_encrypted_is_not_on_the_disk_and_is_back_after_a_reboot() {
    let mut bench = bench().await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    write(&volume, MARKER);
    rustix::fs::sync();
    let pool = PathBuf::from(format!("{}_tdata", device("pool").display()));
    assert!(is_on(&mapping(volume.id)).await, "it is read where it is open");
    assert!(!is_on(&pool).await, "and not below");
    reboot(&mut bench).await;
    assert!(!mapping(volume.id).exists());
    assert_eq!(open(&bench, volume.id).await, volume);
    assert_eq!(row(&volume), MARKER);
    // Those that are there stay as they are, and new ones are what the pool says.
    bench.encrypt(false).await;
    let plain = made(bench.driver(), &new_volume(2)).await;
    assert!(!mapping(plain.id).exists());
    assert_eq!(plain.size, volume.size);
    write(&plain, MARKER);
    rustix::fs::sync();
    assert!(is_on(&pool).await, "so this is how it would be found");
    bench.encrypt(true).await;
    reboot(&mut bench).await;
    assert_eq!((open(&bench, plain.id).await, open(&bench, volume.id).await), (plain.clone(), volume.clone()));
    assert_eq!((row(&plain), row(&volume)), (MARKER.to_string(), MARKER.to_string()));
    bench.driver().remove(volume.id, &volume.tags, Removal::Hard).await.expect("it is there");
    assert!(!mapping(volume.id).exists());
}

pub async fn an_encrypted_creation_that_was_cut_short_leaves_no_mapping() {
    let mut bench = bench().await;
    let new = new_volume(5);
    made(bench.driver(), &new).await;
    let (whole, half) = (format!("vol-{}", new.id), format!("new-{}", new.id));
    let lvm = Lvm::find().await.expect("the machine has LVM");
    // Just before the name: with a file system, open, and still mounted.
    lvm.rename(&path(&whole), &half.parse().expect("a name")).await.expect("it is there");
    bench.reopen().await;
    assert!(!mapping(new.id).exists());
    assert_eq!(bench.driver().list().await.expect("LVM answers"), Default::default());
    // With a header and open, and without a file system; with a creation that comes before the next start.
    let tags = ["--addtag", "pgstead", "--addtag", "pgstead.luks_key=1"];
    let create = ["lvcreate", "-y", "-V", "512M", "--thin", "-n", &half, "pgs-test/pool"];
    run("lvm", &[create.as_slice(), &tags].concat()).await;
    let (device, key) = (device(&half).to_string_lossy().into_owned(), keys()[0].path.to_string_lossy().into_owned());
    run("cryptsetup", &["luksFormat", "--batch-mode", "--pbkdf", "pbkdf2", "--key-file", &key, &device]).await;
    run("cryptsetup", &["open", "--key-file", &key, &device, &format!("pgstead-{}", new.id)]).await;
    let volume = made(bench.driver(), &new).await;
    write(&volume, "whole");
    assert_eq!(bench.driver().list().await.expect("LVM answers").strays, []);
    assert!(is_over(&mapping(new.id), &path(&whole)).await);
}

async fn is_over(mapping: &Path, volume: &pgstead_lvm::LvPath) -> bool {
    let lvm = Lvm::find().await.expect("the machine has LVM");
    let (major, minor) =
        lvm.volume(volume).await.expect("LVM answers").and_then(|held| held.device_number).expect("it is active");
    run("dmsetup", &["deps", &mapping.to_string_lossy()]).await.contains(&format!("({major}, {minor})"))
}

pub async fn a_mapping_that_was_left_open_is_used_and_one_of_another_device_is_closed() {
    let mut bench = bench().await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    write(&volume, "mine");
    // Open, and not mounted.
    let place = bench.config().mounts.join(volume.id.to_string());
    run("umount", &[&place.to_string_lossy()]).await;
    let before =
        run("dmsetup", &["info", "-c", "--noheadings", "-o", "minor", &format!("pgstead-{}", volume.id)]).await;
    bench.reopen().await;
    assert_eq!(row(&open(&bench, volume.id).await), "mine");
    let after = run("dmsetup", &["info", "-c", "--noheadings", "-o", "minor", &format!("pgstead-{}", volume.id)]).await;
    assert_eq!(before, after);
    // Mounted elsewhere: it is left there.
    run("umount", &[&place.to_string_lossy()]).await;
    run("mount", &[&mapping(volume.id).to_string_lossy(), "/mnt"]).await;
    let opened = bench.driver().open(volume.id).await;
    assert!(matches!(opened, Err(VolumeError::MountedElsewhere { .. })), "{opened:?}");
    run("umount", &["/mnt"]).await;
    // Something else has its name.
    close_mappings().await;
    run("lvm", &["lvcreate", "-y", "-V", "64M", "--thin", "-n", "other", "pgs-test/pool"]).await;
    let (other, key) = (device("other").to_string_lossy().into_owned(), keys()[0].path.to_string_lossy().into_owned());
    run("cryptsetup", &["luksFormat", "--batch-mode", "--pbkdf", "pbkdf2", "--key-file", &key, &other]).await;
    run("cryptsetup", &["open", "--key-file", &key, &other, &format!("pgstead-{}", volume.id)]).await;
    assert_eq!(row(&open(&bench, volume.id).await), "mine");
    assert!(is_over(&mapping(volume.id), &path(&format!("vol-{}", volume.id))).await);
}

pub async fn an_encrypted_growth_that_was_cut_short_is_finished() {
    let mut bench = bench().await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    let room =
        || rustix::fs::statvfs(&volume.path).map(|found| found.f_blocks * found.f_frsize).expect("it is mounted");
    let before = room();
    let (lvm, held) = (Lvm::find().await.expect("the machine has LVM"), path(&format!("vol-{}", volume.id)));
    // After the logical volume alone.
    lvm.extend(&held, Bytes(768 << 20)).await.expect("there is room");
    bench.reopen().await;
    open(&bench, volume.id).await;
    assert!(room() >= before + (200 << 20), "{before} bytes before, {} after", room());
    // After the mapping too: what is opened after a reboot has all of its device.
    lvm.extend(&held, Bytes(1 << 30)).await.expect("there is room");
    reboot(&mut bench).await;
    open(&bench, volume.id).await;
    assert!(room() >= before + (450 << 20), "{before} bytes before, {} after", room());
}

pub async fn an_encrypted_snapshot_has_what_was_written_before_it_though_nobody_synced_it() {
    let bench = bench().await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    fs::write(volume.path.join("row"), "before").expect("it can be written to");
    let taken = snapshot(&bench, 1, volume.id).await;
    fs::write(volume.path.join("row"), "after").expect("it can be written to");
    let forked = bench.driver().fork(new_volume(2), taken).await.expect("the pool has room");
    let Forking::Made(fork) = forked else { panic!("it was to be made: {forked:?}") };
    assert_eq!((row(&fork), row(&volume), fork.size), ("before".to_string(), "after".to_string(), volume.size));
}

async fn rotate(bench: &LvmBench) -> KeysSeen {
    for _ in 0..20 {
        let seen = bench.driver().tend_keys(Path::new(HEADERS)).await.expect("LVM answers");
        assert!(seen.fails.is_empty() && seen.headers_fail.is_none(), "{seen:?}");
        if !seen.changed {
            return seen;
        }
    }
    panic!("it goes on for ever");
}

pub async fn a_new_key_takes_the_place_of_the_old_one_wherever_it_was_cut_short() {
    let mut bench = bench().await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    write(&volume, "first");
    let taken = snapshot(&bench, 1, volume.id).await;
    let removed = made(bench.driver(), &new_volume(3)).await;
    bench.driver().remove(removed.id, &removed.tags, Removal::Soft).await.expect("it is there");
    let old = keys()[0].clone();
    let seen = rotate(&bench).await;
    assert_eq!((seen.encrypted, seen.newest, seen.pending, seen.not_needed.len()), (3, Some(1), 0, 0));
    assert!(Path::new(HEADERS).join(format!("{}-000001.luks", volume.id)).exists());

    let new = KeyFolder::new(Path::new(KEYS)).add().expect("there is room");
    let snap = format!("snap-{taken}");
    let (volume_device, snap_device) = (device(&format!("vol-{}", volume.id)), device(&snap));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    // One was killed when the new key was there and the old one was yet; another when a snapshot could be written to.
    let add = [
        "luksAddKey",
        "--batch-mode",
        "--pbkdf",
        "pbkdf2",
        "--key-file",
        &text(&old.path),
        &text(&volume_device),
        &text(&new.path),
    ];
    run("cryptsetup", &add).await;
    run("lvm", &["lvchange", "-y", "--permission", "rw", &path(&snap).to_string()]).await;
    run("lvm", &["lvchange", "-y", "-ay", &path(&snap).to_string()]).await;
    run(
        "cryptsetup",
        &[
            "luksAddKey",
            "--batch-mode",
            "--pbkdf",
            "pbkdf2",
            "--key-file",
            &text(&old.path),
            &text(&snap_device),
            &text(&new.path),
        ],
    )
    .await;
    run("cryptsetup", &["luksRemoveKey", &text(&snap_device), &text(&old.path)]).await;
    let first = bench.driver().tend_keys(Path::new(HEADERS)).await.expect("LVM answers");
    assert_eq!((first.changed, first.pending), (true, 2), "one a call: {first:?}");
    assert!(first.not_needed.is_empty());
    bench.reopen().await;
    let seen = rotate(&bench).await;
    assert_eq!((seen.encrypted, seen.newest, seen.pending), (3, Some(2), 0));
    assert_eq!(seen.not_needed, std::slice::from_ref(&old.path));
    assert!(!Path::new(HEADERS).join(format!("{}-000001.luks", volume.id)).exists());
    assert!(Path::new(HEADERS).join(format!("{}-000002.luks", volume.id)).exists());

    let lvm = Lvm::find().await.expect("the machine has LVM");
    let all = lvm.volumes(&group()).await.expect("LVM answers");
    let trash = all.iter().find(|held| held.name.as_str().starts_with("trash-")).expect("it was set aside").clone();
    let kept = all.iter().find(|held| held.name.as_str() == snap).expect("it was taken");
    assert!(kept.read_only && !kept.active && !trash.active, "{kept:?} {trash:?}");
    for held in [path(&snap), trash.path()] {
        lvm.activate(&held).await.expect("it is there");
        assert!(opens(&held.device(), &new).await && !opens(&held.device(), &old).await, "{held}");
        lvm.deactivate(&held).await.expect("nothing uses it");
    }
    assert!(opens(&volume_device, &new).await && !opens(&volume_device, &old).await);
    // The old key is of no use any more.
    fs::remove_file(&old.path).expect("it is there");
    reboot(&mut bench).await;
    assert_eq!(row(&open(&bench, volume.id).await), "first");
    let forked = bench.driver().fork(new_volume(2), taken).await.expect("the pool has room");
    assert!(matches!(&forked, Forking::Made(fork) if row(fork) == "first"), "{forked:?}");
}

pub async fn a_volume_without_its_key_is_not_touched_and_is_back_with_it() {
    let mut bench = bench().await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    write(&volume, "mine");
    let key = keys()[0].clone();
    let kept = fs::read(&key.path).expect("the test is root");
    reboot(&mut bench).await;
    // Gone, and another one in its place.
    fs::remove_file(&key.path).expect("it is there");
    for is_another_there in [false, true] {
        if is_another_there {
            KeyFolder::new(Path::new(KEYS)).add().expect("there is room");
        }
        bench.reopen().await;
        for error in [bench.driver().open(volume.id).await.err(), bench.driver().create(new_volume(1)).await.err()] {
            let Some(VolumeError::Unusable { why, .. }) = error else {
                panic!("expected it not to be usable, got {error:?}")
            };
            assert!(why.contains("000001.key") && why.contains("put that file back"), "{why}");
        }
        let seen = bench.driver().tend_keys(Path::new(HEADERS)).await.expect("LVM answers");
        assert!(matches!(&seen.locked[..], [VolumeError::Unusable { .. }]), "{seen:?}");
        assert_eq!(keys().len(), usize::from(is_another_there), "no key is made for what has one");
        assert_eq!(bench.driver().list().await.expect("LVM answers").volumes.len(), 1);
    }
    // What nobody can open cannot be given a new key, and no key is said not to be needed.
    let second = KeyFolder::new(Path::new(KEYS)).add().expect("there is room");
    let seen = bench.driver().tend_keys(Path::new(HEADERS)).await.expect("LVM answers");
    assert_eq!((seen.pending, seen.fails.len(), seen.not_needed.len()), (1, 1, 0), "{seen:?}");
    fs::remove_file(&second.path).expect("it is there");
    for key in keys() {
        fs::remove_file(&key.path).expect("it is there");
    }
    fs::write(&key.path, kept).expect("the test is root");
    fs::set_permissions(&key.path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("the test is root");
    let refused = bench.driver().open(volume.id).await;
    assert!(
        matches!(&refused, Err(VolumeError::Keys(error)) if error.to_string().contains("chmod 600")),
        "{refused:?}"
    );
    fs::set_permissions(&key.path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("the test is root");
    assert_eq!(row(&open(&bench, volume.id).await), "mine");
}

/// By the commands of `docs/operating/repair.md`.
pub async fn a_header_that_was_written_over_comes_back_from_its_copy() {
    let mut bench = bench().await;
    let volume = made(bench.driver(), &new_volume(1)).await;
    write(&volume, "mine");
    rotate(&bench).await;
    reboot(&mut bench).await;
    let name = path(&format!("vol-{}", volume.id));
    run("lvm", &["lvchange", "-ay", &name.to_string()]).await;
    let device = name.device().to_string_lossy().into_owned();
    run("dd", &["if=/dev/zero", &format!("of={device}"), "bs=1M", "count=4", "conv=fsync"]).await;
    bench.driver().open(volume.id).await.expect_err("it has no header");
    let header = format!("{HEADERS}/{}-000001.luks", volume.id);
    run("cryptsetup", &["luksHeaderRestore", "--batch-mode", "--header-backup-file", &header, &device]).await;
    assert_eq!(row(&open(&bench, volume.id).await), "mine");
}
