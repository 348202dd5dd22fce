//! The guard's processes: starting the postmaster, reaping everything, killing everything, and knowing when none is left.

use super::protocol::{ExitSeen, StopMode};
use crate::proc::{self, ProcessId};
use crate::sys;
use rustix::process::{Signal, WaitOptions};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub struct Tree {
    data_dir: PathBuf,
    postmaster: Option<(ProcessId, OwnedFd)>,
    pub last_exit: Option<ExitSeen>,
    /// The kernel's word that this process has no child. As the guard adopts every orphan below it, no child means no
    /// descendant.
    childless: bool,
    /// Postgres processes that an earlier guard has left in the data folder. They are not below this guard, so it cannot
    /// reap them and has to look.
    strays: bool,
}

impl Tree {
    /// Makes this process the one that adopts orphans.
    pub fn new(data_dir: &Path) -> io::Result<Self> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let strays = !proc::postgres_in(data_dir)?.is_empty();
        Ok(Self { data_dir: data_dir.to_path_buf(), postmaster: None, last_exit: None, childless: true, strays })
    }

    pub fn postmaster(&self) -> Option<ProcessId> {
        self.postmaster.as_ref().map(|(id, _)| *id)
    }
    /// Readable when the postmaster has ended.
    pub fn postmaster_fd(&self) -> Option<BorrowedFd<'_>> {
        self.postmaster.as_ref().map(|(_, fd)| fd.as_fd())
    }
    pub fn is_empty(&self) -> bool {
        self.childless && !self.strays
    }

    /// Spawns the postmaster. The caller has seen that the tree is empty.
    #[expect(
        clippy::disallowed_methods,
        reason = "the guard's one program is the postmaster; it has no command module"
    )]
    pub fn start(&mut self, program: &Path, args: &[String], log: File) -> io::Result<ProcessId> {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        sys::quit_when_parent_dies(&mut command);
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).expect("Linux pids fit an i32");
        // A child that nobody has reaped yet keeps its pid, so both reads below are of this child.
        let id = ProcessId::of(pid).ok_or_else(|| io::Error::other("the postmaster is not in /proc"))?;
        let fd = id.open()?.ok_or_else(|| io::Error::other("the postmaster cannot be opened"))?;
        self.postmaster = Some((id, fd));
        self.childless = false;
        Ok(id)
    }

    /// Tells the postmaster to shut down; false when there is none.
    pub fn stop(&self, mode: StopMode) -> io::Result<bool> {
        let signal = match mode {
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        };
        self.postmaster().map_or(Ok(false), |id| id.signal(signal))
    }

    /// Reaps every child that has ended. Returns the postmaster's end, if it was among them.
    pub fn reap(&mut self) -> io::Result<Option<ExitSeen>> {
        let mut exit = None;
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let pid = pid.as_raw_nonzero().get();
                    if let Some((postmaster, _)) = self.postmaster.take_if(|(id, _)| id.pid == pid) {
                        let code = status.exit_status();
                        let seen = ExitSeen { postmaster, code, signal: status.terminating_signal() };
                        self.last_exit = Some(seen.clone());
                        exit = Some(seen);
                    }
                }
                Ok(None) => {
                    self.childless = false;
                    break;
                }
                Err(rustix::io::Errno::CHILD) => {
                    self.childless = true;
                    break;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.strays {
            self.strays = self.find_strays()?.next().is_some();
        }
        Ok(exit)
    }

    /// SIGKILL to every process that is found now. Called again and again until [`Tree::is_empty`]: one pass can miss
    /// what is being forked.
    pub fn kill_all(&mut self) -> io::Result<()> {
        // The postmaster first: it is the one that makes new ones.
        if let Some(id) = self.postmaster() {
            id.signal(Signal::KILL)?;
        }
        let me = ProcessId::of_self().pid;
        for process in proc::descendants_of(me)? {
            process.id().signal(Signal::KILL)?;
        }
        let strays: Vec<ProcessId> = self.find_strays()?.collect();
        self.strays = !strays.is_empty();
        for stray in strays {
            stray.signal(Signal::KILL)?;
        }
        Ok(())
    }

    /// Looks again for processes of an earlier guard. Before each start, as the data folder may have been replaced.
    pub fn look_for_strays(&mut self) -> io::Result<()> {
        self.strays = self.find_strays()?.next().is_some();
        Ok(())
    }

    fn find_strays(&self) -> io::Result<impl Iterator<Item = ProcessId> + use<>> {
        let me = ProcessId::of_self().pid;
        let mine: Vec<i32> = proc::descendants_of(me)?.iter().map(|stat| stat.pid).collect();
        let there = proc::postgres_in(&self.data_dir)?;
        Ok(there.into_iter().filter(move |stat| !mine.contains(&stat.pid)).map(|stat| stat.id()))
    }
}
