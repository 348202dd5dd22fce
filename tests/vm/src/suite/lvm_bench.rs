//! Real LVM for a test: a group and a thin pool on a disk of the machine, made anew each time.

use super::contract::Bench;
use pgstead_lvm::{GroupName, LvName, LvPath, Lvm, NewThinPool};
use pgstead_types::Bytes;
use pgstead_volumes::{FileSystemKind, LvmConfig, LvmDriver, VolumeDriver};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const GROUP: &str = "pgs-test";
const POOL: &str = "pool";
const DISK: &str = "/dev/vdc";
pub const KEYS: &str = "/run/keys";

pub struct LvmBench {
    config: LvmConfig,
    /// `None` only while the driver is being made anew.
    driver: Option<LvmDriver>,
}

impl LvmBench {
    pub async fn new(file_system: FileSystemKind) -> Self {
        Self::with_metadata(file_system, Bytes(16 << 20)).await
    }

    pub async fn with_metadata(file_system: FileSystemKind, metadata: Bytes) -> Self {
        Self::with(file_system, metadata, false).await
    }

    /// A pool whose new volumes are encrypted, with no key yet.
    pub async fn encrypted(file_system: FileSystemKind) -> Self {
        Self::with(file_system, Bytes(16 << 20), true).await
    }

    async fn with(file_system: FileSystemKind, metadata: Bytes, encrypts: bool) -> Self {
        let lvm = Lvm::find().await.expect("the machine has LVM");
        clear(&lvm).await;
        lvm.create_group(&group(), &[PathBuf::from(DISK)], &BTreeSet::new()).await.expect("the disk is empty");
        let pool = NewThinPool {
            path: LvPath { group: group(), name: pool() },
            data: Bytes(2 << 30),
            metadata,
            chunk: Bytes(64 << 10),
            tags: BTreeSet::new(),
        };
        lvm.create_thin_pool(&pool).await.expect("the group has room");
        let config = LvmConfig {
            group: group(),
            pool: self::pool(),
            mounts: PathBuf::from("/run/volumes"),
            file_system,
            node: None,
            loop_files: Vec::new(),
            size_default: Some(Bytes(512 << 20)),
            encrypts,
            keys: PathBuf::from(KEYS),
        };
        let driver = LvmDriver::open(config.clone()).await.expect("the pool was made just now");
        Self { config, driver: Some(driver) }
    }

    /// From now on: those that are there stay as they are.
    pub async fn encrypt(&mut self, new_volumes: bool) {
        self.config.encrypts = new_volumes;
        self.reopen().await;
    }

    pub async fn reopen(&mut self) {
        self.driver = None; // The lock of its folder goes with it.
        self.driver = Some(LvmDriver::open(self.config.clone()).await.expect("it was open before"));
    }
    pub fn config(&self) -> &LvmConfig {
        &self.config
    }
}

#[async_trait::async_trait(?Send)]
impl Bench for LvmBench {
    fn driver(&self) -> &dyn VolumeDriver {
        self.driver.as_ref().expect("it is open but for a moment")
    }
    async fn restart(&mut self) {
        self.reopen().await;
    }
}

pub fn group() -> GroupName {
    GROUP.parse().expect("a name")
}
pub fn pool() -> LvName {
    POOL.parse().expect("a name")
}

/// As after a reboot.
pub async fn close_mappings() {
    let list = pgstead_lvm::Run::new("dmsetup").args(["ls", "--target", "crypt"]).output().await;
    let said = list.expect("the machine has dmsetup").stdout;
    for name in said.lines().filter_map(|line| line.split_once('\t')).map(|(name, _)| name) {
        pgstead_lvm::Run::new("cryptsetup").args(["close", name]).output().await.expect("nothing is mounted");
    }
}

/// Nothing of an earlier test stays: mounts first, then the group with all in it.
async fn clear(lvm: &Lvm) {
    let run = |program: &'static str, args: Vec<String>| pgstead_lvm::Run::new(program).args(args).output();
    let mounted = std::fs::read_dir("/run/volumes").into_iter().flatten().flatten();
    for entry in mounted {
        // Some are not mounted any more.
        let _ = run("umount", vec![entry.path().to_string_lossy().into_owned()]).await;
        let _ = std::fs::remove_dir(entry.path());
    }
    close_mappings().await;
    let _ = std::fs::remove_dir_all(KEYS); // Not every test has made some.
    if lvm.group(&group()).await.expect("groups can be listed").is_some() {
        run("lvm", ["vgremove", "-ff", "-y", GROUP].map(str::to_string).to_vec()).await.expect("nothing is mounted");
    }
    if Path::new(DISK).exists() {
        run("wipefs", ["-a", DISK].map(str::to_string).to_vec()).await.expect("nothing uses it");
    }
}
