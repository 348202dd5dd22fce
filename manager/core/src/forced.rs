//! A change of leader without the promises that an ordinary election needs: only by a person's word, and only where an
//! ordinary one has no prospect. What it may lose is measured first, and kept in the record.

use crate::candidate::Promises;
use crate::decide::Plan;
use crate::election::{here_with_data, missing_finding};
use crate::health;
use crate::lease::{self, Leases};
use crate::observed::{Memory, Observed, Policy};
use crate::quorum::electable;
use crate::recovered;
use pgstead_types::record::{ClusterChange, ClusterRecord, ForcedLoss, Lifecycle, SyncSet};
use pgstead_types::report::{MemberReport, PostgresSeen, PromiseAnswer};
use pgstead_types::{Epoch, Finding, Incarnation, MemberId, Position, Timeline};
use std::collections::BTreeSet;

/// What forcing a leader would mean now.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ForcedCheck {
    pub loss: ForcedLoss,
    /// The epoch that it would open: beyond every one that was promised.
    pub epoch: Epoch,
    /// Every member with how far its log was last seen to reach.
    pub members: Vec<CandidateSeen>,
    /// Why it is refused, everything at once. Empty if it may be done.
    pub refused: Vec<Finding>,
}

/// One member before a forced change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CandidateSeen {
    pub member: MemberId,
    /// Its node answers, and its data is complete and the present incarnation's.
    pub here: bool,
    /// By its last report, whatever the age.
    pub reaches: Option<Position>,
}

/// How far a member's log reaches by a report.
fn reach(report: &MemberReport) -> Option<Position> {
    let seen = match &report.postgres {
        PostgresSeen::Primary(primary) => Some(Position { timeline: primary.timeline, lsn: primary.flushed }),
        PostgresSeen::Standby(standby) => standby.position,
        PostgresSeen::Down { clean } => clean.map(|stop| Position { timeline: stop.timeline, lsn: stop.checkpoint }),
        PostgresSeen::Starting | PostgresSeen::Unresponsive { .. } => None,
    };
    seen.max(report.answer.map(|answer| answer.position))
}

pub fn check_forced(cluster: &ClusterRecord, observed: &Observed, policy: &Policy, to: MemberId) -> ForcedCheck {
    // Whoever refuses elections is free again in a moment: nothing of what it holds has to be given up.
    let here = here_with_data(cluster, observed, policy);
    let members: Vec<CandidateSeen> = cluster
        .members
        .values()
        .map(|member| CandidateSeen {
            member: member.id,
            here: here.contains(&member.current()),
            reaches: observed.last(cluster, member.id).and_then(reach),
        })
        .collect();
    // What the last epoch began with was on disks even if nobody has reported since.
    let recorded = cluster.configs.last().map(|config| config.start).filter(|start| start.timeline > Timeline(0));
    let known_end = members.iter().filter_map(|seen| seen.reaches).max().max(recorded);
    let best = members.iter().find(|seen| seen.member == to).and_then(|seen| seen.reaches);
    let bytes = match (known_end, best) {
        // Only with a report of whoever led: without one, nobody knows how far its log went.
        (Some(end), Some(best)) if end.timeline == best.timeline && leader_was_heard(cluster, observed) => {
            Some(end.lsn.bytes_since(best.lsn))
        }
        _ => None,
    };
    let missing = members.iter().filter(|seen| !seen.here).map(|seen| seen.member).collect();
    let promised = cluster.members.keys().filter_map(|id| observed.last(cluster, *id)).map(|report| report.promised);
    ForcedCheck {
        loss: ForcedLoss { missing, known_end, best, bytes },
        epoch: promised.fold(cluster.epoch, Epoch::max).next(),
        refused: refusals(cluster, observed, policy, &here, &members, to),
        members,
    }
}

fn leader_was_heard(cluster: &ClusterRecord, observed: &Observed) -> bool {
    let last = cluster.configs.last().map(|config| config.leader.member);
    last.is_some_and(|leader| observed.last(cluster, leader).and_then(reach).is_some())
}

