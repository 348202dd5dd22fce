//! The one place where these tests run outside programs.
#![expect(clippy::disallowed_methods, reason = "the command module of this crate")]

use anyhow::{Context, bail};
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use tokio::io::{AsyncBufReadExt, BufReader};

/// What a command that has ended has said.
#[derive(Clone, Debug)]
pub struct Said {
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    pub fn succeeded(&self) -> bool {
        self.code == Some(0)
    }
    /// Its standard output, or an error with all that it has said.
    pub fn output(self) -> anyhow::Result<String> {
        if !self.succeeded() {
            bail!("it ended with {:?}: {}{}", self.code, self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }
}

/// The binary under test: `PGSTEAD_BIN`, or the one that was built beside this program.
pub fn pgstead_binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("PGSTEAD_BIN") {
        let path = PathBuf::from(path);
        return path
            .canonicalize()
            .with_context(|| format!("PGSTEAD_BIN names {}, which is not there", path.display()));
    }
    let me = std::env::current_exe().context("this program's own path is not known")?;
    // Tests are in `deps`, programs are not.
    let folder =
        me.parent().map(|folder| if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder });
    let path = folder.context("this program is in no folder")?.join("pgstead");
    if !path.exists() {
        bail!("{} is missing; build it first: cargo build -p pgstead", path.display());
    }
    Ok(path)
}

/// A daemon in a session of its own, so that a terminal's Ctrl-C is not for it. `launcher` comes before its command line.
pub fn spawn_daemon(
    launcher: &[String],
    binary: &Path,
    config: &Path,
    log: &Path,
    env: &[(String, String)],
) -> anyhow::Result<Child> {
    let out = OpenOptions::new().create(true).append(true).open(log)?;
    // Becomes the daemon itself: it forks only when it leads a process group, which a fresh child does not.
    std::process::Command::new("setsid")
        .args(launcher)
        .arg(binary)
        .args(["node", "run", "--config"])
        .arg(config)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()
        .context("the daemon cannot be started")
}

/// Runs a program to its end.
pub async fn run(program: &Path, args: &[&str], env: &[(&str, &str)]) -> anyhow::Result<Said> {
    let output = tokio::process::Command::new(program)
        .args(args)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("{} cannot be run", program.display()))?;
    Ok(said(&output))
}

fn said(output: &std::process::Output) -> Said {
    Said {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a program and hands over each line as it is printed, on whichever of the two outputs.
pub async fn run_showing(
    program: &Path,
    args: &[&str],
    env: &[(&str, &str)],
    mut line: impl FnMut(&str),
) -> anyhow::Result<Option<i32>> {
    let mut child = tokio::process::Command::new(program)
        .args(args)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{} cannot be run", program.display()))?;
    let mut out = BufReader::new(child.stdout.take().context("its output is piped")?).lines();
    let mut err = BufReader::new(child.stderr.take().context("its errors are piped")?).lines();
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        tokio::select! {
            next = out.next_line(), if out_open => match next? {
                Some(text) => line(&text),
                None => out_open = false,
            },
            next = err.next_line(), if err_open => match next? {
                Some(text) => line(&text),
                None => err_open = false,
            },
        }
    }
    Ok(child.wait().await?.code())
}

/// A helper that is told to end by the end of its input.
pub fn spawn_piped(program: &Path, args: &[&str]) -> anyhow::Result<Child> {
    std::process::Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} cannot be run", program.display()))
}

/// The newest Postgres that Debian's packages have installed.
pub fn postgres_bin() -> anyhow::Result<PathBuf> {
    let entries = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let bins = entries.map(|entry| entry.path().join("bin")).filter(|bin| bin.join("postgres").exists());
    let major = |bin: &PathBuf| bin.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    bins.max_by_key(major).context("there is no Postgres under /usr/lib/postgresql; run scripts/setup.sh postgres")
}

/// Whom Postgres runs as: it refuses root.
pub async fn postgres_user() -> anyhow::Result<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return Ok((rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()));
    }
    let mut ids = Vec::new();
    for which in ["-u", "-g"] {
        let said = run(Path::new("id"), &[which, "postgres"], &[]).await?.output()?;
        ids.push(said.trim().parse().context("id prints a number")?);
    }
    Ok((ids[0], ids[1]))
}

/// One of Postgres' programs, run to its end as its user.
pub async fn run_postgres(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let (uid, gid) = postgres_user().await?;
    let mut command = std::process::Command::new(postgres_bin()?.join(program));
    command.args(args).env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
    if rustix::process::geteuid().is_root() {
        command.gid(gid).uid(uid);
    }
    let output = tokio::process::Command::from(command).kill_on_drop(true).output().await?;
    let said = Said {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    said.output().with_context(|| format!("{program} {}", args.join(" ")))
}

/// A Postgres that nobody manages.
pub async fn spawn_postgres(args: &[String], log: &Path) -> anyhow::Result<Child> {
    let (uid, gid) = postgres_user().await?;
    let out = OpenOptions::new().create(true).append(true).open(log)?;
    let mut command = std::process::Command::new(postgres_bin()?.join("postgres"));
    command.args(args).env("LC_ALL", "C").current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    if rustix::process::geteuid().is_root() {
        command.gid(gid).uid(uid);
    }
    command.spawn().context("Postgres cannot be started")
}

/// The same where nothing can be awaited, such as in `drop`.
pub fn run_blocking(program: &Path, args: &[&str]) -> anyhow::Result<Said> {
    let output = std::process::Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} cannot be run", program.display()))?;
    Ok(said(&output))
}
