//! Values that a script has measured inside the machine, their medians, and what they say beside each other.

use anyhow::{Context, ensure};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// What `bench-volumes.sh` has told so far.
#[derive(Debug, Serialize)]
pub struct Measured {
    pub rounds: u32,
    pub release: bool,
    /// By the names of the script.
    pub values: BTreeMap<String, Values>,
}

#[derive(Debug, Default, Serialize)]
pub struct Values {
    pub unit: String,
    pub values: Vec<f64>,
}

impl Values {
    pub fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
        }
    }
    fn worst(&self) -> f64 {
        self.values.iter().copied().fold(f64::NAN, f64::max)
    }
}

/// What is said of two of them: the median of the first by that of the second.
const RATIOS: [(&str, &str, &str); 6] = [
    ("pgbench on a thin volume by a plain disk", "tps_thin", "tps_plain"),
    ("slowest transaction with a snapshot by without", "stall_with_snapshot", "stall_without"),
    ("snapshot of much by of little", "snapshot_large", "snapshot_small"),
    ("fork of much by of little", "fork_large", "fork_small"),
    ("pg_basebackup by fork, of much", "basebackup_large", "fork_large"),
    ("data, much by little", "database_large", "database_small"),
];

impl Measured {
    /// Takes a line `bench <what> <value> <unit>`; others are none of its business.
    pub fn hear(&mut self, line: &str) -> anyhow::Result<()> {
        let Some(said) = line.strip_prefix("bench ") else { return Ok(()) };
        let words: Vec<&str> = said.split_whitespace().collect();
        ensure!(words.len() == 3, "the script said {line:?}; expected a name, a value and a unit");
        let value: f64 = words[1].parse().with_context(|| format!("the script said {line:?}; expected a number"))?;
        let values = self.values.entry(words[0].to_string()).or_default();
        values.unit = words[2].to_string();
        values.values.push(value);
        Ok(())
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let build = if self.release { "release" } else { "DEBUG" };
        writeln!(
            f,
            "\nIn an emulated machine, {} rounds, {build} build: ratios count, the times themselves do not.\n",
            self.rounds
        )?;
        writeln!(f, "{:<24} {:>10} {:>10}  unit", "what", "median", "highest")?;
        for (name, values) in &self.values {
            writeln!(f, "{name:<24} {:>10.1} {:>10.1}  {}", values.median(), values.worst(), values.unit)?;
        }
        writeln!(f)?;
        for (what, above, below) in RATIOS {
            if let (Some(above), Some(below)) = (self.values.get(above), self.values.get(below)) {
                writeln!(f, "{what:<48} {:>8.3}", above.median() / below.median())?;
            }
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_script_become_medians_and_ratios() {
        let mut measured = Measured { rounds: 3, release: true, values: BTreeMap::new() };
        for line in [
            "bench fork_small 8 ms",
            "noise",
            "bench fork_small 2 ms",
            "bench fork_small 4 ms",
            "bench fork_large 6 ms",
        ] {
            measured.hear(line).unwrap();
        }
        let said = measured.to_string();
        let ratio = said.lines().find(|line| line.starts_with("fork of much by of little")).unwrap();
        assert!(ratio.ends_with(" 1.500"), "{said}");
        assert!(said.contains("4.0        8.0  ms"), "{said}");
        for odd in ["bench fork 8", "bench fork eight ms"] {
            measured.hear(odd).unwrap_err();
        }
    }
}
