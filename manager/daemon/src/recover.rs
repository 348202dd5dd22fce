//! `pgstead node recover-quorum`: with the daemon stopped, on a survivor of the permanent loss of most voters. It says what
//! it is about to do, asks for the node's name, and only then rewrites the store of the record.

use crate::config::NodeConfig;
use crate::files::{self, FolderLock, Layout};
use crate::founding::NodeIdentity;
use anyhow::{Context, bail};
use clap::Args;
use pgstead_consensus::{RaftAddress, StoreAt, StoreSeen, check_lost, inspect, recover_quorum, start_anew};
use pgstead_types::record::{Command, Record};
use pgstead_types::{NodeId, RecoveryId, WallTime};
use std::collections::BTreeSet;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use uuid::Uuid;

#[derive(Args)]
pub struct RecoverArgs {
    /// The node's configuration
    #[arg(long, default_value = "/etc/pgstead/node.toml", env = "PGSTEAD_CONFIG")]
    config: PathBuf,
    /// A node that is lost for good, by name; give each of them
    #[arg(long, value_name = "NODE", conflicts_with = "join")]
    lost: Vec<String>,
    /// On each other survivor, afterwards: take part in the group that was recovered under this id
    #[arg(long, value_name = "RECOVERY")]
    join: Option<RecoveryId>,
    /// Show what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask to type the node's name
    #[arg(long)]
    yes: bool,
}

pub fn run(args: &RecoverArgs) -> anyhow::Result<()> {
    let config = NodeConfig::load(&args.config)?;
    let layout = Layout::new(&config.data_dir);
    let identity: NodeIdentity = files::read_json(&layout.identity())
        .with_context(|| format!("cannot read {}", layout.identity().display()))?
        .with_context(|| format!("{} is not a node's folder", config.data_dir.display()))?;
    let Some(_lock) = FolderLock::take(&layout.lock()).context("cannot lock the data folder")? else {
        bail!("the daemon runs on {}; stop it first, and keep it from being started again", config.data_dir.display());
    };
    let file = layout.record().join("record.redb");
    if !file.exists() {
        bail!("{} is not there, so this node has nothing to recover from; use another survivor", file.display());
    }
    let seen = inspect(StoreAt::File(file.clone()), identity.node, identity.deployment)?;
    match args.join {
        Some(recovery) => join(args, &config, &identity, &file, &seen, recovery),
        None => recover(args, &config, &identity, &file, &seen),
    }
}

fn recover(
    args: &RecoverArgs,
    config: &NodeConfig,
    identity: &NodeIdentity,
    file: &Path,
    seen: &StoreSeen,
) -> anyhow::Result<()> {
    let lost = nodes_named(&seen.record, &args.lost)?;
    check_lost(seen, identity.node, &lost)?;
    print!("{}", describe(config, seen, identity.node, &lost));
    if args.dry_run {
        println!("\nNothing was changed.");
        return Ok(());
    }
    confirm(args, &config.name)?;
    let recovery = RecoveryId::from_uuid(Uuid::now_v7());
    let audit =
        Command::RecoverQuorum { at: WallTime::now(), recovery, node: identity.node, by: who(), lost: lost.clone() };
    keep_copy(file, recovery)?;
    let address = RaftAddress { host: config.host.clone(), port: config.port };
    let at = StoreAt::File(file.to_path_buf());
    recover_quorum(at, identity.node, identity.deployment, address, &lost, recovery, audit)?;
    println!("\nThe record goes on from this node alone. Recovery {recovery}.");
    println!("Next, here:                   systemctl start pgstead");
    println!("  (or, in the foreground:     pgstead node run --config {})", args.config.display());
    let others = survivors(seen, identity.node, &lost);
    if !others.is_empty() {
        println!("Next, on each of {}:", others.join(", "));
        println!("                              pgstead node recover-quorum --join {recovery}");
    }
    println!("Then, for a cluster that waits for members that will not come back (pgstead cluster show CLUSTER):");
    println!("                              pgstead cluster failover CLUSTER --to MEMBER");
    Ok(())
}

fn join(
    args: &RecoverArgs,
    config: &NodeConfig,
    identity: &NodeIdentity,
    file: &Path,
    seen: &StoreSeen,
    recovery: RecoveryId,
) -> anyhow::Result<()> {
    if seen.recovery == Some(recovery) {
        bail!("this node is of recovery {recovery} already; start its daemon");
    }
    println!(
        "Node {} gives up its copy of the record, which ends at revision {}, and",
        config.name, seen.record.revision
    );
    println!("takes part in the group that was recovered as {recovery}. Its members' data and promises stay.");
    if args.dry_run {
        println!("\nNothing was changed.");
        return Ok(());
    }
    confirm(args, &config.name)?;
    // Made aside and put in place whole: cut short, this node is still what it was.
    let new = file.with_extension("new");
    let _ = std::fs::remove_file(&new);
    start_anew(StoreAt::File(new.clone()), identity.node, identity.deployment, recovery)?;
    keep_copy(file, recovery)?;
    std::fs::rename(&new, file).context("cannot put the new store in place")?;
    sync_folder(file)?;
    println!("\nNext: systemctl start pgstead");
    println!("      (or, in the foreground: pgstead node run --config {})", args.config.display());
    Ok(())
}

