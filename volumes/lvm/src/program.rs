//! The one place where outside programs are run. An error holds the arguments, the exit status, what the program said and
//! how long it took. Secrets go through standard input: arguments and the environment can be read by others.

use pgstead_types::Tick;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdout, Command};

/// Long enough for a busy host's disks, and a hang is noticed within the patience of whoever waits.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(60);
/// A report of ten thousand volumes is some 10 MB; more than this is no report.
const STDOUT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Of what a program says on standard error, this much is kept: enough for any error, and bounded.
const STDERR_BYTES_MAX: u64 = 16 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("cannot run {command}")]
    Spawn {
        command: String,
        #[source]
        error: io::Error,
    },
    #[error("`{command}` ended with {status} after {elapsed:.1?}: {stderr}")]
    Failed { command: String, status: ExitStatus, stderr: String, elapsed: Duration },
    #[error("`{command}` was not done after {elapsed:.1?}, its deadline{}", if *lasting { "; it goes on" } else { ", and was ended" })]
    TooSlow { command: String, lasting: bool, elapsed: Duration },
    #[error("`{command}` printed more than {STDOUT_BYTES_MAX} bytes")]
    TooMuch { command: String },
}

impl ProgramError {
    /// What the program itself said.
    pub fn stderr(&self) -> &str {
        match self {
            Self::Failed { stderr, .. } => stderr,
            Self::Spawn { .. } | Self::TooSlow { .. } | Self::TooMuch { .. } => "",
        }
    }
    /// Its exit status, if it came to one.
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Failed { status, .. } => status.code(),
            _ => None,
        }
    }
}

/// A program about to be run.
#[derive(Debug)]
pub struct Run {
    program: PathBuf,
    args: Vec<String>,
    stdin: Vec<u8>,
    deadline: Duration,
    /// It is left to itself at the deadline.
    lasting: bool,
    /// Exit statuses beside 0 that are answers and no failures.
    answers: Vec<i32>,
}

/// What a program that succeeded has said.
#[derive(Debug)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    /// 0, or one of those that were named as answers.
    pub code: i32,
}

impl Run {
    pub fn new(program: impl AsRef<Path>) -> Self {
        Self {
            program: program.as_ref().to_path_buf(),
            args: Vec::new(),
            stdin: Vec::new(),
            deadline: DEADLINE_DEFAULT,
            lasting: false,
            answers: Vec::new(),
        }
    }
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }
    pub fn args<T: Into<String>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }
    /// Never shown in errors.
    pub fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.stdin = bytes;
        self
    }
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
    /// Not killed at its deadline, only waited for no longer: a change of storage that is cut short may leave a device
    /// suspended, and everything that uses it hangs.
    pub fn lasting(mut self) -> Self {
        self.lasting = true;
        self
    }
    /// An exit status that is an answer, such as those of `fsck`.
    pub fn answers(mut self, codes: impl IntoIterator<Item = i32>) -> Self {
        self.answers.extend(codes);
        self
    }

    /// Runs it to its end, at most to its deadline; then it is killed, unless it is lasting. A dropped future leaves it running: half of a change
    /// to storage is worse than a whole one that nobody waits for.
    pub async fn output(self) -> Result<Output, ProgramError> {
        let ended = self.run_to_end(|stdout| read_some(stdout, STDOUT_BYTES_MAX)).await?;
        // Some say on standard output what went wrong.
        let code = ended.code(&ended.stdout.0)?;
        match ended.stdout {
            (stdout, true) => Ok(Output { stdout, stderr: ended.stderr, code }),
            (_, false) => Err(ProgramError::TooMuch { command: ended.command }),
        }
    }

    /// The same for a program that may say more than anybody wants to hold: each of its lines is given to `each` as it comes, and only
    /// the end tells whether it was right. A line that is longer than `longest` ends the reading: it comes cut, and nothing after it.
    pub async fn each_line(self, longest: u64, each: impl FnMut(&str) + Send) -> Result<(), ProgramError> {
        let ended = self.run_to_end(|stdout| read_lines(stdout, longest, each)).await?;
        ended.code("").map(drop)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the command module")]
    async fn run_to_end<T, F>(self, read: impl FnOnce(ChildStdout) -> F) -> Result<Ended<T>, ProgramError>
    where
        F: Future<Output = io::Result<T>>,
    {
        let begun = Tick::now();
        let name = self.program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let command_text = std::iter::once(name).chain(self.args.iter().cloned()).collect::<Vec<_>>().join(" ");
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().envs(plain_environment()).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: the terminal's interrupt is for the daemon, which then waits for what is under way.
        command.process_group(0);
        let spawned = command.spawn();
        let spawn_error = |error| ProgramError::Spawn { command: command_text.clone(), error };
        let mut child = spawned.map_err(spawn_error)?;
        let mut stdin = child.stdin.take().expect("asked for above");
        let (stdout, stderr) =
            (child.stdout.take().expect("asked for above"), child.stderr.take().expect("asked for above"));
        let reading = read(stdout);
        let work = async {
            let feed = async {
                // A program that ends without reading everything is judged by its exit status.
                let _ = stdin.write_all(&self.stdin).await;
                drop(stdin);
            };
            let ((), out, err) = tokio::join!(feed, reading, read_some(stderr, STDERR_BYTES_MAX));
            let status = child.wait().await?;
            Ok::<_, io::Error>((out?, err?, status))
        };
        let outcome = tokio::time::timeout(self.deadline, work).await;
        let elapsed = Tick::now().since(begun);
        match outcome {
            Ok(Ok((stdout, (stderr, _), status))) => {
                Ok(Ended { stdout, stderr, status, answers: self.answers, command: command_text, elapsed })
            }
            Ok(Err(error)) => Err(ProgramError::Spawn { command: command_text, error }),
            Err(_) => {
                if !self.lasting
                    && let Some(pid) = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()))
                {
                    // It may have ended meanwhile. One that waits for a dead disk ends when the kernel lets it.
                    let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
                }
                Err(ProgramError::TooSlow { command: command_text, lasting: self.lasting, elapsed })
            }
        }
    }
}

