//! `pgstead member list` and `move`.

use super::cluster::finish;
use crate::args::{MemberCommands, WaitArgs};
use crate::exit::{Exit, Failure};
use crate::render;
use crate::screen::Screen;
use pgstead_api::MoveBody;
use pgstead_api::client::Client;

pub async fn run(command: &MemberCommands, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    match command {
        MemberCommands::List { cluster } => {
            let members = match cluster {
                Some(cluster) => client.cluster_members(cluster).await?,
                None => client.members().await?,
            };
            screen.show(&members, |members, width| render::members(members, width))
        }
        MemberCommands::Move { name, to, cancel, wait } => {
            move_to(name, to.as_deref(), *cancel, *wait, client, screen).await
        }
    }
}

async fn move_to(
    name: &str,
    to: Option<&str>,
    cancel: bool,
    wait: WaitArgs,
    client: &Client,
    screen: &mut Screen<'_>,
) -> Result<(), Failure> {
    let all = client.members().await?;
    let member = all.into_iter().find(|member| member.name == name || member.id.to_string() == name);
    let Some(member) = member else {
        let text = format!("no member {name:?} in this deployment; `pgstead member list` has them all");
        return Err(Failure::new(Exit::NotFound, text));
    };
    let cluster = member.cluster.id.to_string();
    if cancel {
        let ended = client.cancel_move(&cluster, &member.id.to_string()).await?;
        return screen.show(&ended, |_, _| format!("{} stays where it is", member.name));
    }
    let body = MoveBody { member: member.id.to_string(), to: to.map(str::to_string) };
    let accepted = client.move_member(&cluster, &body).await?;
    finish(client, &accepted, wait, screen, &format!("{} has been replaced on another node", member.name)).await
}
