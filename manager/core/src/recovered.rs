//! Elections after the record went on from one survivor's copy. Configurations that were recorded last may be unknown, so the
//! arithmetic of those that are known is not enough: until an epoch is confirmed, everybody who is left has to promise. How
//! many acknowledged a commit is not known either: the spec may have been changed, commits may have gone on with fewer, or a
//! leader been forced to go on alone, by entries that are lost. So where a member was given up, a commit may have been on its
//! disk alone, and only a person can say that this is given up too.

use crate::observed::{Observed, Policy};
use pgstead_types::record::{ClusterChange, ClusterRecord, MemberRecord};
use pgstead_types::report::DataSeen;
use pgstead_types::{Finding, Incarnation};
use std::collections::BTreeSet;

/// What an election by `promised` lacks beyond the configurations that are known. `None` where it lacks nothing.
pub(crate) fn waits_for(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    promised: &BTreeSet<Incarnation>,
) -> Option<Finding> {
    let recovered = cluster.recovering()?;
    // Chosen since, it was chosen with everything that is left.
    if cluster.configs.iter().any(|config| config.epoch >= recovered.epoch && promised.contains(&config.leader)) {
        return None;
    }
    let (lost, left): (Vec<_>, Vec<_>) =
        cluster.members.values().partition(|member| recovered.lost.contains(&member.node));
    let absent: Vec<&str> = left
        .into_iter()
        .filter(|member| !promised.contains(&member.current()))
        .filter(|member| led_alone(cluster, member) || !has_nothing(cluster, observed, policy, member))
        .map(|member| member.name.as_str())
        .collect();
    let by_hand = "bring them back, or give up what they alone may have with a forced failover";
    let text = if !absent.is_empty() {
        format!(
            "the record was recovered and may not know the last sync set: nobody is elected before {} have promised too; {by_hand}",
            absent.join(", ")
        )
    } else if !lost.is_empty() {
        let names: Vec<&str> = lost.iter().map(|member| member.name.as_str()).collect();
        format!(
            "the record was recovered and may not know the last sync set: a commit may be on the disks of {} alone, which were given up as lost; only a forced failover elects anybody",
            names.join(", ")
        )
    } else {
        return None;
    };
    Some(Finding::error("promise_missing", text).on_cluster(cluster.id))
}

/// It was chosen to acknowledge alone. Whether that was ever confirmed may be among what is lost; then nobody else has it.
fn led_alone(cluster: &ClusterRecord, member: &MemberRecord) -> bool {
    cluster.configs.iter().any(|config| config.acknowledges_alone() && config.leader.member == member.id)
}

/// By its node's fresh word it holds nothing that was ever acknowledged in a configuration of its present life: whoever
/// forgets has left every set before.
fn has_nothing(cluster: &ClusterRecord, observed: &Observed, policy: &Policy, member: &MemberRecord) -> bool {
    observed.fresh(cluster, member.id, policy).is_some_and(|report| match &report.data {
        DataSeen::Absent | DataSeen::Partial => true,
        DataSeen::Present(identity) => identity.incarnation.number < member.incarnation,
        DataSeen::Lost { incarnation } => incarnation.number < member.incarnation,
        DataSeen::Foreign { .. } => false,
    })
}

/// A life of data that entries which are lost have made counts in the election as what it is.
pub(crate) fn adoption(cluster: &ClusterRecord, observed: &Observed, policy: &Policy) -> Option<ClusterChange> {
    let recovered = cluster.recovering()?;
    let left = cluster.members.values().filter(|member| !recovered.lost.contains(&member.node));
    left.filter_map(|member| Some((member.id, unknown_life(cluster, observed, policy, member)?)))
        .map(|(member, incarnation)| ClusterChange::AdoptIncarnation { member, incarnation })
        .next()
}

