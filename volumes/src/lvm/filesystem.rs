//! File systems on devices: made, checked, mounted, unmounted. A mount is believed only by the kernel's own list of them.

use crate::driver::VolumeError;
use pgstead_lvm::Run;
use pgstead_lvm::program;
use pgstead_types::Bytes;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Of both kinds.
const SUPERBLOCK_END: usize = 2048;
const EXT4_AT: usize = 1024;
const EXT4_MAGIC: [u8; 2] = [0x53, 0xef];
/// Of `s_feature_incompat`.
const EXT4_64BIT: u32 = 0x80;

/// A check of a large file system after a crash reads much of it.
const CHECK_DEADLINE: Duration = Duration::from_secs(3600);
/// Of what a check has found; the first of it says what kind of damage it is.
const SAID_CHARS_MAX: usize = 600;
const MAKE_DEADLINE: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FileSystemKind {
    #[default]
    Ext4,
    Xfs,
}

impl FileSystemKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
    /// mkfs.xfs(8) makes none below 300 MB; Postgres' own files take some 40 MiB, and its log as much again.
    pub const fn least(self) -> Bytes {
        match self {
            Self::Ext4 => Bytes(128 << 20),
            Self::Xfs => Bytes(304 << 20),
        }
    }
    /// The programs that it needs.
    pub const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["mkfs.ext4", "e2fsck", "resize2fs"],
            Self::Xfs => &["mkfs.xfs", "xfs_repair", "xfs_logprint", "xfs_growfs"],
        }
    }
    fn options(self) -> &'static str {
        match self {
            // After an error nothing more is written: Postgres stops, and another member leads.
            // What is deleted goes back to the pool, and tables of inodes that nobody uses are not written.
            Self::Ext4 => "errors=remount-ro,discard,noinit_itable",
            // A snapshot has its origin's UUID, and both may be mounted.
            Self::Xfs => "nouuid,discard",
        }
    }
}
impl FromStr for FileSystemKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ext4" => Ok(Self::Ext4),
            "xfs" => Ok(Self::Xfs),
            other => Err(format!("{other:?} is no file system that volumes can have; expected ext4 or xfs")),
        }
    }
}

/// Makes one on a device whose content is of no use.
pub async fn make(kind: FileSystemKind, device: &Path) -> Result<(), VolumeError> {
    let run = match kind {
        // Tables are written when they are used: it takes little room.
        FileSystemKind::Ext4 => {
            Run::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"])
        }
        FileSystemKind::Xfs => Run::new("mkfs.xfs").args(["-q", "-f"]),
    };
    let run = run.arg(device.to_string_lossy()).deadline(MAKE_DEADLINE);
    let failed = |source| VolumeError::FileSystem { doing: "make a file system on", path: device.into(), source };
    run.output().await.map(drop).map_err(failed)
}

/// How far a check goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// Nothing, where it was unmounted in good order.
    IfDirty,
    /// Everything, whatever it says of itself.
    Whole,
}

/// Brings one that was not unmounted back into order, without a guess that could lose something.
pub async fn check(kind: FileSystemKind, device: &Path, check: Check) -> Result<(), VolumeError> {
    match (kind, check) {
        (FileSystemKind::Ext4, _) => check_ext4(device, check).await,
        // Mounting replays its log, before which there is nothing to be found.
        (FileSystemKind::Xfs, Check::IfDirty) => Ok(()),
        (FileSystemKind::Xfs, Check::Whole) => check_xfs(device).await,
    }
}

async fn check_ext4(device: &Path, check: Check) -> Result<(), VolumeError> {
    // e2fsck(8): a sum of bits. 1 and 2: errors were corrected; 4: some were not. From 8 on it could not do its work.
    let whole = (check == Check::Whole).then_some("-f");
    let run =
        Run::new("e2fsck").arg("-p").args(whole).arg(device.to_string_lossy()).answers(1..8).deadline(CHECK_DEADLINE);
    let failed = |source| VolumeError::FileSystem { doing: "check the file system on", path: device.into(), source };
    let output = run.output().await.map_err(failed)?;
    if output.code & 4 == 0 {
        return Ok(());
    }
    let said = format!("{} {}", output.stdout.trim(), output.stderr.trim());
    Err(VolumeError::Damaged { device: device.into(), said: said.split_whitespace().collect::<Vec<_>>().join(" ") })
}

/// Finds damage, and mends none: what xfs_repair mends, it mends by guesses.
async fn check_xfs(device: &Path) -> Result<(), VolumeError> {
    // xfs_repair(8): with -n it changes nothing, and ends with 1 where it would have.
    let run = Run::new("xfs_repair").arg("-n").arg(device.to_string_lossy()).answers([1]).deadline(CHECK_DEADLINE);
    let failed = |source| VolumeError::FileSystem { doing: "check the file system on", path: device.into(), source };
    let output = run.output().await.map_err(failed)?;
    if output.code == 0 {
        return Ok(());
    }
    Err(VolumeError::Damaged { device: device.into(), said: found_by_xfs(&[output.stderr, output.stdout].concat()) })
}

