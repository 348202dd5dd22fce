//! Breadth first through every state, so that the first course found to a broken property is a shortest one.

use crate::state::{Bounds, Happens, State};
use std::collections::HashSet;
use std::collections::VecDeque;

/// What a search came to.
#[derive(Debug)]
pub struct Found {
    pub states: usize,
    pub transitions: usize,
    /// States in which a later epoch than the first is confirmed.
    pub confirmed_later: usize,
    /// Transitions that end a change of the set under its leader.
    pub settled: usize,
    /// False when the limit on states ended it.
    pub complete: bool,
    /// What is broken, and the course to it.
    pub broken: Option<(String, Vec<Happens>)>,
}

pub fn search(bounds: &Bounds, states_max: usize) -> Found {
    let start = State::start(bounds);
    let mut known = HashSet::from([start.hashes()]);
    // Where each state came from, by its number.
    let mut from: Vec<(usize, Happens)> = vec![(0, Happens::BeginEpoch { preferred: None })];
    let mut open = VecDeque::from([(0usize, start)]);
    let mut found = Found { states: 1, transitions: 0, confirmed_later: 0, settled: 0, complete: true, broken: None };
    while let Some((number, state)) = open.pop_front() {
        for (happens, after) in state.next(bounds) {
            found.transitions += 1;
            found.settled += usize::from(matches!(happens, Happens::Decide { change: "settle the sync set", .. }));
            let after = match after {
                Ok(after) => after,
                Err(why) => {
                    found.broken = Some((why, course(&from, number, happens)));
                    return found;
                }
            };
            if !known.insert(after.hashes()) {
                continue;
            }
            if from.len() >= states_max {
                found.complete = false;
                return found;
            }
            found.states += 1;
            found.confirmed_later += usize::from(after.record.epoch.0 > 1 && after.record.is_confirmed());
            from.push((number, happens));
            open.push_back((from.len() - 1, after));
        }
    }
    found
}

fn course(from: &[(usize, Happens)], mut number: usize, last: Happens) -> Vec<Happens> {
    let mut course = vec![last];
    while number != 0 {
        let (before, happens) = &from[number];
        course.push(happens.clone());
        number = *before;
    }
    course.reverse();
    course
}
