//! The control groups of members (cgroups(7), version 2). They lie below one group, which has no process of its own: the kernel
//! gives controllers to a group's children only then. That is the one which the configuration names, or else the parent of the daemon's
//! own where that is called `daemon`, as systemd makes it of the packaged unit's `DelegateSubgroup`.

use super::io_max;
use pgstead_replication::cgroup;
use pgstead_types::MemberId;
use pgstead_types::io_limits::IoLimits;
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Limits of writes need both: without the one for memory the kernel does not know whose a page is that it writes back.
const CONTROLLERS: [&str; 2] = ["io", "memory"];
const OWN_NAME: &str = "daemon";
const PREFIX: &str = "pgstead-";
/// Of processes in a unit's own group, from before the unit was divided.
const PASSES_MAX: usize = 5;

#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    #[error(
        "this host has no control groups of version 2 (cgroup2 is not mounted); boot it with systemd.unified_cgroup_hierarchy=1, \
         or give the container its own"
    )]
    NoCgroup2,
    #[error(
        "the daemon's control group {} is not one whose parent it may divide; start it by the packaged unit (systemd 254 or \
         later), or name a group for members in the node's configuration, such as cgroup = \"{}/pgstead\"", own.display(), mount.display()
    )]
    NotDivided { own: PathBuf, mount: PathBuf },
    #[error("cgroup = {:?} in the node's configuration is not below {}, where control groups are; name one that is", asked, mount.display())]
    NotBelow { asked: PathBuf, mount: PathBuf },
    #[error(
        "the control group {} has no controller {controller}; enable it in cgroup.subtree_control of the groups above it, or boot \
         the host with control groups of version 2 alone", group.display()
    )]
    NoController { group: PathBuf, controller: &'static str },
    #[error("cannot {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("cannot enable the controllers io and memory below {}, which must have no process of its own", group.display())]
    Enable {
        group: PathBuf,
        #[source]
        error: io::Error,
    },
}

