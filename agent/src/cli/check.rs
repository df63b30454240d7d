//! `forebay check`: reads a configuration as `run` would, and says what it does with each topic.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use forebay_broker::packet::QoS;
use forebay_broker::topic::TopicPattern;
use forebay_storage::dataset::spec::{DatasetSpec, Format, Merge};

use super::EXIT_BAD_CONFIGURATION;
use super::output::{self, Cell, Table, Tone, tinted};
use crate::access::{self, FileError};
use crate::config::{
    Auth, Config, Dataset, Listener, Loaded, Password, Source, Subscription, Upstream, UpstreamKind, units,
};
use crate::route::{Route, Router, overlaps, wider};

/// What `check` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Topic names: which dataset would take each, and what its captures would be
    #[arg(value_name = "TOPIC")]
    topics: Vec<String>,
}

/// Runs the command.
pub(super) fn run(args: &Args, loaded: &Loaded) -> Result<ExitCode> {
    let problems = problems(&loaded.config);
    output::print(&report(args, loaded, &problems, output::colour()))?;
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_BAD_CONFIGURATION) })
}

/// Files of listeners that cannot be used: `run` would not start, or no client would trust it.
fn problems(config: &Config) -> Vec<FileError> {
    let mut problems: Vec<FileError> = access::read_access(&config.auth).err().into_iter().collect();
    let tls = config.listeners.iter().filter_map(|listener| listener.tls.as_ref());
    problems.extend(tls.filter_map(|files| match access::server_tls(files) {
        Ok(tls) => access::expiry(files, &tls),
        Err(problem) => Some(problem),
    }));
    problems
}

fn report(args: &Args, loaded: &Loaded, problems: &[FileError], colour: bool) -> String {
    let config = &loaded.config;
    let router = Router::new(&config.datasets);
    let from = match &loaded.file {
        Some(file) => file.display().to_string(),
        None => "built-in defaults (no file)".to_owned(),
    };
    let mut out = format!("configuration  {from}\n");
    overview(config, &mut out);
    out += "\n";
    out += &datasets(&config.datasets).render(colour);
    for dataset in &config.datasets {
        for note in &dataset.notes {
            let _ = writeln!(out, "note: dataset {}: {note}", dataset.spec.name);
        }
    }
    for warning in warnings(config) {
        let _ = writeln!(out, "{}", tinted(&format!("warning: {warning}"), Tone::Warning, colour));
    }
    for shadowed in router.shadowed() {
        let text = format!(
            "warning: `{}` of dataset {} never takes a message: `{}` of dataset {} stands before it and takes all of \
             its topics",
            shadowed.pattern,
            config.datasets[shadowed.dataset].spec.name,
            shadowed.by_pattern,
            config.datasets[shadowed.by_dataset].spec.name,
        );
        let _ = writeln!(out, "{}", tinted(&text, Tone::Warning, colour));
    }
    if !args.topics.is_empty() {
        out += "\n";
        out += &topics(&args.topics, &router, config).render(colour);
    }
    for problem in problems {
        let _ = writeln!(out, "{}", tinted(&format!("problem: {problem}"), Tone::Bad, colour));
    }
    let (verdict, tone) = match problems {
        [] => ("configuration: ok", Tone::Good),
        _ => ("configuration: cannot be used as it is", Tone::Bad),
    };
    let _ = writeln!(out, "\n{}", tinted(verdict, tone, colour));
    out
}

fn overview(config: &Config, out: &mut String) {
    let _ = writeln!(out, "gateway        {}", config.gateway);
    let _ = writeln!(out, "data_dir       {}", config.data_dir.display());
    for listener in &config.listeners {
        let _ = writeln!(out, "listener       {} ({})", listener.bind, how(listener, &config.auth));
    }
    let _ = writeln!(
        out,
        "batch          {} rows, {} or {}",
        config.batch.rows,
        units::show_size(config.batch.bytes),
        units::show_duration(config.batch.age),
    );
    for source in &config.sources {
        let version = crate::source::packet::name(source.version);
        let _ =
            writeln!(out, "source         {} {} (MQTT {version}, as {:?})", source.name, source.url, source.client_id);
        for topic in &source.topics {
            let _ = writeln!(out, "               {} {}", topic.filter, promise(topic.qos));
        }
    }
    for upstream in &config.upstreams {
        let _ = writeln!(out, "upstream       {} ({})", upstream.url, what_is_done(upstream));
    }
    if config.upstreams.is_empty() {
        let _ = writeln!(out, "upstream       none: the datasets in data_dir are the end");
    }
}

