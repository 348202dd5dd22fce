//! Places where a test can end the daemon as a crash would: before and after each step, each once per data folder.
//! Nothing happens unless the environment names steps.

use pgstead_types::Step;
use std::path::Path;

/// `before:<step>` or `after:<step>`; several with commas between them.
const VARIABLE: &str = "PGSTEAD_TEST_ABORT";

pub enum When {
    Before,
    After,
}

/// Ends the process here if the environment asks for it and it has not been done in this folder before.
pub fn pass(when: When, step: Step, state: &Path) {
    let Ok(wanted) = std::env::var(VARIABLE) else { return };
    let here = match when {
        When::Before => format!("before:{step}"),
        When::After => format!("after:{step}"),
    };
    if !wanted.split(',').any(|point| point == here) {
        return;
    }
    let done = state.join(format!("aborted-{here}"));
    if std::fs::OpenOptions::new().write(true).create_new(true).open(done).is_ok() {
        tracing::error!(%step, "ending the daemon at {here}, as {VARIABLE} asks");
        std::process::abort();
    }
}
