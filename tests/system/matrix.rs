//! What becomes of a message when something fails: the table in the README, measured.
//!
//! # Cells
//!
//! A cell is a QoS, RETAIN or not, an event and a broker. [`MESSAGES`] different messages are published on a topic of the
//! cell's own; counted is what the dataset has in the end: *arrived* of them, *lost* the others, *twice* the rows beyond the
//! first of each. Publisher and subscription have the same QoS. All cells of one broker and one event share one run.
//!
//! # Events
//!
//! Half: the first and the second five messages of each cell. With a broker that is somebody else's:
//!
//! | event | what is done |
//! | --- | --- |
//! | agent away | The agent subscribes and ends (SIGTERM). Both halves are published. The agent is started. |
//! | broker restarts | The agent subscribes; its connection is cut and every new one reset. The first half is published; the broker ends (SIGTERM) and is started; the second half is published. Connections work again. |
//! | broker killed | The same with a broker that was restarted once after the agent had subscribed, so that the session is on its disk if it has one; and with SIGKILL. |
//! | agent killed | What the agent sends is held back. The first half is published and in the dataset: stored, and the broker has no acknowledgement. The agent is frozen (SIGSTOP); the second half is published: sent, and not stored. The agent is killed (SIGKILL) and started; nothing is held back. |
//!
//! With the broker that is built in, the agent is the broker, and devices publish to it. A device of QoS 1 and 2 keeps what is
//! not acknowledged and sends it again when it is connected again; one of QoS 0 sends once, if it is connected.
//!
//! | event | what is done |
//! | --- | --- |
//! | agent away | The agent ends (SIGTERM). The devices have both halves to send. The agent is started, then they connect. |
//! | broker restarts | The first half is published; SIGTERM; the agent is started; the second half is published. |
//! | broker killed | The same with SIGKILL, once the first half is stored. |
//! | agent killed | As above: what the agent sends is held back, the first half is published and in the dataset, the agent is frozen, the second half is published, SIGKILL, the agent is started, the devices connect. |
//!
//! # When everything has come
//!
//! In the end a message is published for each QoS and waited for: a broker keeps the order, so nothing published before comes
//! after it. What is sent again because of a subscription has no place in that order, so then the source must be silent for
//! [`SILENCE`].
//!
//! `FOREBAY_MATRIX=1` runs it; `FOREBAY_WRITE_MATRIX=1` writes what it measures into the README, instead of comparing.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use forebay_tests::agent::{Agent, AgentConfig};
use forebay_tests::dataset::Rows;
use forebay_tests::device::Device;
use forebay_tests::feed::{self, Message};
use forebay_tests::mosquitto::{Mosquitto, MosquittoConfig};
use forebay_tests::packets::{self, Connect, Publish, Reply, Version};
use forebay_tests::proxy::{Direction, Proxy};
use forebay_tests::rumqttd::Rumqttd;

use crate::sources::{mosquitto, now, source, wait_for, wait_for_rows, wait_until_subscribed};
use crate::{RUMQTTD_PROGRAM, finish, from_env, sealing_soon, start};

/// Of each cell.
const MESSAGES: u32 = 10;
const HALVES: [std::ops::Range<u32>; 2] = [0..MESSAGES / 2, MESSAGES / 2..MESSAGES];
/// How long it must be silent.
const SILENCE: Duration = Duration::from_secs(2);

const BEGIN: &str = "<!-- matrix -->\n";
const END: &str = "<!-- /matrix -->";

