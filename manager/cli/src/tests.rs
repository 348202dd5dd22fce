//! Commands as typed, against a fake deployment over real TLS.

use crate::args::{Commands, GlobalArgs, NodeCommands, Output};
use crate::exit::{Exit, Failure};
use crate::screen::Screen;
use crate::{EXIT_CODES, commands};
use clap::{CommandFactory, Parser, Subcommand};
use pgstead_api::Backend;
use pgstead_api::client::{Client, Profile};
use pgstead_api::fake::{APP, Ca, Fake, PASSWORD, TOKEN, ca, serve};
use pgstead_types::record::{ClusterChange, Command, EpochReason};
use pgstead_types::{Epoch, Finding, OperationId, Secret, WallTime};
use std::sync::Arc;

/// As the binary composes it.
#[derive(Parser, Debug)]
#[command(name = "pgstead", after_help = EXIT_CODES)]
struct Line {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: All,
}
#[derive(Subcommand, Debug)]
enum All {
    #[command(flatten)]
    Remote(Commands),
    /// Nodes
    #[command(subcommand)]
    Node(NodeAll),
}
#[derive(Subcommand, Debug)]
enum NodeAll {
    /// Stands for what the daemon adds
    Run,
    #[command(flatten)]
    Remote(NodeCommands),
}

struct Deployment {
    fake: Arc<Fake>,
    ca: Ca,
    server: String,
}

struct Said {
    result: Result<(), Failure>,
    out: String,
    err: String,
}

impl Said {
    fn exit(&self) -> Exit {
        self.result.as_ref().unwrap_err().exit
    }
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("not JSON: {}{:?}", self.out, self.result))
    }
}

async fn deployment() -> Deployment {
    let (fake, ca) = (Fake::new(1), ca());
    let server = serve(&fake, &ca).await;
    Deployment { fake, ca, server }
}

impl Deployment {
    async fn type_in(&self, line: &str, answer: Option<&str>) -> Said {
        let parsed = Line::try_parse_from(std::iter::once("pgstead").chain(line.split_whitespace())).unwrap();
        let profile =
            Profile { servers: vec![self.server.clone()], ca_pem: self.ca.pem.clone(), token: Secret::new(TOKEN) };
        let client = Client::new(&profile).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut input = answer.unwrap_or("").as_bytes();
        let mut screen = Screen {
            output: parsed.global.output,
            out: &mut out,
            err: &mut err,
            input: &mut input,
            asks: answer.is_some(),
            draws: false,
            width: 100,
        };
        let result = match &parsed.command {
            All::Remote(command) => commands::run(command, &client, &mut screen).await,
            All::Node(NodeAll::Remote(command)) => commands::node::run(command, &client, &mut screen).await,
            All::Node(NodeAll::Run) => panic!("the daemon's"),
        };
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Said { result, out: text(out), err: text(err) }
    }
    async fn run(&self, line: &str) -> Said {
        self.type_in(line, None).await
    }
}

#[test]
fn the_arguments_hold_together_and_every_command_has_a_help() {
    Line::command().debug_assert();
    fn check(command: &clap::Command) {
        for sub in command.get_subcommands() {
            assert!(sub.get_about().is_some(), "{} has no help", sub.get_name());
            check(sub);
        }
    }
    check(&Line::command());
    let help = Line::command().render_help().to_string();
    assert!(help.contains("waited in vain") && help.contains("PGSTEAD_PROFILE"), "{help}");
}

#[test]
fn wrong_arguments_are_refused_with_what_was_expected() {
    let refused = |line: &str| {
        Line::try_parse_from(std::iter::once("pgstead").chain(line.split_whitespace())).unwrap_err().to_string()
    };
    assert!(refused("cluster create app --set max_connections").contains("NAME=VALUE"));
    assert!(refused("token create --ttl 5").contains("with a unit"));
    assert!(refused("operation show x").contains("expected a UUID"));
    assert!(refused("cluster restart app --no-wait --timeout 5s").contains("cannot be used with"));
}

