//! A client connection from its first byte to its last: start-up, admission, the wait for a member, the relay.

use crate::cancel::{KeyLease, KeySwap};
use crate::client::{self, Arrived, Refused};
use crate::commit_watch::CommitWatch;
use crate::gateway::{Shared, Stopping};
use crate::member::{self, Greeted};
use crate::relay::{self, Ended, Relay};
use crate::sockets;
use crate::startup::Startup;
use crate::table::{Access, Cluster, Target};
use crate::wire::Fatal;
use pgstead_types::{ClusterId, Tick};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::server::TlsStream;

/// Between two attempts at members that the routes name but that do not answer. The first is short: a new leader is
/// published some 10 ms before it lets clients in.
const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_millis(500);
/// The same while others wait for this one to find out, and how often it may be the one.
const FIRST_RETRY_MAX: Duration = Duration::from_millis(40);
const FIRST_ATTEMPTS_MAX: u32 = 20;
const ATTEMPT_MIN: Duration = Duration::from_secs(1);
/// Of the address that a client has connected to, from one cluster to another, while it waits.
const MOVES_MAX: usize = 3;
/// What a client may send before it has heard anything; real ones send nothing.
const EARLY_BYTES_MAX: usize = 1024;

/// Serves one connection; never fails, for nobody would hear of it.
pub async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    from: SocketAddr,
    to: (String, ClusterId, Access),
    starting: OwnedSemaphorePermit,
) {
    let (address, cluster, access) = to;
    if let Err(why) = sockets::ensure_alive_checked(&stream, &sockets::CLIENT) {
        tracing::debug!(%from, %why, "the client was gone at once");
        return;
    }
    let tls = shared.cluster(cluster).and_then(|cluster| cluster.tls.as_ref().map(|tls| tls.server.clone()));
    let mut stopping = shared.stopping.subscribe();
    let arrived = tokio::select! {
        arrived = client::receive(stream, tls, shared.options.startup_deadline) => arrived,
        _ = stopping.wait_for(|stopping| *stopping != Stopping::No) => return,
    };
    match arrived {
        Ok(Arrived::Session(stream, startup)) => {
            drop(starting);
            let mut session = Session { shared, stream, startup, address, cluster, access, early: Vec::new() };
            session.run(from).await;
        }
        Ok(Arrived::Cancel(key, stream)) => {
            shared.cancels.forward(key).await;
            stream.close().await;
        }
        Err(Refused::Told(why)) => tracing::info!(%from, %why, "refused a connection"),
        Err(why) => tracing::debug!(%from, %why, "a connection came to nothing"),
    }
}

struct Session {
    shared: Arc<Shared>,
    stream: TlsStream<TcpStream>,
    startup: Startup,
    /// That it has connected to.
    address: String,
    cluster: ClusterId,
    access: Access,
    /// Sent by the client while it waited.
    early: Vec<u8>,
}

/// How the wait for a member ended without one.
enum NoMember {
    Told(Fatal),
    /// The address is this cluster's now.
    Moved(ClusterId),
    ClientLeft,
}

impl Session {
    /// A cluster may take another one's place while a client waits for that one: it is served by whoever has the address.
    async fn run(&mut self, from: SocketAddr) {
        for _ in 0..MOVES_MAX {
            match self.run_on(from).await {
                Some(cluster) => self.cluster = cluster,
                None => return,
            }
        }
        client::farewell(&mut self.stream, &gone()).await;
    }

    /// Serves it as a client of that cluster; the cluster that has its address now, where that is another one.
    async fn run_on(&mut self, from: SocketAddr) -> Option<ClusterId> {
        let Some(cluster) = self.shared.cluster(self.cluster) else {
            client::farewell(&mut self.stream, &gone()).await;
            return None;
        };
        let name = cluster.route.name.clone();
        let _admitted = match self.shared.admission.try_admit(self.cluster) {
            Ok(admitted) => admitted,
            Err(why) => {
                tracing::warn!(cluster = %name, %from, %why, "refused a connection");
                let why = Fatal::new("53300", why.to_string()).hint("Close idle connections, or use a pool.");
                client::farewell(&mut self.stream, &why).await;
                return None;
            }
        };
        let (target, greeted) = match self.wait_for_member().await {
            Ok(found) => found,
            Err(NoMember::Told(why)) => {
                tracing::info!(cluster = %name, %from, %why, "no member for a connection");
                client::farewell(&mut self.stream, &why).await;
                return None;
            }
            Err(NoMember::Moved(to)) => return Some(to),
            Err(NoMember::ClientLeft) => return None,
        };
        let (user, database) = (&self.startup.user, &self.startup.database);
        tracing::debug!(cluster = %name, %from, user, database, member = %target.member.endpoint.member, "relays");
        self.relay(&name, target, greeted).await;
        None
    }

