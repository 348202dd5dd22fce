//! The directory driver on a real file system: the promises of every driver, its own checks, and kills in the middle.

#![expect(clippy::unwrap_used, reason = "a test may end here; clippy only knows that of functions marked as tests")]

mod contract;

use contract::{Bench, made, new_volume, owner, tags};
use pgstead_types::{Bytes, VolumeId};
use pgstead_volumes::{
    Creation, DirConfig, DirDriver, NewVolume, Owner, PoolError, Refusal, Removal, Removed, StrayKind, VolumeDriver,
    VolumeError,
};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

struct DirBench {
    pool: PathBuf,
    /// `None` only while the driver is being made anew.
    driver: Option<DirDriver>,
    _folder: tempfile::TempDir,
}

impl DirBench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pool = folder.path().join("pool");
        let driver = Some(open(&pool).unwrap());
        Self { pool, driver, _folder: folder }
    }
}

#[async_trait::async_trait(?Send)]
impl Bench for DirBench {
    fn driver(&self) -> &dyn VolumeDriver {
        self.driver.as_ref().unwrap()
    }
    async fn restart(&mut self) {
        self.driver = None; // The lock of the pool goes with it.
        self.driver = Some(open(&self.pool).unwrap());
    }
}

/// Tests must not depend on how full the disk is.
fn open(pool: &Path) -> Result<DirDriver, PoolError> {
    DirDriver::open(DirConfig { path: pool.into(), free_min: Bytes(0) })
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

macro_rules! tests {
    ($bench:expr; $($name:ident,)+) => {
        $(#[tokio::test]
        async fn $name() {
            contract::$name(&mut $bench).await;
        })+
    };
}
promises!(tests, DirBench::new());

#[tokio::test]
async fn an_unfinished_volume_is_no_volume_and_is_cleared_at_the_next_start() {
    let mut bench = DirBench::new();
    let id = VolumeId::from_u128(5);
    let left = bench.pool.join(format!(".new-{id}"));
    fs::create_dir_all(left.join("data")).unwrap();
    let inventory = bench.driver().list().await.unwrap();
    assert_eq!(inventory.volumes, []);
    assert_eq!(inventory.strays[0].kind, StrayKind::Unfinished);
    assert_eq!(bench.driver().open(id).await.unwrap(), None);
    bench.restart().await;
    assert_eq!(bench.driver().list().await.unwrap(), Default::default());
}

#[tokio::test]
async fn a_creation_replaces_what_an_earlier_one_left_half_made() {
    let bench = DirBench::new();
    let new = new_volume(5);
    let left = bench.pool.join(format!(".new-{}", new.id));
    fs::create_dir_all(left.join("data")).unwrap();
    fs::write(left.join("volume.json"), "{\"vers").unwrap();
    made(bench.driver(), &new).await;
    assert_eq!(bench.driver().list().await.unwrap().strays, []);
}

#[tokio::test]
async fn a_volume_with_unreadable_tags_is_reported_and_never_touched() {
    let bench = DirBench::new();
    let volume = made(bench.driver(), &new_volume(1)).await;
    fs::write(volume.path.join("precious"), "x").unwrap();
    let file = volume.path.parent().unwrap().join("volume.json");
    let whole = fs::read_to_string(&file).unwrap();
    let copied = whole.replace(&volume.id.to_string(), &VolumeId::from_u128(77).to_string());
    let newer = whole.replace("\"version\": 1", "\"version\": 2");
    assert!(copied != whole && newer != whole);
    for bad in ["", "{", &copied, &newer] {
        fs::write(&file, bad).unwrap();
        let inventory = bench.driver().list().await.unwrap();
        assert_eq!(inventory.volumes, []);
        assert!(matches!(inventory.strays[0].kind, StrayKind::Unreadable { .. }), "{inventory:?}");
        let create = bench.driver().create(new_volume(1)).await;
        assert!(matches!(create, Err(VolumeError::Unreadable { .. })), "{create:?}");
        let remove = bench.driver().remove(volume.id, &volume.tags, Removal::Hard).await;
        assert!(matches!(remove, Err(VolumeError::Unreadable { .. })), "{remove:?}");
    }
    assert!(volume.path.join("precious").exists());
}

#[tokio::test]
async fn data_that_is_set_aside_is_deleted_only_for_its_own_member() {
    let bench = DirBench::new();
    let volume = made(bench.driver(), &new_volume(1)).await;
    fs::write(volume.path.join("precious"), "x").unwrap();
    bench.driver().remove(volume.id, &volume.tags, Removal::Soft).await.unwrap();
    let removed = bench.driver().remove(volume.id, &tags(99), Removal::Hard).await.unwrap();
    assert!(matches!(removed, Removed::Refused(Refusal::OtherTags { .. })), "{removed:?}");
    let trash = bench.pool.join(format!(".trash-{}-1", volume.id));
    assert!(trash.join("data/precious").exists());
    // A deletion that was cut short after the data has no tags left to compare.
    fs::remove_dir_all(trash.join("data")).unwrap();
    fs::remove_file(trash.join("volume.json")).unwrap();
    let removed = bench.driver().remove(volume.id, &volume.tags, Removal::Hard).await.unwrap();
    assert_eq!(removed, Removed::Deleted);
}

#[tokio::test]
async fn a_pool_below_its_floor_refuses_a_volume_but_still_removes_one() {
    let mut bench = DirBench::new();
    let volume = made(bench.driver(), &new_volume(1)).await;
    bench.driver = None;
    let full = DirDriver::open(DirConfig { path: bench.pool.clone(), free_min: Bytes(u64::MAX) }).unwrap();
    let answer = full.create(new_volume(2)).await.unwrap();
    assert!(matches!(answer, Creation::Refused(Refusal::TooFull { .. })), "{answer:?}");
    let again = full.create(new_volume(1)).await.unwrap();
    assert!(matches!(again, Creation::AlreadyThere(_)), "what is there already needs no room: {again:?}");
    assert_eq!(full.remove(volume.id, &volume.tags, Removal::Hard).await.unwrap(), Removed::Deleted);
}

#[tokio::test]
async fn a_pool_that_postgres_cannot_reach_is_refused_with_the_folder_that_blocks() {
    let bench = DirBench::new();
    let above = bench.pool.parent().unwrap().to_path_buf();
    mode(&above, 0o700);
    let stranger = Owner { uid: owner().uid + 54_321, gid: owner().gid + 54_321 };
    let answer = bench.driver().create(NewVolume { owner: stranger, ..new_volume(1) }).await.unwrap();
    let Creation::Refused(Refusal::OwnerLockedOut { blocked_at, .. }) = answer else {
        panic!("expected a refusal, got {answer:?}");
    };
    assert_eq!(blocked_at, fs::canonicalize(above).unwrap());
}

#[test]
fn a_pool_is_made_when_it_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let pool = folder.path().join("a/b/pool");
    open(&pool).unwrap();
    open(&pool).unwrap();
    assert_eq!(fs::read_dir(&pool).unwrap().count(), 0, "nothing of the checks is left");
}

