//! Walks the messages of both directions as they stream by: type byte and length, no more of a row than that.
//! Holds back only the small messages that decide something, until they are whole.

use crate::cancel::KeySwap;
use crate::commit_watch::{CommitWatch, NoticeScan, Withheld};
use crate::window::Window;

/// Type byte and length word.
const HEADER_BYTES: usize = 5;
/// Deciding messages are held back whole up to this; real ones have a few hundred bytes. Half a window at most,
/// so that there is always room to read the rest.
const HELD_BYTES_MAX: usize = 8 * 1024;

/// Why a session cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Stop {
    #[error("a success was withheld")]
    Withheld(Withheld),
    #[error("not a message of the Postgres protocol: type {kind}, length {length}")]
    NotAMessage { kind: u8, length: u32 },
}

impl From<Withheld> for Stop {
    fn from(why: Withheld) -> Self {
        Self::Withheld(why)
    }
}

/// The header at the front, with the length of the whole message. `None` until five bytes are there.
fn header(bytes: &[u8]) -> Result<Option<(u8, usize)>, Stop> {
    let Some((head, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let [kind, word @ ..] = *head;
    let length = u32::from_be_bytes(word);
    if length < 4 || length > i32::MAX as u32 {
        return Err(Stop::NotAMessage { kind, length });
    }
    Ok(Some((kind, length as usize + 1)))
}

/// From the member to the client.
#[derive(Debug)]
pub struct ServerFrames {
    /// What is still to come of a message whose header has passed.
    left: usize,
    /// A notice too large to hold.
    notice: Option<NoticeScan>,
    /// Taken by the first BackendKeyData.
    swap: Option<KeySwap>,
}

impl ServerFrames {
    pub fn new(swap: KeySwap) -> Self {
        Self { left: 0, notice: None, swap: Some(swap) }
    }

    /// Everything that was passed so far ends with a whole message.
    pub fn is_between_messages(&self) -> bool {
        self.left == 0
    }

    /// Passes what may be passed. On `Err` nothing behind that point may ever reach the client.
    pub fn judge(&mut self, window: &mut Window, watch: &CommitWatch) -> Result<(), Stop> {
        loop {
            if self.left > 0 {
                let piece = self.left.min(window.unjudged().len());
                if piece == 0 {
                    return Ok(());
                }
                if let Some(scan) = &mut self.notice {
                    scan.feed(&window.unjudged()[..piece])?;
                }
                window.pass(piece);
                self.left -= piece;
                continue;
            }
            self.notice = None;
            let Some((kind, total)) = header(window.unjudged())? else { return Ok(()) };
            let decides = matches!(kind, b'C' | b'Z' | b'K') || (kind == b'N' && total <= HELD_BYTES_MAX);
            if !decides {
                watch.on_server_message(kind);
                self.notice = (kind == b'N').then(NoticeScan::new);
                window.pass(HEADER_BYTES);
                self.left = total - HEADER_BYTES;
                continue;
            }
            if total > HELD_BYTES_MAX {
                return Err(Stop::NotAMessage { kind, length: (total - 1) as u32 });
            }
            let Some(message) = window.unjudged_mut().get_mut(..total) else { return Ok(()) };
            let body = &mut message[HEADER_BYTES..];
            match kind {
                b'C' => watch.on_command_complete(body.strip_suffix(&[0]).unwrap_or(body))?,
                b'Z' => watch.on_ready(body.first().copied().unwrap_or(0))?,
                b'N' => NoticeScan::new().feed(body)?,
                _ => {
                    if let Some(swap) = self.swap.take() {
                        swap.replace(body).map_err(|()| Stop::NotAMessage { kind, length: (total - 1) as u32 })?;
                    }
                }
            }
            window.pass(total);
        }
    }
}

/// From the client to the member.
#[derive(Debug, Default)]
pub struct ClientFrames {
    left: usize,
}

impl ClientFrames {
    pub fn judge(&mut self, window: &mut Window, watch: &CommitWatch) -> Result<(), Stop> {
        loop {
            if self.left > 0 {
                let piece = self.left.min(window.unjudged().len());
                if piece == 0 {
                    return Ok(());
                }
                window.pass(piece);
                self.left -= piece;
                continue;
            }
            let Some((kind, total)) = header(window.unjudged())? else { return Ok(()) };
            watch.on_client_message(kind);
            window.pass(HEADER_BYTES);
            self.left = total - HEADER_BYTES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::CancelKeys;
    use proptest::prelude::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn frames() -> ServerFrames {
        ServerFrames::new(KeySwap::for_tests(&CancelKeys::default()))
    }

    /// Sends `bytes` through in pieces of `step`; what came out, and whether it was stopped.
    fn pass(bytes: &[u8], step: usize, watch: &CommitWatch) -> (Vec<u8>, Result<(), Stop>, bool) {
        let (mut frames, mut window, mut out) = (frames(), Window::new(), Vec::new());
        for piece in bytes.chunks(step) {
            let mut piece = piece;
            while !piece.is_empty() {
                let room = window.room();
                let length = room.len().min(piece.len());
                assert!(length > 0, "the window has no room left");
                room[..length].copy_from_slice(&piece[..length]);
                window.filled(length);
                piece = &piece[length..];
                let verdict = frames.judge(&mut window, watch);
                out.extend(window.judged());
                window.written(window.judged().len());
                if verdict.is_err() {
                    return (out, verdict, frames.is_between_messages());
                }
            }
        }
        (out, Ok(()), frames.is_between_messages())
    }

    fn sync_warning(padding: usize) -> Vec<u8> {
        let mut body = b"SWARNING\0M".to_vec();
        body.extend(vec![b'x'; padding]);
        body.extend(b"\0RSyncRepWaitForLSN\0\0");
        message(b'N', &body)
    }

    #[test]
    fn nothing_of_a_cancelled_wait_passes_at_any_cut() {
        let bytes = [message(b'D', b"row"), sync_warning(10), message(b'C', b"COMMIT\0"), message(b'Z', b"I")].concat();
        for step in 1..bytes.len() {
            let (out, verdict, between) = pass(&bytes, step, &CommitWatch::default());
            assert_eq!(verdict, Err(Stop::Withheld(Withheld::WaitCancelled)));
            assert_eq!(out, message(b'D', b"row"));
            assert!(between, "an error may be said in place of the success");
        }
    }

    #[test]
    fn a_huge_warning_is_recognised_as_it_streams() {
        let bytes = [sync_warning(100_000), message(b'C', b"COMMIT\0")].concat();
        let (out, verdict, between) = pass(&bytes, 1000, &CommitWatch::default());
        assert_eq!(verdict, Err(Stop::Withheld(Withheld::WaitCancelled)));
        assert!(!between && !out.windows(6).any(|piece| piece == b"COMMIT"));
    }

    #[test]
    fn a_length_that_cannot_be_is_refused() {
        let (_, verdict, _) = pass(&[b'D', 0, 0, 0, 3, 0], 6, &CommitWatch::default());
        assert_eq!(verdict, Err(Stop::NotAMessage { kind: b'D', length: 3 }));
        let mut window = Window::with(b"GET / HTTP/1.1\r\n");
        assert!(ClientFrames::default().judge(&mut window, &CommitWatch::default()).is_ok(), "a length like any other");
    }

    proptest! {
        #[test]
        fn ordinary_messages_pass_unchanged(
            messages in proptest::collection::vec(
                (prop_oneof![Just(b'D'), Just(b'C'), Just(b'Z'), Just(b'N'), Just(b'E'), Just(b'd')], 0usize..9000),
                0..12,
            ),
            step in 1usize..20_000,
        ) {
            let bytes: Vec<u8> = messages
                .iter()
                .flat_map(|(kind, length)| {
                    let length = if matches!(kind, b'C' | b'Z') { length % 60 } else { *length };
                    message(*kind, &vec![b'x'; length])
                })
                .collect();
            let (out, verdict, between) = pass(&bytes, step, &CommitWatch::default());
            prop_assert_eq!(verdict, Ok(()));
            prop_assert!(between);
            prop_assert_eq!(out, bytes);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000), step in 1usize..200) {
            let _ = pass(&bytes, step, &CommitWatch::default());
            let mut window = Window::with(&bytes);
            let _ = ClientFrames::default().judge(&mut window, &CommitWatch::default());
        }
    }
}