#[tokio::test]
async fn a_deletion_needs_the_name_typed_or_yes() {
    let all = deployment().await;
    let silent = all.run("cluster delete app").await;
    assert_eq!(silent.exit(), Exit::Usage);
    let wrong = all.type_in("cluster delete app --no-wait", Some("ap\n")).await;
    assert_eq!(wrong.exit(), Exit::Refused);
    assert!(wrong.err.contains("3 members and all their data"), "{}", wrong.err);
    assert_eq!(all.fake.record().clusters[&APP].lifecycle, pgstead_types::record::Lifecycle::Active);
    let right = all.type_in("cluster delete app --no-wait", Some("app\n")).await;
    right.result.unwrap();
    assert_ne!(all.fake.record().clusters[&APP].lifecycle, pgstead_types::record::Lifecycle::Active);
    let again = all.run("cluster delete app --yes --no-wait").await;
    assert_eq!(again.exit(), Exit::Refused, "{:?}", again.result);
}

#[tokio::test]
async fn creating_waits_for_the_end_and_says_how_to_connect() {
    let all = deployment().await;
    let fake = all.fake.clone();
    let ended = tokio::spawn(async move {
        let mut revision = fake.watch_revision();
        let is_new = |fake: &Fake| fake.record().cluster_named("other").and_then(|cluster| cluster.creating);
        let operation = loop {
            if let Some(operation) = is_new(&fake) {
                break operation;
            }
            revision.changed().await.unwrap();
        };
        fake.apply(&Command::EndOperation { at: WallTime(0), operation, failure: None }).unwrap();
    });
    let said = all.run("cluster create other --members 1 --set work_mem=8MB").await;
    ended.await.unwrap();
    said.result.unwrap();
    assert!(said.out.contains("pgstead cluster connection other"), "{}", said.out);
    let record = all.fake.record();
    assert_eq!(record.cluster_named("other").unwrap().spec.settings["work_mem"], "8MB");
}

#[tokio::test]
async fn work_that_fails_or_outlasts_the_wait_ends_with_its_own_code() {
    let all = deployment().await;
    let said = all.run("cluster restart app --timeout 50ms").await;
    assert_eq!(said.exit(), Exit::InVain);
    let message = said.result.unwrap_err().message;
    assert!(message.contains("goes on") && message.contains("pgstead operation wait"), "{message}");
    assert!(said.err.contains("0 of 3 members restarted"), "progress is told: {}", said.err);
    all.fake.change(ClusterChange::EndRestart { failure: Some("app-2 did not come back".into()) }).unwrap();
    let id = all.fake.record().operations.keys().last().copied().unwrap();
    let failed = all.run(&format!("operation wait {id}")).await;
    assert_eq!(failed.exit(), Exit::Failed);
    assert!(failed.result.unwrap_err().message.contains("app-2 did not come back"));
}

#[tokio::test]
async fn every_kind_of_no_has_its_exit_code() {
    let all = deployment().await;
    assert_eq!(all.run("cluster show nope").await.exit(), Exit::NotFound);
    assert_eq!(all.run(&format!("operation show {}", OperationId::from_u128(7))).await.exit(), Exit::NotFound);
    assert_eq!(all.run("cluster create app --no-wait").await.exit(), Exit::Refused);
    assert_eq!(all.run("cluster create App").await.exit(), Exit::Usage);
    assert_eq!(all.run("cluster create b --set fsync=off").await.exit(), Exit::Usage);
    assert_eq!(all.run("node remove n2").await.exit(), Exit::Refused);
    all.fake.state().controller = None;
    assert_eq!(all.run("cluster restart app").await.exit(), Exit::Unreachable);
    let nobody = Deployment { server: "https://127.0.0.1:1".into(), fake: all.fake.clone(), ca: ca() };
    assert_eq!(nobody.run("status").await.exit(), Exit::Unreachable);
}

