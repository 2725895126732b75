//! Preflight: before the first page of memory both machines are compared, and all that differs is refused at once.

pub mod compare;
pub mod facts;
mod processor;
#[cfg(test)]
mod tests;

pub use compare::{Difference, compare};
pub use facts::{Card, Disk, Facts, Preflight};
