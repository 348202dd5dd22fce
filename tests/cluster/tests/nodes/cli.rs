//! The commands, as people type them and as programs read them.

use crate::support::{Bed, LATER};
use anyhow::{Context, ensure};
use pgstead_types::spec::ClusterSpec;
use std::fs;
use std::path::Path;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_json_and_the_story_of_a_failover_are_as_documented() -> anyhow::Result<()> {
    let bed = Bed::with_cluster(3).await?;
    let code = async |args: &[&str]| bed.pgstead(args).await.map(|said| said.code);

    let help = bed.pgstead(&["--help"]).await?.output()?;
    for line in
        ["0    done", "2    wrong usage", "3    no such thing", "4    refused", "5    no server", "6    waited in vain"]
    {
        ensure!(help.contains(line), "--help does not say {line:?}");
    }
    ensure!(code(&["status"]).await? == Some(0));
    ensure!(code(&["cluster", "show"]).await? == Some(2));
    ensure!(code(&["cluster", "create", "No"]).await? == Some(2));
    ensure!(code(&["cluster", "show", "nope"]).await? == Some(3));
    ensure!(code(&["cluster", "create", "app"]).await? == Some(4));
    let unreachable = bed.folder().join("unreachable.json");
    let profile = fs::read_to_string(bed.profile())?;
    let mut profile: serde_json::Value = serde_json::from_str(&profile)?;
    profile["servers"] = serde_json::json!(["https://127.0.1.1:1"]);
    write_secret(&unreachable, &profile.to_string())?;
    ensure!(code(&["status", "--profile", &unreachable.display().to_string()]).await? == Some(5));
    ensure!(code(&["cluster", "restart", "app", "--timeout", "1ms"]).await? == Some(6));
    // The work went on.
    let ended = async || {
        let all =
            bed.client().map_err(|error| error.to_string())?.operations().await.map_err(|error| error.to_string())?;
        let running = all.iter().filter(|operation| !operation.ended()).count();
        if running == 0 { Ok(()) } else { Err(format!("{running} operations run")) }
    };
    bed.wait_for("the restart has ended", LATER, ended).await?;
    bed.wait_healthy("app", LATER).await?;

    let kept = bed.pgstead(&["cluster", "delete", "app"]).await?;
    ensure!(kept.code == Some(2) && kept.stderr.contains("--yes"), "{kept:?}");
    ensure!(bed.client()?.clusters().await?.len() == 1, "a cluster was deleted without an answer");

    for args in [
        vec!["status"],
        vec!["cluster", "list"],
        vec!["cluster", "show", "app"],
        vec!["cluster", "connection", "app"],
        vec!["node", "list"],
        vec!["node", "show", "n1"],
        vec!["member", "list", "--cluster", "app"],
        vec!["volume", "list"],
        vec!["operation", "list"],
        vec!["events", "--cluster", "app"],
        vec!["token", "create"],
    ] {
        let said = bed.pgstead(&[args.clone(), vec!["--output", "json"]].concat()).await?.output()?;
        serde_json::from_str::<serde_json::Value>(&said).with_context(|| format!("{args:?} --output json: {said}"))?;
        // And for people.
        ensure!(!bed.pgstead(&args).await?.output()?.trim().is_empty(), "{args:?} says nothing");
    }
    let said = bed.pgstead(&["cluster", "show", "nope", "--output", "json"]).await?;
    let error: serde_json::Value = serde_json::from_str(&said.stderr)?;
    ensure!(error["error"]["exit"] == 3 && error["error"]["code"] == "not_found", "{error}");
    ensure!(bed.pgstead(&["psql", "app", "--", "-Atc", "select 6 * 7"]).await?.output()?.trim() == "42");

    let before = bed.client()?.events(None, Some("app"), std::time::Duration::ZERO).await?;
    let leader = bed.leader_node("app").await?;
    bed.kill_postmaster("app", leader).await?;
    bed.leader_leaves("app", leader).await?;
    let after = before.next_after.context("something has happened before")?.to_string();
    let said = bed.pgstead(&["events", "--cluster", "app", "--after", &after, "--output", "json"]).await?.output()?;
    let events: serde_json::Value = serde_json::from_str(&said)?;
    let kinds: Vec<&str> =
        events["events"].as_array().context("a list")?.iter().filter_map(|event| event["kind"].as_str()).collect();
    let mut story = ["epoch_began", "leader_chosen", "leader_promoted", "leader_confirmed"].iter().peekable();
    for kind in &kinds {
        story.next_if(|next| *next == kind);
    }
    ensure!(story.peek().is_none(), "the story of a failover is not in {kinds:?}");

    bed.wait_healthy("app", LATER).await?;
    bed.pgstead(&["cluster", "delete", "app", "--yes"]).await?.output()?;
    ensure!(bed.client()?.clusters().await?.is_empty());
    // Its name is free again.
    bed.create_cluster(&ClusterSpec::named("app")).await?;
    Ok(())
}

fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o600))?)
}

/// Commands in code, without what a shell or a reader adds: prompts, comments, alternatives in brackets.
fn commands(text: &str) -> Vec<String> {
    let mut pieces: Vec<&str> = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            pieces.push(line);
        } else {
            pieces.extend(line.split('`').skip(1).step_by(2));
        }
    }
    let clean = |piece: &str| {
        let piece = piece.split(" #").next().unwrap_or_default().trim().trim_start_matches("$ ");
        piece.replace(['[', ']'], "")
    };
    pieces.into_iter().map(clean).filter(|piece| piece.starts_with("pgstead ")).collect()
}

/// Needs no nodes: the arguments are read before anything is done.
#[tokio::test]
async fn every_command_in_the_documents_can_be_typed() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let binary = pgstead_cluster_tests::pgstead_binary()?;
    let mut seen = 0;
    for document in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "docs/gateway.md"] {
        for command in commands(&fs::read_to_string(root.join(document))?) {
            let mut words: Vec<&str> = command.split_whitespace().skip(1).collect();
            // After `--` words are somebody else's.
            let own = words.iter().position(|word| *word == "--").unwrap_or(words.len());
            words.truncate(own);
            words.push("--help");
            let said = pgstead_cluster_tests::run(&binary, &words, &[]).await?;
            ensure!(said.succeeded(), "{document} shows `{command}`, and it says: {}", said.stderr);
            seen += 1;
        }
    }
    ensure!(seen > 10, "only {seen} commands were found");
    Ok(())
}
