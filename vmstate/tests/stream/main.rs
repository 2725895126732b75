//! Whole streams and their sections, written by hand from the format.
#![cfg(feature = "engine")]

mod format;
mod mapped;
#[cfg(feature = "tools")]
mod older_release;
#[cfg(feature = "tools")]
mod postcopy;
mod section_forms;
mod section_rules;
mod sections;
mod strictness;
mod toy;