/// A program that has ended by itself.
struct Ended<T> {
    stdout: T,
    stderr: String,
    status: ExitStatus,
    answers: Vec<i32>,
    command: String,
    elapsed: Duration,
}

impl<T> Ended<T> {
    /// Its exit status where that is no failure. `said`: what it said beside standard error.
    fn code(&self, said: &str) -> Result<i32, ProgramError> {
        let code = self.status.code().filter(|code| *code == 0 || self.answers.contains(code));
        code.ok_or_else(|| {
            let said = if self.stderr.trim().is_empty() { one_line(said) } else { one_line(&self.stderr) };
            let stderr = said.chars().take(STDERR_BYTES_MAX as usize).collect();
            ProgramError::Failed { command: self.command.clone(), status: self.status, stderr, elapsed: self.elapsed }
        })
    }
}

/// At most so much of it, and whether that was all; the rest is read and dropped, so that the program is not held up.
async fn read_some(mut from: impl AsyncRead + Unpin, most: u64) -> io::Result<(String, bool)> {
    let mut bytes = Vec::new();
    (&mut from).take(most).read_to_end(&mut bytes).await?;
    let rest = tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok((String::from_utf8_lossy(&bytes).into_owned(), rest == 0))
}

/// The rest after a line that is too long is read and dropped, so that the program is not held up.
async fn read_lines(from: ChildStdout, longest: u64, mut each: impl FnMut(&str)) -> io::Result<()> {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut from).take(longest).read_until(b'\n', &mut line).await?;
        if read > 0 {
            each(String::from_utf8_lossy(&line).trim_end());
        }
        if line.last() != Some(&b'\n') {
            return tokio::io::copy(&mut from, &mut tokio::io::sink()).await.map(drop);
        }
    }
}

/// Lines that are always there say nothing about this failure.
fn one_line(stderr: &str) -> String {
    let noise = |line: &&str| line.is_empty() || line.starts_with("File descriptor ");
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !noise(line)).collect();
    lines.join("; ")
}

/// Nothing of the daemon's own environment, which may hold secrets, and messages in one language.
fn plain_environment() -> [(&'static str, &'static str); 4] {
    [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("LC_ALL", "C"),
        ("TZ", "UTC"),
        ("LVM_SUPPRESS_FD_WARNINGS", "1"),
    ]
}

/// Where a program is, in the places where a system has its programs.
pub fn find(name: &str) -> Option<PathBuf> {
    let (_, path) = plain_environment()[0];
    path.split(':').map(|folder| Path::new(folder).join(name)).find(|file| file.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Run {
        Run::new("/bin/sh").args(["-c", script])
    }

    #[tokio::test]
    async fn an_error_holds_what_was_run_and_what_it_said() {
        let error = shell("echo oh no >&2; echo File descriptor 7 leaked >&2; exit 3").output().await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("oh no") && text.contains("sh -c") && text.contains('3'), "{text}");
        assert_eq!(error.stderr(), "oh no", "what is always there is left out");
        assert_eq!(error.code(), Some(3));
    }

    #[tokio::test]
    async fn lines_come_one_by_one_and_one_that_never_ends_is_cut() {
        let lines = async |script: &str| {
            let mut lines = Vec::new();
            let done = shell(script).each_line(10, |line| lines.push(line.to_string())).await;
            (lines, done.map_err(|error| error.to_string()))
        };
        assert_eq!(lines("echo one; printf two").await, (vec!["one".into(), "two".into()], Ok(())));
        let (cut, done) = lines("echo one; yes | tr -d '\\n' | head -c 1000000; echo; echo two").await;
        assert_eq!((cut, done), (vec!["one".to_string(), "y".repeat(10)], Ok(())));
        let (said, failed) = lines("echo one; echo oh no >&2; exit 3").await;
        assert!(said == ["one"] && failed.unwrap_err().contains("oh no"));
    }

    #[tokio::test]
    async fn a_status_that_is_an_answer_is_no_failure() {
        assert_eq!(shell("exit 1").answers([1, 2]).output().await.unwrap().code, 1);
        assert!(shell("exit 4").answers([1, 2]).output().await.is_err());
    }

    #[tokio::test]
    async fn a_program_past_its_deadline_is_killed_with_its_children() {
        let error = shell("sleep 1000 & sleep 1000").deadline(Duration::from_millis(200)).output().await.unwrap_err();
        assert!(matches!(error, ProgramError::TooSlow { .. }), "{error}");
    }

    #[tokio::test]
    async fn what_goes_in_is_never_in_an_error() {
        let error = shell("cat >/dev/null; exit 1").stdin(b"hunter2".to_vec()).output().await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn much_on_standard_error_is_cut_and_nobody_hangs() {
        let error = shell("yes x | head -c 3000000 >&2; exit 1").output().await.unwrap_err();
        assert!(error.stderr().len() < 100_000);
    }
}
