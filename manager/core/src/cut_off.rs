//! A leader that runs while its standbys, which are here, cannot reach it: another is elected before anything degrades,
//! where another could be and has not been tried.

use crate::change_leader;
use crate::decide::Plan;
use crate::election::could_promise;
use crate::health;
use crate::observed::{Memory, Observed, Policy, hears};
use crate::quorum::electable;
use crate::steady::why_rebuild;
use crate::sync_set::CAUGHT_UP;
use pgstead_types::record::{ClusterRecord, EpochReason, MemberRecord, SyncSet};
use pgstead_types::report::{PrimarySeen, StandbySeen, Upstream};
use pgstead_types::{Finding, Incarnation, MemberId};
use std::collections::BTreeSet;

/// Standbys of `set` that are here, were told to stream from this leader, and hear nothing. A receiver that is still
/// trying to connect hears nothing either, and what the leader's senders say of a cut connection is old.
pub(crate) fn deaf<'a>(
    cluster: &'a ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    leader: MemberId,
    set: &'a SyncSet,
) -> impl Iterator<Item = &'a MemberRecord> {
    let told = Upstream::of(leader, cluster.epoch);
    let is_deaf = move |standby: &StandbySeen, member: MemberId| {
        let age = observed.report_age(cluster, member);
        standby.upstream == Some(told) && !is_replaying(standby) && hears(standby, told, age, policy).is_none()
    };
    let members = set.members.iter().filter_map(|life| cluster.members.get(&life.member));
    members.filter(move |member| {
        let standby = observed.fresh(cluster, member.id, policy).and_then(|report| report.as_standby());
        standby.is_some_and(|standby| is_deaf(standby, member.id))
    })
}

/// Postgres asks its upstream for more only when it has replayed what it has.
fn is_replaying(standby: &StandbySeen) -> bool {
    standby.position.is_some_and(|position| position.lsn.bytes_since(standby.replayed) > CAUGHT_UP)
}

/// Whom Postgres counts now. A member is recorded before it is loaded, and until then it lets no commit through.
pub(crate) fn counted<'a>(cluster: &'a ClusterRecord, primary: &'a PrimarySeen) -> Option<&'a SyncSet> {
    Some(primary.sync_set.as_ref().unwrap_or(cluster.config()?.loaded()))
}

pub(crate) fn finding(cluster: &ClusterRecord, leader: MemberId) -> Finding {
    let text = "the leader runs and its standbys, which are well, cannot reach it".to_string();
    Finding::error("cut_from_standbys", text).on_cluster(cluster.id).on_member(leader)
}

/// A member that could lead in this one's place: others that are well are enough to elect, and one of them has not led since
/// an epoch was confirmed. Where replication is cut both ways, another leader is no better, and every one is tried once.
pub(crate) fn another_could_lead(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    leader: MemberId,
) -> bool {
    let unfit = health::unfit(cluster, observed);
    let is_other = |life: &Incarnation| life.member != leader && !unfit.contains(&life.member);
    let others: BTreeSet<Incarnation> = could_promise(cluster, observed, policy).into_iter().filter(is_other).collect();
    let tried = |life: &Incarnation| cluster.configs.iter().any(|config| config.leader.member == life.member);
    cluster.configs.len() <= cluster.members.len()
        && others.iter().any(|life| !tried(life))
        && electable(&cluster.configs, &others).is_ok()
}

/// The leader of an unconfirmed epoch is cut off from so many that it cannot be confirmed: another is elected after a while.
/// Members that must be made anew, or have to follow first, say nothing of the leader.
pub(crate) fn unconfirmed(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    leader: MemberId,
    primary: &PrimarySeen,
) -> Option<Plan> {
    let set = counted(cluster, primary)?;
    let well = well_and_deaf(cluster, observed, policy, leader, set);
    if set.needed == 0 || well < set.promises_needed() || !another_could_lead(cluster, observed, policy, leader) {
        memory.cut = None;
        return None;
    }
    let since = *memory.cut.get_or_insert(observed.now);
    let until = since + policy.cut_patience;
    if observed.now < until {
        // Every standby takes a moment to connect to a new leader.
        return Some(Plan::default().until(until));
    }
    let (reason, finding) = (EpochReason::CutFromStandbys, finding(cluster, leader));
    Some(change_leader::after_loss(cluster, observed, policy, memory, leader, reason, finding))
}

/// Instead of going on with fewer: a change of leader, where a standby that counts is here and cannot reach this one, and
/// another could lead.
pub(crate) fn rather_than_degrade(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    leader: MemberId,
    primary: &PrimarySeen,
) -> Option<Plan> {
    let set = counted(cluster, primary)?;
    if well_and_deaf(cluster, observed, policy, leader, set) == 0
        || !another_could_lead(cluster, observed, policy, leader)
    {
        return None;
    }
    let (reason, finding) = (EpochReason::CutFromStandbys, finding(cluster, leader));
    Some(change_leader::after_loss(cluster, observed, policy, memory, leader, reason, finding))
}

fn well_and_deaf(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    leader: MemberId,
    set: &SyncSet,
) -> usize {
    deaf(cluster, observed, policy, leader, set)
        .filter(|member| why_rebuild(cluster, observed, policy, member).is_none())
        .count()
}
