//! Control flow only: which of the situations a member is in.

use crate::action::Action;
use crate::{following, leading, promising};
use pgstead_types::record::{ClusterRecord, Leadership, Lifecycle, MemberRecord};
use pgstead_types::report::{DataSeen, MemberReport, PostgresSeen};
use pgstead_types::{Epoch, Finding, MemberId, Timeline, Trouble};

/// What comes next for a member, and what a person should know.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Next {
    pub action: Option<Action>,
    pub findings: Vec<Finding>,
}

impl Next {
    pub(crate) fn wait() -> Self {
        Self::default()
    }
    pub(crate) fn act(action: Action) -> Self {
        Self { action: Some(action), findings: Vec::new() }
    }
    pub(crate) fn refuse(finding: Finding) -> Self {
        Self { action: None, findings: vec![finding] }
    }
}

/// One member, its record and what is seen of it: the arguments of every situation.
pub(crate) struct Scene<'a> {
    pub cluster: &'a ClusterRecord,
    pub member: &'a MemberRecord,
    pub seen: &'a MemberReport,
}

impl Scene<'_> {
    pub fn epoch(&self) -> Epoch {
        self.cluster.epoch
    }
    /// A cluster of one acknowledges alone.
    pub fn is_alone(&self) -> bool {
        self.cluster.members.len() == 1
    }
    /// Its Postgres takes connections and has not answered for long.
    pub fn hangs(&self) -> bool {
        self.seen.troubles.iter().any(|trouble| matches!(trouble, Trouble::Hung { .. }))
    }
    /// Whether the leader's history goes through this timeline, or is it.
    pub fn leads_through(&self, timeline: Timeline) -> bool {
        let Some(own) = self.cluster.config().map(|config| config.timeline) else { return false };
        timeline == own || self.cluster.ancestry(own).iter().any(|(parent, _)| *parent == timeline)
    }
    pub fn finding(&self, finding: Finding) -> Finding {
        finding.on_cluster(self.cluster.id).on_member(self.member.id).on_node(self.member.node)
    }
}

/// The next step for `member`, from the record and from what is seen now. A settled member gets no action.
pub fn decide(cluster: &ClusterRecord, member: MemberId, seen: &MemberReport) -> Next {
    let Some(member) = cluster.members.get(&member) else {
        // One that has left; or the record no longer knows it, and its volume was removed before that could happen.
        let departed = cluster.departed.get(&member);
        return departed.map_or_else(Next::wait, |left| {
            let released = left.released == Some(seen.session);
            leave(&Scene { cluster, member: &left.member, seen }, released)
        });
    };
    let scene = Scene { cluster, member, seen };
    if cluster.lifecycle != Lifecycle::Active {
        return remove(&scene);
    }
    if !seen.volume_present {
        return match &seen.data {
            // Never carve a second volume over a lost one without the record's word.
            DataSeen::Lost { .. } if !may_start_anew(&scene) => lost(&scene),
            _ => Next::act(Action::CreateVolume),
        };
    }
    if let DataSeen::Foreign { why } = &seen.data {
        if adopts(&scene) {
            return Next::act(Action::AdoptData { incarnation: scene.member.current() });
        }
        return Next::refuse(scene.finding(Finding::error(
            "foreign_data",
            format!("the data folder of {} is not its own and is left untouched: {why}", scene.member.name),
        )));
    }
    // After a restart the record may still be one that this node has seen before; nothing of it is an order any more.
    if seen.promised > scene.epoch() {
        return Next::refuse(scene.finding(Finding::info(
            "stale_order",
            format!(
                "{} has promised epoch {} and the record here says {}: it waits for the newer record",
                scene.member.name,
                seen.promised,
                scene.epoch()
            ),
        )));
    }
    // A newer epoch than the one on disk is made durable before anything else is done for it.
    if seen.promised < scene.epoch() && seen.identity().is_some() {
        if let Some(refusal) = seen.refusing.filter(|refusal| refusal.epoch < scene.epoch()) {
            return Next::refuse(scene.finding(Finding::warning(
                "refusing_elections",
                format!(
                    "{} has given its word to the leader of epoch {} to obey no election for up to {} ms more",
                    scene.member.name, refusal.epoch, refusal.remaining_ms
                ),
            )));
        }
        return Next::act(Action::SavePromise { epoch: scene.epoch() });
    }
    match &cluster.leadership {
        Leadership::Electing { reason, .. } => promising::next(&scene, *reason),
        Leadership::Chosen { leader } | Leadership::Promoted { leader } | Leadership::Confirmed { leader } => {
            if *leader == scene.member.id { leading::next(&scene) } else { following::next(&scene, *leader) }
        }
    }
}

/// Whether lost data may be replaced: the record has given the member a new incarnation.
pub(crate) fn may_start_anew(scene: &Scene<'_>) -> bool {
    match &scene.seen.data {
        DataSeen::Lost { incarnation } => scene.member.incarnation > incarnation.number,
        _ => false,
    }
}

/// A fork begins with the data of another cluster, which its first member makes its own, once.
fn adopts(scene: &Scene<'_>) -> bool {
    let Scene { cluster, member, seen } = scene;
    let begins = cluster.begins() && cluster.forked.as_ref().is_some_and(|forked| forked.first == member.id);
    begins && member.incarnation == 1 && matches!(seen.postgres, PostgresSeen::Down { .. })
}

pub(crate) fn lost(scene: &Scene<'_>) -> Next {
    Next::refuse(scene.finding(Finding::error(
        "data_lost",
        format!(
            "the data of {} was on this node and is gone; it waits until the record gives it a new incarnation",
            scene.member.name
        ),
    )))
}

/// The member has left its cluster. What nobody else may have is left for a person, however long ago it was given up.
/// `released`: this very daemon was told that others have it all. To one that is started much later it may not be true any more.
fn leave(scene: &Scene<'_>, released: bool) -> Next {
    if scene.cluster.lifecycle == Lifecycle::Active && matches!(scene.seen.postgres, PostgresSeen::Down { .. }) {
        if let DataSeen::Foreign { why } = &scene.seen.data {
            let name = &scene.member.name;
            return Next::refuse(scene.finding(Finding::error(
                "foreign_data",
                format!("{name} has left the cluster; its data folder is not its own and is left untouched: {why}"),
            )));
        }
        // Before an epoch is confirmed nobody knows that those who are left have it all, nor before the controller has seen that.
        let others_have_it = released && scene.cluster.is_confirmed();
        if scene.cluster.holds_given_up(scene.seen) || (scene.seen.volume_present && !others_have_it) {
            return Next::wait();
        }
    }
    remove(scene)
}

/// The cluster is being deleted, or the member has left it: end Postgres, then remove the volume.
fn remove(scene: &Scene<'_>) -> Next {
    match &scene.seen.postgres {
        PostgresSeen::Down { .. } if !scene.seen.volume_present => Next::wait(),
        PostgresSeen::Down { .. } => Next::act(Action::RemoveVolume),
        _ => Next::act(Action::Fence),
    }
}

#[cfg(test)]
pub(crate) mod tests;
