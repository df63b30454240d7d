//! The rules of the codec, one test each.
