//! The proxy between a client and an echo.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use forebay_tests::proxy::{Direction, Proxy};

/// Sends back what it gets, each connection until its end; for the life of the test process.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
    addr
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

fn round_trip(stream: &mut TcpStream, bytes: usize) -> std::io::Result<()> {
    stream.write_all(&vec![7; bytes])?;
    let mut back = vec![0; bytes];
    stream.read_exact(&mut back)
}

#[expect(clippy::disallowed_methods, reason = "what a slow link is about")]
fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

#[test]
fn a_good_link_forwards_both_ways_and_ends_as_its_ends_do() {
    let proxy = Proxy::start(echo()).unwrap();
    let mut stream = connect(&proxy);
    round_trip(&mut stream, 100_000).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!((proxy.bytes_up(), proxy.bytes_down(), proxy.connections()), (100_000, 100_000, 1));
}

#[test]
fn cut_after_lets_exactly_so_many_bytes_through() {
    let proxy = Proxy::start(echo()).unwrap();
    proxy.cut_after(1_000);
    let mut stream = connect(&proxy);
    stream.write_all(&[7; 5_000]).unwrap();
    assert!(stream.read_to_end(&mut Vec::new()).is_err(), "a reset");
    assert_eq!(proxy.bytes_up() + proxy.bytes_down(), 1_000);
    round_trip(&mut connect(&proxy), 5_000).unwrap();
}

#[test]
fn a_black_hole_keeps_connections_and_loses_nothing() {
    let proxy = Proxy::start(echo()).unwrap();
    let mut stream = connect(&proxy);
    round_trip(&mut stream, 10).unwrap();
    proxy.blackhole(true);
    thread::sleep(Duration::from_millis(30));
    stream.write_all(b"hello").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(stream.read(&mut [0]).is_err(), "nothing comes");
    proxy.blackhole(false);
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
}

#[test]
fn a_direction_is_held_while_the_other_one_works() {
    let proxy = Proxy::start(echo()).unwrap();
    let mut stream = connect(&proxy);
    round_trip(&mut stream, 10).unwrap();
    proxy.hold(Some(Direction::Down));
    stream.write_all(b"hello").unwrap();
    while proxy.bytes_up() < 15 {
        thread::yield_now();
    }
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(stream.read(&mut [0]).is_err(), "nothing comes back");
    proxy.hold(None);
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
}

#[test]
fn a_slow_link_is_slow() {
    let proxy = Proxy::start(echo()).unwrap();
    // A read that has begun goes on as it was: what is set counts for all of a connection that is made afterwards.
    proxy.throttle(Some(100_000));
    let mut stream = connect(&proxy);
    let throttled = timed(|| round_trip(&mut stream, 30_000).unwrap());
    assert!(throttled >= Duration::from_millis(250), "{throttled:?}");
    proxy.throttle(None);
    proxy.delay(Duration::from_millis(50));
    let mut stream = connect(&proxy);
    let delayed = timed(|| round_trip(&mut stream, 10).unwrap());
    assert!(delayed >= Duration::from_millis(100), "{delayed:?}");
}

#[test]
fn cut_and_refuse_reset_and_the_target_may_move() {
    let proxy = Proxy::start("127.0.0.1:1".parse().unwrap()).unwrap();
    assert!(round_trip(&mut connect(&proxy), 10).is_err(), "nobody is there");
    proxy.set_target(echo());
    let mut stream = connect(&proxy);
    round_trip(&mut stream, 10).unwrap();
    proxy.cut();
    assert!(round_trip(&mut stream, 10).is_err());
    proxy.refuse(true);
    assert!(round_trip(&mut connect(&proxy), 10).is_err());
    proxy.refuse(false);
    round_trip(&mut connect(&proxy), 10).unwrap();
}
