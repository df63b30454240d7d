//! Topic patterns: which Topic Names a dataset takes, and which of their levels become columns.
