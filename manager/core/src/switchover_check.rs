//! What stands in the way of a switchover: everything at once, each as a finding. An error cannot be overruled, a warning
//! can, and the rest is worth knowing.

use crate::cascade;
use crate::election::could_promise;
use crate::health;
use crate::lease;
use crate::observed::{Observed, Policy};
use crate::slots;
use crate::steady::streams;
use crate::switchover::LAG_MAX;
use pgstead_types::record::{ClusterRecord, Leadership, Lifecycle, MemberRecord, Standing};
use pgstead_types::report::PrimarySeen;
use pgstead_types::{Bytes, Finding, Incarnation, MemberId, Severity, Trouble};
use std::collections::BTreeSet;

/// What a switchover would be, and what blocks it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct SwitchoverCheck {
    pub from: Option<MemberId>,
    /// The one that was asked for, or the closest standby; none if nobody could.
    pub to: Option<MemberId>,
    /// How far the target is behind, where that is known.
    pub lag: Option<Bytes>,
    pub findings: Vec<Finding>,
}

impl SwitchoverCheck {
    /// Whether it can begin now. `overrule` passes over what is only a warning.
    pub fn is_clear(&self, overrule: Overrule) -> bool {
        self.blockers(overrule).next().is_none()
    }

    /// Whether all that blocks it may be over in a moment, so that asking again soon is worth it.
    pub fn may_pass(&self, overrule: Overrule) -> bool {
        self.blockers(overrule).all(|finding| PASSES.contains(&finding.code.as_str()))
    }

    fn blockers(&self, overrule: Overrule) -> impl Iterator<Item = &Finding> {
        let gravest = match overrule {
            Overrule::Nothing => Severity::Warning,
            Overrule::Warnings => Severity::Error,
        };
        self.findings.iter().filter(move |finding| finding.severity >= gravest)
    }
}

/// What a member that has just begun to follow, or a report under way, mends within seconds.
const PASSES: [&str; 11] = [
    "leader_not_seen",
    "no_leader",
    "no_spare",
    "no_target",
    "sessions_unknown",
    "target_away",
    "target_busy",
    "target_does_not_count",
    "target_lags",
    "target_not_streaming",
    "too_few_members",
];

/// What the asker passes over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Overrule {
    Nothing,
    Warnings,
}

/// The leader's Postgres by its node's fresh word, if it runs as the primary of the present epoch.
fn leading<'a>(cluster: &ClusterRecord, observed: &'a Observed, policy: &Policy) -> Option<&'a PrimarySeen> {
    let leader = cluster.leadership.leader()?;
    let report = observed.fresh(cluster, leader, policy)?;
    report.as_primary().filter(|primary| primary.epoch == Some(cluster.epoch))
}

/// How far a standby that streams is behind.
fn lag(primary: &PrimarySeen, member: &MemberRecord) -> Option<Bytes> {
    let sender = primary.senders.iter().find(|sender| sender.incarnation == Some(member.current()))?;
    Some(primary.flushed.bytes_since(sender.flushed?))
}

/// The same of one that another standby feeds.
fn fed_lag(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    primary: &PrimarySeen,
    member: &MemberRecord,
) -> Option<Bytes> {
    cluster.relay_of(member.id)?;
    let standby = observed.fresh(cluster, member.id, policy)?.as_standby()?;
    let is_fed = cascade::is_fed(cluster, observed, policy, primary, member);
    let position = standby.position.filter(|_| is_fed)?;
    Some(primary.flushed.bytes_since(position.lsn))
}

/// The standby that could take over soonest.
pub fn closest_standby(cluster: &ClusterRecord, observed: &Observed, policy: &Policy) -> Option<MemberId> {
    let primary = leading(cluster, observed, policy)?;
    let leader = cluster.leadership.leader();
    let standbys = cluster
        .members
        .values()
        .filter(|member| Some(member.id) != leader && member.standing != Standing::Leaving && streams(primary, member));
    let unfit = health::unfit(cluster, observed);
    let closest =
        standbys.filter_map(|member| Some((unfit.contains(&member.id), lag(primary, member)?, member.id))).min();
    closest.map(|(_, _, id)| id)
}