fn nodes_named(record: &Record, names: &[String]) -> anyhow::Result<BTreeSet<NodeId>> {
    if names.is_empty() {
        let known: Vec<&str> = record.nodes.values().map(|node| node.name.as_str()).collect();
        bail!("name every node that is lost for good with --lost; this deployment has {}", known.join(", "));
    }
    names
        .iter()
        .map(|name| record.node_named(name).map(|node| node.id).with_context(|| format!("there is no node {name:?}")))
        .collect()
}

fn name(record: &Record, id: NodeId) -> String {
    record.nodes.get(&id).map_or_else(|| id.to_string(), |node| node.name.clone())
}

fn survivors(seen: &StoreSeen, me: NodeId, lost: &BTreeSet<NodeId>) -> Vec<String> {
    let nodes = seen.record.nodes.values();
    nodes.filter(|node| node.id != me && !lost.contains(&node.id)).map(|node| node.name.clone()).collect()
}

/// What is about to be done, and how much could be missing.
fn describe(config: &NodeConfig, seen: &StoreSeen, me: NodeId, lost: &BTreeSet<NodeId>) -> String {
    let record = &seen.record;
    let names = |ids: &mut dyn Iterator<Item = NodeId>| ids.map(|id| name(record, id)).collect::<Vec<_>>().join(", ");
    let last = seen.last.map_or(0, |at| at.index);
    let committed = seen.committed.map_or(0, |at| at.index);
    let latest =
        record.events.back().map_or_else(|| "none".to_string(), |event| format!("{}, {}", event.at, event.message));
    let mut text = format!(
        "Node {} becomes the only voter of the record.\n\
         \n  its record ends at    revision {}, log entry {last}\
         \n  known as committed    log entry {committed}\
         \n  its last event        {latest}\
         \n  voters until now      {}\
         \n  lost for good         {}\
         \n  votes taken away      {}\n",
        config.name,
        record.revision,
        names(&mut seen.voters.iter().copied()),
        names(&mut lost.iter().copied()),
        names(&mut seen.voters.iter().copied().filter(|id| *id != me)),
    );
    text.push_str(
        "\nWhat the others recorded after that is not in it and is given up: nobody can say how much. Compare the revision\n\
         on every survivor (--dry-run) and recover on the one with the greatest. Members keep their promises, so no leader\n\
         of an older record is ever obeyed; data on the lost nodes is not taken for a cluster's again.\n",
    );
    for cluster in record.clusters.values() {
        let gone: Vec<&str> = cluster
            .members
            .values()
            .filter(|member| lost.contains(&member.node))
            .map(|member| member.name.as_str())
            .collect();
        let here = cluster.members.len() - gone.len();
        text.push_str(&format!(
            "  cluster {}: epoch {}, leader {}; {here} members are left, lost: {}\n",
            cluster.spec.name,
            cluster.epoch,
            cluster.leader().map_or("none", |leader| leader.name.as_str()),
            if gone.is_empty() { "-".to_string() } else { gone.join(", ") }
        ));
    }
    text
}

fn confirm(args: &RecoverArgs, name: &str) -> anyhow::Result<()> {
    if args.yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        bail!("this needs an answer and there is no terminal; give --yes if you are sure");
    }
    print!("\nA node that is named as lost and still runs must be stopped first.\nType {name} to go on: ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() != name {
        bail!("nothing was changed: what was typed is not {name}");
    }
    Ok(())
}

/// The store as it was stays beside it, for whoever has to look later.
fn keep_copy(file: &Path, recovery: RecoveryId) -> anyhow::Result<()> {
    let copy = file.with_extension(format!("before-{}", recovery.short()));
    std::fs::copy(file, &copy).with_context(|| format!("cannot keep a copy at {}", copy.display()))?;
    std::fs::File::open(&copy)?.sync_all()?;
    sync_folder(file)
}

fn sync_folder(file: &Path) -> anyhow::Result<()> {
    let folder = file.parent().context("the store is in no folder")?;
    std::fs::File::open(folder)?.sync_all().context("cannot sync the record's folder")
}

/// For the record: the user and host that typed this.
fn who() -> String {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "somebody".to_string());
    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    let text: String = format!("{user}@{}", host.trim()).chars().filter(|letter| !letter.is_control()).collect();
    text.chars().take(50).collect()
}