/// What is spoken at a listener, and who comes in.
fn how(listener: &Listener, auth: &Auth) -> String {
    let mut how = "MQTT 3.1.1 and 5.0".to_owned();
    if listener.websocket {
        how += " over WebSocket";
    }
    if let Some(tls) = &listener.tls {
        how += ", TLS";
        match &tls.clients {
            Some(clients) if clients.required => how += " with client certificates",
            Some(_) => how += " with client certificates for those that have one",
            None => {}
        }
    }
    let is_open = listener.allow_anonymous.unwrap_or(!auth.refuses_anonymous());
    match (&auth.password_file, is_open) {
        (Some(_), true) => how += ", with a password or without",
        (Some(_), false) => how += ", with a password",
        (None, true) if !listener.requires_certificates() => how += ", open to everybody",
        (None, _) => {}
    }
    how
}

/// What a subscription can promise. The rest is up to the broker, which must keep the session.
fn promise(qos: QoS) -> &'static str {
    match qos {
        QoS::AtMostOnce => "QoS 0: at most once; nothing is kept for us while we are away but retained values",
        QoS::AtLeastOnce => "QoS 1: at least once, as long as the broker keeps our session and has room in its queue",
        QoS::ExactlyOnce => {
            "QoS 2: exactly once, as long as the broker keeps our session, has room in its queue, and sends again under the same \
             Packet Identifier [MQTT-4.4.0-1]; rumqttd 0.20 does not: at least once, so give its dataset a Ledger"
        }
    }
}

/// What the sync job does with an upstream.
fn what_is_done(upstream: &Upstream) -> String {
    let mut what = match &upstream.kind {
        UpstreamKind::Directory(_) => "mirrors the repositories".to_owned(),
        UpstreamKind::Bucket(bucket) => format!("mirrors the repositories into bucket {}", bucket.name),
        UpstreamKind::Smart(_) => "smart push: the gateway owns its datasets there".to_owned(),
        UpstreamKind::Ingest(_) => "push ingest: rows into datasets of the node, see `forebay provision`".to_owned(),
    };
    if let Some(datasets) = &upstream.datasets {
        let names: Vec<&str> = datasets.iter().map(String::as_str).collect();
        what = format!("{what}; only {}", names.join(", "));
    }
    what
}

/// What may be meant, and would fail when it is too late to look.
fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    for listener in &config.listeners {
        if config.auth.password_file.is_some() && listener.tls.is_none() && !listener.bind.is_local() {
            warnings.push(format!("{}: passwords cross the network in the clear: give it `tls`", listener.bind));
        }
    }
    for source in &config.sources {
        source_warnings(source, config, &mut warnings);
    }
    for upstream in &config.upstreams {
        let bucket_secret = match &upstream.kind {
            UpstreamKind::Bucket(bucket) => bucket.secret_access_key.as_ref(),
            _ => None,
        };
        let secrets = upstream.token.iter().chain(bucket_secret);
        warnings.extend(secrets.filter_map(|secret| Some(format!("{}: {}", upstream.url, secret.read().err()?))));
        if let Some(Err(error)) = upstream.ca_file.as_ref().map(std::fs::read) {
            warnings.push(format!("{}: ca_file cannot be read: {error}", upstream.url));
        }
        let is_node = upstream.kind.node().is_some();
        if is_node && upstream.token.is_none() {
            warnings.push(format!("{}: has no token: nodes refuse writes without one", upstream.url));
        }
    }
    let posts = config.upstreams.iter().any(|upstream| matches!(upstream.kind, UpstreamKind::Ingest(_)));
    if posts && config.gateway == Config::default().gateway {
        warnings.push(format!(
            "gateway is the host name, {}: a node knows rows by (gateway, seq), so two gateways that post into one dataset \
             must not share it: set `gateway`",
            config.gateway
        ));
    }
    warnings
}

