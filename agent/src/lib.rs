//! x
pub mod clock;
pub mod config;
pub mod route;
pub mod telemetry;
