//! Sections of the file, turned into types. The order is that of the file `init` writes.

use std::num::NonZeroU16;
use std::path::PathBuf;

use forebay_broker::config::Limits;
use forebay_storage::spool::{OnFull, SpoolConfig};

use super::dataset::Declared;
use super::document::{ConfigError, Node, Section, nearest};
use super::units::show_size;
use super::{Batch, Config, Log, LogFormat, OnRefused, Secret};

type Result<T> = std::result::Result<T, ConfigError>;

/// The most that may be received and not yet on disk, bytes; the semaphore of a 32-bit machine counts twice as far.
const UNSTORED_BYTES_MAX: u32 = 256 << 20;
/// The largest packet whose message, with the longest Client Identifier, the spool can take: 63 MiB.
pub(super) const PACKET_BYTES_MAX: u32 = 63 << 20;

/// The whole file.
pub(super) fn config(tree: Node) -> Result<Config> {
    let default = Config::default();
    let mut root = tree.section()?;
    let gateway = root.read("gateway", default.gateway, gateway)?;
    let data_dir = root.read("data_dir", default.data_dir, |node| Ok(PathBuf::from(node.text()?)))?;
    let on_refused = root.read("on_refused", default.on_refused, on_refused)?;
    let auth = section(&mut root, "auth", super::listener::auth)?.unwrap_or_default();
    let listeners = match root.take("listener") {
        Some(node) => super::listener::listeners(node, &auth)?,
        None => default.listeners,
    };
    let limits = section(&mut root, "limits", limits)?.unwrap_or_default();
    let mut declared = match root.take("dataset") {
        Some(node) => super::dataset::datasets(node, &gateway)?,
        None => Declared::nothing(),
    };
    let sources = match root.take("source") {
        Some(node) => super::source::sources(node, &declared.sources, &declared.datasets, &gateway)?,
        None => std::mem::take(&mut declared.sources),
    };
    let datasets = declared.datasets_of(&sources)?;
    let mut spool = section(&mut root, "spool", spool)?.unwrap_or_default();
    // The broker counts the sessions of clients that are away, the spool all of them.
    spool.sessions_max = (limits.sessions_max as u64).saturating_add(limits.connections_max as u64);
    for _ in &sources {
        super::source::make_room(&mut spool);
    }
    let batch = section(&mut root, "batch", batch)?.unwrap_or_default();
    let keep_delivered_bytes = section(&mut root, "retention", retention)?.unwrap_or(default.keep_delivered_bytes);
    let upstreams = match root.take("upstream") {
        Some(node) => super::upstream::upstreams(node, &datasets, &data_dir)?,
        None => Vec::new(),
    };
    let log = section(&mut root, "log", log)?.unwrap_or_default();
    root.finish()?;
    Ok(Config {
        gateway,
        data_dir,
        listeners,
        auth,
        on_refused,
        limits,
        datasets,
        sources,
        spool,
        batch,
        keep_delivered_bytes,
        upstreams,
        log,
    })
}

fn section<T>(
    root: &mut Section,
    key: &'static str,
    read: impl FnOnce(&mut Section) -> Result<T>,
) -> Result<Option<T>> {
    let Some(node) = root.take(key) else { return Ok(None) };
    let mut section = node.section()?;
    let value = read(&mut section)?;
    section.finish()?;
    Ok(Some(value))
}

/// One of a few words; anything else is answered with the nearest.
pub(super) fn word<T: Copy>(node: &Node, words: &[(&str, T)]) -> Result<T> {
    word_of(node, node.text()?, words)
}

/// The same for a node's text in another spelling.
pub(super) fn word_of<T: Copy>(node: &Node, text: &str, words: &[(&str, T)]) -> Result<T> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    let choice = known.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
    Err(node.error(match nearest(text, &known) {
        Some(near) => format!("\"{text}\" is not one of {choice}; did you mean \"{near}\"?"),
        None => format!("\"{text}\" is not one of {choice}"),
    }))
}

/// Reads a key that belongs to some kinds of upstream or source only.
pub(super) fn only_if<T>(
    belongs: bool,
    to: &str,
    section: &mut Section,
    key: &'static str,
    read: impl FnOnce(&Node) -> Result<T>,
) -> Result<Option<T>> {
    match section.take(key) {
        Some(node) if !belongs => Err(node.error(format!("belongs to {to} only"))),
        Some(node) => read(&node).map(Some),
        None => Ok(None),
    }
}

