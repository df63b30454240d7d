//! The message that is arriving: how much of it is here, and how much it may be.
//!
//! A message is collected below us until it is whole, in memory that its length claims. So that it is bound by what binds
//! packets that come over TCP, its frames (RFC 6455 section 5.2) are followed on their way in: what is here of the message
//! counts as part of a packet that is not complete, and shows that the client is alive.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The longest header of a frame: two bytes, a length of eight, a mask of four.
const HEADER_BYTES_MAX: usize = 14;
/// What the headers of a message may take beyond its payload, bytes.
const HEADERS_BYTES: usize = 1024;

/// What whoever reads the messages knows of the one that is not whole, and says of the largest.
#[derive(Debug)]
pub(crate) struct Arriving {
    bytes: AtomicUsize,
    has_data: AtomicBool,
    message_bytes_max: AtomicUsize,
}

impl Arriving {
    fn new(message_bytes_max: usize) -> Self {
        Self {
            bytes: AtomicUsize::new(0),
            has_data: AtomicBool::new(false),
            message_bytes_max: message_bytes_max.into(),
        }
    }

    /// What is here of it, headers included.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether payload came since the last time. Pings are none.
    pub(crate) fn take_data(&self) -> bool {
        self.has_data.swap(false, Ordering::Relaxed)
    }

    /// From the next frame on a message may have this payload, bytes.
    pub(crate) fn set_message_bytes_max(&self, bytes: usize) {
        self.message_bytes_max.store(bytes, Ordering::Relaxed);
    }
}

/// A socket below a WebSocket, whose frames are followed once it is upgraded.
#[derive(Debug)]
pub(super) struct Followed<S> {
    socket: S,
    frames: Option<Frames>,
    arriving: Arc<Arriving>,
    /// What may still be read before whoever reads has looked at the bounds, bytes.
    bytes_left: usize,
}

impl<S> Followed<S> {
    pub(super) fn new(socket: S, message_bytes_max: usize) -> Self {
        Self { socket, frames: None, arriving: Arc::new(Arriving::new(message_bytes_max)), bytes_left: 0 }
    }

    /// From here on there are frames.
    pub(super) fn upgrade(&mut self) -> Arc<Arriving> {
        self.frames = Some(Frames::default());
        self.arriving.clone()
    }

