//! The operator's commands, as a library: the `pgstead` binary flattens `Commands` and `NodeCommands` into its own.
//!
//! `args` is what can be typed, `commands` does it by the API, `render` makes tables, `exit` is how it ends.

mod args;
mod commands;
mod exit;
mod render;
mod screen;
mod spec;
mod wait;

pub use args::{Commands, GlobalArgs, NodeCommands, Output};
pub use exit::{EXIT_CODES, Exit, Failure};

use pgstead_api::client::{Client, Profile};
use screen::Screen;
use std::process::ExitCode;

/// Does one command and answers with its exit code. Makes a runtime of its own, so call it outside of any.
pub fn run(command: &Commands, global: &GlobalArgs) -> ExitCode {
    enter(global, async |client, screen| commands::run(command, client, screen).await)
}

/// The same for the commands under `node` that ask the API.
pub fn run_node(command: &NodeCommands, global: &GlobalArgs) -> ExitCode {
    enter(global, async |client, screen| commands::node::run(command, client, screen).await)
}

fn enter(global: &GlobalArgs, work: impl AsyncFnOnce(&Client, &mut Screen<'_>) -> Result<(), Failure>) -> ExitCode {
    let result = (|| {
        let client = connect(global)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| {
            Failure::failed(format!("the system gives no event loop ({error}); check its limits and try again"))
        })?;
        Screen::with_real(global.output, |screen| runtime.block_on(work(&client, screen)))
    })();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(global.output),
    }
}

fn connect(global: &GlobalArgs) -> Result<Client, Failure> {
    let profile = Profile::load(&Profile::path(global.profile.as_deref())?)?;
    Ok(Client::new(&profile)?)
}

#[cfg(test)]
mod tests;
