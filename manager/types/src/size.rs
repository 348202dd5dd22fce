//! Sizes as people write them in a spec: `200GB`, in Postgres' units, which are powers of 1024.

use crate::position::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

const UNITS: [(&str, u64); 3] = [("TB", 1 << 40), ("GB", 1 << 30), ("MB", 1 << 20)];

/// A volume's size as asked for. Postgres' own files and its log need some 128 MB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct VolumeSize(pub Bytes);

pub const VOLUME_SIZE_MIN: Bytes = Bytes(512 << 20);
pub const VOLUME_SIZE_MAX: Bytes = Bytes(1 << 50);

/// What a size is written like.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadSize {
    #[error("{text:?} is not a size; expected one in MB, GB or TB such as 200GB")]
    Form { text: String },
    #[error("a volume of {asked} cannot be; expected {VOLUME_SIZE_MIN} to {VOLUME_SIZE_MAX}")]
    Bounds { asked: Bytes },
}

/// Of whatever size; `None` when it is not one.
pub(crate) fn parse(text: &str) -> Option<Bytes> {
    let split = |(unit, bytes): (&str, u64)| text.strip_suffix(unit).map(|count| (count.trim_end(), bytes));
    let (count, unit) = UNITS.into_iter().find_map(split)?;
    let digits = !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit());
    let count: u64 = count.parse().ok().filter(|_| digits)?;
    Some(Bytes(count.saturating_mul(unit)))
}

pub(crate) fn write(Bytes(bytes): Bytes, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let whole = |(_, unit): &(&str, u64)| bytes % unit == 0;
    let (name, unit) = UNITS.into_iter().find(whole).unwrap_or(UNITS[2]);
    write!(f, "{}{name}", bytes / unit)
}

impl FromStr for VolumeSize {
    type Err = BadSize;
    fn from_str(text: &str) -> Result<Self, BadSize> {
        let asked = parse(text).ok_or_else(|| BadSize::Form { text: text.chars().take(80).collect() })?;
        match (VOLUME_SIZE_MIN..=VOLUME_SIZE_MAX).contains(&asked) {
            true => Ok(Self(asked)),
            false => Err(BadSize::Bounds { asked }),
        }
    }
}
impl fmt::Display for VolumeSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self.0, f)
    }
}
impl Serialize for VolumeSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for VolumeSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // What was recorded once is read for ever, whatever bounds a later version has for what is asked for then.
        let text = String::deserialize(deserializer)?;
        parse(&text).map(Self).ok_or_else(|| serde::de::Error::custom(BadSize::Form { text }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for text in ["512MB", "200GB", "3TB", "1536GB"] {
            assert_eq!(text.parse::<VolumeSize>().unwrap().to_string(), text);
        }
        assert_eq!("1024MB".parse::<VolumeSize>().unwrap().to_string(), "1GB");
        for bad in ["200", "GB", "-1GB", "1.5GB", "1KB", "511MB", "9999999TB", "200gb"] {
            assert!(bad.parse::<VolumeSize>().is_err(), "{bad}");
        }
    }
}
