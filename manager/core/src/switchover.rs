//! A planned change of leader: checkpoint, let go of clients, stop cleanly with everything sent, then an ordinary election
//! that prefers the target. Whatever goes wrong ends in that election too, so there is nothing to undo.

use crate::decide::Plan;
use crate::election;
use crate::observed::{Memory, Observed, Policy, Presence};
use crate::steady::streams;
use pgstead_types::record::{ClusterChange, ClusterRecord, EpochReason, Switchover};
use pgstead_types::report::{ClientAccess, PostgresSeen, PrimarySeen};
use pgstead_types::{Bytes, Finding, MemberId};

/// Further behind than this, the target would keep clients waiting: it may catch up first.
pub(crate) const LAG_MAX: Bytes = Bytes(16 << 20);

pub(crate) fn plan(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    switchover: &Switchover,
    leader: MemberId,
    primary: Option<&PrimarySeen>,
) -> Plan {
    let name = |id: MemberId| cluster.members.get(&id).map_or("?", |member| member.name.as_str());
    let began = memory.phase_began(cluster, observed.now);
    if cluster.epoch != switchover.epoch {
        // It had its election, or another one came between. If the old leader leads on, asking again is a person's choice.
        let failure =
            (leader != switchover.to).then(|| format!("{} leads instead of {}", name(leader), name(switchover.to)));
        // It is over when clients can go on: whoever asked may connect to the new leader next.
        let until = began + policy.open_patience;
        let opens = failure.is_none()
            && cluster.aside.is_none()
            && primary.is_some_and(|primary| primary.access != ClientAccess::Open);
        if opens && observed.now < until {
            let text = format!("{} leads and lets clients in", name(leader));
            return Plan::wait(Finding::info("switchover_opens", text).on_cluster(cluster.id)).until(until);
        }
        return Plan::change(ClusterChange::EndSwitchover { failure });
    }
    if switchover.draining {
        return drain(cluster, observed, policy, switchover, began + policy.drain_deadline);
    }
    let deadline = began + policy.checkpoint_deadline;
    let Some(primary) = primary else { return Plan::default() };
    let Some(target) = cluster.members.get(&switchover.to) else {
        let failure = Some("its target is no member any more".to_string());
        return Plan::change(ClusterChange::EndSwitchover { failure });
    };
    let lag = primary
        .senders
        .iter()
        .find(|sender| sender.incarnation == Some(target.current()))
        .and_then(|sender| sender.flushed)
        .map(|flushed| primary.flushed.bytes_since(flushed));
    let blocked = match lag {
        None => Some("it does not stream from the leader".to_string()),
        Some(_) if !streams(primary, target) => Some("it is catching up".to_string()),
        Some(lag) if lag > LAG_MAX => Some(format!("it is {lag} behind")),
        // Until that is settled only the leader that goes down might be able to elect it.
        Some(_) if cluster.config().is_some_and(|config| config.target.is_some()) => {
            Some("the sync set is being changed".to_string())
        }
        Some(_) => None,
    };
    let checkpointed =
        observed.last(cluster, leader).is_some_and(|report| report.checkpointed == Some(switchover.operation));
    match blocked {
        None if checkpointed => Plan::change(ClusterChange::DrainLeader),
        _ if observed.now >= deadline => {
            let why = blocked.unwrap_or_else(|| "the leader's checkpoint took too long".to_string());
            let failure = Some(format!("{} was not ready: {why}", target.name));
            Plan::change(ClusterChange::EndSwitchover { failure })
        }
        blocked => {
            let why = blocked.unwrap_or_else(|| "the leader writes a checkpoint".to_string());
            let text = format!("switchover to {} waits: {why}", target.name);
            Plan::wait(Finding::info("switchover_waits", text).on_cluster(cluster.id)).until(deadline)
        }
    }
}

/// The leader stops; when everything that it wrote is on the target's disk, or the deadline is over, elect.
fn drain(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    switchover: &Switchover,
    deadline: pgstead_types::Tick,
) -> Plan {
    let stopped = observed.last(cluster, switchover.from).map(|report| &report.postgres);
    let received = observed
        .fresh(cluster, switchover.to, policy)
        .and_then(|report| report.as_standby())
        .and_then(|standby| standby.position);
    let node = cluster.members.get(&switchover.from).map(|member| member.node);
    let presence = node.map_or(Presence::Gone, |node| observed.presence(node, policy));
    let ready = match (stopped, received) {
        _ if matches!(presence, Presence::Gone | Presence::Silent { .. }) => true,
        // Beyond the start of the shutdown checkpoint means that the record itself has arrived.
        (Some(PostgresSeen::Down { clean: Some(clean) }), Some(position)) => position.lsn > clean.checkpoint,
        // It ended otherwise: there is nothing more to wait for.
        (Some(PostgresSeen::Down { clean: None } | PostgresSeen::Standby(_)), _) => true,
        _ => false,
    };
    if ready || observed.now >= deadline {
        let reason = if switchover.for_restart { EpochReason::Restart } else { EpochReason::Switchover };
        return election::begin(cluster, observed, policy, reason, Some(switchover.to));
    }
    let text = "the leader stops cleanly and sends the rest of its log";
    let plan = Plan::wait(Finding::info("switchover_drains", text).on_cluster(cluster.id)).until(deadline);
    match presence {
        Presence::Doubtful { until } => plan.until(until),
        _ => plan,
    }
}
