//! The one unsafe line of this crate: code that runs between `fork` and `exec` of the postmaster.

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the kernel send SIGQUIT (Postgres' immediate shutdown, which takes the backends along) to the child when the
/// calling thread ends. So this must be called, and the child spawned, on a thread that lives as long as the process:
/// the guard has only its main one.
#[expect(unsafe_code, reason = "a hook between fork and exec has no safe form")]
pub fn quit_when_parent_dies(command: &mut Command) {
    let parent = getpid();
    let hook = move || {
        // After setuid, which `Command` has done by now and which would clear it.
        set_parent_process_death_signal(Some(Signal::QUIT))?;
        // A parent that died before the line above sends nothing any more.
        if getppid() == Some(parent) { Ok(()) } else { Err(io::Error::from(io::ErrorKind::BrokenPipe)) }
    };
    // SAFETY: the hook makes three system calls and touches neither the heap nor a lock, so it is sound in a forked child.
    unsafe {
        command.pre_exec(hook);
    }
}