/// What it says beside the steps that it takes, in one line.
fn found_by_xfs(said: &str) -> String {
    let step =
        |line: &str| line.is_empty() || ["Phase ", "- ", "No modify flag set"].iter().any(|own| line.starts_with(own));
    let found: Vec<&str> = said.lines().map(str::trim).filter(|line| !step(line)).collect();
    found.join("; ").chars().take(SAID_CHARS_MAX).collect()
}

/// Has one that is mounted take all of its device; without effect where it does.
pub async fn grow(kind: FileSystemKind, device: &Path, place: &Path) -> Result<(), VolumeError> {
    let run = match kind {
        FileSystemKind::Ext4 => Run::new("resize2fs").arg(device.to_string_lossy()),
        FileSystemKind::Xfs => Run::new("xfs_growfs").arg(place.to_string_lossy()),
    };
    let failed = |source| VolumeError::FileSystem { doing: "enlarge the file system on", path: device.into(), source };
    run.lasting().deadline(MAKE_DEADLINE).output().await.map(drop).map_err(failed)
}

/// How much a device holds.
pub fn device_size(device: &Path) -> Result<Bytes, VolumeError> {
    let seek = |device| File::open(device)?.seek(SeekFrom::End(0));
    seek(device).map(Bytes).map_err(VolumeError::io("find the size of", device))
}

/// Whether a file system takes all of its device, but for what is less than a block.
pub fn fills(kind: FileSystemKind, device: &Path) -> Result<bool, VolumeError> {
    let mut superblock = [0; SUPERBLOCK_END];
    let read = |superblock: &mut [u8]| File::open(device)?.read_exact(superblock);
    read(&mut superblock).map_err(VolumeError::io("read the file system on", device))?;
    let unreadable = || VolumeError::Unreadable {
        path: device.into(),
        why: format!("it does not begin with the superblock of {}", kind.as_str()),
    };
    let (blocks, block) = blocks(kind, &superblock).ok_or_else(unreadable)?;
    Ok(device_size(device)?.0 < blocks.saturating_add(1).saturating_mul(block))
}

/// How many blocks a file system has, and how large each is, by the beginning of its device. ext4: the kernel's documentation of its
/// super block, from byte 1024 on, little-endian; xfs: the disk format's `xfs_sb`, from the beginning, big-endian.
fn blocks(kind: FileSystemKind, device: &[u8]) -> Option<(u64, u64)> {
    let four = |at: usize| device.get(at..at + 4)?.try_into().ok();
    match kind {
        FileSystemKind::Ext4 => {
            let number = |at: usize| four(EXT4_AT + at).map(u32::from_le_bytes);
            if device.get(EXT4_AT + 0x38..EXT4_AT + 0x3a)? != EXT4_MAGIC {
                return None;
            }
            let wide = number(0x60)? & EXT4_64BIT != 0;
            let high = if wide { u64::from(number(0x150)?) } else { 0 };
            let block = 1024_u64.checked_shl(number(0x18)?)?;
            Some(((high << 32) | u64::from(number(0x4)?), block))
        }
        FileSystemKind::Xfs => {
            if device.get(..4)? != b"XFSB" {
                return None;
            }
            let block = four(4).map(u32::from_be_bytes)?;
            let blocks = device.get(8..16)?.try_into().ok().map(u64::from_be_bytes)?;
            Some((blocks, u64::from(block)))
        }
    }
}

/// Something that the kernel has mounted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mounted {
    pub device_number: (u32, u32),
    pub at: PathBuf,
    pub read_only: bool,
    /// As the kernel names what is mounted.
    pub source: String,
}

/// Every mount that this process sees, the last of each place being the one that is seen there.
pub fn mounts() -> Result<Vec<Mounted>, VolumeError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(VolumeError::io("read", path))?;
    Ok(text.lines().filter_map(parse_mount).collect())
}

/// A line of proc_pid_mountinfo(5): `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
fn parse_mount(line: &str) -> Option<Mounted> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(2);
    let (major, minor) = fields.next()?.split_once(':')?;
    let at = unescape(fields.nth(1)?);
    let own = fields.next()?;
    let mut of_system = after.split(' ').skip(1);
    let source = unescape(of_system.next()?);
    let options = of_system.next().unwrap_or_default();
    let read_only = [own, options].iter().any(|options| options.split(',').any(|option| option == "ro"));
    Some(Mounted { device_number: (major.parse().ok()?, minor.parse().ok()?), at: at.into(), read_only, source })
}

/// Blanks and the like stand as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Whether the file system that is mounted there has given up after an error. The kernel need not list it as read-only then; but it
/// begins no change any more, not even the removal of an attribute that is not there, which changes nothing.
pub fn has_stopped(place: &Path) -> Result<bool, VolumeError> {
    use rustix::io::Errno;
    match rustix::fs::removexattr(place, "trusted.pgstead-none") {
        Ok(()) | Err(Errno::NODATA) => Ok(false),
        Err(Errno::IO | Errno::ROFS) => Ok(true),
        Err(errno) => Err(VolumeError::io("look at", place)(errno.into())),
    }
}

