//! `pgstead operation`.

use crate::args::OperationCommands;
use crate::exit::Failure;
use crate::screen::Screen;
use crate::{render, wait};
use pgstead_api::client::Client;
use std::time::Duration;

pub async fn run(command: &OperationCommands, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    match command {
        OperationCommands::List => {
            screen.show(&client.operations().await?, |all, width| render::operations(all, width))
        }
        OperationCommands::Show { id } => screen.show(&client.operation(*id, Duration::ZERO).await?, render::operation),
        OperationCommands::Wait { id, timeout } => {
            let ended = wait::for_end(client, *id, *timeout, screen).await?;
            screen.show(&ended, render::operation)
        }
    }
}
