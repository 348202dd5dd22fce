//! `pgstead cluster`.

use super::{leaders, rollback};
use crate::args::{ClusterCommands, WaitArgs};
use crate::exit::{Exit, Failure};
use crate::screen::Screen;
use crate::{render, spec, wait};
use pgstead_api::client::Client;
use pgstead_api::view::{AcceptedView, ClusterView};
use pgstead_api::{ForkCluster, SpecChange};
use pgstead_types::size::VolumeSize;
use pgstead_types::spec::ClusterSpec;

pub async fn run(command: &ClusterCommands, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    match command {
        ClusterCommands::Create(args) => {
            let spec = spec::read(args)?;
            let accepted = client.create_cluster(&spec).await?;
            let done = format!(
                "cluster {0} serves; `pgstead cluster connection {0}` prints how to connect, `pgstead psql {0}` does",
                spec.name
            );
            finish(client, &accepted, args.wait, screen, &done).await
        }
        ClusterCommands::Fork(args) => {
            let fork = ForkCluster {
                name: args.name.clone(),
                members: args.members,
                member: args.member.clone(),
                snapshot: args.snapshot.map(|snapshot| snapshot.to_string()),
                keep_passwords: args.keep_passwords,
            };
            let accepted = client.fork_cluster(&args.source, &fork).await?;
            let done = format!(
                "cluster {0} serves, with the data of {1}; `pgstead cluster connection {0}` prints how to connect",
                args.name, args.source
            );
            finish(client, &accepted, args.wait, screen, &done).await
        }
        ClusterCommands::Rollback(args) => rollback::run(args, client, screen).await,
        ClusterCommands::List => screen.show(&client.clusters().await?, |all, width| render::clusters(all, width)),
        ClusterCommands::Show { name } => screen.show(&client.cluster(name).await?, render::cluster),
        ClusterCommands::Delete { name, yes, wait } => {
            let cluster = client.cluster(name).await?;
            if !yes {
                confirm(&cluster, screen)?;
            }
            // By id: a new cluster of the same name is not the one that was looked at.
            let accepted = client.delete_cluster(&cluster.id.to_string(), None).await?;
            finish(client, &accepted, *wait, screen, &format!("cluster {} is deleted", cluster.name)).await
        }
        ClusterCommands::Update(args) => {
            let cluster = client.cluster(&args.name).await?;
            let change = SpecChange {
                members: args.members,
                sync_replicas: args.sync_replicas,
                durability: args.durability,
                slot_wal_budget: args.slot_wal_budget,
                cascade: args.cascade,
                logical_replication: args.logical_replication,
                volume_size: args.volume_size,
                volume_limit: args.volume_limit,
                snapshots: args.snapshots,
                replace_after: args.replace_after,
                regions: (args.any_region || !args.regions.is_empty()).then(|| args.regions.iter().cloned().collect()),
                zones_min: args.zones_min,
                storage_class: args.storage_class.clone(),
                placement_weights: args.placement_weights,
                io_limits: args.io_limits.is_said().then(|| args.io_limits.over(cluster.spec.io_limits)),
            };
            let spec = change.apply_to(cluster.spec.clone());
            spec.check().map_err(|error| Failure::usage(error.to_string()))?;
            let says = |spec: &ClusterSpec| {
                let budget = match args.slot_wal_budget {
                    Some(_) => format!(", slot_wal_budget {}", spec.slot_wal_budget),
                    None => String::new(),
                };
                let cascade = match args.cascade {
                    Some(_) => format!(", cascade {}", spec.cascade),
                    None => String::new(),
                };
                let logical = match args.logical_replication {
                    Some(_) => format!(", logical_replication {}", spec.logical_replication),
                    None => String::new(),
                };
                let size = |name: &str, size: Option<VolumeSize>| {
                    size.map_or_else(String::new, |size| format!(", {name} {size}"))
                };
                let sizes = [
                    size("volume_size", spec.volume_size.filter(|_| args.volume_size.is_some())),
                    size("volume_limit", spec.volume_limit.filter(|_| args.volume_limit.is_some())),
                    args.snapshots.map_or_else(String::new, |_| format!(", snapshots {}", spec.snapshots)),
                    args.replace_after.map_or_else(String::new, |_| format!(", replace_after {}", spec.replace_after)),
                    change.regions.as_ref().map_or_else(String::new, |_| format!(", regions {}", regions(spec))),
                    args.zones_min.map_or_else(String::new, |_| format!(", zones_min {}", spec.zones_min.unwrap_or(1))),
                    match (&args.storage_class, &spec.storage_class) {
                        (None, _) => String::new(),
                        (Some(_), class) => {
                            format!(", storage_class {}", class.as_deref().unwrap_or("of the first pool"))
                        }
                    },
                    args.placement_weights
                        .map_or_else(String::new, |_| format!(", placement_weights {}", spec.placement_weights)),
                    change.io_limits.map_or_else(String::new, |_| format!(", io_limits: {}", spec.io_limits)),
                ]
                .concat();
                let (members, needed, durability) = (spec.members, spec.needed(), spec.durability);
                format!(
                    "members {members}, sync_replicas {needed}, durability {durability}{budget}{cascade}{logical}{sizes}"
                )
            };
            writeln!(screen.err, "{}: {} -> {}", cluster.name, says(&cluster.spec), says(&spec))?;
            // Limits that are not named are sent as they were seen.
            let revision = change.io_limits.map(|_| cluster.revision);
            let accepted = client.update_cluster(&cluster.id.to_string(), &change, revision).await?;
            finish(client, &accepted, args.wait, screen, &format!("{} is as asked: {}", cluster.name, says(&spec)))
                .await
        }
        ClusterCommands::Restart { name, wait } => {
            let accepted = client.restart_cluster(name, None).await?;
            finish(client, &accepted, *wait, screen, &format!("every member of {name} was restarted")).await
        }
        ClusterCommands::Switchover(args) => leaders::switchover(args, client, screen).await,
        ClusterCommands::Failover(args) => leaders::failover(args, client, screen).await,
        ClusterCommands::Connection { name, ca } => {
            let connection = client.connection(name).await?;
            if *ca {
                screen.text(&connection.ca_pem)
            } else {
                screen.show(&connection, |connection, _| render::connection(name, connection))
            }
        }
    }
}

