//! `pgstead volume list` and `remove`.

use super::cluster::type_the_name;
use crate::args::VolumeCommands;
use crate::exit::{Exit, Failure};
use crate::render;
use crate::screen::Screen;
use pgstead_api::client::Client;
use pgstead_api::view::VolumeState;
use serde_json::json;

pub async fn run(command: &VolumeCommands, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    match command {
        VolumeCommands::List => screen.show(&client.volumes().await?, |volumes, width| render::volumes(volumes, width)),
        VolumeCommands::Remove { id, yes } => {
            let all = client.volumes().await?;
            let Some(volume) = all.iter().find(|volume| volume.id == *id) else {
                let text = format!("there is no volume {id}; `pgstead volume list` shows all that there are");
                return Err(Failure::new(Exit::Refused, text));
            };
            if volume.state == VolumeState::Orphaned && !yes {
                let of = |name: Option<&String>| name.map_or("?", String::as_str).to_string();
                let member = of(volume.member.as_ref().map(|member| &member.name));
                let cluster = of(volume.cluster.as_ref().map(|cluster| &cluster.name));
                let text = format!(
                    "This deletes volume {id} on {} with all its data, for ever. By its tags it was of member {member} of \
                     cluster {cluster}; no member of this deployment has it.",
                    volume.node.name
                );
                type_the_name(&volume.node.name, &text, "deleting a volume of", screen)?;
            }
            client.remove_volume(*id).await?;
            screen.show(&json!({ "removed": id }), |_, _| {
                format!("volume {id} is removed; its data on {} is deleted by and by", volume.node.name)
            })
        }
    }
}
