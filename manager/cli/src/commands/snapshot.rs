//! `pgstead snapshot create`, `list` and `remove`.

use crate::args::SnapshotCommands;
use crate::exit::Failure;
use crate::render;
use crate::screen::Screen;
use pgstead_api::TakeSnapshot;
use pgstead_api::client::Client;
use serde_json::json;

pub async fn run(command: &SnapshotCommands, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    match command {
        SnapshotCommands::Create { name, member, keep } => {
            let keep = keep.map(|keep| format!("{}s", keep.as_secs()));
            let taken = client.take_snapshot(name, &TakeSnapshot { member: member.clone(), keep }).await?;
            screen.show(&taken, |taken, width| render::snapshots(std::slice::from_ref(taken), width))
        }
        SnapshotCommands::List { cluster } => {
            let mut all = client.snapshots().await?;
            if let Some(asked) = cluster {
                all.retain(|one| one.cluster.name == *asked || one.cluster.id.to_string() == *asked);
            }
            screen.show(&all, |all, width| render::snapshots(all, width))
        }
        SnapshotCommands::Remove { id } => {
            client.remove_snapshot(*id).await?;
            screen.show(&json!({ "removed": id }), |_, _| format!("snapshot {id} is removed"))
        }
    }
}
