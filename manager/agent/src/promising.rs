//! An election is open: cut the older epoch's path, then say where the log on disk ends.
//!
//! The epoch is durable before this is reached. Each part is seen done before the next begins: Postgres stopped if it
//! was a primary, the WAL receiver gone if it was a standby, and only then the position is read and becomes the answer.

use crate::action::Action;
use crate::decide::{Next, Scene};
use pgstead_types::record::{EpochReason, LogFetch};
use pgstead_types::report::{ClientAccess, DataSeen, PostgresSeen};

/// The record has this member fetch log, and it has not done so yet.
fn ordered_fetch<'a>(scene: &Scene<'a>) -> Option<&'a LogFetch> {
    let fetch = scene.cluster.fetch().filter(|fetch| fetch.to == scene.member.current())?;
    (scene.seen.fetched != Some(scene.epoch())).then_some(fetch)
}

fn fetch_log(fetch: &LogFetch) -> Next {
    Next::act(Action::FetchLog { epoch: fetch.epoch, from: fetch.from.member, upto: fetch.upto })
}

pub(crate) fn next(scene: &Scene<'_>, reason: EpochReason) -> Next {
    let seen = scene.seen;
    let DataSeen::Present(identity) = &seen.data else {
        // Without complete data there is nothing to promise with.
        return match &seen.data {
            DataSeen::Partial => Next::act(Action::DiscardPartial),
            _ => Next::wait(),
        };
    };
    if identity.incarnation != scene.member.current() {
        // It must be rebuilt from a leader first, and there is none now.
        return Next::wait();
    }
    // Of any configuration that an election still asks about.
    let was_leader = scene.cluster.configs.iter().any(|config| config.leader.member == scene.member.id);
    match &seen.postgres {
        PostgresSeen::Primary(_) if reason.is_planned() => Next::act(Action::StopCleanly { planned: Some(reason) }),
        PostgresSeen::Primary(_) => Next::act(Action::Fence),
        // It may still run as a primary, hung or in a shutdown that waits for its sessions; only an empty tree ends that.
        PostgresSeen::Unresponsive { .. } if was_leader || scene.hangs() => Next::act(Action::Fence),
        PostgresSeen::Unresponsive { .. } | PostgresSeen::Starting => Next::wait(),
        // Stopped for it, and cut short.
        PostgresSeen::Down { .. } if let Some(fetch) = ordered_fetch(scene) => fetch_log(fetch),
        PostgresSeen::Down { .. } => Next::act(Action::StartStandby {
            access: ClientAccess::Holding,
            alone: scene.is_alone(),
            restarts: scene.member.restarts,
        }),
        PostgresSeen::Standby(standby) => {
            if standby.upstream.is_some() || standby.receiver.is_some() {
                Next::act(Action::CutUpstream)
            } else if standby.expects.is_some() {
                // It has heard of a leader that is gone, and would follow nobody who has not: started anew, it can follow, and
                // lead, whatever is chosen.
                Next::act(Action::StopCleanly { planned: None })
            } else if let (Some(fetch), Some(position)) = (ordered_fetch(scene), standby.position)
                && position.timeline == fetch.upto.timeline
                && position.lsn < fetch.upto.lsn
            {
                fetch_log(fetch)
            } else if seen.answer.is_none_or(|answer| answer.epoch != scene.epoch()) && standby.position.is_some() {
                Next::act(Action::AnswerPromise { epoch: scene.epoch() })
            } else {
                Next::wait()
            }
        }
    }
}

#[cfg(test)]
mod tests;
