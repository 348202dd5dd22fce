//! How a command ends: with a documented code, and in one sentence if not well.

use crate::args::Output;
use pgstead_api::Code;
use pgstead_api::client::{ClientError, ProfileError};
use std::process::ExitCode;

/// For `--help`.
pub const EXIT_CODES: &str = "Exit codes:
  0    done
  1    failed
  2    wrong usage: an argument, the spec or the profile
  3    no such thing
  4    refused: it contradicts the present state, or the token is not valid
  5    no server can be reached, or the Raft group has no leader
  6    waited in vain; the work goes on
  130  interrupted; work that was begun goes on";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Refused = 4,
    Unreachable = 5,
    InVain = 6,
    Interrupted = 130,
}

/// A command did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub exit: Exit,
    /// The API's code, if it was the API that said no.
    pub code: Option<Code>,
    /// What is wrong, what was expected, what to do. Empty when there is nobody left to read it.
    pub message: String,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, code: None, message: message.into() }
    }
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Says it on stderr.
    pub(crate) fn report(&self, output: Output) -> ExitCode {
        match output {
            _ if self.message.is_empty() => {}
            Output::Table => eprintln!("error: {}", self.message),
            Output::Json => eprintln!(
                "{}",
                serde_json::json!({ "error": { "exit": self.exit as u8, "code": self.code, "detail": self.message } })
            ),
        }
        ExitCode::from(self.exit as u8)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Server(_) | ClientError::Ca(_) => Exit::Usage,
            ClientError::Unreachable { .. } => Exit::Unreachable,
            ClientError::Lost { .. } | ClientError::BadAnswer { .. } => Exit::Failed,
            ClientError::Problem(problem) => match problem.code {
                Code::NotFound => Exit::NotFound,
                Code::Conflict | Code::Exists | Code::RevisionChanged | Code::Unauthorized | Code::BadJoinToken => {
                    Exit::Refused
                }
                Code::Malformed | Code::Invalid | Code::TooLarge | Code::NotJson => Exit::Usage,
                Code::NoController | Code::ControllerUnreachable => Exit::Unreachable,
                Code::NoSuchRoute | Code::MethodNotAllowed | Code::Internal | Code::OutcomeUnknown | Code::Other => {
                    Exit::Failed
                }
            },
        };
        Self { exit, code: error.code(), message: error.to_string() }
    }
}

impl From<ProfileError> for Failure {
    fn from(error: ProfileError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    /// Of writing to the screen. Whoever closed the pipe wants to hear nothing more.
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::failed(""),
            _ => Self::failed(format!("the answer cannot be written: {error}")),
        }
    }
}
