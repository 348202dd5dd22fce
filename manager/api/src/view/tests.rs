//! What people and programs are shown, of worlds that are well and of worlds that are not.

use super::*;
use crate::backend::Observations;
use crate::fake::{APP, member, node, observations, record};
use pgstead_types::record::{ClusterChange, Command, EpochReason, Record};
use pgstead_types::report::{PostgresSeen, Working};
use pgstead_types::{Epoch, Finding, Step, WallTime};

fn look<'a>(record: &'a Record, observed: Option<&'a Observations>) -> World<'a> {
    World { record, observed, answering: node(1), controller: Some(node(1)) }
}
fn cluster(record: &Record, observed: Option<&Observations>) -> ClusterView {
    ClusterView::new(&look(record, observed), &record.clusters[&APP])
}
fn down() -> PostgresSeen {
    PostgresSeen::Down { clean: None }
}

#[test]
fn a_settled_cluster_is_healthy_with_rpo_zero_on_two_disks() {
    let record = record();
    let view = cluster(&record, Some(&observations(&record)));
    assert_eq!(view.health, Health::Healthy, "{}", view.why);
    assert_eq!(
        (view.rpo.state, view.rpo.text.as_str()),
        (RpoState::Zero, "0: every acknowledged commit is on 2 disks")
    );
    assert_eq!(
        view.sync_set,
        SyncSetView { members: vec!["app-2".into(), "app-3".into()], needed: 1, becoming: None, streaming: Some(2) }
    );
    assert_eq!(view.leader.unwrap().name, "app-1");
    let lags: Vec<_> = view.members.iter().map(|one| one.observed.as_ref().unwrap().lag_bytes).collect();
    assert_eq!(lags, [None, Some(0), Some(4096)]);
}

#[test]
fn one_lost_standby_of_two_degrades_and_loses_nothing() {
    let record = record();
    let mut observed = observations(&record);
    observed.members.get_mut(&member(3)).unwrap().report.postgres = down();
    let PostgresSeen::Primary(primary) = &mut observed.members.get_mut(&member(1)).unwrap().report.postgres else {
        panic!("member 1 leads")
    };
    primary.senders.retain(|sender| sender.incarnation.unwrap().member != member(3));
    let view = cluster(&record, Some(&observed));
    assert_eq!((view.health, view.rpo.state), (Health::Degraded, RpoState::Zero));
    assert!(view.why.contains("app-3"), "{}", view.why);
}

#[test]
fn too_few_streaming_standbys_make_writes_wait() {
    let record = record();
    let mut observed = observations(&record);
    let PostgresSeen::Primary(primary) = &mut observed.members.get_mut(&member(1)).unwrap().report.postgres else {
        panic!("member 1 leads")
    };
    primary.senders.iter_mut().for_each(|sender| sender.streaming = false);
    let view = cluster(&record, Some(&observed));
    assert_eq!((view.health, view.rpo.state), (Health::WritesWait, RpoState::WritesWait));
    assert!(view.rpo.text.contains("0 of the 1"), "{}", view.rpo.text);
}

#[test]
fn a_standby_that_its_leader_does_not_see_is_not_called_streaming() {
    let record = record();
    let mut observed = observations(&record);
    let PostgresSeen::Primary(primary) = &mut observed.members.get_mut(&member(1)).unwrap().report.postgres else {
        panic!("member 1 leads")
    };
    primary.senders.retain(|sender| sender.incarnation.unwrap().member != member(2));
    let view = cluster(&record, Some(&observed));
    assert_eq!(view.members[1].observed.as_ref().unwrap().state, MemberState::Waiting);
    assert_eq!(view.health, Health::Degraded, "a switchover to it would be refused");
}

#[test]
fn a_sender_that_is_not_in_the_sync_set_does_not_count() {
    let record = record();
    let mut observed = observations(&record);
    let PostgresSeen::Primary(primary) = &mut observed.members.get_mut(&member(1)).unwrap().report.postgres else {
        panic!("member 1 leads")
    };
    primary.senders.iter_mut().for_each(|sender| sender.incarnation = None);
    assert_eq!(cluster(&record, Some(&observed)).rpo.state, RpoState::WritesWait, "names alone prove nothing");
}

#[test]
fn an_old_report_says_what_was_and_not_what_is() {
    let record = record();
    let mut observed = observations(&record);
    observed.members.get_mut(&member(1)).unwrap().age_ms = 60_000;
    let view = cluster(&record, Some(&observed));
    assert_eq!((view.health, view.rpo.state), (Health::NoLeader, RpoState::Unknown));
    assert!(view.members[0].observed.as_ref().unwrap().stale);
}

#[test]
fn what_a_node_says_of_a_member_that_has_left_is_shown() {
    let mut record = record();
    let held = record.clusters.get_mut(&APP).unwrap();
    let left = held.members.remove(&member(3)).unwrap();
    held.departed.insert(member(3), pgstead_types::record::Departed { member: left, revision: 1, released: Some(1) });
    let mut observed = observations(&record);
    let mut report = observed.members[&member(2)].clone();
    report.report.member = member(3);
    report.report.findings = vec![Finding::info("data_kept", "in /data").on_cluster(APP).on_member(member(3))];
    observed.members.insert(member(3), report);
    let view = cluster(&record, Some(&observed));
    assert!(view.findings.iter().any(|f| f.code == "data_kept" && f.member.as_deref() == Some("app-3")));
}

