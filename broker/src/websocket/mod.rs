//! MQTT over a WebSocket (MQTT 5.0 section 6; 3.1.1 section 6): the bytes of binary messages as one stream.
//!
//! Packets may be split over messages, or share one `[MQTT-6.0.0-2]`. A text message ends the connection
//! `[MQTT-6.0.0-1]`. What we write in one go is one message.

mod arriving;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

pub(crate) use self::arriving::Arriving;
use self::arriving::Followed;
use crate::config::Limits;

/// The subprotocol that a client must offer `[MQTT-6.0.0-3]` and that we answer with `[MQTT-6.0.0-4]`.
const SUBPROTOCOL: &str = "mqtt";
/// What is read at once, bytes; a quiet connection keeps it.
const READ_BUFFER_BYTES: usize = 1024;
/// What a message may have beyond one packet, bytes.
const MESSAGE_BYTES: usize = 64 * 1024;

/// A WebSocket as a stream of bytes.
pub(crate) struct Stream<S> {
    socket: WebSocketStream<Followed<S>>,
    /// What is left of the last message.
    rest: Bytes,
}

/// Answers the request to upgrade. Until [`let_in`] a message may be as large as a CONNECT.
///
/// # Errors
/// The request is none, is too large, or does not offer the subprotocol: then it is answered with 400.
pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    socket: S,
    limits: &Limits,
) -> io::Result<(Stream<S>, Arc<Arriving>)> {
    let socket = Followed::new(socket, limits.packet_bytes_max.min(limits.connect_bytes_max) as usize);
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0) // written at once: it was gathered already
        .max_write_buffer_size(message_bytes_max(limits))
        .max_message_size(Some(message_bytes_max(limits)))
        .max_frame_size(Some(message_bytes_max(limits)));
    let socket = tokio_tungstenite::accept_hdr_async_with_config(socket, choose_subprotocol, Some(config)).await;
    let mut socket = socket.map_err(io::Error::other)?;
    // Nothing was read beyond the request: what comes with it is refused.
    let arriving = socket.get_mut().upgrade();
    Ok((Stream { socket, rest: Bytes::new() }, arriving))
}

/// The client was let in: its messages may be as large as any.
pub(crate) fn let_in(arriving: &Arriving, limits: &Limits) {
    arriving.set_message_bytes_max(message_bytes_max(limits));
}

fn message_bytes_max(limits: &Limits) -> usize {
    limits.packet_bytes_max as usize + MESSAGE_BYTES
}

#[expect(clippy::result_large_err, reason = "tungstenite wants it so")]
fn choose_subprotocol(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let offered = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let mut offered = offered.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    if offered.any(|offer| offer.trim().eq_ignore_ascii_case(SUBPROTOCOL)) {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        return Ok(response);
    }
    let mut refusal = ErrorResponse::new(Some("This is MQTT: offer the subprotocol mqtt.\n".to_owned()));
    *refusal.status_mut() = StatusCode::BAD_REQUEST;
    Err(refusal)
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.socket.get_mut().allow(buffer.remaining());
        while this.rest.is_empty() {
            match ready!(Pin::new(&mut this.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => this.rest = bytes,
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a text message [MQTT-6.0.0-1]",
                    )));
                }
                None => return Poll::Ready(Ok(())),
                Some(Ok(_)) => {} // pings and closes are answered below us, when it is read on
                Some(Err(error)) => return Poll::Ready(Err(into_io(error))),
            }
        }
        let taken = this.rest.len().min(buffer.remaining());
        buffer.put_slice(&this.rest[..taken]);
        this.rest.advance(taken);
        if this.rest.is_empty() {
            this.rest = Bytes::new(); // gives the message's memory back
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.socket).poll_ready(cx)).map_err(into_io)?;
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        Pin::new(&mut this.socket).start_send(message).map_err(into_io)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx).map_err(into_io)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.get_mut().socket).poll_close(cx)) {
            Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(into_io(error))),
        }
    }
}

fn into_io(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        error => io::Error::other(error),
    }
}
