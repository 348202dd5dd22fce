//! Reading LVM's reports. A column may be missing in an older LVM, empty where it does not apply, `-1` where it is not
//! known, and a number, a list or `null` in the newer format: each reader says what it takes, and anything else is an
//! error that names the column.

use crate::names::Tag;
use pgstead_types::Bytes;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fmt;

/// A report that is not what LVM prints.
#[derive(Debug, thiserror::Error)]
pub enum BadReport {
    #[error("LVM's report is not JSON ({why}); it begins with {begins:?}")]
    NotJson { why: String, begins: String },
    #[error("LVM's report has no rows of {kind:?}; it begins with {begins:?}")]
    NoRows { kind: &'static str, begins: String },
    #[error("column {column} of LVM's report is {value}, expected {expected}")]
    Column { column: &'static str, value: String, expected: &'static str },
}

/// Hundredths of a percent, as exact as LVM tells it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Percent(u32);

impl Percent {
    pub const fn from_hundredths(hundredths: u32) -> Self {
        Self(hundredths)
    }
    pub const fn whole(percent: u32) -> Self {
        Self(percent * 100)
    }
    pub const fn hundredths(self) -> u32 {
        self.0
    }
    /// That much of a size, rounded up: what is used is never told too small.
    pub fn of(self, whole: Bytes) -> Bytes {
        let part = (u128::from(whole.0) * u128::from(self.0)).div_ceil(10_000);
        Bytes(u64::try_from(part).unwrap_or(u64::MAX))
    }
    fn parse(text: &str) -> Option<Self> {
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let part = format!("{part:0<2}");
        let hundredths: u32 = part.get(..2)?.parse().ok()?;
        whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(hundredths).map(Self)
    }
}
impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02} %", self.0 / 100, self.0 % 100)
    }
}

/// One line of a report.
#[derive(Clone, Debug)]
pub struct Row(Map<String, Value>);

/// The lines of one kind (`vg`, `lv`, `pv`). Both of LVM's JSON formats are read.
pub fn rows(text: &str, kind: &'static str) -> Result<Vec<Row>, BadReport> {
    let begins = || text.chars().take(120).collect::<String>();
    // Some versions print a line or two before it.
    let json = text.find('{').map_or("", |at| &text[at..]);
    let whole: Value =
        serde_json::from_str(json).map_err(|error| BadReport::NotJson { why: error.to_string(), begins: begins() })?;
    let Some(reports) = whole.get("report").and_then(Value::as_array) else {
        return Err(BadReport::NoRows { kind, begins: begins() });
    };
    let mut found = Vec::new();
    for report in reports {
        let Some(rows) = report.get(kind).and_then(Value::as_array) else {
            return Err(BadReport::NoRows { kind, begins: begins() });
        };
        for row in rows {
            let Value::Object(row) = row else { return Err(BadReport::NoRows { kind, begins: begins() }) };
            found.push(Row(row.clone()));
        }
    }
    Ok(found)
}

