//! What a backlog costs, as text.

use std::fmt::Write;

use crate::backlog::{BacklogArgs, Outcome};
use crate::watch::{Cpu, Look};

/// Rows a second that deliver a million in a minute.
const MILLION_A_MINUTE: f64 = 1e6 / 60.0;

/// The tables: rates, memory and bytes; then whose processors were used.
pub(crate) fn text(args: &BacklogArgs, outcomes: &[Outcome]) -> String {
    let mut out = heading(args);
    out.push_str(
        "| upstream    | R0 msg/s | R1 msg/s | R1/R0 |  over s | drain rows/s | under load | 1 M in s | RSS idle | fill \
         |  10 % |  90 % | drain | both | B/row | ndjson.gz | of it |\n\
         |-------------|----------|----------|-------|---------|--------------|------------|----------|----------|------\
         |-------|-------|-------|------|-------|-----------|-------|\n",
    );
    for outcome in outcomes {
        rates(args, outcome, &mut out);
    }
    out.push_str(
        "\nR0: acknowledged while nothing is delivered; R1: while a backlog is; over s: how long that was, `!` when the backlog \
         was gone\nbefore the time was over. drain: delivered while nobody publishes; under load: during R1. RSS: MiB of the \
         agent. B/row: on the\nwire, or written to the directory; ndjson.gz: the same rows as gzipped lines; of it: B/row over \
         it.\n\n",
    );
    out.push_str(
        "| upstream    | phase            | agent | deliver | seal | commit | server | load | proxy etc. | all  | agent s/M \
         | server s/M |\n\
         |-------------|------------------|-------|---------|------|--------|--------|------|------------|------|-----------\
         |------------|\n",
    );
    for outcome in outcomes {
        cores(outcome, "publish", &outcome.live, &mut out);
        cores(outcome, "publish, deliver", &outcome.both, &mut out);
        cores(outcome, "deliver", &outcome.drain, &mut out);
    }
    out.push_str(
        "\nCores used. deliver, seal, commit: threads of the agent; what push ingest leaves to a thread for files is only in \
         agent. s/M: seconds\nper million rows delivered, of everything that the process did meanwhile.\n",
    );
    out
}

fn heading(args: &BacklogArgs) -> String {
    let limit = args.rate_limit.as_ref().map(|limit| format!(", at most {limit}/s")).unwrap_or_default();
    format!(
        "\n{} rows, {} connections × window {}, {} B{limit}\n\n",
        args.rows, args.connections, args.window, args.payload_bytes
    )
}

fn rates(args: &BacklogArgs, outcome: &Outcome, out: &mut String) {
    let acknowledged = |stretch: &[Look; 2]| per_sec(stretch, |look| look.acknowledged);
    let (live, both) = (acknowledged(&outcome.live), acknowledged(&outcome.both));
    let drain = per_sec(&outcome.drain, |look| look.delivered);
    let over = secs(&outcome.both);
    let mark = if over < args.live_secs * 0.95 { "!" } else { " " };
    let slow = if drain < MILLION_A_MINUTE && args.rate_limit.is_none() { "!" } else { " " };
    let (memory, bytes) = (&outcome.memory, &outcome.bytes);
    let _ = writeln!(
        out,
        "| {:<11} | {live:>8.0} | {both:>8.0} | {:>5.2} | {over:>6.1}{mark} | {drain:>11.0}{slow} | {:>10.0} | {:>8.1} \
         | {:>8.1} | {:>4.0} | {:>5.1} | {:>5.1} | {:>5.1} | {:>4.0} | {:>5.1} | {:>9.1} | {:>5.2} |",
        outcome.kind.name(),
        both / live,
        per_sec(&outcome.both, |look| look.delivered),
        1e6 / drain,
        memory.idle,
        memory.fill_max,
        memory.at_10,
        memory.at_90,
        memory.drain_max,
        memory.both_max,
        bytes.wire,
        bytes.ndjson_gzip,
        bytes.wire / bytes.ndjson_gzip,
    );
}

fn cores(outcome: &Outcome, phase: &str, stretch: &[Look; 2], out: &mut String) {
    let [from, to] = stretch;
    let cpu = Cpu::cores(from, to);
    let millions = (to.delivered - from.delivered) as f64 / 1e6;
    let per_million = |secs: f64| if millions > 0.0 { format!("{:.2}", secs / millions) } else { "-".to_owned() };
    let _ = writeln!(
        out,
        "| {:<11} | {phase:<16} | {:>5.2} | {:>7.2} | {:>4.2} | {:>6.2} | {:>6.2} | {:>4.2} | {:>10.2} | {:>4.2} | {:>9} \
         | {:>10} |",
        outcome.kind.name(),
        cpu.agent,
        cpu.upstream,
        cpu.sealer,
        cpu.writer,
        cpu.server,
        cpu.generator,
        cpu.rest,
        cpu.agent + cpu.server + cpu.generator + cpu.rest,
        per_million(to.cpu.agent - from.cpu.agent),
        per_million(to.cpu.server - from.cpu.server),
    );
}

fn per_sec(stretch: &[Look; 2], count: impl Fn(&Look) -> u64) -> f64 {
    let [from, to] = stretch;
    (count(to) - count(from)) as f64 / secs(stretch)
}

fn secs([from, to]: &[Look; 2]) -> f64 {
    (to.at - from.at).as_secs_f64()
}
