//! A configuration as a tree in which every value knows where it was written.
//!
//! The TOML file and the `FOREBAY__SECTION__KEY` variables are merged into one tree of [`Node`]s. Whoever reads it takes
//! keys out of a [`Section`]; what is left at [`Section::finish`] is unknown, and is answered with the nearest key that
//! was asked for. So the code that reads a key is the only list of keys.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::later::{self, Later};

/// Prefix of the environment variables that override keys.
pub const ENV_PREFIX: &str = "FOREBAY__";

/// Why a configuration cannot be used, and where it says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where.
    pub origin: Origin,
    /// The key, dotted; empty when the file as a whole is meant.
    pub key: String,
    /// What is wrong, and what to write instead.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "`{}`: ", self.key)?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for ConfigError {}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere in particular: the built-in default, or the configuration as a whole.
    Default,
    /// In a file; line and column count from 1.
    File {
        /// Which file.
        file: Arc<Path>,
        /// Line.
        line: usize,
        /// Column, in characters.
        column: usize,
    },
    /// In an environment variable.
    Env(String),
}

impl Origin {
    /// The beginning of a file.
    #[must_use]
    pub fn start_of(file: &Path) -> Self {
        Self::File { file: file.into(), line: 1, column: 1 }
    }

    /// The file, if it is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File { file, .. } => Some(file),
            Self::Default | Self::Env(_) => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("configuration"),
            Self::File { file, line, column } => write!(f, "{}:{line}:{column}", file.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// One value, its key and its origin.
#[derive(Clone, Debug)]
pub struct Node {
    /// Dotted key.
    pub key: String,
    /// Where the key stands (for an element of a list: the element).
    pub origin: Origin,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// A key without a value, as YAML may have it.
    Nothing,
    Text(String),
    Integer(i64),
    Float,
    Boolean(bool),
    Time,
    List(Vec<Node>),
    Table(Vec<(String, Node)>),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Text(_) => "text",
            Self::Integer(_) => "an integer",
            Self::Float => "a number",
            Self::Boolean(_) => "true or false",
            Self::Time => "a date or time",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

impl Node {
    /// The tree of a TOML text; `file` names it in errors.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let file: Arc<Path> = Arc::from(file);
        let source = Source { text, file };
        let table = DeTable::parse(text).map_err(|error| ConfigError {
            origin: source.origin(error.span().map_or(0, |span| span.start)),
            key: String::new(),
            problem: format!("not TOML: {}", error.message()),
        })?;
        source.table("", table.get_ref(), source.origin(0))
    }

    /// An empty tree: everything is the default.
    pub fn empty() -> Self {
        Self { key: String::new(), origin: Origin::Default, value: Value::Table(Vec::new()) }
    }

    /// Sets what a `FOREBAY__SECTION__KEY` variable says. Entries of a list are numbered from 0:
    /// `FOREBAY__LISTENER__0__BIND`.
    pub fn set_from_env(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        let path = name.strip_prefix(ENV_PREFIX).unwrap_or(name).to_lowercase();
        let mut node = self;
        for segment in path.split("__") {
            node = node.child_for_env(segment, name)?;
        }
        node.origin = Origin::Env(name.to_owned());
        node.value = node.value_from_env(text)?;
        Ok(())
    }

    fn child_for_env(&mut self, segment: &str, name: &str) -> Result<&mut Self, ConfigError> {
        let origin = Origin::Env(name.to_owned());
        let key = join(&self.key, segment);
        let index = segment.parse::<usize>().ok();
        if let (Value::Table(entries), Some(0)) = (&self.value, index)
            && entries.is_empty()
            && !self.key.is_empty()
        {
            self.value = Value::List(Vec::new());
        }
        let new = |key| Self { key, origin: origin.clone(), value: Value::Table(Vec::new()) };
        match &mut self.value {
            Value::List(nodes) => {
                let count = nodes.len();
                let Some(index) = index.filter(|index| *index <= count) else {
                    let problem =
                        format!("is a list of {count}: number its entries, 0 to {count} (the last one is new)");
                    return Err(ConfigError { origin, key: self.key.clone(), problem });
                };
                if index == count {
                    nodes.push(new(self.key.clone()));
                }
                Ok(&mut nodes[index])
            }
            Value::Table(entries) => {
                let position = entries.iter().position(|(known, _)| known == segment);
                let position = position.unwrap_or_else(|| {
                    entries.push((segment.to_owned(), new(key)));
                    entries.len() - 1
                });
                Ok(&mut entries[position].1)
            }
            other => {
                let problem = format!("is {}, not a section", other.kind());
                Err(ConfigError { origin, key: self.key.clone(), problem })
            }
        }
    }

    /// Lists and inline tables are written as in TOML; everything else is text that the key's own parser reads.
    fn value_from_env(&self, text: &str) -> Result<Value, ConfigError> {
        if !text.starts_with(['[', '{']) {
            return Ok(Value::Text(text.to_owned()));
        }
        let document = format!("value = {text}");
        let parsed = DeTable::parse(&document).map_err(|error| self.error(format!("not TOML: {}", error.message())))?;
        let Some(value) = parsed.get_ref().get("value") else {
            return Err(self.error("is empty"));
        };
        let source = Source { text: &document, file: Arc::from(Path::new("")) };
        let mut node = source.node(&self.key, value, Origin::Default)?;
        node.set_origin(&self.origin);
        Ok(node.value)
    }

    fn set_origin(&mut self, origin: &Origin) {
        self.origin = origin.clone();
        match &mut self.value {
            Value::List(nodes) => nodes.iter_mut().for_each(|node| node.set_origin(origin)),
            Value::Table(entries) => {
                entries.iter_mut().for_each(|(_, node)| node.set_origin(origin));
            }
            _ => {}
        }
    }

    /// An error at this value.
    pub fn error(&self, problem: impl fmt::Display) -> ConfigError {
        ConfigError { origin: self.origin.clone(), key: self.key.clone(), problem: problem.to_string() }
    }

    fn expected(&self, what: &str) -> ConfigError {
        self.error(format!("expected {what}, found {}", self.value.kind()))
    }

    /// Text.
    pub fn text(&self) -> Result<&str, ConfigError> {
        match &self.value {
            Value::Text(text) => Ok(text),
            _ => Err(self.expected("text in quotes")),
        }
    }

    /// Text that `parse` understands.
    pub fn parsed<T, E: fmt::Display>(&self, parse: impl FnOnce(&str) -> Result<T, E>) -> Result<T, ConfigError> {
        parse(self.text()?).map_err(|problem| self.error(problem))
    }

    /// A file, relative to the one in which it is named.
    pub fn path(&self) -> Result<PathBuf, ConfigError> {
        let beside = match &self.origin {
            Origin::File { file, .. } => file.parent(),
            Origin::Default | Origin::Env(_) => None,
        };
        Ok(beside.unwrap_or(Path::new("")).join(self.text()?))
    }

    /// An integer that fits the type.
    pub fn integer<T: TryFrom<i64>>(&self) -> Result<T, ConfigError> {
        let value = match &self.value {
            Value::Integer(value) => *value,
            Value::Text(text) if matches!(self.origin, Origin::Env(_)) => {
                text.parse().map_err(|_| self.expected("an integer"))?
            }
            _ => return Err(self.expected("an integer")),
        };
        T::try_from(value).map_err(|_| self.error(format!("{value} is out of range")))
    }

    /// true or false.
    pub fn boolean(&self) -> Result<bool, ConfigError> {
        match &self.value {
            Value::Boolean(value) => Ok(*value),
            Value::Text(text) if matches!(self.origin, Origin::Env(_)) => {
                text.parse().map_err(|_| self.expected("true or false"))
            }
            _ => Err(self.expected("true or false")),
        }
    }

    /// Bytes: an integer, or text such as `"2GiB"`.
    pub fn size(&self) -> Result<u64, ConfigError> {
        match &self.value {
            Value::Integer(_) => self.integer(),
            Value::Text(_) => self.parsed(super::units::size),
            _ => Err(self.expected("a size such as \"256MiB\"")),
        }
    }

    /// A time span: text such as `"60s"`.
    pub fn duration(&self) -> Result<std::time::Duration, ConfigError> {
        match &self.value {
            Value::Text(_) => self.parsed(super::units::duration),
            Value::Integer(value) => {
                Err(self.error(format!("expected a time span with its unit, such as \"{value}s\", found an integer")))
            }
            _ => Err(self.expected("a time span such as \"60s\"")),
        }
    }

    /// Whether it is a list.
    pub(super) fn is_list(&self) -> bool {
        matches!(self.value, Value::List(_))
    }

    /// The elements of a list.
    pub fn list(self) -> Result<Vec<Node>, ConfigError> {
        match self.value {
            Value::List(nodes) => Ok(nodes),
            _ => Err(self.expected("a list in [ ]")),
        }
    }

    /// A list of tables, or one table alone.
    pub fn sections(self) -> Result<Vec<Section>, ConfigError> {
        match self.value {
            Value::List(nodes) => nodes.into_iter().map(Node::section).collect(),
            Value::Table(_) => Ok(vec![self.section()?]),
            _ => Err(self.expected("a table")),
        }
    }

    /// A table whose keys are known.
    pub fn section(self) -> Result<Section, ConfigError> {
        let origin = self.origin.clone();
        let key = self.key.clone();
        Ok(Section { key, origin, entries: self.entries()?, asked: Vec::new() })
    }

    /// A table whose keys the user chooses, in the order in which they are written.
    pub fn entries(self) -> Result<Vec<(String, Node)>, ConfigError> {
        match self.value {
            Value::Table(entries) => Ok(entries),
            _ => Err(self.expected("a table")),
        }
    }
}

/// A table from which known keys are taken one by one.
#[derive(Debug)]
pub struct Section {
    /// Dotted key of the table.
    pub key: String,
    /// Where it begins.
    pub origin: Origin,
    entries: Vec<(String, Node)>,
    asked: Vec<&'static str>,
}

impl Section {
    /// Takes a key out, if it is there and has a value.
    pub fn take(&mut self, key: &'static str) -> Option<Node> {
        self.asked.push(key);
        let position = self.entries.iter().position(|(known, _)| known == key)?;
        let (_, node) = self.entries.remove(position);
        Some(node).filter(|node| !matches!(node.value, Value::Nothing))
    }

    /// Takes a key out and reads it, or answers `default`.
    pub fn read<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Node) -> Result<T, ConfigError>,
    ) -> Result<T, ConfigError> {
        self.take(key).map_or(Ok(default), |node| read(&node))
    }

