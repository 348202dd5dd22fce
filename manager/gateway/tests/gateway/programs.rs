//! The one place where these tests run outside programs.
#![expect(clippy::disallowed_methods, reason = "the command module of these tests")]

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// The user that servers run as: Postgres refuses to run as root.
pub fn server_user() -> (u32, u32) {
    let me = rustix::process::getuid().as_raw();
    if me != 0 {
        return (me, rustix::process::getgid().as_raw());
    }
    let id = |kind: &str| {
        let output = Command::new("id").args([kind, "postgres"]).output().expect("id runs");
        String::from_utf8(output.stdout).unwrap().trim().parse().expect("there is a user postgres")
    };
    (id("-u"), id("-g"))
}

fn as_server(program: &str, args: &[&str]) -> Command {
    let (uid, gid) = server_user();
    let mut command = Command::new(PathBuf::from(BIN).join(program));
    command.args(args).env("LC_ALL", "C").current_dir("/");
    if rustix::process::getuid().is_root() {
        command.gid(gid).uid(uid);
    }
    command
}

pub fn run_as_server(program: &str, args: &[&str]) {
    let output = as_server(program, args).output().expect("Postgres 15 is installed");
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn spawn_server(args: &[&str], log: std::fs::File) -> Child {
    let stderr = log.try_clone().unwrap();
    as_server("postgres", args).stdin(Stdio::null()).stdout(log).stderr(stderr).spawn().expect("postgres starts")
}

pub fn copy_tree(from: &str, to: &str) {
    let output = Command::new("cp").args(["-a", from, to]).output().expect("cp runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// As `client`, for a task of its own.
pub fn client_owned(program: &str, args: &[&str]) -> impl Future<Output = Output> + Send + 'static {
    let (program, args) = (program.to_string(), args.iter().map(ToString::to_string).collect::<Vec<_>>());
    async move { client(&program, &args.iter().map(String::as_str).collect::<Vec<_>>()).await }
}

/// A client program; the password comes by the environment.
pub async fn client(program: &str, args: &[&str]) -> Output {
    tokio::process::Command::new(PathBuf::from(BIN).join(program))
        .args(args)
        .env("PGPASSWORD", crate::postgres::PASSWORD)
        .env("LC_ALL", "C")
        .env_remove("PGHOST")
        .kill_on_drop(true)
        .output()
        .await
        .expect("Postgres 15's clients are installed")
}

/// A client program that is sent signals while it runs.
pub fn spawn_client(program: &str, args: &[&str]) -> (rustix::process::Pid, impl Future<Output = Output> + use<>) {
    let child = tokio::process::Command::new(PathBuf::from(BIN).join(program))
        .args(args)
        .env("PGPASSWORD", crate::postgres::PASSWORD)
        .env("LC_ALL", "C")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("Postgres 15's clients are installed");
    let pid = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)).expect("it was just started");
    (pid, async move { child.wait_with_output().await.expect("its output can be read") })
}
