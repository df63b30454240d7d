//! `forebay check`: reads a configuration as `run` would, and says what it does with each topic.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use forebay_storage::dataset::spec::{Format, Merge};

use super::output::{self, Cell, Table, Tone, tinted};
use crate::config::{Config, Dataset, Loaded, units};
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
        let _ = writeln!(out, "upstream       {}", upstream.url);
    }
    if config.upstreams.is_empty() {
        let _ = writeln!(out, "upstream       none: the datasets in data_dir are the end");
    }
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
