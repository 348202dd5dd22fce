//! What every driver must keep. Each function is one promise of the trait; whoever tests a driver runs them all, by the names
//! that `promises!` gives, against the real thing.

use pgstead_types::storage::SnapshotWhy;
use pgstead_types::{Bytes, ClusterId, DeploymentId, MemberId, SnapshotId, VolumeId, WallTime};
use pgstead_volumes::{
    Capability, Creation, Extension, Forking, Left, NewSnapshot, NewVolume, Owner, Refusal, Removal, Removed, Snapshot,
    Snapshotted, StrayKind, Support, ToFill, Volume, VolumeDriver, VolumeTags, left_of,
};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// A driver on storage of its own, made anew for each test.
#[async_trait::async_trait(?Send)]
pub trait Bench {
    fn driver(&self) -> &dyn VolumeDriver;
    /// Forgets everything in memory, as a restarted daemon has.
    async fn restart(&mut self);
}

/// Hands the names of all promises to another macro, after what is given for it.
#[macro_export]
macro_rules! promises {
    ($then:ident, $($given:tt)*) => {
        $then! { $($given)*;
            a_created_volume_belongs_to_its_owner_alone,
            creating_twice_changes_nothing,
            a_volume_of_another_member_is_never_handed_out,
            the_inventory_is_rebuilt_from_storage_after_a_restart,
            a_soft_removal_keeps_the_data_and_leaves_the_inventory,
            a_hard_removal_leaves_nothing_and_may_be_repeated,
            a_hard_removal_finishes_a_soft_one,
            a_removal_with_wrong_tags_is_refused,
            an_id_may_be_used_again_after_its_removal,
            a_volume_that_cannot_fit_is_refused_in_one_sentence,
            usage_adds_up,
            a_volume_in_use_grows_and_stays_grown,
            a_snapshot_keeps_what_was_and_goes_with_its_volume,
            a_fork_has_what_the_snapshot_has_and_is_a_volume_of_its_own,
            what_is_not_offered_says_why,
        }
    };
}

pub fn tags(member: u128) -> VolumeTags {
    VolumeTags {
        deployment: DeploymentId::from_u128(1),
        cluster: ClusterId::from_u128(2),
        member: MemberId::from_u128(member),
    }
}

/// The user that the tests run as, for only root could give files away; or whom the environment names.
pub fn owner() -> Owner {
    let named = std::env::var("PGSTEAD_TEST_OWNER").ok();
    if let Some((uid, gid)) = named.as_deref().and_then(|named| named.split_once(':')) {
        return Owner { uid: uid.parse().unwrap(), gid: gid.parse().unwrap() };
    }
    Owner { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() }
}

pub fn new_volume(id: u128) -> NewVolume {
    NewVolume { id: VolumeId::from_u128(id), tags: tags(id), size: None, owner: owner() }
}

pub async fn made(driver: &dyn VolumeDriver, new: &NewVolume) -> Volume {
    match driver.create(new.clone()).await.unwrap() {
        Creation::Made(volume) => volume,
        other => panic!("expected a new volume, got {other:?}"),
    }
}

pub async fn a_created_volume_belongs_to_its_owner_alone(bench: &mut dyn Bench) {
    let volume = made(bench.driver(), &new_volume(1)).await;
    let found = fs::metadata(&volume.path).unwrap();
    assert!(found.is_dir());
    assert_eq!((found.uid(), found.gid()), (owner().uid, owner().gid));
    assert_eq!(found.mode() & 0o7777, 0o700);
    assert_eq!(bench.driver().open(volume.id).await.unwrap(), Some(volume));
}

pub async fn creating_twice_changes_nothing(bench: &mut dyn Bench) {
    let new = new_volume(1);
    let volume = made(bench.driver(), &new).await;
    fs::write(volume.path.join("PG_VERSION"), "15").unwrap();
    assert_eq!(bench.driver().create(new.clone()).await.unwrap(), Creation::AlreadyThere(volume.clone()));
    bench.restart().await;
    assert_eq!(bench.driver().create(new).await.unwrap(), Creation::AlreadyThere(volume.clone()));
    assert_eq!(fs::read_to_string(volume.path.join("PG_VERSION")).unwrap(), "15");
}

pub async fn a_volume_of_another_member_is_never_handed_out(bench: &mut dyn Bench) {
    made(bench.driver(), &new_volume(1)).await;
    let stranger = NewVolume { tags: tags(99), ..new_volume(1) };
    let answer = bench.driver().create(stranger).await.unwrap();
    assert!(matches!(answer, Creation::Refused(Refusal::OtherTags { .. })), "{answer:?}");
}

