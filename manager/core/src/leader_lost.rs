//! Is the leader still there? Told apart: its Postgres ended (its guard's word), its node closed its connections, its node
//! is silent, or it runs and its standbys cannot reach it. Only the first needs no witness.

use crate::cut_off;
use crate::lease;
use crate::observed::{Memory, Observed, Policy, Presence, witnesses};
use pgstead_types::record::{ClusterRecord, EpochReason};
use pgstead_types::report::{PostgresSeen, PrimarySeen};
use pgstead_types::{Finding, MemberId, Tick};

/// What is concluded of the leader of a promoted or confirmed epoch.
pub(crate) enum LeaderSeen<'a> {
    /// It runs as this epoch's primary, by its node's fresh word.
    Runs(&'a PrimarySeen),
    /// Nothing can be concluded yet; look again then.
    Unsure {
        until: Option<Tick>,
        finding: Finding,
    },
    Lost {
        reason: EpochReason,
        finding: Finding,
    },
}

pub(crate) fn leader_seen<'a>(
    cluster: &ClusterRecord,
    observed: &'a Observed,
    policy: &Policy,
    memory: &mut Memory,
    leader: MemberId,
) -> LeaderSeen<'a> {
    let Some(member) = cluster.members.get(&leader) else {
        return LeaderSeen::Unsure {
            until: None,
            finding: Finding::error("no_leader_member", "the leader is no member"),
        };
    };
    let name = &member.name;
    let heard = witnesses(cluster, observed, policy, leader);
    let about = |finding: Finding| finding.on_cluster(cluster.id).on_member(leader).on_node(member.node);
    let presence = observed.presence(member.node, policy);
    if presence != Presence::Fresh {
        memory.cut = None;
    }
    match presence {
        Presence::Fresh => {}
        Presence::Doubtful { until } => {
            let finding =
                Finding::info("leader_doubtful", format!("the node of leader {name} has not been heard for a moment"));
            return LeaderSeen::Unsure { until: Some(until), finding: about(finding) };
        }
        Presence::Gone | Presence::Silent { .. } => {
            let (reason, what) = match presence {
                Presence::Silent { .. } => (EpochReason::NodeSilent, "is silent"),
                _ => (EpochReason::NodeLost, "has closed its connections"),
            };
            if heard.hearing > 0 {
                let text = format!(
                    "the node of leader {name} {what}, but {} of its standbys hear its Postgres: no failover; look at its daemon",
                    heard.hearing
                );
                let until = heard.next.map(|left| observed.now + left);
                return LeaderSeen::Unsure { until, finding: about(Finding::warning("daemon_unreachable", text)) };
            }
            if heard.deaf == 0 {
                let text = format!(
                    "the node of leader {name} {what}, and no standby is here to say whether its Postgres runs"
                );
                return LeaderSeen::Unsure { until: None, finding: about(Finding::error("no_witness", text)) };
            }
            let text =
                format!("the node of leader {name} {what}, and {} standbys hear nothing of its Postgres", heard.deaf);
            return LeaderSeen::Lost { reason, finding: about(Finding::error("leader_lost", text)) };
        }
    }
    let Some(report) = observed.last(cluster, leader) else {
        let text = format!("the node of leader {name} reports no such member");
        return LeaderSeen::Unsure { until: None, finding: about(Finding::warning("member_unreported", text)) };
    };
    match &report.postgres {
        PostgresSeen::Primary(primary) if primary.epoch == Some(cluster.epoch) => {
            memory.hung = None;
            lease::note_flushed(cluster, primary, memory);
            cut(cluster, observed, policy, memory, leader, primary)
        }
        PostgresSeen::Primary(_) | PostgresSeen::Standby(_) | PostgresSeen::Down { .. } | PostgresSeen::Starting => {
            let text = format!("the Postgres of leader {name} has ended");
            LeaderSeen::Lost {
                reason: EpochReason::PostgresEnded,
                finding: about(Finding::error("leader_ended", text)),
            }
        }
        PostgresSeen::Unresponsive { why } if heard.hearing == 0 && heard.deaf > 0 => {
            let text = format!("the Postgres of leader {name} does not answer ({why}) and no standby hears from it");
            LeaderSeen::Lost {
                reason: EpochReason::PostgresEnded,
                finding: about(Finding::error("leader_ended", text)),
            }
        }
        // Its senders go on beside backends that hang on a disk or a lock of their own, so that a standby hears it proves
        // nothing of commits.
        PostgresSeen::Unresponsive { why } => {
            let since = *memory.hung.get_or_insert(observed.now);
            let until = since + policy.hung_patience;
            let text = format!("the Postgres of leader {name} does not answer its node: {why}");
            // Nor does it wait for those whom another standby feeds.
            if observed.now >= until && heard.hearing + heard.mute > 0 {
                let finding = about(Finding::error("leader_hung", text));
                return LeaderSeen::Lost { reason: EpochReason::PostgresHung, finding };
            }
            // With its patience over and nobody hearing it, only news can change what this says.
            let patience = (until > observed.now).then_some(until);
            let next = heard.next.map(|left| observed.now + left).into_iter().chain(patience).min();
            LeaderSeen::Unsure { until: next, finding: about(Finding::warning("leader_unresponsive", text)) }
        }
    }
}

/// A leader that runs while its standbys, which are here, cannot reach it: another is elected before anything degrades.
fn cut<'a>(
    cluster: &ClusterRecord,
    observed: &Observed,
    policy: &Policy,
    memory: &mut Memory,
    leader: MemberId,
    primary: &'a PrimarySeen,
) -> LeaderSeen<'a> {
    // Before it is confirmed, what its set still lacks has other causes as well: see `promotion`.
    if !cluster.is_confirmed() {
        return LeaderSeen::Runs(primary);
    }
    let Some(set) = cut_off::counted(cluster, primary) else { return LeaderSeen::Runs(primary) };
    let deaf = cut_off::deaf(cluster, observed, policy, leader, set).count();
    // With so many deaf, no commit can be acknowledged.
    if set.needed == 0 || deaf < set.promises_needed() {
        memory.cut = None;
        return LeaderSeen::Runs(primary);
    }
    let since = *memory.cut.get_or_insert(observed.now);
    let until = since + policy.cut_patience;
    // Where nobody else can be elected, or not yet, another epoch would only stop what is left.
    if observed.now >= until && !cut_off::another_could_lead(cluster, observed, policy, leader) {
        return LeaderSeen::Runs(primary);
    }
    let finding = cut_off::finding(cluster, leader);
    if observed.now >= until {
        LeaderSeen::Lost { reason: EpochReason::CutFromStandbys, finding }
    } else {
        LeaderSeen::Unsure { until: Some(until), finding }
    }
}
