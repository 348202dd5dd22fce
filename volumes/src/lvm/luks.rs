//! `cryptsetup`, which is to dm-crypt what LVM's program is to LVM. Keys reach it by the paths of their files.

use super::blocking;
use super::keys::Key;
use crate::driver::VolumeError;
use pgstead_lvm::{LvmError, Run, program};
use pgstead_types::{Bytes, VolumeId};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Before the data. Seven keys have room in it; cryptsetup's own 16 MiB would be kept of each volume as a copy.
pub const HEADER: Bytes = Bytes(4 << 20);
const HEADER_SECTORS: &str = "8192";
/// The keys are random: there is nothing to guess, and what makes guessing slow would make a failover slow. cryptsetup takes no fewer.
const DERIVATION: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
/// cryptsetup(8), "RETURN CODES": no permission, which is a wrong key.
const WRONG_KEY: i32 = 2;
/// A disk under load is slow to write a header, and whoever is interrupted there leaves it half done.
const DEADLINE: Duration = Duration::from_secs(600);
pub const PROGRAM: &str = "cryptsetup";

fn cryptsetup(command: &str) -> Result<Run, VolumeError> {
    let missing = LvmError::NoTool { name: PROGRAM, package: "cryptsetup-bin" };
    let program = program::find(PROGRAM).ok_or(missing)?;
    Ok(Run::new(program).arg(command).lasting().deadline(DEADLINE))
}

fn failed(doing: &'static str, device: &Path) -> impl FnOnce(pgstead_lvm::ProgramError) -> VolumeError {
    let path = device.to_path_buf();
    move |source| VolumeError::FileSystem { doing, path, source }
}

fn key_file(key: &Key) -> [String; 2] {
    ["--key-file".to_string(), key.path.to_string_lossy().into_owned()]
}

fn device_arg(device: &Path) -> String {
    device.to_string_lossy().into_owned()
}

/// Makes a header on a device whose content is of no use.
pub async fn format(device: &Path, key: &Key) -> Result<(), VolumeError> {
    let run = cryptsetup("luksFormat")?
        .args(["--batch-mode", "--type", "luks2", "--cipher", "aes-xts-plain64", "--key-size", "512"])
        .args(["--sector-size", "4096", "--offset", HEADER_SECTORS])
        .args(["--luks2-metadata-size", "16k", "--luks2-keyslots-size", "2m"])
        .args(DERIVATION)
        .args(key_file(key))
        .arg(device_arg(device));
    run.output().await.map(drop).map_err(failed("encrypt", device))
}

/// Whether the key is one of its keys; then it is open under that name.
pub async fn open(device: &Path, key: &Key, name: &str) -> Result<bool, VolumeError> {
    let run = cryptsetup("open")?
        // What is deleted goes back to the pool.
        .args(["--type", "luks2", "--allow-discards"])
        .args(key_file(key))
        .args([device_arg(device), name.to_string()])
        .answers([WRONG_KEY]);
    run.output().await.map(|output| output.code == 0).map_err(failed("open what is encrypted on", device))
}

/// Refused by the kernel while something uses it.
pub async fn close(name: &str) -> Result<(), VolumeError> {
    let run = cryptsetup("close")?.arg(name);
    run.output().await.map(drop).map_err(failed("close what is encrypted at", &device(name)))
}

/// Has what is open take all of its device. Whether the key is one of its keys.
pub async fn resize(name: &str, key: &Key) -> Result<bool, VolumeError> {
    let run = cryptsetup("resize")?.args(key_file(key)).arg(name).answers([WRONG_KEY]);
    run.output().await.map(|output| output.code == 0).map_err(failed("enlarge what is encrypted at", &device(name)))
}

/// The slot that the key opens, if it is one of its keys.
pub async fn slot_of(device: &Path, key: &Key) -> Result<Option<u32>, VolumeError> {
    let run = cryptsetup("open")?
        .args(["--test-passphrase", "--verbose", "--type", "luks2"])
        .args(key_file(key))
        .arg(device_arg(device))
        .answers([WRONG_KEY]);
    let output = run.output().await.map_err(failed("try a key on", device))?;
    if output.code == WRONG_KEY {
        return Ok(None);
    }
    let slot = unlocked(&output.stdout).or_else(|| unlocked(&output.stderr));
    let unread = || VolumeError::Unreadable {
        path: device.to_path_buf(),
        why: "cryptsetup did not say which key slot it has opened".to_string(),
    };
    slot.map(Some).ok_or_else(unread)
}

/// From what `--verbose` says: `Key slot 0 unlocked.`
fn unlocked(said: &str) -> Option<u32> {
    let line = said.lines().find_map(|line| line.trim().strip_prefix("Key slot ")?.strip_suffix(" unlocked."));
    line?.parse().ok()
}

