//! One column as SQL defines it: `"Value" FLOAT NOT NULL`.
//!
//! Types mean what they mean to a node (DataFusion): FLOAT is single, and INT8 counts bytes, not bits.

use forebay_storage::dataset::spec::DataType;

use super::schema::INSTANT;

const TYPES: [(&str, DataType); 34] = [
    ("BOOLEAN", DataType::Bool),
    ("BOOL", DataType::Bool),
    ("TINYINT", DataType::Int8),
    ("SMALLINT", DataType::Int16),
    ("INT2", DataType::Int16),
    ("INT", DataType::Int32),
    ("INTEGER", DataType::Int32),
    ("INT4", DataType::Int32),
    ("BIGINT", DataType::Int64),
    ("INT8", DataType::Int64),
    ("TINYINT UNSIGNED", DataType::UInt8),
    ("SMALLINT UNSIGNED", DataType::UInt16),
    ("INT2 UNSIGNED", DataType::UInt16),
    ("INT UNSIGNED", DataType::UInt32),
    ("INTEGER UNSIGNED", DataType::UInt32),
    ("INT4 UNSIGNED", DataType::UInt32),
    ("BIGINT UNSIGNED", DataType::UInt64),
    ("INT8 UNSIGNED", DataType::UInt64),
    ("FLOAT", DataType::Float32),
    ("FLOAT4", DataType::Float32),
    ("REAL", DataType::Float32),
    ("DOUBLE", DataType::Float64),
    ("DOUBLE PRECISION", DataType::Float64),
    ("FLOAT8", DataType::Float64),
    ("STRING", DataType::String),
    ("TEXT", DataType::String),
    ("VARCHAR", DataType::String),
    ("CHAR", DataType::String),
    ("DATE", DataType::Date),
    ("TIMESTAMP", INSTANT),
    ("TIMESTAMP WITH TIME ZONE", INSTANT),
    ("TIMESTAMP WITHOUT TIME ZONE", INSTANT),
    ("BYTEA", DataType::Binary),
    ("BINARY", DataType::Binary),
];

/// A column.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Definition {
    pub(super) name: String,
    /// The name as it was written, if SQL reads it otherwise.
    pub(super) written: Option<String>,
    pub(super) data_type: DataType,
    pub(super) not_null: bool,
}

/// Reads a definition.
///
/// # Errors
/// One line that names what is not understood.
pub(super) fn parse(text: &str) -> Result<Definition, String> {
    let (name, written, rest) = parse_name(text.trim())?;
    let mut words = words(rest)?;
    let not_null = words.ends_with(&["NOT".to_owned(), "NULL".to_owned()]);
    if words.last().is_some_and(|word| word == "NULL") {
        words.truncate(words.len() - if not_null { 2 } else { 1 });
    }
    Ok(Definition { name, written, data_type: data_type(&words)?, not_null })
}

/// A name in quotes as it stands; a bare one in small letters, as SQL reads it. And what follows it.
fn parse_name(text: &str) -> Result<(String, Option<String>, &str), String> {
    if let Some(quote) = text.chars().next().filter(|first| matches!(first, '"' | '`')) {
        let (name, rest) = parse_quoted(&text[1..], quote)?;
        return Ok((name, None, rest));
    }
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let is_bare = name.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    if !is_bare {
        return Err(format!(
            "{text:?} is not a column such as value FLOAT: a name that is not letters, digits and _ stands in double quotes"
        ));
    }
    let small = name.to_ascii_lowercase();
    let written = Some(name.to_owned()).filter(|name| *name != small);
    Ok((small, written, rest))
}

/// What stands before the closing quote, where a doubled one is a quote; and what follows.
fn parse_quoted(text: &str, quote: char) -> Result<(String, &str), String> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let Some((part, after)) = rest.split_once(quote) else {
            return Err("the quoted name of a column has no end".to_owned());
        };
        name.push_str(part);
        match after.strip_prefix(quote) {
            Some(after) => {
                name.push(quote);
                rest = after;
            }
            None => return Ok((name, after)),
        }
    }
}