pub async fn the_inventory_is_rebuilt_from_storage_after_a_restart(bench: &mut dyn Bench) {
    assert_eq!(bench.driver().list().await.unwrap().volumes, []);
    let sized = NewVolume { size: Some(Bytes(320 << 20)), ..new_volume(2) };
    let volumes = vec![made(bench.driver(), &new_volume(1)).await, made(bench.driver(), &sized).await];
    bench.restart().await;
    let inventory = bench.driver().list().await.unwrap();
    assert_eq!(inventory.volumes, volumes);
    assert_eq!(inventory.strays, []);
    assert_eq!(bench.driver().list().await.unwrap(), inventory);
}

pub async fn a_soft_removal_keeps_the_data_and_leaves_the_inventory(bench: &mut dyn Bench) {
    let volume = made(bench.driver(), &new_volume(1)).await;
    let remove = || bench.driver().remove(volume.id, &volume.tags, Removal::Soft);
    assert_eq!(remove().await.unwrap(), Removed::SetAside);
    assert_eq!(remove().await.unwrap(), Removed::SetAside);
    assert_eq!(bench.driver().open(volume.id).await.unwrap(), None);
    let inventory = bench.driver().list().await.unwrap();
    assert_eq!(inventory.volumes, []);
    assert_eq!(inventory.strays.len(), 1);
    assert_eq!(
        (inventory.strays[0].id, &inventory.strays[0].kind),
        (volume.id, &StrayKind::SetAside { tags: Some(volume.tags) })
    );
}

pub async fn a_hard_removal_leaves_nothing_and_may_be_repeated(bench: &mut dyn Bench) {
    let volume = made(bench.driver(), &new_volume(1)).await;
    let base = volume.path.join("base/5");
    fs::create_dir_all(&base).unwrap();
    for file in 0..1200 {
        fs::write(base.join(file.to_string()), "x").unwrap();
    }
    let remove = || bench.driver().remove(volume.id, &volume.tags, Removal::Hard);
    assert_eq!(remove().await.unwrap(), Removed::Deleted);
    assert_eq!(bench.driver().list().await.unwrap(), Default::default());
    assert_eq!(remove().await.unwrap(), Removed::NotThere);
    assert!(!volume.path.exists());
}

pub async fn a_hard_removal_finishes_a_soft_one(bench: &mut dyn Bench) {
    let volume = made(bench.driver(), &new_volume(1)).await;
    assert_eq!(left_of(bench.driver(), volume.id).await.unwrap(), Left::Whole);
    bench.driver().remove(volume.id, &volume.tags, Removal::Soft).await.unwrap();
    bench.restart().await;
    assert_eq!(left_of(bench.driver(), volume.id).await.unwrap(), Left::Remains);
    let removed = bench.driver().remove(volume.id, &volume.tags, Removal::Hard).await.unwrap();
    assert_eq!(removed, Removed::Deleted);
    assert_eq!(bench.driver().list().await.unwrap(), Default::default());
    assert_eq!(left_of(bench.driver(), volume.id).await.unwrap(), Left::Nothing);
}

pub async fn a_removal_with_wrong_tags_is_refused(bench: &mut dyn Bench) {
    let volume = made(bench.driver(), &new_volume(1)).await;
    for how in [Removal::Soft, Removal::Hard] {
        let removed = bench.driver().remove(volume.id, &tags(99), how).await.unwrap();
        assert!(matches!(removed, Removed::Refused(Refusal::OtherTags { .. })), "{removed:?}");
    }
    assert_eq!(bench.driver().open(volume.id).await.unwrap(), Some(volume));
}

pub async fn an_id_may_be_used_again_after_its_removal(bench: &mut dyn Bench) {
    for _ in 0..2 {
        let volume = made(bench.driver(), &new_volume(1)).await;
        assert_eq!(
            fs::read_dir(&volume.path).unwrap().filter(|e| e.as_ref().unwrap().file_name() != "lost+found").count(),
            0
        );
        fs::write(volume.path.join("PG_VERSION"), "15").unwrap();
        bench.driver().remove(volume.id, &volume.tags, Removal::Soft).await.unwrap();
    }
    assert_eq!(bench.driver().list().await.unwrap().strays.len(), 2);
}