/// A secret by the name of its file, or of an environment variable.
pub(super) fn secret(
    belongs: bool,
    to: &str,
    section: &mut Section,
    file: &'static str,
    env: &'static str,
) -> Result<Option<Secret>> {
    let in_file = only_if(belongs, to, section, file, |node| Ok(Secret::File(PathBuf::from(node.text()?))))?;
    let other = section.error(format!("has both {file} and {env}: one of them"));
    let in_env = only_if(belongs, to, section, env, |node| Ok(Secret::Env(node.text()?.to_owned())))?;
    match (in_file, in_env) {
        (Some(_), Some(_)) => Err(other),
        (file, env) => Ok(file.or(env)),
    }
}

fn gateway(node: &Node) -> Result<String> {
    let name = node.text()?;
    if name.is_empty() || name.len() > 256 || name.chars().any(char::is_control) {
        return Err(node.error("a gateway's name has 1 to 256 bytes and no control characters"));
    }
    Ok(name.to_owned())
}

fn on_refused(node: &Node) -> Result<OnRefused> {
    word(node, &[("dead-letter", OnRefused::DeadLetter), ("disconnect", OnRefused::Disconnect)])
}

fn limits(section: &mut Section) -> Result<Limits> {
    let default = Limits::default();
    Ok(Limits {
        connections_max: section.read("connections_max", default.connections_max, positive)?,
        sessions_max: section.read("sessions_max", default.sessions_max, positive)?,
        session_expiry_secs_max: section.read("session_expiry_max", default.session_expiry_secs_max, |node| {
            u32::try_from(node.duration()?.as_secs()).map_err(|_| node.error("at most 136 years"))
        })?,
        connections_per_address_max: section.read(
            "connections_per_address_max",
            default.connections_per_address_max,
            positive,
        )?,
        connections_per_user_max: section.read(
            "connections_per_user_max",
            default.connections_per_user_max,
            positive,
        )?,
        connecting_max: section.read("connecting_max", default.connecting_max, positive)?,
        connect_timeout: section.read("connect_timeout", default.connect_timeout, Node::duration)?,
        keep_alive_secs_max: section.read("keep_alive_max", default.keep_alive_secs_max, |node| {
            u16::try_from(node.duration()?.as_secs()).map_err(|_| node.error("at most 65,535 seconds [MQTT-3.1.2.10]"))
        })?,
        packet_bytes_max: section.read("packet_bytes_max", default.packet_bytes_max, |node| {
            match u32::try_from(node.size()?) {
                Ok(bytes @ 128..=PACKET_BYTES_MAX) => Ok(bytes),
                _ => Err(node.error(format!("from 128 B to {}", show_size(PACKET_BYTES_MAX.into())))),
            }
        })?,
        connect_bytes_max: section.read("connect_bytes_max", default.connect_bytes_max, |node| match u32::try_from(
            node.size()?,
        ) {
            Ok(bytes @ 128..=PACKET_BYTES_MAX) => Ok(bytes),
            _ => Err(node.error(format!("from 128 B to {}", show_size(PACKET_BYTES_MAX.into())))),
        })?,
        will_bytes_max: section.read("will_bytes_max", default.will_bytes_max, |node| {
            usize::try_from(node.size()?)
                .ok()
                .filter(|bytes| *bytes <= 65_535)
                .ok_or_else(|| node.error("at most 65,535 B [MQTT-3.1.3.4]"))
        })?,
        packet_timeout: section.read("packet_timeout", default.packet_timeout, Node::duration)?,
        partial_bytes_max: section.read("partial_bytes_max", default.partial_bytes_max, |node| {
            usize::try_from(node.size()?)
                .ok()
                .filter(|bytes| *bytes >= 64 * 1024)
                .ok_or_else(|| node.error("at least 64 KiB"))
        })?,
        idle_timeout: section.read("idle_timeout", default.idle_timeout, |node| {
            Ok(Some(node.duration()?).filter(|timeout| !timeout.is_zero()))
        })?,
        publish_rate_max: section.read("publish_rate_max", default.publish_rate_max, Node::integer)?,
        logins_waiting_max: section.read("logins_waiting_max", default.logins_waiting_max, positive)?,
        login_failures_max: section.read("login_failures_max", default.login_failures_max, Node::integer)?,
        receive_maximum: section.read("receive_maximum", default.receive_maximum, |node| {
            NonZeroU16::new(node.integer()?).ok_or_else(|| node.error("at least 1"))
        })?,
        topic_alias_maximum: section.read("topic_alias_maximum", default.topic_alias_maximum, Node::integer)?,
        topic_bytes_max: section.read("topic_bytes_max", default.topic_bytes_max, |node| {
            usize::try_from(node.size()?)
                .ok()
                .filter(|bytes| (1..=65_535).contains(bytes))
                .ok_or_else(|| node.error("from 1 B to 65,535 B"))
        })?,
        topic_levels_max: section.read("topic_levels_max", default.topic_levels_max, positive)?,
        client_id_bytes_max: section.read("client_id_bytes_max", default.client_id_bytes_max, |node| {
            usize::try_from(node.size()?)
                .ok()
                .filter(|bytes| (23..=65_535).contains(bytes))
                .ok_or_else(|| node.error("from 23 B (MQTT-3.1.3-5) to 65,535 B"))
        })?,
        unstored_bytes_max: section.read("unstored_bytes_max", default.unstored_bytes_max, |node| {
            u32::try_from(node.size()?)
                .ok()
                .filter(|bytes| (64 << 10..=UNSTORED_BYTES_MAX).contains(bytes))
                .ok_or_else(|| node.error(format!("from 64 KiB to {}", show_size(UNSTORED_BYTES_MAX.into()))))
        })?,
        unstored_messages_max: section.read("unstored_messages_max", default.unstored_messages_max, positive)?,
        write_timeout: section.read("write_timeout", default.write_timeout, Node::duration)?,
        shutdown_timeout: section.read("shutdown_timeout", default.shutdown_timeout, Node::duration)?,
    })
}