/// Blocks while a log is replayed.
pub fn mount_at(kind: FileSystemKind, device: &Path, path: &Path) -> Result<(), VolumeError> {
    let flags = MountFlags::NOATIME | MountFlags::NODEV | MountFlags::NOSUID;
    let options = CString::new(kind.options()).expect("our own options have no NUL");
    mount(device, path, kind.as_str(), flags, options.as_c_str())
        .map_err(|errno| VolumeError::io("mount a volume at", path)(errno.into()))
}

/// Whether something was mounted there.
pub fn unmount_from(path: &Path) -> Result<bool, VolumeError> {
    match unmount(path, UnmountFlags::empty()) {
        Ok(()) => Ok(true),
        // Nothing is mounted there, or there is no such folder.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(false),
        Err(errno) => Err(VolumeError::io("unmount", path)(errno.into())),
    }
}

/// The programs of a kind that this host lacks.
pub fn missing_programs(kind: FileSystemKind) -> Vec<&'static str> {
    kind.programs().iter().copied().filter(|name| program::find(name).is_none()).collect()
}

/// Removes a folder that nothing is mounted on; one that has other people's files in it stays.
pub fn remove_folder(path: &Path) -> Result<(), VolumeError> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            tracing::warn!(path = %path.display(), "there are files where a volume was mounted; they are kept");
            Ok(())
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(VolumeError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_their_blanks() {
        let line = r"71 28 253:4 / /srv/pg\040data rw,nosuid,nodev,noatime shared:34 - ext4 /dev/mapper/g-vol--1 rw,errors=remount-ro";
        let mounted = parse_mount(line).unwrap();
        assert_eq!(mounted.at, Path::new("/srv/pg data"));
        assert_eq!((mounted.device_number, mounted.read_only), ((253, 4), false));
        assert_eq!(mounted.source, "/dev/mapper/g-vol--1");
        assert!(parse_mount(&line.replace("- ext4 /dev/mapper/g-vol--1 rw", "- ext4 /dev/x ro")).unwrap().read_only);
        assert!(parse_mount(&line.replace("/srv/pg\\040data rw", "/x ro")).unwrap().read_only);
        assert_eq!(parse_mount("nonsense"), None);
        assert!(!mounts().unwrap().is_empty(), "this system has mounts");
    }

    #[test]
    fn of_a_check_what_it_found_is_kept_and_its_steps_are_not() {
        let said = "Phase 1 - find and verify superblock...\n        - scan filesystem freespace\nbad magic number\n\
            bad on-disk superblock 1 - bad magic number\nNo modify flag set, skipping phase 5\n";
        assert_eq!(found_by_xfs(said), "bad magic number; bad on-disk superblock 1 - bad magic number");
        assert!(found_by_xfs(&"bad\n".repeat(10_000)).len() <= SAID_CHARS_MAX);
    }

    #[test]
    fn a_file_systems_size_is_read_from_its_beginning() {
        let mut ext4 = vec![0; SUPERBLOCK_END];
        let mut put = |at: usize, bytes: &[u8]| ext4[EXT4_AT + at..EXT4_AT + at + bytes.len()].copy_from_slice(bytes);
        put(0x38, &EXT4_MAGIC);
        put(0x18, &2_u32.to_le_bytes());
        put(0x4, &1000_u32.to_le_bytes());
        put(0x150, &1_u32.to_le_bytes());
        assert_eq!(blocks(FileSystemKind::Ext4, &ext4), Some((1000, 4096)), "only a wide one has the upper half");
        ext4[EXT4_AT + 0x60..EXT4_AT + 0x64].copy_from_slice(&EXT4_64BIT.to_le_bytes());
        assert_eq!(blocks(FileSystemKind::Ext4, &ext4), Some(((1 << 32) + 1000, 4096)));
        assert_eq!(blocks(FileSystemKind::Xfs, &ext4), None);
        let xfs = [&b"XFSB"[..], &4096_u32.to_be_bytes(), &5000_u64.to_be_bytes()].concat();
        assert_eq!(blocks(FileSystemKind::Xfs, &xfs), Some((5000, 4096)));
        assert_eq!((blocks(FileSystemKind::Ext4, &xfs), blocks(FileSystemKind::Xfs, &[])), (None, None));
        ext4[EXT4_AT + 0x18] = 200;
        assert_eq!(blocks(FileSystemKind::Ext4, &ext4), None, "a damaged one is no reason to panic");
    }

    #[test]
    fn what_fills_its_device_is_told_from_what_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device");
        let mut xfs = vec![0; SUPERBLOCK_END];
        xfs[..16].copy_from_slice(&[&b"XFSB"[..], &4096_u32.to_be_bytes(), &2_u64.to_be_bytes()].concat());
        fs::write(&path, &xfs).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        for (size, fills_it) in [(8192, true), (12287, true), (12288, false)] {
            file.set_len(size).unwrap();
            assert_eq!(fills(FileSystemKind::Xfs, &path).unwrap(), fills_it, "{size}");
        }
        assert!(
            fills(FileSystemKind::Ext4, &path).is_err() && fills(FileSystemKind::Xfs, Path::new("/nowhere")).is_err()
        );
    }
}
