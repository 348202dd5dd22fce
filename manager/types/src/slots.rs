//! Replication slots as a node sees them on its member, and how much log any one of them may keep.

use crate::ids::Incarnation;
use crate::position::Bytes;
use crate::size;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// So many slots are reported, those that keep most first: as many as a member can have, or what is not listed would be taken for
/// what is not there.
pub const SLOTS_SHOWN_MAX: usize = 64;
/// A budget below this loses a standby's slot while the standby is restarted under load.
pub const WAL_BUDGET_MIN: Bytes = Bytes(256 << 20);
/// Postgres counts it in MB of 31 bits.
pub const WAL_BUDGET_MAX: Bytes = Bytes(1 << 50);

/// How much log a slot may keep on its member's volume, as asked for. Beyond it Postgres lets go of the log, and the slot is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WalBudget {
    /// A share of the room on the volume, and another one when that has changed much.
    #[default]
    Auto,
    Fixed(Bytes),
}

/// What a budget is written like.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadWalBudget {
    #[error("{text:?} is not a slot_wal_budget; expected `auto`, or a size in MB, GB or TB such as 8GB")]
    Form { text: String },
    #[error("a slot_wal_budget of {asked} cannot be; expected {WAL_BUDGET_MIN} to {WAL_BUDGET_MAX}, or `auto`")]
    Size { asked: Bytes },
}

impl WalBudget {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl FromStr for WalBudget {
    type Err = BadWalBudget;

    fn from_str(text: &str) -> Result<Self, BadWalBudget> {
        match Self::parse(text)? {
            Self::Fixed(asked) if !(WAL_BUDGET_MIN..=WAL_BUDGET_MAX).contains(&asked) => {
                Err(BadWalBudget::Size { asked })
            }
            budget => Ok(budget),
        }
    }
}

impl WalBudget {
    /// Of whatever size.
    fn parse(text: &str) -> Result<Self, BadWalBudget> {
        let bad = || BadWalBudget::Form { text: text.chars().take(80).collect() };
        if text == "auto" {
            return Ok(Self::Auto);
        }
        size::parse(text).map(Self::Fixed).ok_or_else(bad)
    }
}

impl fmt::Display for WalBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(bytes) => size::write(*bytes, f),
        }
    }
}

impl Serialize for WalBudget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for WalBudget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // What was recorded once is read for ever, whatever bounds a later version has for what is asked for then.
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// One look at `pg_replication_slots`; some seconds old.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SlotsSeen {
    /// The effective `max_slot_wal_keep_size`; `None` for no limit.
    pub budget: Option<Bytes>,
    /// Those that keep most first, [`SLOTS_SHOWN_MAX`] at most.
    pub slots: Vec<SlotSeen>,
    /// How many there are, without the places that are held for members.
    pub total: u32,
    /// How many there can be besides those places; `None` from a node that does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots_max: Option<u32>,
    /// How many can stream from here at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub senders_max: Option<u32>,
    /// Whether Postgres was started with `wal_level = logical`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logical: Option<bool>,
    /// `server_version_num` of the Postgres that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
}

/// From which minor version on copies of logical slots can be moved along without harm: before, moving a slot along without decoding
/// let go too early of rows that it needs, and decoding could go on from what was known for another slot.
const COPIES_SINCE: [(u32, u32); 2] = [(15, 13), (16, 9)];

/// Whether a Postgres of this `server_version_num` can have copies, or offer slots to be copied. `Err` names the version that can.
pub fn can_copy_slots(version: u32) -> Result<(), String> {
    let (major, minor) = COPIES_SINCE.iter().rfind(|(major, _)| *major <= version / 10_000).unwrap_or(&COPIES_SINCE[0]);
    let can = version / 10_000 > *major || version >= major * 10_000 + minor;
    if can { Ok(()) } else { Err(format!("{major}.{minor}")) }
}