#[test]
fn an_open_election_shows_why_it_is_open_and_whose_promises_count() {
    let mut record = record();
    let change = ClusterChange::BeginEpoch { epoch: Epoch(2), reason: EpochReason::PostgresEnded, preferred: None };
    record.apply(&Command::ChangeCluster { at: WallTime(0), cluster: APP, revision: 3, change }).unwrap();
    let mut observed = observations(&record);
    observed.members.get_mut(&member(1)).unwrap().report.postgres = down();
    let missing =
        Finding::warning("promise_missing", "1 of 2 promises is here; app-3 has not answered").on_cluster(APP);
    observed.findings = vec![Finding::info("electing", "epoch 2").on_cluster(APP), missing];
    let view = cluster(&record, Some(&observed));
    assert_eq!((view.health, view.phase), (Health::NoLeader, Phase::Electing));
    assert_eq!(view.electing_because, Some(EpochReason::PostgresEnded));
    assert_eq!((view.leader, view.timeline), (None, None));
    assert_eq!(view.sync_set.members.len(), 2, "the last leader's set decides the election");
    assert_eq!(view.findings[0].code, "promise_missing", "the most severe comes first");
    assert_eq!(view.rpo.state, RpoState::WritesWait);
}

#[test]
fn the_old_leader_that_still_runs_is_a_stray_primary() {
    let mut record = record();
    let change = ClusterChange::BeginEpoch { epoch: Epoch(2), reason: EpochReason::NodeSilent, preferred: None };
    record.apply(&Command::ChangeCluster { at: WallTime(0), cluster: APP, revision: 3, change }).unwrap();
    let view = cluster(&record, Some(&observations(&record)));
    assert_eq!(view.members[0].observed.as_ref().unwrap().state, MemberState::StrayPrimary);
    assert_eq!(
        view.members[1].observed.as_ref().unwrap().state,
        MemberState::Waiting,
        "its upstream is of an old epoch"
    );
}

#[test]
fn a_step_in_flight_is_shown_with_its_progress() {
    let record = record();
    let mut observed = observations(&record);
    let seen = observed.members.get_mut(&member(3)).unwrap();
    seen.report.working = Some(Working {
        step: Step::Clone,
        elapsed_ms: 5000,
        attempt: 2,
        percent: Some(40),
        error: Some("cut off".into()),
    });
    let view = cluster(&record, Some(&observed));
    let working = view.members[2].observed.as_ref().unwrap().working.as_ref().unwrap();
    assert_eq!((working.step.as_str(), working.percent, working.attempt), ("clone", Some(40), 2));
}

#[test]
fn without_observations_the_record_answers_and_says_so() {
    let record = record();
    let view = cluster(&record, None);
    assert_eq!((view.health, view.observed, view.rpo.state), (Health::Unknown, false, RpoState::Unknown));
    assert_eq!(view.findings[0].code, "not_observed");
    let node = NodeView::new(&look(&record, None), &record.nodes[&node(2)]);
    assert_eq!(node.observed, None);
    let volume_of = &record.clusters[&APP];
    let volume = VolumeView::new(&look(&record, None), volume_of, &volume_of.members[&member(1)]);
    assert_eq!(volume.present, None);
}

#[test]
fn a_finding_about_a_node_is_shown_with_the_clusters_on_it() {
    let record = record();
    let mut observed = observations(&record);
    observed.findings = vec![Finding::error("gateway_down", "the gateway does not run").on_node(node(2))];
    let view = cluster(&record, Some(&observed));
    assert_eq!(view.findings[0].node.as_deref(), Some("n2"));
    let there = NodeView::new(&look(&record, Some(&observed)), &record.nodes[&node(2)]);
    assert_eq!(there.findings.len(), 1);
}

#[test]
fn views_survive_their_wire_form() {
    let record = record();
    let view = cluster(&record, Some(&observations(&record)));
    let text = serde_json::to_string(&view).unwrap();
    assert_eq!(serde_json::from_str::<ClusterView>(&text).unwrap(), view);
}

#[test]
fn a_single_member_says_that_there_is_one_copy() {
    let mut record = record();
    let held = record.clusters.get_mut(&APP).unwrap();
    held.configs[0].sync_set = Default::default();
    // Others are members and do not count: it is the leader alone until they do.
    assert_eq!(cluster(&record, Some(&observations(&record))).rpo.state, RpoState::Unbounded);
    let held = record.clusters.get_mut(&APP).unwrap();
    let leader = held.leadership.leader();
    held.members.retain(|id, _| Some(*id) == leader);
    assert_eq!(cluster(&record, Some(&observations(&record))).rpo.state, RpoState::SingleCopy);
}
