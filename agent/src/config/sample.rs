//! The file that `init` writes: every key with its default and what it means, commented out.

/// A configuration in which every line that sets something is commented out and shows the default.
pub fn sample() -> &'static str {
    include_str!("sample.toml")
}
