//! Preflight: compares both machines before the first page, and refuses with all differences at once.

pub mod compare;
pub mod facts;
mod features;
mod processor;
#[cfg(test)]
mod tests;

pub use compare::{Difference, compare};
pub use facts::{Card, DEVICES_MAX, Disk, Facts, Preflight};
pub use features::lacking;