#[test]
fn the_readme_says_what_becomes_of_a_message() {
    if from_env("FOREBAY_MATRIX", 0) == 0 && from_env("FOREBAY_WRITE_MATRIX", 0) == 0 {
        println!("SKIPPED: FOREBAY_MATRIX=1 runs it; CI does.");
        return;
    }
    let Some(program) = mosquitto() else { return };

    let mut results = BTreeMap::new();
    for event in Event::ALL {
        for kind in Kind::ALL {
            let counts = match kind {
                Kind::BuiltIn => BuiltIn::new().run(event),
                Kind::Mosquitto => Foreign::new(|dir| Broker::mosquitto(&program, dir)).run(event),
                Kind::Rumqttd => Foreign::new(|_| Broker::rumqttd()).run(event),
            };
            println!("{}, {}: {counts:?}", kind.name(), event.name());
            results.extend(counts.into_iter().map(|(cell, count)| ((kind, cell, event), count)));
        }
    }

    let measured = table(&results);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the README has a place for the table");
    let (written, after) = rest.split_once(END).expect("which ends");
    println!("matrix: {} cells measured", results.len());
    if from_env("FOREBAY_WRITE_MATRIX", 0) == 1 {
        fs::write(&path, format!("{before}{BEGIN}{measured}{END}{after}")).unwrap();
        return;
    }
    assert!(
        written == measured,
        "README.md says otherwise than was measured (FOREBAY_WRITE_MATRIX=1 writes it):\n{}",
        difference(written, &measured)
    );
}

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    AgentAway,
    BrokerRestarts,
    BrokerKilled,
    AgentKilled,
}

impl Event {
    const ALL: [Self; 4] = [Self::AgentAway, Self::BrokerRestarts, Self::BrokerKilled, Self::AgentKilled];

    fn name(self) -> &'static str {
        match self {
            Self::AgentAway => "agent away",
            Self::BrokerRestarts => "broker restarts",
            Self::BrokerKilled => "broker killed",
            Self::AgentKilled => "agent killed",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    BuiltIn,
    Mosquitto,
    Rumqttd,
}

impl Kind {
    const ALL: [Self; 3] = [Self::BuiltIn, Self::Mosquitto, Self::Rumqttd];

    fn name(self) -> &'static str {
        match self {
            Self::BuiltIn => "Forebay's own",
            Self::Mosquitto => "mosquitto",
            Self::Rumqttd => "rumqttd",
        }
    }
}

/// What is published, whatever fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    qos: u8,
    retain: bool,
}

impl Cell {
    fn all() -> impl Iterator<Item = Self> {
        (0..=2).flat_map(|qos| [false, true].map(|retain| Self { qos, retain }))
    }

    fn topic(self) -> String {
        format!("matrix/{}/{}", self.qos, if self.retain { "retained" } else { "plain" })
    }

    fn message(self, number: u32) -> Message {
        let message = Message::new(&self.topic(), format!("{} {number}", self.topic()), self.qos);
        if self.retain { message.retained() } else { message }
    }
}

/// One half of every cell.
fn half(number: usize) -> Vec<Message> {
    Cell::all().flat_map(|cell| HALVES[number].clone().map(move |number| cell.message(number))).collect()
}

/// What became of a cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    arrived: u32,
    lost: u32,
    twice: u32,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} · {} · {}", self.arrived, self.lost, self.twice)
    }
}

fn count(rows: &Rows) -> BTreeMap<Cell, Count> {
    let stored = crate::sources::counted(rows.texts("payload").unwrap());
    let of = |cell: Cell| {
        let mut count = Count::default();
        for number in 0..MESSAGES {
            match stored.get(&format!("{} {number}", cell.topic())) {
                Some(times) => {
                    count.arrived += 1;
                    count.twice += times - 1;
                }
                None => count.lost += 1,
            }
        }
        count
    };
    Cell::all().map(|cell| (cell, of(cell))).collect()
}

/// Kills an agent that does nothing while `meanwhile` is done.
fn freeze_and_kill(agent: Agent, meanwhile: impl FnOnce()) {
    agent.freeze().unwrap();
    meanwhile();
    agent.kill().unwrap();
}

/// A broker of somebody else, and an agent that subscribes to it over a link that can be broken.
struct Foreign {
    broker: Broker,
    link: Proxy,
    config: AgentConfig,
    _dir: tempfile::TempDir,
}