/// The number of a member's data, where it is newer than the record knows.
pub(crate) fn unknown_life(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    member: &MemberRecord,
) -> Option<u32> {
    cluster.recovered.as_ref()?;
    let number = observed.fresh(cluster, member.id, policy)?.incarnation()?.number;
    (number > member.incarnation).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::testing::*;
    use pgstead_types::record::{Command, EpochConfig, EpochReason, Leadership, Record, SyncSet};
    use pgstead_types::report::MemberReport;
    use pgstead_types::{Epoch, NodeId, RecoveryId, Timeline, WallTime};

    /// The record of epoch 1 was recovered, with these members' nodes lost, and everyone else is here and has promised.
    fn recovered(mut world: World, lost: &[&str]) -> World {
        let node = |name: &str| world.record.members[&member(name)].node;
        let lost_nodes: BTreeSet<NodeId> = lost.iter().map(|name| node(name)).collect();
        let id = world.record.id;
        let mut record = Record { clusters: [(id, world.record.clone())].into(), ..Record::default() };
        let (at, recovery) = (WallTime(0), RecoveryId::from_u128(1));
        let here = NodeId::from_u128(u128::from(b'c'));
        record.apply(&Command::RecoverQuorum { at, recovery, node: here, by: "ann".into(), lost: lost_nodes }).unwrap();
        world.record = record.clusters.remove(&id).unwrap();
        for name in lost {
            world = world.gone(name);
        }
        let left: Vec<String> = ["a", "b", "c"].iter().map(|name| name.to_string()).collect();
        left.iter().filter(|name| !lost.contains(&name.as_str())).fold(world, |world, name| answers(world, name))
    }
    fn answers(world: World, name: &str) -> World {
        let epoch = world.record.epoch.0;
        world.promised(name, epoch, at(2, END))
    }
    fn three() -> World {
        world().leader("a").standby("b", lag(0)).standby("c", lag(0))
    }
    fn holds(report: &mut MemberReport, number: u32) {
        let DataSeen::Present(identity) = &mut report.data else { panic!("it has data") };
        identity.incarnation.number = number;
        if let Some(answer) = &mut report.answer {
            answer.incarnation.number = number;
        }
    }
    fn chosen(world: &mut World) -> Option<Incarnation> {
        match world.decide().change {
            Some(ClusterChange::Choose { leader, .. }) => Some(leader),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn everyone_who_is_left_has_to_promise() {
        // By the one configuration that is known a's own promise would be enough.
        let mut world = recovered(three(), &[]);
        assert_eq!(chosen(&mut world), Some(life("a", 1)));
        let mut world = recovered(three(), &[]).gone("c");
        assert_eq!((chosen(&mut world), world.findings()), (None, vec!["promise_missing".to_string()]));
        assert!(
            world.decide().findings[0].message.contains("app-c") || world.decide().findings[0].message.contains(" c ")
        );
    }

    #[test]
    fn with_a_member_lost_only_a_person_elects() {
        // b may have led since, with a set that came down to nobody, or was asked for by a spec that is lost.
        for lost in [&["b"][..], &["a", "b"], &["b", "c"]] {
            let left = ["a", "b", "c"].into_iter().find(|name| !lost.contains(name)).unwrap();
            let mut world = recovered(three(), lost);
            assert_eq!((chosen(&mut world), world.findings()), (None, vec!["promise_missing".to_string()]));
            let refused = crate::check_forced(&world.record, &world.observed, &world.policy, member(left)).refused;
            assert_eq!(refused, []);
        }
    }

    #[test]
    fn a_forced_choice_waits_for_the_lease_of_a_leader_that_the_record_may_not_know() {
        let mut world = recovered(three(), &["b", "c"]);
        world.record.leadership = Leadership::Electing { reason: EpochReason::Forced, preferred: Some(member("a")) };
        let second = std::time::Duration::from_secs(1);
        world.observed.elected = world.observed.now;
        assert_eq!((chosen(&mut world), world.findings()), (None, vec!["lease_runs".to_string()]));
        let mut world = world.later(12 * second);
        assert_eq!(chosen(&mut world), Some(life("a", 1)));
    }

    #[test]
    fn the_longest_log_leads_though_the_known_set_would_pass_it_over() {
        let world = recovered(three(), &[]);
        let epoch = world.record.epoch.0;
        // The leader that is known reaches further; in a configuration that is not it may be what was acknowledged.
        let mut world = world.promised("a", epoch, at(2, END + 50));
        assert_eq!(chosen(&mut world), Some(life("a", 1)));
    }

    #[test]
    fn a_life_that_only_lost_entries_knew_is_adopted_and_counts_as_itself() {
        let mut world = recovered(three(), &[]).report("c", |report| holds(report, 3));
        let change = world.decide_and_apply().unwrap();
        assert_eq!(change, Some(ClusterChange::AdoptIncarnation { member: member("c"), incarnation: 3 }));
        assert_eq!(chosen(&mut world), Some(life("a", 1)));
        // Not a's known set, but c alone: its third life promised nothing of what the first one acknowledged.
        let world = recovered(three(), &["a"]).report("c", |report| holds(report, 3));
        let mut world = world;
        world.decide_and_apply().unwrap();
        assert_eq!((chosen(&mut world), world.findings()), (None, vec!["promise_missing".to_string()]));
    }

    #[test]
    fn nobody_waits_for_one_whose_data_was_given_up_before() {
        let world = three().recorded(|record| {
            record.members.get_mut(&member("c")).unwrap().incarnation = 2;
            record.configs[0].sync_set.members.remove(&life("c", 1));
        });
        let mut world = recovered(world, &[]);
        assert_eq!(chosen(&mut world), Some(life("a", 1)));
        let absent = |report: &mut MemberReport| report.data = DataSeen::Absent;
        let world = three().recorded(|record| {
            record.configs[0].sync_set.members.remove(&life("c", 1));
        });
        let mut world = recovered(world.report("c", absent), &[]).report("c", |report| report.data = DataSeen::Absent);
        assert_eq!(chosen(&mut world), Some(life("a", 1)));
    }

    #[test]
    fn one_that_was_to_acknowledge_alone_is_waited_for_though_its_data_is_gone() {
        let world = || {
            three().recorded(|record| {
                let first = record.configs[0].clone();
                let second =
                    EpochConfig { epoch: Epoch(2), leader: life("b", 1), sync_set: SyncSet::default(), ..first };
                record.configs.push(second);
                record.epoch = Epoch(2);
            })
        };
        let mut all = recovered(world(), &[]);
        assert!(chosen(&mut all).is_some());
        let mut gone = recovered(world(), &[]).report("b", |report| {
            report.data = DataSeen::Absent;
            report.answer = None;
        });
        assert_eq!((chosen(&mut gone), gone.findings()), (None, vec!["promise_missing".to_string()]));
    }

    #[test]
    fn one_that_was_chosen_since_speaks_for_everybody() {
        let mut world = recovered(three(), &[]);
        world.decide_and_apply().unwrap();
        let epoch = world.record.epoch;
        let mut world = world.gone("b").gone("c").recorded(|record| {
            record.epoch = epoch.next();
            record.leadership = Leadership::Electing { reason: EpochReason::PromotionFailed, preferred: None };
        });
        world = answers(world, "a");
        assert_eq!(chosen(&mut world), Some(life("a", 1)));
    }

    #[test]
    fn numbers_lie_beyond_everything_that_lost_entries_can_have_given() {
        let mut world = recovered(three(), &[]);
        assert_eq!((world.record.epoch, world.record.last_timeline), (Epoch(1001), Timeline(1002)));
        world.decide_and_apply().unwrap();
        assert_eq!(world.record.config().map(|config| config.timeline), Some(Timeline(1003)));
        // c is away when a is forced, with a third life that nobody knew: it is retired beyond that.
        let world = recovered(three(), &["b"]).gone("c").electing_forced("a");
        let mut world = answers(world, "a").later(std::time::Duration::from_secs(3));
        world.decide_and_apply().unwrap();
        assert_eq!(world.record.members[&member("c")].incarnation, 1001);
        assert!(world.record.is_given_up(life("c", 3)) && !world.record.is_given_up(life("a", 1)));
    }

    #[test]
    fn data_of_an_unknown_life_is_made_anew_once_somebody_leads() {
        let ended = |record: &mut pgstead_types::record::ClusterRecord| {
            let config = record.configs.last().cloned().unwrap();
            record.configs = vec![EpochConfig {
                epoch: record.epoch,
                sync_set: SyncSet { members: [life("b", 1)].into(), needed: 1 },
                ..config
            }];
            record.leadership = Leadership::Confirmed { leader: member("a") };
            record.recovered.as_mut().unwrap().ended = true;
        };
        let world = recovered(three(), &[]).recorded(ended).report("c", |report| holds(report, 3));
        let epoch = world.record.epoch;
        let primary = three().observed.nodes[&three().record.members[&member("a")].node].report.members[0].clone();
        let mut world =
            world.report("a", |report| *report = primary).with_primary(|primary| primary.epoch = Some(epoch));
        let change = world.decide_and_apply().unwrap();
        assert!(matches!(change, Some(ClusterChange::Rebuild { incarnation: 1001, .. })), "{change:?}");
    }
}
