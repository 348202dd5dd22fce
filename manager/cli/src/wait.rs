//! Waiting for long work, with progress for whoever watches. The work does not need the waiter.

use crate::exit::{Exit, Failure};
use crate::render::describe_steps;
use crate::screen::Screen;
use indicatif::{ProgressBar, ProgressStyle};
use pgstead_api::Code;
use pgstead_api::client::{Client, ClientError};
use pgstead_api::view::{NodeServiceView, NodeView, OperationStateView, OperationView};
use pgstead_types::{OperationId, Tick};
use std::time::Duration;

/// Progress is looked at so often: a person sees it move, and a hundred waiters cost the controller nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// An election or a restarted daemon is over by then; longer, and the watcher should know.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// By then every node that can be asked has applied what the controller has recorded.
const NEWS_PATIENCE: Duration = Duration::from_secs(3);
const NEWS_AGAIN: Duration = Duration::from_millis(200);

/// The operation's end. Work that failed is a failure, work that goes on at the end of `timeout` another one.
pub async fn for_end(
    client: &Client,
    id: OperationId,
    timeout: Duration,
    screen: &mut Screen<'_>,
) -> Result<OperationView, Failure> {
    let mut progress = Progress::begin(screen);
    let ended = tokio::select! {
        ended = watch(client, id, timeout, &mut progress) => ended,
        // Without a handler for it the process just ends, which harms nothing.
        Ok(()) = tokio::signal::ctrl_c() => Err(Failure::new(
            Exit::Interrupted,
            format!("interrupted; the work goes on: follow it with `pgstead operation wait {id}`"),
        )),
    };
    progress.end();
    let operation = ended?;
    match operation.state {
        OperationStateView::Failed => {
            let why = operation.failure.as_deref().unwrap_or("no reason was recorded");
            Err(Failure::failed(format!("operation {id} failed: {why}")))
        }
        OperationStateView::Running | OperationStateView::Succeeded => Ok(operation),
    }
}

async fn watch(
    client: &Client,
    id: OperationId,
    timeout: Duration,
    progress: &mut Progress<'_, '_>,
) -> Result<OperationView, Failure> {
    let began = Tick::now();
    let mut heard = began;
    loop {
        let left = timeout.saturating_sub(Tick::now().since(began));
        match client.operation(id, LOOK_EVERY.min(left)).await {
            Ok(operation) if operation.ended() => return Ok(operation),
            Ok(operation) => {
                heard = Tick::now();
                let steps = match client.cluster(&operation.cluster.id.to_string()).await {
                    Ok(cluster) => describe_steps(&cluster),
                    // The cluster may be gone already; the operation tells the rest.
                    Err(_) => String::new(),
                };
                let said = operation.progress.as_deref().unwrap_or("under way");
                let joint = if steps.is_empty() { "" } else { "; " };
                progress.say(&format!("{said}{joint}{steps}"))?;
            }
            // Accepted a moment ago, and answered by a node that has not heard of it.
            Err(ClientError::Problem(problem))
                if problem.code == Code::NotFound && Tick::now().since(began) < NEWS_PATIENCE.min(timeout) =>
            {
                tokio::time::sleep(NEWS_AGAIN).await;
            }
            Err(error) if is_passing(&error) && Tick::now().since(heard) < SILENCE_MAX => {
                progress.say("no server answers now; trying on")?;
                tokio::time::sleep(LOOK_EVERY.min(left)).await;
            }
            Err(error) if is_passing(&error) => {
                let mut failure = Failure::from(error);
                failure.message =
                    format!("{}; the work goes on: follow it with `pgstead operation wait {id}`", failure.message);
                return Err(failure);
            }
            Err(error) => return Err(error.into()),
        }
        if Tick::now().since(began) >= timeout {
            return Err(Failure::new(
                Exit::InVain,
                format!(
                    "operation {id} has not ended within {} s and goes on; follow it with `pgstead operation wait {id}`",
                    timeout.as_secs()
                ),
            ));
        }
    }
}

/// The node when it has no members any more.
pub async fn for_empty(
    client: &Client,
    node: &str,
    timeout: Duration,
    screen: &mut Screen<'_>,
) -> Result<NodeView, Failure> {
    let mut progress = Progress::begin(screen);
    let goes_on = |text: String| {
        format!(
            "{text}; it goes on: follow it with `pgstead node show {node}`, end it with `pgstead node uncordon {node}`"
        )
    };
    let emptied = tokio::select! {
        emptied = watch_node(client, node, timeout, &mut progress) => emptied,
        Ok(()) = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Interrupted, goes_on("interrupted".to_string()))),
    };
    progress.end();
    match emptied? {
        Some(node) => Ok(node),
        None => {
            let text = format!("{node} is not empty after {} s", timeout.as_secs());
            Err(Failure::new(Exit::InVain, goes_on(text)))
        }
    }
}

/// `None`: the time is over.
async fn watch_node(
    client: &Client,
    node: &str,
    timeout: Duration,
    progress: &mut Progress<'_, '_>,
) -> Result<Option<NodeView>, Failure> {
    let began = Tick::now();
    let mut heard = began;
    while Tick::now().since(began) < timeout {
        match client.node(node).await {
            Ok(view) if view.members.is_empty() => return Ok(Some(view)),
            Ok(view) if view.service != NodeServiceView::Draining => {
                return Err(Failure::failed(format!("{node} is not being drained any more: somebody has ended that")));
            }
            Ok(view) => {
                heard = Tick::now();
                let names: Vec<&str> = view.members.iter().map(|held| held.member.name.as_str()).collect();
                let blocked = view.findings.iter().filter(|finding| finding.code == "drain_blocked");
                let blocked: Vec<&str> = blocked.map(|finding| finding.message.as_str()).collect();
                let joint = if blocked.is_empty() { "" } else { "; " };
                progress.say(&format!("still there: {}{joint}{}", names.join(", "), blocked.join("; ")))?;
            }
            Err(error) if is_passing(&error) && Tick::now().since(heard) < SILENCE_MAX => {
                progress.say("no server answers now; trying on")?;
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(None)
}

fn is_passing(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } | ClientError::Lost { .. } => true,
        ClientError::Problem(problem) => {
            matches!(problem.code, Code::NoController | Code::ControllerUnreachable | Code::OutcomeUnknown)
        }
        ClientError::Server(_) | ClientError::Ca(_) | ClientError::BadAnswer { .. } => false,
    }
}

/// A line that turns on a terminal, a line per change elsewhere.
struct Progress<'a, 'b> {
    screen: &'a mut Screen<'b>,
    bar: Option<ProgressBar>,
    last: String,
}

impl<'a, 'b> Progress<'a, 'b> {
    fn begin(screen: &'a mut Screen<'b>) -> Self {
        let bar = screen.draws.then(|| {
            let style = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}");
            let bar = ProgressBar::new_spinner().with_style(style.expect("the template is a constant"));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { screen, bar, last: String::new() }
    }
    fn say(&mut self, text: &str) -> Result<(), Failure> {
        if text == self.last {
            return Ok(());
        }
        self.last = text.to_string();
        match &self.bar {
            Some(bar) => bar.set_message(self.last.clone()),
            None => self.screen.note(text)?,
        }
        Ok(())
    }
    fn end(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