#[tokio::test]
async fn lists_and_single_things_come_as_tables_or_as_the_apis_json() {
    let all = deployment().await;
    for (line, expected) in [
        ("status", "3 of 3 nodes reachable, controller on n1"),
        ("cluster list", "app-1 leads and every standby streams"),
        ("cluster show app", "every acknowledged commit is on 2 disks"),
        ("cluster show app", "2 of members, 1 of users; each may keep 4.0 GiB of log (automatic)"),
        ("cluster show app", "logical (pgoutput)"),
        ("member list", "4.0 KiB"),
        ("member list --cluster app", "streaming"),
        ("volume list", "present"),
        ("snapshot list", "no snapshots"),
        ("snapshot create app --keep 12h", "app-1"),
        ("snapshot list --cluster app", "app-1"),
        ("placement explain app", "one more member of app"),
        ("placement explain --members 2", "chosen first, and leads first"),
        ("operation list", "create cluster"),
        ("node list", "n3.example:7480"),
        ("node show n2", "region local, zone z2"),
        ("node show n1", "nvme (lvm, class nvme): fine, 300.0 GiB of 900.0 GiB used, 600.0 GiB free, metadata 13"),
        ("node show n1", "disks (dir, class hdd): fine"),
        ("events --cluster app", "leader_confirmed"),
        ("token create --ttl 30m", "join-me"),
        ("cluster connection app", "target_session_attrs=read-write"),
    ] {
        let said = all.run(line).await;
        assert!(said.out.contains(expected), "{line}: {}{:?}", said.out, said.result);
        let json = all.run(&format!("{line} --output json")).await.json();
        assert!(json.is_object() || json.is_array(), "{line}");
    }
    let shown = all.run("cluster show app --output json").await.json();
    assert_eq!((&shown["health"], &shown["rpo"]["state"]), (&"healthy".into(), &"zero".into()));
    assert_eq!(all.run("cluster connection app --ca").await.out, "cluster-ca\n");
    assert!(!all.run("cluster show app --output json").await.out.contains(PASSWORD));
    let begun = all.run("cluster switchover app --to app-2 --no-wait --output json").await.json();
    assert!(begun["operation"].is_string());
}

#[tokio::test]
async fn a_volume_that_no_member_has_is_removed_by_typing_its_nodes_name() {
    let all = deployment().await;
    let orphan = pgstead_api::fake::orphan();
    all.fake.state().observed.as_mut().unwrap().storage.values_mut().next().unwrap().orphans.push(orphan.clone());
    let listed = all.run("volume list").await;
    assert!(listed.out.contains("orphaned"), "{}", listed.out);
    let line = format!("volume remove {}", orphan.id);
    assert_eq!(all.run(&line).await.exit(), Exit::Usage, "nobody can be asked");
    all.run(&format!("{line} --yes")).await.result.unwrap();
    assert_eq!(all.run(&line).await.exit(), Exit::Refused);
}

#[tokio::test]
async fn an_election_shows_its_reason() {
    let all = deployment().await;
    let reason = EpochReason::NodeLost;
    all.fake.change(ClusterChange::BeginEpoch { epoch: Epoch(2), reason, preferred: None }).unwrap();
    let said = all.run("cluster show app").await;
    assert!(said.out.contains("none: election open because of node lost, epoch 2"), "{}", said.out);
}

#[tokio::test]
async fn a_dry_run_names_everything_that_blocks_and_changes_nothing() {
    let all = deployment().await;
    let clear = all.run("cluster switchover app --dry-run").await;
    clear.result.as_ref().unwrap();
    insta::assert_snapshot!("dry_run_clear", clear.out);
    all.fake.state().in_the_way = vec![
        Finding::error("target_away", "the node of app-2 does not answer"),
        Finding::warning("long_transactions", "2 transactions would be ended"),
    ];
    let blocked = all.run("cluster switchover app --to app-2 --dry-run").await;
    assert_eq!(blocked.exit(), Exit::Refused);
    insta::assert_snapshot!("dry_run_blocked", blocked.out);
    all.fake.state().in_the_way.remove(0);
    assert_eq!(all.run("cluster switchover app --dry-run").await.exit(), Exit::Refused);
    all.run("cluster switchover app --dry-run --overrule").await.result.unwrap();
    assert!(all.fake.record().clusters[&APP].switchover.is_none());
}

#[tokio::test]
async fn a_switchover_is_scheduled_shown_and_taken_back() {
    let all = deployment().await;
    let at = WallTime::now().plus(std::time::Duration::from_secs(3600));
    let said = all.run(&format!("cluster switchover app --to app-2 --at {at}")).await;
    assert!(said.out.contains("scheduled: it begins between"), "{}{:?}", said.out, said.result);
    let shown = all.run("cluster show app").await.out;
    assert!(shown.contains("switchover to app-2 between"), "{shown}");
    assert_eq!(all.run(&format!("cluster switchover app --at {at}")).await.exit(), Exit::Refused);
    all.run("cluster switchover app --cancel").await.result.unwrap();
    assert_eq!(all.run("cluster switchover app --cancel").await.exit(), Exit::Refused);
    assert_eq!(all.run("cluster switchover app --at yesterday").await.exit(), Exit::Usage);
    assert_eq!(all.run("cluster switchover app --in-window").await.exit(), Exit::Refused, "it has no window");
    assert_eq!(all.run("cluster switchover app --undo").await.exit(), Exit::Refused, "nothing was done");
}

