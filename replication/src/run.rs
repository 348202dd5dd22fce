//! The one place where outside programs are run. An error holds the arguments, the exit status, what the program said
//! and how long it took. Secrets never go through arguments or the environment: both can be read by others.

use crate::user::RunAs;
use pgstead_types::Tick;
use rustix::process::{Pid, Signal};
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

/// Of what a program says, this much of the end is kept: enough for any error, and bounded.
const SAID_BYTES_MAX: usize = 16 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot run {program} {args:?}")]
    Spawn {
        program: PathBuf,
        args: Vec<String>,
        #[source]
        error: io::Error,
    },
    #[error("{program} {args:?} ended with {status} after {elapsed:?}: {stderr}")]
    Failed { program: PathBuf, args: Vec<String>, status: ExitStatus, stderr: String, elapsed: Duration },
    #[error("{program} {args:?} was ended after {elapsed:?}, its deadline; it said: {stderr}")]
    TooSlow { program: PathBuf, args: Vec<String>, stderr: String, elapsed: Duration },
}

/// What a program that succeeded has said.
#[derive(Debug)]
pub struct Output {
    pub stdout: String,
}

/// A program about to be run.
pub struct Run<'a> {
    program: PathBuf,
    args: Vec<String>,
    run_as: Option<RunAs>,
    stdin: Vec<u8>,
    deadline: Duration,
    on_line: Option<&'a (dyn Fn(&str) + Send + Sync)>,
}

impl<'a> Run<'a> {
    pub fn new(program: &Path, args: impl IntoIterator<Item = String>) -> Self {
        Self {
            program: program.to_path_buf(),
            args: args.into_iter().collect(),
            run_as: None,
            stdin: Vec::new(),
            deadline: Duration::from_secs(60),
            on_line: None,
        }
    }
    pub fn run_as(mut self, user: RunAs) -> Self {
        self.run_as = Some(user);
        self
    }
    pub fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.stdin = bytes;
        self
    }
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
    /// Called with every line of standard error as it comes.
    pub fn on_line(mut self, on_line: &'a (dyn Fn(&str) + Send + Sync)) -> Self {
        self.on_line = Some(on_line);
        self
    }

    /// Runs it to its end. When the deadline passes, or the returned future is dropped, the program and its children are
    /// killed.
    #[expect(clippy::disallowed_methods, reason = "this is the command module")]
    pub async fn output(self) -> Result<Output, RunError> {
        let begun = Tick::now();
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().envs(plain_environment());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that pg_basebackup's second process can be killed with the first.
        command.process_group(0).kill_on_drop(true);
        become_user(&mut command, self.run_as);
        let spawn_error = |error| RunError::Spawn { program: self.program.clone(), args: self.args.clone(), error };
        let mut child = command.spawn().map_err(spawn_error)?;
        let group = KillGroup(child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())));
        let mut stdin = child.stdin.take().expect("asked for above");
        let mut stdout = child.stdout.take().expect("asked for above");
        let mut stderr = BufReader::new(child.stderr.take().expect("asked for above"));
        let mut said = String::new();
        let work = async {
            let feed = async {
                // A program that ends without reading everything is judged by its exit status.
                let _ = stdin.write_all(&self.stdin).await;
                drop(stdin);
            };
            let hear = async {
                let mut out = Vec::new();
                stdout.read_to_end(&mut out).await.map(|_| String::from_utf8_lossy(&out).into_owned())
            };
            let listen = async {
                let mut line = Vec::new();
                while matches!(stderr.read_until(b'\n', &mut line).await, Ok(count) if count > 0) {
                    let text = String::from_utf8_lossy(&line);
                    if let Some(on_line) = self.on_line {
                        on_line(text.trim_end());
                    }
                    keep_end(&mut said, &text);
                    line.clear();
                }
            };
            let ((), stdout, ()) = tokio::join!(feed, hear, listen);
            let status = child.wait().await;
            Ok::<_, io::Error>((stdout?, status?))
        };
        let outcome = tokio::time::timeout(self.deadline, work).await;
        let elapsed = Tick::now().since(begun);
        let (program, args) = (self.program, self.args);
        match outcome {
            Ok(Ok((stdout, status))) => {
                group.disarm();
                if status.success() {
                    return Ok(Output { stdout });
                }
                Err(RunError::Failed { program, args, status, stderr: said.trim().to_string(), elapsed })
            }
            Ok(Err(error)) => Err(RunError::Spawn { program, args, error }),
            Err(_) => Err(RunError::TooSlow { program, args, stderr: said.trim().to_string(), elapsed }),
        }
    }
}

/// Kills a process group when dropped.
struct KillGroup(Option<Pid>);

impl KillGroup {
    fn disarm(mut self) {
        self.0 = None;
    }
}
impl Drop for KillGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended meanwhile.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

/// Starts a program that goes on when this process ends; what it says is appended to `log`.
#[expect(clippy::disallowed_methods, reason = "this is the command module")]
pub fn spawn_lasting(program: &Path, args: &[OsString], run_as: &RunAs, log: &Path) -> io::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).mode(0o640).open(log)?;
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(plain_environment());
    command.current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    become_user(&mut command, Some(*run_as));
    command.spawn()
}

/// Switching users also drops root's supplementary groups: the standard library does that when it sets a uid.
fn become_user(command: &mut Command, run_as: Option<RunAs>) {
    if let Some(user) = run_as.filter(|user| user.is_someone_else()) {
        command.uid(user.uid).gid(user.gid);
    }
}

/// Nothing of the daemon's own environment, which may hold secrets, and messages in one language.
fn plain_environment() -> [(&'static str, &'static str); 3] {
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("LC_ALL", "C"), ("TZ", "UTC")]
}

fn keep_end(said: &mut String, more: &str) {
    said.push_str(more);
    if said.len() > SAID_BYTES_MAX {
        let mut cut = said.len() - SAID_BYTES_MAX / 2;
        while !said.is_char_boundary(cut) {
            cut += 1;
        }
        said.drain(..cut);
    }
}

/// The end of a log, for an error message.
pub fn tail_of(log: &Path) -> String {
    const TAIL_BYTES: u64 = 2000;
    let read = || -> io::Result<String> {
        let mut file = std::fs::File::open(log)?;
        let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_string())
    };
    read().unwrap_or_else(|error| format!("(no log: {error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Run<'static> {
        Run::new(Path::new("/bin/sh"), ["-c".to_string(), script.to_string()])
    }

    #[tokio::test]
    async fn an_error_holds_what_was_run_and_what_it_said() {
        let error = shell("echo oh no >&2; exit 3").output().await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("oh no") && text.contains("/bin/sh") && text.contains('3'), "{text}");
    }

    #[tokio::test]
    async fn a_slow_program_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let error = shell(&script).deadline(Duration::from_millis(300)).output().await.unwrap_err();
        assert!(matches!(error, RunError::TooSlow { .. }), "{error}");
        let child: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        let begun = Tick::now();
        while crate::proc::Stat::read(child).is_some_and(|stat| stat.state != 'Z') {
            assert!(Tick::now().since(begun) < Duration::from_secs(5), "the sleep lives on");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_environment_of_the_daemon_stays_with_the_daemon() {
        let output = shell("env").output().await.unwrap();
        assert!(!output.stdout.contains("CARGO"), "{}", output.stdout);
    }
}
