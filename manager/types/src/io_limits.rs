//! How much each member's Postgres may read and write: operations and bytes a second, each with a limit or without one.

use crate::position::Bytes;
use crate::size;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// With less a checkpoint takes hours, and so does a failover.
pub const IOPS_MIN: u32 = 100;
pub const RATE_MIN: Bytes = Bytes(1 << 20);
/// No device is as fast, and a number that was meant to be another one is told as that.
pub const RATE_MAX: Bytes = Bytes(1 << 40);

/// Of each member, on the device of its volume. `None`: as much as the device gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoLimits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_iops: Option<Iops>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_iops: Option<Iops>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_rate: Option<IoRate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_rate: Option<IoRate>,
}

/// Operations a second.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Iops(pub u32);

/// Bytes a second, written like a size: `200MB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct IoRate(pub Bytes);

/// A limit that cannot be. The text is for the person who wrote it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadIoLimit {
    #[error("{text:?} is not a number of operations a second; expected {IOPS_MIN} or more, such as 4000")]
    IopsForm { text: String },
    #[error("{asked} operations a second are too few for Postgres; expected {IOPS_MIN} or more")]
    TooFewOperations { asked: u32 },
    #[error("{text:?} is not a rate in bytes a second; expected one in MB, GB or TB such as 200MB")]
    RateForm { text: String },
    #[error("a rate of {asked} a second cannot be; expected {RATE_MIN} to {RATE_MAX}")]
    RateBounds { asked: Bytes },
}

impl IoLimits {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// What was recorded once is read whatever it says; what is asked for now has bounds.
    pub fn check(&self) -> Result<(), BadIoLimit> {
        for iops in [self.read_iops, self.write_iops].into_iter().flatten() {
            iops.check()?;
        }
        [self.read_rate, self.write_rate].into_iter().flatten().try_for_each(|rate| rate.check())
    }
}

impl fmt::Display for IoLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let iops = |name: &str, limit: Option<Iops>| limit.map(|limit| format!("{name} = {limit}"));
        let rate = |name: &str, limit: Option<IoRate>| limit.map(|limit| format!("{name} = {limit}"));
        let said = [
            iops("read_iops", self.read_iops),
            iops("write_iops", self.write_iops),
            rate("read_rate", self.read_rate),
            rate("write_rate", self.write_rate),
        ];
        let said: Vec<String> = said.into_iter().flatten().collect();
        f.write_str(if said.is_empty() { "none" } else { "" })?;
        f.write_str(&said.join(", "))
    }
}

impl Iops {
    fn check(self) -> Result<(), BadIoLimit> {
        if self.0 < IOPS_MIN { Err(BadIoLimit::TooFewOperations { asked: self.0 }) } else { Ok(()) }
    }
}
impl FromStr for Iops {
    type Err = BadIoLimit;
    fn from_str(text: &str) -> Result<Self, BadIoLimit> {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let count = text.parse().ok().filter(|_| digits);
        let asked = Self(count.ok_or_else(|| BadIoLimit::IopsForm { text: text.chars().take(80).collect() })?);
        asked.check().map(|()| asked)
    }
}
impl fmt::Display for Iops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl IoRate {
    fn check(self) -> Result<(), BadIoLimit> {
        let fits = (RATE_MIN..=RATE_MAX).contains(&self.0);
        if fits { Ok(()) } else { Err(BadIoLimit::RateBounds { asked: self.0 }) }
    }
    fn parse(text: &str) -> Result<Self, BadIoLimit> {
        let rate = size::parse(text).map(Self);
        rate.ok_or_else(|| BadIoLimit::RateForm { text: text.chars().take(80).collect() })
    }
}
impl FromStr for IoRate {
    type Err = BadIoLimit;
    fn from_str(text: &str) -> Result<Self, BadIoLimit> {
        let asked = Self::parse(text)?;
        asked.check().map(|()| asked)
    }
}
impl fmt::Display for IoRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        size::write(self.0, f)
    }
}
impl Serialize for IoRate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for IoRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{ClusterSpec, SpecError};

    #[test]
    fn limits_are_read_as_they_are_written() {
        let text = r#"{"read_iops":4000,"write_rate":"200MB"}"#;
        let limits: IoLimits = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&limits).unwrap(), text);
        assert_eq!(limits.to_string(), "read_iops = 4000, write_rate = 200MB");
        assert_eq!((limits.check(), limits.is_none()), (Ok(()), false));
        assert_eq!((IoLimits::default().to_string().as_str(), IoLimits::default().is_none()), ("none", true));
        assert!(serde_json::from_str::<IoLimits>(r#"{"iops":4000}"#).is_err());
    }

    #[test]
    fn a_spec_says_them_only_where_there_are_some_and_bounds_them() {
        let mut spec = ClusterSpec::named("app");
        assert!(!serde_json::to_string(&spec).unwrap().contains("io_limits"), "older voters read it");
        spec.io_limits.read_iops = Some(Iops(1));
        assert!(matches!(spec.check(), Err(SpecError::BadIoLimit(BadIoLimit::TooFewOperations { asked: 1 }))));
        spec.io_limits.read_iops = Some(Iops(IOPS_MIN));
        assert_eq!(spec.check(), Ok(()));
    }

    #[test]
    fn what_no_postgres_could_live_with_is_refused() {
        for bad in ["", "-1", "+5000", "99", "4k", "5000000000"] {
            assert!(bad.parse::<Iops>().is_err(), "{bad}");
        }
        for bad in ["", "200", "1.5MB", "0MB", "2TB", "none"] {
            assert!(bad.parse::<IoRate>().is_err(), "{bad}");
        }
        let limits: IoLimits = serde_json::from_str(r#"{"write_iops":1,"read_rate":"0MB"}"#).unwrap();
        assert_eq!(limits.check(), Err(BadIoLimit::TooFewOperations { asked: 1 }));
        let limits = IoLimits { write_iops: None, ..limits };
        assert_eq!(limits.check(), Err(BadIoLimit::RateBounds { asked: Bytes(0) }));
    }
}
