//! What clients have seen of lists that they append to, and what is wrong with it (after Kingsbury and Alvaro, "Elle:
//! Inferring Isolation Anomalies from Experimental Observations"). Every value is appended once, so a list shows the order
//! of all its appends; each look at it must be a beginning of what it is in the end.

use pgstead_types::Tick;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Who answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Of the answering Postgres: each epoch of a leader has its own.
    pub timeline: u32,
    /// Its address.
    pub member: String,
}

/// One append that was tried.
#[derive(Clone, Debug)]
pub struct Append {
    pub key: i32,
    /// Different from every other append's.
    pub value: i64,
    pub client: usize,
    pub begun: Tick,
    pub outcome: Outcome,
}

#[derive(Clone, Debug)]
pub enum Outcome {
    /// The server has confirmed it, and told the list as it was then.
    Acknowledged { at: Tick, stamp: Stamp, list: Vec<i64> },
    /// It may be there or not.
    Unknown,
}

/// One list as read from a leader.
#[derive(Clone, Debug)]
pub struct Look {
    pub key: i32,
    pub client: usize,
    pub begun: Tick,
    pub stamp: Stamp,
    pub list: Vec<i64>,
}

/// What clients have done and seen.
#[derive(Clone, Default, Debug)]
pub struct History {
    pub appends: Vec<Append>,
    pub looks: Vec<Look>,
}

/// What no order of the appends explains.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Acknowledged, and not in the list.
    Lost { key: i32, value: i64, by: Stamp },
    /// Twice in the lists.
    Duplicated { key: i32, value: i64 },
    /// In the list of a key that nobody has appended it to.
    Foreign { key: i32, value: i64 },
    /// `later` was begun when `earlier` had been acknowledged, and stands before it.
    Reordered { key: i32, earlier: i64, later: i64 },
    /// A client saw what is no beginning of the list: this one differs, at this place.
    NotABeginning { key: i32, client: usize, place: usize, saw: Vec<i64> },
    /// A leader did not show what had been acknowledged before by it or by an earlier one.
    Forgotten { key: i32, client: usize, value: i64, by: Stamp },
    /// Two members wrote in one epoch.
    TwoOnATimeline { timeline: u32, members: [String; 2] },
}

/// An epoch that acknowledged what was begun after a later epoch had acknowledged something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SplitBrain {
    pub older: u32,
    pub newer: u32,
    pub overlap: Duration,
}

impl History {
    pub fn merge(&mut self, other: Self) {
        self.appends.extend(other.appends);
        self.looks.extend(other.looks);
    }

    fn acknowledged(&self) -> impl Iterator<Item = (&Append, Tick, &Stamp, &Vec<i64>)> {
        self.appends.iter().filter_map(|append| match &append.outcome {
            Outcome::Acknowledged { at, stamp, list } => Some((append, *at, stamp, list)),
            Outcome::Unknown => None,
        })
    }
    pub fn acknowledged_count(&self) -> usize {
        self.acknowledged().count()
    }
    /// Acknowledged by `member` though begun after `since`.
    pub fn acknowledged_by(&self, member: &str, since: Tick, until: Tick) -> usize {
        self.stamps_of(member, since, until).count()
    }

    /// The same, and in an epoch before the one whose timeline is `newer`.
    pub fn acknowledged_before(&self, newer: u32, member: &str, since: Tick, until: Tick) -> usize {
        self.stamps_of(member, since, until).filter(|stamp| stamp.timeline < newer).count()
    }
    fn stamps_of<'a>(&'a self, member: &'a str, since: Tick, until: Tick) -> impl Iterator<Item = &'a Stamp> {
        self.acknowledged()
            .filter(move |(append, ..)| append.begun > since && append.begun < until)
            .map(|(_, _, stamp, _)| stamp)
            .filter(move |stamp| stamp.member == member)
    }

    /// Compares with the lists as they are in the end.
    pub fn faults(&self, lists: &BTreeMap<i32, Vec<i64>>) -> Vec<Fault> {
        let mut faults = self.faults_of_lists(lists);
        for (append, at, stamp, list) in self.acknowledged() {
            let kept = lists.get(&append.key).is_some_and(|all| all.contains(&append.value));
            if !kept {
                faults.push(Fault::Lost { key: append.key, value: append.value, by: stamp.clone() });
            }
            // Its own list ends with it.
            if list.last() != Some(&append.value) {
                let (key, client, saw) = (append.key, append.client, list.clone());
                faults.push(Fault::NotABeginning { key, client, place: list.len(), saw });
            }
            debug_assert!(at >= append.begun, "acknowledged before it was begun");
        }
        let own = self.acknowledged().map(|(append, _, _, list)| (append.key, append.client, list));
        let looks = self.looks.iter().map(|look| (look.key, look.client, &look.list));
        for (key, client, saw) in own.chain(looks) {
            let all = lists.get(&key).map_or(&[][..], Vec::as_slice);
            if !all.starts_with(saw) {
                let place = all.iter().zip(saw).take_while(|(one, other)| one == other).count();
                faults.push(Fault::NotABeginning { key, client, place, saw: saw.clone() });
            }
        }
        faults.extend(self.forgotten());
        faults.extend(self.two_on_a_timeline());
        faults
    }