impl Row {
    /// `None` when it is empty or not there.
    pub fn text(&self, column: &'static str) -> Option<&str> {
        self.0.get(column).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty())
    }

    pub fn required(&self, column: &'static str) -> Result<&str, BadReport> {
        self.text(column).ok_or_else(|| self.bad(column, "some text"))
    }

    /// `None` when it is empty, not there, or the `-1` that stands for "not known".
    pub fn number(&self, column: &'static str) -> Result<Option<u64>, BadReport> {
        match self.0.get(column) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Number(number)) if number.as_i64() == Some(-1) => Ok(None),
            Some(Value::Number(number)) => number.as_u64().map(Some).ok_or_else(|| self.bad(column, "a whole number")),
            Some(Value::String(text)) => match text.trim() {
                "" | "-1" => Ok(None),
                // Sizes are asked for without a unit; some versions print it all the same.
                text => text.trim_end_matches('B').parse().map(Some).map_err(|_| self.bad(column, "a whole number")),
            },
            Some(_) => Err(self.bad(column, "a whole number")),
        }
    }

    pub fn bytes(&self, column: &'static str) -> Result<Bytes, BadReport> {
        self.number(column)?.map(Bytes).ok_or_else(|| self.bad(column, "a size in bytes"))
    }

    pub fn percent(&self, column: &'static str) -> Result<Option<Percent>, BadReport> {
        let text = match self.0.get(column) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Number(number)) => number.to_string(),
            Some(Value::String(text)) => text.trim().to_string(),
            Some(_) => return Err(self.bad(column, "a percentage")),
        };
        match text.as_str() {
            "" | "-1" | "-1.00" => Ok(None),
            text => Percent::parse(text).map(Some).ok_or_else(|| self.bad(column, "a percentage")),
        }
    }

    /// Words that LVM joins with commas, or a list.
    pub fn words(&self, column: &'static str) -> Result<Vec<String>, BadReport> {
        match self.0.get(column) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::String(text)) => {
                Ok(text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_string).collect())
            }
            Some(Value::Array(words)) => words
                .iter()
                .map(|word| word.as_str().map(str::to_string).ok_or_else(|| self.bad(column, "words")))
                .collect(),
            Some(_) => Err(self.bad(column, "words")),
        }
    }

    /// Other people's tags may have characters that ours may not: those are left out.
    pub fn tags(&self, column: &'static str) -> Result<BTreeSet<Tag>, BadReport> {
        Ok(self.words(column)?.iter().filter_map(|word| word.parse().ok()).collect())
    }

    /// A column that has its own name in words when it is so (`open`, `missing`), a number, or is empty.
    pub fn is_set(&self, column: &'static str) -> bool {
        match self.0.get(column) {
            Some(Value::Number(number)) => number.as_i64() == Some(1),
            Some(Value::String(text)) => !matches!(text.trim(), "" | "unknown" | "-1" | "0"),
            _ => false,
        }
    }

    fn bad(&self, column: &'static str, expected: &'static str) -> BadReport {
        let value = self.0.get(column).map_or_else(|| "not there".to_string(), Value::to_string);
        BadReport::Column { column, value: value.chars().take(120).collect(), expected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(json: &str) -> Row {
        rows(&format!("{{\"report\":[{{\"lv\":[{json}]}}]}}"), "lv").unwrap().remove(0)
    }

    #[test]
    fn what_is_not_known_is_no_number() {
        let row = row(r#"{"a":"","b":"-1","c":" 4096 ","d":"4096B","e":null,"f":7,"g":"x","h":-1,"i":"-5"}"#);
        assert_eq!(row.number("a").unwrap(), None);
        assert_eq!(row.number("b").unwrap(), None);
        assert_eq!(row.number("c").unwrap(), Some(4096));
        assert_eq!(row.number("d").unwrap(), Some(4096));
        assert_eq!(row.number("e").unwrap(), None);
        assert_eq!(row.number("f").unwrap(), Some(7));
        assert_eq!(row.number("h").unwrap(), None);
        assert_eq!(row.number("none").unwrap(), None);
        let text = row.number("g").unwrap_err().to_string();
        assert!(text.contains("column g") && text.contains("\"x\""), "{text}");
        assert!(row.number("i").is_err());
        assert!(row.bytes("a").is_err(), "a size that must be there");
    }

    #[test]
    fn percentages_are_exact() {
        let row = row(r#"{"a":"13.23","b":"100.00","c":3.3,"d":"","e":"-1.00","f":"0.00","g":"7"}"#);
        assert_eq!(row.percent("a").unwrap(), Some(Percent(1323)));
        assert_eq!(row.percent("b").unwrap(), Some(Percent::whole(100)));
        assert_eq!(row.percent("c").unwrap(), Some(Percent(330)));
        assert_eq!(row.percent("d").unwrap(), None);
        assert_eq!(row.percent("e").unwrap(), None);
        assert_eq!(row.percent("f").unwrap(), Some(Percent(0)));
        assert_eq!(row.percent("g").unwrap(), Some(Percent(700)));
        assert_eq!(Percent(1).of(Bytes(100)), Bytes(1), "rounded up");
        assert_eq!(Percent::whole(100).of(Bytes(u64::MAX)), Bytes(u64::MAX));
    }

    #[test]
    fn lists_and_words_with_commas_are_the_same() {
        let row = row(r#"{"a":"x,y=1","b":["x","y=1"],"c":"","d":[],"e":null,"f":"ok,ä"}"#);
        assert_eq!(row.words("a").unwrap(), row.words("b").unwrap());
        assert!(row.words("c").unwrap().is_empty() && row.words("d").unwrap().is_empty());
        assert_eq!(row.tags("f").unwrap().len(), 1);
    }

    #[test]
    fn what_is_no_report_is_an_error_that_shows_its_beginning() {
        for bad in ["", "nonsense", "{}", "{\"report\":{}}", "{\"report\":[{}]}", "{\"report\":[{\"lv\":[1]}]}"] {
            assert!(rows(bad, "lv").is_err(), "{bad:?}");
        }
        assert!(rows("{\"report\":[{\"lv\":[]}]}", "lv").unwrap().is_empty());
        assert_eq!(rows("  WARNING: something\n{\"report\":[{\"lv\":[{}]}]}", "lv").unwrap().len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_a_reader_panic(text in "\\PC{0,200}") {
            let _ = rows(&text, "lv");
        }
    }
}
