//! Timelines of one session.
