//! `synchronous_standby_names`, written and read.

use super::applied::SyncNames;
use pgstead_types::Incarnation;
use pgstead_types::record::SyncSet;
use std::collections::BTreeSet;

/// A name that no standby has, so that nothing is acknowledged.
pub const NOBODY: &str = r#"ANY 1 ("pgstead_none")"#;

pub fn render(names: &SyncNames) -> String {
    match names {
        SyncNames::Nobody => NOBODY.to_string(),
        SyncNames::Set(set) if set.members.is_empty() => String::new(),
        // A set that asks for nobody would acknowledge alone: fail closed.
        SyncNames::Set(set) if set.needed == 0 => NOBODY.to_string(),
        SyncNames::Set(set) => {
            let members: Vec<String> = set.members.iter().map(|member| format!("\"{member}\"")).collect();
            format!("ANY {} ({})", set.needed, members.join(", "))
        }
    }
}

/// `synchronized_standby_slots`: everyone of the set must have what a consumer of a logical slot is sent. Whoever is elected then
/// has it too; fewer would do, but Postgres knows no "any of".
pub fn slots(names: &SyncNames) -> String {
    match names {
        SyncNames::Nobody => String::new(),
        SyncNames::Set(set) => set.members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// `None` for anything that [`render`] does not write for a recorded set.
pub fn parse(text: &str) -> Option<SyncSet> {
    let text = text.trim();
    if text.is_empty() {
        return Some(SyncSet::default());
    }
    let (needed, members) = text.strip_prefix("ANY ")?.split_once('(')?;
    let member = |name: &str| name.trim().trim_matches('"').parse::<Incarnation>().ok();
    let members = members.strip_suffix(')')?.split(',').map(member).collect::<Option<BTreeSet<_>>>()?;
    Some(SyncSet { members, needed: needed.trim().parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgstead_types::MemberId;

    fn set(members: &[u128], needed: u8) -> SyncSet {
        let name = |member: &u128| Incarnation { member: MemberId::from_u128(*member), number: 1 };
        SyncSet { members: members.iter().map(name).collect(), needed }
    }

    #[test]
    fn a_set_survives_its_text_form() {
        for set in [set(&[], 0), set(&[1], 1), set(&[1, 2, 3], 2)] {
            assert_eq!(parse(&render(&SyncNames::Set(set.clone()))), Some(set));
        }
    }

    #[test]
    fn a_stranger_in_the_list_is_no_recorded_set() {
        assert_eq!(parse(NOBODY), None);
        assert_eq!(parse("*"), None);
        assert_eq!(parse("FIRST 1 (a)"), None);
    }

    #[test]
    fn a_set_that_asks_for_nobody_acknowledges_nothing() {
        assert_eq!(render(&SyncNames::Set(set(&[1], 0))), NOBODY);
    }
}
