//! A leader's lease on its own node: whether its Postgres needs one, whom to ask to obey no election when the controller
//! cannot be heard, and whether to do so when asked. The daemon and the simulation carry it out.
//!
//! A leader whose lease runs out goes on only while so many have refused that nobody could be elected: `k` of the standbys
//! that stream to it (fewer than `n - k + 1` are left to promise), or, where it acknowledges alone, every other member.

use pgstead_types::lease::{LeaseTimes, RefusalRequest};
use pgstead_types::record::{ClusterRecord, Leadership, Lifecycle};
use pgstead_types::report::{MemberReport, PostgresSeen, SetBy, Upstream};
use pgstead_types::{Epoch, Incarnation, MemberId, Tick};
use std::collections::{BTreeMap, BTreeSet};

/// The epoch in which `member` is to lead, if its Postgres must run under a lease then. A member alone needs none: only it
/// can follow itself.
pub fn leads_under_lease(cluster: &ClusterRecord, member: MemberId) -> Option<Epoch> {
    let leads = cluster.lifecycle == Lifecycle::Active && cluster.leadership.leader() == Some(member);
    (leads && cluster.members.len() > 1).then_some(cluster.epoch)
}

/// Whether the member's node asks for a lease: it leads under one, or it has come to be alone and its guard counts one still,
/// which it ends Postgres by until it is told to forget it.
pub fn renews_lease(cluster: &ClusterRecord, member: MemberId, counted: bool) -> bool {
    let leads = cluster.lifecycle == Lifecycle::Active && cluster.leadership.leader() == Some(member);
    leads_under_lease(cluster, member).is_some() || (leads && counted)
}

/// Whether a Postgres that was given a lease needs none any more, by what is seen of it: it is a standby of this epoch, or the
/// primary of a cluster that has come down to it alone. Not where a set, or who may copy from it, was loaded by a newer record:
/// this node knew more members once.
pub fn may_forget_lease(cluster: &ClusterRecord, seen: &MemberReport) -> bool {
    match &seen.postgres {
        PostgresSeen::Standby(_) => seen.promised >= cluster.epoch,
        PostgresSeen::Primary(primary) => {
            cluster.lifecycle == Lifecycle::Active
                && cluster.leadership.leader() == Some(seen.member)
                && cluster.members.len() == 1
                && primary.epoch == Some(cluster.epoch)
                && seen.promised == cluster.epoch
                && seen.set_by <= Some(SetBy { epoch: cluster.epoch, revision: cluster.revision })
        }
        PostgresSeen::Down { .. } | PostgresSeen::Starting | PostgresSeen::Unresponsive { .. } => false,
    }
}

/// Whose refusals a leader needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusals {
    pub epoch: Epoch,
    pub leader: Incarnation,
    /// Whom to ask.
    pub ask: BTreeSet<MemberId>,
    /// So many of them must refuse.
    pub enough: usize,
}

/// Whom to ask when the lease runs out, by what is seen of the leader's own Postgres. `None` where it may not go on
/// whoever refuses: it does not run as the primary of a confirmed epoch, or too few stream to it.
pub fn refusals_needed(cluster: &ClusterRecord, seen: &MemberReport) -> Option<Refusals> {
    let epoch = leads_under_lease(cluster, seen.member)?;
    let config = cluster.config()?;
    let PostgresSeen::Primary(primary) = &seen.postgres else { return None };
    if !cluster.is_confirmed() || primary.epoch != Some(epoch) || seen.promised != epoch {
        return None;
    }
    // This record is older than one by which a set was loaded: nobody here knows whom an election asks.
    if seen.set_by > Some(SetBy { epoch, revision: cluster.revision }) {
        return None;
    }
    let (ask, enough): (BTreeSet<MemberId>, usize) = if config.asynchronous {
        let others: BTreeSet<MemberId> = cluster.members.keys().copied().filter(|id| *id != seen.member).collect();
        let all = others.len();
        (others, all)
    } else {
        // What it acknowledges alone no standby vouches for, and what it goes by is not known while that changes.
        if primary.sync_set.as_ref().is_none_or(|set| set.needed == 0) {
            return None;
        }
        let streams = |life: &&Incarnation| {
            primary.senders.iter().any(|sender| sender.incarnation == Some(**life) && sender.streaming)
        };
        // While the set changes, those who count in both: the record goes over to the new one only when this leader has
        // loaded it, and so knows of it.
        let (recorded, loaded) = (&config.sync_set, config.loaded());
        let counted = recorded.members.intersection(&loaded.members).filter(streams).map(|life| life.member).collect();
        (counted, if recorded.needed == 0 { 0 } else { usize::from(recorded.needed.max(loaded.needed)) })
    };
    (enough > 0 && ask.len() >= enough).then_some(Refusals { epoch, leader: config.leader, ask, enough })
}

