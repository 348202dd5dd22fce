//! `pgstead events`: what is kept, and what comes.

use crate::args::EventsArgs;
use crate::exit::Failure;
use crate::render;
use crate::screen::Screen;
use pgstead_api::client::{Client, ClientError};
use pgstead_api::view::EventsView;
use std::time::Duration;

/// How many past events `--follow` begins with, for context.
const BEFORE: usize = 10;
const WAIT: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(2);

pub async fn run(args: &EventsArgs, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let cluster = args.cluster.as_deref();
    let mut view = client.events(args.after, cluster, Duration::ZERO).await?;
    if !args.follow {
        note_missed(&view, screen)?;
        return screen.show(&view, |view, width| render::events(&view.events, width));
    }
    if args.after.is_none() {
        let skip = view.events.len().saturating_sub(BEFORE);
        view.events.drain(..skip);
    }
    loop {
        note_missed(&view, screen)?;
        for event in &view.events {
            screen.line(event, render::event)?;
        }
        let after = view.next_after;
        view = loop {
            let asked = tokio::select! {
                asked = client.events(after, cluster, WAIT) => asked,
                // Following ends by this; it is no failure.
                Ok(()) = tokio::signal::ctrl_c() => return Ok(()),
            };
            match asked {
                Ok(view) => break view,
                Err(error @ (ClientError::Unreachable { .. } | ClientError::Lost { .. })) => {
                    screen.note(&format!("{error}; trying on"))?;
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        Ok(()) = tokio::signal::ctrl_c() => return Ok(()),
                    }
                }
                Err(error) => return Err(error.into()),
            }
        };
    }
}

fn note_missed(view: &EventsView, screen: &mut Screen<'_>) -> Result<(), Failure> {
    match view.missed {
        0 => Ok(()),
        missed => screen.note(&format!("{missed} older events are kept no more")),
    }
}
