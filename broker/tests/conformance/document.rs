//! `CONFORMANCE.md` and the tests agree: every statement of both standards has its row, every test that a row names exists
//! and says that it shows the statement, and no conformance test goes unnamed.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;

const DOCUMENT: &str = include_str!("../../CONFORMANCE.md");

/// The files of these tests. `websocket` is for both versions.
const FILES: [&str; 3] = ["v311", "v5", "websocket"];

/// The numbered statements of one section: the last parts of their numbers.
type Section = (&'static str, RangeInclusive<u8>);

/// MQTT 3.1.1, appendix B.
const V311: [Section; 39] = [
    ("1.5.3", 1..=3),
    ("2.2.2", 1..=2),
    ("2.3.1", 1..=7),
    ("3.1.0", 1..=2),
    ("3.1.2", 1..=24),
    ("3.1.3", 1..=11),
    ("3.1.4", 1..=5),
    ("3.2.0", 1..=1),
    ("3.2.2", 1..=6),
    ("3.3.1", 1..=12),
    ("3.3.2", 1..=3),
    ("3.3.4", 1..=1),
    ("3.3.5", 1..=2),
    ("3.6.1", 1..=1),
    ("3.8.1", 1..=1),
    ("3.8.3", 1..=4),
    ("3.8.4", 1..=6),
    ("3.9.3", 1..=2),
    ("3.10.1", 1..=1),
    ("3.10.3", 1..=2),
    ("3.10.4", 1..=6),
    ("3.12.4", 1..=1),
    ("3.14.1", 1..=1),
    ("3.14.4", 1..=3),
    ("4.1.0", 1..=2),
    ("4.3.1", 1..=1),
    ("4.3.2", 1..=2),
    ("4.3.3", 1..=2),
    ("4.4.0", 1..=1),
    ("4.5.0", 1..=2),
    ("4.6.0", 1..=6),
    ("4.7.1", 1..=3),
    ("4.7.2", 1..=1),
    ("4.7.3", 1..=4),
    ("4.8.0", 1..=2),
    ("6.0.0", 1..=4),
    ("7.0.0", 1..=2),
    ("7.1.1", 1..=1),
    ("7.1.2", 1..=1),
];

/// MQTT 5.0, appendix B.
const V5: [Section; 56] = [
    ("1.5.4", 1..=3),
    ("1.5.5", 1..=1),
    ("1.5.7", 1..=1),
    ("2.1.3", 1..=1),
    ("2.2.1", 2..=6),
    ("2.2.2", 1..=1),
    ("3.1.0", 1..=2),
    ("3.1.2", 1..=30),
    ("3.1.3", 1..=12),
    ("3.1.4", 1..=6),
    ("3.2.0", 1..=2),
    ("3.2.2", 1..=22),
    ("3.3.1", 1..=13),
    ("3.3.2", 1..=20),
    ("3.3.4", 1..=10),
    ("3.4.2", 1..=3),
    ("3.5.2", 1..=3),
    ("3.6.1", 1..=1),
    ("3.6.2", 1..=3),
    ("3.7.2", 1..=3),
    ("3.8.1", 1..=1),
    ("3.8.3", 1..=5),
    ("3.8.4", 1..=8),
    ("3.9.2", 1..=2),
    ("3.9.3", 1..=2),
    ("3.10.1", 1..=1),
    ("3.10.3", 1..=2),
    ("3.10.4", 1..=6),
    ("3.11.2", 1..=2),
    ("3.11.3", 1..=2),
    ("3.12.4", 1..=1),
    ("3.14.0", 1..=1),
    ("3.14.1", 1..=1),
    ("3.14.2", 1..=4),
    ("3.14.4", 1..=3),
    ("3.15.1", 1..=1),
    ("3.15.2", 1..=3),
    ("4.1.0", 1..=2),
    ("4.2.0", 1..=1),
    ("4.3.1", 1..=1),
    ("4.3.2", 1..=5),
    ("4.3.3", 1..=13),
    ("4.4.0", 1..=2),
    ("4.5.0", 1..=2),
    ("4.6.0", 1..=6),
    ("4.7.0", 1..=1),
    ("4.7.1", 1..=2),
    ("4.7.2", 1..=1),
    ("4.7.3", 1..=4),
    ("4.8.2", 1..=6),
    ("4.9.0", 1..=3),
    ("4.12.0", 1..=7),
    ("4.12.1", 1..=2),
    ("4.13.1", 1..=1),
    ("4.13.2", 1..=1),
    ("6.0.0", 1..=4),
];

#[test]
fn every_statement_of_3_1_1_has_its_row_in_order() {
    assert_eq!(numbers_of(&rows("## MQTT 3.1.1")), statements(&V311));
}

#[test]
fn every_statement_of_5_0_has_its_row_in_order() {
    assert_eq!(numbers_of(&rows("## MQTT 5.0")), statements(&V5));
}

/// Appendix B of the standards: how many there are, so that a slip in the lists above does not go unseen.
#[test]
fn the_lists_are_as_long_as_those_of_the_standards() {
    assert_eq!((statements(&V311).len(), statements(&V5).len()), (141, 251));
}

#[test]
fn every_row_names_tests_that_exist_and_show_its_statement_or_says_why_not() {
    for (heading, file) in [("## MQTT 3.1.1", "v311"), ("## MQTT 5.0", "v5")] {
        for row in rows(heading) {
            assert!(!row.demand.is_empty() && !row.answer.is_empty(), "{row:?}");
            for path in row.tests() {
                let (module, name) = path.rsplit_once("::").expect("module::test");
                let test = tests_of(module).into_iter().find(|test| test.name == name);
                let test = test.unwrap_or_else(|| panic!("{row:?}: there is no such test"));
                let is_of_other_version = ["v311", "v5"].contains(&module) && module != file;
                assert!(!is_of_other_version && test.shows(row.number), "{row:?}: {test:?} says nothing of it");
            }
        }
    }
}

#[test]
fn every_conformance_test_is_named_by_a_row() {
    let named: BTreeSet<_> = DOCUMENT.lines().filter_map(Row::of).flat_map(Row::tests).collect();
    for file in FILES {
        for test in tests_of(file) {
            let path = format!("{file}::{}", test.name);
            assert!(named.contains(&*path), "CONFORMANCE.md does not name {path}");
        }
    }
}

/// One line of a table.
#[derive(Clone, Copy, Debug)]
struct Row {
    number: &'static str,
    demand: &'static str,
    answer: &'static str,
}

impl Row {
    fn of(line: &'static str) -> Option<Self> {
        let mut cells = line.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim);
        let (number, demand, answer) = (cells.next()?, cells.next()?, cells.next()?);
        let is_statement = number.starts_with(|first: char| first.is_ascii_digit());
        assert_eq!(cells.next(), None, "{line}");
        is_statement.then_some(Self { number, demand, answer })
    }

    /// Paths in backquotes.
    fn tests(self) -> impl Iterator<Item = &'static str> {
        self.answer.split('`').skip(1).step_by(2)
    }
}

