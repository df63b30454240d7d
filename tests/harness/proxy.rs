//! A bad link: forwards TCP and, while it runs, can be made slow, deaf or broken.
//!
//! Two threads a connection. They look at the controls before they forward anything, so nothing passes after a cut or into a
//! black hole; an idle connection learns of a cut within 10 ms. A cut is a reset, in both directions.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::SockRef;

/// How often idle threads look at the controls.
const TICK: Duration = Duration::from_millis(10);
/// Bytes forwarded at a time without a throttle.
const CHUNK_BYTES: usize = 16 * 1024;
/// Slices of a second in which a throttle lets bytes through.
const THROTTLE_SLICES: u64 = 50;

/// A link that can be broken. Dropped, it cuts everything.
#[derive(Debug)]
pub struct Proxy {
    link: Arc<Link>,
    addr: SocketAddr,
}

#[derive(Debug)]
struct Link {
    controls: Mutex<Controls>,
    /// Raised by every cut; connections made before it end.
    cuts: AtomicU64,
    ended: AtomicBool,
    connections: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Controls {
    target: SocketAddr,
    delay: Duration,
    bytes_per_sec: Option<u64>,
    bytes_until_cut: Option<u64>,
    is_blackhole: bool,
    is_refusing: bool,
    held: Option<Direction>,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From clients to the target.
    Up,
    /// From the target to clients.
    Down,
}

impl Proxy {
    /// Listens on a free loopback port and forwards to `target`.
    pub fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen for the proxy")?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let controls = Controls {
            target,
            delay: Duration::ZERO,
            bytes_per_sec: None,
            bytes_until_cut: None,
            is_blackhole: false,
            is_refusing: false,
            held: None,
        };
        let link = Arc::new(Link {
            controls: Mutex::new(controls),
            cuts: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            bytes_up: AtomicU64::new(0),
            bytes_down: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&link);
        spawn("proxy-accept", move || accepting.accept(&listener))?;
        Ok(Self { link, addr })
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where connections made from here on go.
    pub fn set_target(&self, target: SocketAddr) {
        self.link.lock().target = target;
    }

    /// Holds every chunk back for so long; zero is a good link.
    pub fn delay(&self, delay: Duration) {
        self.link.lock().delay = delay;
    }

    /// Bytes a second, per connection and direction; `None` is as fast as it goes.
    pub fn throttle(&self, bytes_per_sec: Option<u64>) {
        self.link.lock().bytes_per_sec = bytes_per_sec;
    }

    /// Resets all connections that are open.
    pub fn cut(&self) {
        let _controls = self.link.lock();
        self.link.cut();
    }

    /// Resets all connections once so many more bytes were forwarded, in either direction; once.
    pub fn cut_after(&self, bytes: u64) {
        self.link.lock().bytes_until_cut = Some(bytes);
    }

    /// Accepts, and forwards nothing; what waits is forwarded when it is off again.
    pub fn blackhole(&self, is_on: bool) {
        self.link.lock().is_blackhole = is_on;
    }

    /// Forwards nothing in this direction, while the other one works; what waits is forwarded when it is held no more.
    pub fn hold(&self, direction: Option<Direction>) {
        self.link.lock().held = direction;
    }

    /// Resets new connections at once. The port stays ours, so this is a reset and not ECONNREFUSED.
    pub fn refuse(&self, is_on: bool) {
        self.link.lock().is_refusing = is_on;
    }

    /// Connections accepted so far, refused ones included.
    pub fn connections(&self) -> u64 {
        self.link.connections.load(Ordering::Relaxed)
    }

    /// Bytes forwarded from clients to the target.
    pub fn bytes_up(&self) -> u64 {
        self.link.bytes_up.load(Ordering::Relaxed)
    }

    /// Bytes forwarded from the target to clients.
    pub fn bytes_down(&self) -> u64 {
        self.link.bytes_down.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.link.ended.store(true, Ordering::Relaxed);
        self.link.cut();
    }
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, Controls> {
        self.controls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self) {
        self.cuts.fetch_add(1, Ordering::Relaxed);
    }

    fn is_cut(&self, epoch: u64) -> bool {
        self.cuts.load(Ordering::Relaxed) != epoch
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        while !self.ended.load(Ordering::Relaxed) {
            let Ok((client, _)) = listener.accept() else {
                thread::sleep(TICK);
                continue;
            };
            self.connections.fetch_add(1, Ordering::Relaxed);
            if prepare(&client).is_err() || self.lock().is_refusing {
                continue;
            }
            let link = Arc::clone(self);
            let epoch = self.cuts.load(Ordering::Relaxed);
            let _ = spawn("proxy-up", move || link.connect(client, epoch));
        }
    }

    fn connect(self: Arc<Self>, client: TcpStream, epoch: u64) {
        while self.lock().is_blackhole {
            if self.is_cut(epoch) {
                return;
            }
            thread::sleep(TICK);
        }
        let target = self.lock().target;
        let Ok(server) = TcpStream::connect(target) else {
            return;
        };
        let (Ok(()), Ok(client_in), Ok(server_in)) = (prepare(&server), client.try_clone(), server.try_clone()) else {
            return;
        };
        let link = Arc::clone(&self);
        if spawn("proxy-down", move || link.pump(server_in, client, epoch, Direction::Down)).is_ok() {
            self.pump(client_in, server, epoch, Direction::Up);
        }
    }

    /// One direction, until its end or a cut. Both streams are dropped then; with the other direction's, that resets.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, epoch: u64, direction: Direction) {
        let counter = match direction {
            Direction::Up => &self.bytes_up,
            Direction::Down => &self.bytes_down,
        };
        let mut buffer = vec![0; CHUNK_BYTES];
        while !self.is_cut(epoch) {
            let controls = *self.lock();
            if controls.is_blackhole || controls.held == Some(direction) {
                thread::sleep(TICK);
                continue;
            }
            let slice = controls.bytes_per_sec.map(|bytes| (bytes / THROTTLE_SLICES).max(1));
            let chunk_bytes =
                slice.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let length = match from.read(&mut buffer[..chunk_bytes]) {
                Ok(0) => {
                    // Half an end; the other direction may go on.
                    let _ = SockRef::from(&to).set_linger(None);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                    return;
                }
                Ok(length) => length,
                Err(error) if is_timeout(error.kind()) => continue,
                Err(_) => return self.cut_pair(&to),
            };
            thread::sleep(controls.delay);
            let Some(allowed) = self.allow(length, epoch, direction) else {
                return;
            };
            if !self.write(&mut to, &buffer[..allowed], epoch) {
                return self.cut_pair(&from);
            }
            counter.fetch_add(allowed as u64, Ordering::Relaxed);
            if let Some(bytes_per_sec) = controls.bytes_per_sec {
                thread::sleep(Duration::from_secs_f64(length as f64 / bytes_per_sec.max(1) as f64));
            }
        }
    }

