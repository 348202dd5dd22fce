//! A member moves: a new one on another node is copied and counts beside it, and only then does the old one leave, as any member
//! does that is too many. Until then everything is as safe as it was, and the move can be taken back.

use crate::decide::Plan;
use crate::lease;
use crate::observed::{Memory, Observed, Policy};
use crate::sync_set::caught_up;
use pgstead_types::record::{ClusterChange, ClusterRecord, Moving, Standing};
use pgstead_types::report::PrimarySeen;
use pgstead_types::{Finding, MemberId};

/// What keeps the old member from leaving now. `None`: nothing does, or no member moves.
pub(crate) fn plan(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &Memory,
    primary: &PrimarySeen,
    leader: MemberId,
) -> Option<Plan> {
    let moving = cluster.moving.as_ref()?;
    let (from, to) = (cluster.members.get(&moving.member)?, cluster.members.get(&moving.to)?);
    if from.standing == Standing::Leaving || to.standing == Standing::Leaving {
        return None;
    }
    let cancel = |why: String| Some(Plan::change(ClusterChange::CancelMove { operation: moving.operation, why }));
    if leader == moving.member {
        // Whoever wants it elsewhere has another one lead first. Waiting for that would keep everybody else from coming and going.
        return cancel(format!("{} has come to lead", from.name));
    }
    let counts = match lease::is_asynchronous(cluster) {
        _ if leader == moving.to => true,
        true => caught_up(primary, to.current()),
        false => cluster.config().is_some_and(|config| config.sync_set.members.contains(&to.current())),
    };
    if !counts {
        let gives_up = memory.missed.get(&moving.to).map(|since| (*since).max(observed.since) + policy.shrink_after);
        if gives_up.is_some_and(|at| observed.now >= at) {
            return cancel(format!("{} is lost, or not well, and has not caught up", to.name));
        }
        let text = format!("{} is to take the place of {} and has not caught up yet", to.name, from.name);
        let finding = Finding::info("member_moving", text).on_cluster(cluster.id).on_member(moving.member);
        let plan = Plan::wait(finding);
        return Some(gives_up.into_iter().fold(plan, Plan::until));
    }
    None
}

/// Whom a move has leave, once nothing keeps it from that.
pub(crate) fn who_leaves(cluster: &ClusterRecord) -> Option<MemberId> {
    cluster.moving.map(|Moving { member, .. }| member).filter(|member| cluster.members.contains_key(member))
}

/// The old one is a member no more, and nothing is left to do.
pub(crate) fn is_done(cluster: &ClusterRecord) -> bool {
    cluster.moving.is_some_and(|moving| !cluster.members.contains_key(&moving.member))
        && cluster.config().is_some_and(|config| config.target.is_none())
}
