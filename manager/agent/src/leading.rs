//! The record has chosen this member: be made, be promoted to the recorded timeline, let clients in once confirmed.
//!
//! A primary exists only by promotion in the recorded epoch. One that ended in its epoch is started as a standby and
//! waits for the next epoch; it is never a primary again in this one.

use crate::action::Action;
use crate::decide::{self, Next, Scene};
use pgstead_types::record::{EpochConfig, EpochReason, Leadership};
use pgstead_types::report::{ClientAccess, DataSeen, PostgresSeen, PrimarySeen, SetBy, StandbySeen};
use pgstead_types::{Finding, Incarnation, Trouble};
use std::collections::BTreeSet;

pub(crate) fn next(scene: &Scene<'_>) -> Next {
    let Some(config) = scene.cluster.config() else { return Next::wait() };
    match &scene.seen.data {
        DataSeen::Absent | DataSeen::Partial if begins_as_fork(scene) => {
            return Next::refuse(scene.finding(Finding::error(
                "fork_without_data",
                format!(
                    "the snapshot that {} was made from holds no complete data; delete the cluster, and fork from another \
                     snapshot or member",
                    scene.member.name
                ),
            )));
        }
        DataSeen::Absent => return make(scene),
        DataSeen::Partial => return Next::act(Action::DiscardPartial),
        DataSeen::Lost { .. } => return decide::lost(scene),
        DataSeen::Foreign { .. } => return Next::wait(),
        DataSeen::Present(identity) if identity.incarnation != config.leader => {
            return Next::refuse(scene.finding(Finding::error(
                "wrong_incarnation",
                format!("{} was chosen as {} and holds {}", scene.member.name, config.leader, identity.incarnation),
            )));
        }
        DataSeen::Present(_) => {}
    }
    match &scene.seen.postgres {
        PostgresSeen::Down { .. } if is_draining(scene) => Next::wait(),
        PostgresSeen::Down { .. } => Next::act(Action::StartStandby {
            access: ClientAccess::Holding,
            alone: scene.is_alone(),
            restarts: scene.member.restarts,
        }),
        PostgresSeen::Starting | PostgresSeen::Unresponsive { .. } => Next::wait(),
        PostgresSeen::Standby(standby) => promote(scene, config, standby),
        PostgresSeen::Primary(primary) => lead(scene, config, primary),
    }
}

/// A new cluster's first member makes the database; nobody does once the record knows a system identifier.
fn make(scene: &Scene<'_>) -> Next {
    if scene.cluster.begins() {
        return Next::act(Action::InitDatabase { incarnation: scene.member.current() });
    }
    decide::lost(scene)
}

fn promote(scene: &Scene<'_>, config: &EpochConfig, standby: &StandbySeen) -> Next {
    if !matches!(scene.cluster.leadership, Leadership::Chosen { .. }) {
        // It was promoted in this epoch and has ended since. The controller opens the next one.
        return Next::wait();
    }
    if standby.upstream.is_some() || standby.receiver.is_some() {
        return Next::act(Action::CutUpstream);
    }
    let Some(position) = standby.position else { return Next::wait() };
    if position.timeline >= config.timeline {
        // Promoted once already, and the timeline of an epoch is used once.
        return Next::refuse(scene.finding(Finding::warning(
            "promotion_spent",
            format!(
                "{} stands on timeline {} already; the epoch needs a successor",
                scene.member.name, position.timeline
            ),
        )));
    }
    // Its own is the beginning of a promotion; any other would be named as the parent of what it makes.
    if standby.expects.is_some_and(|expected| expected != config.timeline) {
        return Next::act(Action::StopCleanly { planned: None });
    }
    let promised = scene.seen.answer.is_some_and(|answer| answer.epoch == config.epoch);
    // The first epoch of a cluster is chosen with its creation: nobody could have acknowledged anything before it.
    if !promised && !scene.cluster.begins() {
        return Next::act(Action::AnswerPromise { epoch: config.epoch });
    }
    Next::act(Action::Promote {
        epoch: config.epoch,
        timeline: config.timeline,
        sync_set: config.loaded().clone(),
        // Nobody copies a fork before its passwords are its own, which the next step sees to.
        admitted: if scene.cluster.forked.is_some() { BTreeSet::new() } else { admitted(scene) },
    })
}

