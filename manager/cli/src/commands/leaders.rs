//! `pgstead cluster switchover` and `pgstead cluster failover`.

use super::cluster::{finish, type_the_name};
use crate::args::{FailoverArgs, SwitchoverArgs};
use crate::exit::{Exit, Failure};
use crate::render;
use crate::screen::Screen;
use pgstead_api::client::Client;
use pgstead_api::{FailoverBody, SwitchoverBody};

pub async fn switchover(args: &SwitchoverArgs, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let name = &args.name;
    if args.cancel {
        let taken = client.cancel_switchover(name).await?;
        return screen.show(&taken, |_, _| format!("the scheduled switchover of {name} is cancelled"));
    }
    if args.dry_run {
        let check = client.check_switchover(name, args.to.as_deref(), args.undo).await?;
        screen.show(&check, render::switchover_check)?;
        return match check.clear || (check.overrulable && args.overrule) {
            true => Ok(()),
            // Everything is said already.
            false => Err(Failure::new(Exit::Refused, "")),
        };
    }
    let body = SwitchoverBody {
        to: args.to.clone(),
        at: args.at.clone(),
        in_window: args.in_window,
        undo: args.undo,
        overrule: args.overrule,
    };
    let accepted = client.switchover(name, &body, None).await?;
    if args.at.is_some() || args.in_window {
        let cluster = client.cluster(name).await?;
        return screen.show(&accepted, |accepted, _| match &cluster.scheduled {
            Some(scheduled) => format!(
                "scheduled: it begins between {} and {}; `pgstead cluster switchover {name} --cancel` takes it back, \
                 `pgstead operation wait {}` waits for its end",
                scheduled.not_before, scheduled.not_after, accepted.operation
            ),
            None => format!("it has begun; follow it with `pgstead operation wait {}`", accepted.operation),
        });
    }
    finish(client, &accepted, args.wait, screen, &format!("{name} has changed its leader")).await
}

pub async fn failover(args: &FailoverArgs, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let cluster = client.cluster(&args.name).await?;
    let check = client.check_failover(&cluster.id.to_string(), &args.to).await?;
    if !args.accept_data_loss {
        screen.show(&check, render::failover_check)?;
        let message = match check.allowed {
            true => "nothing was done; --accept-data-loss does it",
            false => "nothing was done",
        };
        return Err(Failure::new(Exit::Refused, message));
    }
    if !check.allowed {
        let why: Vec<&str> = check.findings.iter().map(|finding| finding.message.as_str()).collect();
        return Err(Failure::new(Exit::Refused, why.join("; ")));
    }
    if !args.yes {
        let shown = render::failover_check(&check, screen.width);
        let text = format!(
            "{shown}\n\nThis makes {} lead {} and gives up what only the missing have.",
            check.to, cluster.name
        );
        type_the_name(&cluster.name, &text, "forcing a failover of", screen)?;
    }
    let body = FailoverBody { to: check.to.clone(), accept_data_loss: true, by: who() };
    // Only if nothing has changed since it was shown.
    let accepted = client.force_failover(&cluster.id.to_string(), &body, Some(cluster.revision)).await?;
    finish(client, &accepted, args.wait, screen, &format!("{} leads {}", check.to, cluster.name)).await
}

/// For the record: the user and host that typed this.
fn who() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "somebody".to_string());
    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    let host = host.trim();
    let text: String = format!("{user}@{host}").chars().filter(|letter| !letter.is_control()).collect();
    text.chars().take(50).collect()
}