    /// What the lists alone show: values twice, values of nobody, and an order that time forbids.
    fn faults_of_lists(&self, lists: &BTreeMap<i32, Vec<i64>>) -> Vec<Fault> {
        let tried: BTreeMap<i64, &Append> = self.appends.iter().map(|append| (append.value, append)).collect();
        let acknowledged: BTreeMap<i64, Tick> =
            self.acknowledged().map(|(append, at, _, _)| (append.value, at)).collect();
        let mut faults = Vec::new();
        let mut seen = BTreeSet::new();
        for (&key, list) in lists {
            // From the end: the earliest acknowledgement of what stands behind.
            let mut first_behind: Option<(Tick, i64)> = None;
            for &value in list.iter().rev() {
                if !seen.insert(value) {
                    faults.push(Fault::Duplicated { key, value });
                }
                match tried.get(&value) {
                    Some(append) if append.key == key => {
                        if let Some((at, earlier)) = first_behind
                            && append.begun > at
                        {
                            faults.push(Fault::Reordered { key, earlier, later: value });
                        }
                    }
                    _ => faults.push(Fault::Foreign { key, value }),
                }
                if let Some(&at) = acknowledged.get(&value) {
                    first_behind = Some(first_behind.map_or((at, value), |first| first.min((at, value))));
                }
            }
        }
        faults
    }

    /// A leader that is cut off may show what was true before. What it has acknowledged itself, or took over from earlier
    /// epochs, it must show.
    fn forgotten(&self) -> Vec<Fault> {
        let mut by_key: BTreeMap<i32, Vec<(Tick, i64, u32)>> = BTreeMap::new();
        for (append, at, stamp, _) in self.acknowledged() {
            by_key.entry(append.key).or_default().push((at, append.value, stamp.timeline));
        }
        let own = self.acknowledged().map(|(one, _, stamp, list)| (one.key, one.client, one.begun, stamp, list));
        let looks = self.looks.iter().map(|one| (one.key, one.client, one.begun, &one.stamp, &one.list));
        let mut faults = Vec::new();
        for (key, client, begun, stamp, list) in own.chain(looks) {
            let there: BTreeSet<i64> = list.iter().copied().collect();
            for (at, value, timeline) in by_key.get(&key).into_iter().flatten() {
                if *timeline <= stamp.timeline && *at < begun && !there.contains(value) {
                    faults.push(Fault::Forgotten { key, client, value: *value, by: stamp.clone() });
                }
            }
        }
        faults
    }

    fn two_on_a_timeline(&self) -> Vec<Fault> {
        let mut members: BTreeMap<u32, &str> = BTreeMap::new();
        let mut faults = Vec::new();
        for (_, _, stamp, _) in self.acknowledged() {
            let first = *members.entry(stamp.timeline).or_insert(&stamp.member);
            if first != stamp.member {
                let members = [first.to_string(), stamp.member.clone()];
                faults.push(Fault::TwoOnATimeline { timeline: stamp.timeline, members });
            }
        }
        faults.dedup();
        faults
    }

