//! Messages that the gateway itself says in the Postgres protocol: refusals, and the request codes of start-up.
//! Shapes: <https://www.postgresql.org/docs/current/protocol-message-formats.html>.

use std::fmt;

/// Codes that stand where a start-up message has its version.
pub const CANCEL_REQUEST: u32 = 80_877_102;
pub const SSL_REQUEST: u32 = 80_877_103;
pub const GSSENC_REQUEST: u32 = 80_877_104;

/// The SSLRequest packet, which the gateway sends to members.
pub const SSL_REQUEST_PACKET: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// The protocol name of direct TLS connections (Postgres 17 and later).
pub const ALPN: &[u8] = b"postgresql";

/// An end of a connection that a person reads: an ErrorResponse of severity FATAL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fatal {
    /// SQLSTATE, five characters.
    pub code: &'static str,
    pub message: String,
    pub hint: Option<&'static str>,
}

impl Fatal {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }
    pub fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }
    /// The whole ErrorResponse message.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(64 + self.message.len());
        let mut field = |kind: u8, text: &str| {
            body.push(kind);
            body.extend(text.bytes().filter(|byte| *byte != 0));
            body.push(0);
        };
        field(b'S', "FATAL");
        field(b'V', "FATAL");
        field(b'C', self.code);
        field(b'M', &self.message);
        if let Some(hint) = self.hint {
            field(b'H', hint);
        }
        body.push(0);
        let mut message = vec![b'E'];
        let length = u32::try_from(body.len() + 4).expect("a message of ours is a sentence, not gigabytes");
        message.extend(length.to_be_bytes());
        message.extend(body);
        message
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

/// The field `kind` of an ErrorResponse or NoticeResponse body, if it is there.
pub fn error_field(body: &[u8], kind: u8) -> Option<&[u8]> {
    let mut rest = body;
    while let [found, tail @ ..] = rest {
        let end = tail.iter().position(|byte| *byte == 0)?;
        if *found == kind {
            return Some(&tail[..end]);
        }
        rest = &tail[end + 1..];
        if *found == 0 {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_whole_error_response() {
        let bytes = Fatal::new("57P03", "no leader").hint("retry").encode();
        assert_eq!(bytes[0], b'E');
        assert_eq!(u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize + 1, bytes.len());
        let body = &bytes[5..];
        assert_eq!(error_field(body, b'C'), Some(b"57P03".as_slice()));
        assert_eq!(error_field(body, b'M'), Some(b"no leader".as_slice()));
        assert_eq!(error_field(body, b'H'), Some(b"retry".as_slice()));
        assert_eq!(error_field(body, b'R'), None);
    }

    #[test]
    fn the_ssl_request_packet_carries_its_code() {
        assert_eq!(SSL_REQUEST_PACKET[4..], SSL_REQUEST.to_be_bytes());
    }
}
