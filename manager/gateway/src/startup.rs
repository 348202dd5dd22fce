//! Reads a client's first packets by hand: no IO, no allocation beyond the packet, no panic on any input.
//! Layout: a 4-byte length that counts itself, a 4-byte code or version, then the body.

use crate::wire::{CANCEL_REQUEST, Fatal, GSSENC_REQUEST, SSL_REQUEST};

/// Postgres' own limit (`MAX_STARTUP_PACKET_LENGTH`); a larger one is no client of ours.
pub const PACKET_BYTES_MAX: usize = 10_000;
/// The first byte of a TLS handshake record: a client of Postgres 17 or later that skips SSLRequest.
pub const TLS_HANDSHAKE_BYTE: u8 = 0x16;
/// Protocol 3.2 allows cancel keys up to this.
pub const CANCEL_SECRET_BYTES_MAX: usize = 256;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    Ssl,
    GssEncryption,
    Cancel(CancelKey),
    Startup(Startup),
}

/// What a CancelRequest names: a process number and its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct CancelKey {
    pub pid: u32,
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CancelKey {{ pid: {}, secret: {} bytes }}", self.pid, self.secret.len())
    }
}

/// A StartupMessage, kept byte for byte so that it is forwarded as it came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Startup {
    pub packet: Vec<u8>,
    pub user: String,
    pub database: String,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    #[error("invalid length of start-up packet: {0} bytes")]
    Length(u32),
    #[error("unsupported frontend protocol {major}.{minor}: this gateway speaks 3.x")]
    Version { major: u16, minor: u16 },
    #[error("invalid start-up packet: its parameters do not end where they should")]
    Parameters,
    #[error("invalid cancel request")]
    Cancel,
    #[error("unexpected {0} at this point of the connection")]
    OutOfPlace(&'static str),
}

impl From<Malformed> for Fatal {
    fn from(why: Malformed) -> Self {
        let code = if matches!(why, Malformed::Version { .. }) { "0A000" } else { "08P01" };
        Self::new(code, why.to_string())
    }
}

/// How many bytes follow the 4-byte length word.
pub fn try_body_length(word: [u8; 4]) -> Result<usize, Malformed> {
    let length = u32::from_be_bytes(word);
    let bytes = usize::try_from(length).map_err(|_| Malformed::Length(length))?;
    if !(8..=PACKET_BYTES_MAX).contains(&bytes) {
        return Err(Malformed::Length(length));
    }
    Ok(bytes - 4)
}

/// A whole packet, its length word included.
pub fn try_parse(packet: &[u8]) -> Result<Request, Malformed> {
    let (word, rest) = packet.split_first_chunk::<4>().ok_or(Malformed::Length(0))?;
    if try_body_length(*word)? != rest.len() {
        return Err(Malformed::Length(u32::from_be_bytes(*word)));
    }
    let (code, body) = rest.split_first_chunk::<4>().ok_or(Malformed::Length(u32::from_be_bytes(*word)))?;
    match u32::from_be_bytes(*code) {
        SSL_REQUEST if body.is_empty() => Ok(Request::Ssl),
        GSSENC_REQUEST if body.is_empty() => Ok(Request::GssEncryption),
        CANCEL_REQUEST => try_parse_cancel(body).map(Request::Cancel),
        version if version >> 16 == 3 => try_parse_startup(packet, body).map(Request::Startup),
        version => Err(Malformed::Version { major: (version >> 16) as u16, minor: (version & 0xffff) as u16 }),
    }
}

fn try_parse_cancel(body: &[u8]) -> Result<CancelKey, Malformed> {
    let (pid, secret) = body.split_first_chunk::<4>().ok_or(Malformed::Cancel)?;
    if !(4..=CANCEL_SECRET_BYTES_MAX).contains(&secret.len()) {
        return Err(Malformed::Cancel);
    }
    Ok(CancelKey { pid: u32::from_be_bytes(*pid), secret: secret.to_vec() })
}

