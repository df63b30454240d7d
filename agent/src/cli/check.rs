//! `forebay check`: reads a configuration as `run` would, and says what it does with each topic.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use forebay_storage::dataset::spec::{Format, Merge};

use super::output::{self, Cell, Table, Tone, tinted};
use crate::config::{Config, Dataset, Loaded, Upstream, UpstreamKind, units};
use crate::route::Router;

/// What `check` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Topic names: which dataset would take each, and what its captures would be
    #[arg(value_name = "TOPIC")]
    topics: Vec<String>,
}

/// Runs the command.
pub(super) fn run(args: &Args, loaded: &Loaded) -> Result<ExitCode> {
    output::print(&report(args, loaded, output::colour()))?;
    Ok(ExitCode::SUCCESS)
}

fn report(args: &Args, loaded: &Loaded, colour: bool) -> String {
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
        out += &topics(&args.topics, &router, &config.datasets).render(colour);
    }
    let _ = writeln!(out, "\n{}", tinted("configuration: ok", Tone::Good, colour));
    out
}

fn overview(config: &Config, out: &mut String) {
    let _ = writeln!(out, "gateway        {}", config.gateway);
    let _ = writeln!(out, "data_dir       {}", config.data_dir.display());
    for listener in &config.listeners {
        let _ = writeln!(out, "listener       {} (MQTT 3.1.1 and 5.0)", listener.bind);
    }
    let _ = writeln!(
        out,
        "batch          {} rows, {} or {}",
        config.batch.rows,
        units::show_size(config.batch.bytes),
        units::show_duration(config.batch.age),
    );
    for upstream in &config.upstreams {
        let _ = writeln!(out, "upstream       {} ({})", upstream.url, what_is_done(upstream));
    }
    if config.upstreams.is_empty() {
        let _ = writeln!(out, "upstream       none: the datasets in data_dir are the end");
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

fn topics(topics: &[String], router: &Router, datasets: &[Dataset]) -> Table {
    let mut table = Table::new(["topic", "dataset", "captures"]);
    for topic in topics {
        let Some(route) = router.route(topic) else {
            table.row([topic.as_str().into(), Cell::from("none").tone(Tone::Warning), "".into()]);
            continue;
        };
        let spec = &datasets[route.dataset].spec;
        let captures: Vec<String> = spec
            .captures
            .iter()
            .zip(&route.captures)
            .map(|(name, range)| {
                let value = topic.get(usize::from(range.start)..usize::from(range.end));
                format!("{name} = {}", value.unwrap_or_default())
            })
            .collect();
        table.row([topic.as_str().into(), spec.name.as_str().into(), captures.join(", ").into()]);
    }
    table
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

        let report = report(&Args { topics: Vec::new() }, &Loaded { config, file: None }, false);

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
        let loaded = Loaded { config, file: Some(PathBuf::from("forebay.toml")) };
        let args = Args { topics: vec!["site/oslo/temp".to_owned(), "other".to_owned()] };

        let report = report(&args, &loaded, false);

        assert!(report.contains("site/oslo/temp  temperature  site = oslo"), "{report}");
        assert!(report.contains("other           none"), "{report}");
        assert!(report.contains("warning: `site/berlin/temp` of dataset late never"), "{report}");
        assert!(report.ends_with("configuration: ok\n"), "{report}");
    }
}
