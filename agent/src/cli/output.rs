//! What commands print: aligned tables and plain words, coloured on a terminal only.

use std::io::{self, IsTerminal as _, Write as _};

/// `--output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Text,
    /// For programs; its fields are kept from version to version.
    Json,
}

/// How a word is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// A heading.
    Strong,
    /// All is well.
    Good,
    /// Worth a look.
    Warning,
    /// Something is wrong.
    Bad,
}

impl Tone {
    fn escape(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Strong => "\x1b[1m",
            Self::Good => "\x1b[32m",
            Self::Warning => "\x1b[33m",
            Self::Bad => "\x1b[31m",
        }
    }
}

/// `text` in a tone, if colour is wanted.
pub fn tinted(text: &str, tone: Tone, colour: bool) -> String {
    match tone.escape() {
        escape if colour && !escape.is_empty() => format!("{escape}{text}\x1b[0m"),
        _ => text.to_owned(),
    }
}

/// Whether standard output takes colour: a terminal, and nobody asked for none (<https://no-color.org>).
pub fn colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Writes to standard output. A reader that has gone (`| head`) is no failure.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// One cell of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
    right: bool,
}

impl Cell {
    /// The same cell in a tone.
    #[must_use]
    pub fn tone(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self { text: text.to_owned(), ..Self::default() }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, ..Self::default() }
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Self { text: grouped(number), right: true, ..Self::default() }
    }
}

/// Rows under a heading, as wide as they need to be.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table of these columns.
    pub fn new<const N: usize>(columns: [&str; N]) -> Self {
        let heading = columns.map(|name| Cell::from(name).tone(Tone::Strong));
        Self { rows: vec![heading.into()] }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    /// Whether there is nothing under the heading.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// The table as text, a line a row.
    pub fn render(&self, colour: bool) -> String {
        let columns = self.rows[0].len();
        let widths: Vec<usize> = (0..columns)
            .map(|column| self.rows.iter().map(|row| width(&row[column].text)).max().unwrap_or(0))
            .collect();
        let is_number: Vec<bool> =
            (0..columns).map(|column| self.rows.iter().skip(1).any(|row| row[column].right)).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let padding = " ".repeat(widths[column] - width(&cell.text));
                let text = tinted(&cell.text, cell.tone, colour);
                let gap = if column == 0 { "" } else { "  " };
                line +=
                    &if is_number[column] { format!("{gap}{padding}{text}") } else { format!("{gap}{text}{padding}") };
            }
            out += line.trim_end();
            out.push('\n');
        }
        out
    }
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes with one decimal: `1.5 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1_024 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let mut value = bytes as f64 / 1_024.0;
    let mut unit = 0;
    while value >= 1_023.95 && unit + 1 < UNITS.len() {
        value /= 1_024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Seconds in at most two units: `3d 4h`, `5m 12s`, `8s`.
pub fn span(secs: u64) -> String {
    let parts = [(secs / 86_400, "d"), (secs / 3_600 % 24, "h"), (secs / 60 % 60, "m"), (secs % 60, "s")];
    let from = parts.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    let shown: Vec<String> = parts[from..]
        .iter()
        .take(2)
        .enumerate()
        .filter(|(position, (count, _))| *position == 0 || *count > 0)
        .map(|(_, (count, unit))| format!("{count}{unit}"))
        .collect();
    shown.join(" ")
}

fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_numbers_stand_to_the_right() {
        let mut table = Table::new(["dataset", "rows"]);
        table.row(["temperature".into(), 1_234_567.into()]);
        table.row(["hum".into(), 5.into()]);

        let text = table.render(false);

        assert_eq!(text, "dataset           rows\ntemperature  1,234,567\nhum                  5\n");
    }

    #[test]
    fn colour_does_not_move_columns() {
        let mut table = Table::new(["a", "b"]);
        table.row([Cell::from("x").tone(Tone::Good), "y".into()]);

        assert_eq!(table.render(true), "\x1b[1ma\x1b[0m  \x1b[1mb\x1b[0m\n\x1b[32mx\x1b[0m  y\n");
    }

    #[test]
    fn figures_are_readable() {
        assert_eq!([0, 999, 1_000, 1_000_000].map(grouped), ["0", "999", "1,000", "1,000,000"]);
        assert_eq!([0, 1_023, 1_536, 1 << 30].map(bytes), ["0 B", "1023 B", "1.5 KiB", "1.0 GiB"]);
        assert_eq!([0, 61, 3_600, 90_061].map(span), ["0s", "1m 1s", "1h", "1d 1h"]);
    }
}