/// An integer of at least 1.
fn positive<T: TryFrom<i64> + PartialOrd + From<u8>>(node: &Node) -> Result<T> {
    let value: T = node.integer()?;
    if value < T::from(1) { Err(node.error("at least 1")) } else { Ok(value) }
}

fn spool(section: &mut Section) -> Result<SpoolConfig> {
    let default = SpoolConfig::default();
    Ok(SpoolConfig {
        max_bytes: section.read("max_bytes", default.max_bytes, |node| match node.size()? {
            bytes if bytes >= 4 << 20 => Ok(bytes),
            _ => Err(node.error("at least 4 MiB")),
        })?,
        min_free_bytes: section.read("min_free_bytes", default.min_free_bytes, Node::size)?,
        on_full: section.read("on_full", default.on_full, |node| {
            word(node, &[("refuse", OnFull::Refuse), ("drop-oldest", OnFull::DropOldest)])
        })?,
        ..default
    })
}

fn batch(section: &mut Section) -> Result<Batch> {
    let default = Batch::default();
    Ok(Batch {
        rows: section.read("rows", default.rows, |node| match node.integer()? {
            rows @ 1..=10_000_000u64 => Ok(rows),
            _ => Err(node.error("from 1 to 10,000,000 rows")),
        })?,
        bytes: section.read("bytes", default.bytes, |node| match node.size()? {
            bytes if (1024..=1 << 30).contains(&bytes) => Ok(bytes),
            _ => Err(node.error("from 1 KiB to 1 GiB")),
        })?,
        age: section.read("age", default.age, Node::duration)?,
    })
}

/// Bytes of delivered slices that are kept.
fn retention(section: &mut Section) -> Result<u64> {
    section.read("keep_bytes", Config::default().keep_delivered_bytes, Node::size)
}

fn log(section: &mut Section) -> Result<Log> {
    let default = Log::default();
    Ok(Log {
        format: section.read("format", default.format, |node| {
            word(node, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
        })?,
        level: section.read("level", default.level, |node| {
            node.parsed(|text| {
                text.parse::<tracing_subscriber::filter::Targets>()
                    .map(|_| text.to_owned())
                    .map_err(|error| format!("{text:?} is not a log level: {error}"))
            })
        })?,
    })
}
