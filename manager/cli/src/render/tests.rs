//! Tables as people see them; `make bless` rewrites the golden files.

use super::*;
use pgstead_api::backend::PlacementAsked;
use pgstead_api::fake::{APP, member, node, observations, record};
use pgstead_api::view::{
    ClusterSummary, ClusterView, ConnectionView, EventsView, MemberView, NodeView, OperationView, PlacementView,
    VolumeView, World,
};
use pgstead_api::{Backend, Observations};
use pgstead_types::record::{ClusterChange, Command, EpochReason, Record};
use pgstead_types::report::{DataSeen, PostgresSeen, Working};
use pgstead_types::spec::ClusterSpec;
use pgstead_types::{Epoch, Finding, Step, WallTime};

const WIDTH: u16 = 100;

fn world<'a>(record: &'a Record, observed: Option<&'a Observations>) -> World<'a> {
    World { record, observed, answering: node(1), controller: Some(node(1)) }
}
fn show(record: &Record, observed: Option<&Observations>) -> String {
    cluster(&ClusterView::new(&world(record, observed), &record.clusters[&APP]), WIDTH)
}
/// Member 3 copies anew, its node is silent, and somebody says why.
fn troubled(record: &Record) -> Observations {
    let mut observed = observations(record);
    let third = observed.members.get_mut(&member(3)).unwrap();
    third.report.postgres = PostgresSeen::Down { clean: None };
    third.report.data = DataSeen::Partial;
    third.report.working =
        Some(Working { step: Step::Clone, elapsed_ms: 64_000, attempt: 2, percent: Some(40), error: None });
    let leader = &mut observed.members.get_mut(&member(1)).unwrap().report.postgres;
    if let PostgresSeen::Primary(primary) = leader {
        primary.senders.retain(|sender| sender.incarnation.unwrap().member != member(3));
    }
    observed.nodes.get_mut(&node(3)).unwrap().reachable = false;
    observed.nodes.get_mut(&node(3)).unwrap().silent_ms = Some(190_000);
    observed.findings = vec![
        Finding::info("sync_set_short", "1 of 2 standbys counts in the sync set until app-3 has caught up")
            .on_cluster(APP),
        Finding::warning(
            "member_rebuilding",
            "its history left the cluster's at 0/1500000, so it is copied from the leader; nothing has to be done",
        )
        .on_member(member(3)),
    ];
    observed
}

macro_rules! golden {
    ($text:expr) => {{
        let text = $text;
        for line in text.lines() {
            // Connection strings, ids and event lines are to be copied or searched whole.
            let whole = line.contains("://") || line.contains('[');
            assert!(whole || line.chars().count() <= usize::from(WIDTH), "too wide: {line}");
        }
        insta::with_settings!({ snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(text)
        });
    }};
}

#[test]
fn a_healthy_cluster() {
    let record = record();
    golden!(show(&record, Some(&observations(&record))));
}

#[test]
fn a_cluster_with_a_member_being_copied() {
    let record = record();
    golden!(show(&record, Some(&troubled(&record))));
}

#[test]
fn a_cluster_in_an_election() {
    let mut record = record();
    let change = ClusterChange::BeginEpoch { epoch: Epoch(2), reason: EpochReason::PostgresEnded, preferred: None };
    record.apply(&Command::ChangeCluster { at: WallTime(0), cluster: APP, revision: 3, change }).unwrap();
    let mut observed = observations(&record);
    observed.members.get_mut(&member(1)).unwrap().report.postgres = PostgresSeen::Down { clean: None };
    observed.members.get_mut(&member(1)).unwrap().age_ms = 9_000;
    golden!(show(&record, Some(&observed)));
}

#[test]
fn a_cluster_without_observations() {
    let record = record();
    golden!(show(&record, None));
}

#[test]
fn the_overview() {
    let record = record();
    let observed = troubled(&record);
    let world = world(&record, Some(&observed));
    let overview = Status {
        nodes: record.nodes.values().map(|one| NodeView::new(&world, one)).collect(),
        clusters: record.clusters.values().map(|one| ClusterSummary::new(&world, one)).collect(),
    };
    golden!(status(&overview, WIDTH));
}

#[test]
fn one_node() {
    let record = record();
    let observed = troubled(&record);
    golden!(node_text(&record, &observed));
}
fn node_text(record: &Record, observed: &Observations) -> String {
    super::node(&NodeView::new(&world(record, Some(observed)), &record.nodes[&pgstead_api::fake::node(3)]), WIDTH)
}

#[test]
fn members_and_volumes() {
    let record = record();
    let observed = troubled(&record);
    let world = world(&record, Some(&observed));
    let held = &record.clusters[&APP];
    let all_members: Vec<_> = held.members.values().map(|one| MemberView::new(&world, held, one)).collect();
    let all_volumes: Vec<_> = held.members.values().map(|one| VolumeView::new(&world, held, one)).collect();
    golden!(format!("{}\n\n{}", members(&all_members, WIDTH), volumes(&all_volumes, WIDTH)));
}

#[test]
fn operations_and_events() {
    let record = record();
    let all: Vec<_> = record.operations.values().map(|one| OperationView::new(&record, one)).collect();
    let log = EventsView::new(&record, None, 100, None);
    golden!(format!("{}\n\n{}\n\n{}", operations(&all, WIDTH), operation(&all[0], WIDTH), events(&log.events, WIDTH)));
}

#[test]
fn connection_strings() {
    let record = record();
    golden!(connection("app", &ConnectionView::new(&record, &record.clusters[&APP])));
}

#[tokio::test]
async fn where_members_would_go() {
    let fake = pgstead_api::fake::Fake::new(1);
    let (record, spec) = (fake.record(), ClusterSpec { zones_min: Some(2), members: 2, ..ClusterSpec::named("new") });
    let new = fake.explain_placement(PlacementAsked::New(Box::new(spec.clone()))).await.unwrap();
    let new = placement(&PlacementView::new(&record, None, &spec, &new), 2, WIDTH);
    let app = &record.clusters[&APP];
    let more = fake.explain_placement(PlacementAsked::More(APP)).await.unwrap();
    let more = placement(&PlacementView::new(&record, Some(app), &app.spec, &more), 20, WIDTH);
    golden!(format!("{new}\n\n\n{more}"));
}

#[test]
fn empty_lists_say_so() {
    assert!(clusters(&[], WIDTH).contains("cluster create"));
    assert_eq!((members(&[], WIDTH), volumes(&[], WIDTH)), ("no members".into(), "no volumes".into()));
    assert_eq!((operations(&[], WIDTH), events(&[], WIDTH)), ("no operations".into(), "no events".into()));
}
