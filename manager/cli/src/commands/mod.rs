//! Does what was asked: one file per noun.

mod cluster;
mod events;
mod leaders;
mod member;
pub mod node;
mod operation;
mod placement;
mod psql;
mod rollback;
mod snapshot;
mod volume;

use crate::args::{Commands, PlacementCommands, TokenCommands};
use crate::exit::Failure;
use crate::render;
use crate::screen::Screen;
use pgstead_api::client::Client;

pub async fn run(command: &Commands, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    match command {
        Commands::Status => {
            let status = render::Status { nodes: client.nodes().await?, clusters: client.clusters().await? };
            screen.show(&status, render::status)
        }
        Commands::Cluster(command) => cluster::run(command, client, screen).await,
        Commands::Token(TokenCommands::Create { ttl }) => {
            let token = client.create_token(Some(format!("{}s", ttl.as_secs()))).await?;
            screen.show(&token, render::token)
        }
        Commands::Member(command) => member::run(command, client, screen).await,
        Commands::Snapshot(command) => snapshot::run(command, client, screen).await,
        Commands::Volume(command) => volume::run(command, client, screen).await,
        Commands::Placement(PlacementCommands::Explain(args)) => placement::explain(args, client, screen).await,
        Commands::Operation(command) => operation::run(command, client, screen).await,
        Commands::Events(args) => events::run(args, client, screen).await,
        Commands::Psql(args) => psql::run(args, client).await,
    }
}