pub fn check_switchover(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    to: Option<MemberId>,
) -> SwitchoverCheck {
    let mut check = SwitchoverCheck {
        from: cluster.leadership.leader().filter(|_| cluster.is_confirmed()),
        to: to.or_else(|| closest_standby(cluster, observed, policy)),
        lag: None,
        findings: Vec::new(),
    };
    let findings = &mut check.findings;
    let mut block = |code: &str, text: String| findings.push(Finding::error(code, text).on_cluster(cluster.id));
    if cluster.lifecycle != Lifecycle::Active {
        block("being_deleted", "the cluster is being deleted".into());
    }
    if cluster.switchover.is_some() {
        block("other_operation", "a switchover is under way; wait for it to end".into());
    }
    if cluster.restart.is_some() {
        block("other_operation", "a restart is under way; wait for it to end".into());
    }
    if cluster.creating.is_some() {
        block("other_operation", "the cluster is still being created".into());
    }
    match &cluster.leadership {
        Leadership::Confirmed { .. } => {}
        _ => block("no_leader", "the cluster has no confirmed leader now; it is changing its leader already".into()),
    }
    let primary = leading(cluster, observed, policy);
    if let (Some(leader), None) = (check.from, primary) {
        let name = name(cluster, leader);
        block("leader_not_seen", format!("the leader {name} is not seen to run now, so it cannot be stopped cleanly"));
    }
    let Some(member) = check.to.and_then(|to| cluster.members.get(&to)) else {
        let text = match check.to {
            Some(to) => format!("{to} is no member of the cluster"),
            None => "no standby streams from the leader, so nobody could take over".into(),
        };
        block("no_target", text);
        return check;
    };
    if check.from == Some(member.id) {
        block("leads_already", format!("{} leads already", member.name));
        return check;
    }
    if member.standing == Standing::Leaving {
        block("target_leaves", format!("{} is leaving the cluster; choose another one", member.name));
    }
    target(cluster, observed, policy, member, primary, &mut check);
    promises(cluster, observed, policy, member, &mut check);
    check
}

fn name(cluster: &ClusterRecord, member: MemberId) -> String {
    cluster.members.get(&member).map_or_else(|| member.to_string(), |member| member.name.clone())
}

