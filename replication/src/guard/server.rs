//! The guard itself: one thread, one poll loop over the postmaster's pidfd, the listener and its clients.
//!
//! No runtime and no second thread, on purpose: a node runs one guard per member, and the parent-death signal of the
//! postmaster is bound to the thread that spawned it.

use super::GuardPaths;
use super::lease::LeaseTimer;
use super::log::ServerLog;
use super::protocol::{
    ExitSeen, GuardEvent, GuardStatus, LINE_BYTES_MAX, Reply, ReplyLine, Request, RequestLine, VERSION,
};
use super::tree::Tree;
use crate::proc::ProcessId;
use pgstead_types::Tick;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// How a guard is run: `pgstead guard --run-dir <run_dir> --data-dir <data_dir>`, as the user that Postgres runs as.
#[derive(Clone, Debug)]
pub struct GuardOptions {
    /// The member's folder outside its volume: socket, lock, logs.
    pub run_dir: PathBuf,
    /// Where the postmaster will work; processes that an earlier guard has left there are fenced as well.
    pub data_dir: PathBuf,
}

/// Between two looks while processes are being killed: short, because a failover waits for the last of them.
const FENCING_PAUSE: Duration = Duration::from_millis(4);
/// Between two looks at rest, for orphans to reap and the size of the log. Everything that matters wakes the loop.
const RESTING_PAUSE: Duration = Duration::from_secs(2);
/// A client that does not read its answers is cut off beyond this.
const UNREAD_BYTES_MAX: usize = 1 << 20;