#[tokio::test]
async fn a_forced_failover_shows_the_gap_first_and_needs_the_name() {
    let all = deployment().await;
    let shown = all.run("cluster failover app --to app-2").await;
    assert_eq!(shown.exit(), Exit::Refused);
    insta::assert_snapshot!("failover_gap", shown.out);
    let silent = all.run("cluster failover app --to app-2 --accept-data-loss").await;
    assert_eq!(silent.exit(), Exit::Usage);
    let wrong = all.type_in("cluster failover app --to app-2 --accept-data-loss", Some("yes\n")).await;
    assert_eq!(wrong.exit(), Exit::Refused);
    assert!(wrong.err.contains("4.0 KiB of log"), "{}", wrong.err);
    assert_eq!(all.fake.record().clusters[&APP].forced, []);
    all.fake.state().in_the_way = vec![Finding::error("unforced_possible", "an election is possible")];
    let refused = all.run("cluster failover app --to app-2 --accept-data-loss --yes").await;
    assert!(refused.result.unwrap_err().message.contains("an election is possible"));
    all.fake.state().in_the_way.clear();
    let right = all.type_in("cluster failover app --to app-2 --accept-data-loss --no-wait", Some("app\n")).await;
    right.result.unwrap();
    let forced = all.fake.record().clusters[&APP].forced.clone();
    assert!(forced.len() == 1 && forced[0].by.contains('@'), "{forced:?}");
    let history = all.run("cluster show app").await.out;
    assert!(history.contains("FORCED") && history.contains("nothing: enough promised after all"), "{history}");
}

#[tokio::test]
async fn what_is_asked_of_nodes_is_shown_changed_and_taken_back() {
    let all = deployment().await;
    assert!(!all.run("cluster show app").await.out.contains("placement:"));
    let line = "cluster update app --region eu --region us --zones-min 2 --placement-weights latency=50 --no-wait";
    let said = all.run(line).await;
    assert!(said.err.contains("regions any, zones_min 1"), "{}{:?}", said.err, said.result);
    let shown = all.run("cluster show app").await.out;
    assert!(shown.contains("in region eu or us only; in 2 zones at least; weights"), "{shown}");
    let spec = all.run("cluster show app --output json").await.json()["spec"].clone();
    assert_eq!(spec["placement_weights"], "latency=50,free=30,health=20,idle=40");
    all.run("cluster update app --any-region --no-wait").await.result.unwrap();
    assert!(all.fake.record().clusters[&APP].spec.regions.is_empty());
    assert_eq!(all.run("cluster update app --zones-min 4").await.exit(), Exit::Usage);
    assert_eq!(all.run("placement explain --members 8").await.exit(), Exit::Usage);
    assert_eq!(all.run("placement explain nope").await.exit(), Exit::NotFound);
}

#[tokio::test]
async fn limits_are_changed_one_by_one_and_taken_away() {
    let all = deployment().await;
    assert!(!all.run("cluster show app").await.out.contains("io limits:"));
    let said = all.run("cluster update app --io-read-iops 4000 --io-write-rate 200MB --no-wait").await;
    assert!(said.err.contains("io_limits: none -> "), "{}{:?}", said.err, said.result);
    all.run("cluster update app --io-read-iops none --io-read-rate 1GB --no-wait").await.result.unwrap();
    let shown = all.run("cluster show app").await.out;
    assert!(shown.contains("read_rate = 1GB, write_rate = 200MB, for each member"), "{shown}");
    all.run("cluster update app --io-read-rate none --io-write-rate none --no-wait").await.result.unwrap();
    assert!(all.fake.record().clusters[&APP].spec.io_limits.is_none());
}

#[tokio::test]
async fn of_many_nodes_the_best_are_shown_and_the_others_counted() {
    let all = deployment().await;
    let said = all.run("placement explain --members 3 --top 1").await;
    assert!(said.out.contains("and 2 more: 1 may have one, 1 not reachable"), "{}", said.out);
    assert!(said.out.contains("refused: 3 members need 3 nodes"), "{}", said.out);
    let json = all.run("placement explain --members 3 --top 1 --output json").await.json();
    assert_eq!((json["nodes"].as_array().unwrap().len(), &json["against"]["not_reachable"]), (3, &1.into()));
}

#[test]
fn the_form_of_answers_is_table_unless_asked() {
    assert_eq!(GlobalArgs::default().output, Output::Table);
}
