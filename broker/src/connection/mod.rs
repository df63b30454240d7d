//! One session over one socket: reads, feeds, writes, waits. The rules are the session's.
//!
//! A turn takes what has come (orders, outcomes, room at storage), feeds packets while the session may read, writes what
//! there is to say in one go, and reads only when all that was read before has been used. So a burst of outcomes is
//! answered with one write, and a full queue stops the reading: TCP tells the client, and nothing is dropped.
//!
//! A quiet connection holds no buffers: bytes are read into one scratch buffer per thread and copied out exactly.

mod handle;
mod login;
mod submit;

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tracing::{Instrument, Span, debug, field, info, info_span, trace};
use zeroize::Zeroize as _;

pub use self::handle::Peer;
use self::handle::Taken;
pub(crate) use self::handle::{Certificate, Handle, Identity};
use self::login::Verifying;
use self::submit::Blocked;
use crate::broker::{Shared, now, wall_clock};
use crate::codec::{self, CodecError};
use crate::inbound::Outcome;
use crate::packet::{Incoming, Outgoing};
use crate::quota::Share;
use crate::reason::ConnectReason;
use crate::registry::Claim;
use crate::session::{Action, CloseReason, Session, StopReason, Submission};
use crate::websocket::{self, Arriving};

/// Bytes read at once.
const READ_BYTES: usize = 32 * 1024;

/// Packets that are taken before others get their turn: a client that sends without a pause must not keep a thread.
const FRAMES_AT_ONCE: u32 = 256;

/// Answers that wait for a slow client, bytes; beyond, we stop reading.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// What of a packet that is not complete anybody may have, whatever all others together have, bytes.
const PARTIAL_BYTES_FREE: usize = 4 * 1024;

/// How long a closed connection is still read from, and thrown away: closing with unread bytes resets the connection,
/// and then the client may never see the packet that says why.
const LINGER: Duration = Duration::from_secs(1);

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// How a connection came in.
#[derive(Debug)]
pub(crate) struct Entrance {
    /// Rises with the time of arrival.
    pub(crate) number: u64,
    pub(crate) peer: Peer,
    pub(crate) accepted_at: Instant,
    /// What every CONNECT is answered with.
    pub(crate) refuse_all: Option<ConnectReason>,
    /// What the listener says of clients without credentials.
    pub(crate) allow_anonymous: Option<bool>,
    /// The client certificate that was shown, and whom it names.
    pub(crate) certificate: Option<Arc<Certificate>>,
    pub(crate) certified: Option<Arc<str>>,
    /// Of a WebSocket: the message that is not whole yet.
    pub(crate) arriving: Option<Arc<Arriving>>,
}

/// The driver of one session.
pub(crate) struct Connection<S> {
    shared: Arc<Shared>,
    handle: Arc<Handle>,
    entrance: Entrance,
    /// `None` once closed: the session may have outcomes to wait for.
    socket: Option<S>,
    session: Session,
    input: BytesMut,
    /// Of the packet that was fed last: what it submits may share its memory.
    frame_bytes: usize,
    output: BytesMut,
    outcomes_sender: mpsc::UnboundedSender<(u64, Outcome)>,
    outcomes: mpsc::UnboundedReceiver<(u64, Outcome)>,
    verifying: Option<Box<Verifying>>,
    user_share: Option<Share<Arc<str>>>,
    /// A counter more precise than its reason counted why the CONNECT is refused.
    is_refusal_counted: bool,
    blocked: Option<Blocked>,
    /// Submissions behind it: few, for nothing is read meanwhile.
    waiting: Vec<(Option<u64>, Submission)>,
    closing: Closing,
    /// A layer below may hold what was written.
    is_unflushed: bool,
    /// When the client must have taken some of `output`.
    write_deadline: Option<Instant>,
    /// When the packet that has begun must be complete.
    packet_deadline: Option<Instant>,
    /// Packets that may still be taken before others get their turn.
    frames_left: u32,
    /// What of `input`, and of a message below it, is counted among all packets that are not complete, bytes.
    partial_bytes: usize,
    received_at: SystemTime,
}

