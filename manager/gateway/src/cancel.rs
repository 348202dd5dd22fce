//! Cancel keys. A client gets a key of the gateway's own making; a CancelRequest that names it is sent on to the
//! session's member with the member's key. Keys are known to the gateway that issued them and to no other.

use crate::commit_watch::CommitWatch;
use crate::member::{self, Member};
use crate::startup::CancelKey;
use crate::wire::CANCEL_REQUEST;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A member that does not take a cancel within this is as good as gone.
const FORWARD_DEADLINE: Duration = Duration::from_secs(10);

/// All keys in use.
#[derive(Clone, Default)]
pub struct CancelKeys(Arc<Mutex<HashMap<u32, Issued>>>);

struct Issued {
    secret: Vec<u8>,
    theirs: CancelKey,
    member: Member,
    watch: Arc<CommitWatch>,
}

impl CancelKeys {
    fn issued(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Issued>> {
        self.0.lock().expect("no code panics while it holds this lock")
    }

    /// Sends a client's cancel on, if the key is one of ours. The protocol has no answer to it, so neither has this.
    pub async fn forward(&self, key: CancelKey) {
        let (member, theirs, watch) = {
            let issued = self.issued();
            let Some(found) = issued.get(&key.pid).filter(|found| is_equal(&found.secret, &key.secret)) else {
                tracing::info!("a cancel request names no session of this gateway; ignored");
                return;
            };
            (found.member.clone(), found.theirs.clone(), found.watch.clone())
        };
        // Before the first byte leaves: from here on a success may be that of a cancelled wait.
        watch.on_cancel_begins();
        match tokio::time::timeout(FORWARD_DEADLINE, send(&member, &theirs)).await {
            Ok(Ok(())) => watch.on_cancel_ends(),
            Ok(Err(SendError::NotSent(why))) => {
                watch.on_cancel_ends();
                tracing::warn!(member = %member.endpoint.member, %why, "a cancel could not be sent on");
            }
            Ok(Err(SendError::Unknown(why))) => {
                watch.on_cancel_lost();
                tracing::warn!(member = %member.endpoint.member, %why, "a cancel was sent on, its arrival is not known");
            }
            Err(_) => {
                watch.on_cancel_lost();
                tracing::warn!(member = %member.endpoint.member, "a cancel did not get through in time");
            }
        }
    }

    #[cfg(test)]
    fn in_use(&self) -> usize {
        self.issued().len()
    }
}

enum SendError {
    NotSent(member::ConnectError),
    Unknown(std::io::Error),
}

/// Returns once the member has closed the connection, which it does after it has signalled the backend.
async fn send(member: &Member, key: &CancelKey) -> Result<(), SendError> {
    let mut stream = member::connect(member).await.map_err(SendError::NotSent)?;
    let length = u32::try_from(12 + key.secret.len()).expect("secrets have 256 bytes at most");
    let mut packet = length.to_be_bytes().to_vec();
    packet.extend(CANCEL_REQUEST.to_be_bytes());
    packet.extend(key.pid.to_be_bytes());
    packet.extend(&key.secret);
    stream.write_all(&packet).await.map_err(SendError::Unknown)?;
    stream.flush().await.map_err(SendError::Unknown)?;
    match stream.read(&mut [0; 64]).await {
        // Postgres closes without a TLS farewell.
        Err(why) if why.kind() != std::io::ErrorKind::UnexpectedEof => Err(SendError::Unknown(why)),
        _ => Ok(()),
    }
}

/// Does not tell by its time how much of a guess was right.
fn is_equal(ours: &[u8], guess: &[u8]) -> bool {
    ours.len() == guess.len() && ours.iter().zip(guess).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// Puts our key in the place of the member's, once per session.
pub struct KeySwap {
    keys: CancelKeys,
    member: Member,
    watch: Arc<CommitWatch>,
    lease: KeyLease,
}

impl std::fmt::Debug for KeySwap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeySwap for {}", self.member.endpoint.member)
    }
}

/// Keeps a session's key valid; held by the session.
#[derive(Clone, Default)]
pub struct KeyLease(Arc<Mutex<Option<(CancelKeys, u32)>>>);

impl KeyLease {
    /// The session is over: its key names nothing any more.
    pub fn end(&self) {
        if let Some((keys, pid)) = self.0.lock().expect("no code panics while it holds this lock").take() {
            keys.issued().remove(&pid);
        }
    }
}

impl KeySwap {
    pub fn new(keys: &CancelKeys, member: Member, watch: Arc<CommitWatch>, lease: KeyLease) -> Self {
        Self { keys: keys.clone(), member, watch, lease }
    }

    /// Rewrites a BackendKeyData body in place: our key is as long as the member's, as the protocol version demands.
    pub fn replace(self, body: &mut [u8]) -> Result<(), ()> {
        let (pid, secret) = body.split_first_chunk_mut::<4>().ok_or(())?;
        if !(4..=crate::startup::CANCEL_SECRET_BYTES_MAX).contains(&secret.len()) {
            return Err(());
        }
        let theirs = CancelKey { pid: u32::from_be_bytes(*pid), secret: secret.to_vec() };
        crate::tls::fill_random(secret);
        let mut issued = self.keys.issued();
        let ours = loop {
            let mut candidate = [0; 4];
            crate::tls::fill_random(&mut candidate);
            // Process numbers are positive; some clients read them as signed.
            let candidate = u32::from_be_bytes(candidate) & 0x7fff_ffff;
            if candidate != 0 && !issued.contains_key(&candidate) {
                break candidate;
            }
        };
        *pid = ours.to_be_bytes();
        issued.insert(ours, Issued { secret: secret.to_vec(), theirs, member: self.member, watch: self.watch });
        drop(issued);
        *self.lease.0.lock().expect("no code panics while it holds this lock") = Some((self.keys, ours));
        Ok(())
    }

    #[cfg(test)]
    pub fn for_tests(keys: &CancelKeys) -> Self {
        Self::new(keys, Member::for_tests(), Arc::default(), KeyLease::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_never_sees_the_members_key() {
        for length in [4, 32, 256] {
            let keys = CancelKeys::default();
            let theirs = [vec![0, 0, 0, 9], vec![7; length]].concat();
            let mut body = theirs.clone();
            let swap = KeySwap::for_tests(&keys);
            let lease = swap.lease.clone();
            swap.replace(&mut body).unwrap();
            assert_ne!(body, theirs);
            assert_eq!(body.len(), theirs.len());
            let ours = u32::from_be_bytes(body[..4].try_into().unwrap());
            assert_eq!(keys.issued()[&ours].theirs, CancelKey { pid: 9, secret: vec![7; length] });
            assert!(is_equal(&keys.issued()[&ours].secret, &body[4..]));
            lease.end();
            assert_eq!(keys.in_use(), 0);
        }
    }

    #[test]
    fn a_key_of_an_impossible_length_is_refused() {
        for length in [0, 3, 7, 261] {
            assert_eq!(KeySwap::for_tests(&CancelKeys::default()).replace(&mut vec![1; length]), Err(()));
        }
    }
}
