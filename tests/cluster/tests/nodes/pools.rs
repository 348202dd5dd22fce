//! Several pools on one node: members go to the class that their cluster asks for, and a pool that is gone keeps nobody from the others.

use crate::support::{Bed, LATER, LONG_LEASE, SOON, session};
use anyhow::{Context, ensure};
use pgstead_api::view::Health;
use pgstead_cluster_tests::Setup;
use pgstead_types::spec::ClusterSpec;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

fn pool(bed: &Bed, number: usize, name: &str) -> PathBuf {
    bed.node(number).folder.join(name)
}

/// Volumes in a folder that is a pool.
fn volumes(pool: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(pool).with_context(|| format!("{}", pool.display()))?;
    let all: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    Ok(all.into_iter().filter(|path| path.join("volume.json").exists()).collect())
}

/// Two nodes, of which the first has a second pool of class `hdd`.
async fn two_pools() -> anyhow::Result<Bed> {
    let mut bed = Bed::prepared(Setup { nodes: 2, config: LONG_LEASE.to_string(), ..Setup::default() }).await?;
    for number in 1..=2 {
        let path = pool(&bed, number, "main");
        let mut text = format!("\n[[pool]]\nname = \"main\"\ndriver = \"dir\"\npath = {path:?}\n");
        if number == 1 {
            let path = pool(&bed, number, "disks");
            text += &format!("[[pool]]\nname = \"disks\"\ndriver = \"dir\"\nclass = \"hdd\"\npath = {path:?}\n");
        }
        OpenOptions::new().append(true).open(bed.node(number).config())?.write_all(text.as_bytes())?;
    }
    bed.found().await?;
    bed.join(2).await?;
    bed.wait_reachable(2).await?;
    Ok(bed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_live_in_pools_of_their_class_and_a_pool_that_is_gone_keeps_nobody_from_the_others()
-> anyhow::Result<()> {
    let mut bed = two_pools().await?;
    let shown = async || {
        let shown = bed.pgstead(&["node", "show", "n1"]).await.and_then(|said| said.output());
        let shown = shown.map_err(|error| format!("{error:#}"))?;
        let both = shown.contains("main (dir): fine") && shown.contains("disks (dir, class hdd): fine");
        if both { Ok(()) } else { Err(shown) }
    };
    bed.wait_for("both pools are shown", SOON, shown).await?;

    // One node alone has the class, and says so where more are wanted.
    let hdd = ["--storage-class", "hdd"];
    let refused = bed.pgstead(&[&["cluster", "create", "app", "--members", "2"][..], &hdd].concat()).await?;
    ensure!(!refused.succeeded() && refused.stderr.contains("1 no pool of class"), "{refused:?}");
    let explained = bed.pgstead(&[&["placement", "explain", "--members", "2"][..], &hdd].concat()).await?.output()?;
    ensure!(explained.contains("it has no pool of class hdd"), "{explained}");
    let schedule = ["--members", "1", "--snapshots", "every 6h keep 7d"];
    bed.pgstead(&[&["cluster", "create", "app"][..], &schedule, &hdd].concat()).await?.output()?;
    bed.create_cluster(&ClusterSpec { members: 2, ..ClusterSpec::named("plain") }).await?;
    let (main, disks) = (pool(&bed, 1, "main"), pool(&bed, 1, "disks"));
    ensure!((volumes(&main)?.len(), volumes(&disks)?.len()) == (1, 1));
    let owner = session(&bed.read_write("app").await?).await?;
    owner.batch_execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id").await?;

    // What is due is taken where the volume is, and by nobody else.
    let client = bed.client()?;
    let taken = async || {
        let snapshots = client.snapshots().await.map_err(|error| error.to_string())?;
        if snapshots.len() == 1 { Ok(()) } else { Err(format!("{snapshots:?}")) }
    };
    bed.wait_for("a snapshot is taken by the schedule", SOON, taken).await?;
    let view = client.cluster("app").await?;
    ensure!(view.findings.iter().all(|found| found.code != "snapshot_not_taken"), "{:?}", view.findings);

    // A fork is where its source is, and both go from there.
    bed.pgstead(&["cluster", "fork", "app", "twin"]).await?.output()?;
    ensure!((volumes(&main)?.len(), volumes(&disks)?.len()) == (1, 2));
    let inside = session(&bed.read_write("twin").await?).await?;
    ensure!(inside.query_one("SELECT count(*) FROM kept", &[]).await?.get::<_, i64>(0) == 1000);
    drop(inside);
    bed.pgstead(&["cluster", "delete", "twin", "--yes"]).await?.output()?;
    let gone = async || match volumes(&disks).map(|left| left.len()) {
        Ok(1) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    bed.wait_for("the fork's volume is gone", SOON, gone).await?;

    // A pool that cannot be used when the daemon begins: the other one's members are taken care of, and nothing is made anew.
    let before = bed.client()?.cluster("plain").await?;
    bed.kill_daemon(1)?;
    let hidden = pool(&bed, 1, "hidden");
    fs::rename(&main, &hidden)?;
    fs::write(&main, "what is no folder")?;
    bed.start_daemon(1)?;
    let told = async || {
        let shown = bed.pgstead(&["node", "show", "n1"]).await.and_then(|said| said.output());
        let shown = shown.map_err(|error| format!("{error:#}"))?;
        let both = shown.contains("pool_unreadable") && shown.contains("main (dir): unwell");
        if both { Ok(()) } else { Err(shown) }
    };
    bed.wait_for("the pool that is gone is told of", SOON, told).await?;
    bed.health("app", Health::Healthy).await?;
    session(&bed.read_write("app").await?).await?.batch_execute("INSERT INTO kept VALUES (0)").await?;
    let leader = bed.leader_node("app").await?;
    bed.kill_postmaster("app", leader).await?;
    bed.wait_healthy("app", LATER).await?;
    let owner = session(&bed.read_write("app").await?).await?;
    ensure!(owner.query_one("SELECT count(*) FROM kept", &[]).await?.get::<_, i64>(0) == 1001);

    // It comes back by itself, and its member with what it had.
    fs::remove_file(&main)?;
    fs::rename(&hidden, &main)?;
    bed.wait_healthy("plain", LATER).await?;
    let after = bed.client()?.cluster("plain").await?;
    let lives = |view: &pgstead_api::view::ClusterView| {
        view.members.iter().map(|member| (member.name.clone(), member.incarnation)).collect::<Vec<_>>()
    };
    ensure!(lives(&before) == lives(&after), "{:?} and {:?}", lives(&before), lives(&after));
    ensure!((volumes(&main)?.len(), volumes(&disks)?.len()) == (1, 1));
    let view = client.cluster("app").await?;
    ensure!(view.findings.iter().all(|found| found.code != "snapshot_not_taken"), "{:?}", view.findings);
    Ok(())
}
