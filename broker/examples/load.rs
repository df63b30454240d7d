//! How fast the broker is on its own: QoS 1 over loopback, acknowledged by a thread that "commits" whatever is queued.
//!
//! `cargo run --profile perf -p forebay-broker --example load -- [connections] [window] [seconds]`; with `idle N` it
//! opens N quiet connections and prints the memory that each costs.

use std::time::{Duration, Instant};

use forebay_broker::Broker;
use forebay_broker::config::{Limits, ListenerConfig};
use forebay_broker::inbound::{Inbound, InboundPublish, Outcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PAYLOAD_BYTES: usize = 200;

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |index: usize, default: usize| arguments.get(index).and_then(|text| text.parse().ok()).unwrap_or(default);
    let limits = Limits { connections_max: 20_000, ..Limits::default() };
    let (broker, mut inbound) = Broker::new(limits, Vec::new());
    std::thread::spawn(move || {
        while let Some(first) = inbound.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < 4_096
                && let Ok(next) = inbound.try_recv()
            {
                batch.push(next);
            }
            for inbound in batch {
                match inbound {
                    Inbound::Publish(InboundPublish { ticket, .. })
                    | Inbound::Release { ticket, .. }
                    | Inbound::OpenSession { ticket, .. }
                    | Inbound::CloseSession { ticket, .. } => ticket.resolve(Outcome::Stored),
                }
            }
        }
    });
    let listener = broker.listen(([127, 0, 0, 1], 0).into(), ListenerConfig::default()).await?;
    if arguments.first().is_some_and(|first| first == "idle") {
        return measure_idle(listener.local_addr, number(1, 5_000)).await;
    }
    let (connections, window, seconds) = (number(0, 100), number(1, 16), number(2, 5));
    let until = Instant::now() + Duration::from_secs(seconds as u64);
    let clients: Vec<_> =
        (0..connections).map(|client| tokio::spawn(publish(listener.local_addr, client, window, until))).collect();
    let mut acknowledged = 0;
    for client in clients {
        acknowledged += client.await.map_err(std::io::Error::other)??;
    }
    println!("{} acknowledged/s", acknowledged / seconds as u64);
    println!("{:?}", broker.stats());
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
async fn publish(address: std::net::SocketAddr, client: usize, window: usize, until: Instant) -> std::io::Result<u64> {
    let mut socket = connect(address, client).await?;
    let mut publish = vec![0x32, 0, 0, 0, 11];
    publish.extend_from_slice(b"site/a/temp\0\x01");
    publish.resize(publish.len() + PAYLOAD_BYTES, b'x');
    let remaining = publish.len() - 3;
    publish[1] = (remaining & 0x7F | 0x80) as u8;
    publish[2] = (remaining >> 7) as u8;
    let mut acknowledged = 0;
    let mut answers = vec![0; 4 * window];
    let mut output = publish.repeat(window);
    let mut unfinished = 0;
    while Instant::now() < until {
        socket.write_all(&output).await?;
        let read = socket.read(&mut answers).await?;
        let count = (unfinished + read) / 4;
        unfinished = (unfinished + read) % 4;
        acknowledged += count as u64;
        output = publish.repeat(count);
    }
    Ok(acknowledged)
}

async fn connect(address: std::net::SocketAddr, client: usize) -> std::io::Result<TcpStream> {
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let id = format!("{client:06}");
    let mut connect = b"\x10\x12\0\x04MQTT\x04\x02\0\0\0\x06".to_vec();
    connect.extend_from_slice(id.as_bytes());
    socket.write_all(&connect).await?;
    let mut connack = [0; 4];
    socket.read_exact(&mut connack).await?;
    assert_eq!(connack, [0x20, 2, 0, 0]);
    Ok(socket)
}

/// The clients' sockets live in this process too, so the figure is an upper bound.
async fn measure_idle(address: std::net::SocketAddr, count: usize) -> std::io::Result<()> {
    let before = resident_bytes()?;
    let mut sockets = Vec::with_capacity(count);
    for client in 0..count {
        sockets.push(connect(address, client).await?.into_std()?);
    }
    let after = resident_bytes()?;
    println!("{} bytes per idle connection", (after - before) / count as u64);
    Ok(())
}

fn resident_bytes() -> std::io::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    Ok(pages * 4_096)
}