enum Broker {
    Mosquitto(Mosquitto),
    Rumqttd(Rumqttd),
}

impl Broker {
    /// As Debian configures it.
    fn mosquitto(program: &Path, dir: &Path) -> Self {
        Self::Mosquitto(MosquittoConfig::in_dir(dir).persistent().start(program).unwrap())
    }

    fn rumqttd() -> Self {
        Self::Rumqttd(Rumqttd::start(Path::new(RUMQTTD_PROGRAM)).unwrap())
    }

    fn addr(&self) -> SocketAddr {
        match self {
            Self::Mosquitto(broker) => broker.addr(),
            Self::Rumqttd(broker) => broker.addr(),
        }
    }

    /// Ends in order and comes back. rumqttd has no order to end in.
    fn restart(&mut self) {
        match self {
            Self::Mosquitto(broker) => broker.stop().and_then(|()| broker.restart()).unwrap(),
            Self::Rumqttd(_) => self.kill_and_start(),
        }
    }

    fn kill_and_start(&mut self) {
        match self {
            Self::Mosquitto(broker) => broker.restart().unwrap(),
            Self::Rumqttd(broker) => broker.restart().unwrap(),
        }
    }
}

impl Foreign {
    fn new(broker: impl FnOnce(&Path) -> Broker) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let broker = broker(&dir.path().join("broker"));
        let link = Proxy::start(broker.addr()).unwrap();
        let topics = "topics = [{ path = \"matrix/0/#\", qos = \"AtMostOnce\" }, \
                      { path = \"matrix/1/#\", qos = \"AtLeastOnce\" }, { path = \"matrix/2/#\", qos = \"ExactlyOnce\" }]";
        let config = sealing_soon(dir.path()).with(&source(&format!("mqtt://{}", link.addr()), topics));
        Self { broker, link, config, _dir: dir }
    }

    fn run(mut self, event: Event) -> BTreeMap<Cell, Count> {
        let agent = start(&self.config);
        wait_until_subscribed(&agent);
        let agent = match event {
            Event::AgentAway => {
                agent.stop().unwrap();
                // Until the broker knows.
                thread::sleep(SILENCE);
                self.publish(0);
                self.publish(1);
                start(&self.config)
            }
            Event::BrokerRestarts => {
                self.break_link(&agent);
                self.publish(0);
                self.broker.restart();
                self.publish(1);
                self.link.refuse(false);
                agent
            }
            Event::BrokerKilled => {
                self.broker.restart();
                wait_for(&agent, "the connection after the restart", |status| {
                    status["sources"][0]["subscribed"] == true
                        && status["sources"][0]["connections"].as_u64() >= Some(2)
                });
                self.break_link(&agent);
                self.publish(0);
                self.broker.kill_and_start();
                self.publish(1);
                self.link.refuse(false);
                agent
            }
            Event::AgentKilled => {
                self.link.hold(Some(Direction::Up));
                self.publish(0);
                let first = half(0).len();
                wait_for_rows(&agent, &self.config, "messages", "payload", |rows| rows.len() == first);
                freeze_and_kill(agent, || {
                    self.publish(1);
                    // What the broker sends meanwhile is on its way.
                    wait_until_unchanged(|| self.link.bytes_down());
                });
                self.link.cut();
                self.link.hold(None);
                start(&self.config)
            }
        };
        self.wait_for_everything(&agent);
        count(&finish(agent, &self.config, "messages"))
    }

    /// Until it is told otherwise. The agent knows it: what it still took for subscribed would be no sign of a new subscription.
    fn break_link(&self, agent: &Agent) {
        self.link.refuse(true);
        self.link.cut();
        wait_for(agent, "the end of the connection", |status| status["sources"][0]["subscribed"] == false);
    }

    fn publish(&self, number: usize) {
        feed::publish(self.broker.addr(), half(number)).unwrap();
    }

    fn wait_for_everything(&self, agent: &Agent) {
        wait_until_subscribed(agent);
        let ends: Vec<String> = (0..=2).map(|qos| format!("end {qos}")).collect();
        let messages =
            ends.iter().zip(0..).map(|(end, qos)| Message::new(&format!("matrix/{qos}/end"), end.as_str(), qos));
        feed::publish(self.broker.addr(), messages).unwrap();
        wait_for_rows(agent, &self.config, "messages", "payload", |rows| ends.iter().all(|end| rows.contains(end)));
        wait_until_unchanged(|| agent.status().unwrap()["sources"][0]["messages"].as_u64());
    }
}