/// How far the closing of the socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    No,
    /// What is queued is written.
    Flushing,
    /// What still comes is thrown away until then.
    Lingering(Instant),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(crate) fn new(shared: Arc<Shared>, handle: Arc<Handle>, socket: S, entrance: Entrance) -> Self {
        let (outcomes_sender, outcomes) = mpsc::unbounded_channel();
        let assigned_client_id = format!("auto-{:016x}", fastrand::u64(..)).into();
        let (limits, accepted_at) = (shared.limits.clone(), entrance.accepted_at);
        let session = Session::new(limits, assigned_client_id, entrance.refuse_all, accepted_at);
        Self {
            shared,
            handle,
            entrance,
            socket: Some(socket),
            session,
            input: BytesMut::new(),
            frame_bytes: 0,
            output: BytesMut::new(),
            outcomes_sender,
            outcomes,
            verifying: None,
            user_share: None,
            is_refusal_counted: false,
            blocked: None,
            waiting: Vec::new(),
            closing: Closing::No,
            is_unflushed: false,
            write_deadline: None,
            packet_deadline: None,
            frames_left: 0,
            partial_bytes: 0,
            received_at: SystemTime::UNIX_EPOCH,
        }
    }

    /// Serves until the connection has ended and every outcome is known.
    pub(crate) async fn run(mut self) {
        let span = info_span!("connection", peer = %self.entrance.peer, client_id = field::Empty, user = field::Empty);
        async {
            let mut timer = pin!(tokio::time::sleep(self.shared.limits.connect_timeout));
            poll_fn(|cx| self.poll(cx, timer.as_mut())).await;
        }
        .instrument(span)
        .await;
    }

    /// Takes turns until there is nothing to do but wait, or others have to get theirs.
    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<()> {
        self.frames_left = FRAMES_AT_ONCE;
        loop {
            self.poll_outcomes(cx);
            if self.poll_orders(cx) == Order::Abandon {
                return Poll::Ready(());
            }
            self.advance();
            let resumed = self.poll_waits(cx);
            self.count_partial();
            let wrote = self.poll_write(cx).is_ready();
            let read = self.poll_read(cx).is_ready();
            if self.blocked.is_none() && self.session.is_drained() {
                self.release_client_id();
                if self.socket.is_none() {
                    return Poll::Ready(());
                }
            }
            if self.frames_left == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !resumed && !wrote && !read && !self.can_advance() && self.poll_timer(cx, timer.as_mut()).is_pending() {
                self.release_memory();
                return Poll::Pending;
            }
        }
    }

    /// Whether a password was verified, or room came for what waits. After `advance`, which may begin to wait.
    fn poll_waits(&mut self, cx: &mut Context<'_>) -> bool {
        let waits = |this: &Self| (this.verifying.is_some(), this.blocked.is_some());
        let before = waits(self);
        self.poll_verifying(cx);
        self.poll_blocked(cx);
        before != waits(self)
    }

    fn poll_outcomes(&mut self, cx: &mut Context<'_>) {
        let mut arrived_at = None;
        while let Poll::Ready(Some((number, outcome))) = self.outcomes.poll_recv(cx) {
            self.session.handle_outcome(number, outcome, *arrived_at.get_or_insert_with(now));
        }
    }

    fn poll_orders(&mut self, cx: &mut Context<'_>) -> Order {
        let Taken { abandon, granted, stop } = self.handle.take(cx);
        if abandon {
            return Order::Abandon;
        }
        if let Some(state) = granted {
            self.session.handle_claimed(state, now());
        }
        if let Some(reason) = stop {
            self.session.handle_stop(reason, now());
        }
        Order::Continue
    }

    /// Acts on what the session wants and feeds it the packets that are here.
    fn advance(&mut self) {
        loop {
            while let Some(action) = self.session.poll_action() {
                self.act(action);
            }
            if self.frames_left == 0 || !self.may_feed() {
                return;
            }
            let bytes_max = self.packet_bytes_max();
            match codec::next_frame(&mut self.input, bytes_max) {
                Ok(Some(frame)) => self.feed(frame),
                Ok(None) => return,
                Err(error) => self.refuse(&error),
            }
        }
    }

    /// Whether a turn would feed more packets: room came while writing.
    fn can_advance(&self) -> bool {
        self.may_feed()
            && !matches!(codec::inspect(&self.input, self.packet_bytes_max()), Ok(codec::Frame::Incomplete { .. }))
    }

    /// A stranger may send less than a client that was let in.
    fn packet_bytes_max(&self) -> u32 {
        let limits = &self.shared.limits;
        match self.session.expects_connect() {
            true => limits.packet_bytes_max.min(limits.connect_bytes_max),
            false => limits.packet_bytes_max,
        }
    }

    /// Counts the bytes of a packet that has begun, and sets the time for its end.
    fn count_partial(&mut self) {
        let begun = self.input.len() + self.entrance.arriving.as_ref().map_or(0, |arriving| arriving.bytes());
        if self.closing != Closing::No {
            self.packet_deadline = None;
        } else if begun == 0 || !self.may_feed() {
            self.packet_deadline = None; // while we do not read, the rest cannot come
        } else if self.packet_deadline.is_none() && !self.session.expects_connect() {
            self.packet_deadline = Some(now() + self.shared.limits.packet_timeout);
        }
        let bytes = if self.may_feed() { begun } else { 0 };
        if bytes != self.partial_bytes {
            self.shared.partial_bytes.add(bytes);
            self.shared.partial_bytes.remove(self.partial_bytes);
            self.partial_bytes = bytes;
        }
    }

    fn may_feed(&self) -> bool {
        self.blocked.is_none()
            && self.closing == Closing::No
            && self.output.len() < OUTPUT_BYTES_MAX
            && self.session.may_read()
    }

    fn feed(&mut self, frame: Bytes) {
        let now = now();
        self.frames_left -= 1;
        self.packet_deadline = None;
        if self.session.expects_connect() {
            let decoded = codec::decode_connect(frame.clone());
            let version = codec::answer_version(&frame);
            let is_wiped = wipe(frame, &mut self.input);
            debug_assert!(is_wiped, "nothing that is decoded from a CONNECT shares its memory");
            if !self.shared.connecting.leave(self.entrance.number) {
                return; // it had to go for others, and is being told so
            }
            match decoded {
                Ok(connect) => self.session.handle_packet(Incoming::Connect(Box::new(connect)), now),
                Err(error @ CodecError::ConnectExpected) => self.refuse(&error),
                Err(error) => {
                    debug!(%error, "CONNECT refused.");
                    self.session.handle_connect_error(error.connect_reason(), version, now);
                }
            }
            return;
        }
        self.frame_bytes = frame.len();
        if frame.len() > READ_BYTES {
            self.input = BytesMut::from(&self.input[..]); // small packets behind it shall not keep its memory
        }
        trace!(first_byte = frame.first(), bytes = frame.len(), "Received."); // never what is in it
        match codec::decode(frame, self.session.version()) {
            Ok(packet) => self.session.handle_packet(packet, now),
            Err(error) => self.refuse(&error),
        }
    }

    fn refuse(&mut self, error: &CodecError) {
        debug!(%error, "Malformed packet.");
        self.session.handle_malformed(error.reason(), now());
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Authenticate(login) => self.authenticate(login),
            Action::Throttled => self.shared.stats.throttled.add(1),
            Action::Claim(client_id) => self.claim(&client_id),
            Action::Send(packet) => self.send(&packet),
            Action::Submit(number, submission) => {
                let submission = submit::detached(submission, self.frame_bytes);
                match self.blocked {
                    Some(_) => self.waiting.push((number, submission)),
                    None => self.submit(number, submission),
                }
            }
            Action::Close(reason) => self.close(reason),
        }
    }

    fn claim(&mut self, client_id: &Arc<str>) {
        let claim = {
            let mut registry = self.shared.registry();
            // A user's session is not for another one to end.
            if registry.newest(client_id).is_some_and(|other| !other.is_of_same_user(&self.handle)) {
                drop(registry);
                let reason = self.refused(|stats| &stats.connects_refused_owner, ConnectReason::NotAuthorized);
                self.session.handle_claim_refused(reason, now());
                return;
            }
            registry.claim(client_id, self.handle.clone(), now())
        };
        match claim {
            Claim::Granted(state) => self.session.handle_claimed(state, now()),
            Claim::Queued { behind: Some(behind) } => behind.stop(StopReason::TakenOver),
            Claim::Queued { behind: None } => {}
        }
    }

    fn send(&mut self, packet: &Outgoing) {
        trace!(?packet, "Sent.");
        if !(self.is_refusal_counted && matches!(packet, Outgoing::ConnAck(_))) {
            self.shared.stats.count_sent(packet);
        }
        if let Outgoing::ConnAck(connack) = packet
            && connack.reason == ConnectReason::Success
        {
            Span::current().record("client_id", &**self.session.client_id());
            info!(version = ?self.session.version(), session_present = connack.session_present, "Connected.");
            if let Some(arriving) = &self.entrance.arriving {
                websocket::let_in(arriving, &self.shared.limits);
            }
        }
        codec::encode(packet, self.session.version(), &mut self.output);
    }

    fn close(&mut self, reason: CloseReason) {
        self.shared.stats.count_close(reason);
        match reason {
            CloseReason::Refused(_) | CloseReason::ConnectTimeout | CloseReason::Malformed(_) => {
                debug!(?reason, "Closed.");
            }
            _ => info!(?reason, "Closed."),
        }
        self.input.zeroize(); // half a CONNECT, perhaps
        self.input = BytesMut::new();
        if self.socket.is_some() {
            self.closing = Closing::Flushing;
        }
    }

    /// Ready when something was written, or the socket was closed.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(socket) = &mut self.socket else { return Poll::Pending };
        let mut has_written = false;
        while !self.output.is_empty() {
            match Pin::new(&mut *socket).poll_write(cx, &self.output) {
                Poll::Ready(Ok(written)) if written > 0 => {
                    self.shared.stats.bytes_sent.add(written as u64);
                    bytes::Buf::advance(&mut self.output, written);
                    self.write_deadline = None;
                    has_written = true;
                }
                Poll::Ready(_) => {
                    self.lose_socket();
                    return Poll::Ready(());
                }
                Poll::Pending => {
                    let timeout = self.shared.limits.write_timeout;
                    self.write_deadline.get_or_insert_with(|| now() + timeout);
                    return if has_written { Poll::Ready(()) } else { Poll::Pending };
                }
            }
        }
        if has_written || self.is_unflushed || self.closing == Closing::Flushing {
            self.poll_flushed(cx, has_written)
        } else {
            Poll::Pending
        }
    }

    /// Everything is written: flush what a layer below may hold, and go on with closing.
    fn poll_flushed(&mut self, cx: &mut Context<'_>, has_written: bool) -> Poll<()> {
        let Some(socket) = &mut self.socket else { return Poll::Pending };
        let timeout = self.shared.limits.write_timeout;
        if self.closing == Closing::No {
            self.is_unflushed = match Pin::new(socket).poll_flush(cx) {
                Poll::Ready(Ok(())) => false,
                Poll::Ready(Err(_)) => {
                    self.lose_socket();
                    return Poll::Ready(());
                }
                Poll::Pending => true,
            };
            match self.is_unflushed {
                true => _ = self.write_deadline.get_or_insert_with(|| now() + timeout),
                false => self.write_deadline = None,
            }
            return if has_written { Poll::Ready(()) } else { Poll::Pending };
        }
        match Pin::new(socket).poll_shutdown(cx) {
            Poll::Ready(Ok(())) => self.closing = Closing::Lingering(now() + LINGER),
            Poll::Ready(Err(_)) => self.lose_socket(),
            Poll::Pending => {
                self.write_deadline.get_or_insert_with(|| now() + timeout);
                return if has_written { Poll::Ready(()) } else { Poll::Pending };
            }
        }
        Poll::Ready(())
    }

    /// Ready when something was read, or the end was found.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_lingering = matches!(self.closing, Closing::Lingering(_));
        let wants_bytes = self.may_feed() && !self.can_advance();
        if !is_lingering && !wants_bytes {
            return Poll::Pending;
        }
        if self.refuse_partial() {
            return Poll::Ready(());
        }
        let is_secret = self.session.expects_connect();
        let Some(socket) = &mut self.socket else { return Poll::Pending };
        let input = &mut self.input;
        let read = SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            let result = ready!(Pin::new(socket).poll_read(cx, &mut buffer));
            if !is_lingering {
                if is_secret {
                    make_room(input, buffer.filled().len());
                }
                input.extend_from_slice(buffer.filled());
            }
            if is_secret {
                buffer.filled_mut().zeroize(); // there may be a password in it
            }
            Poll::Ready(result.map(|()| buffer.filled().len()))
        });
        if read.is_pending() && self.look_below() && self.refuse_partial() {
            return Poll::Ready(());
        }
        match ready!(read) {
            Ok(0) | Err(_) => self.lose_socket(),
            Ok(bytes) => {
                self.shared.stats.bytes_received.add(bytes as u64);
                self.received_at = wall_clock();
                self.session.handle_alive(now());
            }
        }
        Poll::Ready(())
    }

    /// Whether too much of packets is not complete for this one to get more.
    fn refuse_partial(&mut self) -> bool {
        let is_too_much = self.partial_bytes > PARTIAL_BYTES_FREE
            && self.shared.partial_bytes.get() > self.shared.limits.partial_bytes_max;
        if is_too_much {
            self.session.handle_unfinished(CloseReason::PartialPackets, now());
        }
        is_too_much
    }

    /// A WebSocket gives no bytes before their message is whole: they count, and show that the client is there.
    fn look_below(&mut self) -> bool {
        let Some(arriving) = &self.entrance.arriving else { return false };
        if arriving.take_data() {
            self.session.handle_alive(now());
        }
        self.count_partial();
        self.closing == Closing::No
    }

    /// The client is gone.
    fn lose_socket(&mut self) {
        self.socket = None;
        self.output = BytesMut::new();
        self.write_deadline = None;
        self.packet_deadline = None;
        self.session.handle_closed(CloseReason::PeerClosed, now());
    }

    /// Ready when a timeout was acted on.
    fn poll_timer(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<()> {
        let lingers_until = match self.closing {
            Closing::Lingering(until) => Some(until),
            Closing::No | Closing::Flushing => None,
        };
        // While a submission waits we do not read, so the silence of a client that is connected is ours.
        let is_deaf = self.blocked.is_some() && self.session.is_connected();
        let session_timeout = self.session.poll_timeout().filter(|_| !is_deaf);
        let deadlines = [session_timeout, self.write_deadline, self.packet_deadline, lingers_until];
        let Some(deadline) = deadlines.into_iter().flatten().min() else { return Poll::Pending };
        // A deadline that moved away costs nothing until the timer fires at the old one.
        if timer.is_elapsed() || timer.deadline().into_std() > deadline {
            timer.as_mut().reset(deadline.into());
        }
        ready!(timer.poll(cx));
        let now = now();
        if lingers_until.is_some_and(|until| until <= now) {
            self.lose_socket();
        }
        if self.write_deadline.is_some_and(|deadline| deadline <= now) {
            self.session.handle_closed(CloseReason::WriteTimeout, now);
            self.lose_socket();
        }
        if self.packet_deadline.is_some_and(|deadline| deadline <= now) {
            self.packet_deadline = None;
            self.session.handle_unfinished(CloseReason::PacketTimeout, now);
        }
        if !is_deaf {
            self.session.handle_timeout(now);
        }
        Poll::Ready(())
    }

    /// Whoever takes over need not wait until this socket is closed in good manners.
    fn release_client_id(&mut self) {
        if let Some((client_id, state)) = self.session.take_state() {
            self.shared.release(&client_id, state, now());
        }
    }

    fn release_memory(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        if self.output.is_empty() {
            self.output = BytesMut::new();
        }
        self.session.release_memory();
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        self.input.zeroize();
        self.shared.partial_bytes.remove(self.partial_bytes);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Continue,
    Abandon,
}

/// Overwrites a CONNECT, for there may be a password in it. `rest` is what came behind it, in the same memory: it moves.
/// `false`: somebody else has the CONNECT too.
fn wipe(frame: Bytes, rest: &mut BytesMut) -> bool {
    *rest = BytesMut::from(&rest[..]);
    match frame.try_into_mut() {
        Ok(mut frame) => {
            frame.zeroize();
            true
        }
        Err(_) => false,
    }
}

/// Makes room for more of a CONNECT, and leaves nothing of it where it was. It grows at least twofold.
fn make_room(input: &mut BytesMut, bytes: usize) {
    if input.capacity() - input.len() < bytes {
        let mut larger = BytesMut::with_capacity((input.len() + bytes).max(2 * input.capacity()));
        larger.extend_from_slice(input);
        input.zeroize();
        *input = larger;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_connect_is_overwritten_whatever_came_behind_it() {
        let body = [&b"\0\x04MQTT\x04\xC6\0\0\0\x01a\0\x01w\0\x04gone"[..], b"\0\x03ann\0\x06secret"].concat();
        for behind in [&b""[..], &[0xC0, 0]] {
            let mut input = BytesMut::new();
            input.extend_from_slice(&[&[0x10, body.len() as u8][..], &body, behind].concat());
            let frame = codec::next_frame(&mut input, 1_000).expect("a packet").expect("a whole one");
            let connect = codec::decode_connect(frame.clone()).expect("a CONNECT");

            assert!(wipe(frame, &mut input));

            assert_eq!(connect.password.as_deref(), Some(&b"secret"[..]));
            assert_eq!(connect.will.expect("a Will Message").payload, b"gone"[..]);
            assert_eq!(input, behind);
        }
    }

    #[test]
    fn a_connect_that_somebody_else_has_too_is_not_called_overwritten() {
        let frame = Bytes::from(vec![0x10, 0]);
        let _other = frame.clone();
        assert!(!wipe(frame, &mut BytesMut::new()));
    }

    #[test]
    fn room_for_more_of_a_connect_is_made_without_losing_what_is_there() {
        let mut input = BytesMut::from(&b"half"[..]);
        make_room(&mut input, 100);
        assert_eq!(input, b"half"[..]);
        assert!(input.capacity() >= 104);
    }
}
