//! First packets as no decent client sends them, and direct TLS.

use crate::world::{Certificates, World, soon};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What the gateway answers to these bytes before it closes.
async fn answer(world: &World, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(world.read_write()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("the gateway closes", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn packet(code: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 8).unwrap();
    [&length.to_be_bytes(), &code.to_be_bytes(), body].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_first_packets_are_refused_with_an_error() {
    let world = World::new().await;
    let startup = b"user\0ann\0database\0app\0\0";
    for (bytes, expected) in [
        (packet(3 << 16, startup), "C28000\0Mthis gateway requires TLS; use sslmode=verify-full\0"),
        (packet(2 << 16, startup), "C0A000\0Munsupported frontend protocol 2.0"),
        (packet(3 << 16, b"user\0ann"), "C08P01\0Minvalid start-up packet"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "C08P01\0Minvalid length of start-up packet"),
        (20_000u32.to_be_bytes().to_vec(), "C08P01\0Minvalid length of start-up packet: 20000 bytes"),
        (packet(80_877_102, &[0; 6]), "C08P01\0Minvalid cancel request"),
    ] {
        let said = answer(&world, &bytes).await;
        assert!(said.starts_with('E') && said.contains(expected), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gss_encryption_is_declined_once() {
    let world = World::new().await;
    let gss = packet(80_877_104, &[]);
    let said = answer(&world, &[gss.clone(), packet(3 << 16, b"user\0ann\0\0")].concat()).await;
    assert!(said.starts_with("NE") && said.contains("requires TLS"), "{said:?}");
    let said = answer(&world, &[gss.clone(), gss].concat()).await;
    assert!(said.contains("unexpected encryption request"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_is_sent_away_at_every_stage() {
    let world = World::with(Certificates::new(), |options| options.startup_deadline = Duration::from_millis(200)).await;
    for bytes in [&b""[..], b"\0\0", b"\0\0\0\x20\0\x03\0\0user"] {
        let said = answer(&world, bytes).await;
        assert!(said.contains("no whole start-up packet came within 0.2 s"), "{said:?}");
    }
    assert_eq!(answer(&world, &packet(80_877_103, &[])).await, "S", "no handshake");
    assert_eq!(answer(&world, &[0x16, 3]).await, "", "half a direct handshake");
}

async fn direct(world: &World, alpn: &[&[u8]]) -> String {
    let mut config = world.rustls_client();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(world.read_write()).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut stream = match connector.connect("127.0.0.1".try_into().unwrap(), stream).await {
        Ok(stream) => stream,
        Err(why) => return why.to_string(),
    };
    stream.write_all(&packet(3 << 16, b"user\0ann\0\0")).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("the gateway closes", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_tls_needs_the_protocols_name() {
    let world = World::with(Certificates::new(), |options| options.hold = Duration::ZERO).await;
    let said = direct(&world, &[b"postgresql"]).await;
    assert!(said.contains("cluster app has no leader now"), "{said:?}");
    let said = direct(&world, &[]).await;
    assert!(said.contains("by ALPN"), "{said:?}");
    let said = direct(&world, &[b"http/1.1"]).await;
    assert!(said.contains("NoApplicationProtocol"), "{said:?}");
}