#[test]
fn a_path_that_cannot_be_a_pool_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    assert!(matches!(open(&file), Err(PoolError::NotADirectory { .. })));
    assert!(matches!(open(&file.join("pool")), Err(PoolError::NotMade { .. })));
    assert!(matches!(open(Path::new("pool")), Err(PoolError::NotAbsolute { .. })));
    let world = folder.path().join("world");
    fs::create_dir(&world).unwrap();
    mode(&world, 0o777);
    let error = open(&world).unwrap_err();
    assert!(error.to_string().contains("chmod o-w"), "{error}");
    assert!(matches!(open(Path::new("/proc")), Err(PoolError::NotWritable { .. })), "{:?}", open(Path::new("/proc")));
}

#[test]
fn a_pool_serves_one_process_at_a_time() {
    let bench = DirBench::new();
    assert!(matches!(open(&bench.pool), Err(PoolError::InUse { .. })));
    let pool = bench.pool.clone();
    let DirBench { driver, _folder: folder, .. } = bench;
    drop(driver);
    open(&pool).unwrap();
    drop(folder);
}

#[tokio::test]
async fn a_removal_that_was_dropped_in_the_middle_is_finished_by_the_next() {
    let bench = DirBench::new();
    let volume = made(bench.driver(), &new_volume(1)).await;
    for file in 0..3000 {
        fs::write(volume.path.join(file.to_string()), "x").unwrap();
    }
    let remove = || bench.driver().remove(volume.id, &volume.tags, Removal::Hard);
    // Whether the deadline falls before, in or after the deletion, the outcome must be the same.
    let _ = tokio::time::timeout(Duration::from_millis(3), remove()).await;
    remove().await.unwrap();
    assert_eq!(bench.driver().list().await.unwrap(), Default::default());
}

/// What is killed in the next test.
async fn make_and_remove_volumes_for_ever(pool: &Path) {
    let driver = open(pool).unwrap();
    for id in 1.. {
        let volume = made(&driver, &new_volume(id)).await;
        fs::write(volume.path.join("PG_VERSION"), "15").unwrap();
        if id % 2 == 0 {
            driver.remove(volume.id, &volume.tags, Removal::Hard).await.unwrap();
        }
    }
}

/// The test starts itself once more, as the process to be killed.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "only a process of its own can be killed in the middle")]
async fn a_kill_at_any_moment_leaves_only_whole_volumes() {
    if let Ok(pool) = std::env::var("PGSTEAD_TEST_POOL") {
        return make_and_remove_volumes_for_ever(Path::new(&pool)).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let pool = folder.path().join("pool");
    let mut seen = 0;
    for round in 0..6_u32 {
        let _ = fs::remove_dir_all(&pool);
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_kill_at_any_moment_leaves_only_whole_volumes"])
            .env("PGSTEAD_TEST_POOL", &pool)
            .stdout(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        // Odd volumes stay: the round ends once a few of them are there, at a moment that nobody has chosen.
        let wanted = VolumeId::from_u128(u128::from(2 * round + 1)).to_string();
        let waited = tokio::time::timeout(Duration::from_secs(60), async {
            while !pool.join(&wanted).exists() {
                assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
                tokio::task::yield_now().await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("no volume {wanted} within a minute"));
        child.kill().await.unwrap();

        let driver = open(&pool).unwrap();
        let inventory = driver.list().await.unwrap();
        for volume in &inventory.volumes {
            assert!(volume.path.is_dir());
            assert_eq!(volume.tags, tags(volume.id.as_uuid().as_u128()));
        }
        for stray in &inventory.strays {
            assert!(matches!(stray.kind, StrayKind::SetAside { .. }), "{stray:?}");
            let tags = tags(stray.id.as_uuid().as_u128());
            assert_eq!(driver.remove(stray.id, &tags, Removal::Hard).await.unwrap(), Removed::Deleted);
        }
        assert_eq!(driver.list().await.unwrap().strays, []);
        seen += inventory.volumes.len();
    }
    assert!(seen > 6, "the child made only {seen} volumes");
}
