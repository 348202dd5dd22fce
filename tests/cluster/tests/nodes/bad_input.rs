//! What people, programs and neighbours get wrong: each a clear refusal, nothing half-applied, nothing lost.

use crate::https::{Shown, send};
use crate::support::{Bed, LATER, SOON, session};
use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pgstead_cluster_tests::{Said, Setup, run, run_blocking};
use pgstead_types::WallTime;
use pgstead_types::spec::ClusterSpec;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Ended with this code, said all of this, and nothing on standard output that a program could take for an answer.
fn refused(said: &Said, code: i32, parts: &[&str]) -> anyhow::Result<()> {
    ensure!(said.code == Some(code), "expected exit code {code}: {said:?}");
    ensure!(parts.iter().all(|part| said.stderr.contains(part)), "expected {parts:?}: {said:?}");
    ensure!(said.stdout.is_empty(), "it answered: {said:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configurations_specs_and_requests_that_cannot_be_are_refused() -> anyhow::Result<()> {
    let bed = Bed::start(1).await?;
    configurations(&bed).await?;

    let create = async |args: &[&str]| bed.pgstead(&[&["cluster", "create"], args].concat()).await;
    refused(&create(&["App"]).await?, 2, &["\"App\"", "lower-case letters"])?;
    refused(&create(&["app", "--members", "9"]).await?, 2, &["9 members", "1 to 7"])?;
    refused(&create(&["app", "--sync-replicas", "3"]).await?, 2, &["sync_replicas = 3", "2 standbys"])?;
    refused(&create(&["app", "--members", "1", "--set", "fsync=off"]).await?, 2, &["fsync", "belongs to pgstead"])?;
    refused(&create(&["app", "--timeout", "5 parsecs"]).await?, 2, &["5 parsecs"])?;
    let spec = bed.folder().join("spec.toml");
    fs::write(&spec, "members = 1\nreplicas = 3\n")?;
    refused(&create(&["app", "--file", &spec.display().to_string()]).await?, 2, &["replicas"])?;
    let too_many = create(&["app"]).await?;
    ensure!(
        too_many.code != Some(0) && too_many.stderr.contains("add nodes, uncordon some, or ask for fewer"),
        "{too_many:?}"
    );

    requests(&bed).await?;
    let none = bed.client()?.clusters().await?;
    ensure!(none.is_empty(), "a refused cluster was made: {none:?}");

    create(&["app", "--members", "1"]).await?.output()?;
    refused(&create(&["app", "--members", "1"]).await?, 4, &["app"])?;
    ensure!(bed.client()?.clusters().await?.len() == 1, "a second cluster of one name was made");
    Ok(())
}

async fn configurations(bed: &Bed) -> anyhow::Result<()> {
    let good = fs::read_to_string(bed.node(1).config())?;
    let path = bed.folder().join("bad.toml");
    let with = async |text: String| {
        fs::write(&path, text)?;
        bed.pgstead(&["node", "run", "--config", &path.display().to_string()]).await
    };
    refused(&with(format!("zonne = \"b\"\n{good}")).await?, 1, &["zonne"])?;
    refused(&with(format!("{good}\n[timing]\nheartbeat_ms = \"1s\"\n")).await?, 1, &["heartbeat_ms"])?;
    refused(&with(format!("{good}\n[timing]\nsuspicion_ms = 200\n")).await?, 1, &["suspicion_ms", "1000"])?;
    let data_dir = bed.node(1).data_dir().display().to_string();
    let nobodys = bed.folder().join("nobodys");
    let said = with(good.replace(&data_dir, &nobodys.display().to_string())).await?;
    refused(&said, 1, &["is not a node's folder yet", "pgstead init", "pgstead node join"])?;
    ensure!(!nobodys.exists(), "a folder was made for a node that is none");
    let again = bed.pgstead(&["init", "--config", &bed.node(1).config().display().to_string()]).await?;
    refused(&again, 1, &["already belongs to a node"])?;
    let absent = bed.pgstead(&["node", "run", "--config", "/nowhere/node.toml"]).await?;
    refused(&absent, 1, &["/nowhere/node.toml"])
}

async fn requests(bed: &Bed) -> anyhow::Result<()> {
    let profile: serde_json::Value = serde_json::from_slice(&fs::read(bed.profile())?)?;
    let token = profile["token"].as_str().context("the profile has a token")?;
    let post = |token: &str| {
        format!("POST /v1/clusters HTTP/1.1\r\nContent-Type: application/json\r\nAuthorization: Bearer {token}")
    };
    let spec = br#"{"name":"app","members":1}"#;
    let mut answers = Vec::new();
    let without = send(bed, 1, None, "POST /v1/clusters HTTP/1.1\r\nContent-Type: application/json", spec).await?;
    answers.push((without, 401, "unauthorized"));
    answers.push((send(bed, 1, None, &post("not-the-token"), spec).await?, 401, "unauthorized"));
    answers.push((send(bed, 1, None, &post(token), b"{\"name\": ").await?, 400, "malformed"));
    answers.push((send(bed, 1, None, &post(token), b"\xff\xfe\x00").await?, 400, "malformed"));
    answers.push((send(bed, 1, None, &post(token), br#"{"name":"app","replicas":1}"#).await?, 422, "invalid"));
    answers.push((send(bed, 1, None, &post(token), br#"{"name":"app","members":"three"}"#).await?, 422, "invalid"));
    answers.push((send(bed, 1, None, &post(token), &vec![b' '; 1 << 20]).await?, 413, "too_large"));
    let plain = format!("POST /v1/clusters HTTP/1.1\r\nContent-Type: text/plain\r\nAuthorization: Bearer {token}");
    answers.push((send(bed, 1, None, &plain, spec).await?, 415, "not_json"));
    let nowhere = format!("GET /v1/nowhere HTTP/1.1\r\nAuthorization: Bearer {token}");
    answers.push((send(bed, 1, None, &nowhere, b"").await?, 404, "no_such_route"));
    for (answer, status, code) in answers {
        ensure!(
            answer.status == status && answer.text.contains(&format!("\"{code}\"")),
            "not {status} {code}: {answer:?}"
        );
        ensure!(answer.text.contains("application/problem+json"), "{answer:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn join_tokens_work_once_in_time_and_for_their_deployment_and_strangers_are_kept_out() -> anyhow::Result<()> {
    let bed = Bed::found(Setup { nodes: 3, ..Setup::default() }, 1).await?;
    let config = |number: usize| bed.node(number).config().display().to_string();
    let join = async |number: usize, token: &str| {
        let env = [("PGSTEAD_JOIN_TOKEN", token)];
        run(bed.binary(), &["node", "join", "--config", &config(number)], &env).await
    };
    let token = async |args: &[&str]| {
        let args = [&["token", "create", "--output", "json"], args].concat();
        let made: serde_json::Value = serde_json::from_str(&bed.pgstead(&args).await?.output()?)?;
        made["token"].as_str().map(str::to_string).context("a token was made")
    };

    refused(&join(2, "swordfish").await?, 1, &["not a join token"])?;
    let good = token(&[]).await?;
    refused(&join(2, &good[..good.len() / 2]).await?, 1, &["not a join token"])?;
    // Of another deployment: the one that answers is not the one that the token names.
    let json = URL_SAFE_NO_PAD.decode(good.trim_start_matches("pgstead1_"))?;
    let mut body: serde_json::Value = serde_json::from_slice(&json)?;
    body["ca_sha256"] = "0".repeat(64).into();
    let other = format!("pgstead1_{}", URL_SAFE_NO_PAD.encode(body.to_string()));
    let said = join(2, &other).await?;
    ensure!(said.code == Some(1) && said.stderr.contains("certificate"), "{said:?}");
    let short = token(&["--ttl", "1s"]).await?;
    let expired = WallTime::now().plus(Duration::from_secs(1));
    let over = async || if WallTime::now() > expired { Ok(()) } else { Err("it is not over".to_string()) };
    bed.wait_for("the token's time is over", SOON, over).await?;
    refused(&join(2, &short).await?, 1, &["refused", "expired"])?;
    ensure!(!bed.node(2).data_dir().join("secrets/node.json").exists(), "a refused node has an identity");

    join(2, &good).await?.output()?;
    refused(&join(3, &good).await?, 1, &["refused", "used"])?;
    let text = fs::read_to_string(bed.node(3).config())?;
    fs::write(bed.node(3).config(), text.replace("name = \"n3\"", "name = \"n1\""))?;
    let again = token(&[]).await?;
    refused(&join(3, &again).await?, 1, &["refused", "n1"])?;
    let nodes = bed.client()?.nodes().await?;
    ensure!(nodes.len() == 2, "{nodes:?}");
    fs::write(bed.node(3).config(), text)?;
    // A refusal for its name has not used it up.
    join(3, &again).await?.output()?;
    strangers(&bed).await
}

/// The nodes' own routes.
async fn strangers(bed: &Bed) -> anyhow::Result<()> {
    let head = "POST /internal/node HTTP/1.1\r\nContent-Type: application/json";
    let node = |name: &str, number: usize| {
        let host = &bed.node(number).host;
        serde_json::json!({ "id": name, "name": "x", "host": host, "port": 1, "region": "r", "zone": "z",
            "postgres_majors": [15], "pools": [], "joined_at": "2026-01-01T00:00:00Z" })
    };
    let identity = |number: usize| -> anyhow::Result<(String, Shown)> {
        let text = fs::read(bed.node(number).data_dir().join("secrets/node.json"))?;
        let read: serde_json::Value = serde_json::from_slice(&text)?;
        let field = |name: &str| read[name].as_str().map(str::to_string).context("the node has an identity");
        Ok((field("node")?, Shown { cert_pem: field("cert_pem")?, key_pem: field("key_pem")? }))
    };
    let (first, _) = identity(1)?;
    let (_, second) = identity(2)?;
    let about_first = node(&first, 1).to_string();
    for route in ["/internal/node", "/internal/raft", "/internal/report"] {
        let head = format!("POST {route} HTTP/1.1\r\nContent-Type: application/json");
        let nobody = send(bed, 1, None, &head, about_first.as_bytes()).await?;
        ensure!(nobody.status == 403, "without a certificate {route} answered {nobody:?}");
    }
    // A node speaks for itself only.
    let other = send(bed, 1, Some(&second), head, about_first.as_bytes()).await?;
    ensure!((400..500).contains(&other.status), "a node spoke for another: {other:?}");
    ensure!(bed.client()?.node(&first).await?.name == "n1", "a node was renamed by another");

    let key = rcgen::KeyPair::generate()?;
    let stranger = rcgen::CertificateParams::new(vec![first.clone()])?.self_signed(&key)?;
    let stranger = Shown { cert_pem: stranger.pem(), key_pem: key.serialize_pem() };
    let answer = send(bed, 1, Some(&stranger), head, about_first.as_bytes()).await;
    ensure!(answer.is_err(), "a certificate of nobody's was taken: {answer:?}");
    Ok(())
}

/// The data folders of a node's members, by cluster.
async fn data_folder(bed: &Bed, cluster: &str, number: usize) -> anyhow::Result<PathBuf> {
    let volume = bed.member_on(cluster, number).await?.volume;
    Ok(bed.node(number).data_dir().join("pools/default").join(volume.to_string()).join("data"))
}

/// Every file with its size and its time of change.
fn snapshot(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        if about.is_dir() {
            found.extend(snapshot(&entry.path())?);
        } else {
            found.push(format!("{} {} {:?}", entry.path().display(), about.len(), about.modified()?));
        }
    }
    found.sort();
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_data_of_another_cluster_is_named_and_left_untouched() -> anyhow::Result<()> {
    let mut bed = Bed::start(1).await?;
    for name in ["a", "b"] {
        bed.create_cluster(&ClusterSpec { members: 1, ..ClusterSpec::named(name) }).await?;
    }
    let writers = bed.writers_on("a").await?;
    let folders = [data_folder(&bed, "a", 1).await?, data_folder(&bed, "b", 1).await?];
    let swap = || -> anyhow::Result<()> {
        let aside = bed_aside(&folders[0]);
        fs::rename(&folders[0], &aside)?;
        fs::rename(&folders[1], &folders[0])?;
        Ok(fs::rename(&aside, &folders[1])?)
    };

    bed.kill_node(1)?;
    swap()?;
    let before = [snapshot(&folders[0])?, snapshot(&folders[1])?];
    bed.start_daemon(1)?;
    for name in ["a", "b"] {
        let message = bed.finding(name, "foreign_data").await?;
        ensure!(message.contains("untouched"), "{message}");
    }
    ensure!(before == [snapshot(&folders[0])?, snapshot(&folders[1])?], "foreign data was touched");

    bed.kill_node(1)?;
    swap()?;
    bed.start_daemon(1)?;
    bed.wait_healthy("b", LATER).await?;
    bed.nothing_is_lost_of("a", writers).await?;
    Ok(())
}

fn bed_aside(folder: &Path) -> PathBuf {
    folder.with_extension("aside")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_named_and_used_as_soon_as_it_is_free() -> anyhow::Result<()> {
    let bed = Bed::start(1).await?;
    let single = |name: &str| ClusterSpec { members: 1, ..ClusterSpec::named(name) };
    let first = bed.create_cluster(&single("first")).await?.ports;
    // Clusters take their ports in order, three each.
    let take =
        |port: u16| TcpListener::bind((bed.node(1).host.as_str(), port)).context("a port of the testbed is free");

    let gateways = take(first.read_write + 3)?;
    bed.create_cluster(&single("second")).await?;
    let message = bed.finding("second", "port_taken").await?;
    ensure!(message.contains(&(first.read_write + 3).to_string()), "{message}");
    drop(gateways);
    session(&bed.read_write("second").await?).await?;

    let postgres = take(first.postgres + 6)?;
    let client = bed.client()?;
    client.create_cluster(&single("third")).await?;
    let port = (first.postgres + 6).to_string();
    let says = async || {
        let members = client.cluster_members("third").await.map_err(|error| error.to_string())?;
        let seen: Vec<_> = members.iter().filter_map(|member| member.observed.as_ref()).collect();
        let errors: Vec<&String> =
            seen.iter().filter_map(|seen| seen.working.as_ref()).filter_map(|step| step.error.as_ref()).collect();
        if errors.iter().any(|error| error.contains(&port)) { Ok(()) } else { Err(format!("{errors:?}")) }
    };
    bed.wait_for("the member names the port that it cannot have", SOON, says).await?;
    drop(postgres);
    bed.wait_healthy("third", LATER).await?;
    session(&bed.read_write("third").await?).await?;
    Ok(())
}

/// A small file system, unmounted when dropped.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    fn mount(at: &Path) -> anyhow::Result<Self> {
        let at_text = at.display().to_string();
        let args = ["-t", "tmpfs", "-o", "size=8m,mode=700", "pgstead-test", &at_text];
        run_blocking(Path::new("mount"), &args)?.output()?;
        Ok(Self { at: at.to_path_buf() })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open there is about to end.
        let _ = run_blocking(Path::new("umount"), &["--lazy", &self.at.display().to_string()]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_the_record_stops_the_daemon_with_its_reason_and_loses_nothing() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        ensure!(std::env::var_os("CI").is_none(), "mounting a small disk needs root, and CI skips nothing");
        eprintln!("not run: mounting a small disk needs root");
        return Ok(());
    }
    let mut bed = Bed::prepared(Setup { nodes: 1, ..Setup::default() }).await?;
    let record = bed.node(1).data_dir().join("record");
    fs::create_dir_all(&record)?;
    let disk = SmallDisk::mount(&record)?;
    bed.found().await?;
    bed.create_cluster(&ClusterSpec { members: 1, ..ClusterSpec::named("app") }).await?;
    let client = session(&bed.direct("app").await?).await?;
    let postmaster = crate::support::started_at(&client).await?;

    // Full to the last byte, as a log next to it would fill it.
    let filler = record.join("filler");
    let mut file = fs::File::create(&filler)?;
    while std::io::Write::write(&mut file, &[0; 4096]).is_ok_and(|written| written > 0) {}
    let api = bed.client()?;
    let stops = pgstead_cluster_tests::until(SOON, async || {
        // Every token is an entry of the log.
        let _ = api.create_token(None).await;
        if bed.daemon_runs(1) { Err("the daemon runs on".to_string()) } else { Ok(()) }
    });
    if let Err((passed, seen)) = stops.await {
        anyhow::bail!("after {passed:?}: {seen}\n{}", bed.describe().await);
    }
    let log = fs::read_to_string(bed.node(1).log())?;
    let last = log.lines().last().unwrap_or_default();
    ensure!(last.contains("cannot take part in the record") && last.contains("space"), "its last words: {last}");
    ensure!(crate::support::started_at(&client).await? == postmaster, "Postgres did not go on");

    drop(file);
    fs::remove_file(&filler)?;
    bed.start_daemon(1)?;
    bed.wait_healthy("app", LATER).await?;
    ensure!(crate::support::started_at(&client).await? == postmaster, "Postgres did not go on");
    bed.client()?.create_token(None).await?;
    // Everything of it ends before its disk goes.
    drop(client);
    bed.kill_node(1)?;
    drop(disk);
    Ok(())
}
