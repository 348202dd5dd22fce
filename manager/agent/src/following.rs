//! The record has chosen another member: be a standby of it, made anew where this member's history has left the cluster's.

use crate::action::Action;
use crate::decide::{self, Next, Scene};
use pgstead_types::record::Leadership;
use pgstead_types::report::{ClientAccess, DataIdentity, DataSeen, PostgresSeen, StandbySeen, Unfinished, Upstream};
use pgstead_types::{Finding, MemberId, Step, Trouble};

/// A rewind that failed so often gives way to a copy.
const REWINDS_MAX: u32 = 2;

pub(crate) fn next(scene: &Scene<'_>, leader: MemberId) -> Next {
    match &scene.seen.data {
        DataSeen::Absent => clone(scene, leader),
        DataSeen::Lost { .. } if decide::may_start_anew(scene) => clone(scene, leader),
        DataSeen::Lost { .. } => decide::lost(scene),
        // A copy in flight looks partial until it ends; only what nobody works on is left over.
        DataSeen::Partial => match copying(scene) {
            Some(Step::Clone) => clone(scene, leader),
            Some(_) => rewind(scene, leader),
            None => Next::act(Action::DiscardPartial),
        },
        DataSeen::Foreign { .. } => Next::wait(),
        DataSeen::Present(identity) if identity.incarnation != scene.member.current() => {
            rebuild(scene, leader, identity)
        }
        DataSeen::Present(_) => stand_by(scene, leader),
    }
}

/// Copies are taken only from a leader that runs on its epoch's timeline.
fn leader_runs(scene: &Scene<'_>) -> bool {
    matches!(scene.cluster.leadership, Leadership::Promoted { .. } | Leadership::Confirmed { .. })
}

fn clone(scene: &Scene<'_>, leader: MemberId) -> Next {
    if !leader_runs(scene) {
        return Next::wait();
    }
    Next::act(Action::Clone { incarnation: scene.member.current(), from: leader, epoch: scene.epoch() })
}

/// The copy that is in flight now. One that failed and waits is not.
fn copying(scene: &Scene<'_>) -> Option<Step> {
    let working = scene.seen.working.as_ref().filter(|working| working.error.is_none())?;
    matches!(working.step, Step::Clone | Step::Rewind).then_some(working.step)
}

fn rewind(scene: &Scene<'_>, leader: MemberId) -> Next {
    if !leader_runs(scene) {
        return Next::wait();
    }
    Next::act(Action::Rewind { incarnation: scene.member.current(), from: leader, epoch: scene.epoch() })
}

/// The record has raised this member's incarnation: its data becomes a copy of the leader's, by rewinding if that works.
fn rebuild(scene: &Scene<'_>, leader: MemberId, identity: &DataIdentity) -> Next {
    if identity.incarnation.number > scene.member.incarnation {
        return Next::refuse(scene.finding(Finding::error(
            "newer_incarnation",
            format!("{} holds {}, newer than the record's", scene.member.name, identity.incarnation),
        )));
    }
    if !leader_runs(scene) {
        return Next::wait();
    }
    match &scene.seen.postgres {
        PostgresSeen::Down { .. } => {}
        PostgresSeen::Standby(_) => return Next::act(Action::StopCleanly { planned: None }),
        // Its data is given up, so there is nothing that its recovery could still be good for.
        PostgresSeen::Starting | PostgresSeen::Primary(_) | PostgresSeen::Unresponsive { .. } => {
            return Next::act(Action::Fence);
        }
    }
    let rewinds = match &scene.seen.working {
        Some(working) if working.step == Step::Rewind => working.attempt,
        _ => 0,
    };
    // A rewind works on the only copy of what this member has. Until the epoch is confirmed that may be the last one of
    // what was acknowledged; a copy sets it aside.
    let may_rewind = scene.cluster.is_confirmed()
        && !wants_all_pages(scene)
        // What it holds may be nowhere else, and a person may still want it: it is kept, and a copy takes its place.
        && !scene.cluster.is_given_up(identity.incarnation);
    if rewinds < REWINDS_MAX && may_rewind { rewind(scene, leader) } else { clone(scene, leader) }
}

