//! What a backlog costs, as text.

use std::fmt::Write;

use crate::backlog::{BacklogArgs, Outcome, Round};
use crate::table::{median, sorted};
use crate::watch::{Cpu, Look};

/// The tables: rates, memory and bytes; then whose processors were used.
pub(crate) fn text(args: &BacklogArgs, outcomes: &[Outcome]) -> String {
    let mut out = format!(
        "\n{} rows, {} connections × window {}, {} B; medians of {} rounds; slow: {:.1} MiB/s\n\n\
         | upstream    | R0 msg/s | R1 slow [min..max] | R1 fast [min..max] | over s | drain rows/s | 1 M in s | RSS idle \
         | fill |  10 % |  90 % | drain | load | B/row | ndjson.gz | of it | of raw |\n\
         |-------------|----------|--------------------|--------------------|--------|--------------|----------|----------\
         |------|-------|-------|-------|------|-------|-----------|-------|--------|\n",
        args.rows,
        args.connections,
        args.window,
        args.payload_bytes,
        args.rounds,
        args.slow_link as f64 / f64::from(1 << 20),
    );
    for outcome in outcomes {
        rates(args, outcome, &mut out);
    }
    out.push_str(
        "\nR0: acknowledged while nothing is delivered; R1: over R0, while a backlog is, and how many seconds a fast link took. \
         drain:\ndelivered while nobody publishes. RSS: MiB of the agent; load: while delivering under load. B/row: on the \
         wire, or written to the\ndirectory; ndjson.gz: the same rows as gzipped lines; of it, of raw: B/row over that, and \
         over the bytes of a message.\n\n\
         | upstream    | phase         | agent | deliver | seal | commit | server | load | proxy etc. | strangers | agent s/M \
         | server s/M |\n\
         |-------------|---------------|-------|---------|------|--------|--------|------|------------|-----------|-----------\
         |------------|\n",
    );
    for outcome in outcomes {
        let rounds = &outcome.rounds;
        cores(outcome, "publish", rounds.iter().map(|round| &round.live), &mut out);
        cores(outcome, "deliver, slow", rounds.iter().filter_map(|round| round.slow.as_ref()), &mut out);
        cores(outcome, "deliver, fast", rounds.iter().map(|round| &round.fast), &mut out);
        cores(outcome, "deliver alone", std::iter::once(&outcome.drain), &mut out);
    }
    out.push_str(
        "\nCores used. deliver, seal, commit: threads of the agent; what push ingest leaves to a thread for files is only in \
         agent. s/M: seconds\nper million rows delivered, of everything that the process did meanwhile.\n",
    );
    out
}

fn rates(args: &BacklogArgs, outcome: &Outcome, out: &mut String) {
    let live = |round: &Round| per_sec(&round.live, |look| look.acknowledged);
    let ratios = |of: &dyn Fn(&Round) -> Option<[Look; 2]>| {
        let ratio = |round| Some(per_sec(&of(round)?, |look| look.acknowledged) / live(round));
        let ratios = sorted(outcome.rounds.iter().filter_map(ratio));
        match (ratios.first(), ratios.last()) {
            (Some(min), Some(max)) => format!("{:.2} [{min:.2}..{max:.2}]", median(ratios.iter().copied())),
            _ => "-".to_owned(),
        }
    };
    let drain = per_sec(&outcome.drain, |look| look.delivered);
    let (memory, bytes) = (&outcome.memory, &outcome.bytes);
    let _ = writeln!(
        out,
        "| {:<11} | {:>8.0} | {:>18} | {:>18} | {:>6.1} | {drain:>12.0} | {:>8.1} | {:>8.1} | {:>4.0} | {:>5.1} | {:>5.1} \
         | {:>5.1} | {:>4.0} | {:>5.1} | {:>9.1} | {:>5.2} | {:>6.2} |",
        outcome.kind.name(),
        median(outcome.rounds.iter().map(live)),
        ratios(&|round| round.slow),
        ratios(&|round| Some(round.fast)),
        median(outcome.rounds.iter().map(|round| secs(&round.fast))),
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
        bytes.wire / f64::from(args.payload_bytes),
    );
}

fn cores<'a>(outcome: &Outcome, phase: &str, stretches: impl Iterator<Item = &'a [Look; 2]> + Clone, out: &mut String) {
    if stretches.clone().next().is_none() {
        return;
    }
    let cpu = Cpu::cores(&stretches);
    let rows: u64 = stretches.clone().map(|[from, to]| to.delivered - from.delivered).sum();
    let secs: f64 = stretches.map(secs).sum();
    let per_million =
        |cores: f64| if rows > 0 { format!("{:.2}", cores * secs * 1e6 / rows as f64) } else { "-".to_owned() };
    let _ = writeln!(
        out,
        "| {:<11} | {phase:<13} | {:>5.2} | {:>7.2} | {:>4.2} | {:>6.2} | {:>6.2} | {:>4.2} | {:>10.2} | {:>9.2} | {:>9} \
         | {:>10} |",
        outcome.kind.name(),
        cpu.agent,
        cpu.upstream,
        cpu.sealer,
        cpu.writer,
        cpu.server,
        cpu.generator,
        cpu.rest,
        cpu.strangers(),
        per_million(cpu.agent),
        per_million(cpu.server),
    );
}

fn per_sec(stretch: &[Look; 2], count: impl Fn(&Look) -> u64) -> f64 {
    let [from, to] = stretch;
    (count(to) - count(from)) as f64 / secs(stretch)
}

fn secs([from, to]: &[Look; 2]) -> f64 {
    (to.at - from.at).as_secs_f64()
}
