//! Replication slots that people make: seen by everyone, within a budget, and named before they are lost and after.

use crate::support::{Bed, LATER, LONG_LEASE, SOON, session};
use anyhow::{Context, ensure};
use pgstead_api::view::SlotView;
use pgstead_cluster_tests::{Setup, Target};
use pgstead_types::slots::WalBudget;
use pgstead_types::spec::ClusterSpec;
use tokio_postgres::{Client, NoTls};

/// The superuser on a node, which only its host can be.
async fn superuser(bed: &Bed, node: usize) -> anyhow::Result<Client> {
    let port = bed.connection("app").await?.direct.port;
    let run = bed.node(node).data_dir().join("run");
    let has_socket = |path: &std::path::PathBuf| path.join(format!(".s.PGSQL.{port}")).exists();
    let socket = async || {
        let folders = std::fs::read_dir(&run).map_err(|error| error.to_string())?;
        let folder = folders.flatten().map(|entry| entry.path()).find(has_socket).ok_or("no socket is there")?;
        let mut options = tokio_postgres::Config::new();
        options.host_path(folder).port(port).user("postgres").dbname("app");
        // Nobody else is waited for: what is made here is no client's.
        options.options("-c synchronous_commit=local");
        options.connect(NoTls).await.map_err(|error| error.to_string())
    };
    let (client, connection) = bed.wait_for("the superuser is let in", SOON, socket).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn slot(bed: &Bed, name: &str) -> Result<SlotView, String> {
    let client = bed.client().map_err(|error| error.to_string())?;
    let view = client.cluster("app").await.map_err(|error| error.to_string())?;
    let slots = view.slots.ok_or("its slots were not looked at")?;
    let found = slots.slots.iter().find(|slot| slot.name == name);
    found.cloned().ok_or_else(|| format!("it has only {:?}", slots.slots))
}

/// Waits until every member goes by this budget.
async fn every_member_has(bed: &Bed, budget: &str) -> anyhow::Result<()> {
    let connection = bed.connection("app").await?;
    for node in bed.nodes() {
        let target = Target::under_name(&connection, &node.host, node.host.parse()?, connection.direct.port)?;
        let has = async || {
            let client = session(&target).await.map_err(|error| error.to_string())?;
            let row = client.query_one("SHOW max_slot_wal_keep_size", &[]).await.map_err(|error| error.to_string())?;
            let found: String = row.get(0);
            if found == budget { Ok(()) } else { Err(format!("{} has {found}", node.name)) }
        };
        bed.wait_for(&format!("{} keeps {budget} for a slot", node.name), SOON, has).await?;
    }
    Ok(())
}

/// Waits until every member, whether it leads or not, has a slot for each other one.
async fn everybody_has_slots(bed: &Bed) -> anyhow::Result<()> {
    for node in bed.nodes() {
        let admin = superuser(bed, node.number).await?;
        let count = "SELECT count(*) FROM pg_replication_slots WHERE slot_name ~ '^[0-9a-f]{32}_1$'";
        let has = async || {
            let found: i64 = admin.query_one(count, &[]).await.map_err(|error| error.to_string())?.get(0);
            if found == 2 { Ok(()) } else { Err(format!("{} has {found}", node.name)) }
        };
        bed.wait_for(&format!("{} has a slot for each other member", node.name), SOON, has).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_slot_is_named_before_it_is_lost_and_after_and_members_go_on() -> anyhow::Result<()> {
    let bed = Bed::start_with(Setup { nodes: 3, config: LONG_LEASE.to_string(), ..Setup::default() }).await?;
    let settings = [("wal_keep_size", "0"), ("min_wal_size", "32MB")];
    let settings = settings.map(|(name, value)| (name.to_string(), value.to_string())).into();
    let slot_wal_budget: WalBudget = "2GB".parse()?;
    bed.create_cluster(&ClusterSpec { settings, slot_wal_budget, ..ClusterSpec::named("app") }).await?;
    every_member_has(&bed, "2GB").await?;
    everybody_has_slots(&bed).await?;

    let leader = bed.leader_node("app").await?;
    let admin = superuser(&bed, leader).await?;
    admin.batch_execute("SELECT pg_create_physical_replication_slot('barman', true)").await?;
    let seen = bed.wait_for("the slot is shown", SOON, async || slot(&bed, "barman").await).await?;
    ensure!(seen.member.is_none() && !seen.active && !seen.lost, "{seen:?}");

    let said = bed.pgstead(&["cluster", "update", "app", "--slot-wal-budget", "256MB"]).await?;
    ensure!(said.output()?.contains("256MB"), "what is asked for now is said");
    every_member_has(&bed, "256MB").await?;

    // Twelve segments of sixteen, then more than all of them. Members keep up: it is not their slots that are to be lost.
    let keep_up = "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= pg_current_wal_flush_lsn()";
    let fill = async |segments: usize| -> anyhow::Result<()> {
        for _ in 0..segments {
            admin.batch_execute("CREATE TABLE more (id int)").await?;
            admin.batch_execute("DROP TABLE more").await?;
            admin.batch_execute("SELECT pg_switch_wal()").await?;
            let kept_up = async || {
                let row = admin.query_one(keep_up, &[]).await.map_err(|error| error.to_string())?;
                if row.get::<_, i64>(0) == 2 { Ok(()) } else { Err("not both of them".to_string()) }
            };
            bed.wait_for("the standbys have this segment", SOON, kept_up).await?;
        }
        Ok(admin.batch_execute("CHECKPOINT").await?)
    };
    fill(12).await?;
    let near = bed.finding("app", "slot_near_budget").await?;
    ensure!(near.contains("barman") && near.contains("256.0 MiB"), "{near}");
    let lost = async || {
        fill(3).await.map_err(|error| error.to_string())?;
        slot(&bed, "barman").await.and_then(|slot| if slot.lost { Ok(()) } else { Err(format!("{slot:?}")) })
    };
    bed.wait_for("the slot is lost", LATER, lost).await?;
    let named = bed.finding("app", "slot_lost").await?;
    ensure!(named.contains("barman"), "{named}");
    let shown = bed.pgstead(&["cluster", "show", "app"]).await?;
    ensure!(shown.output()?.contains("slot_lost"), "the loser is named");

    // Nobody was made anew for it, and what people have made is theirs to drop.
    let view = bed.wait_healthy("app", LATER).await?;
    ensure!(view.members.iter().all(|member| member.incarnation == 1), "{:?}", view.members);
    ensure!(slot(&bed, "barman").await.is_ok_and(|slot| slot.lost), "a user's slot was dropped");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_word_the_budget_is_automatic_and_what_cannot_be_one_is_refused() -> anyhow::Result<()> {
    let bed = Bed::with_cluster(1).await?;
    let client = bed.client()?;
    // What the room makes of it is for the unit tests: this machine's disk may have any.
    let measured = async || {
        let view = client.cluster("app").await.map_err(|error| error.to_string())?;
        let slots = view.slots.ok_or("its slots were not looked at")?;
        let budget = slots.budget_bytes.ok_or("it has no limit")?;
        if slots.automatic { Ok(budget) } else { Err(format!("{slots:?}")) }
    };
    let budget = bed.wait_for("the budget is shown", SOON, measured).await?;
    ensure!((512 << 20..=64 << 30).contains(&budget), "{budget}");
    let said = bed.pgstead(&["cluster", "update", "app", "--slot-wal-budget", "8"]).await?;
    ensure!(said.code == Some(2) && said.stderr.contains("8GB"), "{said:?}");
    let shown = bed.pgstead(&["cluster", "show", "app"]).await?;
    shown.output()?.contains("(automatic)").then_some(()).context("how it is set is shown")
}