/// What is wrong with the one that is to lead.
fn target(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    member: &MemberRecord,
    primary: Option<&PrimarySeen>,
    check: &mut SwitchoverCheck,
) {
    let about = |finding: Finding| finding.on_cluster(cluster.id).on_member(member.id).on_node(member.node);
    let Some(report) = observed.fresh(cluster, member.id, policy) else {
        let text = format!("the node of {} does not answer", member.name);
        check.findings.push(about(Finding::error("target_away", text)));
        return;
    };
    if report.troubles.iter().any(|trouble| matches!(trouble, Trouble::PoolFull { .. })) {
        let text = format!("the pool that {} is on has little room left, so it would not be elected", member.name);
        check.findings.push(about(Finding::error("target_on_full_pool", text)));
    }
    if let Some(primary) = primary {
        check.lag = lag(primary, member).or_else(|| fed_lag(cluster, observed, policy, primary, member));
        match check.lag {
            None => {
                let source = cluster.relay_of(member.id).map(|relay| name(cluster, relay));
                let text =
                    format!("{} does not stream from {}", member.name, source.as_deref().unwrap_or("the leader"));
                check.findings.push(about(Finding::error("target_not_streaming", text)));
            }
            Some(_) if cluster.relay_of(member.id).is_none() && !streams(primary, member) => {
                let text = format!("{} is catching up and does not stream yet", member.name);
                check.findings.push(about(Finding::error("target_not_streaming", text)));
            }
            Some(lag) if lag > LAG_MAX => {
                let text = format!("{} is {lag} behind; more than {LAG_MAX} would keep clients waiting", member.name);
                check.findings.push(about(Finding::error("target_lags", text)));
            }
            Some(_) => {}
        }
    }
    if let Some(relay) = cluster.relay_of(member.id) {
        // Whatever is planned sends it to the leader, and there it counts before the leader lets go.
        let text = format!("{} streams from {} and goes to the leader first", member.name, name(cluster, relay));
        check.findings.push(about(Finding::info("target_is_fed", text)));
    } else if !cluster.config().is_some_and(|config| {
        // Nobody counts where the leader acknowledges alone. It stops cleanly, and its target has all that it wrote.
        config.asynchronous || config.sync_set.members.contains(&member.current())
    }) {
        let text = format!("{} does not count in the sync set yet", member.name);
        check.findings.push(about(Finding::warning("target_does_not_count", text)));
    }
    let lacking = slots::lacking(cluster, observed, policy, member.id);
    if !lacking.is_empty() {
        let text = format!(
            "{} has no complete copy of the logical slots {}: their consumers would have to begin anew; a copy is complete once the \
             consumer has moved the slot past where the copy began",
            member.name,
            lacking.join(", ")
        );
        check.findings.push(about(Finding::warning("target_lacks_slots", text)));
    }
    if let Some(working) = &report.working {
        let text = format!("{} is busy: {}", member.name, working.step);
        check.findings.push(about(Finding::warning("target_busy", text)));
    }
    // What its own node says of it; what is only worth knowing blocks nothing.
    let own = report.findings.iter().filter(|finding| finding.severity >= Severity::Warning);
    check.findings.extend(own.cloned().map(about));
}

