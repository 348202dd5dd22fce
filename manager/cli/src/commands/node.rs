//! `pgstead node list`, `show` and `remove`.

use crate::args::NodeCommands;
use crate::exit::Failure;
use crate::render;
use crate::screen::Screen;
use pgstead_api::client::Client;
use serde_json::json;

pub async fn run(command: &NodeCommands, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    match command {
        NodeCommands::List => screen.show(&client.nodes().await?, |nodes, width| render::nodes(nodes, width)),
        NodeCommands::Show { name } => screen.show(&client.node(name).await?, render::node),
        NodeCommands::Remove { name } => {
            client.remove_node(name).await?;
            screen.show(&json!({ "removed": name }), |_, _| format!("node {name} is removed"))
        }
    }
}