fn refusals(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    here: &BTreeSet<Incarnation>,
    members: &[CandidateSeen],
    to: MemberId,
) -> Vec<Finding> {
    let mut refused = Vec::new();
    let mut refuse = |code: &str, text: String| refused.push(Finding::error(code, text).on_cluster(cluster.id));
    let name = |id: MemberId| cluster.members.get(&id).map_or_else(|| id.to_string(), |member| member.name.clone());
    let is_corrupted = |id: MemberId| health::is_corrupted(cluster, observed, id);
    if cluster.lifecycle != Lifecycle::Active {
        refuse("being_deleted", "the cluster is being deleted".into());
    }
    if could_serve(cluster, observed, here, members) && recovered::waits_for(cluster, observed, policy, here).is_none()
    {
        refuse(
            "unforced_possible",
            "enough members are here for an election that loses nothing; let it happen, or use a switchover".into(),
        );
    }
    // A recovered record may not know that somebody has.
    if cluster.history.is_empty() && cluster.recovering().is_none() {
        refuse("never_led", "nobody has led this cluster yet, so there is nothing to save; delete it".into());
    }
    match members.iter().find(|seen| seen.member == to) {
        Some(seen) if seen.here => {
            // One whose pages are wrong is no better for reaching further: what is wrong on them would be copied.
            let is_worse = |other: &&CandidateSeen| is_corrupted(other.member) && !is_corrupted(to);
            let better = members
                .iter()
                .filter(|other| other.here && other.reaches > seen.reaches && !is_worse(other))
                .max_by_key(|other| other.reaches);
            if let (Some(better), Some(reaches)) = (better, better.and_then(|better| better.reaches)) {
                let text = format!("the log of {} reaches further, to {reaches}; name that one", name(better.member));
                refuse("another_has_more", text);
            }
        }
        _ => refuse("target_away", format!("{} is not here with complete data, so it cannot lead", name(to))),
    }
    refused
}

/// Whether those who are here could elect a leader by the rules and confirm it; at the latest when a lease is over.
fn could_serve(
    cluster: &ClusterRecord,
    observed: &Observed,
    here: &BTreeSet<Incarnation>,
    members: &[CandidateSeen],
) -> bool {
    let needed = usize::from(cluster.configs.last().map_or(0, |config| config.sync_set.needed));
    let reaches = |life: &Incarnation| members.iter().find(|seen| seen.member == life.member)?.reaches;
    finds_sound_leader(cluster, observed, here, needed, reaches)
}

/// Enough have promised to elect by the rules and to confirm: then nothing has to be given up.
pub(crate) fn is_needless(cluster: &ClusterRecord, observed: &Observed, promises: &Promises) -> bool {
    let promised: BTreeSet<Incarnation> = promises.keys().copied().collect();
    let reaches = |life: &Incarnation| promises.get(life).map(|answer| answer.position);
    finds_sound_leader(cluster, observed, &promised, usize::from(cluster.spec.needed()), reaches)
}

/// An election among `those` ends with a leader whose pages are not known to be wrong: the sound ones are enough, or one of
/// them reaches as far as anybody. Any other would hold for ever.
fn finds_sound_leader(
    cluster: &ClusterRecord,
    observed: &Observed,
    those: &BTreeSet<Incarnation>,
    needed: usize,
    reaches: impl Fn(&Incarnation) -> Option<Position>,
) -> bool {
    let enough = |those: &BTreeSet<Incarnation>| lease::has_prospect(cluster, those).is_ok() && those.len() > needed;
    let is_corrupted = |life: &Incarnation| health::is_corrupted(cluster, observed, life.member);
    let sound: BTreeSet<Incarnation> = those.iter().copied().filter(|life| !is_corrupted(life)).collect();
    let furthest = those.iter().filter_map(&reaches).max();
    let as_far = || sound.iter().any(|life| reaches(life) == furthest);
    enough(those) && (cluster.members.len() == 1 || sound.len() == those.len() || enough(&sound) || as_far())
}