pub async fn a_volume_that_cannot_fit_is_refused_in_one_sentence(bench: &mut dyn Bench) {
    let huge = NewVolume { size: Some(Bytes(u64::MAX)), ..new_volume(1) };
    let Creation::Refused(refusal) = bench.driver().create(huge).await.unwrap() else {
        panic!("expected a refusal");
    };
    let text = refusal.to_string();
    assert!(text.contains("free") && text.contains("expected") && !text.contains('\n'), "{text}");
    assert_eq!(bench.driver().list().await.unwrap(), Default::default());
}

pub async fn usage_adds_up(bench: &mut dyn Bench) {
    let usage = bench.driver().usage().await.unwrap();
    assert!(usage.total.0 > 0);
    assert!(usage.used.0 + usage.free.0 <= usage.total.0, "{usage:?}");
}

pub async fn a_volume_in_use_grows_and_stays_grown(bench: &mut dyn Bench) {
    let volume = made(bench.driver(), &new_volume(1)).await;
    let to = volume.size.map_or(Bytes(1 << 30), |Bytes(size)| Bytes(size + (256 << 20)));
    if let Support::Unsupported { why } = bench.driver().support(Capability::Extend) {
        assert_eq!(bench.driver().extend(volume.id, to).await.unwrap(), Extension::Unsupported { why });
        return;
    }
    let room = || rustix::fs::statvfs(&volume.path).map(|found| found.f_blocks * found.f_frsize).unwrap();
    let before = room();
    // As Postgres has it: open, in use.
    let mut file = fs::File::create(volume.path.join("rows")).unwrap();
    let extended = bench.driver().extend(volume.id, to).await.unwrap();
    let Extension::Holds(holds) = extended else { panic!("{extended:?}") };
    assert!(holds >= to);
    assert!(room() >= before + (200 << 20), "{before} bytes before, {} after", room());
    std::io::Write::write_all(&mut file, b"rows").unwrap();
    bench.restart().await;
    let found = bench.driver().open(volume.id).await.unwrap().unwrap();
    assert_eq!((found.size, found.tags), (Some(holds), volume.tags));
    assert_eq!(fs::read(volume.path.join("rows")).unwrap(), b"rows");
    // Less, or as much, changes nothing.
    for to in [Bytes(1), holds] {
        assert_eq!(bench.driver().extend(volume.id, to).await.unwrap(), Extension::Holds(holds));
    }
    assert_eq!(bench.driver().extend(new_volume(2).id, to).await.unwrap(), Extension::NotThere);
    let huge = bench.driver().extend(volume.id, Bytes(1 << 50)).await.unwrap();
    assert!(matches!(&huge, Extension::Refused(why) if why.to_string().contains("expected")), "{huge:?}");
}

/// What is copied by whoever asks for it is copied.
fn fill(asked: &ToFill) {
    for entry in fs::read_dir(&asked.from).unwrap().flatten() {
        fs::copy(entry.path(), asked.into.join(entry.file_name())).unwrap();
    }
}

pub async fn taken(driver: &dyn VolumeDriver, new: &NewSnapshot) -> Snapshot {
    match driver.snapshot(new.clone()).await.unwrap() {
        Snapshotted::Made(snapshot) => snapshot,
        Snapshotted::ToFill(asked) => {
            assert_eq!(driver.snapshots().await.unwrap().iter().filter(|held| held.id == new.id).count(), 0);
            fill(&asked);
            driver.finish_snapshot(new.id).await.unwrap()
        }
        other => panic!("expected a new snapshot, got {other:?}"),
    }
}

pub async fn forked(driver: &dyn VolumeDriver, new: &NewVolume, from: SnapshotId) -> Volume {
    match driver.fork(new.clone(), from).await.unwrap() {
        Forking::Made(volume) => volume,
        Forking::ToFill(asked) => {
            assert_eq!(driver.open(new.id).await.unwrap(), None, "it is there when it is whole");
            fill(&asked);
            driver.finish_fork(new.id).await.unwrap()
        }
        other => panic!("expected a new volume, got {other:?}"),
    }
}