fn regions(spec: &ClusterSpec) -> String {
    let named: Vec<&str> = spec.regions.iter().map(String::as_str).collect();
    if named.is_empty() { "any".to_string() } else { named.join(" ") }
}

/// Waits if that was asked, and says how it ended.
pub(super) async fn finish(
    client: &Client,
    accepted: &AcceptedView,
    asked: WaitArgs,
    screen: &mut Screen<'_>,
    done: &str,
) -> Result<(), Failure> {
    if asked.no_wait {
        return screen.show(accepted, |accepted, _| {
            format!("begun; follow it with `pgstead operation wait {}`", accepted.operation)
        });
    }
    let ended = wait::for_end(client, accepted.operation, asked.timeout, screen).await?;
    screen.show(&ended, |_, _| done.to_string())
}

/// Lets a person type the name, so that the wrong terminal or a slip deletes nothing.
fn confirm(cluster: &ClusterView, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let count = cluster.members.len();
    let text = format!("This deletes cluster {} with its {count} members and all their data, for ever.", cluster.name);
    type_the_name(&cluster.name, &text, "deleting", screen)
}

/// Says what is about to be done, and goes on only if the name is typed.
pub(super) fn type_the_name(name: &str, text: &str, doing: &str, screen: &mut Screen<'_>) -> Result<(), Failure> {
    if !screen.asks {
        return Err(Failure::usage(format!(
            "{doing} {name} needs an answer and there is no terminal; give --yes if you are sure"
        )));
    }
    write!(screen.err, "{text}\nType {name} to go on: ")?;
    screen.err.flush()?;
    let mut answer = String::new();
    screen.input.read_line(&mut answer)?;
    if answer.trim() == name {
        return Ok(());
    }
    Err(Failure::new(Exit::Refused, format!("nothing was done: what was typed is not {name}")))
}