/// A forced epoch is open and too few have promised for an ordinary choice: the best of those who have, once everyone who
/// is here has, or has been waited for. A person can give up commits, but has no leader beside one that acknowledges alone:
/// its lease is waited for as in any election.
pub(crate) fn plan(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    promises: &Promises,
    preferred: Option<MemberId>,
    leases: &Leases,
) -> Plan {
    if let Some(until) = leases.until {
        return Plan::wait(lease::waiting(cluster, until, observed.now)).until(until);
    }
    let here = here_with_data(cluster, observed, policy);
    let awaited = here.iter().any(|life| !promises.contains_key(life));
    // Whoever refuses elections answers when its word is over, half a lease later at most: it gives no other once it knows
    // of this epoch.
    let refused = lease::longest_refusal(cluster, observed, policy);
    let began = memory.phase_began(cluster, observed.now);
    if !refused.is_zero() {
        memory.electable = Some(observed.now);
    }
    let free = memory.electable.map_or(began, |at| began.max(at + refused));
    let until = free + policy.preferred_patience;
    let key = |answer: &&PromiseAnswer| {
        let named = Some(answer.incarnation.member) == preferred;
        let sound = named || !health::is_corrupted(cluster, observed, answer.incarnation.member);
        (sound, answer.position, named)
    };
    let best = promises.values().max_by_key(key);
    match best {
        Some(best) if !awaited || observed.now >= until => Plan::change(choice(cluster, promises, *best)),
        _ => {
            let missing = electable(&cluster.configs, &promises.keys().copied().collect()).err().flatten();
            let text = format!("epoch {} was forced: those who are here promise", cluster.epoch);
            let finding = Finding::warning("forced_election", text).on_cluster(cluster.id);
            let plan = Plan::wait(finding).with(missing_finding(cluster, missing));
            if observed.now < until { plan.until(until) } else { plan }
        }
    }
}