fn cannot(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> GroupError {
    move |error| GroupError::Io { doing, path: path.into(), error }
}

/// Where members' groups are on this node, which is the same for as long as the daemon lives. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Groups(Result<Top, Arc<GroupError>>);

impl Groups {
    /// `configured`: `cgroup` of the node's configuration.
    pub fn find(configured: Option<&Path>) -> Self {
        let found = || {
            let mount = mount_point(&read(Path::new("/proc/self/mountinfo"))?).ok_or(GroupError::NoCgroup2)?;
            let text = read(Path::new("/proc/self/cgroup"))?;
            let own = own_group(&text).ok_or(GroupError::NoCgroup2)?;
            top(&mount, &mount.join(own.trim_start_matches('/')), configured)
        };
        Self(found().map_err(Arc::new))
    }

    /// The member's, which may not be there yet.
    pub fn of(&self, member: MemberId) -> Result<Group, Arc<GroupError>> {
        let top = self.0.clone()?;
        Ok(Group { path: top.path.join(format!("{PREFIX}{member}")), top })
    }

    /// Removes the groups of members that nobody knows; one with processes in it stays.
    pub fn sweep(&self, known: &BTreeSet<MemberId>) {
        let Ok(entries) = self.0.as_ref().map(|top| fs::read_dir(&top.path)) else { return };
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let member = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|id| id.parse().ok());
            if member.is_some_and(|member| !known.contains(&member)) {
                // What is busy is tried again at the next change of the record.
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

/// The group above members'.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Top {
    path: PathBuf,
    /// The daemon's own below it, where the processes go that a unit had before it was divided.
    own: Option<PathBuf>,
}

fn top(mount: &Path, own: &Path, configured: Option<&Path>) -> Result<Top, GroupError> {
    if let Some(asked) = configured {
        let below = asked.starts_with(mount) && asked != mount;
        let found = below.then(|| Top { path: asked.into(), own: None });
        return found.ok_or_else(|| GroupError::NotBelow { asked: asked.into(), mount: mount.into() });
    }
    let named = own.file_name().is_some_and(|name| name == OWN_NAME);
    match own.parent().filter(|parent| named && *parent != mount && parent.starts_with(mount)) {
        Some(parent) => Ok(Top { path: parent.into(), own: Some(own.into()) }),
        None => Err(GroupError::NotDivided { own: own.into(), mount: mount.into() }),
    }
}

/// One member's.
#[derive(Clone, Debug)]
pub struct Group {
    path: PathBuf,
    top: Top,
}

impl Group {
    pub fn path(&self) -> &Path {
        &self.path
    }
    pub fn into_path(self) -> PathBuf {
        self.path
    }

    /// There, with the controllers that limits need.
    pub fn ensure_made(&self) -> Result<(), GroupError> {
        let Top { path: top, own } = &self.top;
        match (own, top.parent()) {
            (None, Some(above)) if !top.is_dir() || missing(top, "cgroup.controllers")?.is_some() => {
                ensure_folder(top)?;
                enable(above)?;
            }
            (Some(own), _) if top.extension().is_some_and(|kind| kind == "service") => empty_into(top, own)?,
            _ => {}
        }
        if let Some(controller) = missing(top, "cgroup.controllers")? {
            return Err(GroupError::NoController { group: top.clone(), controller });
        }
        enable(top)?;
        ensure_folder(&self.path)
    }

    /// Has one device the limits that are wanted, and no other any.
    pub fn ensure_limits(&self, wanted: Option<((u32, u32), IoLimits)>) -> Result<(), GroupError> {
        let path = self.path.join("io.max");
        let lines = io_max::changes(&io_max::parse(&read(&path)?), wanted);
        for line in &lines {
            write(&path, line).map_err(cannot("set limits by", &path))?;
            tracing::info!(group = %self.path.display(), %line, "set limits of reads and writes");
        }
        Ok(())
    }
}

/// The processes of a unit that was started before it was divided: guards, Postgres and the gateway outlive the daemon.
fn empty_into(unit: &Path, own: &Path) -> Result<(), GroupError> {
    let look = || cgroup::processes(unit).map_err(cannot("look into", unit));
    for _ in 0..PASSES_MAX {
        let there = look()?;
        if there.is_empty() {
            return Ok(());
        }
        for pid in there {
            cgroup::enter(own, pid).map_err(cannot("move a process into", own))?;
        }
    }
    Ok(())
}

/// Gives the controllers to the group's children.
fn enable(group: &Path) -> Result<(), GroupError> {
    if missing(group, "cgroup.subtree_control")?.is_none() {
        return Ok(());
    }
    let text = CONTROLLERS.map(|name| format!("+{name}")).join(" ");
    let written = write(&group.join("cgroup.subtree_control"), &text);
    written.map_err(|error| GroupError::Enable { group: group.into(), error })
}

/// The first of the controllers that the file does not list.
fn missing(group: &Path, file: &str) -> Result<Option<&'static str>, GroupError> {
    let listed = read(&group.join(file))?;
    Ok(CONTROLLERS.into_iter().find(|name| !listed.split_whitespace().any(|word| word == *name)))
}

fn ensure_folder(path: &Path) -> Result<(), GroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(cannot("make the control group", path)(error))
        }
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<String, GroupError> {
    fs::read_to_string(path).map_err(cannot("read", path))
}

/// Of the kernel's files, which are there or not: none is made here.
fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// From proc_pid_mountinfo(5): `35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw`.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let place = before.split(' ').nth(4)?;
        after.starts_with("cgroup2 ").then(|| PathBuf::from(place))
    })
}

