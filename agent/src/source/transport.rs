//! The bytes between us and a broker: TCP, TLS, and either of them below a WebSocket.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};

use super::session::Cause;
use super::tls;
use crate::config::Source;

/// How long a connection may take to be made, TLS and WebSocket included.
const CONNECT_MAX: Duration = Duration::from_secs(20);
/// How long one address of the host may take to answer, if it has several.
const ADDRESS_MAX: Duration = Duration::from_secs(5);
/// How long a write may take. Beyond: the broker does not read, and the connection is given up.
const WRITE_MAX: Duration = Duration::from_secs(20);
/// Bytes that are read at once, at the least.
const READ_BYTES: usize = 16 << 10;
/// What a WebSocket message may have beyond the largest packet; packets may be split over several messages, or share one.
const MESSAGE_BYTES: usize = 1 << 20;

/// A connection to a broker.
pub(super) enum Transport {
    Stream(Box<dyn Stream>),
    WebSocket(Box<WebSocketStream<Box<dyn Stream>>>),
}

/// TCP, or TLS over it.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Transport {
    /// Connects to a source.
    pub(super) async fn connect(source: &Source) -> Result<Self, Cause> {
        match tokio::time::timeout(CONNECT_MAX, connect(source)).await {
            Ok(connected) => connected,
            Err(_) => Err(failed(source, format!("no connection within {} s", CONNECT_MAX.as_secs()), false)),
        }
    }

    /// Appends what comes to `buffer`; 0 bytes: it has ended. May be dropped while it waits.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Stream(stream) => {
                buffer.reserve(READ_BYTES);
                stream.read_buf(buffer).await
            }
            Self::WebSocket(socket) => loop {
                match socket.next().await {
                    Some(Ok(Message::Binary(bytes))) if !bytes.is_empty() => {
                        buffer.extend_from_slice(&bytes);
                        return Ok(bytes.len());
                    }
                    Some(Ok(Message::Text(_))) => {
                        return Err(io::Error::other("the broker sent a text message [MQTT-6.0.0-1]"));
                    }
                    None | Some(Ok(Message::Close(_))) => return Ok(0),
                    Some(Ok(_)) => {}
                    Some(Err(tungstenite::Error::Io(error))) => return Err(error),
                    Some(Err(error)) => return Err(io::Error::other(error)),
                }
            },
        }
    }

    /// Writes all of it.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let write = async {
            match self {
                Self::Stream(stream) => {
                    stream.write_all(bytes).await?;
                    stream.flush().await
                }
                Self::WebSocket(socket) => {
                    let message = Message::Binary(Bytes::copy_from_slice(bytes));
                    socket.send(message).await.map_err(io::Error::other)
                }
            }
        };
        match tokio::time::timeout(WRITE_MAX, write).await {
            Ok(written) => written,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the broker does not read what we send")),
        }
    }

    /// Ends it in order, so that what was written arrives. Best effort.
    pub(super) async fn close(mut self) {
        let close = async {
            match &mut self {
                Self::Stream(stream) => stream.shutdown().await.is_ok(),
                Self::WebSocket(socket) => socket.close().await.is_ok(),
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), close).await;
    }
}

async fn connect(source: &Source) -> Result<Transport, Cause> {
    let url = &source.url;
    let tcp = connect_tcp(&url.host, url.port).await;
    let tcp = tcp.map_err(|error| failed(source, format!("cannot connect: {error}"), false))?;
    let stream: Box<dyn Stream> = if url.tls { secure(source, tcp).await? } else { Box::new(tcp) };
    match &url.websocket {
        None => Ok(Transport::Stream(stream)),
        Some(path) => upgrade(source, path, stream).await,
    }
}

/// To the first address that answers; one that swallows what is sent to it does not hide those behind it.
async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for address in tokio::net::lookup_host((host, port)).await? {
        match tokio::time::timeout(ADDRESS_MAX, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => {
                tcp.set_nodelay(true)?;
                return Ok(tcp);
            }
            Ok(Err(error)) => last = error,
            Err(_) => {
                let problem = format!("{address} does not answer within {} s", ADDRESS_MAX.as_secs());
                last = io::Error::new(io::ErrorKind::TimedOut, problem);
            }
        }
    }
    Err(last)
}