impl Refusals {
    pub fn request(&self, cluster: &ClusterRecord, member: MemberId, lease: LeaseTimes) -> RefusalRequest {
        RefusalRequest {
            cluster: cluster.id,
            member,
            leader: self.leader,
            epoch: self.epoch,
            revision: cluster.revision,
            members: cluster.members.keys().copied().collect(),
            for_ms: u64::try_from(lease.refusal().as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Until when the leader may go on: enough of those who were asked refuse for so long. `until` counts each from the
    /// moment at which it was asked.
    pub fn extended(&self, until: &BTreeMap<MemberId, Tick>) -> Option<Tick> {
        let mut ends: Vec<Tick> =
            until.iter().filter(|(member, _)| self.ask.contains(member)).map(|(_, end)| *end).collect();
        ends.sort_unstable();
        ends.len().checked_sub(self.enough).and_then(|at| ends.get(at).copied())
    }
}

/// Whether this member may refuse elections for a leader that asks; else why not. `seen` is fresh, and nothing is done to
/// the member until the refusal is durable.
pub fn may_refuse(cluster: Option<&ClusterRecord>, seen: &MemberReport, asked: &RefusalRequest) -> Result<(), String> {
    let Some(cluster) = cluster else { return Err("it knows no such cluster".to_string()) };
    if cluster.lifecycle != Lifecycle::Active {
        return Err("the cluster is being deleted".to_string());
    }
    let confirmed = matches!(cluster.leadership, Leadership::Confirmed { leader } if leader == asked.leader.member);
    if cluster.epoch != asked.epoch || !confirmed {
        return Err(format!("it knows of epoch {}, and not of that leader in it", cluster.epoch));
    }
    if !cluster.members.contains_key(&seen.member) {
        return Err("it is a member no more".to_string());
    }
    if seen.promised != asked.epoch {
        return Err(format!("it has promised epoch {}", seen.promised));
    }
    // One that the leader does not know of yet could be elected behind its back. One that it knows of no more, by a newer
    // record, cannot: it has left.
    if cluster.revision > asked.revision && cluster.members.keys().any(|member| !asked.members.contains(member)) {
        return Err(format!("it knows revision {} of the cluster, with more members", cluster.revision));
    }
    // Its word is about elections, so it may come by way of another standby as well as from the leader itself.
    let told = |upstream: Upstream| upstream.is_of(asked.leader.member, asked.epoch);
    match &seen.postgres {
        PostgresSeen::Standby(standby) if standby.upstream.is_some_and(told) => match standby.receiver {
            Some(receiver) if receiver.streaming => Ok(()),
            _ => Err("it does not stream from that leader".to_string()),
        },
        _ => Err("its Postgres is no standby of that leader".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::tests::{A, B, C, alone, leads, record, streams_from_a};
    use pgstead_types::record::SyncSet;

    #[test]
    fn a_synchronous_leader_asks_those_of_its_set_that_stream() {
        let needed = refusals_needed(&record(), &leads(&[B, C])).unwrap();
        assert_eq!((needed.ask, needed.enough), ([B, C].into(), 1));
        assert_eq!(refusals_needed(&record(), &leads(&[C])).unwrap().ask, [C].into());
        assert_eq!(refusals_needed(&record(), &leads(&[])), None);
    }

    #[test]
    fn nobody_vouches_for_a_leader_that_may_acknowledge_alone_or_knows_less_than_it_has_loaded() {
        let record = record();
        let with = |change: &dyn Fn(&mut MemberReport)| {
            let mut seen = leads(&[B, C]);
            change(&mut seen);
            refusals_needed(&record, &seen)
        };
        let loaded = |set: Option<SyncSet>| {
            move |seen: &mut MemberReport| match &mut seen.postgres {
                PostgresSeen::Primary(primary) => primary.sync_set.clone_from(&set),
                _ => unreachable!("it leads"),
            }
        };
        let by = |revision| move |seen: &mut MemberReport| seen.set_by = Some(SetBy { epoch: Epoch(2), revision });
        assert_eq!(with(&loaded(Some(SyncSet { members: [].into(), needed: 0 }))), None);
        assert_eq!(with(&loaded(None)), None);
        assert_eq!(with(&by(record.revision + 1)), None);
        assert!(with(&by(record.revision)).is_some());
    }

    #[test]
    fn an_asynchronous_leader_needs_every_member() {
        let needed = refusals_needed(&alone(), &leads(&[])).unwrap();
        assert_eq!((needed.ask.clone(), needed.enough), ([B, C].into(), 2));
        let until = |all: &[(MemberId, u64)]| all.iter().map(|(m, at)| (*m, Tick::from_millis(*at))).collect();
        assert_eq!(needed.extended(&until(&[(B, 5)])), None);
        assert_eq!(needed.extended(&until(&[(B, 5), (C, 9)])), Some(Tick::from_millis(5)));
    }

    #[test]
    fn enough_is_the_best_of_those_who_refuse() {
        let needed = refusals_needed(&record(), &leads(&[B, C])).unwrap();
        let until = [(B, Tick::from_millis(5)), (C, Tick::from_millis(9))].into();
        assert_eq!(needed.extended(&until), Some(Tick::from_millis(9)));
        // Whoever was not asked does not count.
        assert_eq!(needed.extended(&[(A, Tick::from_millis(50))].into()), None);
    }

    #[test]
    fn a_member_refuses_only_for_the_leader_that_it_streams_from() {
        let record = record();
        let asked = refusals_needed(&record, &leads(&[B])).unwrap().request(&record, B, LeaseTimes::default());
        assert_eq!(may_refuse(Some(&record), &streams_from_a(), &asked), Ok(()));
        let mut newer = streams_from_a();
        newer.promised = newer.promised.next();
        assert!(may_refuse(Some(&record), &newer, &asked).unwrap_err().contains("promised"));
        let open = ClusterRecord { epoch: Epoch(3), ..record.clone() };
        assert!(may_refuse(Some(&open), &streams_from_a(), &asked).is_err());
        let mut stranger = asked.clone();
        stranger.members.remove(&C);
        stranger.revision -= 1;
        assert!(may_refuse(Some(&record), &streams_from_a(), &stranger).unwrap_err().contains("more members"));
        assert!(may_refuse(Some(&record), &leads(&[]), &asked).is_err());
        // By a record that is no older than this one the leader knows that the other has left.
        stranger.revision = record.revision + 1;
        assert_eq!(may_refuse(Some(&record), &streams_from_a(), &stranger), Ok(()));
    }

    #[test]
    fn a_lease_is_forgotten_by_standbys_and_by_a_leader_that_is_known_to_be_alone() {
        assert!(may_forget_lease(&record(), &streams_from_a()));
        assert!(!may_forget_lease(&record(), &leads(&[B, C])), "others could be elected");
        let mut alone = record();
        alone.members.retain(|id, _| *id == A);
        assert!(may_forget_lease(&alone, &leads(&[])));
        let with = |change: &dyn Fn(&mut MemberReport)| {
            let mut seen = leads(&[]);
            change(&mut seen);
            may_forget_lease(&alone, &seen)
        };
        let by = |revision| Some(SetBy { epoch: Epoch(2), revision });
        assert!(with(&|seen| seen.set_by = by(alone.revision)));
        assert!(!with(&|seen| seen.set_by = by(alone.revision + 1)), "it has let others copy by a newer record");
        assert!(!with(&|seen| seen.promised = Epoch(3)));
    }

    #[test]
    fn a_member_that_has_left_vouches_for_nobody() {
        let mut left = record();
        let asked = refusals_needed(&left, &leads(&[B])).unwrap().request(&left, B, LeaseTimes::default());
        assert_eq!(may_refuse(Some(&left), &streams_from_a(), &asked), Ok(()));
        left.members.remove(&B);
        assert!(may_refuse(Some(&left), &streams_from_a(), &asked).unwrap_err().contains("no more"));
    }

    #[test]
    fn a_member_alone_needs_no_lease() {
        let mut record = record();
        assert_eq!(leads_under_lease(&record, A), Some(Epoch(2)));
        assert_eq!(leads_under_lease(&record, B), None);
        assert!(renews_lease(&record, A, false) && !renews_lease(&record, B, true));
        record.members.retain(|id, _| *id == A);
        assert_eq!(leads_under_lease(&record, A), None);
        // Until its guard has forgotten the one that it counts.
        assert!(renews_lease(&record, A, true) && !renews_lease(&record, A, false));
    }
}
