//! Names that LVM takes, checked before they reach its command line: what begins with a dash would be an option there.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Device mapper joins the names of group and volume, doubles their dashes, and has room for 127 bytes.
const NAME_BYTES_MAX: usize = 60;
/// LVM's own limit for a tag.
const TAG_BYTES_MAX: usize = 1024;

/// Parts of names that LVM keeps for its own hidden volumes (lvm(8), "VALID NAMES").
const RESERVED_PARTS: [&str; 13] = [
    "_cdata", "_cmeta", "_corig", "_mlog", "_mimage", "_pmspare", "_rimage", "_rmeta", "_tdata", "_tmeta", "_vdata",
    "_vorigin", "_imeta",
];

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{name:?} cannot be {what}: {why}")]
pub struct BadName {
    what: &'static str,
    name: String,
    why: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                $check(text)?;
                Ok(Self(text.to_string()))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A volume group's.
    GroupName,
    check_group
);
name!(
    /// A logical volume's, without its group.
    LvName,
    check_volume
);
name!(
    /// A word that LVM keeps with a volume or a group, in its own metadata on the disks.
    Tag,
    check_tag
);

/// A logical volume's full name, `group/volume`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LvPath {
    pub group: GroupName,
    pub name: LvName,
}

impl LvPath {
    /// Its device while it is active.
    pub fn device(&self) -> PathBuf {
        // The mapper's name is there without udev as well; links under /dev/<group> are not always.
        let double = |name: &str| name.replace('-', "--");
        PathBuf::from(format!("/dev/mapper/{}-{}", double(self.group.as_str()), double(self.name.as_str())))
    }
}
impl fmt::Display for LvPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.name)
    }
}

fn check_group(text: &str) -> Result<(), BadName> {
    check_name("a volume group's name", text)
}

fn check_volume(text: &str) -> Result<(), BadName> {
    let bad = |why| BadName { what: "a logical volume's name", name: text.to_string(), why };
    check_name("a logical volume's name", text)?;
    if text.starts_with("snapshot") || text.starts_with("pvmove") {
        return Err(bad("LVM keeps names that begin so for itself"));
    }
    if RESERVED_PARTS.iter().any(|part| text.contains(part)) {
        return Err(bad("LVM keeps names with that part for itself"));
    }
    Ok(())
}

fn check_name(what: &'static str, text: &str) -> Result<(), BadName> {
    let bad = |why| BadName { what, name: text.chars().take(200).collect(), why };
    if text.is_empty() || text.len() > NAME_BYTES_MAX {
        return Err(bad("expected 1 to 60 characters"));
    }
    if text == "." || text == ".." || text.starts_with('-') {
        return Err(bad("it must not begin with a dash, nor be `.` or `..`"));
    }
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte)) {
        return Err(bad("expected ASCII letters, digits and + _ . -"));
    }
    Ok(())
}

fn check_tag(text: &str) -> Result<(), BadName> {
    let bad = |why| BadName { what: "a tag", name: text.chars().take(200).collect(), why };
    if text.is_empty() || text.len() > TAG_BYTES_MAX {
        return Err(bad("expected 1 to 1024 characters"));
    }
    if text.starts_with('-') {
        return Err(bad("it must not begin with a dash"));
    }
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+.-/=!:&#".contains(&byte)) {
        return Err(bad("expected ASCII letters, digits and _ + . - / = ! : & #"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_be_options_or_lvms_own_are_refused() {
        for bad in ["", "-y", "..", "a b", "vol_tdata", "lvol0_pmspare", "snapshot1", "ü", "a/b", &"x".repeat(61)] {
            assert!(bad.parse::<LvName>().is_err(), "{bad:?}");
        }
        for bad in ["", "-y", "a,b", "a b", "@x", "ü"] {
            assert!(bad.parse::<Tag>().is_err(), "{bad:?}");
        }
        assert!("pgs-0192.a_b+c".parse::<LvName>().is_ok());
        assert!("pgstead.created=2026-11-22T12:00:00.000Z".parse::<Tag>().is_ok());
    }

    #[test]
    fn a_device_is_found_by_the_mappers_name() {
        let path = LvPath { group: "pgs-nvme".parse().unwrap(), name: "vol-1".parse().unwrap() };
        assert_eq!(path.to_string(), "pgs-nvme/vol-1");
        assert_eq!(path.device(), PathBuf::from("/dev/mapper/pgs--nvme-vol--1"));
    }

    proptest::proptest! {
        #[test]
        fn no_name_that_passes_could_be_taken_for_an_option_or_for_two_words(text in "\\PC{0,70}") {
            for name in [text.parse::<GroupName>().map(|n| n.0), text.parse::<LvName>().map(|n| n.0), text.parse::<Tag>().map(|n| n.0)] {
                let Ok(name) = name else { continue };
                proptest::prop_assert!(!name.starts_with('-') && !name.contains([' ', ',', '@', '\n']));
            }
        }
    }
}