/// Gives it one more key, with one that it has.
pub async fn add_key(device: &Path, with: &Key, new: &Key) -> Result<(), VolumeError> {
    let run = cryptsetup("luksAddKey")?
        .arg("--batch-mode")
        .args(DERIVATION)
        .args(key_file(with))
        .args([device_arg(device), new.path.to_string_lossy().into_owned()]);
    run.output().await.map(drop).map_err(failed("give another key to", device))
}

/// Empties a slot. cryptsetup itself refuses where `with` does not open another one.
pub async fn kill_slot(device: &Path, with: &Key, slot: u32) -> Result<(), VolumeError> {
    let run = cryptsetup("luksKillSlot")?.args(key_file(with)).args([device_arg(device), slot.to_string()]);
    run.output().await.map(drop).map_err(failed("take a key from", device))
}

/// Into a file that is not there.
pub async fn save_header(device: &Path, to: &Path) -> Result<(), VolumeError> {
    let run = cryptsetup("luksHeaderBackup")?
        .arg(device_arg(device))
        .args(["--header-backup-file".to_string(), to.to_string_lossy().into_owned()]);
    run.output().await.map(drop).map_err(failed("save the header of", device))
}

/// What is open of an encrypted volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mapping {
    pub device: PathBuf,
    pub number: (u32, u32),
    /// The devices that it lies on, by their numbers.
    pub below: BTreeSet<(u32, u32)>,
}

pub fn name(id: VolumeId) -> String {
    format!("pgstead-{id}")
}

fn device(name: &str) -> PathBuf {
    Path::new("/dev/mapper").join(name)
}

/// By the kernel's own list, which costs no run of a program.
pub async fn find(name: String) -> Result<Option<Mapping>, VolumeError> {
    blocking(move || find_in(Path::new("/sys/block"), &name)).await
}

fn find_in(blocks: &Path, name: &str) -> Result<Option<Mapping>, VolumeError> {
    for entry in fs::read_dir(blocks).map_err(VolumeError::io("list", blocks))? {
        let block = entry.map_err(VolumeError::io("list", blocks))?.path();
        // What is no mapping has no such file, and what has gone since has none any more.
        if fs::read_to_string(block.join("dm/name")).is_ok_and(|found| found.trim_end() == name) {
            return read(&block, name).map(Some).map_err(VolumeError::io("read what the kernel says of", &block));
        }
    }
    Ok(None)
}

fn read(block: &Path, name: &str) -> io::Result<Mapping> {
    let number = |device: &Path| {
        let text = fs::read_to_string(device.join("dev"))?;
        let numbers = text.trim_end().split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        numbers.ok_or_else(|| io::Error::other(format!("{text:?} is no number of a device")))
    };
    let mut below = BTreeSet::new();
    for slave in fs::read_dir(block.join("slaves"))? {
        below.insert(number(&slave?.path())?);
    }
    Ok(Mapping { device: device(name), number: number(block)?, below })
}

/// Whether something has claimed it for itself, such as a mount.
pub fn is_claimed(device: &Path) -> Result<bool, VolumeError> {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    match rustix::fs::open(device, flags, Mode::empty()) {
        Ok(_) => Ok(false),
        Err(rustix::io::Errno::BUSY) => Ok(true),
        Err(errno) => Err(VolumeError::io("open", device)(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slot_that_was_opened_is_read() {
        assert_eq!(unlocked("Key slot 3 unlocked.\nCommand successful.\n"), Some(3));
        assert_eq!(unlocked("WARNING: something\nKey slot 12 unlocked.\n"), Some(12));
        assert_eq!(unlocked("Command successful.\n"), None);
        assert_eq!(unlocked("Key slot x unlocked.\n"), None);
    }

    #[test]
    fn a_mapping_is_found_by_its_name_with_what_it_lies_on() {
        let home = tempfile::tempdir().unwrap();
        let blocks = home.path();
        for (block, name, number) in [("dm-1", "g-vol--1", "253:1\n"), ("dm-2", "pgstead-1", "253:2\n")] {
            fs::create_dir_all(blocks.join(block).join("dm")).unwrap();
            fs::create_dir_all(blocks.join(block).join("slaves")).unwrap();
            fs::write(blocks.join(block).join("dm/name"), format!("{name}\n")).unwrap();
            fs::write(blocks.join(block).join("dev"), number).unwrap();
        }
        fs::create_dir_all(blocks.join("vda")).unwrap();
        std::os::unix::fs::symlink("../../dm-1", blocks.join("dm-2/slaves/dm-1")).unwrap();
        let found = find_in(blocks, "pgstead-1").unwrap().unwrap();
        assert_eq!((found.number, found.below), ((253, 2), BTreeSet::from([(253, 1)])));
        assert_eq!(found.device, Path::new("/dev/mapper/pgstead-1"));
        assert_eq!(find_in(blocks, "pgstead").unwrap(), None);
        fs::write(blocks.join("dm-2/dev"), "nonsense").unwrap();
        assert!(find_in(blocks, "pgstead-1").is_err());
    }
}
