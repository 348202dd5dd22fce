//! Times of the week in which planned work may disturb clients: `Sun 02:00-04:00`, `Mon,Wed 23:30-00:30`,
//! `daily 03:00-04:00`. Always UTC, so that no clock change moves or doubles them.

use crate::time::WallTime;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const DAY_MINUTES: i64 = 24 * 60;
const MINUTE_MS: i64 = 60_000;

/// Not a window. The text is for the person who wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a maintenance window ({why}); expected days and times in UTC, such as \"Sun 02:00-04:00\", \
     \"Mon,Wed 23:30-00:30\" or \"daily 03:00-04:00\""
)]
pub struct BadWindow {
    text: String,
    why: &'static str,
}

/// The same time on some days of each week.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// Monday first.
    days: [bool; 7],
    /// Minutes after midnight, below a day.
    from: i64,
    /// At most a day; an end at or before the beginning lies on the next day.
    minutes: i64,
}

impl FromStr for Window {
    type Err = BadWindow;
    fn from_str(text: &str) -> Result<Self, BadWindow> {
        let bad = |why| BadWindow { text: text.chars().take(80).collect(), why };
        let (days, times) = text.split_once(' ').ok_or_else(|| bad("days and times have one space between them"))?;
        let (from, to) = times.split_once('-').ok_or_else(|| bad("the times have a hyphen between them"))?;
        let time = |text: &str| clock(text).ok_or_else(|| bad("a time is four digits with a colon, 00:00 to 23:59"));
        let (from, to) = (time(from)?, time(to)?);
        if from == to {
            return Err(bad("it ends when it begins"));
        }
        let mut named = [false; 7];
        if days == "daily" {
            named = [true; 7];
        } else {
            for day in days.split(',') {
                let index = DAYS.iter().position(|known| *known == day);
                let index = index.ok_or_else(|| bad("a day is one of Mon, Tue, Wed, Thu, Fri, Sat, Sun"))?;
                if std::mem::replace(&mut named[index], true) {
                    return Err(bad("a day is named twice"));
                }
            }
        }
        Ok(Self { days: named, from, minutes: (to - from).rem_euclid(DAY_MINUTES) })
    }
}

/// `HH:MM` in minutes.
fn clock(text: &str) -> Option<i64> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| match text.as_bytes() {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] => Some(i64::from(tens - b'0') * 10 + i64::from(ones - b'0')),
        _ => None,
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

impl Window {
    /// The first time that is not over at `now`: it may have begun.
    pub fn next(&self, now: WallTime) -> (WallTime, WallTime) {
        let today = now.0.div_euclid(DAY_MINUTES * MINUTE_MS);
        // One that began yesterday may not be over; some day of the week is named, so eight days on there is one.
        let mut all = (today - 1..=today + 7).filter(|day| self.days[weekday(*day)]).map(|day| {
            let from = WallTime((day * DAY_MINUTES + self.from) * MINUTE_MS);
            (from, from.plus(Duration::from_secs(self.minutes.unsigned_abs() * 60)))
        });
        all.find(|(_, to)| now < *to).unwrap_or((now, now))
    }
}

/// Monday is 0. Day 0 of 1970 was a Thursday.
fn weekday(day: i64) -> usize {
    usize::try_from((day + 3).rem_euclid(7)).unwrap_or_default()
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<&str> = DAYS.iter().zip(self.days).filter(|(_, named)| *named).map(|(day, _)| *day).collect();
        let days = if named.len() == DAYS.len() { "daily".to_string() } else { named.join(",") };
        let to = (self.from + self.minutes).rem_euclid(DAY_MINUTES);
        write!(f, "{days} {:02}:{:02}-{:02}:{:02}", self.from / 60, self.from % 60, to / 60, to % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> WallTime {
        WallTime::parse(text).unwrap()
    }
    fn next(window: &str, now: &str) -> (String, String) {
        let (from, to) = window.parse::<Window>().unwrap().next(time(now));
        (from.to_string(), to.to_string())
    }
    fn pair(from: &str, to: &str) -> (String, String) {
        (time(from).to_string(), time(to).to_string())
    }

    #[test]
    fn the_next_window_is_the_one_that_is_not_over() {
        // 2026-11-29 is a Sunday.
        let sunday = pair("2026-11-29T02:00:00Z", "2026-11-29T04:00:00Z");
        for now in ["2026-11-22T04:00:00Z", "2026-11-26T12:00:00Z", "2026-11-29T01:59:59Z", "2026-11-29T03:59:59Z"] {
            assert_eq!(next("Sun 02:00-04:00", now), sunday, "{now}");
        }
        assert_ne!(next("Sun 02:00-04:00", "2026-11-29T04:00:00Z"), sunday);
    }

    #[test]
    fn a_window_may_end_on_the_next_day() {
        let night = pair("2026-11-25T23:30:00Z", "2026-11-26T00:30:00Z");
        assert_eq!(next("Mon,Wed 23:30-00:30", "2026-11-26T00:29:00Z"), night);
        assert_eq!(
            next("Mon,Wed 23:30-00:30", "2026-11-26T00:30:00Z"),
            pair("2026-11-30T23:30:00Z", "2026-12-01T00:30:00Z")
        );
    }

    #[test]
    fn a_window_survives_its_text_form() {
        for text in ["Sun 02:00-04:00", "Mon,Wed 23:30-00:30", "daily 03:00-04:00"] {
            assert_eq!(text.parse::<Window>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_refused_with_what_was_expected() {
        for text in [
            "",
            "Sun",
            "sun 02:00-04:00",
            "Sunday 02:00-04:00",
            "Sun 2:00-4:00",
            "Sun 02:00-24:00",
            "Sun 02:00-02:00",
            "Sun,Sun 02:00-04:00",
            "Sun 02:00-04:00 ",
            "Sun  02:00-04:00",
            "Sun 02:60-04:00",
            "Sun +2:00-04:00",
            "Sun 02:00",
            "Sun 02:00-04:00 CET",
        ] {
            let error = text.parse::<Window>().unwrap_err().to_string();
            assert!(error.contains("expected days and times in UTC"), "{text:?}: {error}");
        }
        assert!(WallTime::parse("tomorrow").is_err());
        assert!(WallTime::parse("2026-11-29T02:00:00").is_err(), "a time without an offset is ambiguous");
    }
}
