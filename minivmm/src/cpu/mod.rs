//! CPU models: all features, the features of each model, and the user's changes. Plain data without KVM.

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