    pub(super) fn allow(&mut self, bytes: usize) {
        self.bytes_left = bytes;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Followed<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { socket, frames, arriving, bytes_left } = self.get_mut();
        let Some(frames) = frames else { return Pin::new(socket).poll_read(cx, buffer) };
        // Not as soon as a header is here: it may have come with the CONNECT that lifts the bound.
        let bytes_max = arriving.message_bytes_max.load(Ordering::Relaxed).saturating_add(HEADERS_BYTES);
        if frames.claimed_bytes() > bytes_max as u64 {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a message larger than any packet")));
        }
        if *bytes_left == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(socket).poll_read(cx, buffer))?;
        let bytes = &buffer.filled()[before..];
        *bytes_left = bytes_left.saturating_sub(bytes.len());
        if frames.handle_bytes(bytes) {
            arriving.has_data.store(true, Ordering::Relaxed);
        }
        arriving.bytes.store(usize::try_from(frames.bytes()).unwrap_or(usize::MAX), Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Followed<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

/// Where in a stream of frames we are. What is wrong with them is for others to find.
#[derive(Debug, Default)]
struct Frames {
    /// Zero where it has not come.
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: usize,
    /// Of this frame, still to come.
    payload_left: u64,
    /// Of this frame, header included.
    frame_bytes: u64,
    /// Of this message's earlier frames, headers included.
    fragments_bytes: u64,
}

impl Frames {
    /// Whether there was payload of a message among these bytes.
    fn handle_bytes(&mut self, mut bytes: &[u8]) -> bool {
        let mut has_data = false;
        while let Some((&first, rest)) = bytes.split_first() {
            if self.payload_left > 0 {
                let taken = bytes.len().min(usize::try_from(self.payload_left).unwrap_or(usize::MAX));
                self.payload_left -= taken as u64;
                self.frame_bytes += taken as u64;
                has_data |= !self.is_control();
                bytes = &bytes[taken..];
            } else {
                self.header[self.header_bytes] = first;
                self.header_bytes += 1;
                self.frame_bytes += 1;
                bytes = rest;
                if self.header_bytes < self.header_len() {
                    continue;
                }
                self.payload_left = self.payload_len();
            }
            if self.payload_left == 0 {
                self.end_frame();
            }
        }
        has_data
    }

    /// What is here of a message that is not whole.
    fn bytes(&self) -> u64 {
        self.fragments_bytes.saturating_add(self.frame_bytes)
    }

    /// What there will be of it with the end of this frame.
    fn claimed_bytes(&self) -> u64 {
        self.bytes().saturating_add(self.payload_left)
    }

    fn end_frame(&mut self) {
        let is_final = self.header[0] & 0x80 != 0;
        let fragments_bytes = match (self.is_control(), is_final) {
            (true, _) => self.fragments_bytes, // it came in between
            (false, true) => 0,
            (false, false) => self.bytes(),
        };
        *self = Self { fragments_bytes, ..Self::default() };
    }

    fn is_control(&self) -> bool {
        self.header[0] & 0x08 != 0
    }

    fn header_len(&self) -> usize {
        let length = match self.header[1] & 0x7F {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.header[1] & 0x80 != 0 { 4 } else { 0 };
        2 + length + mask
    }

    fn payload_len(&self) -> u64 {
        let [_, second, a, b, c, d, e, f, g, h, ..] = self.header;
        match second & 0x7F {
            126 => u16::from_be_bytes([a, b]).into(),
            127 => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            length => length.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_message_counts_and_a_whole_one_does_not_however_its_bytes_come() {
        for payload_len in [0, 1, 125, 126, 65_535, 65_536] {
            let message = frame(0x82, payload_len);
            for at_once in [1, 7, message.len()] {
                let (mut frames, mut here) = (Frames::default(), 0);
                for bytes in message.chunks(at_once) {
                    assert_eq!(frames.bytes(), here);
                    frames.handle_bytes(bytes);
                    here += bytes.len() as u64;
                }
                assert_eq!((frames.bytes(), frames.claimed_bytes()), (0, 0), "{payload_len} {at_once}");
            }
        }
    }

    #[test]
    fn a_message_in_fragments_counts_until_the_last_and_pings_in_between_do_not() {
        let mut frames = Frames::default();
        assert!(frames.handle_bytes(&frame(0x02, 10)));
        assert_eq!(frames.bytes(), 16);
        assert!(!frames.handle_bytes(&frame(0x89, 5)));
        assert_eq!(frames.bytes(), 16);
        assert!(!frames.handle_bytes(&frame(0x00, 0)), "nothing in it");
        assert_eq!(frames.bytes(), 22);
        frames.handle_bytes(&frame(0x80, 3));
        assert_eq!(frames.bytes(), 0);
    }

    #[test]
    fn what_a_header_claims_is_known_before_it_comes() {
        let mut frames = Frames::default();
        frames.handle_bytes(&frame(0x02, 10));
        frames.handle_bytes(&[0x80, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3, 4]);
        assert_eq!(frames.claimed_bytes(), u64::MAX);
        assert_eq!(frames.bytes(), 16 + 14);
    }

    /// A masked frame.
    fn frame(first: u8, payload_len: usize) -> Vec<u8> {
        let length = match payload_len {
            0..126 => vec![0x80 | payload_len as u8],
            126..65_536 => [&[0xFE][..], &(payload_len as u16).to_be_bytes()].concat(),
            _ => [&[0xFF][..], &(payload_len as u64).to_be_bytes()].concat(),
        };
        [vec![first], length, vec![0; 4 + payload_len]].concat()
    }
}
