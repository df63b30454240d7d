//! Each rule by name.
