//! `pgstead node list`, `show`, `cordon`, `uncordon`, `drain` and `remove`.

use crate::args::{NodeCommands, WaitArgs};
use crate::exit::Failure;
use crate::render;
use crate::screen::Screen;
use crate::wait;
use pgstead_api::client::Client;
use pgstead_api::view::{NodeServiceView, NodeView};
use serde_json::json;

pub async fn run(command: &NodeCommands, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    match command {
        NodeCommands::List => screen.show(&client.nodes().await?, |nodes, width| render::nodes(nodes, width)),
        NodeCommands::Show { name } => screen.show(&client.node(name).await?, render::node),
        NodeCommands::Cordon { name } => {
            let node = client.set_node_service(name, NodeServiceView::Cordoned).await?;
            screen
                .show(&node, |node, _| format!("{} takes no new members; `pgstead node uncordon` ends that", node.name))
        }
        NodeCommands::Uncordon { name } => {
            let node = client.set_node_service(name, NodeServiceView::Open).await?;
            screen.show(&node, |node, _| format!("{} takes members again", node.name))
        }
        NodeCommands::Drain { name, wait } => drain(name, *wait, client, screen).await,
        NodeCommands::Remove { name } => {
            client.remove_node(name).await?;
            screen.show(&json!({ "removed": name }), |_, _| format!("node {name} is removed"))
        }
    }
}

async fn drain(name: &str, asked: WaitArgs, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let node = client.set_node_service(name, NodeServiceView::Draining).await?;
    if asked.no_wait {
        return screen.show(&node, |node, _| {
            format!("{} is being drained; follow it with `pgstead node show {}`", node.name, node.name)
        });
    }
    let drained = wait::for_empty(client, name, asked.timeout, screen).await?;
    screen.show(&drained, |node: &NodeView, _| {
        format!(
            "{} has no members any more; stop it, or have it take members again with `pgstead node uncordon {}`",
            node.name, node.name
        )
    })
}