/// A row of `pg_replication_slots`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SlotSeen {
    pub name: String,
    pub kind: SlotKind,
    /// Logical slots only.
    #[serde(default)]
    pub database: Option<String>,
    /// The output plugin of a logical slot.
    #[serde(default)]
    pub plugin: Option<String>,
    /// Somebody streams from it now.
    pub active: bool,
    /// Log between what it needs next and the end of the log here; `None` where it needs none, or has lost it.
    #[serde(default)]
    pub retained: Option<Bytes>,
    /// The log that it needs is gone, or it was invalidated for another reason.
    #[serde(default)]
    pub lost: bool,
    /// Whether it is to be there after a failover. Before Postgres 17 every one is, where there is logical replication.
    #[serde(default)]
    pub failover: bool,
    /// On a standby: a copy of the leader's, kept up to date by Postgres, before 17 by pgstead.
    #[serde(default)]
    pub synced: bool,
    /// Gone with its session. Or a copy that is not complete yet, which is dropped at a promotion.
    #[serde(default)]
    pub temporary: bool,
    /// Transactions since the oldest one whose rows it keeps from vacuum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_age: Option<u32>,
    /// Its consumer has confirmed what is beyond the end of this leader's log.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ahead: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotKind {
    Physical,
    Logical,
}

impl SlotSeen {
    /// The incarnation whose slot it is; `None` for everything that people have made.
    pub fn member_life(&self) -> Option<Incarnation> {
        self.name.parse().ok().filter(|_| self.kind == SlotKind::Physical)
    }
    /// On a standby: no copy of the leader's, but its own, from a time when it led, or made there.
    pub fn is_standbys_own(&self) -> bool {
        self.kind == SlotKind::Logical && !self.synced && !self.temporary
    }
    /// On a standby: it can be used there once the standby leads.
    pub fn is_ready_copy(&self) -> bool {
        self.synced && !self.temporary && !self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minor_versions_that_move_slots_along_too_far_copy_none() {
        for (version, can) in [(150_012, false), (150_013, true), (160_008, false), (160_009, true), (170_000, true)] {
            assert_eq!(can_copy_slots(version).is_ok(), can, "{version}");
        }
        assert_eq!(can_copy_slots(160_000), Err("16.9".to_string()));
        assert!(can_copy_slots(0).is_err(), "it does not say");
    }

    #[test]
    fn a_budget_reads_and_writes_as_people_do() {
        for (text, budget) in [
            ("auto", WalBudget::Auto),
            ("8GB", WalBudget::Fixed(Bytes(8 << 30))),
            ("1536MB", WalBudget::Fixed(Bytes(1536 << 20))),
            ("2TB", WalBudget::Fixed(Bytes(2 << 40))),
        ] {
            assert_eq!(text.parse(), Ok(budget));
            assert_eq!(budget.to_string(), text);
        }
        assert_eq!("8 GB".parse(), Ok(WalBudget::Fixed(Bytes(8 << 30))));
        assert_eq!("2048MB".parse::<WalBudget>().unwrap().to_string(), "2GB");
    }

    #[test]
    fn a_budget_that_cannot_be_is_refused_with_what_was_expected() {
        for text in ["", "8", "8G", "-1", "-1GB", "+8GB", "unlimited", "8gb", "GB"] {
            assert!(matches!(text.parse::<WalBudget>(), Err(BadWalBudget::Form { .. })), "{text:?}");
        }
        for text in ["0GB", "1MB", "255MB", "99999999999999999TB", "2000000TB"] {
            assert!(matches!(text.parse::<WalBudget>(), Err(BadWalBudget::Size { .. })), "{text:?}");
        }
        assert_eq!(serde_json::from_str::<WalBudget>("\"64MB\"").unwrap(), WalBudget::Fixed(Bytes(64 << 20)));
    }

    #[test]
    fn only_a_physical_slot_with_the_name_of_an_incarnation_is_a_members() {
        let life = Incarnation { member: crate::MemberId::from_u128(7), number: 2 };
        let slot = |kind, name: &str| SlotSeen {
            name: name.to_string(),
            kind,
            database: None,
            plugin: None,
            active: false,
            retained: None,
            lost: false,
            failover: false,
            synced: false,
            temporary: false,
            rows_age: None,
            ahead: false,
        };
        assert_eq!(slot(SlotKind::Physical, &life.to_string()).member_life(), Some(life));
        assert_eq!(slot(SlotKind::Logical, &life.to_string()).member_life(), None);
        assert_eq!(slot(SlotKind::Physical, "barman").member_life(), None);
    }
}
