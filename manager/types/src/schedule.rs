//! When snapshots of a cluster are taken by themselves, and for how long they are kept: `every 6h keep 7d`, or `off`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

const MINUTE: u64 = 60;
const UNITS: [(&str, u64); 3] = [("d", 24 * 60 * MINUTE), ("h", 60 * MINUTE), ("m", MINUTE)];
/// What is written between two snapshots is kept twice.
const EVERY_MIN: Duration = Duration::from_secs(5 * MINUTE);
/// A volume has 100 at most, and people take some as well.
const KEPT_MAX: u64 = 90;

/// Of the leader's volume, by its node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SnapshotSchedule {
    #[default]
    Off,
    Every {
        every: Duration,
        keep: Duration,
    },
}

/// Not a schedule. The text is for the person who wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a schedule of snapshots ({why}); expected `off`, or times in m, h or d such as \"every 6h keep 7d\""
)]
pub struct BadSchedule {
    text: String,
    why: &'static str,
}

impl SnapshotSchedule {
    pub fn is_off(&self) -> bool {
        *self == Self::Off
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let mut words = text.split(' ');
        let mut next = |word| words.next().filter(|found| *found == word).and_then(|_| words.next()).and_then(time);
        let every = next("every").ok_or("it does not begin with how often")?;
        let keep = next("keep").ok_or("it does not say for how long they are kept")?;
        if words.next().is_some() {
            return Err("something follows");
        }
        Ok(Self::Every { every, keep })
    }

    fn check(self) -> Result<Self, &'static str> {
        match self {
            Self::Every { every, .. } if every < EVERY_MIN => Err("every 5 minutes is as often as they are taken"),
            Self::Every { every, keep } if keep < every => Err("none would be there when the next is taken"),
            Self::Every { every, keep } if keep.as_secs() / every.as_secs() > KEPT_MAX => {
                Err("more than 90 would be kept")
            }
            Self::Every { .. } | Self::Off => Ok(self),
        }
    }
}

pub(crate) fn time(text: &str) -> Option<Duration> {
    let split = |(unit, seconds): (&str, u64)| text.strip_suffix(unit).map(|count| (count, seconds));
    let (count, unit) = UNITS.into_iter().find_map(split)?;
    let digits = count.len() <= 6 && count.bytes().all(|byte| byte.is_ascii_digit());
    count.parse::<u64>().ok().filter(|count| digits && *count > 0).map(|count| Duration::from_secs(count * unit))
}

pub(crate) fn written(time: Duration) -> String {
    let whole = |(_, unit): &(&str, u64)| time.as_secs().is_multiple_of(*unit);
    let (name, unit) = UNITS.into_iter().find(whole).unwrap_or(UNITS[2]);
    format!("{}{name}", time.as_secs() / unit)
}

impl FromStr for SnapshotSchedule {
    type Err = BadSchedule;
    fn from_str(text: &str) -> Result<Self, BadSchedule> {
        Self::parse(text)
            .and_then(Self::check)
            .map_err(|why| BadSchedule { text: text.chars().take(80).collect(), why })
    }
}
impl fmt::Display for SnapshotSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Every { every, keep } => write!(f, "every {} keep {}", written(*every), written(*keep)),
        }
    }
}
impl Serialize for SnapshotSchedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for SnapshotSchedule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // What was recorded once is read for ever, whatever bounds a later version has for what is asked for then.
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(|why| serde::de::Error::custom(BadSchedule { text, why }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_read_as_they_are_written() {
        for text in ["off", "every 6h keep 7d", "every 5m keep 1h", "every 1d keep 30d", "every 90m keep 2d"] {
            assert_eq!(text.parse::<SnapshotSchedule>().unwrap().to_string(), text);
        }
        assert_eq!("every 60m keep 24h".parse::<SnapshotSchedule>().unwrap().to_string(), "every 1h keep 1d");
        for bad in [
            "",
            "every 6h",
            "6h keep 7d",
            "every 6h keep 7d more",
            "every 6 keep 7d",
            "every 0h keep 7d",
            "every 4m keep 7d",
            "every 6h keep 5h",
            "every 5m keep 1d",
            "every -1h keep 1d",
        ] {
            let said = bad.parse::<SnapshotSchedule>().unwrap_err().to_string();
            assert!(said.contains("expected `off`"), "{said}");
        }
    }
}
