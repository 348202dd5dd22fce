//! `pgstead cluster rollback`.

use super::cluster::{finish, type_the_name};
use crate::args::RollbackArgs;
use crate::exit::Failure;
use crate::screen::Screen;
use pgstead_api::RollBackBody;
use pgstead_api::client::Client;

pub async fn run(args: &RollbackArgs, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let name = &args.name;
    if args.cancel {
        let cancelled = client.cancel_rollback(name).await?;
        return screen.show(&cancelled, |_, _| format!("the rollback of {name} is cancelled; it stays as it is"));
    }
    let cluster = client.cluster(name).await?;
    let body = RollBackBody {
        snapshot: args.to.map(|snapshot| snapshot.to_string()),
        undo: args.undo,
        keep_as: args.keep_as.clone(),
    };
    if !args.yes {
        let text = match args.to {
            Some(snapshot) => {
                let all = client.snapshots().await?;
                let id = snapshot.to_string();
                let taken = all.iter().find(|held| held.id.to_string() == id).map(|held| held.created_at.clone());
                let taken = taken.ok_or_else(|| {
                    Failure::usage(format!("there is no snapshot {id}; `pgstead snapshot list` shows them"))
                })?;
                format!(
                    "Clients of {} will find what it was at {taken}. It serves until that is made, which takes room for {} more members; \
                     what is written after that time is kept aside and not seen by clients.",
                    cluster.name,
                    cluster.members.len()
                )
            }
            None => format!(
                "Clients of {} will find what the last rollback has kept aside. What is written since that rollback is kept aside \
                 instead, and not seen by clients.",
                cluster.name
            ),
        };
        type_the_name(&cluster.name, &text, "rolling back", screen)?;
    }
    // By id: another cluster may have the name meanwhile.
    let accepted = client.roll_back(&cluster.id.to_string(), &body).await?;
    let done = format!(
        "{0} is what it was; `pgstead cluster list` shows what is kept aside, and `pgstead cluster rollback {0} --undo` exchanges them again",
        cluster.name
    );
    finish(client, &accepted, args.wait, screen, &done).await
}