fn source_warnings(source: &Source, config: &Config, warnings: &mut Vec<String>) {
    let mut warn = |problem: String| warnings.push(format!("source {}: {problem}", source.name));
    if let Some(Err(problem)) = source.login.as_ref().and_then(|login| login.password.as_ref()).map(Password::read) {
        warn(problem);
    }
    if source.url.tls
        && let Err(problem) = crate::source::tls::client_config(source)
    {
        warn(problem);
    }
    if source.login.is_some() && !source.url.tls && !is_loopback(&source.url.host) {
        warn("the password crosses the network in the clear: use mqtts:// or wss://".to_owned());
    }
    if source.client_id.contains(&Config::default().gateway) && config.gateway == Config::default().gateway {
        warn(format!(
            "client_id {:?} is made of the host name: when that changes the broker keeps another session, and the messages of \
             this one are lost; set `gateway` or `client_id`",
            source.client_id
        ));
    }
    let filters: Vec<&str> = source.topics.iter().map(|topic| topic.filter.as_str()).collect();
    for (position, topic) in source.topics.iter().enumerate() {
        if let Some(wide) = wider(&filters, position) {
            warn(format!(
                "{} lies within {}: a broker may send its messages twice [MQTT-3.3.5-1]",
                topic.filter, filters[wide]
            ));
        }
        let brings = topic.pattern();
        let is_taken = config.datasets.iter().filter(|dataset| dataset.takes_from(&source.name)).any(|dataset| {
            let shares =
                |pattern: &TopicPattern| brings.iter().any(|brings| overlaps(brings.as_str(), pattern.as_str()));
            dataset.topics.iter().any(shares)
        });
        if !is_taken {
            warn(format!("no dataset takes the topics of {}: its messages become dead letters", topic.filter));
        }
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn datasets(datasets: &[Dataset]) -> Table {
    let mut table = Table::new(["topics", "dataset", "format", "event time", "merge", "columns"]);
    for dataset in datasets {
        let spec = &dataset.spec;
        for (position, pattern) in dataset.topics.iter().enumerate() {
            if position > 0 {
                table.row([
                    pattern.to_string().into(),
                    spec.name.as_str().into(),
                    "".into(),
                    "".into(),
                    "".into(),
                    "".into(),
                ]);
                continue;
            }
            let fields = spec.fields.iter().map(|field| field.name.as_str());
            let columns: Vec<&str> = spec.captures.iter().map(String::as_str).chain(fields).collect();
            table.row([
                pattern.to_string().into(),
                Cell::from(spec.name.as_str()).tone(Tone::Strong),
                format_name(&spec.format).into(),
                spec.event_time.as_deref().unwrap_or("receipt").into(),
                merge_name(&spec.merge).into(),
                columns.join(", ").into(),
            ]);
        }
    }
    table
}

fn topics(topics: &[String], router: &Router, config: &Config) -> Table {
    let mut table = Table::new(["topic", "from", "dataset", "captures"]);
    for topic in topics {
        let brings =
            |source: &&Source| source.topics.iter().filter_map(Subscription::pattern).any(|p| p.matches(topic));
        let sources = config.sources.iter().filter(brings).map(|source| Some(source.name.as_str()));
        let devices = (!config.listeners.is_empty()).then_some(None);
        for from in devices.into_iter().chain(sources) {
            let mut row = [topic.as_str().into(), from.unwrap_or("devices").into(), Cell::from("none"), "".into()];
            match router.route(topic, from) {
                None => row[2] = Cell::from("none").tone(Tone::Warning),
                Some(route) => {
                    let spec = &config.datasets[route.dataset].spec;
                    row[2] = spec.name.as_str().into();
                    row[3] = captures(spec, topic, &route).into();
                }
            }
            table.row(row);
        }
    }
    table
}

fn captures(spec: &DatasetSpec, topic: &str, route: &Route) -> String {
    let captures = spec.captures.iter().zip(&route.captures).map(|(name, range)| {
        let value = topic.get(usize::from(range.start)..usize::from(range.end));
        format!("{name} = {}", value.unwrap_or_default())
    });
    captures.collect::<Vec<_>>().join(", ")
}

fn format_name(format: &Format) -> &'static str {
    match format {
        Format::Json => "json",
        Format::Csv { .. } => "csv",
        Format::Text => "text",
        Format::Bytes => "bytes",
    }
}

fn merge_name(merge: &Merge) -> String {
    match merge {
        Merge::Append => "Append".to_owned(),
        Merge::Ledger { primary_key } => format!("Ledger by {}", primary_key.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    #[test]
    fn check_says_what_is_done_with_each_upstream_and_warns_of_what_would_fail_later() {
        let text = "
            [[upstream]]
            url = \"https://node.example.com/acme\"
            token_file = \"/nowhere/token\"
            [[upstream]]
            url = \"odf+https://other.example.com/acme\"
            datasets = [\"messages\"]
        ";
        let config = Config::parse(text, Path::new("forebay.toml")).unwrap();

        let report = report(&Args { topics: Vec::new() }, &Loaded::new(config, None), &[], false);

        assert!(
            report.contains("https://node.example.com/acme (push ingest: rows into datasets of the node"),
            "{report}"
        );
        assert!(report.contains("smart push: the gateway owns its datasets there; only messages"), "{report}");
        assert!(report.contains("warning: https://node.example.com/acme: cannot read /nowhere/token"), "{report}");
        assert!(report.contains("other.example.com/acme: has no token"), "{report}");
        assert!(report.contains("warning: gateway is the host name"), "{report}");
    }

    #[test]
    fn check_says_what_a_source_can_promise_and_warns_of_what_would_surprise() {
        let text = "
            gateway = \"gw\"
            [[source]]
            name = \"plant\"
            url = \"mqtt://broker.plant.local\"
            username = \"gw\"
            password_file = \"/nowhere/password\"
            topics = [\"site/#\", { path = \"site/+/temp\", qos = \"ExactlyOnce\" }, \"other\"]
            [[dataset]]
            name = \"temperature\"
            topics = [\"site/{site}/temp\"]
            format = \"text\"
        ";
        let config = Config::parse(text, Path::new("forebay.toml")).unwrap();

        let report = report(&Args { topics: Vec::new() }, &Loaded::new(config, None), &[], false);

        for words in [
            "source         plant mqtt://broker.plant.local:1883 (MQTT 3.1.1, as \"forebay-gw-plant\")",
            "site/+/temp QoS 2: exactly once, as long as the broker keeps our session",
            "warning: source plant: cannot read /nowhere/password",
            "warning: source plant: the password crosses the network in the clear",
            "warning: source plant: site/+/temp lies within site/#",
            "warning: source plant: no dataset takes the topics of other",
        ] {
            assert!(report.contains(words), "{words}: {report}");
        }
        assert_eq!(report.matches("warning").count(), 4, "{report}");
    }

    #[test]
    fn check_shows_what_each_topic_maps_to_and_warns_of_what_never_matches() {
        let text = "
            [[dataset]]
            name = \"temperature\"
            topics = [\"site/{site}/temp\"]
            [dataset.schema]
            temp = \"Float32\"
            [[dataset]]
            name = \"late\"
            topics = [\"site/berlin/temp\"]
            format = \"text\"
        ";
        let config = Config::parse(text, Path::new("forebay.toml")).unwrap();
        let loaded = Loaded::new(config, Some(PathBuf::from("forebay.toml")));
        let args = Args { topics: vec!["site/oslo/temp".to_owned(), "other".to_owned()] };

        let report = report(&args, &loaded, &[], false);

        assert!(report.contains("site/oslo/temp  devices  temperature  site = oslo"), "{report}");
        assert!(report.contains("other           devices  none"), "{report}");
        assert!(report.contains("warning: `site/berlin/temp` of dataset late never"), "{report}");
        assert!(report.ends_with("configuration: ok\n"), "{report}");
    }
}