/// A rewind keeps every page that the histories have in common, the broken ones among them, and needs a recovery that ends.
fn wants_all_pages(scene: &Scene<'_>) -> bool {
    let of_pages = |trouble: &Trouble| matches!(trouble, Trouble::Corrupted { .. } | Trouble::RecoveryStuck { .. });
    scene.seen.troubles.iter().any(of_pages)
}

fn stand_by(scene: &Scene<'_>, leader: MemberId) -> Next {
    match &scene.seen.postgres {
        PostgresSeen::Primary(_) => Next::act(Action::Fence),
        // It may be a primary of an older epoch, of which only its end makes a standby; and one that hangs is none.
        PostgresSeen::Unresponsive { .. } if scene.hangs() => Next::act(Action::Fence),
        PostgresSeen::Starting | PostgresSeen::Unresponsive { .. } => Next::wait(),
        PostgresSeen::Down { .. } => {
            Next::act(Action::StartStandby { access: access(scene), alone: false, restarts: scene.member.restarts })
        }
        // Whatever else it needs.
        PostgresSeen::Standby(standby) if scene.cluster.aside.is_some() && standby.access == ClientAccess::Open => {
            Next::act(Action::HoldClients { by: None })
        }
        PostgresSeen::Standby(standby) => stream(scene, leader, standby),
    }
}

/// What is kept aside is not read from either.
fn access(scene: &Scene<'_>) -> ClientAccess {
    if scene.cluster.aside.is_some() { ClientAccess::Holding } else { ClientAccess::Open }
}

fn stream(scene: &Scene<'_>, leader: MemberId, standby: &StandbySeen) -> Next {
    if scene.seen.restarts < scene.member.restarts {
        return Next::act(Action::StopCleanly { planned: None });
    }
    let relay = scene.cluster.relay_of(scene.member.id);
    let wanted = Upstream { leader, epoch: scene.epoch(), relay };
    if standby.upstream == Some(wanted) {
        // The record may name again what was about to be ended. What is half done is nobody's order, and is done to its end.
        match standby.unfinished {
            Some(Unfinished::Cut) => return Next::act(Action::CutUpstream),
            Some(Unfinished::Follow) => return Next::act(Action::Follow { of: wanted }),
            Some(Unfinished::Relay) | None => {}
        }
        // What it passes on is the log that it streams itself: a promise, or another upstream, ends both.
        let admitted = scene.cluster.relayed_by(scene.member.id);
        if standby.relays_to != admitted || !standby.slots.is_superset(&admitted) || standby.unfinished.is_some() {
            return Next::act(Action::Relay { epoch: scene.epoch(), admitted });
        }
        return match (standby.access, access(scene)) {
            (ClientAccess::Holding, ClientAccess::Open) => Next::act(Action::OpenClients),
            _ => Next::wait(),
        };
    }
    if standby.upstream.is_some() {
        // The older receiver is seen gone before a newer one is begun.
        return Next::act(Action::CutUpstream);
    }
    let Some(position) = standby.position else { return Next::wait() };
    if standby.expects.is_some_and(|expected| !scene.leads_through(expected)) {
        return Next::act(Action::StopCleanly { planned: None });
    }
    match scene.cluster.may_follow(position) {
        Some(true) => Next::act(Action::Follow { of: wanted }),
        Some(false) => Next::refuse(scene.finding(Finding::warning(
            "diverged",
            format!(
                "the log of {} ends at {position}, which is not part of the leader's history; it will be rewound or copied",
                scene.member.name
            ),
        ))),
        None => Next::wait(),
    }
}

#[cfg(test)]
mod tests;
