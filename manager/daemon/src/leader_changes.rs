//! Changes of leader that a person asks for: what stands in their way, judged by the controller's view, and the one proposal
//! that begins them.

use crate::backend::NodeBackend;
use crate::peers::{Lane, PeerAddress};
use pgstead_api::backend::{Accepted, FailoverChecked, Rejected, SwitchoverAsked, SwitchoverChecked};
use pgstead_core::{Overrule, SwitchoverCheck, check_forced, check_switchover};
use pgstead_types::record::{ClusterChange, ClusterRecord, MemberRecord, ScheduledSwitchover};
use pgstead_types::sessions::{LONG_TRANSACTION_MS, SessionsSeen};
use pgstead_types::{ClusterId, Finding, MemberId, OperationId, Severity, Tick, WallTime};
use std::time::Duration;
use uuid::Uuid;

/// For the leader's node to say what its clients are at.
const SESSIONS_TIMEOUT: Duration = Duration::from_secs(4);
/// For what blocks a switchover and passes by itself: a standby that has just begun to stream, a report under way. Well
/// below what a caller waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl NodeBackend {
    /// The controller's view as it is now.
    fn observed_now(&self) -> Result<pgstead_core::Observed, Rejected> {
        let mut observed = self.controller.view().ok_or(Rejected::NotController)?.observed;
        observed.now = Tick::now();
        observed.wall = WallTime::now();
        Ok(observed)
    }

    /// Adds what the leader's clients are at.
    async fn with_sessions(&self, cluster: &ClusterRecord, mut check: SwitchoverCheck) -> SwitchoverCheck {
        if let Some(leader) = check.from.and_then(|leader| cluster.members.get(&leader)) {
            let seen = self.sessions_on(leader).await;
            check.findings.extend(said_of_sessions(seen).into_iter().map(|finding| finding.on_cluster(cluster.id)));
        }
        check
    }

    /// Looks again for a while where what blocks it may pass.
    async fn check_patiently(
        &self,
        cluster: ClusterId,
        to: Option<MemberId>,
        overrule: Overrule,
    ) -> Result<SwitchoverCheck, Rejected> {
        let until = Tick::now() + PATIENCE;
        loop {
            let record = self.cluster(cluster)?;
            let mut check = check_switchover(&record, &self.observed_now()?, &self.policy, to);
            let is_last = Tick::now() >= until;
            if check.is_clear(overrule) || !check.may_pass(overrule) || is_last {
                check = self.with_sessions(&record, check).await;
                if check.is_clear(overrule) || !check.may_pass(overrule) || is_last {
                    return Ok(check);
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn sessions_on(&self, leader: &MemberRecord) -> Result<SessionsSeen, String> {
        if leader.node == self.consensus.node() {
            return self.instances.sessions(leader.id).await;
        }
        let record = self.consensus.record();
        let node = record.nodes.get(&leader.node).ok_or("its node is not in the record")?;
        let address = PeerAddress { node: node.id, host: node.host.clone(), port: node.port };
        let path = format!("/internal/members/{}/sessions", leader.id);
        let answer = self.peers.post_json(&address, Lane::Api, &path, Vec::new(), SESSIONS_TIMEOUT).await;
        let answer = answer.map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(String::from_utf8_lossy(answer.body()).into_owned());
        }
        serde_json::from_slice(answer.body()).map_err(|error| error.to_string())
    }

    pub(crate) async fn checked_switchover(
        &self,
        cluster: ClusterId,
        to: Option<MemberId>,
    ) -> Result<SwitchoverChecked, Rejected> {
        let check = self.check_patiently(cluster, to, Overrule::Nothing).await?;
        let SwitchoverCheck { from, to, lag, findings } = check;
        Ok(SwitchoverChecked { from, to, lag, findings })
    }

    pub(crate) async fn begin_switchover(
        &self,
        cluster: ClusterId,
        asked: SwitchoverAsked,
        revision: Option<u64>,
    ) -> Result<Accepted, Rejected> {
        let operation = OperationId::from_uuid(Uuid::now_v7());
        if let Some((not_before, not_after)) = asked.when {
            let scheduled = ScheduledSwitchover { operation, to: asked.to, not_before, not_after };
            self.change(cluster, revision, ClusterChange::ScheduleSwitchover { scheduled }).await?;
            return Ok(Accepted { operation, cluster });
        }
        let overrule = if asked.overrule { Overrule::Warnings } else { Overrule::Nothing };
        let check = self.check_patiently(cluster, asked.to, overrule).await?;
        let (true, Some(to)) = (check.is_clear(overrule), check.to) else {
            return Err(Rejected::Conflict { why: blocked(&check.findings) });
        };
        self.change(cluster, revision, ClusterChange::RequestSwitchover { operation, to }).await?;
        Ok(Accepted { operation, cluster })
    }

    pub(crate) async fn take_back_switchover(
        &self,
        cluster: ClusterId,
        revision: Option<u64>,
    ) -> Result<Accepted, Rejected> {
        let scheduled = self.cluster(cluster)?.planned.scheduled;
        let operation = scheduled.map(|scheduled| scheduled.operation).ok_or_else(|| Rejected::Conflict {
            why: "no switchover is scheduled; one that has begun ends by itself".into(),
        })?;
        self.change(cluster, revision, ClusterChange::CancelSwitchover { operation }).await?;
        Ok(Accepted { operation, cluster })
    }

    pub(crate) fn checked_failover(&self, cluster: &ClusterRecord, to: MemberId) -> Result<FailoverChecked, Rejected> {
        let check = check_forced(cluster, &self.observed_now()?, &self.policy, to);
        Ok(FailoverChecked {
            epoch: check.epoch,
            loss: check.loss,
            members: check.members.into_iter().map(|seen| (seen.member, seen.here, seen.reaches)).collect(),
            refused: check.refused,
        })
    }

    pub(crate) async fn begin_forced(
        &self,
        cluster: ClusterId,
        to: MemberId,
        by: String,
        revision: Option<u64>,
    ) -> Result<Accepted, Rejected> {
        let held = self.cluster(cluster)?;
        let checked = self.checked_failover(&held, to)?;
        if !checked.refused.is_empty() {
            return Err(Rejected::Conflict { why: sentences(checked.refused.iter()) });
        }
        let operation = OperationId::from_uuid(Uuid::now_v7());
        let FailoverChecked { epoch, loss, .. } = checked;
        let change = ClusterChange::ForceEpoch { at: WallTime::now(), epoch, operation, to, by, loss };
        // On exactly the revision that was judged: what has changed since may have made it needless.
        self.change(cluster, Some(revision.unwrap_or(held.revision)), change).await?;
        Ok(Accepted { operation, cluster })
    }
}

fn sentences<'a>(findings: impl Iterator<Item = &'a Finding>) -> String {
    findings.map(|finding| finding.message.as_str()).collect::<Vec<_>>().join("; ")
}

fn blocked(findings: &[Finding]) -> String {
    let hard = findings.iter().any(|finding| finding.severity == Severity::Error);
    let reasons = sentences(findings.iter().filter(|finding| finding.severity >= Severity::Warning));
    let way = if hard { "" } else { " (`--overrule` goes on in spite of that)" };
    format!("a switchover is blocked: {reasons}{way}")
}

/// What a clean stop of the leader would do to its clients.
fn said_of_sessions(seen: Result<SessionsSeen, String>) -> Vec<Finding> {
    let seen = match seen {
        Ok(seen) => seen,
        Err(why) => {
            let text = format!("what the leader's clients are at could not be asked: {why}");
            return vec![Finding::warning("sessions_unknown", text)];
        }
    };
    let mut findings = Vec::new();
    if seen.long_transactions > 0 {
        let text = format!(
            "{} transactions on the leader have been open for more than {} s, the oldest for {} s; they would be ended",
            seen.long_transactions,
            LONG_TRANSACTION_MS / 1000,
            seen.oldest_ms / 1000
        );
        findings.push(Finding::warning("long_transactions", text));
    }
    if seen.prepared > 0 {
        let text = format!(
            "{} prepared transactions hold their locks through the change, and whoever prepared them loses the \
             connection: {}",
            seen.prepared,
            seen.prepared_names.join(", ")
        );
        findings.push(Finding::warning("prepared_transactions", text));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_work_is_said_and_can_be_overruled() {
        let seen = SessionsSeen {
            sessions: 3,
            long_transactions: 1,
            oldest_ms: 90_000,
            prepared: 1,
            prepared_names: vec!["order-7".into()],
        };
        let findings = said_of_sessions(Ok(seen));
        assert!(blocked(&findings).contains("order-7") && blocked(&findings).contains("--overrule"));
        assert!(findings.iter().all(|finding| finding.severity == Severity::Warning));
        assert_eq!(said_of_sessions(Ok(SessionsSeen::default())), []);
        assert_eq!(said_of_sessions(Err("gone".into())).len(), 1);
    }
}
