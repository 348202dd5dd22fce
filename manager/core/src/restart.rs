//! A restart of every member: standbys one at a time, each streaming again before the next, and the leader last, by
//! handing over to a standby.

use crate::decide::Plan;
use crate::election;
use crate::observed::{Memory, Observed, Policy};
use crate::slots;
use crate::steady::streams;
use pgstead_types::record::{ClusterChange, ClusterRecord, EpochReason, MemberRecord, Restart, Standing};
use pgstead_types::report::PrimarySeen;
use pgstead_types::{Finding, MemberId};

pub(crate) fn plan(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    restart: &Restart,
    leader: MemberId,
    primary: &PrimarySeen,
) -> Plan {
    let began = memory.phase_began(cluster, observed.now);
    let deadline = began + policy.restart_deadline;
    let late = observed.now >= deadline;
    if let Some(current) = restart.current {
        let Some(member) = cluster.members.get(&current) else {
            return Plan::change(ClusterChange::RestartMember { member: None });
        };
        let back = observed.fresh(cluster, current, policy).is_some_and(|report| report.restarts == member.restarts)
            && (streams(primary, member) || current == leader);
        return match (back, late) {
            (true, _) => Plan::change(ClusterChange::RestartMember { member: None }),
            (false, true) => Plan::change(ClusterChange::EndRestart {
                failure: Some(format!("{} did not come back in time", member.name)),
            }),
            (false, false) => {
                let text = format!("restart: waiting for {} to stream again", member.name);
                Plan::wait(Finding::info("restart_waits", text).on_cluster(cluster.id).on_member(current))
                    .until(deadline)
            }
        };
    }
    let standby = restart.remaining.iter().find(|id| **id != leader);
    if let Some(next) = standby {
        let Some(member) = cluster.members.get(next) else { return Plan::default() };
        if streams(primary, member) {
            return Plan::change(ClusterChange::RestartMember { member: Some(*next) });
        }
        return wait_for(cluster, &member.name, late, deadline);
    }
    if !restart.remaining.contains(&leader) {
        return Plan::change(ClusterChange::EndRestart { failure: None });
    }
    if cluster.members.len() == 1 {
        // Nobody to hand over to. The epoch after the restart finds the leader no longer among the remaining.
        return match restarted_alone(cluster) {
            true => Plan::change(ClusterChange::EndRestart { failure: None }),
            false => election::begin(cluster, observed, policy, EpochReason::Restart, Some(leader)),
        };
    }
    let lag = |member: &&MemberRecord| {
        let sender = primary.senders.iter().find(|sender| sender.incarnation == Some(member.current()));
        sender.and_then(|sender| sender.flushed)
    };
    let best = cluster.members.values().filter(|member| member.id != leader && streams(primary, member)).max_by_key(
        |member| {
            // One that leaves does so for another leader.
            (member.standing != Standing::Leaving, lag(member))
        },
    );
    // Before it counts for an election, only the leader that goes down could elect it.
    let counts = |target: &MemberRecord| {
        cluster.config().is_some_and(|config| {
            config.asynchronous || (config.target.is_none() && config.sync_set.members.contains(&target.current()))
        })
    };
    match best {
        Some(target) if !counts(target) && !late => wait_for(cluster, &target.name, late, deadline),
        Some(target) if !late && slots::waits_for_copies(cluster, observed, policy, leader, target.id) => {
            let text = format!("restart: waiting for {}'s copies of logical slots before it leads", target.name);
            Plan::wait(Finding::info("restart_waits", text).on_cluster(cluster.id)).until(deadline)
        }
        Some(target) => Plan::change(ClusterChange::RestartLeader { to: target.id }),
        None => wait_for(cluster, "a standby", late, deadline),
    }
}

/// The present epoch was begun by this restart.
fn restarted_alone(cluster: &ClusterRecord) -> bool {
    cluster.restart.as_ref().is_some_and(|restart| restart.leader_restarted_in == Some(cluster.epoch))
}

fn wait_for(cluster: &ClusterRecord, whom: &str, late: bool, deadline: pgstead_types::Tick) -> Plan {
    if late {
        return Plan::change(ClusterChange::EndRestart { failure: Some(format!("{whom} does not stream")) });
    }
    let text = format!("restart: waiting for {whom} to stream before the next member goes down");
    Plan::wait(Finding::info("restart_waits", text).on_cluster(cluster.id)).until(deadline)
}