pub async fn a_fork_has_what_the_snapshot_has_and_is_a_volume_of_its_own(bench: &mut dyn Bench) {
    let volume = made(bench.driver(), &new_volume(1)).await;
    fs::write(volume.path.join("rows"), "before").unwrap();
    let new = NewSnapshot { id: SnapshotId::from_u128(7), of: volume.id, why: SnapshotWhy::Fork, expires: None };
    let snapshot = taken(bench.driver(), &new).await;
    fs::write(volume.path.join("rows"), "after").unwrap();
    let none = bench.driver().fork(new_volume(2), SnapshotId::from_u128(8)).await.unwrap();
    assert_eq!(none, Forking::NoSnapshot);
    let fork = forked(bench.driver(), &new_volume(2), snapshot.id).await;
    assert_eq!((fork.tags, fork.owner), (tags(2), owner()));
    assert_eq!(fs::read_to_string(fork.path.join("rows")).unwrap(), "before");
    fs::write(fork.path.join("rows"), "its own").unwrap();
    bench.restart().await;
    assert_eq!(bench.driver().fork(new_volume(2), snapshot.id).await.unwrap(), Forking::AlreadyThere(fork.clone()));
    let stranger = NewVolume { tags: tags(99), ..new_volume(2) };
    let refused = bench.driver().fork(stranger, snapshot.id).await.unwrap();
    assert!(matches!(refused, Forking::Refused(Refusal::OtherTags { .. })), "{refused:?}");
    // Neither needs the others.
    let second = forked(bench.driver(), &new_volume(3), snapshot.id).await;
    assert_eq!(fs::read_to_string(second.path.join("rows")).unwrap(), "before");
    bench.driver().remove(volume.id, &volume.tags, Removal::Hard).await.unwrap();
    assert_eq!(bench.driver().snapshots().await.unwrap(), []);
    bench.restart().await;
    assert_eq!(bench.driver().open(fork.id).await.unwrap().as_ref(), Some(&fork));
    assert_eq!(fs::read_to_string(fork.path.join("rows")).unwrap(), "its own");
    assert_eq!(bench.driver().list().await.unwrap().volumes, [fork, second]);
}

pub async fn a_snapshot_keeps_what_was_and_goes_with_its_volume(bench: &mut dyn Bench) {
    let volume = made(bench.driver(), &new_volume(1)).await;
    fs::write(volume.path.join("rows"), "before").unwrap();
    let expires = Some(WallTime(4_000_000_000_000));
    let new = NewSnapshot { id: SnapshotId::from_u128(7), of: volume.id, why: SnapshotWhy::Asked, expires };
    let snapshot = taken(bench.driver(), &new).await;
    assert_eq!((snapshot.of, snapshot.tags, snapshot.expires), (volume.id, volume.tags, expires));
    fs::write(volume.path.join("rows"), "after").unwrap();
    bench.restart().await;
    assert_eq!(bench.driver().snapshots().await.unwrap(), std::slice::from_ref(&snapshot));
    assert_eq!(bench.driver().snapshot(new.clone()).await.unwrap(), Snapshotted::AlreadyThere(snapshot.clone()));
    // It is no volume, and nothing left over.
    assert_eq!(bench.driver().list().await.unwrap().volumes.len(), 1);
    assert_eq!(bench.driver().list().await.unwrap().strays, []);
    let none = NewSnapshot { of: VolumeId::from_u128(2), id: SnapshotId::from_u128(8), ..new.clone() };
    assert_eq!(bench.driver().snapshot(none).await.unwrap(), Snapshotted::NotThere);
    let second = NewSnapshot { id: SnapshotId::from_u128(9), expires: None, ..new };
    assert_eq!(taken(bench.driver(), &second).await.id, second.id);
    assert!(bench.driver().remove_snapshot(snapshot.id).await.unwrap());
    assert!(!bench.driver().remove_snapshot(snapshot.id).await.unwrap());
    let left = bench.driver().snapshots().await.unwrap();
    assert_eq!((left.len(), left[0].id, left[0].expires, left[0].why), (1, second.id, None, second.why));
    assert_eq!(fs::read_to_string(volume.path.join("rows")).unwrap(), "after");
    // What is set aside still has its own.
    bench.driver().remove(volume.id, &volume.tags, Removal::Soft).await.unwrap();
    assert_eq!(bench.driver().snapshots().await.unwrap().len(), 1);
    bench.driver().remove(volume.id, &volume.tags, Removal::Hard).await.unwrap();
    assert_eq!(bench.driver().snapshots().await.unwrap(), []);
}

pub async fn what_is_not_offered_says_why(bench: &mut dyn Bench) {
    for what in [Capability::Extend, Capability::SizeLimit, Capability::Snapshot] {
        match bench.driver().support(what) {
            Support::Offered => {}
            Support::Unsupported { why } => assert!(why.contains(' '), "{what:?}: {why:?} is not a reason"),
        }
    }
}
