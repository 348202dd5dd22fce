//! Members that are here and not well: who must not lead, who can go on only with other data, and how often that is tried.

use crate::lease;
use crate::observed::{Memory, Observed, Policy};
use pgstead_types::record::{ClusterRecord, MemberRecord};
use pgstead_types::report::DataSeen;
use pgstead_types::{Epoch, Finding, MemberId, Tick, Trouble};
use std::collections::BTreeSet;

/// By the last word of its node, whatever the age: these do not pass by themselves.
pub(crate) fn troubles<'a>(
    cluster: &ClusterRecord,
    observed: &'a Observed,
    member: MemberId,
) -> impl Iterator<Item = &'a Trouble> {
    let current = cluster.members.get(&member).map(MemberRecord::current);
    let report = observed.last(cluster, member).filter(|report| report.incarnation() == current);
    report.into_iter().flat_map(|report| &report.troubles)
}

pub(crate) fn unfit(cluster: &ClusterRecord, observed: &Observed) -> BTreeSet<MemberId> {
    let speaks_against = |id: &MemberId| troubles(cluster, observed, *id).any(Trouble::speaks_against_leading);
    cluster.members.keys().copied().filter(speaks_against).collect()
}

/// Its node is here and says that its data is the present life of it, with nothing against it. Data that cannot be read, or is
/// gone, says nothing of troubles.
pub(crate) fn is_well(cluster: &ClusterRecord, observed: &Observed, policy: &Policy, member: MemberId) -> bool {
    let current = cluster.members.get(&member).map(MemberRecord::current);
    observed.fresh(cluster, member, policy).is_some_and(|report| report.incarnation() == current)
        && !troubles(cluster, observed, member).any(Trouble::speaks_against_leading)
}

pub(crate) fn is_corrupted(cluster: &ClusterRecord, observed: &Observed, member: MemberId) -> bool {
    troubles(cluster, observed, member).any(|trouble| matches!(trouble, Trouble::Corrupted { .. }))
}

/// Why no change of this member's Postgres helps, only other data.
pub(crate) fn wants_other_data(cluster: &ClusterRecord, observed: &Observed, member: MemberId) -> Option<String> {
    // What another standby cannot feed, the leader may.
    let report = observed.last(cluster, member).and_then(|report| report.as_standby());
    let by_relay = cluster.relay_of(member).is_some()
        || report.and_then(|standby| standby.upstream).is_some_and(|upstream| upstream.relay.is_some());
    let is_answered = |trouble: &&Trouble| by_relay && matches!(trouble, Trouble::StreamRefused { .. });
    let mut troubles = troubles(cluster, observed, member).filter(|trouble| !is_answered(trouble));
    troubles.find(|trouble| trouble.wants_other_data()).map(ToString::to_string)
}

/// The leader has removed the log that a standby which is here would have to stream next.
pub(crate) fn lacks_log(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    member: MemberId,
) -> Option<String> {
    let leader =
        cluster.leadership.leader().filter(|leader| *leader != member && cluster.relay_of(member).is_none())?;
    let oldest = observed.fresh(cluster, leader, policy)?.oldest_log?;
    let report = observed.fresh(cluster, member, policy)?;
    let standby = report.as_standby().filter(|standby| standby.receiver.is_none_or(|receiver| !receiver.streaming))?;
    let position = standby.position.filter(|position| position.lsn < oldest)?;
    Some(format!("its log ends at {position}, and the leader has removed everything before {oldest}"))
}

pub(crate) fn only_corrupted(cluster: &ClusterRecord, member: MemberId) -> Finding {
    let name = cluster.members.get(&member).map_or("?", |member| member.name.as_str());
    let text = format!(
        "only {name} can be elected now and pages of it have wrong checksums: nobody is elected; bring another member back, or, if \
         none will come back, force a failover to one that is well"
    );
    Finding::error("data_corruption", text).on_cluster(cluster.id).on_member(member)
}

