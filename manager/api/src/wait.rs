//! Long polls: look, and look again at each change of the record, until there is an answer or the time is over.

use crate::backend::Backend;
use crate::extract::parse_duration;
use crate::problem::{Code, Problem};
use pgstead_types::record::Record;
use std::time::Duration;

/// Longer waits die in proxies; a client asks again.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

pub fn check_wait(text: Option<&str>) -> Result<Duration, Problem> {
    let Some(text) = text else { return Ok(Duration::ZERO) };
    let wait = parse_duration(text).map_err(|why| Problem::new(Code::Malformed, format!("wait: {why}")))?;
    if wait > WAIT_MAX {
        let most = WAIT_MAX.as_secs();
        return Err(Problem::new(Code::Malformed, format!("wait is {text}; expected at most {most}s, then ask again")));
    }
    Ok(wait)
}

/// The first answer for which `done` holds, or the last one when the time is over. `look` sees every state that the
/// record has between two looks only in its latest form.
pub async fn until<T>(
    backend: &dyn Backend,
    wait: Duration,
    mut look: impl FnMut(&Record) -> T,
    done: impl Fn(&T) -> bool,
) -> T {
    let mut revision = backend.watch_revision();
    // Marked before the record is read, so that no change falls between the two.
    revision.mark_unchanged();
    let mut answer = look(&backend.record());
    if done(&answer) || wait.is_zero() {
        return answer;
    }
    let changes = async {
        loop {
            if revision.changed().await.is_err() {
                // The node is stopping; what is known is the answer.
                return;
            }
            answer = look(&backend.record());
            if done(&answer) {
                return;
            }
        }
    };
    // A wait that runs out is an ordinary end.
    let _ended: Result<(), tokio::time::error::Elapsed> = tokio::time::timeout(wait, changes).await;
    answer
}