/// The best of those who promised leads. Every other life of data is retired: whoever comes back is made anew from it.
fn choice(cluster: &ClusterRecord, promises: &Promises, chosen: PromiseAnswer) -> ClusterChange {
    let members: BTreeSet<Incarnation> = promises
        .values()
        .filter(|answer| answer.incarnation != chosen.incarnation)
        .filter(|answer| cluster.is_prefix(answer.position, chosen.position))
        .map(|answer| answer.incarnation)
        .collect();
    let stays = |life: &Incarnation| *life == chosen.incarnation || members.contains(life);
    let rebuild = cluster.members.values().filter(|member| !stays(&member.current())).map(|member| member.id).collect();
    let newest = promises.values().map(|answer| answer.position.timeline).fold(cluster.last_timeline, Timeline::max);
    // Nobody counts who has not promised; where nobody else has, the leader acknowledges alone.
    let needed = cluster.spec.needed().min(u8::try_from(members.len()).unwrap_or(u8::MAX));
    ClusterChange::Choose {
        epoch: cluster.epoch,
        leader: chosen.incarnation,
        timeline: newest.next(),
        start: chosen.position,
        sync_set: if needed == 0 { SyncSet::default() } else { SyncSet { members, needed } },
        rebuild,
        // What may be lost is in the record of the forced epoch itself.
        possible_loss: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::testing::{World, at, lag, life, member, set, world};
    use pgstead_types::record::EpochReason;
    use pgstead_types::{Bytes, Trouble};

    /// The leader and one standby of three are gone.
    fn disaster() -> World {
        world().leader("a").standby("b", lag(0)).standby("c", lag(300)).gone("a").gone("b")
    }
    fn check(world: &World, to: &str) -> ForcedCheck {
        check_forced(&world.record, &world.observed, &world.policy, member(to))
    }
    fn refused(world: &World, to: &str) -> Vec<String> {
        check(world, to).refused.into_iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn the_gap_is_measured_from_what_was_last_heard() {
        let found = check(&disaster(), "c");
        assert_eq!(found.refused, []);
        assert_eq!((found.loss.bytes, found.loss.best), (Some(Bytes(300)), Some(at(2, 700))));
        assert_eq!(found.loss.missing, [member("a"), member("b")].into());
        assert_eq!(found.epoch, Epoch(2));
    }

    #[test]
    fn a_leader_that_was_never_heard_leaves_the_gap_unknown() {
        let mut world = disaster();
        world.observed.nodes.retain(|_, seen| seen.report.members[0].member == member("c"));
        assert_eq!(check(&world, "c").loss.bytes, None);
    }

    #[test]
    fn it_is_refused_while_an_election_by_the_rules_could_succeed() {
        let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0)).gone("a");
        assert_eq!(refused(&world, "c"), ["unforced_possible"]);
    }

    #[test]
    fn a_leader_left_alone_may_be_let_to_acknowledge_alone() {
        let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0)).gone("b").gone("c");
        assert_eq!(refused(&world, "a"), Vec::<String>::new());
        assert_eq!(check(&world, "a").loss.bytes, Some(Bytes(0)));
    }

    #[test]
    fn one_that_is_away_or_has_less_is_refused() {
        assert_eq!(refused(&disaster(), "b"), ["target_away"]);
        let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0)).standby("d", lag(300)).gone("a");
        let world = world.recorded(|record| record.configs[0].sync_set = set(&["b", "c", "d"], 2)).gone("b");
        let found = refused(&world, "d");
        assert!(found.contains(&"another_has_more".to_string()), "{found:?}");
    }

    #[test]
    fn it_is_the_way_on_where_only_wrong_pages_could_be_elected() {
        // b has everything and wrong pages, c has less, and a is gone: an election holds for ever.
        let world = world().leader("a").standby("b", lag(0)).standby("c", lag(300)).gone("a");
        let broken = world.recorded(|record| record.configs[0].sync_set = set(&["b"], 1));
        let broken = broken.report("b", |report| report.troubles = vec![Trouble::Corrupted { failures: 1 }]);
        let found = check(&broken, "c");
        assert_eq!((found.refused, found.loss.bytes), (vec![], Some(Bytes(300))));
        let open = broken.promised("b", 2, at(2, 1000)).promised("c", 2, at(2, 700)).electing_forced("c");
        let chosen = open.later(Policy::default().preferred_patience).decide().change;
        assert!(matches!(&chosen, Some(ClusterChange::Choose { leader, .. }) if *leader == life("c", 1)), "{chosen:?}");
    }

    #[test]
    fn its_epoch_is_beyond_every_promise() {
        let world = disaster().report("c", |report| report.promised = Epoch(7));
        assert_eq!(check(&world, "c").epoch, Epoch(8));
    }

    #[test]
    fn the_best_promiser_leads_alone_and_the_lost_lives_are_retired() {
        let mut world = disaster().electing(EpochReason::Forced, Some("c")).promised("c", 2, at(2, 700));
        let Some(ClusterChange::Choose { leader, sync_set, rebuild, .. }) = world.decide().change else {
            panic!("no choice")
        };
        assert_eq!((leader, sync_set), (life("c", 1), SyncSet::default()));
        assert_eq!(rebuild, [member("a"), member("b")]);
    }

    #[test]
    fn those_who_are_here_are_waited_for() {
        let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0)).standby("d", lag(0));
        let world = world.recorded(|record| record.configs[0].sync_set = set(&["b", "c", "d"], 1));
        let world = world.gone("a").gone("b").electing(EpochReason::Forced, Some("c")).promised("c", 2, at(2, 1000));
        let mut world = world;
        let plan = world.decide();
        assert!(plan.change.is_none() && plan.findings.iter().any(|finding| finding.code == "forced_election"));
        let mut world = world.later(policy_patience());
        assert!(matches!(world.decide().change, Some(ClusterChange::Choose { .. })));
    }

    #[test]
    fn those_who_refuse_for_a_moment_are_not_given_up() {
        let refuse = |report: &mut pgstead_types::report::MemberReport| {
            report.refusing = Some(pgstead_types::report::RefusalSeen { epoch: Epoch(1), remaining_ms: 3000 });
        };
        let world = world().leader("a").standby("b", lag(0)).standby("c", lag(300)).gone("a").report("b", refuse);
        assert!(refused(&world, "c").contains(&"unforced_possible".to_string()));
        let world = world.electing(EpochReason::Forced, Some("c")).promised("c", 2, at(2, 700));
        let mut world = world.later(2 * policy_patience());
        assert_eq!(world.decide().change, None);
        // Free to promise, and given the time for it.
        let mut world = world.report("b", |report| report.refusing = None);
        assert_eq!(world.decide().change, None);
        let mut promised = world.promised("b", 2, at(2, 1000));
        let Some(ClusterChange::Choose { leader, rebuild, .. }) = promised.decide().change else { panic!("no choice") };
        assert_eq!((leader, rebuild), (life("b", 1), vec![]));
    }

    #[test]
    fn a_leader_that_acknowledges_alone_is_out_before_a_forced_one_leads() {
        let second = std::time::Duration::from_secs(1);
        let world = world().leader("a").standby("b", lag(0)).standby("c", lag(300)).granted("a", 3 * second);
        // A person has left it alone in an earlier epoch.
        let world = world.recorded(|record| record.configs[0].sync_set = set(&[], 0)).silent("a", 3 * second);
        assert_eq!(refused(&world, "b"), Vec::<String>::new());
        let world = world.electing(EpochReason::Forced, Some("b"));
        let mut world = world.promised("b", 2, at(2, 1000)).promised("c", 2, at(2, 700));
        let plan = world.decide();
        assert_eq!((plan.settled(), plan.findings[0].code.as_str()), (true, "lease_runs"));
        let mut world = world.later(9 * second).silent("a", 12 * second);
        let change = world.decide().change;
        assert!(matches!(&change, Some(ClusterChange::Choose { leader, .. }) if *leader == life("b", 1)), "{change:?}");
    }

    fn policy_patience() -> std::time::Duration {
        Policy::default().preferred_patience
    }

    #[test]
    fn promises_that_elect_and_cannot_confirm_are_not_enough() {
        // Two acknowledgements of two: one promise elects, and one member confirms nothing.
        let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0)).gone("a").gone("b");
        let world = world.recorded(|record| {
            record.configs[0].sync_set = set(&["b", "c"], 2);
            record.spec.sync_replicas = Some(2);
        });
        assert_eq!(refused(&world, "c"), Vec::<String>::new());
        let mut world = world.electing(EpochReason::Forced, Some("c")).promised("c", 2, at(2, 1000));
        let change = world.decide().change;
        assert!(matches!(&change, Some(ClusterChange::Choose { sync_set, .. }) if sync_set.needed == 0), "{change:?}");
    }

    #[test]
    fn without_a_persons_word_nobody_is_chosen() {
        let mut world = disaster().electing(EpochReason::NodeLost, None).promised("c", 2, at(2, 700));
        assert_eq!(world.decide().change, None);
    }

    #[test]
    fn when_enough_promise_after_all_nothing_is_lost() {
        let world = world().leader("a").standby("b", lag(0)).standby("c", lag(300)).gone("a");
        let world = world.electing(EpochReason::Forced, Some("c"));
        let mut world = world.promised("b", 2, at(2, 1000)).promised("c", 2, at(2, 700));
        let Some(ClusterChange::Choose { leader, rebuild, .. }) = world.decide().change else { panic!("no choice") };
        assert_eq!((leader, rebuild), (life("b", 1), vec![]));
    }
}