/// Whether the election that ends it can succeed, also if the old leader fails on the way.
fn promises(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    member: &MemberRecord,
    check: &mut SwitchoverCheck,
) {
    let here = could_promise(cluster, observed, policy);
    let after = here.iter().filter(|life| life.member != member.id).count();
    let needed = usize::from(cluster.spec.needed());
    if after < needed {
        let text = format!(
            "under {}, {needed} others must have a commit on disk, and {after} are here: writes would wait",
            member.name
        );
        check.findings.push(Finding::error("too_few_members", text).on_cluster(cluster.id));
        return;
    }
    let without: BTreeSet<Incarnation> = here.iter().copied().filter(|life| Some(life.member) != check.from).collect();
    if lease::has_prospect(cluster, &without).is_err() {
        let text = "if the leader were lost on the way, too few others are here to elect anyone until it is back";
        let alone = cluster.members.len() <= 2;
        // Two members can never do without each other; then it is no news.
        let finding = if alone { Finding::info("no_spare", text) } else { Finding::warning("no_spare", text) };
        check.findings.push(finding.on_cluster(cluster.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::testing::{World, lag, life, member, set, world};
    use pgstead_types::Epoch;
    use pgstead_types::report::Upstream;
    use pgstead_types::spec::Cascade;

    fn codes(check: &SwitchoverCheck) -> Vec<&str> {
        check.findings.iter().map(|finding| finding.code.as_str()).collect()
    }

    #[test]
    fn nothing_blocks_a_switchover_of_a_cluster_that_is_well() {
        let world = world().leader("a").standby("b", lag(10)).standby("c", lag(0));
        let check = check_switchover(&world.record, &world.observed, &world.policy, None);
        assert_eq!((codes(&check), check.to), (vec![], Some(member("c"))), "the closest is taken");
        assert!(check.is_clear(Overrule::Nothing));
    }

    #[test]
    fn everything_that_blocks_is_named_at_once() {
        let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0)).gone("b").switchover("a", "c", false);
        let world = world.recorded(|record| record.configs[0].sync_set = set(&["c"], 1));
        let check = check_switchover(&world.record, &world.observed, &world.policy, Some(member("b")));
        assert_eq!(codes(&check), ["other_operation", "target_away"]);
        assert!(!check.is_clear(Overrule::Warnings) && !check.may_pass(Overrule::Warnings));
    }

    #[test]
    fn nobody_has_to_count_where_the_leader_acknowledges_alone() {
        let world = world().leader("a").standby("b", lag(10)).standby("c", lag(0)).recorded(|record| {
            record.spec.durability = pgstead_types::spec::Durability::Asynchronous;
            (record.configs[0].asynchronous, record.configs[0].sync_set) = (true, Default::default());
        });
        let check = check_switchover(&world.record, &world.observed, &world.policy, Some(member("c")));
        assert_eq!(codes(&check), Vec::<&str>::new());
    }

    #[test]
    fn a_target_that_lags_or_does_not_stream_blocks() {
        let far = 20 << 20;
        let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0)).with_primary(|primary| {
            primary.flushed.0 += far;
            primary.senders[0].flushed.as_mut().unwrap().0 += far;
        });
        let lags = check_switchover(&world.record, &world.observed, &world.policy, Some(member("c")));
        assert_eq!((codes(&lags), lags.lag), (vec!["target_lags"], Some(Bytes(far))));
        let world = world.with_primary(|primary| primary.senders[1].streaming = false);
        let silent = check_switchover(&world.record, &world.observed, &world.policy, Some(member("c")));
        assert_eq!(codes(&silent), ["target_not_streaming"]);
        assert!(silent.may_pass(Overrule::Nothing), "it may have begun to follow just now");
    }

    #[test]
    fn a_target_that_another_standby_feeds_goes_to_the_leader_first_and_must_be_near() {
        let relay = member("b");
        let upstream = Upstream { relay: Some(relay), ..Upstream::of(member("a"), Epoch(1)) };
        let fed = || {
            let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0)).standby("d", lag(10));
            let world = world.on_standby("d", |standby| standby.upstream = Some(upstream));
            let world = world.with_primary(|primary| _ = primary.senders.pop());
            world.recorded(|record| {
                record.spec.cascade = Cascade::Zone;
                record.upstreams = [(life("d", 1), life("b", 1))].into();
                record.configs[0].sync_set = set(&["b", "c"], 1);
            })
        };
        let check = |world: &World| check_switchover(&world.record, &world.observed, &world.policy, Some(member("d")));
        let near = check(&fed());
        assert_eq!((codes(&near), near.lag), (vec!["target_is_fed"], Some(Bytes(10))));
        assert!(near.is_clear(Overrule::Nothing));
        let far = check(&fed().with_primary(|primary| primary.flushed.0 += 20 << 20));
        assert_eq!(codes(&far), ["target_lags", "target_is_fed"]);
        let cut = check(&fed().deaf("d"));
        assert_eq!(codes(&cut), ["target_not_streaming", "target_is_fed"]);
    }

    #[test]
    fn what_its_node_says_of_the_target_counts() {
        let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0)).report("b", |report| {
            report.findings = vec![Finding::warning("disk_fills", "x"), Finding::info("note", "y")];
        });
        let check = check_switchover(&world.record, &world.observed, &world.policy, Some(member("b")));
        assert_eq!(codes(&check), ["disk_fills"]);
        assert!(!check.is_clear(Overrule::Nothing) && check.is_clear(Overrule::Warnings));
    }

    #[test]
    fn without_a_spare_the_leaders_loss_on_the_way_is_warned_of() {
        let world = world().leader("a").standby("b", lag(0)).standby("c", lag(0)).gone("c");
        let check = check_switchover(&world.record, &world.observed, &world.policy, Some(member("b")));
        assert_eq!(codes(&check), ["no_spare"]);
    }

    #[test]
    fn nobody_takes_over_where_nobody_streams() {
        let world = world().leader("a").standby("b", lag(0)).with_primary(|primary| primary.senders.clear());
        let check = check_switchover(&world.record, &world.observed, &world.policy, None);
        assert_eq!(codes(&check), ["no_target"]);
    }
}
