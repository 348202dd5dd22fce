//! How much members may read and write, as it is typed.

use clap::Args;
use pgstead_types::io_limits::{IoLimits, IoRate, Iops};
use std::str::FromStr;

/// Of a new cluster, or a change: what is not named stays as it is.
#[derive(Args, Clone, Debug, Default)]
pub struct IoLimitArgs {
    /// So many reads a second for each member's Postgres, 100 or more; or none [default: none]
    #[arg(long = "io-read-iops", value_name = "N", value_parser = limit::<Iops>)]
    pub read_iops: Option<Limit<Iops>>,
    /// So many writes a second for each member's Postgres, 100 or more; or none [default: none]
    #[arg(long = "io-write-iops", value_name = "N", value_parser = limit::<Iops>)]
    pub write_iops: Option<Limit<Iops>>,
    /// Reads of so many bytes a second for each member's Postgres, such as 200MB; or none [default: none]
    #[arg(long = "io-read-rate", value_name = "SIZE", value_parser = limit::<IoRate>)]
    pub read_rate: Option<Limit<IoRate>>,
    /// Writes of so many bytes a second for each member's Postgres, such as 200MB; or none [default: none]
    #[arg(long = "io-write-rate", value_name = "SIZE", value_parser = limit::<IoRate>)]
    pub write_rate: Option<Limit<IoRate>>,
}

/// A limit, or that there is to be none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit<T> {
    None,
    To(T),
}

impl<T: Copy> Limit<T> {
    fn over(asked: Option<Self>, held: Option<T>) -> Option<T> {
        match asked {
            None => held,
            Some(Self::None) => None,
            Some(Self::To(limit)) => Some(limit),
        }
    }
}

impl IoLimitArgs {
    /// What it comes to over what there was.
    pub fn over(&self, held: IoLimits) -> IoLimits {
        IoLimits {
            read_iops: Limit::over(self.read_iops, held.read_iops),
            write_iops: Limit::over(self.write_iops, held.write_iops),
            read_rate: Limit::over(self.read_rate, held.read_rate),
            write_rate: Limit::over(self.write_rate, held.write_rate),
        }
    }

    pub fn is_said(&self) -> bool {
        self.read_iops.is_some() || self.write_iops.is_some() || self.read_rate.is_some() || self.write_rate.is_some()
    }
}

fn limit<T: FromStr>(text: &str) -> Result<Limit<T>, T::Err> {
    if text == "none" { Ok(Limit::None) } else { text.parse().map(Limit::To) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_stays_and_none_takes_away() {
        let held = IoLimits { read_iops: "4000".parse().ok(), write_rate: "1MB".parse().ok(), ..Default::default() };
        let asked = IoLimitArgs {
            read_iops: limit("none").ok(),
            write_iops: limit("200").ok(),
            read_rate: limit("none").ok(),
            write_rate: None,
        };
        assert_eq!(asked.over(held).to_string(), "write_iops = 200, write_rate = 1MB");
        assert_eq!(IoLimitArgs::default().over(held), held);
        assert!(asked.is_said() && !IoLimitArgs::default().is_said());
    }
}