fn try_parse_startup(packet: &[u8], body: &[u8]) -> Result<Startup, Malformed> {
    // Postgres insists on the closing zero; whoever sends none may be speaking another protocol.
    let mut rest = body.strip_suffix(&[0]).ok_or(Malformed::Parameters)?;
    let (mut user, mut database) = (None, None);
    while !rest.is_empty() {
        let name = take_text(&mut rest)?;
        let value = take_text(&mut rest)?;
        match name {
            b"user" => user = Some(value),
            b"database" => database = Some(value),
            _ => {}
        }
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let user = user.map(text).unwrap_or_default();
    let database = database.map(text).unwrap_or_else(|| user.clone());
    Ok(Startup { packet: packet.to_vec(), user, database })
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let end = rest.iter().position(|byte| *byte == 0).ok_or(Malformed::Parameters)?;
    let (text, tail) = rest.split_at(end);
    *rest = &tail[1..];
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(body.len() + 8).unwrap().to_be_bytes().to_vec();
        bytes.extend(code.to_be_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn knows_every_kind_of_first_packet() {
        assert_eq!(try_parse(&packet(SSL_REQUEST, &[])), Ok(Request::Ssl));
        assert_eq!(try_parse(&packet(GSSENC_REQUEST, &[])), Ok(Request::GssEncryption));
        let cancel = try_parse(&packet(CANCEL_REQUEST, &[0, 0, 0, 7, 1, 2, 3, 4])).unwrap();
        assert_eq!(cancel, Request::Cancel(CancelKey { pid: 7, secret: vec![1, 2, 3, 4] }));
        let bytes = packet(3 << 16, b"user\0ann\0database\0app\0options\0\0\0");
        let Request::Startup(startup) = try_parse(&bytes).unwrap() else { panic!("not a start-up message") };
        assert_eq!((startup.user.as_str(), startup.database.as_str()), ("ann", "app"));
        assert_eq!(startup.packet, bytes);
    }

    #[test]
    fn takes_cancel_keys_of_protocol_3_2_up_to_256_bytes() {
        let body = |secret: usize| [vec![0, 0, 0, 7], vec![9; secret]].concat();
        assert!(matches!(try_parse(&packet(CANCEL_REQUEST, &body(256))), Ok(Request::Cancel(_))));
        assert_eq!(try_parse(&packet(CANCEL_REQUEST, &body(257))), Err(Malformed::Cancel));
        assert_eq!(try_parse(&packet(CANCEL_REQUEST, &body(3))), Err(Malformed::Cancel));
        assert!(matches!(try_parse(&packet(196_610, b"user\0ann\0\0")), Ok(Request::Startup(_))));
    }

    #[test]
    fn refuses_what_is_not_a_start_up_packet() {
        assert_eq!(try_body_length([0, 0, 0, 7]), Err(Malformed::Length(7)));
        assert_eq!(try_body_length(*b"GET "), Err(Malformed::Length(0x4745_5420)));
        assert_eq!(try_parse(&packet(2 << 16, &[0])), Err(Malformed::Version { major: 2, minor: 0 }));
        assert_eq!(try_parse(&packet(3 << 16, b"user\0ann\0")), Err(Malformed::Parameters));
        assert_eq!(try_parse(&packet(3 << 16, b"user\0")), Err(Malformed::Parameters));
        assert_eq!(try_parse(&packet(3 << 16, &[])), Err(Malformed::Parameters));
    }

    proptest! {
        #[test]
        fn never_panics_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = try_parse(&bytes);
        }

        #[test]
        fn never_panics_on_framed_bytes(code in prop_oneof![
            Just(3u32 << 16), Just(196_610), Just(CANCEL_REQUEST), Just(SSL_REQUEST), any::<u32>(),
        ], body in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..400)) {
            if let Ok(Request::Startup(startup)) = try_parse(&packet(code, &body)) {
                prop_assert!(startup.packet.len() <= PACKET_BYTES_MAX);
            }
        }

        #[test]
        fn accepts_no_length_beyond_the_limit(word in any::<[u8; 4]>()) {
            if let Ok(length) = try_body_length(word) {
                prop_assert!((4..=PACKET_BYTES_MAX - 4).contains(&length));
            }
        }
    }
}