/// A test as its source tells it.
#[derive(Clone, Debug)]
struct Test {
    name: String,
    doc: String,
}

impl Test {
    /// By its name, which begins with the first statement that it shows, or by its doc.
    fn shows(&self, number: &str) -> bool {
        let in_name = format!("mqtt_{}_", number.replace(['.', '-'], "_"));
        // What runs a real client shows the transport and that nothing else is needed.
        let is_whole = self.name.starts_with("rumqttc_");
        is_whole || self.name.starts_with(&in_name) || self.doc.contains(&format!("[MQTT-{number}]"))
    }
}

/// The rows under a heading.
fn rows(heading: &str) -> Vec<Row> {
    let (_, rest) = DOCUMENT.split_once(heading).expect("the heading");
    let section = rest.split_once("\n## ").map_or(rest, |(section, _)| section);
    section.lines().filter_map(Row::of).collect()
}

fn numbers_of(rows: &[Row]) -> Vec<String> {
    rows.iter().map(|row| row.number.to_owned()).collect()
}

fn statements(sections: &[Section]) -> Vec<String> {
    let numbers = |(section, last): &Section| last.clone().map(|n| format!("{section}-{n}")).collect::<Vec<_>>();
    sections.iter().flat_map(numbers).collect()
}

/// The tests in the source of `module`: a file of these tests, another integration test, or the unit tests of a module.
fn tests_of(module: &str) -> Vec<Test> {
    let file = match module.strip_suffix("::tests") {
        Some(unit) => format!("src/{}.rs", unit.replace("::", "/")),
        None if FILES.contains(&module) => format!("tests/conformance/{module}.rs"),
        None => format!("tests/{module}.rs"),
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let source = std::fs::read_to_string(&path).expect("the source of a module that a row names");
    let (mut tests, mut doc, mut is_test) = (Vec::new(), String::new(), false);
    for line in source.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            doc.push_str(text);
        } else if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if !line.starts_with("#[") {
            if let Some(name) = function_name(line).filter(|_| is_test) {
                tests.push(Test { name: name.to_owned(), doc: doc.clone() });
            }
            (doc, is_test) = (String::new(), false);
        }
    }
    tests
}

fn function_name(line: &str) -> Option<&str> {
    line.trim_start_matches("async ").strip_prefix("fn ")?.split('(').next()
}