/// Words in capitals; a bracket or a comma is a word of its own.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '(' | ')' | ',' => 1,
            _ => rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len()),
        };
        if end == 0 {
            return Err(format!("{first:?} is not understood: one column in each entry, such as value FLOAT NOT NULL"));
        }
        words.push(rest[..end].to_ascii_uppercase());
        rest = rest[end..].trim_start();
    }
    Ok(words)
}

fn data_type(words: &[String]) -> Result<DataType, String> {
    let sql = words.join(" ");
    let (bare, argument) = match words.iter().position(|word| word == "(") {
        Some(open) if words.get(open + 2).is_some_and(|word| word == ")") => {
            let bare = [&words[..open], &words[open + 3..]].concat().join(" ");
            (bare, Some(words[open + 1].as_str()))
        }
        _ => (sql.clone(), None),
    };
    let known = TYPES.iter().find(|(word, _)| *word == bare).map(|(_, data_type)| *data_type);
    match (known, argument) {
        (Some(data_type), None) => Ok(data_type),
        // A text's length bounds nothing in a node either.
        (Some(DataType::String), Some(length)) if is_number(length) && bare.ends_with("CHAR") => Ok(DataType::String),
        (Some(DataType::Timestamp(_)), Some("3" | "6" | "9")) => Ok(INSTANT),
        _ if sql.is_empty() => Err("needs a type, such as value FLOAT".to_owned()),
        _ => Err(format!(
            "{sql:?} is not a type that is read; there are {}, and NOT NULL",
            TYPES.map(|(word, _)| word).join(", ")
        )),
    }
}

fn is_number(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_is_a_name_a_type_and_perhaps_not_null() {
        let table = [
            ("value FLOAT", "value", "Float32", false),
            ("  value  double   precision not null ", "value", "Float64", true),
            ("value BIGINT NULL", "value", "Int64", false),
            ("\"Any \"\"name\"\" at all\" STRING NOT NULL", "Any \"name\" at all", "String", true),
            ("`quoted` INT", "quoted", "Int32", false),
            ("n BIGINT UNSIGNED", "n", "UInt64", false),
            ("n int8", "n", "Int64", false),
            ("s VARCHAR(20) NOT NULL", "s", "String", true),
            ("s CHAR ( 1 )", "s", "String", false),
            ("t TIMESTAMP(3) WITH TIME ZONE", "t", "Timestamp(utc)", false),
            ("d date", "d", "Date", false),
            ("b BYTEA", "b", "Binary", false),
        ];
        for (text, name, word, not_null) in table {
            let definition = parse(text).unwrap();
            let found = (definition.name.as_str(), definition.data_type.word(), definition.not_null);
            assert_eq!(found, (name, word, not_null), "{text}");
        }
    }

    #[test]
    fn a_bare_name_is_read_in_small_letters() {
        let definition = parse("Temp_C FLOAT").unwrap();

        assert_eq!((definition.name.as_str(), definition.written.as_deref()), ("temp_c", Some("Temp_C")));
        assert_eq!(parse("\"Temp_C\" FLOAT").unwrap().name, "Temp_C");
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let table = [
            ("value DECIMAL(10, 2)", "\"DECIMAL ( 10 , 2 )\" is not a type that is read"),
            ("value NUMERIC", "\"NUMERIC\" is not a type"),
            ("value FLOAT(24)", "\"FLOAT ( 24 )\" is not a type"),
            ("value INT PRIMARY KEY", "\"INT PRIMARY KEY\" is not a type"),
            ("value INT, other INT", "\"INT , OTHER INT\" is not a type"),
            ("value TIMESTAMP(0)", "\"TIMESTAMP ( 0 )\" is not a type"),
            ("value ARRAY<INT>", "'<' is not understood"),
            ("value INT DEFAULT 'x'", "'\\'' is not understood"),
            ("value", "needs a type"),
            ("value NOT NULL", "needs a type"),
            ("", "is not a column such as"),
            ("a.b INT", "is not a column such as"),
            ("1a INT", "is not a column such as"),
            ("\"a INT", "has no end"),
        ];
        for (text, named) in table {
            let error = parse(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
