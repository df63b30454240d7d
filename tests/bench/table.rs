//! Figures as text.

use std::fmt::Write;

use crate::compare::Rounds;
use crate::load::{LoadArgs, Report};
use crate::peer::Peer;
use crate::usage::Usage;

/// One run of one server.
pub(crate) fn one_run(name: &str, load: &LoadArgs, report: &Report) -> String {
    let mut out = format!("{name}: {}\n", workload(load));
    let _ = writeln!(out, "  acknowledged      {:>10.0} msg/s", report.msgs_per_sec);
    let _ = writeln!(out, "  latency p50, p99  {:>10.2}, {:.2} ms", report.p50_ms, report.p99_ms);
    if let Some(usage) = &report.server {
        let _ = writeln!(out, "  server CPU        {:>10.2} s per million", usage.cpu_secs_per_million);
        let _ = writeln!(out, "  server RSS peak   {:>10.1} MiB", usage.rss_peak_mib);
        let _ = writeln!(out, "  server written    {:>10.2} bytes per payload byte", usage.written_per_payload_byte);
    }
    let _ = writeln!(out, "  generator CPU     {:>10.2} of a core", report.own_cpu);
    out
}

/// The comparison: a table, then the ratios in words.
pub(crate) fn comparison(load: &LoadArgs, all: &[Rounds]) -> String {
    let mosquitto = rate_of(all, |peer| matches!(peer, Peer::Mosquitto(_)));
    let rumqttd = rate_of(all, |peer| matches!(peer, Peer::Rumqttd(_)));
    let mut out =
        format!("\n{}; medians of {} rounds\n\n", workload(load), all.first().map_or(0, |first| first.many.len()));
    out.push_str(
        "| server            | PUBACK means         |   msg/s [min..max]       | × mosq | × rumq | p50 ms | p99 ms \
         | CPU s/M | load CPU | RSS MiB | B/B | w1 p50 ms | fdatasync | ratio |\n\
         |-------------------|----------------------|--------------------------|--------|--------|--------|--------\
         |---------|----------|---------|-----|-----------|-----------|-------|\n",
    );
    for rounds in all {
        row(rounds, mosquitto, rumqttd, &mut out);
    }
    out.push_str(
        "\n× mosq, × rumq: msg/s over that server's. CPU s/M: seconds per million messages. load CPU: cores used by the \
         generator.\nB/B: bytes written per payload byte. w1: one connection, one message in flight; fdatasync: a plain \
         append and\nfdatasync of the same disk just before; ratio: w1 over it.\n",
    );
    out
}

fn row(rounds: &Rounds, mosquitto: Option<f64>, rumqttd: Option<f64>, out: &mut String) {
    let rates = sorted(rounds.many.iter().map(|report| report.msgs_per_sec));
    let rate = median(rates.iter().copied());
    let many = |figure: fn(&Report) -> f64| median(rounds.many.iter().map(figure));
    let usage =
        |figure: fn(&Usage) -> f64| median(rounds.many.iter().filter_map(|report| report.server.as_ref()).map(figure));
    let single_ms = median(rounds.single.iter().map(|report| report.p50_ms));
    let fdatasync_ms = median(rounds.fdatasync_ms.iter().copied());
    let range = format!("[{:.0}..{:.0}]", rates.first().unwrap_or(&0.0), rates.last().unwrap_or(&0.0));
    let _ = writeln!(
        out,
        "| {:<17} | {:<20} | {rate:>7.0} {range:<16} | {:>6} | {:>6} | {:>6.2} | {:>6.1} | {:>7.2} | {:>8.2} | {:>7.1} | {:>3.1} | {:>9.3} \
         | {:>9.3} | {:>5.2} |",
        rounds.peer.name(),
        rounds.peer.promise(),
        ratio(rate, mosquitto),
        ratio(rate, rumqttd),
        many(|report| report.p50_ms),
        many(|report| report.p99_ms),
        usage(|usage| usage.cpu_secs_per_million),
        many(|report| report.own_cpu),
        usage(|usage| usage.rss_peak_mib),
        usage(|usage| usage.written_per_payload_byte),
        single_ms,
        fdatasync_ms,
        single_ms / fdatasync_ms,
    );
}

fn rate_of(all: &[Rounds], wanted: impl Fn(&Peer) -> bool) -> Option<f64> {
    let rounds = all.iter().find(|rounds| wanted(&rounds.peer))?;
    Some(median(rounds.many.iter().map(|report| report.msgs_per_sec)))
}

fn ratio(rate: f64, of: Option<f64>) -> String {
    of.map_or_else(|| "-".to_owned(), |of| format!("{:.2}", rate / of))
}

fn workload(load: &LoadArgs) -> String {
    let pace = if load.rate > 0 { format!(", {} msg/s", load.rate) } else { String::new() };
    format!(
        "QoS {}, {} connections × window {}, {} B, {} s{pace}",
        load.qos, load.connections, load.window, load.payload_bytes, load.duration
    )
}

/// Ascending.
pub(crate) fn sorted(figures: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures
}

/// NaN of nothing.
pub(crate) fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let figures = sorted(figures);
    match figures.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => figures[count / 2],
        count => f64::midpoint(figures[count / 2 - 1], figures[count / 2]),
    }
}
