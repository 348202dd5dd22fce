//! Where members go: what a spec may ask, and how much each term of a node's score counts. `judged` is what was found of each node.

mod judged;

pub use judged::{Against, Judged, Judgement, Load, Terms};

use crate::spec::{ClusterSpec, SpecError, check_name};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A weight beyond this says no more than one of this.
pub const WEIGHT_MAX: u16 = 100;
/// More regions than this is a slip.
pub const REGIONS_MAX: usize = 20;

/// How much each term of a node's score counts beside the others, 0 to [`WEIGHT_MAX`]. Not all are 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlacementWeights {
    /// How near the node is to the controller.
    pub latency: u16,
    /// How much of its pool is free.
    pub free: u16,
    /// Whether it is well, and its members are.
    pub health: u16,
    /// How little it has to do.
    pub idle: u16,
}

/// Nodes of one region differ little in latency, and a pool that fills is the dearest mistake. Members count most, so that equal nodes
/// fill evenly.
impl Default for PlacementWeights {
    fn default() -> Self {
        Self { latency: 10, free: 30, health: 20, idle: 40 }
    }
}

impl PlacementWeights {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
    fn named(&mut self, name: &str) -> Option<&mut u16> {
        match name {
            "latency" => Some(&mut self.latency),
            "free" => Some(&mut self.free),
            "health" => Some(&mut self.health),
            "idle" => Some(&mut self.idle),
            _ => None,
        }
    }
    fn sum(&self) -> u16 {
        self.latency + self.free + self.health + self.idle
    }
}

/// No such weights. The text is for the person who wrote them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} does not say how much each term of a node's score counts; expected some of latency, free, health and idle, once each, with a \
     whole number from 0 to {WEIGHT_MAX}, not all 0, such as latency=50,idle=20"
)]
pub struct BadWeights {
    text: String,
}

impl FromStr for PlacementWeights {
    type Err = BadWeights;
    /// What is not named counts as it does by default.
    fn from_str(text: &str) -> Result<Self, BadWeights> {
        let bad = || BadWeights { text: text.chars().take(80).collect() };
        let (mut weights, mut seen) = (Self::default(), Vec::new());
        for part in text.split(',') {
            let (name, value) = part.split_once('=').ok_or_else(bad)?;
            let (name, value) = (name.trim(), value.trim().parse::<u16>().ok());
            let weight = weights.named(name).filter(|_| !seen.contains(&name)).ok_or_else(bad)?;
            *weight = value.filter(|value| *value <= WEIGHT_MAX).ok_or_else(bad)?;
            seen.push(name);
        }
        Some(weights).filter(|weights| weights.sum() > 0).ok_or_else(bad)
    }
}
impl fmt::Display for PlacementWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { latency, free, health, idle } = self;
        write!(f, "latency={latency},free={free},health={health},idle={idle}")
    }
}
impl Serialize for PlacementWeights {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for PlacementWeights {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl ClusterSpec {
    pub(crate) fn check_placement(&self) -> Result<(), SpecError> {
        if self.regions.len() > REGIONS_MAX {
            return Err(SpecError::TooManyRegions { asked: self.regions.len() });
        }
        self.regions.iter().try_for_each(|region| check_name("region", region))?;
        self.storage_class.iter().try_for_each(|class| check_name("storage class", class))?;
        match self.zones_min {
            Some(asked) if asked == 0 || asked > self.members => {
                Err(SpecError::BadZonesMin { asked, members: self.members })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_read_as_they_are_written() {
        for text in ["latency=10,free=30,health=20,idle=40", "latency=0,free=0,health=0,idle=1"] {
            assert_eq!(text.parse::<PlacementWeights>().unwrap().to_string(), text);
        }
        let some: PlacementWeights = "idle=5, latency=100".parse().unwrap();
        assert_eq!(some, PlacementWeights { latency: 100, idle: 5, ..PlacementWeights::default() });
        for text in
            ["", "latency", "latency=", "speed=1", "idle=101", "idle=-1", "idle=1.5", "idle=1,idle=2", "idle=1,"]
        {
            assert!(text.parse::<PlacementWeights>().is_err(), "{text}");
        }
        assert!("latency=0,free=0,health=0,idle=0".parse::<PlacementWeights>().is_err());
    }

    #[test]
    fn a_spec_asks_for_no_more_zones_than_members_and_for_regions_that_can_be() {
        let read = |text: &str| serde_json::from_str::<ClusterSpec>(text).unwrap().check();
        assert_eq!(read(r#"{"name":"app","regions":["eu","us"],"zones_min":3}"#), Ok(()));
        for zones in [0, 4] {
            let refused = read(&format!(r#"{{"name":"app","zones_min":{zones}}}"#));
            assert!(matches!(refused, Err(SpecError::BadZonesMin { members: 3, .. })), "{refused:?}");
        }
        assert!(matches!(read(r#"{"name":"app","regions":["E U"]}"#), Err(SpecError::BadName { what: "region", .. })));
        let refused = read(r#"{"name":"app","storage_class":"NVMe"}"#);
        assert!(matches!(refused, Err(SpecError::BadName { what: "storage class", .. })), "{refused:?}");
        let many: Vec<String> = (0..=REGIONS_MAX).map(|n| format!("r{n}")).collect();
        let spec = ClusterSpec { regions: many.into_iter().collect(), ..ClusterSpec::named("app") };
        assert!(matches!(spec.check(), Err(SpecError::TooManyRegions { .. })));
        // Voters of the version before read what does not ask for more.
        let plain = serde_json::to_string(&ClusterSpec::named("app")).unwrap();
        assert!(
            !plain.contains("region")
                && !plain.contains("zones")
                && !plain.contains("weights")
                && !plain.contains("class"),
            "{plain}"
        );
    }
}
