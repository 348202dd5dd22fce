//! The client's side of start-up: plain or direct TLS, SSLRequest, GSSENCRequest, cancel or start-up packet, all within
//! one deadline.

use crate::startup::{self, CancelKey, Malformed, Request, Startup, TLS_HANDSHAKE_BYTE};
use crate::wire::{ALPN, Fatal};
use pgstead_types::Tick;
use rustls::ServerConfig;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long an end may take to be said to a client that does not read.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(1);

/// What a client came for.
pub enum Arrived {
    Session(TlsStream<TcpStream>, Startup),
    /// With the connection that it came on: clients take its end for the sign that the cancel has had its effect.
    Cancel(CancelKey, CancelStream),
}

/// The connection of a cancel. Nothing is said on it any more.
#[allow(clippy::large_enum_variant, reason = "one for each cancel, and short-lived")]
pub enum CancelStream {
    Plain(TcpStream),
    Encrypted(TlsStream<TcpStream>),
}

impl CancelStream {
    pub async fn close(self) {
        match self {
            Self::Plain(mut stream) => close(&mut stream).await,
            Self::Encrypted(mut stream) => close(&mut stream).await,
        }
    }
}

/// Why a client goes away again. It has been told where that was possible.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("refused: {0}")]
    Told(Fatal),
    #[error("the client's connection failed: {0}")]
    Lost(#[from] std::io::Error),
    #[error("no TLS handshake within the deadline")]
    SlowHandshake,
}

/// Reads and answers until it is known what the client wants.
pub async fn receive(stream: TcpStream, tls: Option<Arc<ServerConfig>>, limit: Duration) -> Result<Arrived, Refused> {
    let deadline = Deadline { began: Tick::now(), limit };
    let mut stream = stream;
    let mut asked_gss = false;
    let mut first = [0];
    match deadline.bound(stream.peek(&mut first)).await {
        Some(0) => return Err(Refused::Lost(std::io::ErrorKind::UnexpectedEof.into())),
        Some(_) if first[0] == TLS_HANDSHAKE_BYTE => {
            return receive_encrypted(stream, tls, &deadline, Direct::Yes).await;
        }
        Some(_) => {}
        None => return Err(tell(&mut stream, too_slow(&deadline)).await),
    }
    loop {
        let request = match read_packet(&mut stream, &deadline).await {
            Ok(request) => request,
            Err(why) => return Err(why.tell(&mut stream).await),
        };
        match request {
            Request::Cancel(key) => return Ok(Arrived::Cancel(key, CancelStream::Plain(stream))),
            Request::Ssl => {
                if tls.is_none() {
                    return Err(tell(&mut stream, no_certificate()).await);
                }
                stream.write_all(b"S").await?;
                return receive_encrypted(stream, tls, &deadline, Direct::No).await;
            }
            Request::GssEncryption if !asked_gss => {
                asked_gss = true;
                stream.write_all(b"N").await?;
            }
            Request::GssEncryption => {
                return Err(tell(&mut stream, Malformed::OutOfPlace("encryption request").into()).await);
            }
            Request::Startup(_) => {
                let why = Fatal::new("28000", "this gateway requires TLS; use sslmode=verify-full");
                return Err(tell(&mut stream, why).await);
            }
        }
    }
}

/// Whether the client began with TLS, without SSLRequest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direct {
    Yes,
    No,
}

async fn receive_encrypted(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    deadline: &Deadline,
    direct: Direct,
) -> Result<Arrived, Refused> {
    let Some(tls) = tls else { return Err(Refused::Told(no_certificate())) };
    let handshake = TlsAcceptor::from(tls).accept(stream);
    let mut stream = match tokio::time::timeout(deadline.left(), handshake).await {
        Ok(stream) => stream?,
        Err(_) => return Err(Refused::SlowHandshake),
    };
    stream.get_mut().1.set_buffer_limit(Some(crate::window::WINDOW_BYTES));
    // Without the name it may be another protocol's client that was sent here (the ALPACA attack).
    if direct == Direct::Yes && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        let why = Fatal::new("08P01", "direct TLS connections must name the protocol \"postgresql\" by ALPN");
        return Err(tell(&mut stream, why).await);
    }
    match read_packet(&mut stream, deadline).await {
        Ok(Request::Startup(startup)) => Ok(Arrived::Session(stream, startup)),
        Ok(Request::Cancel(key)) => Ok(Arrived::Cancel(key, CancelStream::Encrypted(stream))),
        Ok(_) => Err(tell(&mut stream, Malformed::OutOfPlace("encryption request").into()).await),
        Err(why) => Err(why.tell(&mut stream).await),
    }
}

struct Deadline {
    began: Tick,
    limit: Duration,
}

impl Deadline {
    fn left(&self) -> Duration {
        self.limit.saturating_sub(Tick::now().since(self.began))
    }
    /// `None` when the time is over; a failed read counts as the end of the stream.
    async fn bound(&self, work: impl Future<Output = std::io::Result<usize>>) -> Option<usize> {
        tokio::time::timeout(self.left(), work).await.ok().map(|result| result.unwrap_or(0))
    }
}

fn too_slow(deadline: &Deadline) -> Fatal {
    Fatal::new("08P01", format!("no whole start-up packet came within {} s", deadline.limit.as_secs_f32()))
}

fn no_certificate() -> Fatal {
    Fatal::new("57P03", "this gateway has no usable certificate for this cluster yet; try again")
}

enum ReadError {
    Fatal(Fatal),
    Lost(std::io::Error),
}

impl ReadError {
    async fn tell(self, stream: &mut (impl AsyncWrite + Unpin)) -> Refused {
        match self {
            Self::Fatal(why) => tell(stream, why).await,
            Self::Lost(why) => Refused::Lost(why),
        }
    }
}

async fn read_packet(stream: &mut (impl AsyncRead + Unpin), deadline: &Deadline) -> Result<Request, ReadError> {
    let read = async {
        let mut packet = vec![0; 4];
        stream.read_exact(&mut packet).await.map_err(ReadError::Lost)?;
        let word = packet.first_chunk::<4>().expect("four bytes were just read");
        let length = startup::try_body_length(*word).map_err(|why| ReadError::Fatal(why.into()))?;
        packet.resize(4 + length, 0);
        stream.read_exact(&mut packet[4..]).await.map_err(ReadError::Lost)?;
        startup::try_parse(&packet).map_err(|why| ReadError::Fatal(why.into()))
    };
    match tokio::time::timeout(deadline.left(), read).await {
        Ok(result) => result,
        Err(_) => Err(ReadError::Fatal(too_slow(deadline))),
    }
}

async fn tell(stream: &mut (impl AsyncWrite + Unpin), why: Fatal) -> Refused {
    farewell(stream, &why).await;
    Refused::Told(why)
}

/// Says why and closes. A client that does not listen is not waited for.
pub async fn farewell(stream: &mut (impl AsyncWrite + Unpin), why: &Fatal) {
    let say = async {
        stream.write_all(&why.encode()).await?;
        stream.shutdown().await
    };
    if let Ok(Err(error)) = tokio::time::timeout(FAREWELL_DEADLINE, say).await {
        tracing::debug!(%error, "the client was gone before it could be told");
    }
}

/// Closes without a word.
pub async fn close(stream: &mut (impl AsyncWrite + Unpin)) {
    let _ = tokio::time::timeout(FAREWELL_DEADLINE, stream.shutdown()).await;
}
