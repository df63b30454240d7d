//! A YAML text as the tree that `document` makes of TOML: every value knows its key and where it was written.
//!
//! What YAML leaves to taste is read as YAML 1.2 has it: only `true` and `false` are booleans, `0755` and `1_000` are text.
//! A key with nothing after it is as good as absent.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Error, Location, MessageFormatter as _, Options, Spanned, UserMessageFormatter};

use super::document::{ConfigError, Node, Origin, Value, join};

/// The tree of a YAML text of one document; `file` names it in errors.
pub(super) fn parse(text: &str, file: &Path) -> Result<Node, ConfigError> {
    let source = Source { file: Arc::from(file) };
    let tree: Spanned<Tree> = serde_saphyr::from_str_with_options(text, options()).map_err(|error| ConfigError {
        origin: source.origin(error.location().unwrap_or(Location::UNKNOWN)),
        key: String::new(),
        problem: problem(&error),
    })?;
    let origin = source.origin(tree.referenced);
    Ok(source.node(String::new(), origin, tree.value))
}

/// Anchors and aliases are read, but what they unfold to is bounded, in values and in depth: a page of aliases that name
/// each other could stand for gigabytes or end the stack. A manifest has ten levels.
fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: 24 },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 10_000 },
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        reject_unsupported_tags: true,
        with_snippet: false, // a line beside the error may hold a password
    }
}

fn problem(error: &Error) -> String {
    match error.without_snippet() {
        Error::MultipleDocuments { .. } => "holds more than one document: one dataset a file".to_owned(),
        error => format!("not YAML: {}", UserMessageFormatter.format_message(error).replace(char::is_control, " ")),
    }
}

/// A YAML value as the parser tells it.
enum Tree {
    Nothing,
    Boolean(bool),
    Integer(i64),
    Float,
    Text(String),
    List(Vec<Spanned<Tree>>),
    Table(Vec<(Spanned<String>, Spanned<Tree>)>),
}

struct Source {
    file: Arc<Path>,
}

impl Source {
    fn origin(&self, location: Location) -> Origin {
        let from_one = |count: u64| usize::try_from(count).unwrap_or(usize::MAX).max(1);
        Origin::File {
            file: Arc::clone(&self.file),
            line: from_one(location.line()),
            column: from_one(location.column()),
        }
    }

    fn node(&self, key: String, origin: Origin, tree: Tree) -> Node {
        let value = match tree {
            Tree::Nothing => Value::Nothing,
            Tree::Boolean(value) => Value::Boolean(value),
            Tree::Integer(value) => Value::Integer(value),
            Tree::Float => Value::Float,
            Tree::Text(text) => Value::Text(text),
            Tree::List(elements) => Value::List(
                (0..)
                    .zip(elements)
                    .map(|(index, element): (usize, _)| {
                        self.node(format!("{key}[{index}]"), self.origin(element.referenced), element.value)
                    })
                    .collect(),
            ),
            Tree::Table(entries) => Value::Table(
                entries
                    .into_iter()
                    .map(|(name, value)| {
                        let node = self.node(join(&key, &name.value), self.origin(name.referenced), value.value);
                        (name.value, node)
                    })
                    .collect(),
            ),
        };
        Node { key, origin, value }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Nothing)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Boolean(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(i64::try_from(value).map_or(Tree::Float, Tree::Integer))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
        Ok(Tree::Float)
    }

    fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
        Ok(Tree::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = list.next_element()? {
            elements.push(element);
        }
        Ok(Tree::List(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = table.next_entry()? {
            entries.push(entry);
        }
        Ok(Tree::Table(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_knows_its_key_and_where_it_was_written() {
        let node = parse("a: 1\nb:\n  - x\n  - é: {c: true}\n", Path::new("m.yaml")).unwrap();

        assert_eq!(
            lines(&node),
            ["1:1 ", "1:1 a", "2:1 b", "3:5 b[0]", "4:5 b[1]", "4:5 b[1].é", "4:9 b[1].é.c"],
            "line, column and key"
        );
    }

    #[test]
    fn what_looks_like_a_number_or_a_boolean_only_to_some_is_text() {
        let node = parse("- on\n- 0755\n- 1_000\n- '12'\n- 2026-11-22\n- !!str 7\n", Path::new("m.yaml")).unwrap();

        let texts: Vec<_> = node.list().unwrap().iter().map(|node| node.text().unwrap().to_owned()).collect();
        assert_eq!(texts, ["on", "0755", "1_000", "12", "2026-11-22", "7"]);
    }

    #[test]
    fn a_key_without_a_value_is_as_good_as_absent() {
        let mut section = parse("a:\nb: ~\nc: null\nd: ''\n", Path::new("m.yaml")).unwrap().section().unwrap();

        assert!(["a", "b", "c"].map(|key| section.take(key).is_none()).into_iter().all(|absent| absent));
        assert_eq!(section.take("d").unwrap().text(), Ok(""));
        section.finish().unwrap();
    }

    #[test]
    fn what_an_alias_stands_for_is_found_where_the_alias_is() {
        let node = parse("a: &x {c: 1}\nb:\n  <<: *x\nd: *x\n", Path::new("m.yaml")).unwrap();

        assert_eq!(lines(&node), ["1:1 ", "1:1 a", "1:8 a.c", "2:1 b", "3:7 b.c", "4:1 d", "4:4 d.c"]);
    }

    #[test]
    fn text_that_is_not_one_yaml_document_is_named_with_its_line() {
        let table = [
            ("a: [1, 2\n", "m.yaml:1:4: not YAML: unclosed bracket '['"),
            ("a: 1\na: 2\n", "m.yaml:2:1: not YAML: duplicate mapping key `a` is not allowed here"),
            ("a\n---\nb", "m.yaml:3:1: holds more than one document: one dataset a file"),
            ("a: b: c", "m.yaml:1:5: not YAML: mapping values are not allowed in this context"),
            ("- a\n- *x", "m.yaml:2:3: not YAML: reference to unknown value"),
        ];
        for (text, error) in table {
            assert_eq!(error_of(text), error);
        }
        assert!(error_of("a: !secret b").starts_with("m.yaml:1:12: not YAML: "), "{}", error_of("a: !secret b"));
    }

    #[test]
    fn aliases_that_name_each_other_end_early() {
        let doubling = |i: usize| format!("a{i}: &a{i} [{}]\n", format!("*a{},", i - 1).repeat(9));
        let nesting = |i: usize| format!("a{i}: &a{i} [[[*a{}]]]\n", i - 1);
        let unfold = |line: &dyn Fn(usize) -> String| {
            (1..1_000).fold("a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, i| text + &line(i))
        };

        assert!(error_of(&unfold(&doubling)).contains("too large or too complex"));
        assert!(error_of(&unfold(&nesting)).contains("too large or too complex"));
        assert!(error_of(&"- ".repeat(100_000)).contains("too large or too complex"));
        assert!(error_of(&"[".repeat(100_000)).contains("recursion limit exceeded"));
    }

    fn error_of(text: &str) -> String {
        parse(text, Path::new("m.yaml")).expect_err("the text is wrong").to_string()
    }

    /// Line, column and key of a node and everything in it.
    fn lines(node: &Node) -> Vec<String> {
        let Origin::File { line, column, .. } = &node.origin else { return Vec::new() };
        let inside: Vec<&Node> = match &node.value {
            Value::List(nodes) => nodes.iter().collect(),
            Value::Table(entries) => entries.iter().map(|(_, node)| node).collect(),
            _ => Vec::new(),
        };
        let own = format!("{line}:{column} {}", node.key);
        std::iter::once(own).chain(inside.into_iter().flat_map(lines)).collect()
    }
}