    /// The bounded hold: until a member has answered the start-up packet.
    async fn wait_for_member(&mut self) -> Result<(Target, Greeted), NoMember> {
        let Self { shared, stream, startup, address, cluster, access, early } = self;
        let search = search(shared, startup, address, *cluster, *access);
        tokio::pin!(search);
        let mut stopping = shared.stopping.subscribe();
        loop {
            let mut bytes = [0; 256];
            let listen = early.len() + bytes.len() <= EARLY_BYTES_MAX;
            tokio::select! {
                found = &mut search => return found,
                _ = stopping.wait_for(|stopping| *stopping != Stopping::No) => return Err(NoMember::Told(stopped())),
                // A client that gave up frees its place at once.
                read = stream.read(&mut bytes), if listen => match read {
                    Ok(0) | Err(_) => return Err(NoMember::ClientLeft),
                    Ok(length) => early.extend(&bytes[..length]),
                },
            }
        }
    }

    async fn relay(&mut self, name: &str, target: Target, greeted: Greeted) {
        let watch = Arc::new(CommitWatch::default());
        let lease = KeyLease::default();
        let swap = KeySwap::new(&self.shared.cancels, target.member.clone(), watch.clone(), lease.clone());
        let Greeted { stream: mut member, answer } = greeted;
        let mut relay = Relay::new(swap, watch, &self.early, &answer);
        let ended = {
            let deposed = until_deposed(&self.shared, self.cluster, &target);
            relay.run(&mut self.stream, &mut member, deposed, self.shared.stopping.subscribe()).await
        };
        lease.end();
        if matches!(ended, Ended::Withheld(_)) {
            relay.write_passed(&mut self.stream).await;
        }
        let why = match ended {
            Ended::Client | Ended::Member => None,
            Ended::Deposed => {
                tracing::info!(cluster = %name, member = %target.member.endpoint.member, "cut a session");
                Some(match target.leads {
                    Some(_) => Fatal::new("57P01", format!("the leader of cluster {name} changed; reconnect"))
                        .hint("If a commit was under way, its outcome is unknown."),
                    None => Fatal::new("57P01", format!("this replica of cluster {name} left; reconnect")),
                })
            }
            Ended::Stopped => Some(stopped()),
            Ended::Withheld(why) => {
                tracing::warn!(cluster = %name, ?why, "withheld a success: its acknowledgement was cancelled");
                let text = "the wait for acknowledgement may have been cancelled; whether the transaction will last is unknown";
                Some(Fatal::new("08007", text).hint("Reconnect and look whether it is there."))
            }
            Ended::Protocol(why) => {
                tracing::warn!(cluster = %name, %why, "ended a session");
                Some(Fatal::new("08P01", why.to_string()))
            }
        };
        match why {
            // Never into the middle of a message.
            Some(why) if relay.is_between_messages() => client::farewell(&mut self.stream, &why).await,
            _ => client::close(&mut self.stream).await,
        }
        let _ = tokio::time::timeout(relay::CLOSE_DEADLINE, member.shutdown()).await;
    }
}