/// Runs the guard until it is told to quit. It must be the only thread of its process.
pub fn guard_main(options: GuardOptions) -> ExitCode {
    match Guard::begin(options).and_then(|mut guard| guard.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pgstead guard: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Why a guard ended.
#[derive(Debug, thiserror::Error)]
enum GuardFailure {
    #[error("refusing to run as root; expected the user that Postgres runs as (run_as in the node's configuration)")]
    Root,
    #[error("another guard holds {lock}; one member has one guard")]
    AlreadyGuarded { lock: PathBuf },
    #[error("cannot {what}: {error}")]
    System { what: &'static str, error: io::Error },
}

fn cannot(what: &'static str) -> impl Fn(io::Error) -> GuardFailure {
    move |error| GuardFailure::System { what, error }
}

struct Guard {
    paths: GuardPaths,
    tree: Tree,
    log: ServerLog,
    lease: LeaseTimer,
    listener: UnixListener,
    clients: Vec<Client>,
    /// Who waits for the tree to be empty.
    fencing: Vec<(u64, u64)>,
    /// Killing goes on until nothing is left, even when whoever asked has gone.
    killing: bool,
    next_client: u64,
    quit: bool,
    _lock: File,
}

struct Client {
    id: u64,
    stream: UnixStream,
    unread: Vec<u8>,
    unsent: Vec<u8>,
    subscribed: bool,
    gone: bool,
}

impl Guard {
    fn begin(options: GuardOptions) -> Result<Self, GuardFailure> {
        if rustix::process::geteuid().is_root() {
            return Err(GuardFailure::Root);
        }
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        // Away from the daemon's session, so that nothing sent to that ends the guard. Fails when it leads one already.
        let _ = rustix::process::setsid();
        let paths = GuardPaths::under(&options.run_dir);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&paths.lock)
            .map_err(cannot("open the lock file"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(GuardFailure::AlreadyGuarded { lock: paths.lock }),
            Err(error) => return Err(cannot("lock the lock file")(error.into())),
        }
        let tree = Tree::new(&options.data_dir).map_err(cannot("become the reaper of orphans"))?;
        // Under the lock, so the socket is an earlier guard's and nobody listens on it.
        match fs::remove_file(&paths.socket) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(cannot("remove the old socket")(error)),
            _ => {}
        }
        let me = serde_json::to_vec(&ProcessId::of_self()).expect("two numbers are always JSON");
        let fresh = paths.state.with_extension("json.new");
        // The state file before the socket: whoever can connect can also check whom it has reached.
        fs::write(&fresh, me)
            .and_then(|()| fs::rename(&fresh, &paths.state))
            .map_err(cannot("write the state file"))?;
        let listener = UnixListener::bind(&paths.socket).map_err(cannot("listen on the socket"))?;
        listener.set_nonblocking(true).map_err(cannot("set up the socket"))?;
        Ok(Self {
            log: ServerLog::at(&paths.server_log),
            paths,
            tree,
            lease: LeaseTimer::new().map_err(cannot("make a timer"))?,
            listener,
            clients: Vec::new(),
            fencing: Vec::new(),
            killing: false,
            next_client: 1,
            quit: false,
            _lock: lock,
        })
    }

    fn run(&mut self) -> Result<(), GuardFailure> {
        loop {
            self.look_after_processes().map_err(cannot("look after the processes"))?;
            self.clients.iter_mut().for_each(Client::send);
            self.clients.retain(|client| !client.gone);
            if self.quit && self.clients.iter().all(|client| client.unsent.is_empty()) {
                let _ = fs::remove_file(&self.paths.socket);
                return Ok(());
            }
            self.wait().map_err(cannot("wait for events"))?;
            self.accept();
            for at in 0..self.clients.len() {
                for request in self.clients[at].receive() {
                    let client = self.clients[at].id;
                    if let Some(reply) = self.answer(client, &request) {
                        self.clients[at].push(Some(request.id), reply);
                    }
                }
            }
        }
    }

    /// Reaps, tells of ends, and goes on killing where that was asked for.
    fn look_after_processes(&mut self) -> io::Result<()> {
        if let Some(exit) = self.tree.reap()? {
            self.tell_exit(exit);
        }
        self.look_after_lease()?;
        if self.killing && !self.tree.is_empty() {
            self.tree.kill_all()?;
            if let Some(exit) = self.tree.reap()? {
                self.tell_exit(exit);
            }
        }
        if self.killing && self.tree.is_empty() {
            self.killing = false;
            self.publish(GuardEvent::Emptied);
            for (client, request) in std::mem::take(&mut self.fencing) {
                if let Some(client) = self.clients.iter_mut().find(|one| one.id == client) {
                    client.push(Some(request), Reply::Fenced);
                }
            }
        }
        if let Err(error) = self.log.rotate_if_large() {
            eprintln!("pgstead guard: cannot rotate the server log: {error}");
        }
        Ok(())
    }

    /// Nobody is asked: the daemon may be frozen or dead.
    fn look_after_lease(&mut self) -> io::Result<()> {
        if self.tree.is_empty() {
            return self.lease.forget();
        }
        if let Some(why) = self.lease.over(Tick::now())? {
            self.lease.forget()?;
            self.tree.look_for_strays()?;
            self.killing = true;
            eprintln!("pgstead guard: ending Postgres: {why}");
            self.publish(GuardEvent::LeaseOver { why: why.to_string() });
        }
        Ok(())
    }

    fn tell_exit(&mut self, exit: ExitSeen) {
        let tree_empty = self.tree.is_empty();
        // Backends without a postmaster serve nobody and can still acknowledge commits: end them without being asked.
        self.killing |= !tree_empty;
        self.publish(GuardEvent::Exited { exit, tree_empty });
    }

    fn publish(&mut self, event: GuardEvent) {
        for client in self.clients.iter_mut().filter(|client| client.subscribed) {
            client.push(None, Reply::Event(event.clone()));
        }
    }

    fn wait(&self) -> io::Result<()> {
        let pause = if self.killing { FENCING_PAUSE } else { RESTING_PAUSE };
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        if let Some(postmaster) = self.tree.postmaster_fd() {
            fds.push(PollFd::from_borrowed_fd(postmaster, PollFlags::IN));
        }
        fds.extend(self.lease.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        for client in &self.clients {
            let writable = if client.unsent.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            fds.push(PollFd::from_borrowed_fd(client.stream.as_fd(), PollFlags::IN | writable));
        }
        let pause = Timespec::try_from(pause).expect("a few seconds fit");
        match poll(&mut fds, Some(&pause)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let me = rustix::process::geteuid();
            let allowed =
                rustix::net::sockopt::socket_peercred(&stream).is_ok_and(|peer| peer.uid == me || peer.uid.is_root());
            if !allowed || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let id = self.next_client;
            self.next_client += 1;
            let (unread, unsent) = (Vec::new(), Vec::new());
            self.clients.push(Client { id, stream, unread, unsent, subscribed: false, gone: false });
        }
    }

    /// The answer, or `None` where it comes later.
    fn answer(&mut self, client: u64, line: &RequestLine) -> Option<Reply> {
        let refused = |why: String| Some(Reply::Refused { why });
        if line.v > VERSION {
            return refused(format!(
                "version {} of the protocol is not known here; expected {VERSION} at most",
                line.v
            ));
        }
        match &line.request {
            Request::Hello => Some(Reply::Hello { guard: ProcessId::of_self(), version: VERSION }),
            Request::Status => Some(Reply::Status(GuardStatus {
                postmaster: self.tree.postmaster(),
                tree_empty: self.tree.is_empty(),
                last_exit: self.tree.last_exit.clone(),
                lease_end_boottime_ns: self.lease.end().map(Tick::as_nanos),
            })),
            Request::Lease { end_boottime_ns, strict } => match end_boottime_ns.map(Tick::from_nanos) {
                None if matches!(self.lease.over(Tick::now()), Ok(Some(_))) => refused("its lease is over".to_string()),
                Some(end) if end <= Tick::now() => refused("that lease is over".to_string()),
                Some(_) if self.killing => refused("its processes are being ended".to_string()),
                Some(_) if self.tree.postmaster().is_none() => refused("no postmaster runs".to_string()),
                end => {
                    let done = match end {
                        Some(end) => self.lease.try_count(end, *strict, Tick::now()),
                        None => self.lease.forget().map(|()| true),
                    };
                    match done {
                        Ok(true) => Some(Reply::LeaseCounted),
                        Ok(false) => refused("the lease before it is over".to_string()),
                        Err(error) => refused(format!("cannot set a timer: {error}")),
                    }
                }
            },
            Request::Start { program, args } => {
                if let Err(error) = self.tree.look_for_strays() {
                    return refused(format!("cannot look for processes of an earlier Postgres: {error}"));
                }
                if let Some(postmaster) = self.tree.postmaster() {
                    return refused(format!("a postmaster runs already, pid {}", postmaster.pid));
                }
                if !self.tree.is_empty() {
                    return refused("processes of an earlier postmaster are left; fence first".to_string());
                }
                match self.log.open().and_then(|log| self.tree.start(program, args, log)) {
                    Ok(postmaster) => Some(Reply::Started { postmaster }),
                    Err(error) => refused(format!("cannot start {}: {error}", program.display())),
                }
            }
            Request::Stop { mode } => match self.tree.stop(*mode) {
                Ok(true) => Some(Reply::Stopping),
                Ok(false) => refused("no postmaster runs".to_string()),
                Err(error) => refused(format!("cannot signal the postmaster: {error}")),
            },
            Request::Fence => {
                if let Err(error) = self.tree.look_for_strays() {
                    return refused(format!("cannot look for processes of an earlier Postgres: {error}"));
                }
                self.killing = true;
                self.fencing.push((client, line.id));
                None
            }
            Request::Subscribe => {
                if let Some(client) = self.clients.iter_mut().find(|one| one.id == client) {
                    client.subscribed = true;
                }
                Some(Reply::Subscribed)
            }
            Request::Quit if self.tree.is_empty() => {
                self.quit = true;
                Some(Reply::Quitting)
            }
            Request::Quit => refused("processes are left, and they would end with the guard".to_string()),
        }
    }
}

impl Client {
    fn push(&mut self, id: Option<u64>, reply: Reply) {
        let line = ReplyLine { v: VERSION, id, reply };
        self.unsent.extend(serde_json::to_vec(&line).expect("replies are plain data"));
        self.unsent.push(b'\n');
        self.gone |= self.unsent.len() > UNREAD_BYTES_MAX;
        self.send();
    }

    fn send(&mut self) {
        while !self.unsent.is_empty() && !self.gone {
            match self.stream.write(&self.unsent) {
                Ok(count) => {
                    self.unsent.drain(..count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
        }
    }

    /// Reads what is there and returns the whole lines in it.
    fn receive(&mut self) -> Vec<RequestLine> {
        let mut chunk = [0; 8192];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    self.gone = true;
                    break;
                }
                Ok(count) => self.unread.extend(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.gone = true;
                    break;
                }
            }
        }
        let mut requests = Vec::new();
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            match serde_json::from_slice::<RequestLine>(&line) {
                Ok(request) => requests.push(request),
                Err(error) => {
                    let id =
                        serde_json::from_slice::<serde_json::Value>(&line).ok().and_then(|line| line["id"].as_u64());
                    self.push(id, Reply::Refused { why: format!("not a request that is known here: {error}") });
                }
            }
        }
        self.gone |= self.unread.len() > LINE_BYTES_MAX;
        requests
    }
}