fn wait_until_unchanged<T: PartialEq>(look: impl Fn() -> T) {
    let (mut last, mut since) = (look(), now());
    while since.elapsed() < SILENCE {
        thread::sleep(Duration::from_millis(20));
        let more = look();
        if more != last {
            (last, since) = (more, now());
        }
    }
}

/// The agent as the broker, and devices that publish to it over a link that can be broken.
struct BuiltIn {
    config: AgentConfig,
    device: Keeper,
    link: Option<Proxy>,
    _dir: tempfile::TempDir,
}

impl BuiltIn {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { config: sealing_soon(dir.path()), device: Keeper::default(), link: None, _dir: dir }
    }

    fn run(mut self, event: Event) -> BTreeMap<Cell, Count> {
        let agent = start(&self.config);
        self.connect(&agent);
        let agent = match event {
            Event::AgentAway => {
                agent.stop().unwrap();
                self.device.connection = None;
                self.device.publish(half(0));
                self.device.publish(half(1));
                self.start_and_connect()
            }
            Event::BrokerRestarts => {
                self.device.publish(half(0));
                self.device.settle();
                agent.stop().unwrap();
                let agent = self.start_and_connect();
                self.device.publish(half(1));
                agent
            }
            Event::BrokerKilled => {
                self.device.publish(half(0));
                self.device.settle();
                self.wait_until_sealed(&agent, half(0).len());
                agent.kill().unwrap();
                let agent = self.start_and_connect();
                self.device.publish(half(1));
                agent
            }
            Event::AgentKilled => {
                self.link().hold(Some(Direction::Down));
                self.device.publish(half(0));
                self.wait_until_sealed(&agent, half(0).len());
                freeze_and_kill(agent, || self.device.publish(half(1)));
                self.link().cut();
                self.link().hold(None);
                self.start_and_connect()
            }
        };
        self.device.settle();
        count(&finish(agent, &self.config, "messages"))
    }

    fn link(&self) -> &Proxy {
        self.link.as_ref().expect("made with the first connection")
    }

    fn start_and_connect(&mut self) -> Agent {
        let agent = start(&self.config);
        self.connect(&agent);
        agent
    }

    /// The agent has a port of its own in each life.
    fn connect(&mut self, agent: &Agent) {
        let link = self.link.get_or_insert_with(|| Proxy::start(agent.mqtt_addr()).unwrap());
        link.set_target(agent.mqtt_addr());
        self.device.connect(link.addr());
    }

    fn wait_until_sealed(&self, agent: &Agent, messages: usize) {
        wait_for_rows(agent, &self.config, "messages", "payload", |rows| rows.len() == messages);
    }
}

/// A device that keeps messages of QoS 1 and 2 until they are acknowledged.
#[derive(Default)]
struct Keeper {
    connection: Option<Device>,
    in_flight: Vec<Kept>,
    packet_id: u16,
}

struct Kept {
    packet_id: u16,
    message: Message,
    is_sent: bool,
}

impl Keeper {
    /// Connects, and sends again, with DUP, what is not acknowledged [MQTT-4.4.0-1].
    fn connect(&mut self, addr: SocketAddr) {
        let connect = Connect::persistent("keeper");
        self.connection = Some(Device::connect(addr, Version::V4, &connect).unwrap());
        for index in 0..self.in_flight.len() {
            self.send(index);
        }
    }