/// From proc_pid_cgroup(5): the line of version 2 begins with `0::`.
fn own_group(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group as the kernel makes it, but for what happens at a write.
    fn group(path: &Path, controllers: &str, enabled: &str) {
        fs::create_dir_all(path).unwrap();
        fs::write(path.join("cgroup.controllers"), controllers).unwrap();
        fs::write(path.join("cgroup.subtree_control"), enabled).unwrap();
        fs::write(path.join("cgroup.procs"), "").unwrap();
    }

    #[test]
    fn the_hierarchy_is_found_among_mounts() {
        let text = "24 1 0:22 / /sys rw - sysfs sysfs rw\n35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(text), Some("/sys/fs/cgroup".into()));
        assert_eq!(mount_point("36 32 0:31 / /sys/fs/cgroup/io rw - cgroup cgroup rw,blkio\nnonsense\n"), None);
        assert_eq!(
            own_group("3:cpu:/x\n0::/system.slice/pgstead.service/daemon\n"),
            Some("/system.slice/pgstead.service/daemon")
        );
        assert_eq!(own_group("3:cpu:/x\n"), None);
    }

    #[test]
    fn only_a_group_that_was_made_for_it_is_divided() {
        let mount = Path::new("/sys/fs/cgroup");
        let own = |path: &str| top(mount, &mount.join(path), None);
        assert_eq!(
            own("system.slice/pgstead.service/daemon").unwrap().path,
            mount.join("system.slice/pgstead.service")
        );
        for other in ["", "daemon", "user.slice/session-1.scope", "system.slice/pgstead.service"] {
            let error = own(other).unwrap_err().to_string();
            assert!(error.contains("cgroup = \"/sys/fs/cgroup/pgstead\""), "{error}");
        }
        let asked = |path: &str| top(mount, &mount.join("daemon"), Some(Path::new(path)));
        assert_eq!(asked("/sys/fs/cgroup/pgstead").unwrap().path, mount.join("pgstead"));
        assert!(asked("/sys/fs/cgroup").is_err() && asked("/srv/pgstead").is_err());
    }

    #[test]
    fn controllers_are_enabled_down_to_the_member_and_only_where_they_are_not() {
        let mount = tempfile::tempdir().unwrap();
        group(mount.path(), "cpu io memory", "");
        let path = mount.path().join("pgstead");
        let member = Group { path: path.join("pgstead-x"), top: Top { path: path.clone(), own: None } };
        let error = member.ensure_made().unwrap_err();
        assert!(matches!(error, GroupError::Io { .. }), "no kernel has made its files: {error}");
        assert_eq!(fs::read_to_string(mount.path().join("cgroup.subtree_control")).unwrap(), "+io +memory");
        group(&path, "cpu", "");
        let error = member.ensure_made().unwrap_err();
        assert!(matches!(error, GroupError::NoController { controller: "io", .. }), "{error}");
        group(&path, "io memory", "memory io pids");
        member.ensure_made().unwrap();
        member.ensure_made().unwrap();
        assert!(member.path.is_dir());
        assert_eq!(fs::read_to_string(path.join("cgroup.subtree_control")).unwrap(), "memory io pids");
    }

    #[test]
    fn a_units_own_processes_are_moved_before_it_is_divided() {
        let mount = tempfile::tempdir().unwrap();
        let unit = mount.path().join("pgstead.service");
        let own = unit.join("daemon");
        group(&unit, "io memory", "");
        group(&own, "", "");
        fs::write(unit.join("cgroup.procs"), "17\n4\n").unwrap();
        let top = Top { path: unit.clone(), own: Some(own.clone()) };
        Group { path: unit.join("pgstead-x"), top }.ensure_made().unwrap();
        assert!(fs::read_to_string(own.join("cgroup.procs")).unwrap().contains("17"));
        assert_eq!(fs::read_to_string(unit.join("cgroup.subtree_control")).unwrap(), "+io +memory");
    }

    #[test]
    fn limits_are_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let top = Top { path: folder.path().into(), own: None };
        let member = Group { path: folder.path().into(), top };
        let limits: IoLimits = serde_json::from_str(r#"{"write_rate":"1MB"}"#).unwrap();
        let wanted = Some(((253, 4), limits));
        assert!(member.ensure_limits(wanted).is_err(), "there is no such file");
        fs::write(folder.path().join("io.max"), "").unwrap();
        member.ensure_limits(wanted).unwrap();
        let written = fs::read_to_string(folder.path().join("io.max")).unwrap();
        assert_eq!(written, "253:4 rbps=max wbps=1048576 riops=max wiops=max");
        member.ensure_limits(wanted).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("io.max")).unwrap(), written);
    }
}
