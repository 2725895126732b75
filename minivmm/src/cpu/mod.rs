//! CPU models: which features there are, what a model has of them, and what the user changed. Plain data; knows no KVM.

mod choice;
pub mod features;
mod model;
mod models;
#[cfg(test)]
mod tests;

pub use choice::Choice;
pub use features::{FLAGS, Feature, Flags, PERF_FORMATS, Place, Register};
pub use model::{Caches, Model};
pub use models::MODELS;
