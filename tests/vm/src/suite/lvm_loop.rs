//! A pool in a file, as one makes it to try LVM out, and two pools on one host.

use super::contract::{Bench, made, new_volume};
use super::lvm_bench::LvmBench;
use super::lvm_own::run;
use pgstead_types::Bytes;
use pgstead_volumes::{
    FileSystemKind, LoopFileError, LvmConfig, LvmDriver, LvmPoolError, PoolRequest, VolumeDriver, attach_loop_file,
    make_loop_file, make_pool, plan_pool,
};
use std::fs;
use std::path::Path;

const DISK: &str = "/dev/vdd";
const FOLDER: &str = "/run/loop";
const GROUP: &str = "try";

pub async fn a_pool_in_a_file_is_back_after_a_reboot_and_keeps_to_itself() {
    let bench = LvmBench::new(FileSystemKind::Ext4).await;
    run("mkfs.ext4", &["-q", "-F", DISK]).await;
    fs::create_dir_all(FOLDER).expect("it can be made");
    run("mount", &[DISK, FOLDER]).await;
    let file = Path::new(FOLDER).join("disk.img");
    assert!(make_loop_file(&file, Bytes(1200 << 20)).expect("there is room"));
    let device = attach_loop_file(&file).await.expect("it stands for a disk");
    assert_eq!(attach_loop_file(&file).await.expect("it does already"), device);
    let asked = PoolRequest {
        group: GROUP.parse().expect("a name"),
        pool: "pool".parse().expect("a name"),
        devices: vec![device.clone()],
        wipe: false,
        ballast: Some(Bytes(16 << 20)),
    };
    make_pool(&plan_pool(asked).await.expect("it holds nothing")).await.expect("it can be made");
    let config = LvmConfig {
        group: GROUP.parse().expect("a name"),
        pool: "pool".parse().expect("a name"),
        mounts: "/run/loop-volumes".into(),
        file_system: FileSystemKind::Ext4,
        node: None,
        loop_files: vec![file.clone()],
        size_default: Some(Bytes(512 << 20)),
        encrypts: false,
        keys: "/run/loop-keys".into(),
    };
    let driver = LvmDriver::open(config.clone()).await.expect("the pool is there");
    let (here, there) = (made(&driver, &new_volume(1)).await, made(bench.driver(), &new_volume(2)).await);
    fs::write(here.path.join("PG_VERSION"), "15").expect("it can be written to");
    let ids = |all: pgstead_volumes::Inventory| all.volumes.iter().map(|volume| volume.id).collect::<Vec<_>>();
    assert_eq!(ids(driver.list().await.expect("it can be read")), [here.id]);
    assert_eq!(ids(bench.driver().list().await.expect("it can be read")), [there.id]);

    // As after a reboot: no file stands for a disk.
    drop(driver);
    run("umount", &[&here.path.parent().expect("a mount point").to_string_lossy()]).await;
    run("lvm", &["vgchange", "-an", GROUP]).await;
    run("losetup", &["--detach", &device.to_string_lossy()]).await;
    fs::rename(&file, file.with_extension("gone")).expect("nothing uses it");
    let missing = LvmDriver::open(config.clone()).await.expect_err("its disk is not there");
    assert!(matches!(missing, LvmPoolError::LoopFile(LoopFileError::NotThere { .. })), "{missing:?}");
    fs::rename(file.with_extension("gone"), &file).expect("nothing uses it");
    let driver = LvmDriver::open(config).await.expect("its file is there");
    assert_eq!(driver.open(here.id).await.expect("it is whole"), Some(here.clone()));
    assert_eq!(fs::read_to_string(here.path.join("PG_VERSION")).expect("it was written"), "15");

    drop(driver);
    run("umount", &[&here.path.parent().expect("a mount point").to_string_lossy()]).await;
    run("lvm", &["vgremove", "-ff", "-y", GROUP]).await;
    let device = attach_loop_file(&file).await.expect("it is one still");
    run("losetup", &["--detach", &device.to_string_lossy()]).await;
    run("umount", &[FOLDER]).await;
    run("wipefs", &["-a", DISK]).await;
}
