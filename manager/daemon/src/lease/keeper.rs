//! Has a leading member's guard count the node's lease, and where that runs out because no controller is heard, asks the
//! other members to obey no election for a while.

use super::{Held, Leases, times};
use crate::peers::{Lane, PeerAddress, Peers};
use crate::report::Reports;
use futures::future::join_all;
use pgstead_agent::lease::{Refusals, leads_under_lease, may_forget_lease, refusals_needed, renews_lease};
use pgstead_consensus::{Consensus, TokioRuntime};
use pgstead_replication::Instance;
use pgstead_replication::instance::LeaseCount;
use pgstead_types::lease::{LeaseTimes, RefusalAnswer};
use pgstead_types::record::{ClusterRecord, EpochConfig, Record};
use pgstead_types::report::MemberReport;
use pgstead_types::{ClusterId, MemberId, Tick};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Between two looks when nothing happens: a Postgres that was started late, or a lease that runs out.
const PAUSE: Duration = Duration::from_millis(500);
/// A member that needs longer for its answer is busy, or cannot be reached.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(1500);

pub struct Keeper {
    pub cluster: ClusterId,
    pub member: MemberId,
    pub consensus: Consensus<TokioRuntime>,
    pub instance: Arc<Instance>,
    pub reports: Reports,
    pub peers: Peers,
    pub leases: Leases,
}

/// What was said last, so that it is said once.
#[derive(Default)]
struct Said {
    not_counted: Option<String>,
    alone: bool,
}

impl Keeper {
    /// Runs until the record knows the member no more, or `stop`.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut held = self.leases.watch();
        let mut record = self.consensus.watch_record();
        let mut said = Said::default();
        let mut asked_at: Option<Tick> = None;
        loop {
            let now = record.get();
            let Some(cluster) = now.clusters.get(&self.cluster).filter(|c| c.members.contains_key(&self.member)) else {
                return;
            };
            let lease = *held.borrow_and_update();
            self.keep(&now, cluster, lease, &mut said, &mut asked_at).await;
            let revision = now.revision;
            tokio::select! {
                () = crate::server::stopped(&mut stop) => return,
                changed = held.changed() => if changed.is_err() { return },
                changed = record.wait_until(|next| next.revision != revision) => if changed.is_err() { return },
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn keep(
        &self,
        record: &Record,
        cluster: &ClusterRecord,
        held: Held,
        said: &mut Said,
        asked_at: &mut Option<Tick>,
    ) {
        let seen = self.reports.get(self.member);
        if leads_under_lease(cluster, self.member).is_none() {
            *said = Said::default();
            if seen.as_ref().is_some_and(|seen| may_forget_lease(cluster, seen)) {
                if let Err(error) = self.instance.forget_lease().await {
                    tracing::debug!(%error, member = %self.member, "the guard could not be told to forget a lease");
                }
                return;
            }
            if !renews_lease(cluster, self.member, self.instance.lease_end().is_some()) {
                return;
            }
        }
        let alone = cluster.config().is_some_and(EpochConfig::acknowledges_alone);
        let counted = self.instance.lease_end();
        // A grant for a record that this node has not seen may be one in which it leads no more.
        if held.revision <= record.revision && held.end > Tick::now() && counted.is_none_or(|end| end < held.end) {
            self.count(cluster, held.end, alone, said).await;
        }
        let times = times(record);
        let Some(end) = self.instance.lease_end() else { return };
        let now = Tick::now();
        if end.since(now) > times.running_out() {
            *asked_at = None;
            said.alone = false;
            return;
        }
        // Once a second or so, while the lease runs out.
        if asked_at.is_some_and(|at| now.since(at) < times.refusal() / 6) {
            return;
        }
        *asked_at = Some(now);
        self.go_on_by_refusals(record, cluster, seen, times, end, said).await;
    }

    async fn count(&self, cluster: &ClusterRecord, end: Tick, alone: bool, said: &mut Said) {
        match self.instance.count_lease(end, alone).await {
            Ok(LeaseCount::Counts) => {
                if said.not_counted.take().is_some() {
                    tracing::info!(cluster = %cluster.spec.name, member = %self.member, "the guard counts its lease");
                }
                self.reports.look_again(self.member);
            }
            Ok(LeaseCount::DoesNot { why }) => {
                if said.not_counted.as_ref() != Some(&why) {
                    tracing::debug!(cluster = %cluster.spec.name, member = %self.member, %why, "the guard counts no lease");
                    said.not_counted = Some(why);
                }
            }
            Err(error) => {
                tracing::warn!(cluster = %cluster.spec.name, member = %self.member, %error, "the guard could not be given a lease");
            }
        }
    }

    /// No controller has answered for most of a lease. The leader may go on while nobody could be elected.
    async fn go_on_by_refusals(
        &self,
        record: &Record,
        cluster: &ClusterRecord,
        seen: Option<MemberReport>,
        times: LeaseTimes,
        end: Tick,
        said: &mut Said,
    ) {
        let Some(needed) = seen.and_then(|seen| refusals_needed(cluster, &seen)) else { return };
        let asked = Tick::now();
        let answers = needed.ask.iter().map(|member| self.ask(record, cluster, *member, &needed, times));
        let until: BTreeMap<MemberId, Tick> =
            join_all(answers).await.into_iter().flatten().map(|member| (member, asked + times.refusal())).collect();
        match needed.extended(&until).filter(|until| *until > end) {
            Some(until) => {
                if !said.alone {
                    said.alone = true;
                    tracing::warn!(
                        cluster = %cluster.spec.name, member = %self.member, epoch = %needed.epoch,
                        "no controller is heard; going on by the word of members that obey no election"
                    );
                }
                let alone = cluster.config().is_some_and(EpochConfig::acknowledges_alone);
                self.count(cluster, until, alone, said).await;
            }
            None => tracing::warn!(
                cluster = %cluster.spec.name, member = %self.member, epoch = %needed.epoch,
                refuse = until.len(), needed = needed.enough, left_ms = end.since(Tick::now()).as_millis() as u64,
                "no controller is heard and too few members refuse elections: the guard stops Postgres at the end of the lease"
            ),
        }
    }

    /// The member, if it refuses.
    async fn ask(
        &self,
        record: &Record,
        cluster: &ClusterRecord,
        member: MemberId,
        needed: &Refusals,
        times: LeaseTimes,
    ) -> Option<MemberId> {
        let node = record.nodes.get(&cluster.members.get(&member)?.node)?;
        let to = PeerAddress { node: node.id, host: node.host.clone(), port: node.port };
        let body = serde_json::to_vec(&needed.request(cluster, member, times)).ok()?;
        let answer = self.peers.post_json(&to, Lane::Api, "/internal/refusal", body, ANSWER_TIME_MAX).await;
        match answer.map(|answer| serde_json::from_slice::<RefusalAnswer>(answer.body())) {
            Ok(Ok(RefusalAnswer::Refuses)) => Some(member),
            Ok(Ok(RefusalAnswer::DoesNot { why })) => {
                tracing::info!(cluster = %cluster.spec.name, %member, %why, "a member does not refuse elections");
                None
            }
            Ok(Err(error)) => {
                tracing::info!(cluster = %cluster.spec.name, %member, %error, "a member did not say whether it refuses");
                None
            }
            Err(error) => {
                tracing::info!(cluster = %cluster.spec.name, %member, %error, "a member could not be asked to refuse");
                None
            }
        }
    }
}