    /// Between which epochs there was split-brain, and for how long. A write that was begun under the old leader may be
    /// answered late, so what counts is when it was begun.
    pub fn split_brain(&self) -> Vec<SplitBrain> {
        // The last beginning and the first answer of each.
        let mut spans: BTreeMap<u32, (Tick, Tick)> = BTreeMap::new();
        for (append, at, stamp, _) in self.acknowledged() {
            let span = spans.entry(stamp.timeline).or_insert((append.begun, at));
            *span = (span.0.max(append.begun), span.1.min(at));
        }
        let mut found = Vec::new();
        for (&older, (last_begun, _)) in &spans {
            for (&newer, (_, first_answer)) in spans.range(older + 1..) {
                if last_begun > first_answer {
                    found.push(SplitBrain { older, newer, overlap: last_begun.since(*first_answer) });
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(timeline: u32) -> Stamp {
        Stamp { timeline, member: format!("127.0.{timeline}.1") }
    }

    /// Appended to key 1 within two times, by the leader on a timeline.
    fn append(value: i64, (begun, at): (u64, u64), timeline: u32, list: &[i64]) -> Append {
        let at = Tick::from_millis(at);
        let outcome = Outcome::Acknowledged { at, stamp: stamp(timeline), list: list.to_vec() };
        Append { key: 1, value, client: 0, begun: Tick::from_millis(begun), outcome }
    }

    fn unknown(value: i64, begun: u64) -> Append {
        Append { outcome: Outcome::Unknown, ..append(value, (begun, begun), 1, &[]) }
    }

    fn faults(appends: Vec<Append>, list: &[i64]) -> Vec<Fault> {
        History { appends, looks: Vec::new() }.faults(&BTreeMap::from([(1, list.to_vec())]))
    }

    #[test]
    fn what_nobody_was_told_of_may_be_there_or_not() {
        let acknowledged = || append(1, (0, 5), 1, &[1]);
        assert_eq!(faults(vec![acknowledged(), unknown(2, 10)], &[1]), []);
        assert_eq!(faults(vec![acknowledged(), unknown(2, 10)], &[1, 2]), []);
    }

    #[test]
    fn a_lost_append_is_found() {
        let found = faults(vec![append(1, (0, 5), 1, &[1]), append(2, (6, 9), 1, &[1, 2])], &[1]);
        assert!(found.contains(&Fault::Lost { key: 1, value: 2, by: stamp(1) }), "{found:?}");
    }

    #[test]
    fn a_value_that_is_there_twice_is_found_and_one_that_is_nobodys() {
        let found = faults(vec![append(1, (0, 5), 1, &[1])], &[1, 1, 7]);
        assert_eq!(found, [Fault::Foreign { key: 1, value: 7 }, Fault::Duplicated { key: 1, value: 1 }]);
    }

    #[test]
    fn an_order_against_time_is_found_and_one_among_concurrent_appends_is_fine() {
        let one = append(1, (0, 5), 1, &[2, 1]);
        let found = faults(vec![one, append(2, (6, 9), 1, &[2])], &[2, 1]);
        assert!(found.contains(&Fault::Reordered { key: 1, earlier: 1, later: 2 }), "{found:?}");
        let one = append(1, (0, 5), 1, &[2, 1]);
        assert_eq!(faults(vec![one, append(2, (4, 9), 1, &[2])], &[2, 1]), []);
    }

    #[test]
    fn a_look_that_is_no_beginning_is_found() {
        // The second was seen by somebody, and then another took its place.
        let look =
            |list: &[i64]| Look { key: 1, client: 3, begun: Tick::from_millis(6), stamp: stamp(1), list: list.into() };
        let check = |list: &[i64]| {
            let appends = vec![append(1, (0, 5), 1, &[1]), unknown(2, 6), append(3, (20, 25), 2, &[1, 3])];
            History { appends, looks: vec![look(list)] }.faults(&BTreeMap::from([(1, vec![1, 3])]))
        };
        assert_eq!(check(&[1]), []);
        let saw = vec![1, 2];
        assert_eq!(check(&saw), [Fault::NotABeginning { key: 1, client: 3, place: 1, saw: saw.clone() }]);
        // The old leader may show old things, the new one may not.
        let late = Look { begun: Tick::from_millis(30), ..look(&[1]) };
        let appends = || vec![append(1, (0, 5), 1, &[1]), append(3, (20, 25), 2, &[1, 3])];
        let with = |look| History { appends: appends(), looks: vec![look] }.faults(&BTreeMap::from([(1, vec![1, 3])]));
        assert_eq!(with(late.clone()), []);
        let found = with(Look { stamp: stamp(2), ..late });
        assert_eq!(found, [Fault::Forgotten { key: 1, client: 3, value: 3, by: stamp(2) }]);
    }

    #[test]
    fn split_brain_is_what_an_old_epoch_began_and_acknowledged_after_the_new_one_had() {
        let history = |begun| {
            let appends =
                vec![append(1, (0, 5), 1, &[1]), append(2, (10, 15), 2, &[1, 2]), append(3, (begun, 40), 1, &[1, 3])];
            History { appends, looks: Vec::new() }.split_brain()
        };
        assert_eq!(history(14), [], "it was answered late");
        assert_eq!(history(35), [SplitBrain { older: 1, newer: 2, overlap: Duration::from_millis(20) }]);
    }
}
