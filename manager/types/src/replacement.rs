//! After how long members of a node that is lost are replaced by themselves: `10m`, or `off`.

use crate::schedule::{time, written};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A host that begins anew takes minutes, and a copy of all data is dear.
const DEFAULT: Duration = Duration::from_secs(600);
const MIN: Duration = Duration::from_secs(10);

/// Of a member whose node is not heard of. `None`: it is waited for as long as it takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplaceAfter(pub Option<Duration>);

/// Not such a time. The text is for the person who wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a time after which a lost member is replaced; expected `off`, or 10s and more in s, m, h or d such as 10m"
)]
pub struct BadReplaceAfter {
    text: String,
}

impl ReplaceAfter {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for ReplaceAfter {
    fn default() -> Self {
        Self(Some(DEFAULT))
    }
}

impl FromStr for ReplaceAfter {
    type Err = BadReplaceAfter;
    fn from_str(text: &str) -> Result<Self, BadReplaceAfter> {
        let seconds = || text.strip_suffix('s').and_then(|count| count.parse::<u16>().ok());
        let found = match text {
            "off" => return Ok(Self(None)),
            _ => time(text).or_else(|| seconds().map(|count| Duration::from_secs(count.into()))),
        };
        let found = found.filter(|found| *found >= MIN).map(|found| Self(Some(found)));
        found.ok_or_else(|| BadReplaceAfter { text: text.chars().take(80).collect() })
    }
}
impl fmt::Display for ReplaceAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("off"),
            Some(time) if time.as_secs().is_multiple_of(60) => f.write_str(&written(time)),
            Some(time) => write!(f, "{}s", time.as_secs()),
        }
    }
}
impl Serialize for ReplaceAfter {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for ReplaceAfter {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        for text in ["off", "10m", "2h", "1d", "90s", "10s"] {
            assert_eq!(text.parse::<ReplaceAfter>().unwrap().to_string(), text);
        }
        assert_eq!("600s".parse::<ReplaceAfter>().unwrap(), ReplaceAfter::default());
        for text in ["", "0s", "9s", "5", "m", "-1m", "10 m", "1.5h", "99999999m", "70000s"] {
            assert!(text.parse::<ReplaceAfter>().is_err(), "{text}");
        }
    }
}