    /// An error of the section as a whole.
    pub fn error(&self, problem: impl fmt::Display) -> ConfigError {
        ConfigError { origin: self.origin.clone(), key: self.key.clone(), problem: problem.to_string() }
    }

    /// Nothing may be left.
    pub fn finish(self) -> Result<(), ConfigError> {
        let Some((key, node)) = self.entries.first() else { return Ok(()) };
        if let Some(Later { what }) = later::find(&self.key, key) {
            return Err(node.error(format!("{what} is not in this version")));
        }
        let nearest = nearest(key, &self.asked);
        let help = match nearest {
            Some(known) => format!("unknown key; did you mean `{known}`?"),
            None => format!("unknown key; known here: {}", self.asked.join(", ")),
        };
        Err(node.error(help))
    }
}

/// The known word that is most like `word`, if any is like it at all.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), *candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

struct Source<'a> {
    text: &'a str,
    file: Arc<Path>,
}

impl Source<'_> {
    fn origin(&self, position: usize) -> Origin {
        let before = self.text.get(..position).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Origin::File {
            file: Arc::clone(&self.file),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    fn node(&self, key: &str, value: &Spanned<DeValue<'_>>, origin: Origin) -> Result<Node, ConfigError> {
        let value = match value.get_ref() {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(integer) => {
                let parsed = i64::from_str_radix(integer.as_str(), integer.radix());
                Value::Integer(parsed.map_err(|_| ConfigError {
                    origin: origin.clone(),
                    key: key.to_owned(),
                    problem: "the integer does not fit 64 bits".to_owned(),
                })?)
            }
            DeValue::Float(_) => Value::Float,
            DeValue::Boolean(value) => Value::Boolean(*value),
            DeValue::Datetime(_) => Value::Time,
            DeValue::Array(elements) => Value::List(
                elements
                    .iter()
                    .map(|element| self.node(key, element, self.origin(element.span().start)))
                    .collect::<Result<_, _>>()?,
            ),
            DeValue::Table(table) => return self.table(key, table, origin),
        };
        Ok(Node { key: key.to_owned(), origin, value })
    }

    fn table(&self, key: &str, table: &DeTable<'_>, origin: Origin) -> Result<Node, ConfigError> {
        let mut written: Vec<_> = table.iter().collect();
        written.sort_by_key(|(name, _)| name.span().start);
        let mut entries = Vec::new();
        for (name, value) in written {
            let key = join(key, name.get_ref());
            let node = self.node(&key, value, self.origin(name.span().start))?;
            entries.push((name.get_ref().to_string(), node));
        }
        Ok(Node { key: key.to_owned(), origin, value: Value::Table(entries) })
    }
}

pub(super) fn join(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}