fn lead(scene: &Scene<'_>, config: &EpochConfig, primary: &PrimarySeen) -> Next {
    if primary.epoch != Some(config.epoch) || primary.timeline != config.timeline {
        // A primary of another epoch, or one that nobody ordered.
        return Next::act(Action::Fence);
    }
    if is_draining(scene) {
        return match primary.access {
            ClientAccess::Open => Next::act(Action::HoldClients { by: None }),
            ClientAccess::Holding => Next::act(Action::StopCleanly { planned: Some(EpochReason::Switchover) }),
        };
    }
    // Whatever the record says: it is this node that knows how full its pool is.
    let (full, brimming) = fullness(scene);
    if primary.read_only != full {
        return Next::act(Action::LimitWrites { read_only: full });
    }
    if brimming && primary.access == ClientAccess::Open {
        return Next::act(Action::HoldClients { by: None });
    }
    let admitted = admitted(scene);
    let lacks_admitted = primary.admitted != admitted;
    let wanted = config.loaded();
    let by = SetBy { epoch: config.epoch, revision: scene.cluster.revision };
    // A daemon that was restarted may see a record from before the set became what is loaded: by that one Postgres would count
    // members whom no election asks any more.
    if scene.seen.set_by.is_some_and(|noted| noted > by) {
        let text = format!("{} has loaded a sync set by a newer record than this node knows", scene.member.name);
        return Next::refuse(scene.finding(Finding::warning("stale_order", text)));
    }
    // Another cluster takes its place once this is reported, and then no older record may undo it.
    if let Some(aside) = scene.cluster.aside {
        let begun = SetBy { epoch: config.epoch, revision: aside.revision };
        if primary.access == ClientAccess::Open || scene.seen.set_by < Some(begun) {
            return Next::act(Action::HoldClients { by: Some(by) });
        }
    }
    // A change is carried out by a record that has it, also where Postgres goes by that very set from before: then no older
    // record is followed any more when that is reported.
    let noted = config
        .target
        .as_ref()
        .is_none_or(|change| scene.seen.set_by >= Some(SetBy { epoch: config.epoch, revision: change.revision }));
    let alone = scene.is_alone() && wanted.members.is_empty();
    let sync_set_loaded = alone || (noted && primary.sync_set.as_ref() == Some(wanted));
    // What it acknowledges alone it may acknowledge only while its guard counts a lease: before anybody else can have a copy and
    // be made to lead, so also when a cluster of one gets more members.
    let admits_more = !admitted.is_subset(&primary.admitted);
    if (!sync_set_loaded || admits_more) && wanted.needed == 0 && !scene.is_alone() && !has_lease(scene) {
        return Next::refuse(scene.finding(Finding::warning(
            "no_lease",
            format!("{} holds no lease yet: it acknowledges alone with it", scene.member.name),
        )));
    }
    // One that streams elsewhere, or lives no more, has a slot here until it is seen to be idle and dropped.
    let slots_are_wanted = primary.slots == admitted;
    let update = Action::UpdateSyncSet { by, epoch: config.epoch, sync_set: wanted.clone(), admitted };
    if !sync_set_loaded || lacks_admitted {
        return Next::act(update);
    }
    match (scene.cluster.is_confirmed(), primary.access) {
        // What it acknowledges alone it may acknowledge only while its guard counts a lease.
        (true, ClientAccess::Holding)
            if !brimming
                && scene.cluster.aside.is_none()
                && config.acknowledges_alone()
                && !scene.is_alone()
                && !has_lease(scene) =>
        {
            return Next::refuse(scene.finding(Finding::warning(
                "no_lease",
                format!("{} holds no lease yet: its clients are let in with it", scene.member.name),
            )));
        }
        // Whatever else is to be done is done.
        (true, ClientAccess::Holding) if brimming || scene.cluster.aside.is_some() => {}
        (true, ClientAccess::Holding) => return Next::act(Action::OpenClients),
        (false, ClientAccess::Open) => return Next::act(Action::HoldClients { by: None }),
        _ => {}
    }
    match &scene.cluster.switchover {
        Some(switchover)
            if switchover.from == scene.member.id
                && switchover.epoch == scene.cluster.epoch
                && scene.seen.checkpointed != Some(switchover.operation) =>
        {
            Next::act(Action::Checkpoint { operation: switchover.operation })
        }
        // After everything else: there may be no place for another slot, and whoever has one acknowledges.
        _ if !slots_are_wanted => Next::act(update),
        _ => Next::wait(),
    }
}

fn begins_as_fork(scene: &Scene<'_>) -> bool {
    scene.cluster.begins() && scene.cluster.forked.is_some()
}

/// Whether the pool has little room left, and whether it has hardly any.
fn fullness(scene: &Scene<'_>) -> (bool, bool) {
    let full = scene.seen.troubles.iter().find_map(|trouble| match trouble {
        Trouble::PoolFull { brimming } => Some(*brimming),
        _ => None,
    });
    (full.is_some(), full == Some(true))
}

fn has_lease(scene: &Scene<'_>) -> bool {
    scene.seen.lease.is_some_and(|lease| lease.remaining_ms > 0)
}

/// Who may replicate from here: the present incarnation of every other member, but for those that another standby feeds. A
/// slot here would keep log for one that never comes for it; its relay has one.
fn admitted(scene: &Scene<'_>) -> BTreeSet<Incarnation> {
    let others = scene.cluster.members.values().filter(|other| other.id != scene.member.id);
    others.filter(|other| scene.cluster.relay_of(other.id).is_none()).map(|other| other.current()).collect()
}

fn is_draining(scene: &Scene<'_>) -> bool {
    scene.cluster.switchover.as_ref().is_some_and(|switchover| {
        switchover.draining
            && switchover.from == scene.member.id
            && switchover.epoch == scene.cluster.epoch
            && scene.cluster.is_confirmed()
    })
}