    /// Sends if it is connected; of QoS 0 nothing is kept.
    fn publish(&mut self, messages: Vec<Message>) {
        for message in messages {
            self.packet_id += 1;
            self.in_flight.push(Kept { packet_id: self.packet_id, message, is_sent: false });
            self.send(self.in_flight.len() - 1);
        }
        self.in_flight.retain(|kept| kept.message.qos > 0);
    }

    fn send(&mut self, index: usize) {
        let kept = &mut self.in_flight[index];
        let Some(connection) = &mut self.connection else { return };
        let Message { topic, payload, qos, retain } = &kept.message;
        let packet = Publish::new(topic, payload, *qos, kept.packet_id);
        connection.publish(&Publish { dup: kept.is_sent, retain: *retain, ..packet }).unwrap();
        kept.is_sent = true;
    }

    /// Completes what is in flight.
    fn settle(&mut self) {
        let connection = self.connection.as_mut().expect("it is connected");
        while !self.in_flight.is_empty() {
            match connection.reply().unwrap() {
                Reply::PubAck { packet_id, code: 0 } | Reply::PubComp { packet_id, code: 0 } => {
                    self.in_flight.retain(|kept| kept.packet_id != packet_id);
                }
                Reply::PubRec { packet_id, code: 0 } => {
                    let mut bytes = Vec::new();
                    packets::pubrel(packet_id, &mut bytes);
                    connection.send(&bytes).unwrap();
                }
                other => panic!("the device got {other:?}"),
            }
        }
        connection.ping().unwrap();
    }
}

/// A section of the README: the table and what its words mean.
fn table(results: &BTreeMap<(Kind, Cell, Event), Count>) -> String {
    let mut out = String::from("| broker | QoS | retained |");
    for event in Event::ALL {
        let _ = write!(out, " {} |", event.name());
    }
    out.push_str("\n| --- | --- | --- | --- | --- | --- | --- |\n");
    for kind in Kind::ALL {
        for cell in Cell::all() {
            let retained = if cell.retain { "yes" } else { "no" };
            let _ = write!(out, "| {} | {} | {retained} |", kind.name(), cell.qos);
            for event in Event::ALL {
                let _ = write!(out, " {} |", results[&(kind, cell, event)]);
            }
            out.push('\n');
        }
    }
    out + LEGEND
}

const LEGEND: &str = "
`10 · 0 · 0`: of ten messages ten arrived, none was lost, none is there twice. QoS, for publisher and subscription alike: 0 is
sent once, 1 until it is acknowledged, 2 so that it arrives once. Retained: the broker keeps a topic's last message and sends
it to whoever subscribes.

- *agent away*: the agent was stopped, ten messages were published, the agent was started.
- *broker restarts*: with the agent's connection lost, five messages were published, the broker was stopped and started, five
  more were published; then the connection came back.
- *broker killed*: the same with `kill -9` of the broker.
- *agent killed*: by `kill -9`, when five messages were stored and not yet acknowledged, and five were sent and not yet stored.

With Forebay's own broker the agent is the broker, and it is the devices that are there or keep what is not acknowledged.
mosquitto 2.0 is as Debian configures it: it writes what waits to disk when it ends, and every half hour. rumqttd 0.20 keeps
everything in memory, and after a lost connection sends again as if for the first time, also with QoS 2.

";

/// The lines that differ.
fn difference(written: &str, measured: &str) -> String {
    let mut out = String::new();
    let (mut written, mut measured) = (written.lines(), measured.lines());
    loop {
        match (written.next(), measured.next()) {
            (None, None) => return out,
            (one, other) if one == other => {}
            (one, other) => {
                let _ = writeln!(out, "- {}\n+ {}", one.unwrap_or_default(), other.unwrap_or_default());
            }
        }
    }
}
