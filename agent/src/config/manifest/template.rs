//! Text with `${{ env.NAME || 'default' }}` in it.

use std::fmt;

/// Text with `${{ env.NAME || 'default' }}` in it, parsed and not yet resolved: secrets are looked up when connecting.
///
/// ```
/// # use forebay_agent::config::manifest::Template;
/// let template = Template::parse("pre-${{ env.MQTT_PASSWORD || 'none' }}")?;
/// assert_eq!(template.resolve(|name| (name == "MQTT_PASSWORD").then(|| "s3cret".to_owned()))?, "pre-s3cret");
/// assert_eq!(template.resolve(|_| None)?, "pre-none");
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// The first of these variables that is set, or else the text.
    Variable {
        names: Vec<String>,
        default: Option<String>,
    },
}

impl Template {
    /// Reads a template: `${{`, then variables and at last, perhaps, a quoted text with `||` between them, then `}}`.
    ///
    /// # Errors
    /// One line, which repeats nothing but the words of an expression: the text beside it may be a secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, expression)) = rest.split_once("${{") {
            let (part, after) = parse_expression(expression)?;
            parts.extend([Part::Text(before.to_owned()), part]);
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self { parts })
    }

    /// The text, with variables as `env` knows them. A variable that is set to nothing is set.
    ///
    /// # Errors
    /// One line that names the variable that is not set and has no default.
    pub fn resolve(&self, env: impl Fn(&str) -> Option<String>) -> Result<String, String> {
        self.parts.iter().map(|part| part.resolve(&env)).collect()
    }

    /// Nothing in it depends on the environment.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Text(_)))
    }
}

impl Part {
    fn resolve(&self, env: impl Fn(&str) -> Option<String>) -> Result<String, String> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::Variable { names, default } => names
                .iter()
                .find_map(|name| env(name))
                .or_else(|| default.clone())
                .ok_or_else(|| format!("the environment variable {} is not set to text", names.join(" or "))),
        }
    }
}

/// The variables, and never the text around them.
impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variables = self.parts.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Variable { names, .. } => Some(names),
        });
        f.write_str("Template ")?;
        f.debug_list().entries(variables).finish()
    }
}

/// What follows `${{`, up to its `}}`; and what follows that.
fn parse_expression(text: &str) -> Result<(Part, &str), String> {
    let mut names = Vec::new();
    let mut rest = text.trim_start();
    let default = loop {
        if let Some(quoted) = rest.strip_prefix('\'') {
            let (default, after) = quoted.split_once('\'').ok_or("`${{`: a quoted text has no end")?;
            rest = after.trim_start();
            break Some(default.to_owned());
        }
        let (name, after) = parse_variable(rest)?;
        names.push(name.to_owned());
        rest = after.trim_start();
        match rest.strip_prefix("||") {
            Some(after) => rest = after.trim_start(),
            None => break None,
        }
    };
    let after = rest.strip_prefix("}}").ok_or("`${{`: expected `}}` after `env.NAME` or `env.NAME || 'default'`")?;
    match default {
        Some(default) if names.is_empty() => Ok((Part::Text(default), after)),
        default => Ok((Part::Variable { names, default }, after)),
    }
}

fn parse_variable(text: &str) -> Result<(&str, &str), String> {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    match word.strip_prefix("env.") {
        Some(name) if !name.is_empty() && !name.contains('.') && !name.starts_with(|c: char| c.is_ascii_digit()) => {
            Ok((name, rest))
        }
        _ => Err(format!("`${{{{ {word}`: only `env.NAME` and `env.NAME || 'default'` are understood")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_put_where_they_stand() {
        let table = [
            ("plain", "plain"),
            ("", ""),
            ("${{ env.A }}", "a"),
            ("${{env.A}}", "a"),
            ("x${{ env.A }}y${{ env.B }}z", "xaybz"),
            ("${{ env.NONE || 'd }} f' }}", "d }} f"),
            ("${{ env.NONE || env.A || 'd' }}", "a"),
            ("${{ env.EMPTY || 'd' }}", ""),
            ("${{ 'only' }}", "only"),
            ("$ { } }} ${A}", "$ { } }} ${A}"),
        ];
        for (text, resolved) in table {
            assert_eq!(Template::parse(text).unwrap().resolve(env).as_deref(), Ok(resolved), "{text}");
        }
    }

    #[test]
    fn a_variable_that_is_not_set_is_named() {
        let error = |text| Template::parse(text).unwrap().resolve(env).unwrap_err();

        assert_eq!(error("x${{ env.NONE }}"), "the environment variable NONE is not set to text");
        assert_eq!(error("${{ env.NONE || env.NOR }}"), "the environment variable NONE or NOR is not set to text");
    }

    #[test]
    fn an_expression_of_another_kind_is_refused_by_name() {
        for (text, named) in [
            ("${{ secrets.A }}", "`${{ secrets.A`: only"),
            ("${{ }}", "`${{ `: only"),
            ("${{ env. }}", "`${{ env.`: only"),
            ("${{ env.A.B }}", "`${{ env.A.B`: only"),
            ("${{ env.1A }}", "`${{ env.1A`: only"),
            ("${{ env.A", "expected `}}`"),
            ("${{ env.A || 'x", "has no end"),
            ("${{ env.A || 'x' || env.B }}", "expected `}}`"),
            ("${{ env.A + 'x' }}", "expected `}}`"),
            ("${{", "`${{ `: only"),
        ] {
            let error = Template::parse(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_secret_is_not_shown() {
        let template = Template::parse("s3cret-${{ env.A || 'hidden' }}").unwrap();

        assert_eq!(format!("{template:?}"), "Template [[\"A\"]]");
        assert!(!Template::parse("s3cret${{ env.A || 'hidden' ?").unwrap_err().contains("s3cret"));
        assert!(!Template::parse("${{ env.A || 'hidden' ?").unwrap_err().contains("hidden"));
    }

    #[test]
    fn only_a_template_without_variables_is_literal() {
        let is_literal = |text| Template::parse(text).unwrap().is_literal();

        assert!(is_literal("plain") && is_literal("${{ 'x' }}") && is_literal(""));
        assert!(!is_literal("${{ env.A || 'x' }}"));
    }

    fn env(name: &str) -> Option<String> {
        [("A", "a"), ("B", "b"), ("EMPTY", "")].iter().find(|(known, _)| *known == name).map(|(_, v)| v.to_string())
    }
}
