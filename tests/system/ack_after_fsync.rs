//! I1 as the kernel sees it: no PUBACK is written before the `fdatasync` that covers its message has returned.
//!
//! The agent runs under `strace`. Each message carries a random mark that does not compress, so that the system call that
//! writes it to the spool can be found. For each PUBACK there must be, in the order of the trace: the message's `pwrite`
//! returned, then a sync began and returned, and only then did the write to the socket begin. The same holds for PUBREC, and
//! for what an agent answers a broker that it subscribes to.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;

use forebay_tests::broker::ScriptedBroker;
use forebay_tests::device::Device;
use forebay_tests::packets::{Connect, Publish, Version};

use crate::sources::subscribing;
use crate::{finish, sealing_soon, start};

const DEVICES: u16 = 4;
const MESSAGES: u16 = 25;
/// First byte of a PUBACK, and of a PUBREC.
const PUBACK: u8 = b'@';
const PUBREC: u8 = b'P';
const CALLS: &str = "trace=pwrite64,pwritev,write,writev,sendto,sendmsg,fdatasync,fsync,sync_file_range,msync";

#[test]
fn no_puback_is_written_before_the_fdatasync_of_its_message_returned() {
    if !strace_is_installed() {
        println!("SKIPPED: strace is not installed; CI installs it.");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let config = sealing_soon(dir.path())
        // -D: the agent stays our child, and strace ends with it.
        .under(&["strace", "-D", "-f", "-qq", "-s", "8192", "-e", CALLS, "-o", &trace.display().to_string()]);
    let agent = start(&config);
    let addr = agent.mqtt_addr();

    let publishing = (0..DEVICES).map(|device| {
        thread::spawn(move || {
            let mut random = fastrand::Rng::with_seed(u64::from(device));
            let mut connection = Device::connect(addr, Version::V4, &Connect::clean(&format!("d{device}"))).unwrap();
            let mut sent = Vec::new();
            for number in 0..MESSAGES {
                let mark: String = std::iter::repeat_with(|| random.alphanumeric()).take(40).collect();
                // A Packet Identifier that no other message has, so that its PUBACK is known by its bytes.
                let packet_id = (device + 1) * 256 + number + 1;
                connection.publish_and_wait(&Publish::new("a/b", mark.as_bytes(), 1, packet_id)).unwrap();
                sent.push((packet_id, mark));
            }
            sent
        })
    });
    let publishing: Vec<_> = publishing.collect();
    let sent: Vec<(u16, String)> = publishing.into_iter().flat_map(|device| device.join().unwrap()).collect();
    let rows = finish(agent, &config.under(&[]), "messages");

    assert_eq!(rows.len(), sent.len());
    let calls = parse(&fs::read_to_string(&trace).unwrap());
    for (packet_id, mark) in &sent {
        check_order(&calls, PUBACK, *packet_id, mark).unwrap();
    }
    println!("strace: {} PUBACK, each after the fdatasync of its message", sent.len());
}

#[test]
fn no_puback_or_pubrec_goes_to_a_source_before_the_fdatasync_of_its_message_returned() {
    if !strace_is_installed() {
        println!("SKIPPED: strace is not installed; CI installs it.");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let broker = ScriptedBroker::listen().unwrap();
    let config = subscribing(dir.path(), &broker.url(), "qos = \"ExactlyOnce\"").under(&[
        "strace",
        "-D",
        "-f",
        "-qq",
        "-s",
        "8192",
        "-e",
        CALLS,
        "-o",
        &trace.display().to_string(),
    ]);
    let agent = start(&config);
    let mut session = broker.accept_subscriber(false).unwrap();
    let mut random = fastrand::Rng::with_seed(7);

    let mut sent = Vec::new();
    for number in 0..2 * MESSAGES {
        let mark: String = std::iter::repeat_with(|| random.alphanumeric()).take(40).collect();
        let (qos, answer) = if number % 2 == 0 { (1, PUBACK) } else { (2, PUBREC) };
        let packet_id = (number / MESSAGES + 1) * 256 + number % MESSAGES + 1;
        // One after the other: answers that are ready together are written together.
        session.publish_and_complete(&Publish::new("a/b", mark.as_bytes(), qos, packet_id)).unwrap();
        sent.push((answer, packet_id, mark));
    }
    let rows = finish(agent, &config.under(&[]), "messages");

    assert_eq!(rows.len(), sent.len());
    let calls = parse(&fs::read_to_string(&trace).unwrap());
    for (answer, packet_id, mark) in &sent {
        check_order(&calls, *answer, *packet_id, mark).unwrap();
    }
    println!("strace: {} PUBACK and PUBREC to a source, each after the fdatasync of its message", sent.len());
}

#[test]
fn a_puback_before_the_fdatasync_of_its_message_is_caught() {
    let write = r#"7 pwrite64(9, "..MARK..", 20, 0) = 20"#;
    let sync = ["7 fdatasync(9 <unfinished ...>", "7 <... fdatasync resumed>) = 0"];
    let puback = r#"8 sendto(12, "@\2\1\1", 4, MSG_NOSIGNAL, NULL, 0) = 4"#;
    let check = |lines: [&str; 4]| check_order(&parse(&lines.join("\n")), PUBACK, 0x0101, "MARK");

    assert!(check([write, sync[0], sync[1], puback]).is_ok());
    assert!(check([write, sync[0], puback, sync[1]]).unwrap_err().contains("began at line 2"));
    assert!(check([puback, write, sync[0], sync[1]]).unwrap_err().contains("began at line 0"));
    assert!(check([sync[0], sync[1], write, puback]).unwrap_err().contains("not synced"));
}

/// The message's `pwrite` returned, then a sync began and returned, then the write of its answer began.
fn check_order(calls: &[Call], answer: u8, packet_id: u16, mark: &str) -> Result<(), String> {
    let stored = calls.iter().filter(|call| call.name.starts_with("pwrite") && call.text.contains(mark));
    let stored = stored.map(|call| call.returned).min().ok_or_else(|| format!("{mark} was not written"))?;
    let syncs = calls.iter().filter(|call| matches!(call.name.as_str(), "fdatasync" | "fsync"));
    let synced = syncs.filter(|call| call.began > stored && call.text.ends_with("= 0"));
    let synced = synced.map(|call| call.returned).min().ok_or_else(|| format!("{mark} was not synced"))?;
    let puback = answer_text(answer, packet_id);
    let sent = calls.iter().filter(|call| !call.name.starts_with("pwrite") && call.text.contains(&puback));
    let sent = sent.map(|call| call.began).min().ok_or_else(|| format!("no PUBACK {packet_id}"))?;
    if sent > synced {
        return Ok(());
    }
    Err(format!("PUBACK {packet_id} began at line {sent} of the trace, its fdatasync returned at line {synced}"))
}

fn strace_is_installed() -> bool {
    Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|it| it.success())
}

/// One system call; `began` and `returned` are line numbers of the trace.
struct Call {
    name: String,
    text: String,
    began: usize,
    returned: usize,
}

/// Joins `PID call(... <unfinished ...>` with the `PID <... call resumed>...` that follows it.
fn parse(trace: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut unfinished: Vec<(String, usize)> = Vec::new();
    for (number, line) in trace.lines().enumerate() {
        let Some((pid, text)) = line.split_once(' ') else { continue };
        let text = text.trim();
        if text.starts_with("<... ") {
            let Some(position) = unfinished.iter().position(|(waiting, _)| waiting == pid) else { continue };
            let call = &mut calls[unfinished.remove(position).1];
            call.returned = number;
            call.text.push_str(text);
            continue;
        }
        if text.ends_with("<unfinished ...>") {
            unfinished.push((pid.to_owned(), calls.len()));
        }
        let name = text.split('(').next().unwrap_or_default().to_owned();
        let returned = if text.ends_with("<unfinished ...>") { usize::MAX } else { number };
        calls.push(Call { name, text: text.to_owned(), began: number, returned });
    }
    calls
}

/// A 3.1.1 answer as strace prints bytes: the shortest octal, or the character itself.
fn answer_text(answer: u8, packet_id: u16) -> String {
    let [high, low] = packet_id.to_be_bytes();
    let bytes: String = [answer, 2, high, low].into_iter().map(strace_byte).collect();
    format!("\"{bytes}\", 4")
}

fn strace_byte(byte: u8) -> String {
    match byte {
        b'\t' => "\\t".to_owned(),
        b'\n' => "\\n".to_owned(),
        0x0B => "\\v".to_owned(),
        0x0C => "\\f".to_owned(),
        b'\r' => "\\r".to_owned(),
        b'"' => "\\\"".to_owned(),
        b'\\' => "\\\\".to_owned(),
        b' '..=b'~' => char::from(byte).to_string(),
        _ => format!("\\{byte:o}"),
    }
}