async fn secure(source: &Source, tcp: TcpStream) -> Result<Box<dyn Stream>, Cause> {
    let config = tls::client_config(source).map_err(|problem| failed(source, problem, true))?;
    let name = ServerName::try_from(source.url.host.clone());
    let name =
        name.map_err(|error| failed(source, format!("its host cannot stand in a certificate: {error}"), true))?;
    match TlsConnector::from(config).connect(name, tcp).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(of_io(source, &error)),
    }
}

async fn upgrade(source: &Source, path: &str, stream: Box<dyn Stream>) -> Result<Transport, Cause> {
    let refused = |error: tungstenite::Error| match error {
        tungstenite::Error::Io(error) => of_io(source, &error),
        tungstenite::Error::Http(answer) => {
            let (status, for_good) = (answer.status(), answer.status().is_client_error());
            let advice = if for_good { ": look at its path" } else { "" };
            failed(source, format!("answers the WebSocket handshake with {status}{advice}"), for_good && status != 429)
        }
        error => failed(source, format!("is no MQTT over WebSocket: {error}"), false),
    };
    let uri = format!("ws://{}{path}", source.url.authority());
    let mut request = uri.into_client_request().map_err(refused)?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("mqtt"));
    let bytes_max = Some(source.packet_bytes_max as usize + MESSAGE_BYTES);
    let limits = WebSocketConfig::default().max_message_size(bytes_max).max_frame_size(bytes_max);
    let (socket, _) =
        tokio_tungstenite::client_async_with_config(request, stream, Some(limits)).await.map_err(refused)?;
    Ok(Transport::WebSocket(Box::new(socket)))
}

/// What an error of the connection means. One that comes from certificates needs a person.
pub(super) fn of_io(source: &Source, error: &io::Error) -> Cause {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let websocket = error.get_ref().and_then(|inner| inner.downcast_ref::<tungstenite::Error>());
    if let Some(tungstenite::Error::Capacity(CapacityError::MessageTooLong { size, .. })) = websocket {
        let problem = format!(
            "a WebSocket message of {size} bytes is beyond packet_bytes_max, {}: raise it; the broker keeps a message that is \
             not of QoS 0",
            source.packet_bytes_max
        );
        return failed(source, problem, true);
    }
    match tls {
        Some(tls @ (rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)) => {
            failed(source, format!("its certificate is not trusted: {tls}"), true)
        }
        Some(tls @ rustls::Error::AlertReceived(_)) => failed(source, format!("refuses TLS: {tls}"), true),
        Some(tls) => failed(source, format!("TLS: {tls}"), false),
        None => failed(source, format!("connection lost: {error}"), false),
    }
}

fn failed(source: &Source, problem: impl Display, for_good: bool) -> Cause {
    Cause::Failed { problem: format!("{}: {problem}", source.url), for_good }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};

    use super::*;
    use crate::config::Config;

    #[tokio::test]
    async fn a_websocket_message_that_is_too_large_is_named_with_the_key_and_needs_a_person() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let text = format!("[[source]]\nname = \"b\"\nurl = \"ws://127.0.0.1:{port}\"\npacket_bytes_max = \"1KiB\"");
        let source = Config::parse(&text, "forebay.toml".as_ref()).unwrap().sources.remove(0);
        let broker = tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            #[expect(clippy::result_large_err, reason = "the signature is the crate's")]
            let speak_mqtt = |_: &Request, mut answer: Response| -> Result<Response, ErrorResponse> {
                answer.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("mqtt"));
                Ok(answer)
            };
            let mut socket = tokio_tungstenite::accept_hdr_async(tcp, speak_mqtt).await.unwrap();
            let _ = socket.send(Message::Binary(vec![0; 1024 + MESSAGE_BYTES + 1].into())).await;
        });
        let mut transport = Transport::connect(&source).await.unwrap();

        let error = transport.read(&mut BytesMut::new()).await.unwrap_err();

        let Cause::Failed { problem, for_good } = of_io(&source, &error) else { panic!("{error}") };
        assert!(problem.contains("1049601 bytes") && problem.contains("packet_bytes_max, 1024"), "{problem}");
        assert!(for_good);
        drop(transport);
        broker.await.unwrap();
    }

    #[tokio::test]
    async fn the_addresses_of_a_name_are_tried_one_by_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();

        // Where it has an IPv6 address, nothing listens there.
        connect_tcp("localhost", port).await.unwrap();
        drop(listener);

        assert_eq!(connect_tcp("localhost", port).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