/// Tries the members of the current routes until one answers or the hold is over; a change of routes wakes it at once.
async fn search(
    shared: &Shared,
    startup: &Startup,
    address: &str,
    id: ClusterId,
    access: Access,
) -> Result<(Target, Greeted), NoMember> {
    let began = Tick::now();
    let mut routes = shared.routes.subscribe();
    let mut pause = RETRY_FIRST;
    let mut last_error = None;
    // Kept between two attempts at the same leader, for a while: it may refuse this client for reasons of its own.
    let (mut goes_first, mut failed) = (None, 0);
    let hold = shared.options.hold;
    // A member that answers slowly gets a fair try even when the hold is short.
    let left = || hold.saturating_sub(Tick::now().since(began)).max(ATTEMPT_MIN);
    loop {
        let (cluster, moved) = {
            let table = routes.borrow_and_update();
            let Some(cluster) = table.clusters.get(&id).cloned() else { return Err(NoMember::Told(gone())) };
            let moved = if cluster.address(access) == address { None } else { table.served_at(address) };
            (cluster, moved)
        };
        if let Some(to) = moved.filter(|to| *to != id) {
            return Err(NoMember::Moved(to));
        }
        let targets = cluster.rank_targets(access, shared.next_turn());
        let known = !targets.is_empty();
        for target in targets {
            let leads = target.leads.is_some();
            if !leads {
                goes_first = None;
            }
            let attempt = async {
                if leads && goes_first.is_none() && failed < FIRST_ATTEMPTS_MAX {
                    goes_first = cluster.opening.turn().await;
                }
                let greeting = member::greet(&target.member, &startup.packet, &startup.user);
                tokio::time::timeout(left(), greeting).await
            };
            tokio::select! {
                greeted = attempt => match greeted {
                    Ok(Ok(greeted)) => {
                        // Anything but a question for the password says nothing of other clients.
                        if leads && greeted.answer.first() == Some(&b'R') {
                            cluster.opening.note_open();
                        }
                        return Ok((target, greeted));
                    }
                    Ok(Err(why)) => last_error = Some(why),
                    Err(_) => last_error = Some(member::silent(&target.member)),
                },
                () = until_deposed(shared, id, &target) => {}
            }
        }
        let left = hold.saturating_sub(Tick::now().since(began));
        if left.is_zero() {
            return Err(NoMember::Told(not_served(&cluster, access, hold, last_error.filter(|_| known))));
        }
        // Without a known member only new routes can help; with one, time may.
        let wait = if known { left.min(pause) } else { left };
        match tokio::time::timeout(wait, routes.changed()).await {
            // Perhaps another leader: it has not been tried yet, so it is not made to pay for the attempts at the last one.
            Ok(Ok(())) => (pause, goes_first, failed) = (RETRY_FIRST, None, 0),
            Ok(Err(_)) => return Err(NoMember::Told(stopped())),
            Err(_) => {
                failed += 1;
                if failed >= FIRST_ATTEMPTS_MAX {
                    goes_first = None;
                }
                // Whoever goes first asks for all that wait.
                let longest = if goes_first.is_some() { FIRST_RETRY_MAX } else { RETRY_MAX };
                pause = (pause * 2).min(longest);
            }
        }
    }
}

fn not_served(cluster: &Cluster, access: Access, hold: Duration, why: Option<member::ConnectError>) -> Fatal {
    let name = &cluster.route.name;
    let waited = hold.as_secs_f32();
    let message = match (why, access) {
        (Some(why), Access::ReadWrite) => {
            format!("the leader of cluster {name} cannot be reached (waited {waited} s): {why}; try again")
        }
        (Some(why), Access::ReadOnly) => {
            format!("no member of cluster {name} can be reached (waited {waited} s): {why}; try again")
        }
        (None, Access::ReadWrite) => format!("cluster {name} has no leader now (waited {waited} s); try again"),
        (None, Access::ReadOnly) => {
            format!("cluster {name} has no member to read from now (waited {waited} s); try again")
        }
    };
    Fatal::new("57P03", message)
}

fn gone() -> Fatal {
    Fatal::new("57P03", "this address serves no cluster any more")
}

fn stopped() -> Fatal {
    Fatal::new("57P01", "the gateway is stopping; reconnect")
}

/// Returns when the routes say that this member does not serve such sessions any more.
async fn until_deposed(shared: &Shared, id: ClusterId, target: &Target) {
    let mut routes = shared.routes.subscribe();
    let deposed = routes.wait_for(|table| !table.clusters.get(&id).is_some_and(|cluster| cluster.still_serves(target)));
    let ended = deposed.await.is_err();
    if ended {
        // The table outlives all sessions; without it there is nobody left to say that it changed.
        std::future::pending::<()>().await;
    }
}