    /// How many of `length` bytes may pass, once the black hole is off; `None` after a cut. The bytes that use up the
    /// budget of [`Proxy::cut_after`] are the last: the cut is made before anyone else may ask.
    fn allow(&self, length: usize, epoch: u64, direction: Direction) -> Option<usize> {
        loop {
            let mut controls = self.lock();
            if self.is_cut(epoch) {
                return None;
            }
            if controls.is_blackhole || controls.held == Some(direction) {
                drop(controls);
                thread::sleep(TICK);
                continue;
            }
            let Some(left) = controls.bytes_until_cut else {
                return Some(length);
            };
            let allowed = length.min(usize::try_from(left).unwrap_or(usize::MAX));
            let left = left - allowed as u64;
            controls.bytes_until_cut = (left > 0).then_some(left);
            if left == 0 {
                self.cut();
            }
            return Some(allowed);
        }
    }

    fn write(&self, to: &mut TcpStream, mut bytes: &[u8], epoch: u64) -> bool {
        while !bytes.is_empty() {
            match to.write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if is_timeout(error.kind()) && !self.is_cut(epoch) => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// One side is gone: the other learns it.
    fn cut_pair(&self, other: &TcpStream) {
        let _ = other.shutdown(std::net::Shutdown::Both);
    }
}

/// No delay of our own, a look at the controls every [`TICK`], and a reset when it is dropped.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TICK))?;
    stream.set_write_timeout(Some(TICK))?;
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

fn is_timeout(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).with_context(|| format!("start {name}"))?;
    Ok(())
}
