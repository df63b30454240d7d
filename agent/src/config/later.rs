//! Keys that belong to Forebay but not to this version: a file that uses them is told so, by name.

/// What a key would do.
pub(super) struct Later {
    /// A noun phrase: "TLS", "the status page".
    pub what: &'static str,
}

/// Section, key, what it would do. `*` stands for every section.
const LATER: &[(&str, &str, &str)] = &[("", "http", "the status page and metrics ([http])")];

/// Whether a key comes later.
pub(super) fn find(section: &str, key: &str) -> Option<Later> {
    LATER.iter().find(|(in_section, name, _)| *in_section == section && *name == key).map(|(_, _, what)| Later { what })
}