/// Why nobody is made anew now: a copy would be one of pages with wrong checksums, and the data that gives way to it may be
/// the last that is good.
pub(crate) fn no_good_source(
    cluster: &ClusterRecord,
    observed: &Observed,
    leader: MemberId,
    member: &MemberRecord,
) -> Option<Finding> {
    is_corrupted(cluster, observed, leader).then(|| {
        let text = format!(
            "{} must be made anew and is left as it is: pages of the leader have wrong checksums{}",
            member.name,
            who_takes_over(cluster)
        );
        Finding::error("no_good_source", text).on_cluster(cluster.id).on_member(member.id)
    })
}

/// Why a member that has no data yet gets none now: what copies it verifies every page.
pub(crate) fn cannot_be_copied(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    leader: MemberId,
    member: &MemberRecord,
) -> Option<Finding> {
    let has_none = match &observed.fresh(cluster, member.id, policy)?.data {
        DataSeen::Absent | DataSeen::Partial | DataSeen::Lost { .. } => true,
        DataSeen::Present(_) | DataSeen::Foreign { .. } => false,
    };
    (has_none && is_corrupted(cluster, observed, leader)).then(|| {
        let text = format!(
            "{} cannot be copied: pages of the leader have wrong checksums{}",
            member.name,
            who_takes_over(cluster)
        );
        Finding::error("no_good_source", text).on_cluster(cluster.id).on_member(member.id)
    })
}

/// Where a leader with broken pages stays one until a person asks for another.
fn who_takes_over(cluster: &ClusterRecord) -> String {
    match lease::is_asynchronous(cluster) {
        true => format!(
            "; in an asynchronous cluster nobody takes over by itself: have another member lead with `pgstead cluster switchover {}`",
            cluster.spec.name
        ),
        false => String::new(),
    }
}

/// What is wrong with members, for people.
pub(crate) fn findings(cluster: &ClusterRecord, observed: &Observed) -> Vec<Finding> {
    let about = |member: &MemberRecord, trouble: &Trouble| {
        let leads = cluster.leadership.leader() == Some(member.id) && matches!(trouble, Trouble::Corrupted { .. });
        let next = if leads { who_takes_over(cluster) } else { String::new() };
        let text = format!("{}: {trouble}{next}", member.name);
        Finding::error(trouble.code(), text).on_cluster(cluster.id).on_member(member.id).on_node(member.node)
    };
    let of = |member| troubles(cluster, observed, member);
    cluster.members.values().flat_map(|member| of(member.id).map(move |trouble| about(member, trouble))).collect()
}

/// When a member was last made anew for what its node said of it, and how often in a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rebuilds {
    incarnation: u32,
    times: u32,
    at: Tick,
    /// When the leader of that time was promoted: [`ClusterRecord::leads_since`].
    under: Epoch,
}

/// From when on the member may be made anew once more. Another copy that ends as the last one did is tried ever more
/// rarely, for it may not be the data that is at fault. A change of leader since then is why this data has to go: the last
/// copy may have been as good as any.
pub(crate) fn may_rebuild_from(
    cluster: &ClusterRecord,
    policy: &Policy,
    memory: &Memory,
    member: &MemberRecord,
) -> Option<Tick> {
    let next = cluster.next_incarnation(member);
    let last = memory.rebuilds.get(&member.id).filter(|last| last.incarnation != next)?;
    if last.under != cluster.leads_since() {
        return None;
    }
    let factor = 1u32 << (last.times - 1).min(6);
    Some(last.at + policy.rebuild_pause * factor)
}

pub(crate) fn note_rebuild(
    cluster: &ClusterRecord,
    policy: &Policy,
    memory: &mut Memory,
    member: &MemberRecord,
    now: Tick,
) {
    let incarnation = cluster.next_incarnation(member);
    let last = memory.rebuilds.get(&member.id).copied();
    if last.is_some_and(|last| last.incarnation == incarnation) {
        return;
    }
    let under = cluster.leads_since();
    // Long after the last time, and under another leader, it is another story.
    let again = last.filter(|last| now.since(last.at) < policy.rebuild_pause * 128 && last.under == under);
    let times = again.map_or(1, |last| last.times.saturating_add(1));
    memory.rebuilds.insert(member.id, Rebuilds { incarnation, times, at: now, under });
}

#[cfg(test)]
mod tests;
